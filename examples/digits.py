"""Train a classifier of handwritten digits on four workers, and look at what a run leaves behind.

    python examples/digits.py

1,797 images of 8 x 8 pixels, which come with scikit-learn, are split into images to train with,
to choose the best epoch with (validation), and to judge that epoch with (test). Every worker is a
process of its own; DistributedDataParallel averages their gradients. After each epoch all workers
evaluate together, and rank 0 adds a checkpoint to the report. The two best checkpoints are kept;
at the end the best one is loaded back, here in the driver, and must give the same test accuracy
as the workers found. The exit code is 0 if that is at least 96 %.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minitrain
from minitrain import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig
from minitrain.torch import TorchTrainer, get_device, prepare_data_loader, prepare_model

NUM_WORKERS = 4
EPOCHS = 12
BATCH_SIZE = 16  # of one worker
LEARNING_RATE = 5e-3
WANTED_ACCURACY = 0.96


def load_splits():
    """Return images and labels to train, to validate and to test with, each time the same ones."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    rest, test = train_test_split(
        range(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    train, validation = train_test_split(rest, test_size=240, stratify=labels[rest], random_state=0)
    return [(images[part], labels[part]) for part in (train, validation, test)]


def make_network():
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


@torch.no_grad()
def count_correct(network, images, labels):
    network.eval()
    return (network(images).argmax(dim=1) == labels).sum()


def sum_over_ranks(number):
    total = torch.tensor(float(number), device=get_device())
    dist.all_reduce(total)
    return total.item()


def accuracy(network, images, labels):
    """Judge the network on all ranks together: every image is counted once, by one of them."""
    context = minitrain.get_context()
    mine = slice(context.get_world_rank(), None, context.get_world_size())
    correct = count_correct(network, images[mine].to(get_device()), labels[mine].to(get_device()))
    return sum_over_ranks(correct) / len(labels)


def train(config):
    torch.manual_seed(0)
    (images, labels), validation, test = load_splits()
    batches = DataLoader(TensorDataset(images, labels), batch_size=BATCH_SIZE, shuffle=True)
    batches = prepare_data_loader(batches)
    network = make_network()
    model = prepare_model(network)  # DistributedDataParallel around the network
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["learning_rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["epochs"])

    for epoch in range(config["epochs"]):
        batches.sampler.set_epoch(epoch)  # another order in every epoch
        model.train()
        loss_sum = 0.0
        for batch_images, batch_labels in batches:
            loss = nn.functional.cross_entropy(model(batch_images), batch_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
        schedule.step()

        metrics = {
            "epoch": epoch + 1,
            "loss": sum_over_ranks(loss_sum) / sum_over_ranks(len(batches)),
            "accuracy": accuracy(network, *validation),
            "test_accuracy": accuracy(network, *test),
        }
        report_with_checkpoint(metrics, network)
        print(  # only what rank 0 prints reaches the console; logs/ has it from all of them
            f"epoch {epoch + 1:2}: loss {metrics['loss']:.4f}, "
            f"validation accuracy {metrics['accuracy']:.1%}"
        )


def report_with_checkpoint(metrics, network):
    """Report on every rank; one file from rank 0 is the whole checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if minitrain.get_context().get_world_rank() == 0:
            torch.save(network.state_dict(), Path(folder, "model.pt"))
            checkpoint = Checkpoint.from_directory(folder)
        minitrain.report(metrics, checkpoint=checkpoint)


def main():
    start = time.perf_counter()
    trainer = TorchTrainer(
        train,
        train_loop_config={"epochs": EPOCHS, "learning_rate": LEARNING_RATE},
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
        run_config=RunConfig(
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="accuracy")
        ),
    )
    result = trainer.fit()
    seconds = time.perf_counter() - start

    best, metrics = result.best_checkpoints[-1]
    network = make_network()
    with best.as_directory() as folder:
        network.load_state_dict(torch.load(Path(folder, "model.pt")))
    _, _, (images, labels) = load_splits()
    test_accuracy = count_correct(network, images, labels).item() / len(labels)

    print(f"""
Trained {EPOCHS} epochs on {NUM_WORKERS} workers in {seconds:.1f} s; the best was epoch \
{metrics["epoch"]}, by {metrics["accuracy"]:.1%} of the validation images.
  test accuracy, found by the workers:     {metrics["test_accuracy"]:.2%}
  test accuracy, checkpoint loaded back:   {test_accuracy:.2%}

Where to look:
  every report     {result.path}/result.json
  as a table       {result.path}/progress.csv
  workers' output  {result.path}/logs/
  best checkpoint  {best.path}
  curves           tensorboard --logdir {result.path}""")
    if test_accuracy != metrics["test_accuracy"]:
        sys.exit("The checkpoint does not give the accuracy that was reported with it.")
    if test_accuracy < WANTED_ACCURACY:
        sys.exit(f"The test accuracy is below {WANTED_ACCURACY:.0%}.")


if __name__ == "__main__":
    main()
