"""Datasets of a run: what is said of them before it begins, and where all ranks stand in them."""

from __future__ import annotations

import json
import logging

import pytest

from minitrain import DataConfig, data
from minitrain import _datasets as datasets_module
from minitrain._datasets import Datasets, Positions, Shards
from minitrain._driver.checkpoints import CheckpointKeeper
from minitrain._driver.clerk import Clerk
from minitrain._storage.disk import LocalDisk
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import RunRecord
from minitrain._storage.run_storage import RunStorage
from minitrain._wire.messages import Reported
from minitrain.context import TrainContext
from minitrain.exceptions import TransformError


def shards_of(datasets, rank, world_size, positions=None) -> Shards:
    context = TrainContext(
        _name="run",
        _trial_name="run",
        _run_id="id",
        _path="/run",
        _world_size=world_size,
        _rank=rank,
        _local_rank=rank,
        _local_world_size=world_size,
        _node_rank=0,
        _working_dir="/",
        _gpus=(),
        _metadata={},
        _resources={},
        _filesystem=None,
    )
    return Shards(datasets, context, positions or {})


def ids(iterator) -> list[int]:
    return [row["id"] for row in iterator.iter_rows()]


# ------------------------------------------------------------------ before it begins
def test_what_takes_long_is_said_and_what_does_not_is_not(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "minitrain")
    given = Datasets({"train": data.range(1_200), "numbers": [1]})
    monkeypatch.setattr(datasets_module, "_SLOW_S", float("inf"))
    given.resolved(shared=False)
    assert not caplog.messages
    monkeypatch.setattr(datasets_module, "_SLOW_S", -1.0)
    given.resolved(shared=False)
    (message,) = caplog.messages
    assert message.startswith("counted the rows of 'train': 1,200 in ")


class Mine(DataConfig):
    def configure(self, datasets, world_size, **kwargs):
        return super().configure(datasets, world_size, **kwargs)


@pytest.mark.parametrize(
    ("config", "num_workers", "said"),
    [
        (DataConfig(), 4, ["'train' has 10 rows: with 4 workers, the last 2 of each epoch come"]),
        (DataConfig(), 5, []),
        (DataConfig(datasets_to_split=["val"]), 4, []),
        (DataConfig(remainder="pad"), 4, []),
        (Mine(), 4, []),
    ],
)
def test_rows_that_nobody_gets_are_spoken_of(config, num_workers, said, caplog):
    caplog.set_level(logging.INFO, "minitrain")
    given = Datasets({"train": data.range(10), "val": data.range(20), "other": [1]}, config)
    given.resolved(shared=False).say_what_is_dropped(num_workers)
    assert [message[: len(said[0])] for message in caplog.messages] == said


def test_a_dataset_with_fewer_rows_than_workers_is_warned_of(caplog):
    given = Datasets({"train": data.range(10).filter(lambda row: row["id"] > 8)})
    given.resolved(shared=False).say_what_is_dropped(2)
    assert caplog.messages == ["'train' has 1 rows for 2 workers: nobody gets any"]


def test_a_function_that_cannot_be_pickled_is_named(tmp_path):
    (tmp_path / "labels").write_text("x")
    with (tmp_path / "labels").open("rb") as file:
        ds = data.range(10).map_batches(lambda batch: batch | {"n": batch["id"] + len(file.name)})
        for dataset in (ds, ds.resolved(), ds.random_shuffle().union(data.range(3))):
            with pytest.raises(TransformError, match=r"map_batches\(<lambda>\) cannot be sent"):
                Datasets({"train": dataset}).check_functions()


def test_with_padding_every_row_comes_and_some_come_twice():
    given = Datasets({"train": data.range(10)}, DataConfig(remainder="pad")).resolved(shared=False)
    parts = [ids(shards_of(given, rank, 4).get("train")) for rank in range(4)]
    assert [len(part) for part in parts] == [3] * 4
    assert {row for part in parts for row in part} == set(range(10))


class TrainAlone(DataConfig):
    def configure(self, datasets, world_size, **kwargs):
        parts = datasets["train"].streaming_split(world_size, equal=True)
        return [{"train": part} for part in reversed(parts)]


def test_what_a_function_makes_is_divided_plainly():
    given = Datasets({"train": data.range(4), "val": lambda: data.range(6)}, TrainAlone())
    shards = [shards_of(given.resolved(shared=False), rank, 2) for rank in range(2)]
    assert [ids(one.get("train")) for one in shards] == [[2, 3], [0, 1]]
    assert [ids(one.get("val")) for one in shards] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("returned", [None, {}, [], [None], [["train"]], ({},)])
def test_what_a_configuration_returns_is_checked(returned):
    class Wrong(DataConfig):
        def configure(self, datasets, world_size, **kwargs):
            return returned

    shards = shards_of(Datasets({"train": data.range(4)}, Wrong()), 0, 1)
    with pytest.raises(TypeError, match=r"Wrong.configure\(\) returned .*must be a list of 1 dict"):
        shards.get("train")


def test_a_dataset_under_two_names_is_prepared_once():
    seen = []

    def note(batch):
        seen.extend(batch["id"].tolist())
        return batch

    ds = data.range(10).map_batches(note)
    given = Datasets({"train": ds, "val": ds, "numbers": [1]}).resolved(shared=False).given
    assert given["train"] is given["val"]
    assert len(seen) == 20, "once to count, once for the columns"


# ------------------------------------------------------------------ where all ranks stand
def read_some(given, by_rank, positions=None):
    """Have each rank read some rows; return what each says then of where it is."""
    said = []
    for rank, rows in enumerate(by_rank):
        shards = shards_of(given, rank, len(by_rank), positions)
        if rows:
            batches = iter(shards.get("train").iter_batches(batch_size=rows))
            next(batches)
        said.append(shards.positions())
        if rows:
            batches.close()
    return said


def test_a_rank_that_has_not_asked_has_delivered_nothing():
    given = Datasets({"train": data.range(10)}).resolved(shared=False)
    positions = Positions()
    positions.take(read_some(given, [3, 0]))
    rest = [ids(shards_of(given, rank, 1, positions.now).get("train")) for rank in range(1)]
    assert rest == [[3, 4, 5, 6, 7, 8, 9]]


def test_what_a_function_makes_stands_where_it_was_until_every_rank_has_asked():
    given = Datasets({"train": lambda: data.range(10)})
    positions = Positions()
    positions.take(read_some(given, [3, 0]))
    assert positions.now == {}
    positions.take(read_some(given, [3, 3]))
    before = positions.now["train"]
    positions.take(read_some(given, [1, 0], positions.now))
    assert positions.now == {"train": before}


@pytest.mark.parametrize("config", [DataConfig, Mine])
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_not_divided_has_no_position(world_size, config):
    both = {"train": data.range(10), "val": data.range(10)}
    given = Datasets(both, config(datasets_to_split=["train"])).resolved(shared=False)
    said = read_some(given, [2] * world_size)
    assert [list(positions) for positions in said] == [["train"]] * world_size
    shards = shards_of(given, 0, 1, {"val": given.given["val"].iterator().position()})
    assert list(shards.positions()) == ["train"]


def test_ranks_that_read_different_things_keep_no_position_and_one_warning(caplog):
    positions = Positions()
    said = [
        read_some(Datasets({"train": data.range(rows)}).resolved(shared=False), [2])[0]
        for rows in (10, 20)
    ]
    positions.take(said)
    positions.take(said)
    assert positions.now == {}
    assert [text[:49] for text in caplog.messages] == [
        "no position of the dataset 'train' is kept: the r"
    ]


@pytest.fixture
def keeper(tmp_path):
    storage = RunStorage(LocalDisk(str(tmp_path)))
    record = RunRecord(
        name="run",
        run_id="id",
        trainer="T",
        minitrain_version="0",
        scaling={},
        config={},
        num_to_keep=None,
        score_attribute=None,
        score_order="max",
    )
    record.save(RunLayout(tmp_path))
    clerk = Clerk(waits=False)
    yield CheckpointKeeper(storage, record, {}, clerk)
    clerk.close()


def commit(keeper, index, said):
    name = keeper.name_for(index, None)
    reports = [Reported(index, {}, None, name, positions=positions) for positions in said]
    outcomes = []
    keeper.commit(name, reports, {}, outcomes.append)
    return outcomes[0].name


def test_a_checkpoint_keeps_them_and_an_attempt_begins_there(keeper, tmp_path):
    given = Datasets({"train": data.range(10)}).resolved(shared=False)
    assert keeper.resume_positions() == {}
    name = commit(keeper, 0, read_some(given, [2, 2]))
    kept = json.loads((tmp_path / name / ".datasets.json").read_text())
    assert keeper.resume_positions() == kept
    assert sorted(ids(shards_of(given, 0, 1, kept).get("train"))) == [2, 3, 4, 7, 8, 9]
    other = commit(keeper, 1, [{}, {}])
    assert json.loads((tmp_path / other / ".datasets.json").read_text()) == kept, "nobody has asked"


def test_a_run_without_datasets_has_no_such_file(keeper, tmp_path):
    name = commit(keeper, 0, [{}, {}])
    assert not (tmp_path / name / ".datasets.json").exists()


def test_a_file_that_was_damaged_is_no_reason_not_to_train(keeper, tmp_path, caplog):
    """As on a remote storage, where only the size was looked at."""
    given = Datasets({"train": data.range(10)}).resolved(shared=False)
    path = tmp_path / commit(keeper, 0, read_some(given, [2, 2])) / ".datasets.json"
    for text in ("{", "[]"):
        path.write_text(text)
        assert keeper.resume_positions() == {}
    assert all("datasets are read from their beginning" in text for text in caplog.messages)
