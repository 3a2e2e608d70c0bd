"""The files of a run whose driver was killed agree again before it goes on."""

from __future__ import annotations

import csv

import pytest

from minitrain._driver.home import Home
from minitrain._driver.mend import mend
from minitrain._storage.disk import LocalDisk
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import RunRecord
from minitrain._storage.rows import RowFile, read_rows
from minitrain._storage.run_storage import RunStorage


@pytest.fixture
def home(tmp_path):
    layout = RunLayout(tmp_path)
    RunRecord(
        name="run",
        run_id="abc",
        trainer="T",
        minitrain_version="0",
        scaling={},
        config={"lr": 1},
        num_to_keep=None,
        score_attribute=None,
        score_order="max",
    ).save(layout)
    return Home("run", layout, RunStorage(LocalDisk(str(tmp_path))))


def row(iteration, name):
    return {"training_iteration": iteration, "checkpoint_dir_name": name}


def write(home, *rows):
    file = RowFile(home.layout.rows, {"lr": 1})
    for one in rows:
        file.append(one, durable=False)
    file.close()


def commit(home, report):
    name = report["checkpoint_dir_name"]
    home.storage.begin(name)
    home.storage.commit(name, [], len(home.storage.committed()), report, {})


def iterations(home):
    return [one["training_iteration"] for one in read_rows(home.layout.rows)]


def test_a_row_that_was_not_written_any_more_is_written_once(home):
    write(home, row(1, "c"), row(2, None))
    commit(home, row(1, "c"))
    commit(home, row(3, "d"))
    mend(home)
    mend(home)
    assert iterations(home) == [1, 2, 3]
    with home.layout.table.open() as table:
        assert [one["training_iteration"] for one in csv.DictReader(table)] == ["1", "2", "3"]


def test_a_row_is_not_mistaken_for_that_of_a_lost_checkpoint_of_the_same_name(home):
    write(home, row(1, "c"), row(2, None))  # reported asynchronously, and never committed
    commit(home, row(3, "c"))
    mend(home)
    assert iterations(home) == [1, 2, 3]
