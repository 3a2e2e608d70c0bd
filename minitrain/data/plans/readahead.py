"""Threads that read blocks ahead of who takes their rows, within a budget of bytes."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from minitrain.data.context import DataContext
from minitrain.data.plans.block import Block
from minitrain.data.plans.runtime import Runtime
from minitrain.exceptions import DataError

__all__ = ["Piece", "ReadAhead", "check_process", "reading"]

_LOCAL_THREADS = 2
_REMOTE_THREADS = 16
"""An object storage takes tens of milliseconds to answer, whatever it is asked for."""
_UNDERWAY = 4
"""So many tables are on their way from the threads that read to the batches."""
_ALLOCATED = 1.5
"""What Arrow's allocator takes from the system for a byte of rows, with gaps between tables
decoded at a time. Measured with pyarrow 26: 1.4 to 1.8 with mimalloc, its own choice."""
_ENDING_S = 60.0
"""A thread that is told to end may have to wait so long for a storage's answer."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a block that are read next; ``stop`` is None where nobody has counted them."""

    block: Block
    start: int = 0
    stop: int | None = None


@dataclass(eq=False)
class _Slot:
    """A piece that a thread reads, and its tables that nobody has taken yet."""

    piece: Piece
    tables: deque[pa.Table] = field(default_factory=deque)
    ended: bool = False
    error: BaseException | None = None


class ReadAhead:
    """Yields the tables of pieces in their order, while threads read the next ones.

    What was read and not taken, together with what is being read, stays below the budget; only
    the piece that is taken next is always read, a table at a time, however small the budget.

    Args:
        pieces: What to read; taken from by the threads, as late as possible.
        runtime: What the functions on the way use.
        threads: So many pieces are read at a time.
        budget_bytes: The budget.
        table_bytes: About how large a table is that is still being read.
    """

    def __init__(
        self,
        pieces: Iterable[Piece],
        runtime: Runtime,
        *,
        threads: int,
        budget_bytes: int,
        table_bytes: int,
    ) -> None:
        self._pieces = iter(pieces)
        self._runtime = runtime
        self._budget_bytes = budget_bytes
        self._table_bytes = table_bytes
        self._held_bytes = 0
        self._slots: deque[_Slot] = deque()  # those that are read or not yet taken, in order
        self._exhausted = False
        self._closed = False
        self._ended = False
        self._owner_pid = os.getpid()
        self._changed = threading.Condition()
        self._listing = threading.Lock()  # held while the next piece is found: files are listed
        self._threads = [
            threading.Thread(target=self._work, name=f"dataset-reader-{number}", daemon=True)
            for number in range(threads)
        ]

    def __iter__(self) -> Iterator[pa.Table]:
        atexit.register(self.close)  # later on threads that are left could not be waited for
        for thread in self._threads:
            thread.start()
        while (slot := self._first()) is not None:
            while (table := self._take(slot)) is not None:
                yield table
                check_process(self._owner_pid)
            self._leave(slot)

    def close(self) -> None:
        """End the threads; nothing is read any more."""
        if self._ended:
            return  # it may be Python's end, and the modules gone
        if self._owner_pid != os.getpid():
            return  # a fork has none of the threads
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + _ENDING_S
        for thread in self._threads:
            # It may be one of them that collects garbage and finds an iteration among it.
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._ended = not any(thread.is_alive() for thread in self._threads)

    # ------------------------------------------------------------------ who takes
    def _first(self) -> _Slot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._slots or self._exhausted or self._closed)
            return self._slots[0] if self._slots and not self._closed else None

    def _take(self, slot: _Slot) -> pa.Table | None:
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: slot.tables or slot.ended or self._closed)
            self._runtime.meter.add("waited for blocks", time.perf_counter() - started)
            if slot.tables:
                table = slot.tables.popleft()
                self._held_bytes -= table.nbytes
                self._changed.notify_all()
                return table
            if slot.error is not None:
                raise slot.error
            return None

    def _leave(self, slot: _Slot) -> None:
        with self._changed:
            self._slots.remove(slot)
            self._changed.notify_all()

    # ------------------------------------------------------------------ who reads
    def _work(self) -> None:
        with self._runtime.in_this_thread():
            while (slot := self._begin()) is not None:
                try:
                    self._read(slot)
                except BaseException as error:  # noqa: BLE001 - raised where the rows are taken
                    slot.error = error
                with self._changed:
                    slot.ended = True
                    self._changed.notify_all()
                if slot.error is not None:
                    return

    def _begin(self) -> _Slot | None:
        with self._listing:
            if self._closed or self._exhausted:
                return None
            error: BaseException | None = None
            piece = None
            try:
                piece = next(self._pieces, None)
            except BaseException as raised:  # noqa: BLE001 - raised where the rows are taken
                error = raised
            with self._changed:
                self._exhausted = piece is None
                self._changed.notify_all()
                if piece is None and error is None:
                    return None
                slot = _Slot(piece or _NOTHING, ended=error is not None, error=error)
                self._slots.append(slot)
        return None if error is not None else slot

    def _read(self, slot: _Slot) -> None:
        piece = slot.piece
        reading_bytes = piece.block.reading_bytes
        if not self._wait_for_room(slot, reading_bytes):
            return
        tables = piece.block.read(piece.start, piece.stop)
        rows = 0
        try:
            while self._wait_for_room(slot, self._table_bytes):
                table = next(tables, None)
                self._put(slot, table)
                if table is None:
                    _check_rows(piece, rows)
                    return
                rows += table.num_rows
        finally:
            close = getattr(tables, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._held_bytes -= reading_bytes
                self._changed.notify_all()

    def _wait_for_room(self, slot: _Slot, size_bytes: int) -> bool:
        """Wait until so much memory may be used, and count it; False: nothing is read any more."""

        def may_read() -> bool:
            if self._closed or self._held_bytes + size_bytes <= self._budget_bytes:
                return True
            return self._slots[0] is slot and not slot.tables

        with self._changed:
            must_wait = not may_read()
        if must_wait:  # there is time: the allocator keeps much of what was freed
            pa.default_memory_pool().release_unused()
        with self._changed:
            self._changed.wait_for(may_read)
            if self._closed:
                return False
            self._held_bytes += size_bytes
            return True

    def _put(self, slot: _Slot, table: pa.Table | None) -> None:
        """Hand a table over, or nothing: it was counted as one of the usual size."""
        with self._changed:
            self._held_bytes -= self._table_bytes
            if table is not None:
                self._held_bytes += table.nbytes
                slot.tables.append(table)
            self._changed.notify_all()


def reading(pieces: Iterable[Piece], runtime: Runtime) -> ReadAhead:
    """Return what reads pieces as this process's settings say."""
    context = DataContext.get_current()
    pieces = iter(pieces)
    with runtime.in_this_thread():
        first = next(pieces, None)
    is_remote = first is not None and first.block.is_remote
    underway_bytes = _UNDERWAY * context.target_table_bytes
    ahead_bytes = max(0, context.memory_budget_bytes - underway_bytes)
    return ReadAhead(
        () if first is None else itertools.chain([first], pieces),
        runtime,
        threads=context.read_threads or (_REMOTE_THREADS if is_remote else _LOCAL_THREADS),
        budget_bytes=int(ahead_bytes / _ALLOCATED),
        table_bytes=context.target_table_bytes,
    )


class _NoBlock(Block):
    name = "no block"
    rows = 0
    size_bytes = 0

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:  # noqa: ARG002
        return iter(())


_NOTHING = Piece(_NoBlock())


def check_process(owner_pid: int) -> None:
    """Raise an error if this is a fork of the process that began a loop: it has no threads."""
    if owner_pid != os.getpid():
        raise DataError(
            "this loop was begun in another process, before a fork; begin another one in this one"
        )


def _check_rows(piece: Piece, rows: int) -> None:
    if piece.stop is not None and rows != piece.stop - piece.start:
        raise DataError(
            f"{piece.block.name}: rows {piece.start:,} to {piece.stop:,} were counted, but only "
            f"{rows:,} of them came: the file has changed since, or a function of the dataset does "
            "not return the same number of rows each time"
        )
