"""How long ``import minitrain`` takes, and what it does not import.

Measured as whole processes, taking turns: the bare interpreter, ``import minitrain``, and for
comparison ``from minitrain.torch import TorchTrainer`` (without starting the agent) and
``import torch``. What counts is the difference to the bare interpreter::

    python bench/import_time.py --runs 30
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median

from _figures import Row, note, print_table, rotated, seconds_of, spread, verdict
from _machine import print_machine

TARGET_MS = 150.0
KEPT_OUT = ("torch", "pandas", "pyarrow")
BARE, OURS, TRAINER, TORCH = (
    "pass",
    "import minitrain",
    "from minitrain.torch import TorchTrainer",
    "import torch",
)


def measure(num_runs: int) -> dict[str, list[float]]:
    """Return the milliseconds of each statement's process, the statements taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in (BARE, OURS, TRAINER, TORCH)}
    for statement in samples:
        seconds_of([sys.executable, "-c", statement])  # fills the file cache, compiles
    for turn in range(num_runs):
        for statement in rotated(list(samples), turn):
            samples[statement].append(1e3 * seconds_of([sys.executable, "-c", statement]))
    return samples


def imported(statement: str) -> list[str]:
    """Return which of the modules that are to be kept out a statement imports."""
    code = f"{statement}\nimport sys\nprint([n for n in {KEPT_OUT!r} if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [name for name in KEPT_OUT if repr(name) in out.stdout]


def rows(samples: dict[str, list[float]]) -> list[Row]:
    """Hold the differences to the bare interpreter against the target."""
    bare_ms = median(samples[BARE])
    table = []
    for statement in (OURS, TRAINER):
        extra_ms = [took_ms - bare_ms for took_ms in samples[statement]]
        torch_ms = [took_ms - bare_ms for took_ms in samples[TORCH]]
        is_target = statement == OURS
        table.append(
            Row(
                statement,
                spread(extra_ms, "ms", 1),
                f"{TORCH} {spread(torch_ms, 'ms', 0)}",
                f"{median(torch_ms) / median(extra_ms):.0f} x faster",
                f"<= {TARGET_MS:.0f} ms" if is_target else "",
                verdict(met=median(extra_ms) <= TARGET_MS) if is_target else "",
            )
        )
    for statement in (OURS, TRAINER):
        found = imported(statement)
        table.append(
            Row(
                f"{statement}: imports",
                ", ".join(found) or "none of them",
                target=f"not {', '.join(KEPT_OUT)}" if statement == OURS else "",
                met=verdict(met=not found) if statement == OURS else "",
            )
        )
    table.append(Row("the bare interpreter, which is subtracted", spread(samples[BARE], "ms", 1)))
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="turns of every statement")
    arguments = parser.parse_args()
    os.environ["MINITRAIN_PRESTART"] = "0"
    print_machine("import minitrain")
    note("each of the runs takes as long as importing torch")
    print_table(rows(measure(arguments.runs)))


if __name__ == "__main__":
    main()
