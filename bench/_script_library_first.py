"""A script that first_fit.py starts: minitrain.torch is imported before torch."""

# ruff: noqa: I001 - the order of the imports is what is measured
import minitrain.torch
import torch

import sys
import tempfile

from _peers import first_line
from minitrain import RunConfig, ScalingConfig


def train(config):
    """Get to the first line, and report it if asked to."""
    first_line()
    if config["reports"]:
        minitrain.report({"ones": torch.ones(1).sum()})


with tempfile.TemporaryDirectory() as folder:
    minitrain.torch.TorchTrainer(
        train,
        train_loop_config={"reports": "report" in sys.argv},
        scaling_config=ScalingConfig(num_workers=int(sys.argv[1])),
        run_config=RunConfig(storage_path=folder, verbose=0),
    ).fit()
