"""What ``chaos.py`` does to a run: the faults, the seeded choice of them, and how each is done."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DISK_FULL",
    "DRIVER_AGAIN",
    "FAULTS",
    "Fault",
    "damage",
    "full_disk",
    "plan",
    "unfinished_checkpoint",
]

DISK_FULL = "disk full"
DRIVER_AGAIN = "SIGKILL driver again"
FAULTS = (
    "SIGKILL worker",
    "SIGSTOP worker",
    "SIGSEGV worker",
    "SIGKILL agent",
    "SIGSTOP agent",
    "SIGKILL driver",
    "SIGTERM driver",
    DRIVER_AGAIN,
    DISK_FULL,
    "failing upload",
    "truncate committed",
    "flip committed",
    "truncate unfinished",
    "flip unfinished",
)
FIND_UNFINISHED_S = 2.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: One of ``FAULTS``.
        delay_s: How long the run is left alone before it.
        rank: Which worker it is about.
        where: Which file, and where in it, from 0 to 1.
    """

    kind: str
    delay_s: float
    rank: int
    where: float

    @property
    def signum(self) -> signal.Signals:
        """The signal, for a fault that is one."""
        return signal.Signals[self.kind.split()[0]]


def plan(seed: int, kinds: Sequence[str], num_workers: int) -> Iterator[Fault]:
    """Yield faults without end, the same for the same seed; every kind once before any twice."""
    chance = random.Random(seed)  # noqa: S311 - it must be repeatable, not secret
    while True:
        for kind in chance.sample(kinds, len(kinds)):
            delay_s = chance.uniform(0.05, 0.6)
            yield Fault(kind, delay_s, chance.randrange(num_workers), chance.random())


def unfinished_checkpoint(run: Path) -> Path | None:
    """Wait for a checkpoint that has files and is not committed; None if none shows up."""
    deadline_s = time.monotonic() + FIND_UNFINISHED_S
    while time.monotonic() < deadline_s:
        for path in run.glob("checkpoint_*"):
            with suppress(OSError):
                if (path / ".unfinished").exists() and any(path.glob("rank_*")):
                    return path
    return None


def damage(checkpoint: Path, fault: Fault) -> str:
    """Cut a file of a checkpoint off, or flip one of its bits, and say which.

    Files are chosen among those that are under their names: their checksums are known already.
    """
    with suppress(FileNotFoundError):  # the checkpoint was deleted meanwhile
        files = sorted(path for path in checkpoint.glob("rank_*") if path.stat().st_size)
        file = files[int(fault.where * len(files))] if files else None
        if file is not None:
            size = file.stat().st_size
            position = int((fault.where * 97) % 1 * size)
            if fault.kind.startswith("truncate"):
                os.truncate(file, position)
            else:
                _flip(file, position)
            return f"{file.parent.name}/{file.name} at {position} of {size}"
    return "there was no file"


def _flip(file: Path, position: int) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, position)[0]
        os.pwrite(descriptor, bytes([byte ^ 1 << position % 8]), position)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Leave no room on the filesystem of a directory for as long as this lasts."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        facts = os.statvfs(folder)
        with suppress(OSError):
            os.posix_fallocate(descriptor, 0, facts.f_bavail * facts.f_frsize)
        os.lseek(descriptor, 0, os.SEEK_END)
        with suppress(OSError):
            while True:
                os.write(descriptor, bytes(facts.f_frsize))
        yield
    finally:
        os.close(descriptor)
        filler.unlink()
