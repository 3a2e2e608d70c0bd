"""Whether a step of distributed training takes as long as under torchrun.

Two loops, a small perceptron and a narrow ResNet-18 on small images, each with
``DistributedDataParallel`` over gloo on 2 workers with the same number of threads; both sides run
``_loops.py``. The machine's speed drifts by more than the target, so a run has both sides started
afresh and then training in turns, a block of steps each, in the order A B, B A, A B ...: every
pair of blocks gives a ratio of median steps, a run their median. ``--control`` has torchrun
against itself: what it shows is noise, and no ratio below that means anything::

    python bench/step_time.py --runs 9
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from _figures import Row, note, one_thread_each, print_table, spread, verdict
from _machine import print_machine
from _peers import here, torchrun_command

NUM_WORKERS = 2
TARGET = 0.01
BLOCKS = {"mlp": (40, 120), "cnn": (14, 8)}
"""How many blocks a run has on each side, and how many steps a block; the first pair is dropped."""
LATE_S = 120.0
"""After how long without a word a side is given up."""


@dataclass(frozen=True)
class Run:
    """What one run measured.

    Attributes:
        ours_ms: Our median step.
        peer_ms: The peer's.
        ratio: The median of the ratios of neighbouring blocks.
    """

    ours_ms: float
    peer_ms: float
    ratio: float


@contextmanager
def side(command: list[str], address: Path) -> Generator[Callable[[], float]]:
    """Start one side, and give what has it train a block and returns its median step."""
    with (
        socket.socket(socket.AF_UNIX) as listener,
        (address.with_suffix(".log")).open("w+b") as log,
    ):
        listener.bind(str(address))
        listener.listen()
        listener.settimeout(LATE_S)
        with subprocess.Popen([*command, str(address)], stdout=log, stderr=log) as process:
            try:
                connection, _ = listener.accept()
                connection.settimeout(LATE_S)
                with connection, connection.makefile("rw") as lines:

                    def block() -> float:
                        print("go", file=lines, flush=True)
                        return float(lines.readline())

                    yield block
            except BaseException:
                process.terminate()
                process.wait()
                note(address.with_suffix(".log").read_text(encoding="utf-8"))
                raise
        if process.returncode:
            raise RuntimeError(address.with_suffix(".log").read_text(encoding="utf-8"))


def measure(loop: str, turn: int, arguments: argparse.Namespace) -> Run:
    """Start both sides and have them train in turns."""
    blocks, steps = BLOCKS[loop]
    blocks = max(3, round(blocks * arguments.scale))
    words = [loop, str(blocks), str(steps)]
    commands = {
        "ours": [sys.executable, here("_loop_driver.py"), *words],
        "peer": torchrun_command(NUM_WORKERS, "_loops.py", *words),
    }
    if arguments.control:
        commands["ours"] = torchrun_command(NUM_WORKERS, "_loops.py", *words)
    took_ms: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        order = list(commands) if turn % 2 == 0 else list(reversed(commands))
        sides = {
            name: stack.enter_context(side(commands[name], Path(folder, name))) for name in order
        }
        for number in range(blocks):
            for name in order if number % 2 == 0 else reversed(order):
                took_ms[name].append(1e3 * sides[name]())
    ours_ms, peer_ms = took_ms["ours"][1:], took_ms["peer"][1:]
    ratios = [mine / theirs for mine, theirs in zip(ours_ms, peer_ms, strict=True)]
    return Run(median(ours_ms), median(peer_ms), median(ratios))


def row(loop: str, runs: list[Run], *, control: bool) -> Row:
    """Hold the median of the ratios against the target."""
    ratios = [run.ratio for run in runs]
    return Row(
        f"{loop}, {len(runs)} runs" + (", torchrun against itself" if control else ""),
        spread([run.ours_ms for run in runs], "ms"),
        f"torchrun {spread([run.peer_ms for run in runs], 'ms')}",
        spread(ratios, "of it", 4),
        "" if control else f"<= {1 + TARGET:.2f} of it",
        "" if control else verdict(met=median(ratios) <= 1 + TARGET),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--loops", nargs="+", choices=list(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of blocks")
    parser.add_argument("--control", action="store_true", help="torchrun against itself")
    arguments = parser.parse_args()
    one_thread_each()
    print_machine(f"A step of DistributedDataParallel over gloo, {NUM_WORKERS} workers")
    runs: dict[str, list[Run]] = {loop: [] for loop in arguments.loops}
    for turn in range(arguments.runs):
        for loop, found in runs.items():
            done = measure(loop, turn, arguments)
            found.append(done)
            note(f"run {turn + 1}: {loop} {done.ours_ms:.3f} ms, ratio {done.ratio:.4f}")
    print_table(row(loop, found, control=arguments.control) for loop, found in runs.items())


if __name__ == "__main__":
    main()
