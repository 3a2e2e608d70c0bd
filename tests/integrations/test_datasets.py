"""Datasets in training: divided, counted before it begins, and gone on with after any end."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest

import minitrain
from minitrain import Checkpoint, DataConfig, RunConfig, ScalingConfig, data
from minitrain._driver import agents, run
from minitrain.exceptions import ConfigurationError, DataError, PreemptionError, WorkerGroupError
from minitrain.trainer import BaseTrainer, DataParallelTrainer
from tests.integrations import reading
from tests.integrations.reading import ROWS, Diary, attempts, check, dataset, fit

SCRIPT = Path(reading.__file__).read_text()
LONG = pytest.mark.campaign


def positions(folder: Path) -> dict:
    """Return what the newest checkpoint says of datasets."""
    (*_, newest) = sorted((folder / "run").glob("checkpoint_*"))
    return json.loads((newest / ".datasets.json").read_text())


# ------------------------------------------------------------------ divided
def test_every_rank_gets_its_part_and_each_row_comes_once(tmp_path):
    fit(tmp_path, 3)
    check(tmp_path)
    by_rank = [path.read_text().count("\n") for path in tmp_path.glob("read_0_*")]
    assert len(by_rank) == 3
    assert len(set(by_rank)) == 1, "all have as many batches, and so as many reports"


def test_what_is_not_divided_comes_whole_to_each():
    def train():
        train, val = map(minitrain.get_dataset_shard, ("train", "val"))
        assert train is minitrain.get_dataset_shard("train")
        assert minitrain.get_dataset_shard("numbers") == [1, 2]
        with pytest.raises(KeyError, match=r"there is no dataset 'tets'.*'val'"):
            minitrain.get_dataset_shard("tets")
        return [
            len(list(one.iter_rows())) for one in (train, val, minitrain.get_dataset_shard("made"))
        ]

    result = DataParallelTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2),
        datasets={
            "train": data.range(11),
            "val": data.range(4),
            "made": lambda: data.range(8),
            "numbers": [1, 2],
        },
        dataset_config=DataConfig(datasets_to_split=["train", "made"]),
    ).fit()
    assert result.return_value == [5, 4, 4]


def test_a_configuration_of_the_user_s_may_divide_otherwise():
    class Reversed(DataConfig):
        def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):
            parts = datasets["train"].streaming_split(world_size, equal=True)
            return [{"train": part} for part in reversed(parts)]

    def train():
        rows = [row["id"] for row in minitrain.get_dataset_shard("train").iter_rows()]
        return minitrain.get_context().get_world_rank(), rows

    def fit(config):
        return DataParallelTrainer(
            train,
            scaling_config=ScalingConfig(num_workers=2),
            datasets={"train": data.range(6)},
            dataset_config=config,
        ).fit()

    first, last = fit(None).return_value[1], fit(Reversed()).return_value[1]
    assert sorted(first + last) == list(range(6))

    class Wrong(DataConfig):
        def configure(self, datasets, world_size, **kwargs):
            return datasets

    with pytest.raises(WorkerGroupError, match=r"Wrong.configure\(\) returned.*list of 2 dicts"):
        fit(Wrong())


def test_an_iterator_knows_the_worker_it_is_in():
    def train():
        from minitrain.torch import get_device

        shard = minitrain.get_dataset_shard()
        return shard._device() == get_device(), shard._sharers

    scaling = ScalingConfig(num_workers=2)
    trainer = DataParallelTrainer(train, scaling_config=scaling, datasets={"a": data.range(2)})
    assert trainer.fit().return_value == (True, 2)


class Loop(BaseTrainer):
    def training_loop(self):
        rows = [row["id"] for row in minitrain.get_dataset_shard("train").iter_rows()]
        minitrain.report({"rows": rows})


def test_a_trainer_of_the_user_s_has_datasets_too():
    assert Loop(datasets={"train": data.range(3)}).fit().metrics["rows"] == [0, 1, 2]


def test_the_driver_s_settings_hold_in_workers(monkeypatch):
    monkeypatch.setattr(data.DataContext.get_current(), "target_table_bytes", 12_345)

    def train():
        return data.DataContext.get_current().target_table_bytes

    result = DataParallelTrainer(train, datasets={"train": data.range(1)}).fit()
    assert result.return_value == 12_345


# ------------------------------------------------------------------ before it begins
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_wrong_is_said_before_anything_is_begun(num_workers, tmp_path):
    def fit(datasets, config=None):
        DataParallelTrainer(
            lambda: None,
            scaling_config=ScalingConfig(num_workers=num_workers),
            run_config=RunConfig(storage_path=str(tmp_path / "runs")),
            datasets=datasets,
            dataset_config=config,
        ).fit()

    with pytest.raises(ConfigurationError, match=r"no dataset 'tarin': .* given \['train'\]"):
        fit({"train": [1]}, DataConfig(datasets_to_split=["tarin"]))
    with pytest.raises(DataError, match="missing") as caught:
        fit({"train": data.read_parquet(str(tmp_path / "missing"))})
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(DataError, match=r"division|modulo"):
        fit({"train": data.range(10).map(lambda row: {"id": row["id"] // 0})})
    assert not (tmp_path / "runs").exists()


def test_a_dataset_is_looked_at_once_whatever_happens_later(tmp_path):
    calls = tmp_path / "calls"

    def keep(row):
        with calls.open("a") as log:
            log.write(f"{os.getpid()}\n")
        return True

    datasets = {"train": data.range(ROWS).filter(keep)}
    fit(tmp_path, datasets=datasets, failures=1, victim=0, at_report=1, kills="worker")
    in_driver = calls.read_text().split().count(str(os.getpid()))
    assert ROWS <= in_driver <= 2 * ROWS, "counted once, tried on the first rows"


# ------------------------------------------------------------------ gone on with
@pytest.mark.parametrize(
    ("at_report", "mode", "all_save"),
    [
        (2, "SYNC", False),
        pytest.param(7, "SYNC", True, marks=LONG),
        pytest.param(4, "ASYNC", False, marks=LONG),
        (7, "ASYNC", True),
        pytest.param(2, "NO_UPLOAD", False, marks=LONG),
    ],
)
def test_after_a_worker_was_killed_each_row_still_comes_once(at_report, mode, all_save, tmp_path):
    """In the first epoch or the second; also where a rank has no checkpoint of its own."""
    harm = {"victim": 1, "at_report": at_report, "kills": "worker"}
    fit(tmp_path, failures=1, mode=mode, all_save=all_save, **harm)
    assert len(attempts(tmp_path)) == 2
    check(tmp_path)


def test_without_a_checkpoint_it_begins_anew(tmp_path):
    fit(tmp_path, failures=1, victim=1, at_report=0, kills="worker")
    assert attempts(tmp_path)[0][0]["first"] == 0
    check(tmp_path)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_run_is_restored_with_another_number_of_workers(num_workers, tmp_path):
    with pytest.raises(WorkerGroupError):
        fit(tmp_path, victim=0, at_report=3, kills="worker")
    fit(tmp_path, num_workers)
    assert len(attempts(tmp_path)) == 2
    check(tmp_path, dropped=2)


@LONG
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_driver_that_was_killed_is_restored(num_workers, start_script, tmp_path, all_gone):
    harm = {"victim": 0, "at_report": 3, "kills": "driver"}
    script = start_script(SCRIPT, json.dumps({"num_workers": num_workers, **harm}))
    everybody = script.descendants()
    assert script.wait() == -signal.SIGKILL, script.output
    all_gone(everybody)
    again = start_script(SCRIPT, json.dumps({"num_workers": num_workers}))
    assert again.wait() == 0, again.output
    assert len(attempts(tmp_path)) == 2
    check(tmp_path)


@LONG
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_preempted_run_goes_on(num_workers, start_script, tmp_path):
    options = json.dumps({"num_workers": num_workers, "listens": True, "epochs": 400})
    script = start_script(SCRIPT, options)
    script.wait_for("reading")
    script.process.send_signal(signal.SIGTERM)
    assert script.wait() == PreemptionError.EXIT_STATUS, script.output
    again = start_script(SCRIPT, options)
    again.wait_for("reading")
    again.process.send_signal(signal.SIGTERM)
    assert again.wait() == PreemptionError.EXIT_STATUS, again.output
    assert len(attempts(tmp_path)) == 2
    position = positions(tmp_path)["train"]
    rows = reading.counted(tmp_path)
    assert max(rows.values()) <= position["epoch"] + 1, "a row came twice in an epoch"


@LONG
def test_with_fewer_workers_after_a_failure_each_row_still_comes_once(
    start_script, library, tmp_path
):
    gpus = tmp_path / "gpus"
    gpus.write_text("4")
    env = {"LD_LIBRARY_PATH": str(library), "FAKE_GPUS_FILE": str(gpus)}
    harm = {"victim": 1, "at_report": 1, "kills": "worker", "gpus": 2, "failures": 1}
    options = {"num_workers": [2, 4], **harm}
    script = start_script(SCRIPT, json.dumps(options), env=env)
    assert script.wait() == 0, script.output
    assert len(list(tmp_path.glob("read_0_*"))) == 4
    assert len(list(tmp_path.glob("read_1_*"))) == 2
    check(tmp_path, dropped=3)


def test_workers_that_reach_the_storage_through_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRAIN_COLLECT", "1")
    fit(tmp_path, failures=1, victim=1, at_report=2, kills="worker")
    check(tmp_path)


@LONG
@pytest.mark.parametrize("shuffled", [False, True])
def test_files_of_an_object_store(shuffled, storage_server, request, tmp_path):
    name = re.sub(r"\W", "-", request.node.name)
    rows = data.range(ROWS).repartition(7)
    rows.write_parquet(storage_server.path(name), filesystem=storage_server.filesystem())
    dataset = data.read_parquet(storage_server.uri(name), shuffle="files")
    dataset = dataset.random_shuffle(seed=1) if shuffled else dataset
    fit(tmp_path, failures=1, victim=1, at_report=2, kills="worker", datasets={"train": dataset})
    assert len(attempts(tmp_path)) == 2
    check(tmp_path)


@LONG
def test_workers_of_other_hosts(tmp_path):
    """Also what lies in the memory of the driver's host: here they can map it, or make it again."""
    transport = f"env -i HOST={{host}} PYTHONPATH={Path(minitrain.__file__).parents[1]}"
    datasets = {"train": dataset().materialize()}
    harm = {"victim": 1, "at_report": 2, "kills": "worker"}
    fit(tmp_path, datasets=datasets, transport=transport, failures=1, **harm)
    agents.shutdown()
    assert len(attempts(tmp_path)) == 2
    check(tmp_path)


@pytest.mark.parametrize("is_materialized", [True, False])
def test_what_lies_in_memory_is_mapped_by_workers_and_not_sent(is_materialized, monkeypatch):
    sizes = []
    really_dump = run.dump

    def dump(what, value):
        data = really_dump(what, value)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(run, "dump", dump)
    rows = 1_000_000

    def train():
        return sum(batch["id"].sum() for batch in minitrain.get_dataset_shard().iter_batches())

    scaling = ScalingConfig(num_workers=2)
    given = data.from_pandas(pd.DataFrame({"id": range(rows)}))
    datasets = {"train": given.materialize() if is_materialized else given}
    result = DataParallelTrainer(train, scaling_config=scaling, datasets=datasets).fit()
    assert result.return_value == sum(range(rows // 2))
    assert max(sizes) < rows


def test_several_datasets_and_epochs_that_are_not_read_to_their_end(tmp_path):
    """Whoever breaks out of an epoch has done with it; what was not asked for loses nothing."""

    def train(config):
        diary = Diary(config)
        for step in range(diary.epoch, 4):
            shard, val = map(minitrain.get_dataset_shard, ("train", "val"))
            for batch in shard.iter_batches(batch_size=5):
                diary.rows += batch["id"].tolist()
                break
            seen = [row for one in val.iter_batches(batch_size=3) for row in one["id"].tolist()]
            assert len(seen) == 10
            if step == 2 and not (diary.folder / "happened").exists():
                minitrain.collective.barrier()
                (diary.folder / "happened").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            diary.save(step + 1)

    datasets = {"train": dataset(), "val": data.range(20), "other": data.range(5)}
    fit(tmp_path, train=train, datasets=datasets, failures=1)
    epochs = {name: one["epoch"] for name, one in positions(tmp_path).items()}
    assert epochs == {"train": 4, "val": 4, "other": 0}


def test_a_dataset_that_a_function_makes_is_gone_on_with(tmp_path):
    datasets = {"train": dataset, "unused": lambda: data.range(3)}
    fit(tmp_path, datasets=datasets, failures=1, victim=1, at_report=2, kills="worker")
    assert positions(tmp_path).keys() == {"train"}
    check(tmp_path)


def test_what_is_not_asked_for_after_a_restart_stays_where_it_was(tmp_path):
    def train(config):
        diary = Diary(config)
        if diary.number != 1:
            batches = iter(minitrain.get_dataset_shard("train").iter_batches(batch_size=4))
            diary.rows += next(batches)["id"].tolist()
        if diary.number == 2:
            diary.rows += [row for batch in batches for row in batch["id"].tolist()]
        diary.save(0)
        if diary.number < 3:
            minitrain.collective.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

    fit(tmp_path, train=train, failures=2, datasets={"train": dataset})
    assert [lines[0]["first"] for lines in attempts(tmp_path)] == [0, 1, 2]
    check(tmp_path, epochs=1)


def test_a_dataset_that_has_changed_is_read_anew_and_says_so(tmp_path, capfd):
    with pytest.raises(WorkerGroupError):
        fit(tmp_path, victim=0, at_report=3, kills="worker")
    capfd.readouterr()
    fit(tmp_path, datasets={"train": data.range(20)})
    log = (tmp_path / "run/logs/attempt_1/rank_0.log").read_text()
    assert log.count("the dataset 'train' is read from the beginning of an epoch") == 1
    assert not (tmp_path / "run/logs/attempt_1/rank_1.log").read_text()
    rows = [row for line in attempts(tmp_path)[1] for row in line["rows"]]
    assert set(rows) == set(range(20))


def test_a_run_that_resumes_from_another_s_checkpoint_reads_from_the_beginning(tmp_path):
    first = fit(tmp_path, victim=0, at_report=99, kills="worker")

    def train():
        shard = minitrain.get_dataset_shard("train")
        return minitrain.get_checkpoint() is not None, shard.position()["epoch"]

    result = DataParallelTrainer(
        train, datasets={"train": dataset()}, resume_from_checkpoint=first.checkpoint
    ).fit()
    assert result.return_value == (True, 0)


def test_positions_are_part_of_a_checkpoint_and_not_of_a_copy(tmp_path):
    result = fit(tmp_path)
    manifest = json.loads(Path(result.checkpoint.path, ".manifest.json").read_text())
    assert ".datasets.json" in manifest["files"]

    def train(config):
        minitrain.report({}, result.checkpoint)
        minitrain.report({}, Checkpoint.from_directory(config["folder"]))

    (tmp_path / "mine").mkdir()
    again = DataParallelTrainer(train, train_loop_config={"folder": str(tmp_path / "mine")}).fit()
    assert [list(Path(one.path).glob(".datasets.json")) for one, _ in again.best_checkpoints] == [
        [],
        [],
    ]
