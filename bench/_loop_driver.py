"""Our side of step_time.py: the loop of ``_loops.py`` under ``fit()``.

``python bench/_loop_driver.py mlp 20 200 SOCKET``
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import minitrain.torch
from minitrain import RunConfig, ScalingConfig


def train(config: dict[str, Any]) -> None:
    """Train with what prepare_model makes of the model."""
    from _loops import train_in_turns

    train_in_turns(**config, wrap=minitrain.torch.prepare_model)


name, blocks, steps, address = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    minitrain.torch.TorchTrainer(
        train,
        train_loop_config={
            "name": name,
            "blocks": int(blocks),
            "steps": int(steps),
            "address": address,
        },
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=folder, verbose=0),
    ).fit()
