"""Medians with their spread, the table every benchmark prints, and how commands are timed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import TypeVar

__all__ = [
    "Row",
    "note",
    "one_thread_each",
    "print_table",
    "rotated",
    "seconds_of",
    "spread",
    "verdict",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of a table; what does not apply stays empty.

    Attributes:
        what: What was measured.
        ours: Our figure.
        peer: The peer's, with its name.
        ratio: The one divided by the other, in words.
        target: What ours must be.
        met: Whether it was.
    """

    what: str
    ours: str
    peer: str = ""
    ratio: str = ""
    target: str = ""
    met: str = ""


def print_table(rows: Iterable[Row]) -> None:
    """Print rows as a Markdown table."""
    names = [field.name for field in fields(Row)]
    cells = [names, *([getattr(row, name) for name in names] for row in rows)]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(names))]
    cells.insert(1, ["-" * width for width in widths])
    print()
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print(f"| {' | '.join(padded)} |")
    print(flush=True)


def spread(values: Sequence[float], unit: str, digits: int = 3) -> str:
    """Return the median with its unit, and in brackets the smallest and the largest."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def verdict(*, met: bool) -> str:
    """Return whether a target was met, in a word."""
    return "yes" if met else "NO"


def note(text: str) -> None:
    """Say how far a benchmark is, beside its table."""
    print(text, file=sys.stderr, flush=True)


def rotated(sides: Sequence[T], turn: int) -> list[T]:
    """Return the sides of a comparison in another order each turn, so that none is always first."""
    first = turn % len(sides)
    return [*sides[first:], *sides[:first]]


def one_thread_each() -> None:
    """Give the workers of every side the same number of threads, one unless the user set it.

    Left alone, torchrun sets 1, minitrain the worker's share of the cores, and
    ``torch.multiprocessing`` nothing, so that every worker computes with all cores.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def seconds_of(command: Sequence[str]) -> float:
    """Run a command to its end and return how long that took.

    Raises:
        RuntimeError: It failed; the message has what it printed.
    """
    began_s = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took_s = time.perf_counter() - began_s
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return took_s
