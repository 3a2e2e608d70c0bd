"""Train on a table in Parquet files, and score raw rows with nothing but the checkpoint.

    python examples/tabular.py

The 569 tumours of the breast cancer data set, which comes with scikit-learn, are written to four
Parquet files and read back as a dataset. A quarter of it is held out. The preprocessor learns the
training rows' means and deviations in one pass; two workers read their halves of what it makes of
them, in another order in every epoch. It is also in the metadata of the checkpoint: at the end the
model and the preprocessor of the best checkpoint are loaded back, here in the driver, and given the
held out rows as they are in the files. The exit code is 0 if they are right about 95 % of them.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import minitrain
import minitrain.data
from minitrain import Checkpoint, CheckpointConfig, DataConfig, RunConfig, ScalingConfig
from minitrain.data.preprocessors import Chain, Concatenator, Preprocessor, StandardScaler
from minitrain.torch import TorchTrainer, prepare_model

NUM_WORKERS = 2
EPOCHS = 10
BATCH_SIZE = 16  # of one worker
WANTED_ACCURACY = 0.95


def write_files(folder):
    """Write the table to four files, as somebody else would have."""
    frame = load_breast_cancer(as_frame=True).frame
    for number, part in enumerate(np.array_split(np.arange(len(frame)), 4)):
        frame.iloc[part].to_parquet(folder / f"tumours-{number}.parquet", index=False)


def make_network(num_features):
    return nn.Sequential(nn.Linear(num_features, 16), nn.ReLU(), nn.Linear(16, 1))


@torch.no_grad()
def count_correct(network, features, targets):
    return ((network(features).squeeze(1) > 0) == (targets > 0)).sum().item()


def train(config):
    torch.manual_seed(0)
    network = make_network(config["num_features"])
    model = prepare_model(network)  # shares its parameters with the network
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["learning_rate"])
    batches = minitrain.get_dataset_shard("train").iter_torch_batches(batch_size=BATCH_SIZE)
    held_out = minitrain.get_dataset_shard("held out").iter_torch_batches(batch_size=1000)

    for epoch in range(config["epochs"]):
        for batch in batches:  # each loop is an epoch, in another order
            guesses = model(batch["features"]).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(guesses, batch["target"].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        correct = rows = 0
        for batch in held_out:
            correct += count_correct(network, batch["features"], batch["target"])
            rows += len(batch["target"])
        report({"epoch": epoch + 1, "loss": loss.item(), "accuracy": correct / rows}, network)
        print(f"epoch {epoch + 1:2}: loss {loss.item():.4f}, accuracy {correct / rows:.1%}")


def report(metrics, network):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if minitrain.get_context().get_world_rank() == 0:
            torch.save(network.state_dict(), Path(folder, "model.pt"))
            checkpoint = Checkpoint.from_directory(folder)
        minitrain.report(metrics, checkpoint=checkpoint)


def score(checkpoint, raw):
    """Return the accuracy on raw rows, with what the checkpoint has and nothing else."""
    preprocessor = Preprocessor.deserialize(checkpoint.get_metadata()["preprocessor"])
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, "model.pt"))
    network = make_network(state["0.weight"].shape[1])
    network.load_state_dict(state)
    rows = preprocessor.transform_batch(raw)
    features, targets = torch.tensor(rows["features"]), torch.tensor(rows["target"])
    return count_correct(network, features, targets) / len(targets)


def main():
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        tumours = minitrain.data.read_parquet(folder)
        train_rows, held_out = tumours.train_test_split(0.25, shuffle=True, seed=0)

        columns = [name for name in tumours.columns() if name != "target"]
        preprocessor = Chain(
            StandardScaler(columns),
            Concatenator(columns, output_column_name="features", dtype=np.float32),
        ).fit(train_rows)

        trainer = TorchTrainer(
            train,
            train_loop_config={
                "num_features": len(columns),
                "epochs": EPOCHS,
                "learning_rate": 1e-2,
            },
            datasets={
                "train": preprocessor.transform(train_rows).random_shuffle(seed=0),
                "held out": preprocessor.transform(held_out),
            },
            # Every worker judges all of the held out rows.
            dataset_config=DataConfig(datasets_to_split=["train"]),
            metadata={"preprocessor": preprocessor.serialize()},
            scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
            run_config=RunConfig(
                checkpoint_config=CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute="accuracy"
                )
            ),
        )
        result = trainer.fit()

        best, metrics = result.best_checkpoints[-1]
        raw = held_out.take_batch(held_out.count())
        accuracy = score(best, raw)

    print(f"""
{len(raw["target"])} rows were held out; the best was epoch {metrics["epoch"]}.
  accuracy, found by the workers:             {metrics["accuracy"]:.2%}
  accuracy, raw rows and checkpoint alone:    {accuracy:.2%}
  checkpoint:                                 {best.path}""")
    if accuracy != metrics["accuracy"]:
        sys.exit("The checkpoint does not give the accuracy that was reported with it.")
    if accuracy < WANTED_ACCURACY:
        sys.exit(f"The accuracy is below {WANTED_ACCURACY:.0%}.")


if __name__ == "__main__":
    main()
