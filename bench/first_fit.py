"""How long a script takes whose first ``fit()`` starts everything: the whole process, 8 workers.

Nothing is warm but the file cache. The reference is ``python -c "import torch"``, which every
script that trains pays anyway; the peers are torchrun and a script that calls
``torch.multiprocessing.spawn``. The train function is the same: one ``all_reduce``. Ours comes in
several scripts: with minitrain imported before torch (then the agent imports torch beside the
script), with torch imported first, and both with one ``report()``, which has the driver write its
tables, TensorBoard's where it is installed. All take turns within the same run::

    python bench/first_fit.py --runs 7
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

from _figures import Row, note, one_thread_each, print_table, rotated, seconds_of, spread, verdict
from _machine import print_machine
from _peers import here, spawn_command, torchrun_command

REFERENCE = 'python -c "import torch"'
MARGIN_S = 1.0
PEERS = ("torchrun", "spawn")


def commands(num_workers: int, folder: Path) -> dict[str, list[str]]:
    """Return what is compared; the reference first, then ours, then the peers."""
    count = str(num_workers)
    library_first, torch_first = here("_script_library_first.py"), here("_script_torch_first.py")
    return {
        REFERENCE: [sys.executable, "-c", "import torch"],
        "minitrain imported first": [sys.executable, library_first, count],
        "minitrain first, one report()": [sys.executable, library_first, count, "report"],
        "torch imported first": [sys.executable, torch_first, count],
        "torch first, one report()": [sys.executable, torch_first, count, "report"],
        "torchrun": torchrun_command(
            num_workers, "_peers.py", "torchrun", str(folder / "torchrun.json")
        ),
        "spawn": spawn_command(num_workers, folder / "spawn.json"),
    }


def measure(num_workers: int, num_runs: int, folder: Path) -> dict[str, list[float]]:
    """Let the commands take turns."""
    samples: dict[str, list[float]] = {name: [] for name in commands(num_workers, folder)}
    seconds_of([sys.executable, "-c", "import torch"])  # fills the file cache for all
    for turn in range(num_runs):
        for name, command in rotated(list(commands(num_workers, folder).items()), turn):
            samples[name].append(seconds_of(command))
            note(f"run {turn + 1}: {name}: {samples[name][-1]:.2f} s")
    return samples


def rows(samples: dict[str, list[float]]) -> list[Row]:
    """Hold each of our scripts against the reference and the peers."""
    reference_s = median(samples[REFERENCE])
    limit_s = reference_s + MARGIN_S
    table = []
    for name in (name for name in samples if name not in {REFERENCE, *PEERS}):
        mine_s = median(samples[name])
        table.append(
            Row(
                name,
                spread(samples[name], "s", 2),
                f"{REFERENCE} {spread(samples[REFERENCE], 's', 2)}",
                f"+ {mine_s - reference_s:.2f} s",
                f"<= + {MARGIN_S:.1f} s = {limit_s:.2f} s",
                verdict(met=mine_s <= limit_s),
            )
        )
        table += [
            Row(
                name,
                spread(samples[name], "s", 2),
                f"{peer} {spread(samples[peer], 's', 2)}",
                f"{median(samples[peer]) / mine_s:.1f} x faster",
            )
            for peer in PEERS
        ]
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="turns of every script")
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    one_thread_each()
    print_machine(f"First fit() of a script, whole process, {arguments.workers} workers")
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(arguments.workers, arguments.runs, Path(folder))
    print_table(rows(samples))


if __name__ == "__main__":
    main()
