"""The tree of sources and steps that a dataset stands for, and the blocks it comes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa

from minitrain.data import order
from minitrain.data.context import DataContext
from minitrain.data.plans.block import Block, JoinedBlock, SlicedBlock, Source
from minitrain.data.plans.mapped import HostTable, Permutation, TableBlock, TakenBlock, blocks_of
from minitrain.data.plans.readahead import Piece, reading
from minitrain.data.plans.runtime import current_runtime
from minitrain.data.plans.steps import MappedBlock, Step
from minitrain.data.processes.shared import SharedTable
from minitrain.exceptions import DataError

__all__ = [
    "Apply",
    "Limit",
    "Listed",
    "Node",
    "Read",
    "Repartition",
    "Shuffle",
    "ShuffleBlocks",
    "ShuffleRows",
    "Sliced",
    "Union",
    "Whole",
    "Zip",
    "counted",
    "host_table",
    "sources_of",
    "tables",
    "written",
]


class Node(ABC):
    """A part of a plan."""

    @property
    @abstractmethod
    def children(self) -> tuple[Node, ...]:
        """What it works on."""

    @abstractmethod
    def with_children(self, children: tuple[Node, ...]) -> Node:
        """Return the same on other nodes."""

    @abstractmethod
    def blocks(self, epoch: int) -> Iterator[Block]:
        """List the blocks of an epoch in order."""

    @abstractmethod
    def describe(self) -> str:
        """Return one line."""

    @property
    def changes(self) -> bool:
        """Whether the blocks, or their order, are others in another epoch."""
        return any(child.changes for child in self.children)


@dataclass(frozen=True, eq=False)
class _Leaf(Node):
    @property
    def children(self) -> tuple[Node, ...]:
        return ()

    def with_children(self, children: tuple[Node, ...]) -> Node:  # noqa: ARG002
        return self


@dataclass(frozen=True, eq=False)
class _OnOne(Node):
    child: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.child,)

    def with_children(self, children: tuple[Node, ...]) -> Node:
        return replace(self, child=children[0])


@dataclass(frozen=True, eq=False)
class Read(_Leaf):
    """The blocks of a source."""

    source: Source

    def blocks(self, epoch: int) -> Iterator[Block]:  # noqa: ARG002
        """List them."""
        return self.source.blocks()

    def describe(self) -> str:
        """Return one line."""
        what = [self.source.describe()]
        if self.source.columns is not None:
            what.append(f"columns: {', '.join(self.source.columns)}")
        if self.source.predicate is not None:
            what.append(f"rows: {self.source.predicate}")
        return "; ".join(what)


def sources_of(node: Node) -> list[Source]:
    """Return what a plan reads, as far as it was not listed before."""
    own = [node.source] if isinstance(node, Read) else []
    return own + [source for child in node.children for source in sources_of(child)]


@dataclass(frozen=True, eq=False)
class Listed(_Leaf):
    """Blocks that were listed and counted before.

    Attributes:
        listed: The blocks.
        origin: What they were listed from, for messages.
        order: What fixed their order; see :func:`minitrain.data.plans.planning.order_of`.
    """

    listed: tuple[Block, ...]
    origin: str
    order: tuple[str, ...] = ()

    def blocks(self, epoch: int) -> Iterator[Block]:  # noqa: ARG002
        """Return them."""
        return iter(self.listed)

    def describe(self) -> str:
        """Return one line."""
        rows = sum(block.rows or 0 for block in self.listed)
        return f"{self.origin} ({len(self.listed):,} blocks, {rows:,} rows)"


@dataclass(frozen=True, eq=False)
class Apply(_OnOne):
    """A step on each block."""

    step: Step

    def blocks(self, epoch: int) -> Iterator[Block]:
        """List the blocks, each with the step."""
        for block in self.child.blocks(epoch):
            if isinstance(block, MappedBlock) and block.known_rows is None:
                yield replace(block, steps=(*block.steps, self.step))
            else:
                yield MappedBlock(block, (self.step,))

    def describe(self) -> str:
        """Return one line."""
        return self.step.describe()


@dataclass(frozen=True, eq=False)
class Sliced(_OnOne):
    """The rows from ``start`` up to ``stop``; None: the last."""

    start: int
    stop: int | None

    def blocks(self, epoch: int) -> Iterator[Block]:
        """List the blocks with these rows; no block behind them is counted."""
        offset = 0
        for listed in self.child.blocks(epoch):
            if self.stop is not None and offset >= self.stop:
                return
            block = _with_rows(listed)
            rows = block.count()
            first = max(self.start - offset, 0)
            last = rows if self.stop is None else min(rows, self.stop - offset)
            if first < last:
                yield block if last - first == rows else SlicedBlock(block, first, last)
            offset += rows

    def describe(self) -> str:
        """Return one line."""
        return f"rows {self.start:,} to {'the last' if self.stop is None else f'{self.stop:,}'}"


@dataclass(frozen=True, eq=False)
class Limit(Sliced):
    """The first rows."""

    def describe(self) -> str:
        """Return one line."""
        return f"limit({self.stop})"


@dataclass(frozen=True, eq=False)
class Union(Node):
    """The rows of one dataset after those of another."""

    parts: tuple[Node, ...]

    @property
    def children(self) -> tuple[Node, ...]:
        """The datasets."""
        return self.parts

    def with_children(self, children: tuple[Node, ...]) -> Node:
        """Return the union of others."""
        return Union(children)

    def blocks(self, epoch: int) -> Iterator[Block]:
        """List the blocks of each."""
        for part in self.parts:
            yield from part.blocks(epoch)

    def describe(self) -> str:
        """Return one line."""
        return "union"


@dataclass(frozen=True, eq=False)
class Zip(Node):
    """The columns of two datasets side by side."""

    left: Node
    right: Node

    @property
    def children(self) -> tuple[Node, ...]:
        """The datasets."""
        return (self.left, self.right)

    def with_children(self, children: tuple[Node, ...]) -> Node:
        """Return others side by side."""
        return Zip(*children)

    def blocks(self, epoch: int) -> Iterator[Block]:
        """List the left one's blocks, each with the same rows of the right one."""
        lefts, rights = counted(self.left.blocks(epoch)), counted(self.right.blocks(epoch))
        rows = [sum(block.count() for block in blocks) for blocks in (lefts, rights)]
        if rows[0] != rows[1]:
            raise DataError(
                f"zip: the datasets have {rows[0]:,} and {rows[1]:,} rows; they must have the same"
            )
        offsets = _offsets(rights)
        start = 0
        for block in lefts:
            stop = start + block.count()
            if start < stop:
                yield _ZippedBlock(block, _joined(rights, offsets, start, stop))
            start = stop

    def describe(self) -> str:
        """Return one line."""
        return "zip"


@dataclass(frozen=True, slots=True)
class _ZippedBlock(Block):
    left: Block
    right: Block

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.left.name

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.left.count()

    @property
    def size_bytes(self) -> int | None:  # type: ignore[override]
        sizes = (self.left.size_bytes, self.right.size_bytes)
        return None if sizes[0] is None or sizes[1] is None else sizes[0] + sizes[1]

    @property
    def reading_bytes(self) -> int:
        return self.left.reading_bytes + self.right.reading_bytes

    @property
    def is_remote(self) -> bool:
        return self.left.is_remote

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        lefts, rights = self.left.read(start, stop), self.right.read(start, stop)
        left = right = None
        while (left := left or next(lefts, None)) and (right := right or next(rights, None)):
            rows = min(left.num_rows, right.num_rows)
            yield _side_by_side(left.slice(0, rows), right.slice(0, rows))
            left = left.slice(rows) if rows < left.num_rows else None
            right = right.slice(rows) if rows < right.num_rows else None


def _side_by_side(left: pa.Table, right: pa.Table) -> pa.Table:
    for name in right.column_names:
        new, number = name, 0
        while new in left.column_names:
            number += 1
            new = f"{name}_{number}"
        left = left.append_column(new, right.column(name))
    return left


@dataclass(frozen=True, eq=False)
class Repartition(_OnOne):
    """The same rows in other blocks: so many, or of so many rows."""

    num_blocks: int | None
    rows_per_block: int | None

    def blocks(self, epoch: int) -> Iterator[Block]:
        """List the new blocks."""
        old = counted(self.child.blocks(epoch))
        offsets = _offsets(old)
        total = int(offsets[-1])
        if self.num_blocks is not None:
            edges = [total * i // self.num_blocks for i in range(self.num_blocks + 1)]
        else:
            assert self.rows_per_block is not None
            edges = [*range(0, total, self.rows_per_block), total]
        for start, stop in pairwise(edges):
            if start < stop:
                yield _joined(old, offsets, start, stop)

    def describe(self) -> str:
        """Return one line."""
        if self.num_blocks is not None:
            return f"repartition({self.num_blocks})"
        return f"repartition(target_num_rows_per_block={self.rows_per_block})"


def _offsets(blocks: Iterable[Block]) -> np.ndarray:
    return order.Layout(np.array([block.count() for block in blocks], np.int64)).offsets


def _joined(blocks: Sequence[Block], offsets: np.ndarray, start: int, stop: int) -> Block:
    """Return the rows from ``start`` up to ``stop`` of a sequence of blocks."""
    parts: list[Block] = []
    for index, first, last in order.locate(offsets, order.Run(start, stop)):
        whole = blocks[index]
        parts.append(whole if last - first == whole.count() else SlicedBlock(whole, first, last))
    return parts[0] if len(parts) == 1 else JoinedBlock(tuple(parts))


@dataclass(frozen=True, eq=False)
class Shuffle(_OnOne):
    """An order of its own.

    Attributes:
        seed: Of the order.
        every_epoch: Whether each epoch has another one.
    """

    seed: int
    every_epoch: bool

    @property
    def changes(self) -> bool:
        """Whether the order is another one in another epoch."""
        return self.every_epoch or self.child.changes

    def _key(self, epoch: int) -> int:
        return epoch if self.every_epoch else 0

    def _options(self) -> str:
        return f"seed={self.seed}" + ("" if self.every_epoch else ", the same in every epoch")


@dataclass(frozen=True, eq=False)
class ShuffleBlocks(Shuffle):
    """The blocks in random order; the rows of each stay together."""

    def blocks(self, epoch: int) -> Iterator[Block]:
        """List the blocks in the order of an epoch."""
        blocks = list(self.child.blocks(epoch))
        for index in order.permutation(len(blocks), "blocks", self.seed, self._key(epoch)):
            yield blocks[index]

    def describe(self) -> str:
        """Return one line."""
        return f"randomize_block_order({self._options()})"


@dataclass(frozen=True, eq=False)
class ShuffleRows(Shuffle):
    """All rows in random order; :func:`resolved` first brings them into shared memory."""

    def blocks(self, epoch: int) -> Iterator[Block]:
        """List blocks of rows taken from everywhere."""
        table = host_table(self.child)
        permutation = Permutation(table.rows, "rows", self.seed, self._key(epoch))
        target = DataContext.get_current().target_table_bytes
        size = max(1, min(1 << 16, int(table.rows * target / max(table.size_bytes, 1))))
        for start in range(0, table.rows, size):
            yield TakenBlock(table, permutation, start, min(start + size, table.rows))

    def describe(self) -> str:
        """Return one line."""
        return f"random_shuffle({self._options()})"


@dataclass(frozen=True, eq=False)
class Whole(_OnOne):
    """What needs all rows at once: a function from a table, mapped, to tables.

    Attributes:
        text: What it is, for messages.
        function: Called with all rows.
    """

    text: str
    function: Callable[[pa.Table], Iterable[pa.Table]]

    def blocks(self, epoch: int) -> Iterator[Block]:  # noqa: ARG002
        """Do it, and list the blocks of the result."""
        return iter(blocks_of(host_table(self), self.text))

    def describe(self) -> str:
        """Return one line."""
        return self.text


# ---------------------------------------------------------------------- everything at once
def counted(listed: Iterable[Block]) -> tuple[Block, ...]:
    """Return blocks that know how many rows they have.

    Also empty ones, so that a shuffle gives the others the same order as if nobody had counted.
    """
    blocks = tuple(listed)
    unknown = [block for block in blocks if block.rows is None]
    if not unknown:
        return blocks
    pieces = (Piece(_CountedBlock(block)) for block in unknown)
    with closing(reading(pieces, current_runtime())) as reader:
        found = iter([table.column(0)[0].as_py() for table in reader])
    return tuple(_knowing(block, next(found)) if block.rows is None else block for block in blocks)


class _CountedBlock(Block):
    """One row, which says how many another block has: counted where and as others are read."""

    rows = 1
    size_bytes = 8

    def __init__(self, block: Block) -> None:
        self.name = block.name
        self._block = block

    @property
    def reading_bytes(self) -> int:
        return self._block.reading_bytes

    @property
    def is_remote(self) -> bool:
        return self._block.is_remote

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:  # noqa: ARG002
        yield pa.Table.from_arrays([pa.array([self._block.count()], pa.int64())], names=["rows"])


def _with_rows(block: Block) -> Block:
    """Return a block that knows how many rows it has, so that nobody counts them again."""
    return block if block.rows is not None else _knowing(block, block.count())


def _knowing(block: Block, rows: int) -> Block:
    if isinstance(block, MappedBlock):
        return replace(block, known_rows=rows)
    return MappedBlock(block, (), rows)


def tables(node: Node, epoch: int = 0) -> Iterator[pa.Table]:
    """Yield all rows of an epoch."""
    with closing(reading(map(Piece, node.blocks(epoch)), current_runtime())) as reader:
        yield from reader


def written(parts: Iterable[pa.Table], what: str) -> SharedTable:
    """Write tables to shared memory, or to a spill file if they are large.

    Args:
        parts: The rows.
        what: What they are, for messages.
    """
    context = DataContext.get_current()
    return SharedTable.write(
        parts,
        budget_bytes=context.shared_memory_bytes,
        spill_folder=context.spill_folder,
        what=what,
    )


def host_table(node: Node) -> HostTable:
    """Return all rows in memory that is shared; a node that has them there gives its own."""
    match node:
        case Listed(listed=(TableBlock(is_whole=True) as block,)):
            return block.shared
        case _:
            make = partial(_made, node)
            return HostTable(make(), make)


def _made(node: Node) -> SharedTable:
    if isinstance(node, Whole):
        return written(node.function(host_table(node.child).table()), node.describe())
    return written(tables(node), node.describe())
