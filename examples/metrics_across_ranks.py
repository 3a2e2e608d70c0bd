"""Metrics that are right across ranks: torchmetrics adds up what every rank has seen.

    python examples/metrics_across_ranks.py

Three workers learn to tell malignant tumours from benign ones (569 patients, with scikit-learn) and
each evaluates its part of the test patients. Accuracies of equal parts may be averaged, but the
mean of F1 scores or of areas under the curve is not that of all patients together. torchmetrics
therefore gathers counts and scores over torch.distributed, in `compute()`; every rank must call
it, and gets the same value. Here they are compared with what scikit-learn says in one process
about the same model and all patients.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryF1Score

import minitrain
from minitrain import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig
from minitrain.torch import TorchTrainer, get_device, prepare_data_loader, prepare_model

NUM_WORKERS = 3
EPOCHS = 15
BATCH_SIZE = 32  # of one worker
LEARNING_RATE = 0.01
METRICS = {"accuracy": BinaryAccuracy, "f1": BinaryF1Score, "auroc": BinaryAUROC}


def load_splits():
    """Return features and labels to train and to test with; 1 is benign."""
    features, labels = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = (
        torch.tensor(part, dtype=torch.float32)
        for part in train_test_split(features, labels, test_size=0.4, random_state=0)
    )
    mean, deviation = train_x.mean(0), train_x.std(0)
    return (train_x - mean) / deviation, train_y, (test_x - mean) / deviation, test_y


def make_network(features):
    return nn.Sequential(nn.Linear(features.shape[1], 1), nn.Flatten(0))


def train():
    torch.manual_seed(0)
    features, labels, test_features, test_labels = load_splits()
    batches = DataLoader(TensorDataset(features, labels), batch_size=BATCH_SIZE, shuffle=True)
    batches = prepare_data_loader(batches)
    network = make_network(features)
    model = prepare_model(network)  # trains the network's own parameters
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    # prepare_data_loader() would give all ranks equally many patients, some of them twice: right
    # for gradients, wrong for metrics. These parts need not be equal.
    context = minitrain.get_context()
    mine = slice(context.get_world_rank(), None, context.get_world_size())
    my_features, my_labels = (
        test_features[mine].to(get_device()),
        test_labels[mine].to(get_device()),
    )
    metrics = MetricCollection({name: metric() for name, metric in METRICS.items()})
    metrics = metrics.to(get_device())

    for epoch in range(EPOCHS):
        batches.sampler.set_epoch(epoch)
        for feature_batch, label_batch in batches:
            loss = nn.functional.binary_cross_entropy_with_logits(model(feature_batch), label_batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            scores = network(my_features).sigmoid()
        of_this_rank = metrics(scores, my_labels.int())  # and keeps what compute() needs
        of_all_ranks = metrics.compute()
        metrics.reset()
        report = {**of_all_ranks, "mean_of_ranks": mean_of_ranks(of_this_rank)}
        report_with_checkpoint(report, network)


def mean_of_ranks(values):
    """Return what one might do without torchmetrics, to see that it is something else."""
    total = torch.stack(list(values.values()))
    dist.all_reduce(total)
    return dict(zip(values, (total / dist.get_world_size()).tolist(), strict=True))


def report_with_checkpoint(metrics, network):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if dist.get_rank() == 0:
            torch.save(network.state_dict(), Path(folder, "model.pt"))
            checkpoint = Checkpoint.from_directory(folder)
        minitrain.report(metrics, checkpoint=checkpoint)


def in_one_process(checkpoint):
    """Return the metrics of a checkpoint's model on all test patients, by scikit-learn."""
    _, _, features, labels = load_splits()
    network = make_network(features)
    with checkpoint.as_directory() as folder:
        network.load_state_dict(torch.load(Path(folder, "model.pt")))
    with torch.no_grad():
        scores = network(features).sigmoid()
    return {
        "accuracy": accuracy_score(labels, scores > 0.5),
        "f1": f1_score(labels, scores > 0.5),
        "auroc": roc_auc_score(labels, scores),
    }


def main():
    trainer = TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
        run_config=RunConfig(checkpoint_config=CheckpointConfig(num_to_keep=1)),
    )
    result = trainer.fit()
    wanted = in_one_process(result.checkpoint)

    print(f"{'':>10} {'torchmetrics':>13} {'one process':>12} {'mean of ranks':>14}")
    for name, value in wanted.items():
        mean = result.metrics["mean_of_ranks"][name]
        print(f"{name:>10} {result.metrics[name]:13.6f} {value:12.6f} {mean:14.6f}")
    if any(abs(result.metrics[name] - value) > 1e-6 for name, value in wanted.items()):
        sys.exit("torchmetrics and one process do not agree.")
    print(f"torchmetrics and one process agree; the reports are in {result.path}/result.json")


if __name__ == "__main__":
    main()
