"""What it costs to put a checkpoint of 1 GB into a run's directory on an object store.

Held against ``pyarrow.fs.copy_files``, which only copies, of the same data to the same server, in
turns. Ours computes the files' checksums as well. The server is SeaweedFS on the loopback
interface, so that the processors and its disk are the limit, and not a network::

    python bench/checkpoints_s3.py --runs 5 --folder /where/the/server/keeps/its/data
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from _figures import Row, note, print_table, rotated, spread, verdict
from _machine import print_machine
from checkpoints import NAME, make_source
from pyarrow.fs import FileSystem, LocalFileSystem, copy_files

from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.run_storage import RunStorage

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers import BUCKET, SeaweedFS, serving

MEGABYTES = 1024
TARGET = 0.9


class LargeSeaweedFS(SeaweedFS):
    """One whose volumes are not full after a few turns: what is deleted keeps its room."""

    def command(self) -> list[str]:
        """Return the command line that serves on ``ports``."""
        names = ("-master.volumeSizeLimitMB=", "-volume.max=")
        kept = [argument for argument in super().command() if not argument.startswith(names)]
        return [*kept, "-master.volumeSizeLimitMB=4000", "-volume.max=10"]


def ours(filesystem: FileSystem, source: Path, root: str) -> None:
    """Put the files as a rank does."""
    RunStorage(ArrowDisk(filesystem, root)).put(source, NAME)


def peer(filesystem: FileSystem, source: Path, root: str) -> None:
    """Copy the files."""
    copy_files(
        str(source),
        f"{root}/{NAME}",
        source_filesystem=LocalFileSystem(),
        destination_filesystem=filesystem,
    )


SIDES: dict[str, Callable[[FileSystem, Path, str], None]] = {"put": ours, "copy_files": peer}


def measure(filesystem: FileSystem, source: Path, num_runs: int) -> dict[str, list[float]]:
    """Return the seconds of each side, the sides taking turns."""
    took_s: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(-1, num_runs):  # the first one opens the connections
        for name in rotated(list(SIDES), turn):
            root = f"{BUCKET}/bench"
            began_s = time.perf_counter()
            SIDES[name](filesystem, source, root)
            if turn >= 0:
                took_s[name].append(time.perf_counter() - began_s)
            filesystem.delete_dir(root)
    return took_s


def row(took_s: dict[str, list[float]], megabytes: int, what: str) -> Row:
    """Hold ours against the peer, pair by pair."""
    mine, theirs = ([megabytes / s for s in took_s[name]] for name in SIDES)
    ratios = [ours / other for ours, other in zip(mine, theirs, strict=True)]
    return Row(
        f"put, {what}",
        spread(mine, "MB/s", 0),
        f"copy_files {spread(theirs, 'MB/s', 0)}",
        spread(ratios, "of it", 2),
        f">= {TARGET:.1f} of it",
        verdict(met=median(ratios) >= TARGET),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="turns of every side")
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--folder", type=Path, help="on the disk to use; default: temporary")
    arguments = parser.parse_args()
    print_machine(f"a checkpoint of {arguments.megabytes} MB to SeaweedFS on this machine")
    table = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        data = Path(folder, "server")
        data.mkdir()
        with serving(LargeSeaweedFS, data) as server:
            for num_files in (4, arguments.megabytes // 16):
                what = f"{num_files} x {arguments.megabytes // num_files} MB"
                note(f"{arguments.runs} turns of {what}")
                source = make_source(Path(folder, what), num_files, arguments.megabytes)
                took_s = measure(server.filesystem(), source, arguments.runs)
                table.append(row(took_s, arguments.megabytes, what))
    print_table(table)


if __name__ == "__main__":
    main()
