"""The run's reports as a table and as TensorBoard's events, read back as their readers do."""

from __future__ import annotations

import csv
import math
import subprocess
import sys

import pytest

from minitrain._driver.tables import Tables
from minitrain._storage.layout import RunLayout
from minitrain._storage.rows import RowFile, read_rows

ROWS = [
    {"training_iteration": 1, "loss": 0.5, "val": {"acc": 0.25}},
    {"training_iteration": 2, "loss": 0.25, "val": {"acc": 0.5}},
]


def write(root, rows, config=None):
    tables = Tables(RunLayout(root), config)
    for row in rows:
        tables.append(row)
    tables.close()
    return table(root)


def table(root):
    with RunLayout(root).table.open(newline="") as file:
        return list(csv.DictReader(file))


def events(root):
    """Return what TensorBoard shows: for every name its values by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(root))
    found.Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


@pytest.fixture(scope="module", autouse=True)
def imported_tensorboard():
    """TensorBoard's import warns about its own dependencies; that is not what we test."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorboard.backend.event_processing.event_accumulator  # noqa: F401


# ------------------------------------------------------------------ progress.csv
def test_every_report_is_a_row_with_nested_keys_joined_by_slashes(tmp_path):
    assert write(tmp_path, ROWS) == [
        {"training_iteration": "1", "loss": "0.5", "val/acc": "0.25"},
        {"training_iteration": "2", "loss": "0.25", "val/acc": "0.5"},
    ]


def test_a_row_is_on_disk_before_the_table_is_closed(tmp_path):
    tables = Tables(RunLayout(tmp_path), None)
    tables.append(ROWS[0])
    assert len(table(tmp_path)) == 1
    tables.close()


def test_a_key_that_comes_later_becomes_a_column_and_earlier_rows_stay(tmp_path):
    rows = write(tmp_path, [{"a": 1}, {"a": 2, "b": 3}, {"c": 4}])
    assert rows == [
        {"a": "1", "b": "", "c": ""},
        {"a": "2", "b": "3", "c": ""},
        {"a": "", "b": "", "c": "4"},
    ]


def test_a_key_that_is_missing_later_keeps_its_column(tmp_path):
    assert write(tmp_path, [{"a": 1, "b": 2}, {"a": 3}])[1] == {"a": "3", "b": ""}


def test_nan_and_infinity_are_numbers_for_whoever_reads_the_table(tmp_path):
    (row,) = write(tmp_path, [{"nan": math.nan, "inf": math.inf, "small": -math.inf}])
    assert math.isnan(float(row["nan"]))
    assert float(row["inf"]) == math.inf
    assert float(row["small"]) == -math.inf


@pytest.mark.parametrize("text", ["a,b", 'say "hi"', "two\nlines", "ünïcode", " spaces "])
def test_text_survives_the_table(tmp_path, text):
    assert write(tmp_path, [{"text": text}, {"text": "x", "new": 1}])[0]["text"] == text


def test_a_name_with_a_comma_is_one_column(tmp_path):
    assert write(tmp_path, [{"precision, top 1": 1}]) == [{"precision, top 1": "1"}]


def test_the_configuration_is_part_of_every_row(tmp_path):
    rows = write(tmp_path, ROWS, {"lr": 0.1, "model": {"depth": 2}})
    assert [(row["config/lr"], row["config/model/depth"]) for row in rows] == [("0.1", "2")] * 2


def test_a_later_attempt_goes_on_in_the_same_table(tmp_path):
    write(tmp_path, [{"a": 1, "early": 0}])
    assert write(tmp_path, [{"a": 2}, {"b": 3}]) == [
        {"a": "1", "early": "0", "b": ""},
        {"a": "2", "early": "", "b": ""},
        {"a": "", "early": "", "b": "3"},
    ]


def test_the_table_of_a_run_without_reports_is_empty(tmp_path):
    assert write(tmp_path, []) == []


def test_rewriting_the_table_leaves_nothing_else_in_the_folder(tmp_path):
    write(tmp_path, [{f"key_{number}": number} for number in range(5)])
    others = [path.name for path in tmp_path.iterdir() if "tfevents" not in path.name]
    assert others == ["progress.csv"]


# ------------------------------------------------------------------ after workers were killed
def agreed(root, reported, written, config=None):
    """Have the driver hear of some rows and a worker write others, and make the two agree."""
    layout = RunLayout(root)
    rows = RowFile(layout.rows, config)
    for row in written:
        rows.append(row, durable=False)
    rows.close()
    tables = Tables(layout, config)
    for row in reported:
        tables.append(row)
    tables.agree_with(layout.rows)
    tables.close()
    return [row["n"] for row in read_rows(layout.rows)], [int(row["n"]) for row in table(root)]


ALL = [{"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize("num_reported", [0, 1, 3])
def test_rows_that_never_reached_the_driver_are_added_to_the_table(tmp_path, num_reported):
    assert agreed(tmp_path, ALL[:num_reported], ALL) == ([1, 2, 3], [1, 2, 3])


def test_the_row_of_a_committed_checkpoint_is_written_for_a_worker_that_could_not(tmp_path):
    assert agreed(tmp_path, ALL, ALL[:2], {"lr": 0.1}) == ([1, 2, 3], [1, 2, 3])
    assert read_rows(RunLayout(tmp_path).rows)[-1]["config"] == {"lr": 0.1}
    assert [row["config/lr"] for row in table(tmp_path)] == ["0.1"] * 3


@pytest.mark.parametrize("num_reported", [1, 2])
def test_a_torn_row_is_in_both_if_it_was_reported_and_in_neither_otherwise(tmp_path, num_reported):
    layout = RunLayout(tmp_path)
    layout.rows.write_text('{"n": 1, "config": null}\n{"n": 2, "conf')
    expected = [1, 2][:num_reported]
    assert agreed(tmp_path, ALL[:num_reported], []) == (expected, expected)
    assert layout.rows.read_bytes().endswith(b"}\n")


def test_tables_that_agree_stay_as_they_are_however_often_they_are_asked(tmp_path):
    layout = RunLayout(tmp_path)
    agreed(tmp_path, [], ALL)
    before = layout.rows.read_bytes(), layout.table.read_bytes()
    tables = Tables(layout, None)
    for _ in range(2):
        tables._count = len(ALL)
        tables.agree_with(layout.rows)
    tables.close()
    assert (layout.rows.read_bytes(), layout.table.read_bytes()) == before


# ------------------------------------------------------------------ TensorBoard
def test_tensorboard_shows_every_number_by_iteration(tmp_path):
    write(tmp_path, ROWS)
    shown = events(tmp_path)
    assert shown["loss"] == [(1, 0.5), (2, 0.25)]
    assert shown["val/acc"] == [(1, 0.25), (2, 0.5)]


def test_tensorboard_gets_numbers_only(tmp_path):
    row = {"training_iteration": 1, "n": 2, "flag": True, "text": "x", "none": None, "list": [1]}
    write(tmp_path, [row], {"lr": 0.1})
    assert events(tmp_path) == {"training_iteration": [(1, 1.0)], "n": [(1, 2.0)]}


def test_tensorboard_takes_nan_and_infinity(tmp_path):
    write(tmp_path, [{"training_iteration": 1, "nan": math.nan, "inf": math.inf}])
    shown = events(tmp_path)
    assert math.isnan(shown["nan"][0][1])
    assert shown["inf"] == [(1, math.inf)]


def test_an_iteration_that_is_the_users_own_and_no_number_does_not_end_the_training(tmp_path):
    write(tmp_path, [{"training_iteration": "first", "loss": 0.5}])
    assert events(tmp_path)["loss"] == [(0, 0.5)]


BLOCKED = """
import sys
for name in sys.argv[2:]:
    sys.modules[name] = None
from pathlib import Path
from minitrain._driver.tables import Tables
from minitrain._storage.layout import RunLayout
tables = Tables(RunLayout(Path(sys.argv[1])), None)
for step in (1, 2):
    tables.append({"training_iteration": step, "loss": 1 / step, "val": {"acc": 0.5}})
tables.close()
print("tensorboard" in sys.modules and sys.modules["tensorboard"] is not None)
"""


def write_without(root, *packages):
    command = [sys.executable, "-c", BLOCKED, str(root), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.campaign
def test_without_tensorboard_the_events_are_written_by_tensorboardx(tmp_path):
    pytest.importorskip("tensorboardX")
    assert write_without(tmp_path, "tensorboard") == "False"
    shown = events(tmp_path)
    assert shown["loss"] == [(1, 1.0), (2, 0.5)]
    assert shown["val/acc"] == [(1, 0.5), (2, 0.5)]


def test_without_either_there_are_no_events_and_the_table_is_whole(tmp_path):
    write_without(tmp_path, "tensorboard", "tensorboardX")
    assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"]
    assert [row["loss"] for row in table(tmp_path)] == ["1.0", "0.5"]
