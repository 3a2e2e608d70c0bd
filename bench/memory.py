"""How much memory 8 idle workers take, with everything that was started for them.

The workers have joined their process group, used it once, and wait. Counted is every process
below the driver (agent, store and workers; helpers of ``multiprocessing``), never the driver
itself, which any script has. The peers are one torch process in a group of its own, and 8
processes made by ``torch.multiprocessing`` with ``spawn``.

USS is what belongs to one process alone: what would be free if it ended. It leaves out what
processes share, on our side the pages forked from the agent, so the proportional set size (PSS),
which divides shared pages among those who share them, stands beside it. The files of torch itself
are shared with any other torch process on the machine; to count one torch process as our workers
are counted, it is looked at while another one runs::

    python bench/memory.py --runs 3
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import psutil
from _figures import Row, note, one_thread_each, print_table, spread, verdict
from _machine import print_machine
from _peers import here

TARGET = 1.5
ONE_ALONE, ONE, SPAWN, OURS = "one torch process, alone", "one torch process", "spawn", "ours"


@dataclass
class Samples:
    """What one side took, in MiB.

    Attributes:
        uss: Its own pages.
        pss: ... and its part of the shared ones.
        processes: How many processes that was.
    """

    uss: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    processes: int = 0

    def look(self, processes: list[psutil.Process]) -> None:
        """Measure some processes, all together."""
        memory = [process.memory_full_info() for process in processes]
        self.uss.append(sum(one.uss for one in memory) / 2**20)
        self.pss.append(sum(one.pss for one in memory) / 2**20)
        self.processes = len(processes)


@contextmanager
def idle(settle_s: float, script: str, *arguments: str) -> Generator[psutil.Process]:
    """Start a script, wait until what it started waits, and end it all afterwards."""
    command = [sys.executable, here(script), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"idle\n":
            raise RuntimeError(f"{script} {' '.join(arguments)} did not get as far as waiting")
        time.sleep(settle_s)
        yield psutil.Process(process.pid)


def measure(arguments: argparse.Namespace) -> dict[str, Samples]:
    """Look at every side in every run."""
    samples = {name: Samples() for name in (ONE_ALONE, ONE, SPAWN, OURS)}
    settle_s, count = arguments.settle, str(arguments.workers)
    for turn in range(arguments.runs):
        with idle(settle_s, "_idle_peers.py", "one") as one:
            samples[ONE_ALONE].look([one])
            with idle(settle_s, "_idle_peers.py", "one"):
                samples[ONE].look([one])
        with idle(settle_s, "_idle_peers.py", "spawn", count) as parent:
            samples[SPAWN].look(parent.children(recursive=True))
        with idle(settle_s, "_idle_workers.py", count) as driver:
            samples[OURS].look(driver.children(recursive=True))
            if turn == 0:
                show_each(driver.children(recursive=True))
        note(f"run {turn + 1}: " + ", ".join(f"{k} {v.uss[-1]:.0f}" for k, v in samples.items()))
    return samples


def show_each(processes: list[psutil.Process]) -> None:
    """Print what each of our processes takes."""
    print("ours, process by process (MiB): USS, PSS")
    for process in processes:
        memory = process.memory_full_info()
        print(f"  {memory.uss / 2**20:7.1f} {memory.pss / 2**20:7.1f}  pid {process.pid}")


def rows(samples: dict[str, Samples], num_workers: int) -> list[Row]:
    """Hold ours against each peer."""
    mine = samples[OURS]
    table = []
    for peer in (ONE, ONE_ALONE, SPAWN):
        theirs = samples[peer]
        for name in ("uss", "pss"):
            own, other = getattr(mine, name), getattr(theirs, name)
            ratio = median(own) / median(other)
            is_target = peer == ONE and name == "uss"
            table.append(
                Row(
                    f"{num_workers} idle workers, {mine.processes} processes: {name.upper()}",
                    spread(own, "MiB", 0),
                    f"{peer} {spread(other, 'MiB', 0)}",
                    f"{ratio:.2f} of it",
                    f"<= {TARGET} of it" if is_target else "",
                    verdict(met=ratio <= TARGET) if is_target else "",
                )
            )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--settle", type=float, default=1.0, help="seconds before looking")
    arguments = parser.parse_args()
    one_thread_each()
    print_machine(f"Memory of {arguments.workers} idle workers and all that serves them")
    print_table(rows(measure(arguments), arguments.workers))


if __name__ == "__main__":
    main()
