"""Which rows a rank gets, in which order, and what is left of them after an interruption.

Pure functions of (rows per block, seed, epoch, rank, world size); no file, no clock, no message.

**Order.** The blocks of an epoch in their order, each with its rows, are the epoch's *sequence*;
the rows of it are numbered, and all that follows speaks of these numbers. A *segment* is either a
:class:`Run` of them, or a piece of a :class:`Shuffled` window: of a permutation of some runs that
is known by a key. Every permutation is that of a generator seeded with a hash of what it is for.

**Division.** Of ``N`` remaining rows rank ``r`` of ``W`` owns those from ``r * n`` up to
``(r + 1) * n``. With equal shares ``n = N // W``, and the last ``N % W`` rows are the *tail*,
which nobody gets; or, padded, ``n = ceil(N / W)``, and what the last ranks lack is repeated from
the start of the sequence. With unequal shares the first ``N % W`` ranks get one row more. Each
rank shuffles inside windows of consecutive rows of its own; a window is keyed by the seed, the
epoch and its first row.

**Resumption.** What a rank has not delivered is again a few segments: the rest of the window it was
in, and runs. The remainders of all ranks, in the order of ranks, and then the tail, are divided
again by the same rule among the ranks there are now. Hence:

* Whatever each rank had delivered, and however often and among however many ranks the rest is
  divided, every row is delivered once in the epoch, but for a tail of fewer than ``W`` rows at its
  end. Padding is not counted: it repeats rows.
* If ``W`` is the same and all ranks had delivered equally many rows, the ranks go on with the rows
  that would have come, in that order: each rank's part of ``N - W * d`` rows is its own
  remainder, the tail is the same, and a window that had not begun begins at the same row. Only
  padding of which some was delivered starts at row 0 again; there is as much of it as was missing.

A position speaks of one epoch. If some ranks are in the next one already, what they delivered of
that comes again: no rank is ahead after a restart.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitrain.exceptions import DataError

__all__ = [
    "Layout",
    "Position",
    "Run",
    "Segment",
    "Segments",
    "Share",
    "Shuffled",
    "after",
    "cut",
    "fingerprint",
    "key_of",
    "locate",
    "merged",
    "permutation",
    "rows_in",
    "share",
    "shuffled",
    "shuffled_indices",
    "whole",
    "window",
]


def key_of(*parts: int | str) -> int:
    """Return 128 bits that stand for these parts: the same ones in any process, at any time."""
    plain = [part if isinstance(part, str) else operator.index(part) for part in parts]
    digest = hashlib.blake2b(json.dumps(plain).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big")


def permutation(n: int, *parts: int | str) -> NDArray[np.int64]:
    """Return the numbers below ``n`` in the order that these parts stand for."""
    return _permutation(n, key_of(*parts))


def _permutation(n: int, key: int) -> NDArray[np.int64]:
    # Named, not default_rng: which generator that is may change from one numpy to the next.
    return np.random.Generator(np.random.PCG64(key)).permutation(n)


def fingerprint(rows: Sequence[int] | NDArray[np.int64], *parts: int | str) -> str:
    """Return 16 hexadecimal digits that stand for an order of rows.

    Args:
        rows: Of each block, in the order of files.
        parts: What else the order follows from: a seed, a kind of shuffle.
    """
    blocks = hashlib.blake2b(np.asarray(rows, dtype="<i8").tobytes(), digest_size=16)
    # numpy does not promise that a key means the same permutation in its next version. Where it
    # does not, a position must be refused, not read as that of other rows.
    sample = ",".join(map(str, permutation(64, "fingerprint").tolist()))
    return f"{key_of(blocks.hexdigest(), sample, *parts):032x}"[:16]


@dataclass(frozen=True, slots=True)
class Run:
    """The rows of an epoch's sequence from ``start`` up to ``stop``; at least one."""

    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Run:
        """Return those of its rows from ``start`` up to ``stop``, counted from its first."""
        return Run(self.start + start, self.start + stop)


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Some rows of a shuffled window; at least one.

    Attributes:
        runs: The rows of the whole window, in the order of the sequence.
        key: Their permutation's.
        first: Where in the permutation the rows meant here begin.
        last: Where they end; that one is not among them.
    """

    runs: tuple[Run, ...]
    key: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        """How many are meant here, not how many the window has."""
        return self.last - self.first

    def part(self, start: int, stop: int) -> Shuffled:
        """Return those of its rows from ``start`` up to ``stop``, counted from its first."""
        return Shuffled(self.runs, self.key, self.first + start, self.first + stop)


Segment: TypeAlias = Run | Shuffled
Segments: TypeAlias = tuple[Segment, ...]


def shuffled_indices(segment: Shuffled) -> NDArray[np.int64]:
    """Return which rows of the window these are, in the order of their delivery.

    They are counted in the window's runs, one after the other; row 0 is the first of the first
    run. Every call computes the window's permutation.
    """
    return _permutation(rows_in(segment.runs), segment.key)[segment.first : segment.last]


def whole(total: int) -> Segments:
    """Return all rows of an epoch of ``total`` rows: what remains of one that has not begun."""
    return (Run(0, total),) if total else ()


def rows_in(segments: Iterable[Segment]) -> int:
    """Return how many rows the segments have together."""
    return sum(segment.rows for segment in segments)


def cut(segments: Iterable[Segment], start: int, stop: int) -> Segments:
    """Return the rows from ``start`` up to ``stop`` of the segments, one after the other.

    Args:
        segments: What to take them from.
        start: Counted in these segments; 0 is the first row of the first one.
        stop: May be larger than the number of rows.
    """
    parts: list[Segment] = []
    offset = 0
    for segment in segments:
        first, last = max(start - offset, 0), min(stop - offset, segment.rows)
        if first < last:
            parts.append(segment.part(first, last))
        offset += segment.rows
        if offset >= stop:
            break
    return _joined(parts)


def _joined(segments: Iterable[Segment]) -> Segments:
    """Make one of neighbours that continue each other, so that a position stays small."""
    joined: list[Segment] = []
    for segment in segments:
        both = _both(joined[-1], segment) if joined else None
        if both is None:
            joined.append(segment)
        else:
            joined[-1] = both
    return tuple(joined)


def _both(one: Segment, other: Segment) -> Segment | None:
    match one, other:
        case Run(start, stop), Run() if stop == other.start:
            return Run(start, other.stop)
        case Shuffled(runs, key), Shuffled(other_runs, other_key) if one.last == other.first:
            if (runs, key) == (other_runs, other_key):
                return Shuffled(runs, key, one.first, other.last)
    return None


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank gets of the remaining rows.

    Attributes:
        own: Its rows, which no other rank gets.
        pad: What it delivers after them to have as many as the others: rows that are also
            somebody's own.
        tail: What nobody gets; the same in each rank.
    """

    own: Segments
    pad: Segments
    tail: Segments


def share(
    remaining: Segments,
    total: int,
    rank: int,
    world: int,
    *,
    equal: bool,
    remainder: Literal["drop", "pad"],
) -> Share:
    """Divide the remaining rows of an epoch; return one rank's share.

    Args:
        remaining: What nobody has delivered yet, in its order.
        total: The rows of the whole epoch; padding is taken from its start, and from there again
            if it is shorter.
        rank: Whose share.
        world: Among how many ranks.
        equal: All shares have equally many rows. Otherwise they differ by one row at most, the
            first ranks get more, and there is neither padding nor tail.
        remainder: What makes them equal: dropping the last rows, or padding.
    """
    rows = rows_in(remaining)
    each, extra = divmod(rows, world)
    if not equal:
        start = rank * each + min(rank, extra)
        return Share(cut(remaining, start, start + each + (rank < extra)), (), ())
    if remainder == "drop":
        own = cut(remaining, rank * each, (rank + 1) * each)
        return Share(own, (), cut(remaining, world * each, rows))
    each += extra > 0
    start, stop = rank * each, (rank + 1) * each
    pad = _repeated(max(start, rows) - rows, max(stop, rows) - rows, total)
    return Share(cut(remaining, start, stop), pad, ())


def _repeated(start: int, stop: int, total: int) -> Segments:
    """Return rows from ``start`` up to ``stop`` of the sequence repeated for ever."""
    runs: list[Segment] = []
    while start < stop:
        first = start % total
        last = min(first + stop - start, total)
        runs.append(Run(first, last))
        start += last - first
    return tuple(runs)


def window(segments: Segments, size: int | None, seed: int, epoch: int) -> Iterator[Segment]:
    """Yield the segments as they are delivered: shuffled inside windows of ``size`` rows.

    Consecutive runs fill windows; the last one before a piece of an older window, or before the
    end, may be shorter. Such a piece, left by an interruption, stays a window of its own.

    Args:
        segments: A rank's own rows.
        size: Rows of a window; None: nothing is shuffled.
        seed: Of the shuffle.
        epoch: Another epoch shuffles otherwise.
    """
    if size is None:
        yield from segments
        return
    assert size > 0
    runs: list[Run] = []
    room = size
    for segment in segments:
        if isinstance(segment, Shuffled):
            if runs:
                yield shuffled(runs, seed, epoch)
            runs, room = [], size
            yield segment
            continue
        start = segment.start
        while start < segment.stop:
            stop = min(start + room, segment.stop)
            runs.append(Run(start, stop))
            start, room = stop, room - (stop - start)
            if not room:
                yield shuffled(runs, seed, epoch)
                runs, room = [], size
    if runs:
        yield shuffled(runs, seed, epoch)


def shuffled(runs: Iterable[Run], seed: int, epoch: int) -> Shuffled:
    """Return a whole window of runs."""
    window_runs = tuple(run for run in _joined(runs) if isinstance(run, Run))
    # A row is the first of one window of its epoch at most, in whichever rank: the rest of a window
    # that was begun is never made runs again.
    key = key_of("window", seed, epoch, window_runs[0].start)
    return Shuffled(window_runs, key, 0, rows_in(window_runs))


def after(segments: Segments, size: int | None, seed: int, epoch: int, delivered: int) -> Segments:
    """Return what is left of ``window(segments, size, seed, epoch)`` after its first rows.

    The rest of a window that was begun is a piece of it; windows after it are runs again, which
    can be divided anew. No window is computed.

    Args:
        segments: A rank's own rows.
        size: As for :func:`window`.
        seed: As for :func:`window`.
        epoch: As for :func:`window`.
        delivered: How many rows were; if more than there are, nothing is left.
    """
    total = rows_in(segments)
    if size is None:
        return cut(segments, delivered, total)
    offset = 0
    for are_runs, group in itertools.groupby(segments, lambda one: isinstance(one, Run)):
        rows = rows_in(group)
        begun = (delivered - offset) % size
        if are_runs and delivered < offset + rows and begun:
            start = delivered - begun
            stop = min(start + size, offset + rows)
            runs = [run for run in cut(segments, start, stop) if isinstance(run, Run)]
            rest = shuffled(runs, seed, epoch).part(begun, stop - start)
            return (rest, *cut(segments, stop, total))
        offset += rows
        if delivered < offset:
            break
    return cut(segments, delivered, total)


@dataclass(frozen=True, slots=True)
class Position:
    """Where one rank, or all of them, stand in a dataset.

    Attributes:
        epoch: Which one, from 0.
        remaining: The own rows of it that were not delivered, in their order; None: it has not
            begun.
        tail: What nobody gets as the rows were divided; another division may.
        layout: The :func:`fingerprint` of the order that the numbers of rows refer to.
    """

    epoch: int
    remaining: Segments | None
    tail: Segments
    layout: str

    def to_json(self) -> dict[str, Any]:
        """Return it as what the json module can write, and :meth:`from_json` reads."""
        remaining = self.remaining
        return {
            "epoch": self.epoch,
            "remaining": None if remaining is None else [_to_json(one) for one in remaining],
            "tail": [_to_json(one) for one in self.tail],
            "layout": self.layout,
        }

    @classmethod
    def from_json(cls, value: object) -> Position:
        """Read what :meth:`to_json` returned.

        Raises:
            DataError: It is something else; the message says what is wrong.
        """
        if not isinstance(value, dict):
            raise _wrong("it", value, "an object with 'epoch', 'remaining', 'tail' and 'layout'")
        missing = [name for name in ("epoch", "remaining", "tail", "layout") if name not in value]
        if missing:
            raise _damaged(f"it has no {missing[0]!r}")
        if not isinstance(value["layout"], str):
            raise _wrong("'layout'", value["layout"], "a text")
        remaining = value["remaining"]
        return cls(
            _number("'epoch'", value["epoch"]),
            None if remaining is None else _segments("'remaining'", remaining),
            _segments("'tail'", value["tail"]),
            value["layout"],
        )


def merged(positions: Sequence[Position]) -> Position:
    """Return where all ranks together stand: what is to be divided among the next ones.

    The epoch is the lowest that a rank is in; ranks that are beyond have delivered their rows of
    it. If all have, and one is beyond, it is the next epoch, which then has not begun. Nor has an
    epoch that some rank has not begun: which rows would have been its own is not known here.

    Args:
        positions: Of each rank, in the order of ranks, at one checkpoint.

    Raises:
        DataError: They are not positions in one division of one dataset.
    """
    assert positions
    layout = positions[0].layout
    if any(position.layout != layout for position in positions):
        found = ", ".join(sorted({position.layout for position in positions}))
        raise DataError(
            f"the ranks stand in different datasets (their layouts are {found}): files, number of "
            "rows, seed and shuffle must be the same in each rank; a dataset that is not must not "
            "be split (DataConfig(datasets_to_split=[...]))"
        )
    epoch = min(position.epoch for position in positions)
    present = [position for position in positions if position.epoch == epoch]
    remainders = [position.remaining for position in present]
    left = _joined(segment for segments in remainders for segment in segments or ())
    if None in remainders:
        return Position(epoch, None, (), layout)
    if not left and len(present) < len(positions):
        return Position(epoch + 1, None, (), layout)
    tail = present[0].tail
    if any(position.tail != tail for position in present):
        raise DataError(
            f"the ranks' positions in epoch {epoch} do not belong together: the rows that nobody "
            "gets are not the same in each rank, so the rows were not divided once among them all"
        )
    return Position(epoch, _joined((*left, *tail)), (), layout)


def _to_json(segment: Segment) -> list[Any]:
    match segment:
        case Run(start, stop):
            return [start, stop]
        case Shuffled(runs, key, first, last):
            return [[[run.start, run.stop] for run in runs], f"{key:x}", first, last]


def _segments(name: str, value: object) -> Segments:
    if not isinstance(value, list):
        raise _wrong(name, value, "a list")
    return tuple(_segment(f"{name}[{at}]", one) for at, one in enumerate(value))


def _segment(name: str, value: object) -> Segment:
    match value:
        case [list(runs), str(key), first, last]:
            return _window(name, runs, key, (first, last))
        case [_, _]:
            return _run(name, value)
        case _:
            expected = "[start, stop] or [[[start, stop], ...], key, first, last]"
            raise _wrong(name, value, expected)


def _run(name: str, value: object) -> Run:
    match value:
        case [start, stop]:
            first = _number(f"the start of {name}", start)
            return Run(first, _number(f"the stop of {name}", stop, least=first + 1))
        case _:
            raise _wrong(name, value, "[start, stop]")


def _window(name: str, values: list[Any], key: str, bounds: tuple[object, object]) -> Shuffled:
    runs = tuple(_run(f"{name}[0][{at}]", run) for at, run in enumerate(values))
    if not re.fullmatch("[0-9a-f]{1,32}", key):
        raise _wrong(f"the key of {name}", key, "up to 32 hexadecimal digits")
    first = _number(f"the first row of {name}", bounds[0])
    last = _number(f"the last row of {name}", bounds[1], least=first + 1)
    if last > rows_in(runs):
        raise _wrong(f"the last row of {name}", last, f"one of the {rows_in(runs)} in its runs")
    return Shuffled(runs, int(key, 16), first, last)


def _number(name: str, value: object, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(name, value, f"an integer of {least} or more")
    return value


def _wrong(name: str, value: object, expected: str) -> DataError:
    return _damaged(f"{name} is {reprlib.repr(value)}, not {expected}")


def _damaged(what: str) -> DataError:
    return DataError(f"this is not a saved position of a dataset: {what}")


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The blocks of an epoch, in its order: what the numbers of rows refer to.

    Attributes:
        rows: Of each block.
        offsets: The number of each block's first row, and in the end that of all rows.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        rows = np.array(self.rows, dtype=np.int64)
        offsets = np.concatenate(([0], np.cumsum(rows)), dtype=np.int64)
        for name, array in (("rows", rows), ("offsets", offsets)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def total(self) -> int:
        """The rows of all blocks."""
        return int(self.offsets[-1])

    def locate(self, run: Run) -> list[tuple[int, int, int]]:
        """Return where a run's rows lie; see :func:`locate`."""
        return locate(self.offsets, run)


def locate(offsets: NDArray[np.int64], run: Run) -> list[tuple[int, int, int]]:
    """Return where a run's rows lie: (block, start, stop), in order; rows counted in the block.

    Args:
        offsets: The number of each block's first row, and in the end that of all rows.
        run: Which rows.

    Raises:
        DataError: There are not so many rows.
    """
    if run.stop > offsets[-1]:
        raise DataError(
            f"rows {run.start} to {run.stop} were asked for, of a dataset of {offsets[-1]} rows: "
            "the position belongs to other data"
        )
    first = int(np.searchsorted(offsets, run.start, side="right")) - 1
    last = int(np.searchsorted(offsets, run.stop, side="left"))
    ends = offsets[first : last + 1]
    starts = np.maximum(run.start - ends[:-1], 0)
    stops = np.minimum(run.stop, ends[1:]) - ends[:-1]
    # A block without rows may lie between two others.
    found = np.flatnonzero(starts < stops)
    blocks = (found + first).tolist()
    return list(zip(blocks, starts[found].tolist(), stops[found].tolist(), strict=True))
