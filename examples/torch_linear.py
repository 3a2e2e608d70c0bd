"""Fit a linear regression, stop half-way, and go on from the checkpoint.

    python examples/torch_linear.py

The data are scikit-learn's: how far diabetes went within a year in 442 patients, and ten things
measured before. Two workers train for the first half of the epochs; a second trainer is given the
checkpoint, which holds the optimizer's state as well, and trains for the rest. The result is to
be as good, on patients held out, as the exact solution that scikit-learn computes.
"""

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error, r2_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minitrain
from minitrain import Checkpoint, ScalingConfig
from minitrain.torch import TorchTrainer, prepare_data_loader, prepare_model

NUM_WORKERS = 2
EPOCHS = 100
BATCH_SIZE = 32  # of one worker
LEARNING_RATE = 0.05
TOLERATED_DIFFERENCE = 0.01  # of R2, the share of the variance that is explained


def load_splits():
    """Return features and targets to train and to test with, of mean 0 and deviation 1."""
    features, targets = load_diabetes(return_X_y=True)
    split = train_test_split(features, targets[:, None], test_size=0.25, random_state=0)
    train_x, test_x, train_y, test_y = (torch.tensor(part, dtype=torch.float32) for part in split)
    return (
        (train_x - train_x.mean(0)) / train_x.std(0),
        (train_y - train_y.mean()) / train_y.std(),
        (test_x - train_x.mean(0)) / train_x.std(0),
        (test_y - train_y.mean()) / train_y.std(),
    )


def train(config):
    torch.manual_seed(0)
    features, targets, _, _ = load_splits()
    batches = DataLoader(TensorDataset(features, targets), batch_size=BATCH_SIZE, shuffle=True)
    batches = prepare_data_loader(batches)
    network = nn.Linear(features.shape[1], 1)
    model = prepare_model(network)  # trains the network's own parameters
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)

    first_epoch = 0
    checkpoint = minitrain.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"))
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first_epoch = state["epochs_done"]
    print(f"training from epoch {first_epoch + 1} to {config['last_epoch']}")

    for epoch in range(first_epoch, config["last_epoch"]):
        batches.sampler.set_epoch(epoch)
        for feature_batch, target_batch in batches:
            loss = nn.functional.mse_loss(model(feature_batch), target_batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()

        metrics = {"epoch": epoch + 1, "loss": loss}
        state = {
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "epochs_done": epoch + 1,
        }
        if epoch + 1 == config["last_epoch"]:
            report_with_checkpoint(metrics, state)
        else:
            minitrain.report(metrics)


def report_with_checkpoint(metrics, state):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if minitrain.get_context().get_world_rank() == 0:
            torch.save(state, Path(folder, "state.pt"))
            checkpoint = Checkpoint.from_directory(folder)
        minitrain.report(metrics, checkpoint=checkpoint)


def fit_until(epoch, checkpoint=None):
    trainer = TorchTrainer(
        train,
        train_loop_config={"last_epoch": epoch},
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
        resume_from_checkpoint=checkpoint,
    )
    return trainer.fit()


def main():
    first_half = fit_until(EPOCHS // 2)
    result = fit_until(EPOCHS, first_half.checkpoint)

    features, targets, test_features, test_targets = load_splits()
    network = nn.Linear(features.shape[1], 1)
    with result.checkpoint.as_directory() as folder:
        network.load_state_dict(torch.load(Path(folder, "state.pt"))["model"])
    with torch.no_grad():
        ours = network(test_features)
    exact = LinearRegression().fit(features, targets).predict(test_features)

    print(f"{'on patients held out':>30} {'MSE':>8} {'R2':>8}")
    for name, prediction in [("minitrain", ours), ("scikit-learn, exact", exact)]:
        error = mean_squared_error(test_targets, prediction)
        print(f"{name:>30} {error:8.4f} {r2_score(test_targets, prediction):8.4f}")
    print(f"checkpoint: {result.checkpoint.path}")
    if abs(r2_score(test_targets, ours) - r2_score(test_targets, exact)) > TOLERATED_DIFFERENCE:
        sys.exit("This is not the solution.")


if __name__ == "__main__":
    main()
