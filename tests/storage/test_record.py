"""``run.json``: what a run's directory remembers of it."""

from __future__ import annotations

import datetime
import json
import os
import socket

import pytest

from minitrain._os.processes import began_at
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import Attempt, RunRecord, now


def record(**changes):
    values = {
        "name": "run",
        "run_id": "abc",
        "trainer": "TorchTrainer",
        "minitrain_version": "0.1.0",
        "scaling": {"num_workers": 2},
        "config": {"lr": 0.1},
        "num_to_keep": 2,
        "score_attribute": "val/acc",
        "score_order": "min",
    }
    return RunRecord(**{**values, **changes})


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path)


@pytest.mark.parametrize("status", ["running", "finished", "stopped", "failed", "interrupted"])
def test_a_record_comes_back_as_it_was_saved(layout, status):
    saved = record(status=status, checkpoints=["checkpoint_000000", "mine"], ended=now())
    saved.attempts.append(Attempt(world_size=2, ended=now(), outcome="returned"))
    workers = [{"rank": 0, "pid": 42, "hostname": "node-a"}]
    saved.attempts.append(Attempt(world_size=1, workers=workers))
    saved.save(layout)
    assert RunRecord.load(layout) == saved


def test_it_is_json_that_people_can_read(layout):
    record().save(layout)
    assert json.loads(layout.record.read_text())["trainer"] == "TorchTrainer"
    assert len(layout.record.read_text().splitlines()) > 10


def test_saving_again_replaces_it_and_leaves_nothing_else(layout):
    saved = record()
    saved.save(layout)
    saved.status = "failed"
    saved.save(layout)
    assert RunRecord.load(layout).status == "failed"
    assert os.listdir(layout.root) == ["run.json"]


def test_a_new_record_runs_under_this_driver():
    new = record()
    assert new.status == "running"
    began = began_at(os.getpid())
    assert new.driver == {"pid": os.getpid(), "hostname": socket.gethostname(), "began": began}
    assert new.driver_is_alive
    assert (new.attempts, new.checkpoints, new.ended) == ([], [], None)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed"},
        {"driver": {"pid": os.getpid(), "hostname": "elsewhere", "began": began_at(os.getpid())}},
        {"driver": {"pid": os.getpid(), "hostname": socket.gethostname(), "began": 1}},
        {"driver": {"pid": 2**22 + 1, "hostname": socket.gethostname(), "began": None}},
    ],
    ids=["it is over", "another host", "another process of that number", "gone"],
)
def test_a_driver_that_is_gone_or_cannot_be_seen_is_not_alive(change):
    old = record()
    for name, value in change.items():
        setattr(old, name, value)
    assert not old.driver_is_alive


def test_records_do_not_share_their_lists():
    record().checkpoints.append("mine")
    assert record().checkpoints == []


def test_a_directory_without_a_record_is_no_run(layout):
    with pytest.raises(FileNotFoundError):
        RunRecord.load(layout)


def test_times_have_their_zone():
    assert datetime.datetime.fromisoformat(now()).tzinfo is not None
