"""What it costs to put a checkpoint of 256 MB into a run's directory, on a local disk.

Held against ``shutil.copytree`` and ``fsync`` of every file and directory, of the same data, in
turns. Ours computes the files' checksums as well, and a file appears under its name only when it
is whole. ``move=True`` is for files that the caller gives away: on the same filesystem they are
renamed, so that only the checksum remains::

    python bench/checkpoints.py --runs 9 --folder /where/runs/go
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from _figures import Row, note, print_table, rotated, spread, verdict
from _machine import print_machine

from minitrain._storage.disk import LocalDisk
from minitrain._storage.run_storage import RunStorage

MEGABYTES = 256
TARGET = 1.0
NAME = "checkpoint_000000"


def make_source(folder: Path, num_files: int, megabytes: int) -> Path:
    """Write files of random bytes that are together so large."""
    folder.mkdir()
    for number in range(num_files):
        (folder / f"part_{number:02d}").write_bytes(os.urandom((megabytes << 20) // num_files))
    return folder


def ours(source: Path, root: Path) -> None:
    """Put the files as a rank does."""
    run = RunStorage(LocalDisk(str(root)))
    run.begin(NAME)
    run.put(source, NAME)


def ours_moved(source: Path, root: Path) -> None:
    """Give the files away."""
    run = RunStorage(LocalDisk(str(root)))
    run.begin(NAME)
    run.put(source, NAME, move=True)


def peer(source: Path, root: Path) -> None:
    """Copy with the standard library, and make it durable."""
    target = root / NAME
    shutil.copytree(source, target)
    for path in (*target.iterdir(), target, root):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


SIDES: dict[str, Callable[[Path, Path], None]] = {
    "put": ours,
    "put, move=True": ours_moved,
    "copytree, fsync": peer,
}


@contextmanager
def fresh_folder(parent: Path) -> Iterator[Path]:
    """Give an empty folder, on a disk that has nothing left to write from before."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    os.sync()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, source: Path, num_runs: int) -> dict[str, list[float]]:
    """Return the seconds of each side, the sides taking turns."""
    took_s: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(-1, num_runs):  # the first one fills the file cache
        for name in rotated(list(SIDES), turn):
            with fresh_folder(folder) as place:
                given = source
                if SIDES[name] is ours_moved:
                    given = Path(shutil.copytree(source, place / "given"))
                    os.sync()
                (place / "run").mkdir()
                began_s = time.perf_counter()
                SIDES[name](given, place / "run")
                if turn >= 0:
                    took_s[name].append(time.perf_counter() - began_s)
    return took_s


def rows(took_s: dict[str, list[float]], what: str) -> list[Row]:
    """Hold ours against the peer, pair by pair."""
    theirs = took_s["copytree, fsync"]
    table = []
    for name in ("put", "put, move=True"):
        ratios = [mine / other for mine, other in zip(took_s[name], theirs, strict=True)]
        table.append(
            Row(
                f"{name}, {what}",
                spread(took_s[name], "s"),
                f"copytree, fsync {spread(theirs, 's')}",
                spread(ratios, "of it", 2),
                f"<= {TARGET:.1f} of it",
                verdict(met=median(ratios) <= TARGET),
            )
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="turns of every side")
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    arguments = parser.parse_args()
    print_machine(f"a checkpoint of {arguments.megabytes} MB on a local disk")
    table = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for num_files in (1, 16):
            what = f"{num_files} file{'s' if num_files > 1 else ''}"
            note(f"{arguments.runs} turns of {what}")
            source = make_source(Path(folder, what), num_files, arguments.megabytes)
            table += rows(measure(Path(folder), source, arguments.runs), what)
    print_table(table)


if __name__ == "__main__":
    main()
