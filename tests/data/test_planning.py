"""What a plan becomes before anything is read."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import ClassVar

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import minitrain.data
from minitrain import data
from minitrain.data import order
from minitrain.data.dataset import Dataset, from_source
from minitrain.data.iterator import merged_positions
from minitrain.data.plans import plan, planning
from minitrain.data.plans.mapped import for_this_host_alone
from minitrain.data.plans.runtime import Runtime
from minitrain.exceptions import ColumnError, DataError
from tests.data.numbers import Numbers, numbers


@dataclass(frozen=True)
class Pushable(Numbers):
    """Can read less, or pretends to: what it was told can be seen in the plan."""

    can_select: ClassVar[bool] = True
    can_filter: ClassVar[bool] = True


def pushable() -> Dataset:
    return from_source(Pushable((3, 4)))


FEW = pc.field("id") < 3


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (pushable().select_columns(["id"]), "numbers (2 blocks); columns: id"),
        (pushable().filter(expr=FEW), "numbers (2 blocks); rows: (id < 3)"),
        (
            pushable().filter(expr=FEW).select_columns("id"),
            "numbers (2 blocks); columns: id; rows: (id < 3)",
        ),
        (
            pushable().select_columns("id").filter(expr=FEW),
            "numbers (2 blocks); columns: id; rows: (id < 3)",
        ),
        (
            pushable().select_columns("id").filter(expr=pc.field("x") < 3),
            "filter((x < 3))\n  numbers (2 blocks); columns: id",
        ),
        (
            pushable().drop_columns("id"),
            "drop_columns(id)\n  numbers (2 blocks)",
        ),
        (
            pushable().filter(expr=FEW).filter(expr=pc.field("id") > 1),
            "numbers (2 blocks); rows: ((id < 3) and (id > 1))",
        ),
        (
            pushable().randomize_block_order(seed=1).filter(expr=FEW),
            "randomize_block_order(seed=1)\n  numbers (2 blocks); rows: (id < 3)",
        ),
        (
            numbers([3]).select_columns("id"),
            "select_columns(id)\n  numbers (1 blocks)",
        ),
        (
            pushable().rename_columns({"id": "x"}).filter(expr=pc.field("x") < 3),
            "filter((x < 3))\n  rename_columns(id to x)\n    numbers (2 blocks)",
        ),
        (
            numbers([3]).random_shuffle(seed=1).with_column("x", FEW).filter(expr=FEW).limit(2),
            (
                "limit(2)\n  random_shuffle(seed=1)\n    filter((id < 3))\n"
                "      with_column(x = (id < 3))\n        numbers (1 blocks)"
            ),
        ),
        (
            numbers([3]).random_shuffle(seed=1).with_column("x", FEW),
            "with_column(x = (id < 3))\n  random_shuffle(seed=1)\n    numbers (1 blocks)",
        ),
        (
            numbers([3]).randomize_block_order(seed=2, reseed_after_execution=False).union(),
            (
                "union\n  randomize_block_order(seed=2, the same in every epoch)\n"
                "    numbers (1 blocks)"
            ),
        ),
    ],
)
def test_what_is_read_and_in_which_order_things_are_done(dataset, text):
    assert dataset.explain() == text


def test_a_column_that_is_not_there_is_not_hidden_by_the_push():
    with pytest.raises(ColumnError, match="did you mean 'id'"):
        pushable().select_columns(["idd"]).take(1)


def resolved(dataset: Dataset) -> plan.Node:
    with Runtime().in_this_thread():
        return planning.resolved(planning.optimized(dataset.plan))


def test_resolving_again_does_nothing():
    once = resolved(numbers([3, 4], is_counted=False).random_shuffle(seed=1))
    with Runtime().in_this_thread():
        assert planning.resolved(once).children == once.children


def test_rows_are_counted_once_for_all_epochs():
    seen: list[int] = []
    dataset = numbers([3, 4], is_counted=False, before=seen.append)
    dataset = dataset.filter(lambda row: row["id"] > 1).randomize_block_order(seed=1)
    node = resolved(dataset)
    assert sorted(set(seen)) == [0, 3, 6]
    seen.clear()
    for epoch in range(3):
        assert sum(block.count() for block in node.blocks(epoch)) == 5
    assert seen == []


@pytest.mark.parametrize(
    ("change", "times"),
    [
        (lambda dataset: dataset.repartition(4), 1),
        (lambda dataset: dataset.limit(12), 1),
        (lambda dataset: dataset.zip(dataset.rename_columns({"id": "again"})), 2),  # both sides
    ],
    ids=["repartition", "limit", "zip"],
)
def test_what_lists_others_blocks_counts_each_once(change, times):
    seen: list[int] = []
    dataset = change(numbers([6, 6, 6], table_rows=6, is_counted=False, before=seen.append))
    with Runtime().in_this_thread():
        node = planning.resolved(dataset.plan)
        assert {seen.count(first) for first in seen} == {times}
        seen.clear()
        rows = sum(table.num_rows for block in node.blocks(0) for table in block.read())
    assert rows in {12, 18}
    assert len(seen) <= 6


def test_rows_are_counted_by_as_many_threads_as_read_them(monkeypatch):
    monkeypatch.setattr(data.DataContext.get_current(), "read_threads", 1)
    threads: list[str] = []

    def note(first: int) -> None:
        threads.append(threading.current_thread().name)

    ds = numbers([2] * 5, is_counted=False, before=note).union(numbers([3]))
    assert ds.count() == 13
    assert threads == ["dataset-reader-0"] * 5


def test_counting_leaves_out_what_does_not_change_the_number():
    def refuse(_: object) -> None:
        raise AssertionError("not needed to count")

    dataset = numbers([5]).filter(expr=FEW).map_batches(refuse, udf_modifying_row_count=False)
    assert dataset.count() == 3


def test_what_needs_all_rows_is_done_once_for_all_epochs():
    seen: list[int] = []
    node = resolved(numbers([3, 4], before=seen.append).random_shuffle(seed=1))
    assert sorted(seen) == [0, 3, 6]
    seen.clear()
    with Runtime().in_this_thread():
        orders = [
            [row for table in plan.tables(node, epoch) for row in table["id"].to_pylist()]
            for epoch in range(2)
        ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(7))
    assert orders[0] != orders[1]
    assert seen == []


def test_what_needs_all_rows_is_done_once_for_the_columns_and_the_epochs():
    dataset, seen = calls(numbers([3, 4]))
    iterator = dataset.random_shuffle(seed=1).iterator()
    assert iterator.schema().names == iterator.schema().names == ["id"]
    assert sorted(row["id"] for row in iterator.iter_rows()) == sorted(seen) == list(range(7))


@pytest.mark.parametrize("is_resolved", [False, True])
def test_what_the_order_of_a_plan_follows_from(is_resolved):
    dataset = numbers([3]).randomize_block_order(seed=1, reseed_after_execution=False)
    dataset = dataset.sort("id").union(numbers([2]).random_shuffle(seed=2))
    node = resolved(dataset) if is_resolved else dataset.plan
    assert planning.order_of(node) == (
        "sort(id)",
        "randomize_block_order(seed=1, the same in every epoch)",
        "random_shuffle(seed=2)",
    )


def test_datasets_of_different_length_cannot_be_zipped():
    with pytest.raises(DataError, match="have 3 and 4 rows"):
        numbers([3]).zip(numbers([4])).take_all()


def test_columns_that_are_dropped_are_not_read(tmp_path):
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"], "c": [3, 4]}), tmp_path / "t.parquet")
    ds = minitrain.data.read_parquet(tmp_path / "t.parquet").drop_columns(["b"])
    assert ds.filter(pc.field("a") > 1).explain().endswith("columns: a, c; rows: (a > 1)")
    assert ds.take_all() == [{"a": 1, "c": 3}, {"a": 2, "c": 4}]
    with pytest.raises(ColumnError, match="'x'"):
        ds.drop_columns("x").take_all()


def calls(dataset: Dataset) -> tuple[Dataset, list[int]]:
    """Return a dataset with a function that keeps rows, and the rows that it was called with."""
    seen: list[int] = []

    def note(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.extend(batch["id"].tolist())
        return batch

    return dataset.map_batches(note), seen


def test_a_function_behind_a_global_shuffle_is_called_in_each_epoch():
    dataset, seen = calls(numbers([3, 4]).random_shuffle(seed=1))
    iterator = dataset.resolved().iterator()
    epochs = []
    for _ in range(2):
        seen.clear()
        rows = [row["id"] for row in iterator.iter_rows()]
        assert sorted(seen) == sorted(rows) == list(range(7))
        epochs.append(rows)
    assert epochs[0] != epochs[1]


def test_a_function_that_changes_the_number_of_rows_is_called_before_a_global_shuffle():
    seen: list[int] = []

    def halve(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.extend(batch["id"].tolist())
        return {"id": batch["id"][batch["id"] % 2 == 0]}

    dataset, after = calls(numbers([3, 4]).random_shuffle(seed=1).map_batches(halve))
    ranks = dataset.streaming_split(2, equal=True)
    seen.clear()
    after.clear()
    for _ in range(2):
        rows = [[row["id"] for row in rank.iter_rows()] for rank in ranks]
        assert sorted(rows[0] + rows[1]) == [0, 2, 4, 6]
    assert seen == []


@pytest.mark.parametrize(
    "change",
    [
        lambda dataset: dataset.limit(20),
        lambda dataset: dataset.repartition(2),
        lambda dataset: dataset.union(numbers([4, 4])),
        lambda dataset: dataset.random_shuffle(seed=1).union(dataset.random_shuffle(seed=2)),
        lambda dataset: dataset.zip(numbers([12, 12])),
        lambda dataset: calls(dataset.limit(20))[0].repartition(2),
    ],
    ids=["limit", "repartition", "union", "union of shuffles", "zip", "limit, then repartition"],
)
def test_a_function_behind_what_changes_with_the_epoch_is_tried_once(change):
    shuffled = numbers([4] * 6).randomize_block_order(seed=1)
    dataset, seen = calls(change(shuffled))
    rows = dataset.count()
    ranks = dataset.streaming_split(2, equal=True)
    for _ in range(2):
        seen.clear()
        read = [row["id"] for rank in ranks for row in rank.iter_rows()]
        for rank in ranks:
            rank.position()
        assert sorted(seen) == sorted(read)
        assert len(read) == rows


def test_what_was_found_to_change_the_number_of_rows_is_not_tried_again():
    dataset, seen = calls(numbers([4] * 6).randomize_block_order(seed=1).limit(20))
    dataset = dataset.map_batches(halve).resolved()
    seen.clear()
    iterator = dataset.iterator()
    rows = iterator.rows()
    assert len(seen) == 20, "counted, as in each epoch"
    assert sum(1 for _ in iterator.iter_rows()) == rows
    assert len(seen) <= 40


def test_steps_behind_a_union_are_those_of_its_parts():
    both = pushable().randomize_block_order(seed=1).union(numbers([3])).filter(expr=FEW)
    assert both.explain() == (
        "union\n  randomize_block_order(seed=1)\n    numbers (2 blocks); rows: (id < 3)\n"
        "  filter((id < 3))\n    numbers (1 blocks)"
    )


@pytest.mark.campaign
def test_a_function_behind_a_union_has_one_pool():
    parts = [numbers([4] * 2).randomize_block_order(seed=seed) for seed in range(3)]
    dataset = parts[0].union(*parts[1:])

    def where(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return batch | {"pid": np.full(len(batch["id"]), os.getpid())}

    rows = list(dataset.map_batches(where, concurrency=1).resolved().iterator().iter_rows())
    assert len(rows) == 24
    assert len({row["pid"] for row in rows}) == 1


def test_without_a_division_nothing_is_called_to_find_out():
    dataset, seen = calls(numbers([3, 4]).random_shuffle(seed=1))
    assert len(dataset.take_all()) == 7
    assert sorted(seen) == list(range(7))


def halve(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"id": batch["id"][batch["id"] % 2 == 0]}


@pytest.mark.campaign
def test_a_pool_is_asked_anew_when_its_function_turns_out_to_change_the_number_of_rows():
    dataset = numbers([3, 4]).random_shuffle(seed=1).map_batches(halve, concurrency=1)
    assert sorted(row["id"] for row in dataset.resolved().iterator().iter_rows()) == [0, 2, 4, 6]


@pytest.fixture
def permutations(monkeypatch):
    """The numbers of rows of which permutations were worked out."""
    made: list[int] = []
    permutation = order.permutation

    def counting(n: int, *parts: int | str) -> np.ndarray:
        if parts[0] == "rows":
            made.append(n)
        return permutation(n, *parts)

    monkeypatch.setattr(order, "permutation", counting)
    return made


def test_an_order_of_all_rows_is_worked_out_when_they_are_read(permutations):
    dataset = numbers([3, 4]).random_shuffle(seed=1).resolved()
    permutations.clear()  # the first row was looked at
    iterator = dataset.iterator()
    iterator.resume(merged_positions([iterator.position()]))
    assert dataset.count() == iterator.rows() == 7
    assert permutations == []
    for _ in range(2):
        list(iterator.iter_rows())
    iterator.position()
    assert permutations == [7, 7]


def test_parts_of_a_global_shuffle_travel_without_its_order():
    dataset = data.range(200_000).random_shuffle(seed=1, reseed_after_execution=False)
    part, _ = dataset.split(2)
    with for_this_host_alone():
        pickled = cloudpickle.dumps(part)
    assert len(pickled) < 10_000
    assert part.take(3) == cloudpickle.loads(pickled).take(3)
