"""``result.json``: every report a line, whole or passed over."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import socket
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._storage.rows import (
    RowBuilder,
    RowFile,
    as_plain_data,
    count_rows,
    flatten,
    node_ip,
    read_rows,
    repair,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

FILLED_IN = {
    "timestamp", "checkpoint_dir_name", "should_checkpoint", "done", "training_iteration",
    "trial_id", "date", "time_this_iter_s", "time_total_s", "pid", "hostname", "node_ip",
    "time_since_restore", "iterations_since_restore", "experiment_tag",
}  # fmt: skip
KILLED = 77


@pytest.fixture
def path(tmp_path):
    return tmp_path / "result.json"


def append(path, *rows, config=None):
    file = RowFile(path, config)
    for row in rows:
        file.append(row, durable=False)
    file.close()


# ------------------------------------------------------------------ what is filled in
def test_every_key_that_ray_train_fills_in_is_there():
    row = RowBuilder("abc", 0, 0.0).row({"loss": 0.5}, None)
    assert row.keys() == FILLED_IN | {"loss"}


def test_what_is_filled_in_is_true():
    row = RowBuilder("abc", 0, 0.0).row({}, None)
    assert row["trial_id"] == "abc"
    assert row["pid"] == os.getpid()
    assert row["hostname"] == socket.gethostname()
    assert row["node_ip"] == node_ip()
    assert row["done"] is False
    assert isinstance(row["timestamp"], int)
    assert len(row["date"]) == len("2026-01-31_23-59-59")


@pytest.mark.parametrize(("name", "expected"), [(None, False), ("checkpoint_000000", True)])
def test_a_row_names_its_checkpoint(name, expected):
    row = RowBuilder("abc", 0, 0.0).row({}, name)
    assert row["checkpoint_dir_name"] == name
    assert row["should_checkpoint"] is expected


def test_a_key_that_the_user_reports_is_the_users():
    metrics = dict.fromkeys(FILLED_IN, "mine")
    assert RowBuilder("abc", 0, 0.0).row(metrics, "c") == metrics


def test_a_configuration_that_the_user_reports_is_the_users(path):
    append(path, {"config": "mine", "loss": 1}, config={"lr": 0.1})
    assert read_rows(path) == [{"config": "mine", "loss": 1}]


def test_the_users_metrics_come_first():
    assert list(RowBuilder("abc", 0, 0.0).row({"loss": 1, "acc": 2}, None))[:2] == ["loss", "acc"]


def test_iterations_count_from_one():
    builder = RowBuilder("abc", 0, 0.0)
    rows = [builder.row({}, None) for _ in range(3)]
    assert [row["training_iteration"] for row in rows] == [1, 2, 3]
    assert [row["iterations_since_restore"] for row in rows] == [1, 2, 3]


def test_iterations_and_time_go_on_where_an_earlier_attempt_ended():
    builder = RowBuilder("abc", 5, 60.0)
    rows = [builder.row({}, None) for _ in range(2)]
    assert [row["training_iteration"] for row in rows] == [6, 7]
    assert [row["iterations_since_restore"] for row in rows] == [1, 2]
    for row in rows:
        assert row["time_total_s"] == pytest.approx(60.0 + row["time_since_restore"])
        assert row["time_since_restore"] >= 0


def test_the_times_of_the_iterations_add_up():
    builder = RowBuilder("abc", 0, 0.0)
    rows = [builder.row({}, None) for _ in range(4)]
    total = sum(row["time_this_iter_s"] for row in rows)
    assert total == pytest.approx(rows[-1]["time_since_restore"])


def test_the_address_is_one():
    assert socket.inet_aton(node_ip())


# ------------------------------------------------------------------ the file
def test_rows_come_back_in_order_with_the_configuration(path):
    append(path, {"a": 1}, {"a": 2}, config={"lr": 0.1})
    assert read_rows(path) == [{"a": 1, "config": {"lr": 0.1}}, {"a": 2, "config": {"lr": 0.1}}]


def test_every_row_is_one_line(path):
    append(path, {"text": "two\nlines"}, {"text": "\u2028"})
    assert len(path.read_bytes().splitlines()) == 2
    assert [row["text"] for row in read_rows(path)] == ["two\nlines", "\u2028"]


def test_nan_and_infinity_survive_the_round_trip(path):
    append(path, {"nan": math.nan, "inf": math.inf, "neg": -math.inf, "in": [math.nan]})
    (row,) = read_rows(path)
    assert math.isnan(row["nan"])
    assert math.isnan(row["in"][0])
    assert (row["inf"], row["neg"]) == (math.inf, -math.inf)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.text(min_size=1).filter(lambda name: name != "config")


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.dictionaries(names, values, min_size=1, max_size=4), max_size=4))
def test_any_row_survives_the_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "result.json"
    append(path, *rows, config={"x": 1})
    assert read_rows(path) == [{**row, "config": {"x": 1}} for row in rows]


def test_a_row_is_there_for_others_before_the_file_is_closed(path):
    file = RowFile(path, None)
    file.append({"a": 1}, durable=False)
    assert len(read_rows(path)) == 1
    file.close()


@pytest.mark.parametrize("durable", [True, False])
def test_only_a_durable_row_is_synced(path, durable, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    file = RowFile(path, None)
    file.append({"a": 1}, durable=durable)
    file.close()
    assert len(synced) == int(durable)


def test_rows_are_added_to_those_that_are_there(path):
    append(path, {"a": 1})
    append(path, {"a": 2})
    assert [row["a"] for row in read_rows(path)] == [1, 2]


def test_a_run_without_a_file_has_no_rows(path):
    assert read_rows(path) == []


@pytest.mark.parametrize("number", [0, 1, 3])
def test_whole_rows_are_counted(path, number):
    append(path, *[{"a": 1}] * number)
    assert count_rows(path) == number
    with path.open("ab") as file:
        file.write(b'{"torn')
    assert count_rows(path) == number


def test_a_last_line_that_is_torn_anywhere_is_passed_over(path):
    append(path, {"a": 1}, {"a": 2})
    first, second = path.read_bytes().splitlines(keepends=True)
    for length in range(len(second)):
        path.write_bytes(first + second[:length])
        assert [row["a"] for row in read_rows(path)] == [1]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_after_a_repair_the_next_row_stands_on_a_line_of_its_own(path, cut):
    append(path, {"a": 1}, {"a": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    repair(path)
    append(path, {"a": 3})
    assert [row["a"] for row in read_rows(path)] == [1, 3]


def test_a_repair_of_what_is_whole_changes_nothing(path):
    append(path, {"a": 1}, {"a": 2})
    whole = path.read_bytes()
    repair(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_repair_of_a_file_without_a_row_leaves_it_empty(path, content):
    if content is not None:
        path.write_bytes(content)
    repair(path)
    assert (path.read_bytes() if path.exists() else None) == (None if content is None else b"")


@pytest.mark.parametrize("room", [1, 40, 90])
def test_on_a_full_disk_the_beginning_of_a_row_is_taken_back(path, room):
    append(path, {"a": 1})
    whole = path.read_bytes()

    def write():
        limit = len(whole) + room
        file = RowFile(path, None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            file.append({"text": "x" * 100}, durable=False)
        except OSError as error:
            os._exit(KILLED if str(path) in str(error) else 1)

    child = multiprocessing.get_context("fork").Process(target=write)
    child.start()
    child.join(30)
    assert child.exitcode == KILLED
    assert path.read_bytes() == whole


# ------------------------------------------------------------------ plain data
class Thing:
    def __repr__(self):
        return "<thing>"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"lr": 0.1, "n": 1, "on": True, "none": None, "s": "x"}, None),
        ({"nested": {"list": [1, {"a": 2}]}}, None),
        ({1: "a", None: "b"}, {"1": "a", "None": "b"}),
        ((1, (2,)), [1, [2]]),
        ({"thing": Thing()}, {"thing": "<thing>"}),
        ({"set": {1}}, {"set": "{1}"}),
    ],
    ids=str,
)
def test_a_configuration_becomes_what_json_can_hold(value, expected):
    plain = as_plain_data(value)
    assert plain == (value if expected is None else expected)
    json.dumps(plain)


@pytest.mark.parametrize(
    ("row", "flat"),
    [
        ({}, {}),
        ({"a": 1}, {"a": 1}),
        ({"a": {"b": 1, "c": {"d": 2}}}, {"a/b": 1, "a/c/d": 2}),
        ({"a": {}}, {"a": {}}),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}]}),
        ({"a": {"b": None}}, {"a/b": None}),
    ],
    ids=str,
)
def test_flat_rows_join_nested_keys_by_slashes(row, flat):
    assert flatten(row) == flat


plain_names = st.text(alphabet="abc", min_size=1, max_size=2)
trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(plain_names, inner, max_size=3), max_leaves=12
)


@given(row=st.dictionaries(plain_names, trees, max_size=4))
def test_a_flat_row_has_every_value_under_its_path(row):
    def leaves(tree, path):
        if isinstance(tree, Mapping) and tree:
            return [leaf for key, value in tree.items() for leaf in leaves(value, [*path, key])]
        return [("/".join(path), tree)] if path else []

    assert list(flatten(row).items()) == leaves(row, [])
