"""How long from ``fit()`` to the first line on all ranks, with a process group that works.

Ours is warm: the second and later ``fit()`` of one driver. The peers, which know no warm start,
are ``torch.multiprocessing.spawn`` (from its call, in a parent that has imported torch) and
torchrun (from the start of its process). All ranks of every side do one ``all_reduce`` over gloo
and note the time; the last one counts. The sides take turns within the same run::

    python bench/start.py --runs 7
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from _figures import Row, note, one_thread_each, print_table, rotated, seconds_of, spread, verdict
from _machine import print_machine
from _peers import first_line, spawn_command, torchrun_command

TARGETS_S = {2: 0.10, 8: 0.25, 32: 1.0}
TIMES_FASTER_THAN_SPAWN = {8: 20}


def ours(num_workers: int, folder: Path) -> tuple[float, float]:
    """Return the seconds of one ``fit()``: to the first line, and altogether."""
    from minitrain import RunConfig, ScalingConfig
    from minitrain.torch import TorchTrainer

    called_s = time.time()
    trainer = TorchTrainer(
        first_line,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(storage_path=str(folder), verbose=0),
    )
    line_s = trainer.fit().return_value
    return line_s - called_s, time.time() - called_s


def spawn(num_workers: int, folder: Path) -> tuple[float, float]:
    """Return the same for ``torch.multiprocessing.spawn``."""
    out = folder / "spawn.json"
    seconds_of(spawn_command(num_workers, out))
    noted = json.loads(out.read_text(encoding="utf-8"))
    return noted["line"] - noted["called"], noted["returned"] - noted["called"]


def torchrun(num_workers: int, folder: Path) -> tuple[float, float]:
    """Return the same for torchrun."""
    out = folder / "torchrun.json"
    command = torchrun_command(num_workers, "_peers.py", "torchrun", str(out))
    called_s = time.time()
    whole_s = seconds_of(command)
    return json.loads(out.read_text(encoding="utf-8"))["line"] - called_s, whole_s


SIDES: dict[str, Callable[[int, Path], tuple[float, float]]] = {
    "ours": ours,
    "spawn": spawn,
    "torchrun": torchrun,
}


@dataclass
class Samples:
    """What one side took, in seconds.

    Attributes:
        line_s: To the first line on the last rank.
        whole_s: Until everything had ended.
    """

    line_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[tuple[str, int], Samples]:
    """Let the sides take turns."""
    samples: dict[tuple[str, int], Samples] = defaultdict(Samples)
    ours(2, folder)  # the cold one is first_fit.py's business
    for turn in range(arguments.runs):
        for num_workers in arguments.workers:
            with_peers = num_workers <= arguments.most_for_peers or arguments.peers_32
            for side in rotated(list(SIDES) if with_peers else ["ours"], turn):
                for _ in range(arguments.fits if side == "ours" else 1):
                    line_s, whole_s = SIDES[side](num_workers, folder)
                    samples[side, num_workers].line_s.append(line_s)
                    samples[side, num_workers].whole_s.append(whole_s)
                note(f"run {turn + 1}: {num_workers} workers, {side}: {line_s:.3f} s")
    return samples


def rows(samples: dict[tuple[str, int], Samples]) -> list[Row]:
    """Compare each of our figures with each peer's."""
    table = []
    for side, num_workers in [key for key in samples if key[0] == "ours"]:
        mine = samples[side, num_workers]
        peers = [name for name in SIDES if name != side and (name, num_workers) in samples]
        table.append(target_row(num_workers, mine))
        for peer in peers:
            table += peer_rows(num_workers, mine, peer, samples[peer, num_workers])
    return table


def target_row(num_workers: int, mine: Samples) -> Row:
    """Hold our figure against its target."""
    target_s = TARGETS_S.get(num_workers)
    return Row(
        f"{num_workers} workers: first line",
        spread(mine.line_s, "s"),
        target="" if target_s is None else f"<= {target_s:.2f} s",
        met="" if target_s is None else verdict(met=median(mine.line_s) <= target_s),
    )


def peer_rows(num_workers: int, mine: Samples, peer: str, theirs: Samples) -> list[Row]:
    """Hold our figures against a peer's."""
    ratio = median(theirs.line_s) / median(mine.line_s)
    needed = TIMES_FASTER_THAN_SPAWN.get(num_workers) if peer == "spawn" else None
    return [
        Row(
            f"{num_workers} workers: first line",
            spread(mine.line_s, "s"),
            f"{peer} {spread(theirs.line_s, 's', 2)}",
            f"{ratio:.1f} x faster",
            "" if needed is None else f">= {needed} x faster",
            "" if needed is None else verdict(met=ratio >= needed),
        ),
        Row(
            f"{num_workers} workers: until all has ended",
            spread(mine.whole_s, "s"),
            f"{peer} {spread(theirs.whole_s, 's', 2)}",
            f"{median(theirs.whole_s) / median(mine.whole_s):.1f} x faster",
        ),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="turns of every side")
    parser.add_argument("--fits", type=int, default=3, help="fits of ours in each of its turns")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--peers-32", action="store_true", help="peers with 32 workers, too")
    parser.set_defaults(most_for_peers=8)
    arguments = parser.parse_args()
    one_thread_each()
    print_machine("Warm fit() to the first line on all ranks")
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(arguments, Path(folder))
    print_table(rows(samples))


if __name__ == "__main__":
    main()
