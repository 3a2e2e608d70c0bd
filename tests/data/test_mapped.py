"""Tables that the processes of a host map, and blocks of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain import data
from minitrain.data.plans.mapped import HostTable, for_this_host_alone, meet_in, taken
from minitrain.data.plans.plan import Listed, written
from minitrain.exceptions import DataError

TABLE = pa.table({"x": list(range(10))})


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    picks=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
)
def test_rows_taken_from_chunks_are_those_of_the_whole(sizes, picks):
    chunks = [pa.table({"x": np.random.default_rng(n).random(n)}) for n in sizes]
    table = pa.concat_tables(chunks)
    indices = np.array([pick % table.num_rows for pick in picks])
    assert taken(table, indices).equals(table.combine_chunks().take(pa.array(indices)))


class Making:
    """Makes a table, and leaves a line in a file each time."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self):
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return written([TABLE], "a table")

    @property
    def times(self) -> int:
        return len(self.log.read_text().splitlines())


@pytest.fixture
def making(tmp_path: Path) -> Making:
    return Making(tmp_path / "made")


@pytest.fixture
def meeting(tmp_path: Path):
    folder = tmp_path / "meeting"
    folder.mkdir()
    meet_in(folder)
    yield folder
    meet_in(None)


def out_of_reach(making: Making) -> bytes:
    """Return a table, pickled, whose memory nobody can reach any more: as on another host."""
    shared = making()
    pickled = cloudpickle.dumps(HostTable(shared, making))
    shared.close()
    return pickled


def test_within_reach_nothing_is_made_again(making):
    table = HostTable(making(), making)
    assert cloudpickle.loads(cloudpickle.dumps(table)).table().equals(TABLE)
    assert making.times == 1


def test_out_of_reach_each_makes_its_own_if_they_cannot_meet(making):
    pickled = out_of_reach(making)
    for _ in range(2):
        assert cloudpickle.loads(pickled).table().equals(TABLE)
    assert making.times == 3


def test_out_of_reach_one_makes_it_for_all_who_meet(making, meeting):
    pickled = out_of_reach(making)
    tables = [cloudpickle.loads(pickled) for _ in range(3)]
    assert all(table.table().equals(TABLE) for table in tables)
    assert making.times == 2


ASK = """
import pickle, sys, cloudpickle
from pathlib import Path
from minitrain.data.plans.mapped import meet_in
meet_in(Path(sys.argv[1]))
table = cloudpickle.loads(Path(sys.argv[2]).read_bytes())
print(table.table().num_rows, flush=True)
sys.stdin.read()
"""


def test_processes_of_a_host_make_it_once(making, meeting, tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pickled = tmp_path / "pickled"
    pickled.write_bytes(out_of_reach(making))
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    command = [sys.executable, "-c", ASK, str(meeting), str(pickled)]
    pipe = subprocess.PIPE
    asking = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    try:
        assert [one.stdout.readline() for one in asking] == ["10\n"] * 3
        assert making.times == 2
    finally:
        for one in asking:
            one.communicate()


def test_what_stays_on_this_host_travels_without_what_makes_it(making):
    table = HostTable(making(), making)
    with for_this_host_alone():
        pickled = cloudpickle.dumps(table)
    assert b"made" not in pickled
    table._shared.close()
    with pytest.raises(DataError):
        cloudpickle.loads(pickled).table()


def test_a_large_table_is_mapped_and_not_pickled_for_processes_of_this_host():
    numbers = np.arange(1_000_000)
    dataset = data.from_numpy(numbers).resolved(shared=True)
    with for_this_host_alone():
        pickled = cloudpickle.dumps(dataset)
    assert len(pickled) < 20_000
    assert cloudpickle.loads(pickled).sum("data") == int(numbers.sum())
    elsewhere = cloudpickle.dumps(dataset)
    assert len(elsewhere) > numbers.nbytes


def test_a_materialized_dataset_is_read_once():
    seen: list[int] = []

    def note(batch):
        seen.append(len(batch["id"]))
        return batch

    kept = data.range(10).map_batches(note).materialize()
    assert sum(seen) == 10
    assert [row["id"] for row in kept.take_all()] == list(range(10))
    assert kept.count() == 10
    assert sum(seen) == 10
    assert isinstance(kept.plan, Listed)
    copy = cloudpickle.loads(cloudpickle.dumps(kept))
    assert [row["id"] for row in copy.take_all()] == list(range(10))
    assert sum(seen) == 10


def test_a_dataset_larger_than_its_share_of_memory_goes_to_a_file(tmp_path, monkeypatch):
    context = data.DataContext.get_current()
    monkeypatch.setattr(context, "shared_memory_bytes", 1000)
    monkeypatch.setattr(context, "spill_folder", str(tmp_path))
    kept = data.range(10_000).materialize()
    (first, *_) = kept.plan.listed
    assert first.shared._shared.spilled
    assert list(tmp_path.iterdir()) == []  # it has no name
    assert [row["id"] for row in kept.sort("id", descending=True).take(1)] == [9999]
