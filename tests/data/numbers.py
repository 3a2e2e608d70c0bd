"""A source of numbered rows in blocks of any sizes, which remembers what was read of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from minitrain.data.dataset import Dataset, from_source
from minitrain.data.plans.block import Block, Source

ROW_BYTES = 8


@dataclass(frozen=True)
class NumberBlock(Block):
    """Numbers from ``first`` on, in tables of so many rows."""

    first: int
    size: int
    table_rows: int
    is_counted: bool
    before: Callable[[int], None] | None = None

    @property
    def name(self) -> str:
        return f"numbers from {self.first}"

    @property
    def rows(self) -> int | None:
        return self.size if self.is_counted else None

    @property
    def size_bytes(self) -> int:
        return self.size * ROW_BYTES

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        last = self.size if stop is None else min(stop, self.size)
        for at in range(start, last, self.table_rows):
            if self.before is not None:
                self.before(self.first + at)
            ids = np.arange(at, min(at + self.table_rows, last), dtype=np.int64) + self.first
            yield pa.table({"id": ids})


@dataclass(frozen=True)
class Numbers(Source):
    """Blocks of numbers.

    Attributes:
        sizes: Rows of each block.
        table_rows: Rows of each table.
        is_counted: Whether blocks know how many they have.
        before: Called with the first number of each table before it is read.
    """

    can_select: ClassVar[bool] = False
    can_filter: ClassVar[bool] = False

    sizes: tuple[int, ...]
    table_rows: int = 3
    is_counted: bool = True
    before: Callable[[int], None] | None = None
    kind: str = "numbers"
    columns: tuple[str, ...] | None = None
    predicate: Any = None

    def blocks(self) -> Iterator[Block]:
        first = 0
        for size in self.sizes:
            yield NumberBlock(first, size, self.table_rows, self.is_counted, self.before)
            first += size

    def schema(self) -> pa.Schema:
        return pa.schema({"id": pa.int64()})

    def describe(self) -> str:
        return f"numbers ({len(self.sizes)} blocks)"


def numbers(sizes: Sequence[int], **options: Any) -> Dataset:
    """Return a dataset of the numbers below the sum of sizes."""
    return from_source(Numbers(tuple(sizes), **options))


@dataclass
class Reads:
    """What was read, and by which threads."""

    firsts: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, first: int) -> None:
        with self.lock:
            self.firsts.append(first)
