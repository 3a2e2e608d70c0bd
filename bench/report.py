"""What a call of ``report()`` costs the training: 5 scalars, 2 workers, 20,000 calls each.

Measured in the train function, on rank 0, call by call, with nothing between the calls: the
hardest case, in which worker, agent and driver want the processor at the same time. Afterwards
every row must stand in ``result.json``. ``--pause-us`` puts a computation of that length between
the calls, as a training step would be.

The yardstick, measured in the same way by the same processes after everything had been written,
is ``json.dumps`` of the same row, ``write`` and ``flush``. Ray Train's figures are quoted, not
measured here::

    python bench/report.py --runs 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from _figures import Row, note, one_thread_each, print_table, spread, verdict
from _machine import print_machine

P50_TARGET_US, P99_TARGET_US = 50.0, 1000.0
QUOTED = {"Ray Train V1": 8_900.0, "Ray Train V2": 1_800_000.0}
"""Microseconds per call, measured once on 2 cores when minitrain was begun."""


def metrics_of(step: int) -> dict[str, float]:
    """Return 5 scalars."""
    return {
        "epoch": step // 100,
        "step": step,
        "loss": 1.0 / (step + 1),
        "accuracy": 1.0 - 1.0 / (step + 2),
        "learning_rate": 0.001,
    }


def train(config: dict[str, int]) -> dict[str, Any]:
    """Report, and return how many nanoseconds each call took; then take the yardstick's time."""
    import minitrain

    calls, pause_ns = config["calls"], config["pause_us"] * 1000
    minitrain.collective.barrier()
    began_ns = time.perf_counter_ns()
    took_ns = timed(lambda step: minitrain.report(metrics_of(step)), calls, pause_ns)
    whole_ns = time.perf_counter_ns() - began_ns
    minitrain.collective.barrier()  # answered when the driver has taken every report
    drained_ns = time.perf_counter_ns() - began_ns
    context = minitrain.get_context()
    with Path(context.get_trial_dir(), "result.json").open(encoding="utf-8") as rows:
        row = json.loads(next(rows))
    with Path(f"yardstick_{context.get_world_rank()}").open("w", encoding="utf-8") as file:
        yardstick_ns = timed(lambda _: write_plainly(row, file), calls, pause_ns)
    return {
        "took_ns": took_ns,
        "whole_ns": whole_ns,
        "drained_ns": drained_ns,
        "yardstick_ns": yardstick_ns,
    }


def timed(call: Callable[[int], None], calls: int, pause_ns: int) -> list[int]:
    """Return how long each call took, with some computing after each."""
    took_ns = []
    for step in range(calls):
        before_ns = time.perf_counter_ns()
        call(step)
        after_ns = time.perf_counter_ns()
        took_ns.append(after_ns - before_ns)
        while time.perf_counter_ns() - after_ns < pause_ns:
            pass
    return took_ns


def write_plainly(row: dict[str, Any], file: TextIO) -> None:
    """Do the least that a log of rows needs."""
    file.write(json.dumps(row) + "\n")
    file.flush()


@dataclass(frozen=True)
class Run:
    """What one run measured.

    Attributes:
        took_us: Every call of rank 0, sorted.
        yardstick_us: Every write of the yardstick, sorted.
        calls_per_s: How fast rank 0 called.
        lag_s: How long after the last call the driver had taken all of them.
    """

    took_us: list[float]
    yardstick_us: list[float]
    calls_per_s: float
    lag_s: float


def run_once(arguments: argparse.Namespace) -> Run:
    """Train, check that every row is there, and return what was measured.

    Raises:
        RuntimeError: Rows are missing.
    """
    from minitrain import RunConfig, ScalingConfig
    from minitrain.torch import TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        result = TorchTrainer(
            train,
            train_loop_config={"calls": arguments.calls, "pause_us": arguments.pause_us},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=folder, verbose=0),
        ).fit()
        check_rows(Path(result.path, "result.json"), arguments.calls)
    measured = result.return_value
    return Run(
        sorted(ns / 1e3 for ns in measured["took_ns"]),
        sorted(ns / 1e3 for ns in measured["yardstick_ns"]),
        arguments.calls / (measured["whole_ns"] / 1e9),
        (measured["drained_ns"] - measured["whole_ns"]) / 1e9,
    )


def check_rows(path: Path, calls: int) -> None:
    """See that every report is a row, in order.

    Raises:
        RuntimeError: It is not so.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    iterations = [row["training_iteration"] for row in rows]
    steps = [row["step"] for row in rows]
    if iterations != list(range(1, calls + 1)) or steps != list(range(calls)):
        raise RuntimeError(f"result.json has {len(rows)} rows, not {calls} in order")


def quantile(ordered: list[float], part: float) -> float:
    """Return the value below which that part of the values lies."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def rows(runs: list[Run], calls: int) -> list[Row]:
    """Hold our quantiles against targets, yardstick and quotations."""
    targets = {"p50": P50_TARGET_US, "p99": P99_TARGET_US, "max": None}
    table = []
    for name, part in (("p50", 0.50), ("p99", 0.99), ("max", 1.0)):
        mine = [quantile(run.took_us, part) for run in runs]
        plain = [quantile(run.yardstick_us, part) for run in runs]
        target = targets[name]
        table.append(
            Row(
                f"report(), {name}",
                spread(mine, "us", 1),
                f"dumps, write, flush {spread(plain, 'us', 1)}",
                f"{median(mine) / median(plain):.1f} of it",
                "" if target is None else f"<= {target:.0f} us",
                "" if target is None else verdict(met=median(mine) <= target),
            )
        )
    p50 = median([quantile(run.took_us, 0.5) for run in runs])
    table += [
        Row(
            "report(), p50",
            f"{p50:.1f} us",
            f"{name} {us / 1000:g} ms (quoted)",
            f"{us / p50:.0f} x faster",
        )
        for name, us in QUOTED.items()
    ]
    table.append(Row("calls per second", spread([run.calls_per_s for run in runs], "/s", 0)))
    table.append(Row("driver behind at the end", spread([run.lag_s for run in runs], "s", 2)))
    table.append(Row("rows in result.json", f"{calls}", target=f"all of {calls}", met="yes"))
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--pause-us", type=int, default=0, help="computing between calls")
    arguments = parser.parse_args()
    one_thread_each()
    pause = f", {arguments.pause_us} us of computing between them" if arguments.pause_us else ""
    print_machine(f"report() of 5 scalars, {arguments.calls} calls on each of 2 workers{pause}")
    runs = []
    for turn in range(arguments.runs):
        runs.append(run_once(arguments))
        note(f"run {turn + 1}: p50 {quantile(runs[-1].took_us, 0.5):.1f} us")
    print_table(rows(runs, arguments.calls))


if __name__ == "__main__":
    main()
