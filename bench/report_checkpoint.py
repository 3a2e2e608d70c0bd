"""What ``report()`` with a checkpoint of 256 MB costs a training, on a local disk.

Measured in the worker of a run, in turns: ``shutil.copytree`` and ``fsync`` of the same data;
``report()`` in SYNC mode, which returns when the checkpoint is committed; the same for a directory
that is given away; and ``report()`` in ASYNC mode, until it returns, and until the checkpoint is
committed::

    python bench/report_checkpoint.py --runs 9 --folder /where/runs/go
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from _figures import Row, note, print_table, spread, verdict
from _machine import print_machine

MEGABYTES = 256
TARGET = 1.0
ASYNC_TARGET_S = 0.005


def train(config: dict) -> dict[str, list[float]]:  # noqa: PLR0915 - one side after the other
    """Take turns, and return the seconds of each side."""
    import os
    import shutil
    import time

    from checkpoints import make_source, peer

    import minitrain
    from minitrain import Checkpoint, CheckpointUploadMode

    folder = Path(config["folder"])
    source = make_source(folder / "source", config["num_files"], config["megabytes"])
    took_s: dict[str, list[float]] = {}

    def timed(side: str, began_s: float) -> None:
        took_s.setdefault(side, []).append(time.perf_counter() - began_s)

    def report(given: Path, **how: object) -> None:
        minitrain.report({"x": 1}, Checkpoint.from_directory(given), **how)

    def copy() -> Path:
        given = Path(shutil.copytree(source, folder / "given"))
        os.sync()
        return given

    def turn() -> None:
        os.sync()
        (folder / "peer").mkdir()
        began_s = time.perf_counter()
        peer(source, folder / "peer")
        timed("copytree, fsync", began_s)
        shutil.rmtree(folder / "peer")
        os.sync()
        began_s = time.perf_counter()
        report(source)
        timed("SYNC", began_s)
        given = copy()
        began_s = time.perf_counter()
        report(given, delete_local_checkpoint_after_upload=True)
        timed("SYNC, given away", began_s)
        given = copy()
        began_s = time.perf_counter()
        report(given, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        timed("ASYNC, until it returns", began_s)
        minitrain.get_all_reported_checkpoints()
        timed("ASYNC, until it is committed", began_s)

    for _ in range(config["runs"] + 1):
        turn()
    return {side: seconds[1:] for side, seconds in took_s.items()}  # the first fills the cache


def measure(folder: Path, num_files: int, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Run the training."""
    from minitrain import CheckpointConfig, RunConfig
    from minitrain.trainer import DataParallelTrainer

    config = {
        "folder": str(folder),
        "num_files": num_files,
        "megabytes": arguments.megabytes,
        "runs": arguments.runs,
    }
    run_config = RunConfig(
        storage_path=folder, checkpoint_config=CheckpointConfig(num_to_keep=1), verbose=0
    )
    trainer = DataParallelTrainer(train, train_loop_config=config, run_config=run_config)
    took_s: dict[str, list[float]] = trainer.fit().return_value
    return took_s


def rows(took_s: dict[str, list[float]], what: str) -> list[Row]:
    """Hold ours against the peer, pair by pair."""
    theirs = took_s.pop("copytree, fsync")
    table = []
    for side, mine in took_s.items():
        ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
        returns = side == "ASYNC, until it returns"
        met = median(mine) <= ASYNC_TARGET_S if returns else median(ratios) <= TARGET
        table.append(
            Row(
                f"{side}, {what}",
                spread(mine, "s"),
                f"copytree, fsync {spread(theirs, 's')}",
                spread(ratios, "of it", 3),
                f"<= {ASYNC_TARGET_S * 1000:.0f} ms" if returns else f"<= {TARGET:.1f} of it",
                verdict(met=met),
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
    print_machine(f"report() with a checkpoint of {arguments.megabytes} MB on a local disk")
    table = []
    for num_files in (1, 16):
        what = f"{num_files} file{'s' if num_files > 1 else ''}"
        note(f"{arguments.runs} turns of {what}")
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            table += rows(measure(Path(folder), num_files, arguments), what)
    print_table(table)


if __name__ == "__main__":
    main()
