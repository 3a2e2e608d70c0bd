"""From blocks to batches: what is read, in which order, and how far ahead."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from minitrain.data import order
from minitrain.data.feeding.formats import Format, batches_of
from minitrain.data.plans.block import Block
from minitrain.data.plans.readahead import Piece, ReadAhead, check_process, reading
from minitrain.data.plans.runtime import Runtime
from minitrain.data.plans.tables import rebatched
from minitrain.data.values import concat_tables

__all__ = ["Batching", "Part", "batches", "open_batches", "parts_of"]

_ENDING_S = 60.0


@dataclass(frozen=True)
class Batching:
    """How rows become batches.

    Attributes:
        form: What they are held in.
        size: Rows per batch; None: as many as are read at a time.
        drop_last: Whether a last, shorter batch is left out.
        prefetch: So many finished batches wait for who takes them; 0: none is made ahead.
        window: Rows that are shuffled at a time; None: they stay in order.
        seed: Of that shuffle.
        finish: Makes of a batch what the user gets.
        taken: Told of each of these by the thread that takes it.
        one_by_one: Takes a batch apart, if the user gets its rows one after the other.
    """

    form: Format[Any]
    size: int | None
    drop_last: bool = False
    prefetch: int = 1
    window: int | None = None
    seed: int = 0
    finish: Callable[[Any], Any] | None = None
    taken: Callable[[Any], object] | None = None
    one_by_one: Callable[[Any], Iterator[Any]] | None = None

    def handed_out(self, batch: Any, rows: int) -> Iterator[tuple[Any, int]]:
        """Yield what the user gets of a batch of so many rows, each with its number of rows."""
        if self.taken is not None:
            self.taken(batch)
        if self.one_by_one is None:
            yield batch, rows
        else:
            yield from ((row, 1) for row in self.one_by_one(batch))


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that are read one after the other, and handed on in order or shuffled.

    Attributes:
        pieces: Where they are.
        rows: How many.
        indices: The order in which they are handed on, which may be fewer; None: as they come.
    """

    pieces: tuple[Piece, ...]
    rows: int
    indices: Callable[[], np.ndarray] | None = None


def parts_of(
    blocks: Sequence[Block], layout: order.Layout, segments: Iterable[order.Segment]
) -> Iterator[Part]:
    """Yield what has to be read for segments of an epoch's sequence."""
    for segment in segments:
        runs = segment.runs if isinstance(segment, order.Shuffled) else (segment,)
        pieces = tuple(
            Piece(blocks[index], start, stop)
            for run in runs
            for index, start, stop in layout.locate(run)
        )
        rows = sum(run.stop - run.start for run in runs)
        if isinstance(segment, order.Shuffled):
            yield Part(pieces, rows, partial(order.shuffled_indices, segment))
        else:
            yield Part(pieces, rows)


def batches(
    parts: Callable[[], Iterator[Part]], batching: Batching, runtime: Runtime
) -> Generator[tuple[Any, int], None, None]:
    """Yield batches and their numbers of rows.

    Args:
        parts: What to read; called twice, since it is read ahead.
        batching: How rows become batches.
        runtime: What the functions on the way use.
    """
    pieces = (piece for part in parts() for piece in part.pieces)
    with closing(reading(pieces, runtime)) as reader:
        chunks = _chunks(parts(), iter(reader), batching.form, runtime)
        yield from _handed_over(chunks, batching, runtime, reader)


def open_batches(
    blocks: Iterator[Block], epoch: int, batching: Batching, runtime: Runtime
) -> Generator[tuple[Any, int], None, None]:
    """Yield batches of blocks whose rows nobody has counted.

    The order is the same as if they had been.
    """
    with closing(reading(map(Piece, blocks), runtime)) as reader:
        chunks = _open_chunks(iter(reader), epoch, batching, runtime)
        yield from _handed_over(chunks, batching, runtime, reader)


def _chunks(
    parts: Iterator[Part], tables: Iterator[pa.Table], form: Format[Any], runtime: Runtime
) -> Iterator[Any]:
    for part in parts:
        if part.indices is None:
            rows = 0
            while rows < part.rows:
                table = next(tables)
                rows += table.num_rows
                yield _converted(table, form, runtime)
        else:
            held: list[pa.Table] = []
            while sum(table.num_rows for table in held) < part.rows:
                held.append(next(tables))
            chunk = _converted(concat_tables(held), form, runtime)
            held.clear()
            with runtime.meter.time("shuffled"):
                chunk = form.take(chunk, part.indices())
            yield chunk


def _open_chunks(
    tables: Iterator[pa.Table], epoch: int, batching: Batching, runtime: Runtime
) -> Iterator[Any]:
    first = 0
    if batching.window is not None:
        tables = rebatched(tables, batching.window)
    for table in tables:
        chunk = _converted(table, batching.form, runtime)
        if batching.window is not None:
            run = order.Run(first, first + table.num_rows)
            with runtime.meter.time("shuffled"):
                indices = order.shuffled_indices(order.shuffled([run], batching.seed, epoch))
                chunk = batching.form.take(chunk, indices)
        first += table.num_rows
        yield chunk


def _converted(table: pa.Table, form: Format[Any], runtime: Runtime) -> Any:
    runtime.meter.add("rows", 0.0, table.num_rows, table.nbytes)
    with runtime.meter.time("converted"):
        return form.chunk(table)


# ---------------------------------------------------------------------- ahead of who takes them
def _handed_over(
    chunks: Iterator[Any], batching: Batching, runtime: Runtime, reader: ReadAhead
) -> Generator[tuple[Any, int], None, None]:
    form = batching.form

    def made() -> Iterator[tuple[Any, int]]:
        for chunk in batches_of(chunks, form, batching.size, drop_last=batching.drop_last):
            rows = form.rows(chunk)
            batch = form.finish(chunk)
            if batching.finish is not None:
                with runtime.meter.time("collated"):
                    batch = batching.finish(batch)
            yield batch, rows

    if batching.prefetch == 0:
        yield from made()
        return
    with closing(_Ahead(made(), batching.prefetch, runtime, reader)) as ahead:
        yield from ahead


@dataclass
class _End:
    error: BaseException | None = None


class _Ahead:
    """A thread that makes batches while the last one is used.

    Args:
        made: The batches.
        number: So many of them wait.
        runtime: What the functions on the way use.
        reader: Where the rows come from; closed first, since the thread may be waiting for it.
    """

    def __init__(
        self, made: Iterator[Any], number: int, runtime: Runtime, reader: ReadAhead
    ) -> None:
        self._made = made
        self._reader = reader
        self._runtime = runtime
        self._free = threading.Semaphore(number)
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False
        self._ended = False
        self._owner_pid = os.getpid()
        self._thread = threading.Thread(target=self._work, name="dataset-batches", daemon=True)

    def __iter__(self) -> Iterator[Any]:
        atexit.register(self.close)  # later on a thread that is left could not be waited for
        self._thread.start()
        while True:
            started = time.perf_counter()
            item = self._ready.get()
            self._free.release()
            self._runtime.meter.add("waited for batches", time.perf_counter() - started)
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            check_process(self._owner_pid)

    def close(self) -> None:
        """End the thread."""
        if self._ended:
            return  # it may be Python's end, and the modules gone
        if self._owner_pid != os.getpid():
            return  # a fork has none of the threads
        atexit.unregister(self.close)
        self._closed = True
        self._free.release()
        self._reader.close()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_ENDING_S)
        self._ended = not self._thread.is_alive()

    def _work(self) -> None:
        end = _End()
        try:
            with self._runtime.in_this_thread():
                while True:
                    self._free.acquire()
                    if self._closed:
                        break
                    item = next(self._made, None)
                    if item is None:
                        break
                    self._ready.put(item)
                    del item  # the next one is made while nobody but its user has this one
        except BaseException as error:  # noqa: BLE001 - raised where the batch is taken
            end = _End(error)
        self._ready.put(end)
