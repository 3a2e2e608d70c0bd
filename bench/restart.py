"""How long from SIGKILL of one of 4 workers to the first line of the next attempt, on all ranks.

The first line has used a process group of the new attempt. The peer is ``torchrun
--standalone --max-restarts 1``. The sides take turns within the same run::

    python bench/restart.py --runs 7
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from _figures import Row, note, one_thread_each, print_table, rotated, seconds_of, spread, verdict
from _machine import print_machine
from _peers import here
from _restarted import train

NUM_WORKERS = 4
TARGET_S = 0.4
TIMES_FASTER = 8
RAY_TRAIN_S = (8.1, 9.2)
"""Measured with Ray 2.60 on a machine of this kind."""
TIMES_FASTER_THAN_RAY = 15


def ours(folder: Path) -> float:
    """Return our seconds."""
    from minitrain import FailureConfig, RunConfig, ScalingConfig
    from minitrain.torch import TorchTrainer

    trainer = TorchTrainer(
        lambda: train(str(folder)),
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
        run_config=RunConfig(
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    return float(trainer.fit().return_value)


def torchrun(folder: Path) -> float:
    """Return torchrun's."""
    options = ["--standalone", "--nproc-per-node", str(NUM_WORKERS), "--max-restarts", "1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *options]
    seconds_of([*launcher, here("_restarted.py"), str(folder)])
    return float(json.loads(Path(folder, "seconds").read_text(encoding="utf-8")))


SIDES = {"ours": ours, "torchrun": torchrun}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="turns of every side")
    arguments = parser.parse_args()
    one_thread_each()
    # Otherwise torchrun has one store for all attempts, and gloo finds the addresses of the last.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    print_machine("SIGKILL of one of 4 workers to the first line of the next attempt")
    samples: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(arguments.runs):
        for side in rotated(list(SIDES), turn):
            with tempfile.TemporaryDirectory() as folder:
                samples[side].append(SIDES[side](Path(folder)))
            note(f"run {turn + 1}, {side}: {samples[side][-1]:.3f} s")
    mine, theirs = median(samples["ours"]), median(samples["torchrun"])
    low, high = RAY_TRAIN_S
    print_table(
        [
            Row(
                "SIGKILL to the next first line",
                spread(samples["ours"], "s"),
                f"torchrun {spread(samples['torchrun'], 's', 2)}",
                f"{theirs / mine:.1f} x faster",
                f"<= {TARGET_S} s, >= {TIMES_FASTER} x faster",
                verdict(met=mine <= TARGET_S and theirs / mine >= TIMES_FASTER),
            ),
            Row(
                "",
                spread(samples["ours"], "s"),
                f"Ray Train {low} to {high} s (measured before)",
                f"{low / mine:.0f} to {high / mine:.0f} x faster",
                f">= {TIMES_FASTER_THAN_RAY} x faster",
                verdict(met=low / mine >= TIMES_FASTER_THAN_RAY),
            ),
        ]
    )


if __name__ == "__main__":
    main()
