"""How fast rows come to workers: from Parquet, through functions, as images, after a restart.

2,000,000 rows of 16 float32 and an int64 in 8 Parquet files that the page cache holds, read by the
2 workers of a ``TorchTrainer``. A rate is that of all workers together over an epoch, the slowest
worker's time; nothing is done with the batches. The first epoch of each run is not counted, on any
side. The sides take turns::

    python bench/ingest.py --runs 5
    python bench/ingest.py --parts tables memory --ray PEERS/bin/python
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from _figures import Row, note, one_thread_each, print_table, rotated, spread, verdict
from _ingest_data import ROW_BYTES, decoded, many_times, write_images, write_tables
from _ingest_loops import (
    BATCH,
    WINDOW,
    drained,
    killed_and_resumed,
    scale,
    streaming,
    with_loader,
    with_shard,
)
from _ingest_peers import IMAGES_PER_BATCH
from _machine import print_machine
from _peers import here

NUM_WORKERS = 2
FILES, ROWS_PER_FILE = 8, 250_000
ARROW_TARGET, RAY_TARGET, LOADER_TARGET, IMAGES_TARGET = 0.5, 15, 3, 1.0
RAY_M = (0.17, 0.25)
"""Millions of rows per second: measured with Ray 2.60 on a machine of this kind."""
NUM_IMAGES = 5_000
IMAGE_EPOCHS = 5
"""For each run: an epoch's time varies by a tenth."""
RESTART_FILES, RESTART_ROWS = 1_000, 2_000
RESTART_TARGET_S = 0.3
BUDGET_MIB = 256
BUDGETS = 10
MEMORY_TARGET = 1.2
PAUSED_BATCH = 64 * 1024

Sides = dict[str, Callable[[], list[float]]]


def fit(
    train: Callable[[dict[str, Any]], Any], config: dict[str, Any], folder: Path, **options: Any
) -> Any:
    """Return what a training's rank 0 returns."""
    from minitrain import FailureConfig, RunConfig, ScalingConfig
    from minitrain.torch import TorchTrainer

    with tempfile.TemporaryDirectory(dir=folder) as storage:
        trainer = TorchTrainer(
            train,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=options.pop("num_workers", NUM_WORKERS)),
            run_config=RunConfig(
                storage_path=storage, failure_config=FailureConfig(max_failures=1), verbose=0
            ),
            **options,
        )
        return trainer.fit().return_value


def peer(*command: str, python: str = sys.executable) -> Any:
    """Return what a peer prints last."""
    done = subprocess.run(
        [python, here("_ingest_peers.py"), *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def asked_again(*command: str) -> Iterator[Callable[[], float]]:
    """Start a peer that measures whenever it is asked."""
    program = [sys.executable, here("_ingest_peers.py"), *command]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answers = process.stdin, process.stdout

        def ask() -> float:
            asking.write("\n")
            asking.flush()
            return float(answers.readline())

        yield ask
        asking.close()


def take_turns(runs: int, sides: Sides, what: str) -> dict[str, list[float]]:
    """Return the median of each side's figures in each run."""
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(runs):
        for side in rotated(list(sides), turn):
            samples[side].append(median(sides[side]()))
            note(f"run {turn + 1}, {what}, {side}: {samples[side][-1]:,.0f}/s")
    return samples


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Return how many times faster ours was in each run."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def millions(rates: Iterable[float]) -> str:
    """Return rates in words."""
    return spread([rate / 1e6 for rate in rates], "M rows/s", 2)


# ---------------------------------------------------------------------- tables
def tables(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure plain batches of tensors."""
    from minitrain import data

    path = written_rows(arguments, folder)
    epochs = arguments.epochs
    sides: Sides = {
        "ours": lambda: fit(
            with_shard, {"epochs": epochs}, folder, datasets={"train": data.read_parquet(str(path))}
        ),
        "pyarrow": lambda: peer("pyarrow", str(path), str(epochs), str(128 * 1024)),
        f"pyarrow, {BATCH} rows": lambda: peer("pyarrow", str(path), str(epochs), str(BATCH)),
    }
    if arguments.ray:
        sides["Ray Data"] = lambda: peer("ray", str(path), "1", python=arguments.ray)
    samples = take_turns(arguments.runs, sides, "tables")
    ours = samples["ours"]
    by_side = {side: ratios(ours, rates) for side, rates in samples.items() if side != "ours"}
    what = f"iter_torch_batches({BATCH})"
    found = [
        Row(
            what,
            millions(ours),
            f"to_batches() {millions(samples['pyarrow'])}",
            spread(by_side["pyarrow"], "of it", 2),
            f">= {ARROW_TARGET} of it",
            verdict(met=median(by_side["pyarrow"]) >= ARROW_TARGET),
        ),
        Row(
            what,
            millions(ours),
            f"to_batches({BATCH}) {millions(samples[f'pyarrow, {BATCH} rows'])}",
            spread(by_side[f"pyarrow, {BATCH} rows"], "of it", 2),
        ),
    ]
    if arguments.ray:
        faster = by_side["Ray Data"]
        text = f"Ray Data {millions(samples['Ray Data'])}"
        words = spread(faster, "x faster", 1)
    else:
        faster = [median(ours) / 1e6 / RAY_M[1]]
        text = f"Ray Data {RAY_M[0]} to {RAY_M[1]} M rows/s (measured before)"
        words = f"{faster[0]:.1f} to {median(ours) / 1e6 / RAY_M[0]:.1f} x faster"
    met = verdict(met=median(faster) >= RAY_TARGET)
    return [*found, Row(what, millions(ours), text, words, f">= {RAY_TARGET} x faster", met)]


def shuffled(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure a function on batches and a local shuffle."""
    from minitrain import data

    path = written_rows(arguments, folder)
    dataset = data.read_parquet(str(path)).map_batches(scale, udf_modifying_row_count=False)
    epochs = arguments.epochs
    ours = {"epochs": epochs, "window": WINDOW}
    theirs = {"epochs": 1, "folder": str(path)}
    sides: Sides = {
        "ours": lambda: fit(with_shard, ours, folder, datasets={"train": dataset}),
        "DataLoader": lambda: fit(with_loader, theirs, folder),
    }
    samples = take_turns(arguments.runs, sides, "shuffled")
    faster = ratios(samples["ours"], samples["DataLoader"])
    return [
        Row(
            f"map_batches, shuffled in windows of {WINDOW:,}",
            millions(samples["ours"]),
            f"DataLoader {millions(samples['DataLoader'])}",
            spread(faster, "x faster", 1),
            f">= {LOADER_TARGET} x faster",
            verdict(met=median(faster) >= LOADER_TARGET),
        )
    ]


def written_rows(arguments: argparse.Namespace, folder: Path) -> Path:
    """Return the folder of the files, written by who asks first."""
    path = folder / "rows"
    if not path.exists():
        write_tables(path, files=FILES, rows=int(ROWS_PER_FILE * arguments.scale))
    return path


# ---------------------------------------------------------------------- images
def small(batch: dict[str, Any]) -> dict[str, Any]:
    """Decode and resize a batch of images."""
    import numpy as np

    return {"label": np.stack([decoded(png) for png in batch["bytes"]])}


def images(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure decoding, in a pool of 2 processes on either side, which take turns by epoch."""
    from minitrain import data

    path = write_images(folder / "images", int(NUM_IMAGES * arguments.scale))
    dataset = data.read_binary_files(str(path)).map_batches(small, concurrency=2)
    batches = dataset.iterator().iter_torch_batches(batch_size=IMAGES_PER_BATCH)

    def ours() -> list[float]:
        number, seconds = drained(batches)
        return [number / seconds]

    with asked_again("images", str(path)) as theirs:
        drained(batches)  # the processes are started meanwhile
        sides: Sides = {"ours": ours, "DataLoader": lambda: [theirs()]}
        samples = take_turns(IMAGE_EPOCHS * arguments.runs, sides, "images")
    faster = ratios(samples["ours"], samples["DataLoader"])
    return [
        Row(
            "PNGs decoded and resized, concurrency=2",
            spread(samples["ours"], "images/s", 0),
            f"DataLoader {spread(samples['DataLoader'], 'images/s', 0)}",
            spread(faster, "of it", 2),
            f">= {IMAGES_TARGET} of it",
            verdict(met=median(faster) >= IMAGES_TARGET),
        )
    ]


# ---------------------------------------------------------------------- restarts
def restart(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure the first batch of a second attempt."""
    from minitrain import data

    files = int(RESTART_FILES * arguments.scale)
    path = write_tables(folder / "files", files=files, rows=RESTART_ROWS)
    dataset = data.read_parquet(str(path))
    batches = files * RESTART_ROWS // BATCH // NUM_WORKERS // 2
    found = []
    for window, text in ((None, ""), (WINDOW, f", shuffled in windows of {WINDOW:,}")):
        config = {
            "batches": batches,
            "window": window,
            "scratch": str(folder / "scratch"),
            "expected": [
                batch_after(batches, shard, window)
                for shard in dataset.streaming_split(NUM_WORKERS, equal=True)
            ],
        }
        seconds, exact = [], True
        for turn in range(arguments.runs):
            one, right = fit(killed_and_resumed, config, folder, datasets={"train": dataset})
            seconds.append(one)
            exact = exact and right
            note(f"run {turn + 1}, restart{text}: {one:.3f} s, {'exact' if right else 'NOT exact'}")
        found.append(
            Row(
                f"first batch of a restart, {files:,} files{text}",
                f"{spread(seconds, 's')}, {'position exact' if exact else 'position NOT exact'}",
                target=f"<= {RESTART_TARGET_S} s, exact",
                met=verdict(met=median(seconds) <= RESTART_TARGET_S and exact),
            )
        )
    return found


def batch_after(batches: int, shard: Any, window: int | None) -> list[int]:
    """Return the labels that come after so many batches if nothing interrupts."""
    whole = shard.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=window)
    return list(next(itertools.islice(whole, batches, None))["label"].tolist())


# ---------------------------------------------------------------------- memory
def memory(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure how much memory reading ahead of a slow training takes."""
    from minitrain import data
    from minitrain.data.context import DataContext

    budget_mib = BUDGET_MIB * arguments.scale
    needed = int(BUDGETS * budget_mib * 2**20 / ROW_BYTES)
    rows = written_rows(arguments, folder)
    per_file = int(ROWS_PER_FILE * arguments.scale)
    path = many_times(rows, -(-needed // (FILES * per_file)), folder / "many")
    config = {"batch_size": int(PAUSED_BATCH * arguments.scale), "pause_s": 0.03}
    context = DataContext.get_current()
    before, context.memory_budget_bytes = context.memory_budget_bytes, int(budget_mib * 2**20)
    grown = []
    try:
        for turn in range(arguments.runs):
            dataset = data.read_parquet(str(path))
            mib, read = fit(streaming, config, folder, datasets={"train": dataset}, num_workers=1)
            assert read >= needed
            grown.append(mib)
            note(f"run {turn + 1}, memory: {mib:.0f} MiB over {read * ROW_BYTES / 2**30:.1f} GiB")
    finally:
        context.memory_budget_bytes = before
    return [
        Row(
            f"memory while {BUDGETS} x the budget is read, slowly",
            spread(grown, "MiB", 0),
            f"the budget {budget_mib:.0f} MiB",
            spread([mib / budget_mib for mib in grown], "of it", 2),
            f"<= {MEMORY_TARGET} of it",
            verdict(met=max(grown) <= MEMORY_TARGET * budget_mib),
        )
    ]


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[Row]]] = {
    "tables": tables,
    "shuffled": shuffled,
    "images": images,
    "restart": restart,
    "memory": memory,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="turns of every side")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that count in each turn")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the amount of data")
    parser.add_argument(
        "--ray",
        default=os.environ.get("RAY_PYTHON", ""),
        help="a Python that has ray[data,train]; by default $RAY_PYTHON",
    )
    arguments = parser.parse_args()
    one_thread_each()
    print_machine("Rows per second to the workers of a training")
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            found += PARTS[part](arguments, Path(folder))
    print_table(found)


if __name__ == "__main__":
    main()
