"""The datasets of torch that :meth:`minitrain.data.Dataset.to_torch` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from minitrain.data.plans.steps import check_columns
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    from minitrain.data.iterator import DataIterator

__all__ = ["Arrangement", "TorchBatches"]

_PROCESSES = 1024
"""So many processes of a loader count their epochs."""


@dataclass(frozen=True)
class Arrangement:
    """What becomes of the columns of a batch; fields are the arguments of ``to_torch``."""

    label: str | None
    features: Sequence[str] | Sequence[Sequence[str]] | Mapping[str, Sequence[str]] | None
    label_dtype: Any
    feature_dtypes: Any
    unsqueeze_label: bool
    unsqueeze_features: bool

    def of(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return features and label."""
        if self.label is None:
            return self._features(batch), None
        label = self._column(batch, self.label)
        if self.unsqueeze_label:
            label = label.unsqueeze(1)
        return self._features(batch), _converted(label, self.label_dtype)

    def _features(self, batch: Mapping[str, Any]) -> Any:
        dtypes = self.feature_dtypes
        match self.features:
            case None:
                return self._joined(batch, [name for name in batch if name != self.label], dtypes)
            case Mapping() as groups:
                by_key = dtypes if isinstance(dtypes, Mapping) else dict.fromkeys(groups, dtypes)
                return {
                    key: self._joined(batch, names, by_key.get(key))
                    for key, names in groups.items()
                }
            case [str(), *_] as names:
                return self._joined(batch, names, dtypes)
            case groups:
                each = dtypes if isinstance(dtypes, Sequence) else [dtypes] * len(groups)
                return [
                    self._joined(batch, names, dtype)
                    for names, dtype in zip(groups, each, strict=True)
                ]

    def _joined(self, batch: Mapping[str, Any], names: Any, dtype: Any) -> torch.Tensor:
        """Return columns side by side in one tensor."""
        columns = [self._column(batch, name) for name in names]
        dtypes = dtype if isinstance(dtype, Sequence) else [dtype] * len(columns)
        columns = [_converted(one, each) for one, each in zip(columns, dtypes, strict=True)]
        if self.unsqueeze_features:
            columns = [column.unsqueeze(1) for column in columns]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    @staticmethod
    def _column(batch: Mapping[str, Any], name: str) -> torch.Tensor:
        check_columns([name], list(batch), "to_torch")
        column = batch[name]
        if not isinstance(column, torch.Tensor):
            raise ConfigurationError(
                f"to_torch: the rows of column {name!r} have different shapes, and make no tensor; "
                "use iter_torch_batches(collate_fn=...)"
            )
        return column


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None else tensor.to(dtype)


class TorchBatches(IterableDataset[Any]):
    """Batches of a dataset, also in the processes of a loader.

    Args:
        iterator: The rows.
        arrangement: What becomes of the columns; None: a dict of them.
        options: Of ``iter_torch_batches``.
    """

    def __init__(
        self, iterator: DataIterator, arrangement: Arrangement | None, options: dict[str, Any]
    ) -> None:
        self._iterator = iterator
        self._arrangement = arrangement
        self._options = options
        # A loader's process may be another one in each epoch: what they count, all of them see.
        self._epochs = torch.zeros(_PROCESSES, dtype=torch.int64)
        self._epochs.share_memory_()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Any]:
        iterator = self._iterator
        process = get_worker_info()
        if process is not None:
            epoch = int(self._epochs[process.id])
            self._epochs[process.id] += 1
            size = self._options["batch_size"]
            iterator = iterator.part(process.id, process.num_workers, size, epoch)
        for batch in iterator.iter_torch_batches(**self._options):
            yield batch if self._arrangement is None else self._arrangement.of(batch)

    def __len__(self) -> int:
        rows = self._iterator.rows()
        size: int = self._options["batch_size"]
        return rows // size if self._options["drop_last"] else -(-rows // size)
