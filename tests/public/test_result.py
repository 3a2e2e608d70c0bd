"""What a run has given, read back from its directory, wherever that is now."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from minitrain import Result
from minitrain._storage.disk import LocalDisk
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import RunRecord
from minitrain._storage.rows import RowFile
from minitrain._storage.run_storage import RunStorage


class CustomError(Exception):
    pass


def make_run(root, reports, *, status="finished", config=None, keep=None, attribute=None):
    """Write a run's directory: a report with ``save`` set has a checkpoint."""
    root.mkdir()
    layout = RunLayout(root)
    record = RunRecord(
        name=root.name,
        run_id="abc",
        trainer="T",
        minitrain_version="0",
        scaling={},
        config=config or {},
        num_to_keep=keep,
        score_attribute=attribute,
        score_order="max",
        status=status,
    )
    record.save(layout)
    rows = RowFile(layout.rows, config or {})
    for number, metrics in enumerate(reports):
        row = {**metrics, "training_iteration": number + 1, "done": False}
        if row.pop("save", False):
            storage = RunStorage(LocalDisk(str(root)))
            name = f"checkpoint_{storage.next_index():06d}"
            storage.begin(name)
            (root / name / "weights").write_text(str(number))
            storage.commit(name, [], number, row, {})
        rows.append(row, durable=False)
    rows.close()
    return layout


@pytest.fixture
def root(tmp_path):
    return tmp_path / "run"


SAVED = [
    {"acc": 0.5, "val": {"loss": 2.0}, "save": True},
    {"acc": 0.9, "val": {"loss": 1.0}, "save": True},
    {"acc": 0.7, "val": {"loss": 3.0}, "save": True},
]


def number_of(checkpoint):
    """Return the number of the report that a checkpoint was made with."""
    return int(Path(checkpoint.path, "weights").read_text())


# ------------------------------------------------------------------ reading back
def test_the_last_report_is_the_metrics(root):
    make_run(root, [{"loss": 2}, {"loss": 1}])
    result = Result.from_path(root)
    assert result.metrics["loss"] == 1
    assert result.metrics["training_iteration"] == 2
    assert result.checkpoint is None
    assert result.best_checkpoints == []
    assert result.error is None
    assert result.return_value is None


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ("finished", True),
        ("stopped", True),
        ("failed", False),
        ("interrupted", False),
        ("running", False),
    ],
)
def test_the_last_report_of_a_run_that_reached_its_end_is_done(root, status, done):
    make_run(root, [{"loss": 1}, {"loss": 2}], status=status)
    assert Result.from_path(root).metrics["done"] is done


def test_a_run_that_reported_nothing_has_no_metrics(root):
    make_run(root, [])
    result = Result.from_path(root)
    assert result.metrics == {}
    assert result.metrics_dataframe is None


def test_the_newest_checkpoint_and_the_best_ones_with_their_metrics(root):
    make_run(root, SAVED, attribute="acc", keep=2)
    result = Result.from_path(root)
    assert number_of(result.checkpoint) == 2
    assert [number_of(checkpoint) for checkpoint, _ in result.best_checkpoints] == [2, 1]
    assert [metrics["acc"] for _, metrics in result.best_checkpoints] == [0.7, 0.9]


def test_without_a_score_the_best_are_in_the_order_they_were_reported(root):
    make_run(root, SAVED)
    best = Result.from_path(root).best_checkpoints
    assert [number_of(checkpoint) for checkpoint, _ in best] == [0, 1, 2]


def test_the_configuration_is_read_back(root):
    make_run(root, [{"loss": 1}], config={"lr": 0.1})
    result = Result.from_path(root)
    assert result.config == {"lr": 0.1}
    assert result.metrics["config"] == {"lr": 0.1}


def test_a_run_that_was_moved_is_read_where_it_is_now(root, tmp_path):
    make_run(root, SAVED)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(root, moved)
    result = Result.from_path(moved)
    assert result.path == str(moved)
    assert number_of(result.checkpoint) == 2
    for checkpoint, _ in result.best_checkpoints:
        assert checkpoint.path.startswith(str(moved))


@pytest.mark.parametrize("spell", [str, "{}/".format, "{}/../run".format])
def test_the_path_may_be_spelled_in_many_ways(root, spell):
    make_run(root, [{"loss": 1}])
    assert Result.from_path(spell(root)).metrics["loss"] == 1


def test_a_relative_path_and_one_below_home_are_found(root, monkeypatch):
    make_run(root, SAVED)
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root.parent))
    for path in ("run", "~/run"):
        result = Result.from_path(path)
        assert result.path == str(root)
        assert result.checkpoint.path.startswith(str(root))


def test_a_torn_last_row_is_passed_over(root):
    layout = make_run(root, [{"loss": 2}, {"loss": 1}])
    layout.rows.write_bytes(layout.rows.read_bytes()[:-5])
    assert Result.from_path(root).metrics["loss"] == 2


def test_a_checkpoint_without_its_manifest_is_none(root):
    layout = make_run(root, SAVED)
    ((layout.root / "checkpoint_000002") / ".manifest.json").unlink()
    result = Result.from_path(root)
    assert number_of(result.checkpoint) == 1
    assert len(result.best_checkpoints) == 2


# ------------------------------------------------------------------ what is no run
def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"the folder .*/gone does not exist"):
        Result.from_path(tmp_path / "gone")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="file does not exist"):
        Result.from_path(tmp_path / "file")


def test_a_folder_that_is_not_of_a_run_says_what_is_missing(tmp_path):
    with pytest.raises(RuntimeError, match=r"is not the folder of a run: it has no run\.json"):
        Result.from_path(tmp_path)


def test_a_run_on_another_filesystem_is_read_from_there(root, tmp_path):
    make_run(root, SAVED)
    elsewhere = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    result = Result.from_path("run", elsewhere)
    assert result.filesystem == elsewhere
    assert result.path == "run"
    assert list(result.metrics_dataframe["acc"]) == [0.5, 0.9, 0.7]
    with result.checkpoint.as_directory() as folder:
        assert Path(folder, "weights").read_text() == "2"


def test_the_local_filesystem_may_be_given(root):
    make_run(root, [{"loss": 1}])
    result = Result.from_path(root, LocalFileSystem())
    assert result.filesystem == LocalFileSystem()


# ------------------------------------------------------------------ errors
def test_the_error_of_a_failed_run_comes_back_with_its_type(root):
    layout = make_run(root, [], status="failed")
    layout.error_text.write_text("ValueError: no")
    layout.error_pickle.write_bytes(pickle.dumps(ValueError("no")))
    error = Result.from_path(root).error
    assert type(error) is ValueError
    assert str(error) == "no"


@pytest.mark.parametrize("data", [None, b"", b"no pickle", pickle.dumps("no exception")])
def test_an_error_whose_class_is_not_to_be_had_comes_back_as_text(root, data):
    layout = make_run(root, [], status="failed")
    layout.error_text.write_text("CustomError: no")
    if data is not None:
        layout.error_pickle.write_bytes(data)
    error = Result.from_path(root).error
    assert isinstance(error, RuntimeError)
    assert str(error) == "CustomError: no"


def test_an_error_of_an_attempt_before_the_last_does_not_surface(root):
    layout = make_run(root, [{"loss": 1}], status="finished")
    layout.error_text.write_text("ValueError: of an earlier attempt")
    layout.error_pickle.write_bytes(pickle.dumps(ValueError("of an earlier attempt")))
    assert Result.from_path(root).error is None


# ------------------------------------------------------------------ the best checkpoint
@pytest.mark.parametrize(
    ("metric", "mode", "expected"),
    [
        ("acc", "max", 1),
        ("acc", "min", 0),
        ("val/loss", "min", 1),
        ("val/loss", "max", 2),
        ("training_iteration", "max", 2),
    ],
)
def test_the_best_checkpoint_by_any_metric(root, metric, mode, expected):
    make_run(root, SAVED)
    assert number_of(Result.from_path(root).get_best_checkpoint(metric, mode)) == expected


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([math.nan, 1, math.nan], 1),
        ([None, 1, None], 1),
        (["high", 1, "low"], 1),
        ([1, 1, 1], 2),
    ],
)
def test_what_is_no_number_is_never_the_best_and_of_equals_the_newer_is(
    root, mode, values, expected
):
    make_run(root, [{"m": value, "save": True} for value in values])
    assert number_of(Result.from_path(root).get_best_checkpoint("m", mode)) == expected


def test_a_metric_that_some_checkpoints_lack_ranks_those_that_have_it(root):
    make_run(root, [{"a": 1, "save": True}, {"b": 1, "save": True}])
    assert number_of(Result.from_path(root).get_best_checkpoint("a", "min")) == 0


@pytest.mark.parametrize("mode", ["best", "MAX", None, ["max"]])
def test_another_mode_is_refused_with_those_there_are(root, mode):
    make_run(root, SAVED)
    with pytest.raises(ValueError, match="must be 'max' or 'min'") as caught:
        Result.from_path(root).get_best_checkpoint("acc", mode)
    assert repr(mode) in str(caught.value)


@pytest.mark.parametrize("metric", ["accuracy", "val/acc", "val", ""])
def test_an_unknown_metric_is_named_with_those_there_are(root, metric):
    make_run(root, SAVED)
    with pytest.raises(RuntimeError) as caught:
        Result.from_path(root).get_best_checkpoint(metric, "max")
    assert repr(metric) in str(caught.value)
    assert "'acc'" in str(caught.value)


def test_a_run_without_a_checkpoint_says_so(root):
    make_run(root, [{"acc": 1}])
    with pytest.raises(RuntimeError, match="has no checkpoint"):
        Result.from_path(root).get_best_checkpoint("acc", "max")


# ------------------------------------------------------------------ the table
def test_the_dataframe_has_a_row_per_report_and_nested_keys_by_slashes(root):
    make_run(root, SAVED, config={"lr": 0.1})
    frame = Result.from_path(root).metrics_dataframe
    assert list(frame["acc"]) == [0.5, 0.9, 0.7]
    assert list(frame["val/loss"]) == [2.0, 1.0, 3.0]
    assert list(frame["config/lr"]) == [0.1] * 3


def test_the_dataframe_has_every_key_ever_seen(root):
    make_run(root, [{"a": 1}, {"b": math.nan}, {"a": math.inf, "c": "x"}])
    frame = Result.from_path(root).metrics_dataframe
    assert {"a", "b", "c"} <= set(frame.columns)
    assert frame["a"][2] == math.inf
    assert math.isnan(frame["b"][1])


def test_the_dataframe_is_made_once(root):
    make_run(root, [{"a": 1}])
    result = Result.from_path(root)
    assert result.metrics_dataframe is result.metrics_dataframe


# ------------------------------------------------------------------ an object like ray.train's
def test_a_result_can_be_made_by_hand_as_in_ray_train():
    result = Result({"acc": 1}, None, None)
    assert (result.metrics, result.checkpoint, result.error) == ({"acc": 1}, None, None)
    assert result.metrics_dataframe is None
    with pytest.raises(RuntimeError, match="no checkpoint"):
        result.get_best_checkpoint("acc", "max")


def test_a_result_travels(root):
    make_run(root, SAVED)
    result = Result.from_path(root)
    again = pickle.loads(pickle.dumps(result))
    assert again.metrics == result.metrics
    assert again.checkpoint == result.checkpoint
    assert again.best_checkpoints == result.best_checkpoints


def test_a_result_shows_what_matters(root):
    make_run(root, SAVED)
    shown = repr(Result.from_path(root))
    assert str(root) in shown
    assert "'acc': 0.7" in shown


def test_rows_are_plain_json_for_other_programs(root):
    layout = make_run(root, SAVED)
    assert [json.loads(line)["acc"] for line in layout.rows.read_text().splitlines()] == [
        0.5,
        0.9,
        0.7,
    ]
