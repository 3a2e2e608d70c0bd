"""What the driver's own process costs where there are many hosts: processor time and memory.

The hosts are simulated: one process plays all agents and their workers, which train nothing, and
says what real ones would say; every host has a transport's process that the driver starts and
ends. The driver is a real one, ``DataParallelTrainer.fit()``, in a process of its own; what its
children take is not counted. Every worker makes as many reports as make up the number asked for,
and every rank's report is a message::

    python bench/control_plane.py --runs 3

What a host costs is what the driver took beyond a driver of one host, divided by the number of
hosts.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from _figures import Row, note, print_table, spread, verdict
from _machine import print_machine
from _peers import here

import minitrain
from minitrain import LaunchConfig, RunConfig, ScalingConfig, UserCallback
from minitrain.trainer import DataParallelTrainer

WORKERS_PER_HOST = 8
TARGET_CPU_S = 60
TARGET_MB = 500
TARGET_REPORTS = 10_000
USUAL_SOFT_LIMIT = 1024
"""Of open files, on most systems: the driver has to get along with it."""


def train() -> None:
    """Stand for a train function; nobody calls it."""


class Marks(UserCallback):
    """Notes what the driver has taken when the first and the last report have been complete."""

    def __init__(self, num_reports: int) -> None:
        self._num_reports = num_reports
        self._count = 0
        self.first_s = self.last_s = 0.0

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """Note the time of the first and the last one."""
        del run_context, metrics, checkpoint
        self._count += 1
        if self._count == 1:
            self.first_s = time.process_time()
        if self._count == self._num_reports:
            self.last_s = time.process_time()


def drive(num_hosts: int, num_reports: int, path: str) -> dict[str, float]:
    """Train on simulated hosts in this process and return what that took."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_SOFT_LIMIT, most))
    transport = [sys.executable, "-ISE", here("_simulated_host.py"), path, "{host}"]
    marks = Marks(num_reports)
    before_s, began_s = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DataParallelTrainer(
            train,
            scaling_config=ScalingConfig(
                num_workers=num_hosts * WORKERS_PER_HOST,
                hosts=[f"simulated{n}:{WORKERS_PER_HOST}" for n in range(num_hosts)],
            ),
            run_config=RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[marks],
                launch_config=LaunchConfig(transport=shlex.join(transport)),
            ),
        )
        trainer.fit()
        minitrain.shutdown()
    ended_s = time.process_time()
    return {
        "start": marks.first_s - before_s,
        "reports": marks.last_s - marks.first_s,
        "stop": ended_s - marks.last_s,
        "cpu": ended_s - before_s,
        "wall": time.perf_counter() - began_s,
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@contextmanager
def simulated_agents(path: str, num_reports: int) -> Generator[None]:
    """Have somebody play the agents."""
    command = [sys.executable, here("_simulated_agents.py"), path, str(num_reports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agents:
        assert agents.stdout is not None
        agents.stdout.readline()
        try:
            yield
        finally:
            agents.terminate()


def measure(num_hosts: int, reports_per_worker: int) -> dict[str, float]:
    """Return what a driver of some hosts took."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "agents"))
        with simulated_agents(path, reports_per_worker):
            command = [sys.executable, here("control_plane.py"), "--drive", path]
            options = ["--hosts", str(num_hosts), "--reports-per-worker", str(reports_per_worker)]
            done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def rows(samples: dict[int, list[dict[str, float]]], reports_per_worker: int) -> list[Row]:
    """Hold the figures against the targets."""
    table = []
    alone_s = median(one["cpu"] for one in samples[1])
    least, most = min(n for n in samples if n > 1), max(samples)
    per_host_s = {
        n: (median(one["cpu"] for one in samples[n]) - alone_s) / n for n in (least, most)
    }
    for num_hosts, taken in samples.items():
        if num_hosts == 1:
            continue
        num_messages = num_hosts * WORKERS_PER_HOST * reports_per_worker
        what = f"{num_hosts} hosts, {num_messages:,} reports"
        cpu = [one["cpu"] for one in taken]
        is_target = num_hosts == most
        parts = ", ".join(
            f"{name} {median(one[name] for one in taken):.2f}"
            for name in ("start", "reports", "stop")
        )
        table += [
            Row(
                f"{what}: processor time",
                spread(cpu, "s", 2),
                ratio=parts,
                target=f"<= {TARGET_CPU_S} s" if is_target else "",
                met=verdict(met=median(cpu) <= TARGET_CPU_S) if is_target else "",
            ),
            Row(
                f"{what}: memory",
                spread([one["mb"] for one in taken], "MB", 0),
                target=f"<= {TARGET_MB} MB" if is_target else "",
                met=verdict(met=max(one["mb"] for one in taken) <= TARGET_MB) if is_target else "",
            ),
            Row(
                f"{what}: from fit() until all is gone",
                spread([one["wall"] for one in taken], "s", 2),
            ),
            Row(
                f"{what}: processor time per host",
                spread([(s - alone_s) / num_hosts * 1e3 for s in cpu], "ms", 2),
                target=f"<= with {least} hosts" if is_target else "",
                met=verdict(met=per_host_s[most] <= per_host_s[least]) if is_target else "",
            ),
        ]
    return table


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="drivers of every size")
    parser.add_argument("--hosts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--reports-per-worker", type=int, default=10)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.drive:
        figures = drive(arguments.hosts[0], arguments.reports_per_worker, arguments.drive)
        print(json.dumps(figures))
        return
    print_machine("The driver of 10 to 1,000 simulated hosts with 8 workers each")
    samples: dict[int, list[dict[str, float]]] = {n: [] for n in [1, *arguments.hosts]}
    for turn in range(arguments.runs):
        for num_hosts, taken in samples.items():
            taken.append(measure(num_hosts, arguments.reports_per_worker))
            said = ", ".join(f"{name} {value:.2f}" for name, value in taken[-1].items())
            note(f"run {turn + 1}, {num_hosts} hosts: {said}")
    print_table(rows(samples, arguments.reports_per_worker))


if __name__ == "__main__":
    main()
