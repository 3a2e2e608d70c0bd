"""A training that reads datasets and writes down what; also a script, to be killed.

Nothing in its train function has to do with positions.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import minitrain
from minitrain import (
    Checkpoint,
    CheckpointUploadMode,
    FailureConfig,
    LaunchConfig,
    Result,
    RunConfig,
    ScalingConfig,
    data,
)
from minitrain.trainer import DataParallelTrainer

ROWS = 103
BATCHES = {"batch_size": 4, "local_shuffle_buffer_size": 10, "local_shuffle_seed": 5}


class Diary:
    """What a rank has read, written down before it reports, with the number of the report.

    Rows count up to the report that the next attempt starts from.
    """

    def __init__(self, config: dict) -> None:
        self.rank = minitrain.get_context().get_world_rank()
        self.folder = Path(config["folder"])
        self.mode = CheckpointUploadMode(config.get("mode", "SYNC"))
        self.all_save = config.get("all_save", False)
        self.number, self.epoch = 0, 0
        start = minitrain.get_checkpoint()
        if start is not None:
            with start.as_directory() as path:
                self.number, self.epoch = json.loads(Path(path, "state").read_text())
        self.first = self.number
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        if attempt is None:  # in the driver's own process
            attempt = len(list(self.folder.glob(f"read_*_{self.rank}")))
        self.path = self.folder / f"read_{attempt}_{self.rank}"
        self.rows: list[int] = []

    def save(self, epoch: int) -> None:
        line = {"rows": self.rows, "report": self.number, "first": self.first}
        with self.path.open("a") as log:
            log.write(json.dumps(line) + "\n")
        self.rows = []
        self.number += 1
        has_one = self.rank == 0 or self.all_save
        with self.folder_to_save() as path:
            if has_one:
                Path(path).mkdir(exist_ok=True)
                Path(path, "state").write_text(json.dumps([self.number, epoch]))
            minitrain.report(
                {"report": self.number, "epoch": epoch},
                Checkpoint(path) if has_one else None,
                checkpoint_upload_mode=self.mode,
            )

    def folder_to_save(self) -> AbstractContextManager[str]:
        if self.mode is CheckpointUploadMode.SYNC:
            return tempfile.TemporaryDirectory()
        if self.mode is CheckpointUploadMode.ASYNC:
            return nullcontext(tempfile.mkdtemp(dir=self.folder))
        build = minitrain.get_context().get_storage().build_checkpoint_path_from_name
        return nullcontext(build(f"mine_{self.path.name}_{self.number}"))


def train(config: dict) -> None:
    """Read epochs in batches, and save now and then, until something happens."""
    diary = Diary(config)
    shard = minitrain.get_dataset_shard("train")
    for epoch in range(diary.epoch, config["epochs"]):
        for number, batch in enumerate(shard.iter_batches(**BATCHES)):
            diary.rows += batch["id"].tolist()
            if number % 3 == 2:
                diary.save(epoch)
            come_to_harm(diary, config)
        diary.save(epoch + 1)


def come_to_harm(diary: Diary, config: dict) -> None:
    """Be killed, if that is to be now, with rows read that are in no checkpoint."""
    mark = diary.folder / "happened"
    is_now = config.get("victim") == diary.rank and diary.number == config["at_report"]
    if is_now and not mark.exists():
        mark.touch()
        if "gpus" in config:  # there are fewer from now on
            Path(os.environ["FAKE_GPUS_FILE"]).write_text(str(config["gpus"]))
        os.kill(os.getpid() if config["kills"] == "worker" else config["driver"], signal.SIGKILL)
        signal.pause()


def train_and_listen(config: dict) -> None:
    """Read epochs, and save only when the machine is about to be taken away."""
    diary = Diary(config)
    for epoch in range(diary.epoch, config["epochs"]):
        for batch in minitrain.get_dataset_shard("train").iter_batches(**BATCHES):
            diary.rows += batch["id"].tolist()
            print("reading", flush=True)
            if minitrain.get_preemption_info() is not None:
                diary.save(epoch)
                return


def dataset():
    return data.range(ROWS).random_shuffle(seed=3)


def fit(
    folder, num_workers=2, *, failures=0, train=train, datasets=None, transport=None, **config
) -> Result:
    """Train, or go on with the run that is there."""
    datasets = datasets or {"train": dataset()}
    hosts = None if transport is None else ["one:1", "two:1"]
    scaling = ScalingConfig(num_workers=num_workers, use_gpu="gpus" in config, hosts=hosts)
    if not config.get("launched") and DataParallelTrainer.can_restore(folder / "run"):
        trainer = DataParallelTrainer.restore(
            folder / "run", datasets=datasets, scaling_config=scaling
        )
        return trainer.fit()
    return DataParallelTrainer(
        train,
        train_loop_config={"folder": str(folder), "epochs": 2, "driver": os.getpid(), **config},
        scaling_config=scaling,
        run_config=RunConfig(
            name="run",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=failures, preemption_grace_s=20),
            launch_config=None if transport is None else LaunchConfig(transport=transport),
        ),
        datasets=datasets,
    ).fit()


def attempts(folder: Path) -> list[list[dict]]:
    """Return what was written down, by attempt."""
    found: dict[int, list[dict]] = {}
    for path in folder.glob("read_*"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found.setdefault(int(path.name.split("_")[1]), []).extend(lines)
    return [found[number] for number in sorted(found)]


def counted(folder: Path) -> Counter[int]:
    """Return how often each row was read that counts, over all attempts."""
    in_order = attempts(folder)
    ends = [lines[0]["first"] for lines in in_order[1:]]
    rows: Counter[int] = Counter()
    for lines, end in zip(in_order, [*ends, float("inf")], strict=True):
        for line in lines:
            rows.update(line["rows"] if line["report"] < end else ())
    return rows


def check(folder: Path, *, epochs: int = 2, dropped: int = 1) -> None:
    """Every row came once in each epoch, but for some of the last ones, fewer than ranks."""
    rows = counted(folder)
    assert set(rows) <= set(range(ROWS))
    assert max(rows.values()) <= epochs, "a row came twice in an epoch"
    assert epochs * (ROWS - dropped) <= sum(rows.values()) <= epochs * ROWS


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    if isinstance(options.get("num_workers"), list):
        options["num_workers"] = tuple(options["num_workers"])
    if options.pop("listens", False):
        options["train"] = train_and_listen
    fit(Path(__file__).parent, **options)
