"""What train functions call: what it takes, what it refuses, and where it may be called."""

from __future__ import annotations

import collections
import enum
import json
import math
import multiprocessing
import os
import tempfile
import types
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import minitrain
from minitrain import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig
from minitrain.collective import barrier, broadcast_from_rank_zero
from minitrain.exceptions import CheckpointError, NotInTrainingError, WorkerGroupError
from minitrain.session import plain_metrics
from minitrain.trainer import DataParallelTrainer


class Color(enum.IntEnum):
    RED = 1


class Split(enum.StrEnum):
    VAL = "val"


class Pair(NamedTuple):
    a: int
    b: int


# ------------------------------------------------------------------ metrics become plain
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (2**80, 2**80),
        (0.5, 0.5),
        (True, True),
        (None, None),
        ("text", "text"),
        (math.inf, math.inf),
        (np.float16(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int8(-3), -3),
        (np.uint64(2**63), 2**63),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.array(2.5), 2.5),
        (np.array(3), 3),
        (np.array(False), False),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor(True), True),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(0.5, dtype=torch.float16), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.nn.Parameter(torch.tensor(0.5)), 0.5),
        (Color.RED, 1),
        (Split.VAL, "val"),
        ([1, np.float32(0.5)], [1, 0.5]),
        ((1, (2, torch.tensor(3))), [1, [2, 3]]),
        (Pair(1, 2), [1, 2]),
        ({"acc": np.float32(0.5), "n": {"deep": torch.tensor(1)}}, {"acc": 0.5, "n": {"deep": 1}}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        ({1: "a"}, {"1": "a"}),
        ({}, {}),
        ([], []),
    ],
    ids=repr,
)
def test_a_metric_becomes_plain_data(value, expected):
    plain = plain_metrics({"metric": value})["metric"]
    assert plain == expected
    assert type(plain) is type(expected)
    assert json.loads(json.dumps(plain)) == expected


@pytest.mark.parametrize("value", [math.nan, np.float32("nan"), torch.tensor(math.nan)], ids=repr)
def test_nan_is_a_number(value):
    plain = plain_metrics({"metric": value})["metric"]
    assert type(plain) is float
    assert math.isnan(plain)


def test_what_is_returned_is_a_copy():
    metrics = {"nested": {"list": [1]}}
    plain_metrics(metrics)["nested"]["list"].append(2)
    assert metrics == {"nested": {"list": [1]}}


@pytest.mark.parametrize(
    ("key", "expected"), [("a", "a"), (1, "1"), (Split.VAL, "val"), (np.str_("x"), "x")]
)
def test_a_name_becomes_plain_text(key, expected):
    ((name, _),) = plain_metrics({key: 1}).items()
    assert name == expected
    assert type(name) is str


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.zeros(1), "numpy.ndarray of shape (1,)"),
        (np.zeros((2, 3)), "numpy.ndarray of shape (2, 3)"),
        (torch.zeros(1), "torch.Tensor of shape (1,)"),
        (torch.zeros(2, 3), "torch.Tensor of shape (2, 3)"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear, which JSON cannot hold"),
        (b"bytes", "bytes, which JSON cannot hold"),
        ({1, 2}, "set, which JSON cannot hold"),
        (object(), "object, which JSON cannot hold"),
        (1 + 2j, "complex, which JSON cannot hold"),
        (np.complex64(1), "numpy.complex64"),
        (np.datetime64("2026-01-01"), "numpy.datetime64"),
        (Decimal(1), "decimal.Decimal, which JSON cannot hold"),
        (Path("/a"), "PosixPath, which JSON cannot hold"),
        (print, "builtin_function_or_method, which JSON cannot hold"),
        (int, "type, which JSON cannot hold"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_json_cannot_hold_is_refused_with_its_path_and_kind(value, kind):
    for metrics, path in [
        ({"loss": value}, "loss"),
        ({"val": {"deep": value}}, "val/deep"),
        ({"all": [0, {"x": value}]}, "all/1/x"),
    ]:
        with pytest.raises(TypeError) as caught:
            plain_metrics(metrics)
        assert str(caught.value).startswith(f"report(): the metric {path!r} is a ")
        assert kind in str(caught.value)


@pytest.mark.parametrize("key", [(1, 2), None, 0.5, True, b"a"], ids=repr)
def test_a_name_that_is_no_text_is_refused(key):
    for metrics, where in [({key: 1}, "metrics"), ({"val": {key: 1}}, "'val'")]:
        with pytest.raises(TypeError) as caught:
            plain_metrics(metrics)
        assert str(caught.value) == f"report(): the key {key!r} in {where} must be a string"


@pytest.mark.parametrize("metrics", [None, 5, [1], "loss", [("loss", 1)], {"loss"}], ids=repr)
def test_metrics_that_are_no_dict_are_refused(metrics):
    with pytest.raises(TypeError) as caught:
        plain_metrics(metrics)
    assert str(caught.value).startswith(f"report(metrics={metrics!r}): must be a dict ")
    assert str(caught.value).endswith(f"not {type(metrics).__name__}")


# ------------------------------------------------------------------ outside a train function
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: minitrain.report({"loss": 1}), "report"),
        (lambda: minitrain.report(None), "report"),
        (minitrain.get_context, "get_context"),
        (minitrain.get_checkpoint, "get_checkpoint"),
        (minitrain.get_dataset_shard, "get_dataset_shard"),
        (lambda: minitrain.get_dataset_shard("train"), "get_dataset_shard"),
        (barrier, "barrier"),
        (lambda: broadcast_from_rank_zero(1), "broadcast_from_rank_zero"),
    ],
)
def test_outside_a_train_function_the_call_says_so(call, name):
    with pytest.raises(NotInTrainingError, match=f"^`{name}` cannot be used outside a train"):
        call()


def test_outside_a_train_function_is_a_runtime_error():
    with pytest.raises(RuntimeError):
        minitrain.get_context()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_a_train_function_forks_is_outside_of_it():
    def report_there():
        try:
            minitrain.report({"loss": 1})
        except NotInTrainingError:
            os._exit(77)

    def train():
        child = multiprocessing.get_context("fork").Process(target=report_there)
        child.start()
        child.join(30)
        return child.exitcode

    result = train_here(train)
    assert result.return_value == 77
    assert result.metrics == {}


# ------------------------------------------------------------------ in a train function
def train_here(function, *, score=None, name="run", **trainer):
    """Run a function in this process."""
    return DataParallelTrainer(
        function,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(
            name=name,
            verbose=0,
            checkpoint_config=CheckpointConfig(checkpoint_score_attribute=score),
        ),
        **trainer,
    ).fit()


def refused(*args, score=None, **kwargs):
    """Return what a report raises where it is called, and how many rows the run then has."""
    caught = []

    def train():
        try:
            minitrain.report(*args, **kwargs)
        except Exception as error:
            caught.append(error)

    result = train_here(train, score=score)
    assert result.metrics == {}, "a report that is refused leaves no row"
    assert result.checkpoint is None
    return caught[0]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "to save"
    path.mkdir()
    (path / "weights").write_text("w")
    return path


@pytest.mark.parametrize("metrics", [None, 5, [1], {"loss": np.zeros(2)}], ids=repr)
def test_a_report_with_bad_metrics_is_refused_in_the_call(metrics):
    assert isinstance(refused(metrics), TypeError)


@pytest.mark.parametrize("checkpoint", ["path", 5, {"weights": 1}], ids=repr)
def test_a_checkpoint_that_is_none_is_refused_with_what_to_write_instead(checkpoint):
    error = refused({"loss": 1}, checkpoint)
    assert isinstance(error, TypeError)
    assert f"report(checkpoint={checkpoint!r}): must be a minitrain.Checkpoint" in str(error)
    assert "Checkpoint.from_directory(path)" in str(error)


def test_a_checkpoint_of_a_missing_directory_is_refused_with_the_path(tmp_path):
    error = refused({"loss": 1}, Checkpoint(tmp_path / "gone"))
    assert isinstance(error, ValueError)
    assert str(tmp_path / "gone") in str(error)


@pytest.mark.parametrize(
    "path",
    [lambda storage: "/", lambda storage: "~", lambda storage: tempfile.gettempdir()],
    ids=["root", "home", "temporary folder"],
)
def test_a_checkpoint_of_everything_is_refused(path, storage):
    error = refused({"loss": 1}, Checkpoint(path(storage)))
    assert isinstance(error, ValueError)
    assert "would copy all of " in str(error)


@pytest.mark.parametrize("relative", ["", "run"], ids=["above the run", "the run itself"])
def test_a_checkpoint_that_would_hold_itself_is_refused(storage, relative):
    error = refused({"loss": 1}, Checkpoint(storage / relative))
    assert isinstance(error, ValueError)
    assert "would copy all of " in str(error)


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "..", 5, Path("x"), "a\0b"])
def test_a_name_that_is_none_of_a_directory_is_refused(folder, name):
    error = refused({"loss": 1}, Checkpoint(folder), checkpoint_dir_name=name)
    assert isinstance(error, ValueError)
    assert f"report(checkpoint_dir_name={name!r})" in str(error)


@pytest.mark.parametrize("score", ["high", True, [1], {"deep": 1}])
def test_a_score_that_is_no_number_is_refused_in_the_call(folder, score):
    error = refused({"acc": score}, Checkpoint(folder), score="acc")
    assert isinstance(error, TypeError)
    assert "the metric 'acc' ranks checkpoints" in str(error)
    assert repr(score) in str(error)


def test_a_nested_score_that_is_no_number_is_refused_in_the_call(folder):
    error = refused({"val": {"acc": "high"}}, Checkpoint(folder), score="val/acc")
    assert "the metric 'val/acc' ranks checkpoints" in str(error)


def test_a_score_is_only_looked_at_with_a_checkpoint():
    result = train_here(lambda: minitrain.report({"acc": "high"}), score="acc")
    assert result.metrics["acc"] == "high"


@pytest.mark.parametrize("metrics", [{}, {"acc": None}, {"acc": math.nan}, {"acc": np.float32(1)}])
def test_a_score_may_be_missing_or_nan(folder, metrics):
    result = train_here(lambda: minitrain.report(metrics, Checkpoint(folder)), score="acc")
    assert result.checkpoint is not None


def test_a_name_that_is_taken_is_refused_in_the_call(folder):
    caught = []

    def train():
        minitrain.report({"n": 1}, Checkpoint(folder), checkpoint_dir_name="mine")
        try:
            minitrain.report({"n": 2}, Checkpoint(folder), checkpoint_dir_name="mine")
        except CheckpointError as error:
            caught.append(error)

    result = train_here(train)
    assert "'mine'" in str(caught[0])
    assert result.checkpoint.path.endswith("/mine")
    assert len(result.best_checkpoints) == 1


def test_an_empty_directory_is_a_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    result = train_here(lambda: minitrain.report({}, Checkpoint(tmp_path / "empty")))
    assert result.checkpoint is not None


def test_a_checkpoint_that_is_not_on_a_local_filesystem_is_copied_too(folder):
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    elsewhere = Checkpoint(folder.name, SubTreeFileSystem(str(folder.parent), LocalFileSystem()))
    result = train_here(lambda: minitrain.report({"loss": 1}, elsewhere))
    assert (Path(result.checkpoint.path) / "weights").read_text() == "w"


def test_the_error_of_a_function_in_this_process_shows_its_own_frames_and_fitting_advice():
    def train():
        raise ValueError("no")

    with pytest.raises(WorkerGroupError) as caught:
        train_here(train)
    text = str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    assert f'File "{__file__}"' in text
    assert str(Path(minitrain.__file__).parent) not in text, "frames of the library"
    assert "num_workers=0" not in text, "that is how it runs already"


def test_a_dataset_that_is_not_there_is_named_with_those_that_are():
    def train():
        with pytest.raises(KeyError, match=r"'val'.*'train'"):
            minitrain.get_dataset_shard("val")
        assert minitrain.get_dataset_shard("train") == [1]
        assert minitrain.get_dataset_shard() == [1]

    train_here(train, datasets={"train": [1]})


def test_a_dataset_that_is_given_as_a_function_is_made_once():
    def train():
        return minitrain.get_dataset_shard("train") is minitrain.get_dataset_shard("train")

    assert train_here(train, datasets={"train": lambda: [1]}).return_value is True
