"""What a dataset consists of: blocks, which nobody has read yet, and sources, which list them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

    from minitrain.data.files.source import FileShuffleConfig

__all__ = ["Block", "JoinedBlock", "SlicedBlock", "Source"]


class Block(ABC):
    """Some rows that are read together: a row group of a file, a file, a slice of a table.

    A block is small and can be pickled; nothing is open before it is read, and it can be read any
    number of times.

    Attributes:
        name: For messages: ``/data/a.parquet, row group 3``.
        rows: How many rows it has; None: that is not known before it is counted.
        size_bytes: About how much memory its rows take; None: that is not known.
    """

    name: str
    rows: int | None
    size_bytes: int | None

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield the rows from ``start`` up to ``stop``, in order, in tables of a few MiB.

        No table is empty; after the last row there is no other table.
        """

    @property
    def reading_bytes(self) -> int:
        """About how much memory it takes to read it, beside the tables that come out."""
        return 0

    @property
    def is_remote(self) -> bool:
        """Whether it is read over a network: then many are read at a time."""
        return False

    def cut(self, start: int, stop: int | None, rows: int | None) -> Iterator[Block] | None:  # noqa: ARG002
        """Cut rows into blocks that cost no more to read apart than together.

        Whoever works on one of them in another process then reads it there.

        Args:
            start: The first row.
            stop: The one after the last.
            rows: Of each block; None: as many as are read at a time.

        Returns:
            The blocks; None: to read some rows is to read many.
        """
        return None

    def count(self) -> int:
        """Return how many rows there are, if need be by reading them."""
        if self.rows is not None:
            return self.rows
        return sum(table.num_rows for table in self.read())


@dataclass(frozen=True, slots=True)
class SlicedBlock(Block):
    """The rows from ``start`` up to ``stop`` of another block."""

    block: Block
    start: int
    stop: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """The other's, and where this one begins: rows are counted from there."""
        return f"{self.block.name}, from row {self.start:,}" if self.start else self.block.name

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many rows."""
        return self.stop - self.start

    @property
    def size_bytes(self) -> int | None:  # type: ignore[override]
        """The other's, in proportion."""
        whole, rows = self.block.size_bytes, self.block.rows
        return None if whole is None or not rows else whole * self.rows // rows

    @property
    def reading_bytes(self) -> int:
        """The other's."""
        return self.block.reading_bytes

    @property
    def is_remote(self) -> bool:
        """Whether the other is."""
        return self.block.is_remote

    def cut(self, start: int, stop: int | None, rows: int | None) -> Iterator[Block] | None:
        """Cut the other block."""
        end = self.stop if stop is None else min(self.stop, self.start + stop)
        return self.block.cut(self.start + start, end, rows)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield rows of the other block."""
        end = self.stop if stop is None else min(self.stop, self.start + stop)
        if self.start + start < end:
            yield from self.block.read(self.start + start, end)


@dataclass(frozen=True, slots=True)
class JoinedBlock(Block):
    """The rows of several blocks, each with a known number of them, one after the other."""

    parts: tuple[Block, ...]

    @property
    def name(self) -> str:  # type: ignore[override]
        """The names of the first and the last."""
        first, last = self.parts[0].name, self.parts[-1].name
        return first if first == last else f"{first} to {last}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many rows."""
        return sum(part.count() for part in self.parts)

    @property
    def size_bytes(self) -> int | None:  # type: ignore[override]
        """All of theirs."""
        sizes = [part.size_bytes for part in self.parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def reading_bytes(self) -> int:
        """The largest of theirs: they are read one after the other."""
        return max(part.reading_bytes for part in self.parts)

    @property
    def is_remote(self) -> bool:
        """Whether the first is."""
        return self.parts[0].is_remote

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield rows of one block after the other."""
        offset = 0
        for part in self.parts:
            rows = part.count()
            first = max(start - offset, 0)
            last = rows if stop is None else min(rows, stop - offset)
            if first < last:
                yield from part.read(first, last)
            offset += rows


class Source(ABC):
    """Where a dataset's rows come from: it lists blocks.

    A source is a frozen dataclass that can be pickled. A plan makes another one, with
    ``dataclasses.replace``, that reads fewer columns or only some rows.

    Attributes:
        can_select: Whether it reads only ``columns`` if it is told them.
        can_filter: Whether it leaves out rows for which ``predicate`` does not hold.
        lists_columns: Whether its schema needs nothing read that its blocks do not.
        kind: The function that made it, such as ``read_parquet``.
        columns: What to read, in this order; None: everything.
        predicate: Which rows to keep; None: all. Its columns need not be among ``columns``.
        shuffle: In which order its blocks are read; None: as they are listed.
    """

    can_select: ClassVar[bool] = False
    can_filter: ClassVar[bool] = False
    lists_columns: ClassVar[bool] = False

    kind: str
    columns: tuple[str, ...] | None
    predicate: pc.Expression | None
    shuffle: FileShuffleConfig | None = None

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """List the blocks in their order: files by name, row groups as they lie in a file.

        Raises:
            DataError: A path does not exist, or a file is not what it should be.
        """

    @abstractmethod
    def schema(self) -> pa.Schema:
        """Return what columns there are, from the first file."""

    @abstractmethod
    def describe(self) -> str:
        """Return one line for a plan that prints itself."""

    def warn_of_skips(self) -> None:  # noqa: B027 - most sources skip nothing
        """Log what was left out since the last call, with ``on_error="skip"``."""

    def input_files(self) -> Sequence[str]:
        """Return the paths of the files that are read; none if there are no files."""
        return ()
