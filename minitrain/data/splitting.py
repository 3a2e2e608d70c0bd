"""Divides a dataset's rows among several datasets, each of which is read by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from minitrain.data.plans.block import Block
from minitrain.data.plans.columns import check_plan_columns
from minitrain.data.plans.functions import check_count, check_seed
from minitrain.data.plans.groups import grouped_by
from minitrain.data.plans.plan import Listed, Node, Shuffle, ShuffleRows, Sliced
from minitrain.data.plans.planning import order_of
from minitrain.data.plans.tables import sliced

if TYPE_CHECKING:
    from minitrain.data.dataset import Dataset

__all__ = ["Splits", "rows_to_test"]

_TINY = 1e-9
"""10 * (1 - 0.9) is 0.9999999999999998, and means 1."""


class Splits:
    """The methods of a dataset that divide its rows.

    All of them count the rows, which is where functions of the user may be called. The parts are
    lazy, and together they always are the rows of the dataset's first epoch: a shuffle in every
    epoch, which would carry rows from one part to another, has to be asked for behind a split.
    """

    plan: Node

    def split(
        self, n: int, *, equal: bool = False, locality_hints: Sequence[Any] | None = None
    ) -> list[Dataset]:
        """Divide the rows into ``n`` consecutive parts, whose sizes differ by a row at most.

        Args:
            n: How many parts.
            equal: Leave out the last rows that do not go evenly.
            locality_hints: Has no effect.

        Raises:
            ConfigurationError: ``n`` is no positive integer.
            ValueError: There are not as many hints.
        """
        n = check_count("split", n)
        if locality_hints is not None and len(locality_hints) != n:
            raise ValueError(f"split: there are {len(locality_hints)} locality_hints for {n} parts")
        fixed = _fixed(self.plan)
        rows = fixed.count()
        if equal:
            rows -= rows % n
        return _parts(fixed.plan, [rows * part // n for part in range(n + 1)])

    def split_at_indices(self, indices: Sequence[int]) -> list[Dataset]:
        """Divide the rows before each index: one part more than there are indices.

        Args:
            indices: Numbers of rows, in ascending order; a part may be empty.

        Raises:
            ValueError: There is none, one is negative, or they are not in order.
        """
        if not _are(Integral, indices):
            raise TypeError(f"split_at_indices({indices!r}): must be a list of numbers of rows")
        if not len(indices):
            raise ValueError("split_at_indices: indices must be at least of length 1")
        if list(indices) != sorted(indices):
            raise ValueError(f"split_at_indices({list(indices)}): indices must be sorted")
        if indices[0] < 0:
            raise ValueError(f"split_at_indices({list(indices)}): indices must be positive")
        fixed = _fixed(self.plan)
        rows = fixed.count()
        return _parts(fixed.plan, [0, *(min(index, rows) for index in indices), rows])

    def split_proportionately(self, proportions: Sequence[float]) -> list[Dataset]:
        """Divide the rows by proportions; the last part has what is left.

        Args:
            proportions: Of each part but the last; their sum is below 1.

        Raises:
            ValueError: A proportion is not positive, their sum is 1 or more, or a part would have
                no rows.

        Example:
            >>> import minitrain.data
            >>> parts = minitrain.data.range(10).split_proportionately([0.2, 0.5])
            >>> [part.count() for part in parts]
            [2, 5, 3]
        """
        if not _are(Real, proportions):
            raise TypeError(
                f"split_proportionately({proportions!r}): must be a list of proportions"
            )
        if not len(proportions):
            raise ValueError("split_proportionately: proportions must be at least of length 1")
        if any(not proportion > 0 for proportion in proportions):
            raise ValueError(
                f"split_proportionately({list(proportions)}): proportions must be bigger than 0"
            )
        if sum(proportions) >= 1:
            raise ValueError(
                f"split_proportionately({list(proportions)}): proportions must sum to less than 1"
            )
        fixed = _fixed(self.plan)
        rows = fixed.count()
        edges = [0, *(int(rows * part + _TINY) for part in accumulate(proportions)), rows]
        for index in range(len(edges) - 2, 0, -1):  # no part is empty, as long as there are rows
            edges[index] = min(edges[index], edges[index + 1] - 1)
        if edges[1] <= 0:
            raise ValueError(
                f"split_proportionately({list(proportions)}): {rows:,} rows are too few for that; "
                "a part would be empty"
            )
        return _parts(fixed.plan, edges)

    def train_test_split(
        self,
        test_size: float,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        stratify: str | None = None,
    ) -> tuple[Dataset, Dataset]:
        """Divide the rows into some to train with and some to test with.

        Args:
            test_size: A proportion between 0 and 1, or a number of rows.
            shuffle: Shuffle all rows before.
            seed: Of that shuffle.
            stratify: A column: each of its values is among the rows to test with in proportion,
                to within a row. Its values are read at once, to remember a bit for each row.

        Returns:
            The first rows, to train with, and the last, to test with; with ``stratify`` the first
            and the last of each value, in their order.

        Raises:
            TypeError: ``test_size`` is no number.
            ValueError: It leaves one of both without rows, or ``stratify`` is combined with
                ``shuffle``.

        Example:
            >>> import minitrain.data
            >>> train, test = minitrain.data.range(10).train_test_split(0.3)
            >>> train.count(), test.take(1)
            (7, [{'id': 7}])
        """
        test_size = _int_or_float(test_size)
        if shuffle and stratify is not None:
            raise ValueError("train_test_split: stratify cannot be combined with shuffle=True")
        if stratify is not None:
            check_plan_columns([stratify], self.plan, "train_test_split(stratify)")
        if isinstance(test_size, float) and not 0 < test_size < 1:
            raise ValueError(
                f"train_test_split({test_size}): a proportion must be between 0 and 1; for a "
                "number of rows give an int"
            )
        plan = (
            ShuffleRows(self.plan, check_seed("train_test_split", seed), every_epoch=False)
            if shuffle
            else self.plan
        )
        fixed = _fixed(plan)
        rows = fixed.count()
        to_test = _rows_to_test(test_size, rows)
        if stratify is None:
            train, test = _parts(fixed.plan, [0, rows - to_test, rows])
            return train, test
        return _stratified(fixed, stratify, to_test)


def _int_or_float(test_size: Any) -> int | float:
    """Return a number, also one of numpy's, as Python's; refuse anything else."""
    if isinstance(test_size, bool) or not isinstance(test_size, Real):
        raise TypeError(f"train_test_split: test_size must be an int or a float, not {test_size!r}")
    return int(test_size) if isinstance(test_size, Integral) else float(test_size)


def _are(kind: type, numbers: Any) -> bool:
    """Tell whether something is a sequence of numbers, perhaps of numpy's."""
    return hasattr(numbers, "__len__") and all(isinstance(one, kind) for one in numbers)


def _fixed(plan: Node) -> Dataset:
    """Return a dataset, counted, with the order of its first epoch for all epochs."""
    from minitrain.data.dataset import Dataset

    return Dataset(_without_reseeding(plan)).resolved()


def _parts(plan: Node, edges: Sequence[int]) -> list[Dataset]:
    from minitrain.data.dataset import Dataset

    return [Dataset(Sliced(plan, *edge)) for edge in pairwise(edges)]


def _stratified(dataset: Dataset, column: str, to_test: int) -> tuple[Dataset, Dataset]:
    from minitrain.data.dataset import Dataset

    labels = dataset.select_columns(column).to_arrow()
    is_test = rows_to_test(grouped_by(labels, [column], "train_test_split(stratify)").ids, to_test)
    blocks = list(dataset.plan.blocks(0))
    order = (f"stratify={column!r}, {to_test} to test", *order_of(dataset.plan))
    train = Listed(_chosen(blocks, ~is_test), "train_test_split, train", order)
    test = Listed(_chosen(blocks, is_test), "train_test_split, test", order)
    return Dataset(train), Dataset(test)


def _chosen(blocks: Sequence[Block], keep: np.ndarray) -> tuple[Block, ...]:
    chosen = []
    start = 0
    for block in blocks:
        stop = start + block.count()
        if keep[start:stop].any():
            chosen.append(_ChosenBlock.of(block, keep[start:stop]))
        start = stop
    return tuple(chosen)


def _rows_to_test(test_size: float, rows: int) -> int:
    """Return how many rows a test set has.

    Raises:
        ValueError: It, or what is left, would have none.
    """
    if isinstance(test_size, int):
        if not 0 < test_size < rows:
            raise ValueError(
                f"train_test_split({test_size}): must be between 0 and the number of rows, {rows:,}"
            )
        return test_size
    to_train = int(rows * (1 - test_size) + _TINY)
    if not 0 < to_train < rows:
        raise ValueError(
            f"train_test_split({test_size}): {rows:,} rows are too few for that; one part would be "
            "empty"
        )
    return rows - to_train


def rows_to_test(classes: np.ndarray, to_test: int) -> np.ndarray:
    """Choose the last rows of each class in proportion to its size, to within a row.

    Args:
        classes: The class of each row, numbered from 0.
        to_test: How many rows are chosen.

    Returns:
        For each row whether it is chosen.
    """
    sizes = np.bincount(classes)
    share = sizes * to_test
    counts, left = share // len(classes), share % len(classes)
    # Those whose share was rounded down most get one of the rows that are left.
    counts[np.argsort(-left, kind="stable")[: to_test - counts.sum()]] += 1
    by_class = np.argsort(classes, kind="stable")
    place = np.arange(len(classes)) - np.repeat(sizes.cumsum() - sizes, sizes)
    chosen = np.empty(len(classes), np.bool_)
    chosen[by_class] = place >= np.repeat(sizes - counts, sizes)
    return chosen


def _without_reseeding(node: Node) -> Node:
    node = node.with_children(tuple(_without_reseeding(child) for child in node.children))
    return replace(node, every_epoch=False) if isinstance(node, Shuffle) else node


@dataclass(frozen=True, slots=True, eq=False)
class _ChosenBlock(Block):
    """Some of the rows of another block.

    Attributes:
        block: The other.
        bits: A bit for each of its rows: whether it is there.
        rows: How many are there.
    """

    block: Block
    bits: np.ndarray
    rows: int

    @classmethod
    def of(cls, block: Block, keep: np.ndarray) -> Self:
        return cls(block, np.packbits(keep), int(keep.sum()))

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.block.name

    @property
    def size_bytes(self) -> int | None:  # type: ignore[override]
        whole, rows = self.block.size_bytes, self.block.count()
        return None if whole is None else whole * self.rows // rows

    @property
    def reading_bytes(self) -> int:
        return self.block.reading_bytes

    @property
    def is_remote(self) -> bool:
        return self.block.is_remote

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        return sliced(self._kept(), start, stop)

    def _kept(self) -> Iterator[pa.Table]:
        keep = np.unpackbits(self.bits, count=self.block.count()).astype(np.bool_)
        first = 0
        for table in self.block.read():
            kept = table.filter(pa.array(keep[first : first + table.num_rows]))
            first += table.num_rows
            if kept.num_rows:
                yield kept
