"""Datasets for ``torch.utils.data.DataLoader``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minitrain.data.plans.functions import check_count

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    from minitrain.data.iterator import DataIterator

__all__ = ["ToTorch"]


class ToTorch(ABC):
    """Makes a dataset of torch of what can be iterated over in batches."""

    @abstractmethod
    def counted(self, columns: Sequence[str] | None = None) -> DataIterator:
        """Return an iterator over the same rows that knows how many there are.

        Args:
            columns: No others are asked of it, and others need not be read; None: all are.
        """

    tensors: Callable[..., Any]

    def to_torch(
        self,
        *,
        label_column: str | None = None,
        feature_columns: Sequence[str]
        | Sequence[Sequence[str]]
        | Mapping[str, Sequence[str]]
        | None = None,
        label_column_dtype: Any = None,
        feature_column_dtypes: Any = None,
        batch_size: int = 1,
        prefetch_batches: int = 1,
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
        unsqueeze_label_tensor: bool = True,
        unsqueeze_feature_tensors: bool = True,
    ) -> IterableDataset[Any]:
        """Return a dataset of torch that yields batches: for ``DataLoader(it, batch_size=None)``.

        With ``num_workers`` each of the loader's processes reads some of the batches, and all of
        them together each row once; how many batches there are does not depend on it. Each
        iteration is another epoch.

        The rows are counted before this returns. Where it is not for a loader,
        :meth:`iter_torch_batches` does more, faster; positions are known to that one alone.

        Args:
            label_column: Yield ``(features, label)``; None: there is no label.
            feature_columns: Columns that become one tensor, several lists of those, or a dict of
                lists; None: all but the label. No tensors are made of columns that are not named.
            label_column_dtype: A ``torch.dtype``.
            feature_column_dtypes: One for all features, or like ``feature_columns`` one for each
                tensor.
            batch_size: Rows per batch.
            prefetch_batches: So many batches are made ready in a thread while one is used.
            drop_last: Leave a shorter last batch out.
            local_shuffle_buffer_size: Shuffle the rows of so many at a time.
            local_shuffle_seed: Of that shuffle.
            unsqueeze_label_tensor: Give labels a second axis.
            unsqueeze_feature_tensors: Give each column of features a second axis, along which
                those of one tensor are joined.

        Returns:
            An iterable with a length. Without ``label_column`` and ``feature_columns`` batches are
            dicts with a tensor per column.

        Example:
            >>> import minitrain.data
            >>> ds = minitrain.data.from_items([{"x": 1.0, "y": 0}, {"x": 2.0, "y": 1}])
            >>> next(iter(ds.to_torch(label_column="y", batch_size=2)))
            (tensor([[1.],
                    [2.]], dtype=torch.float64), tensor([[0],
                    [1]]))
        """
        from minitrain.data.feeding.loading import Arrangement, TorchBatches

        check_count("batch_size", batch_size)
        if not isinstance(feature_columns, str | Mapping) and isinstance(feature_columns, Iterable):
            feature_columns = list(feature_columns)
        arrangement = None
        if label_column is not None or feature_columns is not None:
            arrangement = Arrangement(
                label_column,
                feature_columns,
                label_column_dtype,
                feature_column_dtypes,
                unsqueeze_label=unsqueeze_label_tensor,
                unsqueeze_features=unsqueeze_feature_tensors,
            )
        options = {
            "batch_size": batch_size,
            "prefetch_batches": prefetch_batches,
            "drop_last": drop_last,
            "local_shuffle_buffer_size": local_shuffle_buffer_size,
            "local_shuffle_seed": local_shuffle_seed,
            "dtypes": feature_column_dtypes if arrangement is None else None,
        }
        self.tensors(None, **options)  # refuses wrong ones at once
        columns = None if arrangement is None or feature_columns is None else arrangement.named
        return TorchBatches(self.counted(columns), arrangement, options)
