"""The datasets of torch that :meth:`minitrain.data.Dataset.to_torch` returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from minitrain.data.plans.steps import check_columns, names_of
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

    def __post_init__(self) -> None:
        if self.label is not None:
            names_of("to_torch(label_column)", [self.label])
            _checked_dtypes(self.label_dtype, 1)
        self._groups()

    def needed(self, columns: Sequence[str]) -> list[str]:
        """Return which columns to make tensors of.

        Args:
            columns: Those there are.

        Raises:
            ColumnError: One that was asked for is not among them.
        """
        named = list(self.named)
        check_columns(named, columns, "to_torch")
        return list(columns) if self.features is None else named

    @property
    def named(self) -> Sequence[str]:
        """The columns that were asked for by name, each of them once."""
        names = [name for group, _ in self._groups() for name in group]
        label = [] if self.label is None else [self.label]
        return list(dict.fromkeys([*names, *label]))

    def of(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return features and label."""
        if self.label is None:
            return self._features(batch), None
        label = self._column(batch, self.label)
        if self.unsqueeze_label:
            label = label.unsqueeze(1)
        return self._features(batch), _converted(label, self.label_dtype)

    def _features(self, batch: Mapping[str, Any]) -> Any:
        tensors = [self._joined(batch, names, dtypes) for names, dtypes in self._groups()]
        match self.features:
            case None:
                names = [name for name in batch if name != self.label]
                return self._joined(batch, names, _checked_dtypes(self.feature_dtypes, len(names)))
            case str() | [str(), *_]:
                return tensors[0]
            case Mapping() as keys:
                return dict(zip(keys, tensors, strict=True))
            case _:
                return tensors

    def _groups(self) -> list[tuple[list[str], list[torch.dtype | None]]]:
        """Return for each tensor of features that was asked for its columns and their dtypes.

        Raises:
            ConfigurationError: One has no columns, or there are not as many dtypes.
        """
        dtypes = self.feature_dtypes
        groups: list[Any]
        match self.features:
            case None:
                return []
            case str() | [str(), *_] as names:
                groups, by_group = [names], [dtypes]
            case Mapping() as named:
                groups = list(named.values())
                by_group = _of_keys(dtypes, named)
            case list() as several:
                groups, by_group = several, _one_each(dtypes, len(several))
            case _:
                groups, by_group = [self.features], [dtypes]
        listed = [_names(group) for group in groups]
        if not all(listed) or not listed:
            raise ConfigurationError("to_torch(feature_columns): name at least one column")
        return [
            (names, _checked_dtypes(dtype, len(names)))
            for names, dtype in zip(listed, by_group, strict=True)
        ]

    def _joined(
        self, batch: Mapping[str, Any], names: Sequence[str], dtypes: Sequence[torch.dtype | None]
    ) -> torch.Tensor:
        """Return columns side by side in one tensor."""
        columns = [
            _converted(self._column(batch, name), dtype)
            for name, dtype in zip(names, dtypes, strict=True)
        ]
        if self.unsqueeze_features:
            columns = [column.unsqueeze(1) for column in columns]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    @staticmethod
    def _column(batch: Mapping[str, Any], name: str) -> torch.Tensor:
        column = batch[name]
        if not isinstance(column, torch.Tensor):
            raise ConfigurationError(
                f"to_torch: the rows of column {name!r} have different shapes, and make no tensor; "
                "use iter_torch_batches(collate_fn=...)"
            )
        return column


def _names(group: Any) -> list[str]:
    names = [group] if isinstance(group, str) or not isinstance(group, Iterable) else list(group)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"to_torch(feature_columns): {name!r} is no name of a column")
    return names


def _of_keys(dtypes: Any, groups: Mapping[str, Any]) -> list[Any]:
    if not isinstance(dtypes, Mapping):
        return [dtypes] * len(groups)
    for key in dtypes:
        if key not in groups:
            raise ConfigurationError(
                f"to_torch(feature_column_dtypes): {key!r} is none of {list(groups)}"
            )
    return [dtypes.get(key) for key in groups]


def _one_each(dtypes: Any, number: int) -> list[Any]:
    if not isinstance(dtypes, Sequence) or isinstance(dtypes, str):
        return [dtypes] * number
    if len(dtypes) != number:
        raise ConfigurationError(f"to_torch: there are {len(dtypes)} dtypes for {number} features")
    return list(dtypes)


def _checked_dtypes(dtypes: Any, number: int) -> list[torch.dtype | None]:
    each = _one_each(dtypes, number)
    for dtype in each:
        if not isinstance(dtype, torch.dtype | None):
            raise TypeError(
                f"to_torch: the dtype {dtype!r} must be a torch.dtype, such as torch.float32"
            )
    return each


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None else tensor.to(dtype)


class TorchBatches(IterableDataset[Any]):
    """Batches of a dataset, also in the processes of a loader.

    Args:
        iterator: The rows.
        arrangement: What becomes of the columns; None: a dict of them.
        options: Of the iterator's ``tensors``.
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
        arrangement = self._arrangement
        needed = None if arrangement is None else arrangement.needed
        for batch in iterator.tensors(needed, **self._options):
            yield batch if arrangement is None else arrangement.of(batch)

    def __len__(self) -> int:
        rows = self._iterator.rows()
        size: int = self._options["batch_size"]
        return rows // size if self._options["drop_last"] else -(-rows // size)
