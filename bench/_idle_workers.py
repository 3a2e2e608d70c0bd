"""The driver of workers that have joined their process group and wait, for memory.py to look at.

``python bench/_idle_workers.py 8`` prints ``idle`` when all wait, and ends when its standard input
does. The workers wait in a barrier, which the driver does not answer while memory.py looks.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from _peers import first_line

import minitrain.torch
from minitrain import RunConfig, ScalingConfig, UserCallback


class Look(UserCallback):
    """Keeps the driver busy, once every worker has reported, until memory.py has looked."""

    def after_report(self, *_: Any) -> None:
        """Tell memory.py to look, and wait until it has."""
        print("idle", flush=True)
        sys.stdin.read()


def train() -> None:
    """Join, and wait."""
    first_line()
    minitrain.report({"ones": torch.ones(1).sum()})
    minitrain.collective.barrier()


with tempfile.TemporaryDirectory() as folder:
    minitrain.torch.TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=int(sys.argv[1])),
        run_config=RunConfig(storage_path=folder, verbose=0, callbacks=[Look()]),
    ).fit()
