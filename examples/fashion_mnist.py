"""Train on Fashion-MNIST, 60,000 pictures of clothes, with a small CNN or a ResNet-18.

    sudo apt-get install dataset-fashion-mnist     # Debian and Ubuntu; or --data FOLDER
    python examples/fashion_mnist.py
    python examples/fashion_mnist.py --model resnet18 --limit 2000 --epochs 2
    python examples/fashion_mnist.py --model resnet18 --epochs 10 --workers 8 --gpu

It shows what a training script of usual size looks like: arguments, batches prepared for each
rank, a learning rate that follows the steps, and an evaluation on all ranks that is right for
batch normalization too. By default two workers on the CPU see every picture once, in well under a
minute.
"""

import argparse
import gzip
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minitrain
from minitrain import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig
from minitrain.torch import TorchTrainer, get_device, prepare_data_loader, prepare_model

DATA = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
BATCH_SIZE = 64  # of one worker
LEARNING_RATE = {"cnn": 4e-3, "resnet18": 2e-3}  # at its highest
NUM_CLASSES = 10


# ---------------------------------------------------------------- data
def read_idx(path):
    """Return the array in an idx file: two zeros, the type, the number of axes, sizes, bytes."""
    with gzip.open(path) as file:
        _, kind, num_axes = struct.unpack(">HBB", file.read(4))
        if kind != 8:
            raise ValueError(f"{path} holds numbers of type {kind}, not unsigned bytes (8)")
        shape = struct.unpack(f">{num_axes}I", file.read(4 * num_axes))
        return np.frombuffer(bytearray(file.read()), dtype=np.uint8).reshape(shape)


def load(folder, split):
    """Return images (number, 1, 28, 28) of bytes and labels; a quarter of the size of floats."""
    images, labels = (torch.from_numpy(read_idx(Path(folder, name))) for name in FILES[split])
    return images.unsqueeze(1), labels.long()


# ---------------------------------------------------------------- models
def make_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, NUM_CLASSES),
    )


class Block(nn.Module):
    """Two convolutions, and a shortcut around them."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def make_resnet18():
    """ResNet-18 as published, for pictures with one channel."""
    layers = [
        nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    inputs = 64
    for outputs, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, NUM_CLASSES)]
    return nn.Sequential(*layers)


MODELS = {"cnn": make_cnn, "resnet18": make_resnet18}


def as_input(images):
    return (images.float() - 73) / 90  # mean and standard deviation of the training images


# ---------------------------------------------------------------- training
def train(config):
    torch.manual_seed(0)
    images, labels = load(config["data"], "train")
    dataset = TensorDataset(images[: config["limit"]], labels[: config["limit"]])
    batches = prepare_data_loader(DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True))
    test_images, test_labels = load(config["data"], "test")

    network = MODELS[config["model"]]()
    model = prepare_model(network)  # shares its parameters with the network
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE[config["model"]], total_steps=config["epochs"] * len(batches)
    )
    for epoch in range(config["epochs"]):
        if minitrain.get_context().get_world_size() > 1:
            batches.sampler.set_epoch(epoch)
        start = time.perf_counter()
        loss = train_epoch(model, batches, optimizer, schedule)
        seconds = time.perf_counter() - start
        accuracy = evaluate(network, test_images, test_labels)
        metrics = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy}
        report(metrics, network)
        print(
            f"epoch {epoch + 1}: loss {loss:.3f}, test accuracy {accuracy:.1%}, "
            f"{len(dataset) / seconds:,.0f} images/s"
        )


def train_epoch(model, batches, optimizer, schedule):
    model.train()
    loss_sum = torch.zeros((), device=get_device())
    for images, labels in batches:
        loss = nn.functional.cross_entropy(model(as_input(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += loss.detach()
    dist.all_reduce(loss_sum)
    return loss_sum.item() / len(batches) / dist.get_world_size()


@torch.no_grad()
def evaluate(network, images, labels):
    """Return the accuracy on all images, each of which one rank looks at."""
    # Batch normalization counts on every rank for itself; all are to judge with rank 0's figures,
    # which are the ones in the checkpoint.
    for buffer in network.buffers():
        dist.broadcast(buffer, src=0)
    network.eval()
    correct = torch.zeros((), device=get_device())
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    for image_batch, label_batch in DataLoader(TensorDataset(images[mine], labels[mine]), 500):
        guesses = network(as_input(image_batch.to(get_device()))).argmax(dim=1)
        correct += (guesses == label_batch.to(get_device())).sum()
    dist.all_reduce(correct)
    return correct.item() / len(labels)


def report(metrics, network):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if dist.get_rank() == 0:
            torch.save(network.state_dict(), Path(folder, "model.pt"))
            checkpoint = Checkpoint.from_directory(folder)
        minitrain.report(metrics, checkpoint=checkpoint)


# ---------------------------------------------------------------- command line
def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=MODELS, default="cnn")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four idx .gz files")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--epochs", type=positive, default=1)
    parser.add_argument("--limit", type=positive, help="train with this many images only")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    missing = [
        name for names in FILES.values() for name in names if not (arguments.data / name).is_file()
    ]
    if missing:
        print(
            f"{arguments.data} has no {missing[0]}: run `apt-get install dataset-fashion-mnist` "
            "or pass --data FOLDER with the files of Fashion-MNIST.",
            file=sys.stderr,
        )
        sys.exit(2)
    start = time.perf_counter()
    trainer = TorchTrainer(
        train,
        train_loop_config={
            "model": arguments.model,
            "data": str(arguments.data.resolve()),  # workers have a working directory of their own
            "epochs": arguments.epochs,
            "limit": arguments.limit,
        },
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=RunConfig(checkpoint_config=CheckpointConfig(num_to_keep=1)),
    )
    result = trainer.fit()
    print(
        f"\n{arguments.model}: test accuracy {result.metrics['accuracy']:.2%} "
        f"after {time.perf_counter() - start:.1f} s\n"
        f"checkpoint: {result.checkpoint.path}"
    )


if __name__ == "__main__":
    main()
