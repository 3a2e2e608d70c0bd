"""A script written for ray.train runs when its imports are replaced."""

from __future__ import annotations

import pytest

SCRIPT = """
import os
import tempfile

import torch
from torch.utils.data import DataLoader, TensorDataset

import ray.train
import ray.train.torch
from ray.train import (
    Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, SyncConfig, DataConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer


def train_loop_per_worker(config):
    context = ray.train.get_context()
    inputs = torch.linspace(-1, 1, 64).unsqueeze(1)
    loader = DataLoader(TensorDataset(inputs, 3 * inputs), batch_size=config["batch"], shuffle=True)
    loader = ray.train.torch.prepare_data_loader(loader)
    model = ray.train.torch.prepare_model(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])

    start = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(os.path.join(folder, "state.pt"))
        model.module.load_state_dict(state["model"])
        start = state["epoch"] + 1

    for epoch in range(start, config["epochs"]):
        if context.get_world_size() > 1:
            loader.sampler.set_epoch(epoch)
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if context.get_world_rank() == 0:
                state = {"epoch": epoch, "model": model.module.state_dict()}
                torch.save(state, os.path.join(folder, "state.pt"))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item(), "epoch": epoch}, checkpoint=checkpoint)
        if epoch == 3 and start == 0 and context.get_world_rank() == 1:
            raise RuntimeError("a failure to recover from")


trainer = TorchTrainer(
    train_loop_per_worker,
    train_loop_config={"lr": 0.1, "epochs": 10, "batch": 8},
    torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(
        num_workers=2, trainer_resources={"CPU": 1}, resources_per_worker={"CPU": 1},
        placement_strategy="SPREAD",
    ),
    run_config=RunConfig(
        name="moved",
        storage_path=os.environ["MINITRAIN_STORAGE"],
        failure_config=FailureConfig(max_failures=1),
        checkpoint_config=CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="min"
        ),
        sync_config=SyncConfig(sync_artifacts=True),
        verbose=1,
        log_to_file=True,
    ),
    dataset_config=DataConfig(),
    metadata={"written": "for ray"},
)
result = trainer.fit()
print("epochs", list(result.metrics_dataframe["epoch"]))
print("loss", result.metrics["loss"] < 0.5, "best", len(result.best_checkpoints))
print("checkpoint", result.checkpoint.get_metadata(), result.error)
"""


@pytest.mark.campaign
def test_replacing_the_imports_is_enough(start_script):
    script = start_script(SCRIPT.replace("ray.train", "minitrain"))
    assert script.wait() == 0, script.output
    assert "epochs [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" in script.output
    assert "loss True best 2" in script.output
    assert "checkpoint {'written': 'for ray'} None" in script.output
