"""What fit() does, from the train function to the Result, with real workers."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import minitrain
from minitrain import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from minitrain.collective import barrier, broadcast_from_rank_zero
from minitrain.exceptions import (
    CheckpointError,
    CollectiveTimeoutError,
    ConfigurationError,
    ControllerError,
    RemoteError,
    ReportMismatchError,
    TrainingFailedError,
    WorkerDiedError,
    WorkerGroupError,
)
from minitrain.torch import TorchTrainer
from minitrain.trainer import BaseTrainer, DataParallelTrainer

V1_KEYS = {
    "timestamp", "checkpoint_dir_name", "should_checkpoint", "done", "training_iteration",
    "trial_id", "date", "time_this_iter_s", "time_total_s", "pid", "hostname", "node_ip", "config",
    "time_since_restore", "iterations_since_restore", "experiment_tag",
}  # fmt: skip


def run(
    function, num_workers=2, *, config=None, datasets=None, metadata=None, resume=None, **where
):
    """Run a function in workers, without a process group unless it makes one."""
    trainer = DataParallelTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(**where),
        datasets=datasets,
        metadata=metadata,
        resume_from_checkpoint=resume,
    )
    return trainer.fit()


def failure_of(function, num_workers=2, **where) -> WorkerGroupError:
    with pytest.raises(WorkerGroupError) as caught:
        run(function, num_workers, **where)
    return caught.value


def report_with_checkpoint(tmp, metrics, text="weights", name=None):
    folder = Path(tmp, f"to_save_{os.getpid()}")
    folder.mkdir(exist_ok=True)
    (folder / f"rank_{minitrain.get_context().get_world_rank()}.txt").write_text(text)
    minitrain.report(metrics, Checkpoint.from_directory(folder), checkpoint_dir_name=name)


# ------------------------------------------------------------------ where a train function runs
def test_ranks_and_names_are_those_of_the_run(storage):
    def train():
        context = minitrain.get_context()
        facts = {
            "world_size": context.get_world_size(),
            "rank": context.get_world_rank(),
            "local_rank": context.get_local_rank(),
            "local_world_size": context.get_local_world_size(),
            "node_rank": context.get_node_rank(),
            "name": context.get_experiment_name(),
            "dir": context.get_trial_dir(),
            "trial": context.get_trial_name(),
            "id": context.get_trial_id(),
            "resources": context.get_trial_resources(),
            "metadata": context.get_metadata(),
            "storage": context.get_storage().experiment_fs_path,
            "cwd": os.getcwd(),
        }
        minitrain.report(facts)

    seen = []

    class Collect(UserCallback):
        def after_report(self, run_context, metrics, checkpoint):
            seen.extend(metrics)

    result = run(train, 3, name="here", callbacks=[Collect()], metadata={"a": 1})
    assert [facts["rank"] for facts in seen] == [0, 1, 2]
    assert [facts["local_rank"] for facts in seen] == [0, 1, 2]
    for facts in seen:
        assert facts["world_size"] == facts["local_world_size"] == 3
        assert facts["node_rank"] == 0
        assert facts["name"] == "here"
        assert facts["dir"] == facts["storage"] == result.path == str(storage / "here")
        assert facts["trial"] == f"DataParallelTrainer_{facts['id']}"
        assert facts["resources"] == {"CPU": 1}
        assert facts["metadata"] == {"a": 1}
        assert facts["cwd"] == f"{result.path}/artifacts"


def test_torchruns_variables_are_there():
    def train():
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
                 "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE",
                 "TORCHELASTIC_RESTART_COUNT",
                 "TORCHELASTIC_RUN_ID", "GLOO_SOCKET_IFNAME"]  # fmt: skip
        return {name: os.environ[name] for name in names}

    variables = run(train, 2).return_value
    assert variables["RANK"] == "0"
    assert variables["WORLD_SIZE"] == variables["LOCAL_WORLD_SIZE"] == "2"
    assert variables["MASTER_ADDR"] == "127.0.0.1"
    assert variables["GLOO_SOCKET_IFNAME"] == "lo"


def test_the_drivers_environment_path_and_arguments_arrive(monkeypatch, tmp_path):
    (tmp_path / "only_here.py").write_text("VALUE = 42\n")
    monkeypatch.setenv("FROM_THE_DRIVER", "yes")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "1"])

    def train():
        import only_here

        return os.environ["FROM_THE_DRIVER"], os.environ["ADDED"], only_here.VALUE, sys.argv

    result = run(train, 1, worker_runtime_env={"env_vars": {"ADDED": "too"}})
    assert result.return_value == ("yes", "too", 42, ["train.py", "--lr", "1"])


def test_a_variable_removed_in_the_driver_is_gone_in_the_next_run(monkeypatch):
    monkeypatch.setenv("COMES_AND_GOES", "1")
    assert run(lambda: os.environ.get("COMES_AND_GOES"), 1).return_value == "1"
    monkeypatch.delenv("COMES_AND_GOES")
    assert run(lambda: os.environ.get("COMES_AND_GOES"), 1).return_value is None


def test_the_drivers_working_directory_is_kept_if_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("MINITRAIN_CHDIR", "0")
    monkeypatch.chdir(tmp_path)
    assert run(os.getcwd, 1).return_value == str(tmp_path)


@pytest.mark.parametrize(
    ("resources", "variable", "expected"),
    [
        (None, None, max(1, len(os.sched_getaffinity(0)) // 2)),
        ({"CPU": 3}, None, 3),
        ({"CPU": 3}, "5", 5),
    ],
)
def test_threads_are_the_workers_cpus_unless_the_user_says(
    monkeypatch, resources, variable, expected
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)

    def train():
        import numpy as np
        import threadpoolctl
        import torch

        np.ones((2, 2)) @ np.ones((2, 2))
        blas = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        return os.environ["OMP_NUM_THREADS"], torch.get_num_threads(), max(blas)

    trainer = DataParallelTrainer(
        train, scaling_config=ScalingConfig(num_workers=2, resources_per_worker=resources)
    )
    by_variable, by_torch, by_blas = trainer.fit().return_value
    assert (by_variable, by_torch) == (str(expected), expected)
    assert by_blas == expected


def test_workers_draw_different_random_numbers():
    def train():
        import random

        import numpy as np

        minitrain.report({"numpy": np.random.rand(), "python": random.random()})

    drawn = []

    class Collect(UserCallback):
        def after_report(self, run_context, metrics, checkpoint):
            drawn.extend(metrics)

    for _ in range(2):
        run(train, 2, callbacks=[Collect()])
    assert len({one["numpy"] for one in drawn}) == 4
    assert len({one["python"] for one in drawn}) == 4


@pytest.mark.campaign
def test_workers_of_one_agent_serve_run_after_run():
    pids = [run(os.getppid, 1).return_value for _ in range(2)]
    assert pids[0] == pids[1]
    minitrain.shutdown()
    assert run(os.getppid, 1).return_value != pids[0]


@pytest.mark.campaign
def test_two_runs_at_once_do_not_disturb_each_other():
    import threading

    results = {}

    def train(config):
        barrier()
        return config["number"]

    def drive(number):
        results[number] = run(train, 2, config={"number": number}).return_value

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: 0, 1: 1}
    minitrain.shutdown()


# ------------------------------------------------------------------ what can be a train function
def test_a_lambda_a_closure_and_a_configuration():
    captured = {"by": "value"}
    assert run(lambda: captured, 1).return_value == {"by": "value"}
    assert run(lambda config: config["x"] + 1, 1, config={"x": 1}).return_value == 2
    assert run(lambda config: config, 1).return_value == {}


def test_what_cannot_be_pickled_is_refused_before_anything_starts(storage):
    generator = (i for i in range(3))

    def train():
        return next(generator)

    with pytest.raises(ConfigurationError, match="captured variable 'generator', a generator"):
        run(train, 1)
    with pytest.raises(ConfigurationError, match=r"datasets cannot be sent.*the key 'train'"):
        run(lambda: None, 1, datasets={"train": (i for i in range(3))})
    assert not storage.exists()


def test_a_return_value_that_cannot_be_pickled_does_not_lose_the_training(caplog):
    def train():
        minitrain.report({"x": 1})
        return (i for i in range(3))

    with caplog.at_level("WARNING", logger="minitrain"):
        result = run(train, 1)
    assert result.metrics["x"] == 1
    assert result.return_value is None
    assert "return value could not be sent" in caplog.text


def test_datasets_reach_the_workers_by_name():
    def train():
        whole = minitrain.get_dataset_shard("train")
        made = minitrain.get_dataset_shard("val")
        with pytest.raises(KeyError, match=r"no dataset 'test'.*\['train', 'val'\]"):
            minitrain.get_dataset_shard("test")
        return whole, made

    datasets = {"train": [1, 2, 3], "val": lambda: "made here"}
    assert run(train, 1, datasets=datasets).return_value == ([1, 2, 3], "made here")


def test_a_trainer_of_ones_own_trains_in_a_worker():
    class Mine(BaseTrainer):
        def setup(self):
            self.number = 41

        def training_loop(self):
            minitrain.report({"number": self.number + 1, "pid": os.getpid()})

    result = Mine().fit()
    assert result.metrics["number"] == 42
    assert result.metrics["pid"] != os.getpid()


def test_exit_handlers_of_the_train_function_run(tmp_path):
    def train():
        import atexit

        atexit.register((tmp_path / f"left_{os.getpid()}").touch)

    run(train, 2)
    assert len(list(tmp_path.glob("left_*"))) == 2


@pytest.mark.campaign
def test_a_worker_can_have_children_of_every_kind():
    def train():
        import math
        import multiprocessing

        found = []
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                found.append(pool.apply(math.sqrt, (4,)))
                pool.close()
                pool.join()
        inner = DataParallelTrainer(lambda: "inner", scaling_config=ScalingConfig(num_workers=1))
        return found, inner.fit().return_value

    assert run(train, 1).return_value == ([2.0, 2.0], "inner")


# ------------------------------------------------------------------ reports
def test_every_report_is_a_row_everywhere(storage):
    def train():
        for step in range(5):
            extra = {"late": step} if step >= 3 else {}
            minitrain.report({"loss": 1 / (step + 1), "nested": {"a": step}, **extra})

    result = run(train, 2, config={"lr": 0.5}, name="rows")
    rows = [json.loads(line) for line in (storage / "rows/result.json").read_text().splitlines()]
    assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0].keys() >= V1_KEYS
    assert rows[0]["config"] == {"lr": 0.5}
    with (storage / "rows/progress.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["late"] for row in table] == ["", "", "", "3", "4"]
    assert [row["nested/a"] for row in table] == ["0", "1", "2", "3", "4"]
    assert table[0]["config/lr"] == "0.5"
    frame = result.metrics_dataframe
    assert list(frame["nested/a"]) == [0, 1, 2, 3, 4]
    assert frame["config/lr"][0] == 0.5
    assert result.metrics["loss"] == 0.2
    assert result.metrics["done"] is True
    assert result.config == {"lr": 0.5}
    assert result.error is None


def test_numpy_and_tensors_become_numbers_and_nan_stays_nan():
    def train():
        import numpy as np
        import torch

        minitrain.report(
            {"a": np.float32(0.5), "b": torch.tensor(2), "c": math.nan, "d": -math.inf}
        )

    result = run(train, 1)
    read_back = Result.from_path(result.path).metrics
    for metrics in (result.metrics, read_back):
        assert (metrics["a"], metrics["b"], metrics["d"]) == (0.5, 2, -math.inf)
        assert math.isnan(metrics["c"])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"x": {1, 2}}, r"the metric 'x' is a set"),
        ({"a": {"b": object()}}, r"the metric 'a/b' is a object"),
        (5, r"must be a dict"),
        (None, r"must be a dict"),
    ],
)
def test_what_is_no_metric_is_refused_in_the_call(metrics, message):
    def train():
        minitrain.report(metrics)

    error = failure_of(train, 1)
    assert isinstance(error.__cause__, TypeError)
    with pytest.raises(TypeError, match=message):
        raise error.__cause__


def test_reporting_more_often_on_one_rank_is_an_error_that_says_who():
    def train():
        for _ in range(3 if minitrain.get_context().get_world_rank() == 0 else 1):
            minitrain.report({"x": 1})

    error = failure_of(train)
    assert isinstance(error.__cause__, ReportMismatchError)
    counts = error.__cause__.counts  # noticed as soon as rank 1 has returned: rank 0 may go on
    assert counts[0] > 1
    assert counts[1] == 1
    assert f"rank 0 {counts[0]} times and by rank 1 1 time" in str(error)


def test_waiting_for_a_checkpoint_of_a_rank_that_has_returned_is_an_error(tmp_path):
    def train():
        if minitrain.get_context().get_world_rank() == 0:
            report_with_checkpoint(tmp_path, {"x": 1})

    assert failure_of(train).__cause__.counts == {0: 1, 1: 0}


def test_rank_zero_alone_reporting_without_end_is_named_when_the_other_returns():
    def train():
        if minitrain.get_context().get_world_rank() == 0:
            while True:
                minitrain.report({"x": 1})
                time.sleep(0.001)

    assert isinstance(failure_of(train).__cause__, ReportMismatchError)


def test_a_rank_that_does_not_come_is_named_after_the_timeout(monkeypatch):
    monkeypatch.setenv("MINITRAIN_COLLECTIVE_TIMEOUT_S", "0.5")

    def train():
        if minitrain.get_context().get_world_rank() == 0:
            barrier()
        signal.pause()

    error = failure_of(train, 3)
    assert isinstance(error.__cause__, CollectiveTimeoutError)
    assert "barrier(): rank 1, 2 did not arrive within 0.5 s" in str(error)
    assert error.failures[0].rank == 0


def test_a_rank_that_others_wait_for_is_named_in_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("MINITRAIN_COLLECTIVE_WARN_S", "0.1")
    release = Path(os.environ["MINITRAIN_STORAGE"]).parent / "release"

    def train():
        if minitrain.get_context().get_world_rank() == 1:
            deadline = time.monotonic() + 20
            while not release.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        barrier()

    import logging

    class ReleaseOnWarning(logging.Handler):
        def emit(self, record):
            release.touch()

    handler = ReleaseOnWarning(level="WARNING")
    minitrain_logger = logging.getLogger("minitrain")
    minitrain_logger.addHandler(handler)
    try:
        with caplog.at_level("WARNING", logger="minitrain"):
            run(train, 2)
    finally:
        minitrain_logger.removeHandler(handler)
    assert "barrier(): rank 1 has not made the call that rank 0 made" in caplog.text


def test_collectives_bring_rank_zeros_data():
    def train():
        rank = minitrain.get_context().get_world_rank()
        barrier()
        data = broadcast_from_rank_zero({"from": rank})
        minitrain.report({"got": data["from"], "rank": rank})

    got = []

    class Collect(UserCallback):
        def after_report(self, run_context, metrics, checkpoint):
            got.extend(metrics)

    run(train, 3, callbacks=[Collect()])
    assert got == [{"got": 0, "rank": rank} for rank in range(3)]


def test_a_broadcast_larger_than_any_pipe_reaches_every_rank():
    def train():
        data = broadcast_from_rank_zero(bytes(8 << 20))
        return len(data)

    assert run(train, 2).return_value == 8 << 20


@pytest.mark.parametrize("stop", [{"step": 5}, lambda trial_id, row: row["step"] >= 5])
def test_a_stop_condition_ends_all_ranks_after_the_same_report(stop):
    def train():
        for step in range(1000):
            minitrain.report({"step": step})

    result = run(train, 2, stop=stop)
    assert result.metrics["step"] == 5
    assert len(result.metrics_dataframe) == 6
    assert json.loads(Path(result.path, "run.json").read_text())["status"] == "stopped"


def test_callbacks_see_every_ranks_metrics_and_the_checkpoint(tmp_path):
    seen = []

    class Watch(UserCallback):
        def after_report(self, run_context, metrics, checkpoint):
            seen.append(([one["rank"] for one in metrics], checkpoint, run_context.name))
            assert run_context.get_run_config().name == "watched"

    def train():
        rank = minitrain.get_context().get_world_rank()
        minitrain.report({"rank": rank})
        report_with_checkpoint(tmp_path, {"rank": rank})

    result = run(train, 2, name="watched", callbacks=[Watch()])
    assert seen == [([0, 1], None, "watched"), ([0, 1], result.checkpoint, "watched")]


def test_a_callback_that_raises_ends_the_run_and_is_named():
    class Broken(UserCallback):
        def after_report(self, run_context, metrics, checkpoint):
            raise ZeroDivisionError("oh")

    def train():
        minitrain.report({"x": 1})
        signal.pause()

    with pytest.raises(ControllerError, match=r"Broken.after_report raised ZeroDivisionError: oh"):
        run(train, 2, callbacks=[Broken()])


def test_callbacks_hear_of_failures():
    heard = []

    class Listen(UserCallback):
        def after_exception(self, run_context, worker_exceptions):
            heard.append(worker_exceptions)

    def train():
        if minitrain.get_context().get_world_rank() == 1:
            raise ValueError("no")
        signal.pause()

    failure_of(train, callbacks=[Listen()])
    ((rank, error),) = heard[0].items()
    assert (rank, type(error), str(error)) == (1, ValueError, "no")


# ------------------------------------------------------------------ checkpoints
def test_the_files_of_all_ranks_make_one_checkpoint(tmp_path):
    def train():
        report_with_checkpoint(tmp_path, {"x": 1})
        return minitrain.get_checkpoint()

    result = run(train, 3, metadata={"made": "here"})
    assert result.return_value == result.checkpoint
    assert result.checkpoint.path == f"{result.path}/checkpoint_000000"
    names = {path.name for path in Path(result.checkpoint.path).iterdir()}
    assert names == {
        "rank_0.txt", "rank_1.txt", "rank_2.txt", ".metadata.json", ".manifest.json"
    }  # fmt: skip
    assert result.checkpoint.get_metadata() == {"made": "here"}
    assert result.metrics["checkpoint_dir_name"] == "checkpoint_000000"


def test_the_best_stay_and_the_newest(tmp_path):
    def train():
        for loss in (3.0, 1.0, math.nan, 2.0, 9.0):
            report_with_checkpoint(tmp_path, {"loss": loss}, text=str(loss))

    keep = CheckpointConfig(
        num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="min"
    )
    result = run(train, 2, checkpoint_config=keep)
    kept = [(Path(c.path).name, m["loss"]) for c, m in result.best_checkpoints]
    assert kept == [("checkpoint_000003", 2.0), ("checkpoint_000001", 1.0)]
    assert Path(result.checkpoint.path).name == "checkpoint_000004"
    on_disk = sorted(path.name for path in Path(result.path).glob("checkpoint_*"))
    assert on_disk == ["checkpoint_000001", "checkpoint_000003", "checkpoint_000004"]
    best = result.get_best_checkpoint("loss", "min")
    assert Path(best.path, "rank_0.txt").read_text() == "1.0"


def test_the_directory_given_stays_and_is_copied_as_it_was(tmp_path):
    def train():
        folder = tmp_path / "mine"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "weights").write_text("before")
        minitrain.report({"x": 1}, Checkpoint.from_directory(folder))
        (folder / "sub" / "weights").write_text("after")

    result = run(train, 1)
    with result.checkpoint.as_directory() as path:
        assert Path(path, "sub", "weights").read_text() == "before"
    assert (tmp_path / "mine" / "sub" / "weights").read_text() == "after"


def test_a_name_of_ones_own_is_used_once(tmp_path):
    def train():
        report_with_checkpoint(tmp_path, {"x": 1}, name="best=1")
        with pytest.raises(CheckpointError, match="never used twice"):
            report_with_checkpoint(tmp_path, {"x": 2}, name="best=1")

    assert Path(run(train, 1).checkpoint.path).name == "best=1"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "does not exist"),
        ("/", "would copy all of /"),
        (os.path.expanduser("~"), "would copy all of"),
    ],
)
def test_a_checkpoint_of_a_wrong_folder_is_refused_in_the_call(path, message):
    def train():
        minitrain.report({"x": 1}, Checkpoint.from_directory(path))

    with pytest.raises(ValueError, match=message):
        raise failure_of(train, 1).__cause__


def test_a_checkpoint_that_is_a_string_is_refused_in_the_call():
    def train():
        minitrain.report({"x": 1}, "/tmp/x")

    with pytest.raises(TypeError, match=r"must be a minitrain.Checkpoint, not str"):
        raise failure_of(train, 1).__cause__


def test_a_score_that_is_no_number_is_refused_in_the_call(tmp_path):
    def train():
        report_with_checkpoint(tmp_path, {"score": "good"})

    keep = CheckpointConfig(checkpoint_score_attribute="score")
    with pytest.raises(TypeError, match="'score' ranks checkpoints"):
        raise failure_of(train, 1, checkpoint_config=keep).__cause__


def test_a_run_can_start_from_another_runs_checkpoint(tmp_path):
    def train():
        start = minitrain.get_checkpoint()
        text = Path(start.path, "rank_0.txt").read_text() if start else "none"
        report_with_checkpoint(tmp_path, {"x": 1}, text=text + "+")

    first = run(train, 1)
    second = run(train, 1, resume=first.checkpoint)
    assert Path(second.checkpoint.path, "rank_0.txt").read_text() == "none++"
    assert second.checkpoint.path == f"{second.path}/checkpoint_000000"


def test_a_restart_goes_on_from_the_newest_checkpoint(tmp_path):
    def train():
        start = minitrain.get_checkpoint()
        done = int(Path(start.path, "rank_0.txt").read_text()) if start else 0
        for step in range(done, 4):
            report_with_checkpoint(tmp_path, {"step": step}, text=str(step + 1))
            if start is None and step == 1 and minitrain.get_context().get_world_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    result = run(train, 2, failure_config=FailureConfig(max_failures=1))
    assert list(result.metrics_dataframe["step"]) == [0, 1, 2, 3]
    assert list(result.metrics_dataframe["training_iteration"]) == [1, 2, 3, 4]
    record = json.loads(Path(result.path, "run.json").read_text())
    assert [attempt["outcome"].split()[0] for attempt in record["attempts"]] == [
        "Training", "returned"
    ]  # fmt: skip
    assert Path(result.path, "logs/attempt_1/rank_1.log").exists()
    assert not Path(result.path, "error.txt").exists()


def test_the_budget_of_failures_is_exact():
    def train():
        raise ValueError("always")

    error = failure_of(train, 1, failure_config=FailureConfig(max_failures=2), name="budget")
    assert "This was attempt 3 (max_failures=2)" in str(error)


# ------------------------------------------------------------------ failures
def test_the_users_exception_is_the_cause_with_its_type_and_frames():
    class MyError(Exception):
        pass

    def deep_inside():
        raise MyError("what went wrong")

    def train():
        if minitrain.get_context().get_world_rank() == 1:
            deep_inside()
        signal.pause()

    error = failure_of(train)
    assert type(error.__cause__) is MyError
    text = str(error)
    assert text.startswith("Training failed: rank 1 on ")
    assert f"pid {error.failures[0].pid}" in text
    assert "logs/attempt_0/rank_1.log" in text
    assert "in deep_inside" in text
    assert "minitrain/_worker" not in text
    assert "num_workers=0" in text
    assert isinstance(error, TrainingFailedError)
    assert error.worker_failures.keys() == {1}


def test_the_same_error_of_all_ranks_is_told_once():
    def train():
        barrier()
        raise ValueError(f"bad batch at {hex(id(object()))}")

    text = str(failure_of(train, 4))
    assert text.count("Traceback") == 1
    assert sum(line.startswith("ValueError: bad batch") for line in text.splitlines()) == 1
    assert "  the same error on ranks " in text


def test_an_exception_that_cannot_be_unpickled_is_described():
    class Awkward(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")

    def train():
        raise Awkward(1, 2)

    error = failure_of(train, 1)
    assert isinstance(error.__cause__, RemoteError)
    assert str(error.__cause__).endswith("Awkward: 1 and 2")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda: os._exit(3), "exited with code 3"),
        (lambda: os._exit(0), "exited with code 0 before the train function returned"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lambda: os.abort(), "was killed by SIGABRT"),
        (lambda: sys.exit(4), "SystemExit: 4"),
    ],
)
def test_the_end_of_a_process_is_told_in_words(end, words):
    def train():
        if minitrain.get_context().get_world_rank() == 1:
            print("my last words", flush=True)
            end()
        signal.pause()

    error = failure_of(train)
    assert error.failures[0].rank == 1
    assert words in str(error)
    if isinstance(error.__cause__, WorkerDiedError):
        assert "my last words" in str(error)


def test_the_death_of_a_peer_is_the_cause_not_what_its_peers_say_of_it(tmp_path):
    def train():
        import time

        import torch

        # Torch's first error has its tables read from the disk: longer than peers are listened to.
        with contextlib.suppress(RuntimeError):
            torch.ones(1).reshape(2)
        torch.distributed.all_reduce(torch.ones(1))
        if minitrain.get_context().get_world_rank() == 1:
            while not (tmp_path / "waiting").exists():
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / "waiting").touch()
        torch.distributed.all_reduce(torch.ones(1))

    with pytest.raises(WorkerGroupError) as caught:
        TorchTrainer(train, scaling_config=ScalingConfig(num_workers=2)).fit()
    assert isinstance(caught.value.__cause__, WorkerDiedError)
    assert "afterwards, rank 0" in str(caught.value)


def test_a_module_missing_in_the_worker_is_told(tmp_path, monkeypatch):
    (tmp_path / "short_lived.py").write_text("def helper():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import short_lived

    helper = short_lived.helper
    (tmp_path / "short_lived.py").unlink()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])

    class Uses:
        function = staticmethod(helper)

    error = failure_of(lambda: Uses.function(), 1)
    assert isinstance(error.__cause__, ModuleNotFoundError)
    del sys.modules["short_lived"]


def test_a_failed_run_leaves_its_error_and_can_be_read_back(storage):
    def train():
        minitrain.report({"x": 1})
        raise ValueError("no")

    failure_of(train, 1, name="failed")
    assert "ValueError: no" in (storage / "failed/error.txt").read_text()
    result = Result.from_path(storage / "failed")
    assert isinstance(result.error, WorkerGroupError)
    assert result.metrics["x"] == 1


def test_a_name_that_is_taken_gets_a_number_and_nothing_is_overwritten(storage):
    for number in range(3):
        run(lambda config: minitrain.report(config), 1, config={"n": number}, name="same")
    values = [
        Result.from_path(storage / name).metrics["n"] for name in ("same", "same_1", "same_2")
    ]
    assert values == [0, 1, 2]


def test_storage_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"storage_path=.*cannot be written to"):
        run(lambda: None, 1, storage_path=str(tmp_path / "file"))


# ------------------------------------------------------------------ output
def test_output_goes_to_logs_and_rank_zeros_to_the_console(capfd):
    def train():
        rank = minitrain.get_context().get_world_rank()
        print(f"out of {rank}")
        print(f"err of {rank}", file=sys.stderr)
        os.write(1, f"raw of {rank}\nno newline of {rank}".encode())

    result = run(train, 3)
    for rank in range(3):
        log = Path(result.path, f"logs/attempt_0/rank_{rank}.log").read_text()
        for kind in ("out", "err", "raw", "no newline"):
            assert f"{kind} of {rank}" in log
    console = capfd.readouterr().out
    for kind in ("out", "err", "raw", "no newline"):
        assert f"[rank 0] {kind} of 0\n" in console
    assert "of 1" not in console


@pytest.mark.parametrize(("ranks", "shown"), [("all", {0, 1, 2}), ([1, 2], {1, 2}), ([], set())])
def test_the_ranks_on_the_console_can_be_chosen(capfd, ranks, shown):
    run(lambda: print(f"this is {minitrain.get_context().get_world_rank()}"), 3, log_ranks=ranks)
    console = capfd.readouterr().out
    assert {rank for rank in range(3) if f"[rank {rank}] this is {rank}" in console} == shown


@pytest.mark.campaign
def test_a_flood_of_output_and_reports_arrives_whole(capfd):
    def train():
        for number in range(3000):
            print("x" * 200, number)
            minitrain.report({"number": number})

    result = run(train, 2, verbose=0)
    assert len(result.metrics_dataframe) == 3000
    assert "x 2999\n" in capfd.readouterr().out
    assert len(Path(result.path, "logs/attempt_0/rank_1.log").read_text().splitlines()) == 3000


# ------------------------------------------------------------------ in the driver's own process
def test_zero_workers_train_in_this_process_with_the_same_files(tmp_path, capfd):
    def train():
        assert minitrain.get_context().get_world_size() == 1
        print("hello")
        barrier()
        assert broadcast_from_rank_zero(7) == 7
        report_with_checkpoint(tmp_path, {"pid_here": os.getpid()})
        minitrain.report({"pid_here": os.getpid()})
        return "value"

    def files(result):
        root = Path(result.path)
        return {
            str(path.relative_to(root)) for path in root.rglob("*") if "tfevents" not in path.name
        }

    here, elsewhere = run(train, 0), run(train, 1)
    assert here.metrics["pid_here"] == os.getpid() != elsewhere.metrics["pid_here"]
    assert here.return_value == elsewhere.return_value == "value"
    assert files(here) == files(elsewhere)
    assert here.metrics.keys() == elsewhere.metrics.keys()
    assert here.checkpoint.path == f"{here.path}/checkpoint_000000"
    assert "hello" in Path(here.path, "logs/attempt_0/rank_0.log").read_text()
    assert "hello" in capfd.readouterr().out


def test_an_exception_in_this_process_is_the_same_kind_of_error(storage):
    def train():
        raise ValueError("here")

    error = failure_of(train, 0, name="local")
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.__traceback__ is not None, "a debugger needs it"
    assert "ValueError: here" in (storage / "local/error.txt").read_text()


def test_zero_workers_have_a_process_group_of_their_own():
    def train():
        import torch

        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        return total.item()

    trainer = TorchTrainer(train, scaling_config=ScalingConfig(num_workers=0))
    assert trainer.fit().return_value == 1.0
    import torch

    assert not torch.distributed.is_initialized()


@pytest.mark.campaign
# ------------------------------------------------------------------ what is preloaded
def test_the_agent_has_one_thread_whatever_it_preloads(monkeypatch):
    from minitrain._driver.agents import SAFE_TO_FORK

    installed = [name for name in SAFE_TO_FORK if _is_installed(name)]
    monkeypatch.setenv("MINITRAIN_PRELOAD", ",".join(installed))
    minitrain.shutdown()

    def train():
        missing = [name for name in installed if name not in sys.modules]
        return len(os.listdir(f"/proc/{os.getppid()}/task")), missing

    assert run(train, 1).return_value == (1, [])
    minitrain.shutdown()


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name.partition(".")[0]) is not None


@pytest.mark.campaign
def test_what_workers_imported_is_preloaded_for_the_next_run():
    minitrain.shutdown()

    def train():
        known = "torchmetrics" in sys.modules
        import torchmetrics  # noqa: F401

        return known

    sys.modules.pop("torchmetrics", None)
    assert run(train, 1).return_value is False
    deadline_s = time.monotonic() + 20
    while not run(train, 1).return_value:
        assert time.monotonic() < deadline_s
        time.sleep(0.3)  # the agent must have a moment with nothing to do
    minitrain.shutdown()


@pytest.mark.campaign
def test_preloading_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("MINITRAIN_PRELOAD", "off")
    minitrain.shutdown()
    import pandas  # noqa: F401

    assert run(lambda: "pandas" in sys.modules, 1).return_value is False
    minitrain.shutdown()
