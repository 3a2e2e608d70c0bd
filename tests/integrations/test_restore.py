"""Runs whose driver went away go on where they were: restore(), can_restore(), resume."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import tempfile
import threading
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
from minitrain.exceptions import ConfigurationError, WorkerGroupError
from minitrain.trainer import BaseTrainer, DataParallelTrainer

STEPS = 6
LONG = pytest.mark.campaign


def train(config):
    """Count to STEPS, one checkpoint a step; die once at a step if told to."""
    import os
    import tempfile
    from pathlib import Path

    context = minitrain.get_context()
    first = 0
    start = minitrain.get_checkpoint()
    if start is not None:
        with start.as_directory() as folder:
            first = int(Path(folder, "step").read_text()) + 1
    for step in range(first, STEPS):
        minitrain.collective.barrier()
        is_last = context.get_world_rank() == context.get_world_size() - 1
        if is_last and step == config.get("die_at") and not Path(config["mark"]).exists():
            Path(config["mark"]).touch()
            os._exit(7)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "step").write_text(str(step))
            checkpoint = Checkpoint.from_directory(folder)
            minitrain.report(
                {"step": step, "world_size": context.get_world_size(), "tag": config.get("tag")},
                checkpoint if context.get_world_rank() == 0 else None,
            )
    return first


@pytest.fixture(scope="module")
def failed_once(tmp_path_factory):
    """A run that died before its step 3."""
    folder = tmp_path_factory.mktemp("failed")
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"die_at": 3, "mark": str(folder / "mark"), "tag": "first"},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run",
            storage_path=folder / "results",
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        metadata={"by": "me"},
    )
    with pytest.raises(WorkerGroupError):
        trainer.fit()
    return folder / "results"


@pytest.fixture
def failed(failed_once, tmp_path):
    """The run at the place that its files tell of, as it was when it had died."""
    shutil.copytree(failed_once, tmp_path / "before", symlinks=True)
    yield failed_once / "run"
    shutil.rmtree(failed_once)
    (tmp_path / "before").rename(failed_once)


def newest_of(path: Path) -> Path:
    return Path(Result.from_path(path).checkpoint.path)


def check_whole(path: Path, result) -> None:
    """Fail unless everything in a run's directory tells of STEPS steps, each once."""
    frame = result.metrics_dataframe
    assert list(frame["step"]) == list(range(STEPS))
    assert list(frame["training_iteration"]) == list(range(1, STEPS + 1))
    with (path / "progress.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(STEPS))
    record = json.loads((path / "run.json").read_text())
    assert record["status"] == "finished"
    assert set(record["checkpoints"]) == {one.name for one in path.glob("checkpoint_*")}
    for checkpoint, _ in result.best_checkpoints:
        checkpoint.verify()


def test_a_failed_run_goes_on_from_its_newest_checkpoint(failed):
    assert (failed / "error.txt").exists()
    trainer = DataParallelTrainer.restore(failed)
    result = trainer.fit()
    assert result.path == str(failed)
    assert result.return_value == 3
    check_whole(failed, result)
    assert result.checkpoint.get_metadata() == {"by": "me"}
    assert not (failed / "error.txt").exists(), "it is no longer true"
    record = json.loads((failed / "run.json").read_text())
    assert [one["outcome"] for one in record["attempts"]][-1] == "returned"
    assert len(record["attempts"]) == 2
    assert sorted(path.name for path in (failed / "logs").iterdir()) == ["attempt_0", "attempt_1"]
    assert len(list(failed.glob("checkpoint_*"))) == 2


def test_a_directory_that_was_moved_is_restored_where_it_is(failed, tmp_path):
    moved = tmp_path / "elsewhere" / "other name"
    moved.parent.mkdir()
    failed.rename(moved)
    result = DataParallelTrainer.restore(moved).fit()
    assert result.path == str(moved)
    check_whole(moved, result)
    assert not failed.exists()


def test_a_finished_run_trains_nothing_again(failed):
    DataParallelTrainer.restore(failed).fit()
    before = {path: path.stat().st_mtime_ns for path in failed.rglob("*") if path.is_file()}
    again = DataParallelTrainer.restore(failed).fit()
    after = {path: path.stat().st_mtime_ns for path in failed.rglob("*") if path.is_file()}
    assert before == after
    assert again.metrics["step"] == STEPS - 1


def test_arguments_may_differ(failed):
    result = DataParallelTrainer.restore(
        failed,
        train_loop_config={"tag": "second"},
        scaling_config=ScalingConfig(num_workers=3),
    ).fit()
    frame = result.metrics_dataframe
    assert list(frame["tag"]) == ["first"] * 3 + ["second"] * 3
    assert list(frame["world_size"]) == [2] * 3 + [3] * 3


def test_in_this_process_as_well(failed):
    result = DataParallelTrainer.restore(failed, scaling_config=ScalingConfig(num_workers=0)).fit()
    check_whole(failed, result)


def test_a_run_without_any_checkpoint_begins_again(tmp_path):
    config = {"die_at": 0, "mark": str(tmp_path / "mark")}
    run_config = RunConfig(name="run", storage_path=tmp_path)
    trainer = DataParallelTrainer(train, train_loop_config=config, run_config=run_config)
    with pytest.raises(WorkerGroupError):
        trainer.fit()
    result = DataParallelTrainer.restore(tmp_path / "run").fit()
    check_whole(tmp_path / "run", result)


def test_a_damaged_newest_checkpoint_is_set_aside(failed, caplog):
    newest = newest_of(failed)
    step = newest / "step"
    step.write_text("7")  # as long as it was, and a lie
    result = DataParallelTrainer.restore(failed).fit()
    assert result.return_value == 2, "it went on from the one before"
    assert f"{newest.name} is damaged" in caplog.text
    assert (failed / f"damaged_{newest.name}").is_dir()
    steps = list(result.metrics_dataframe["step"])
    assert steps == [0, 1, 2, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        *(
            pytest.param(one, marks=LONG)
            for one in ("missing", "torn manifest", "changed manifest")
        ),
    ],
)
def test_whatever_the_damage(failed, damage):
    newest = newest_of(failed)
    if damage == "truncated":
        (newest / "step").write_text("")
    elif damage == "missing":
        (newest / "step").unlink()
    elif damage == "torn manifest":
        (newest / ".manifest.json").write_text("{")
    else:
        text = (newest / ".manifest.json").read_text()
        (newest / ".manifest.json").write_text(text.replace('"step": 2', '"step": 3'))
    assert DataParallelTrainer.restore(failed).fit().return_value == 2
    assert (failed / f"damaged_{newest.name}").is_dir(), "it is kept for the user"


def test_a_torn_last_line_is_repaired(failed):
    with (failed / "result.json").open("a") as file:
        file.write('{"step": 99, "trai')
    check_whole(failed, DataParallelTrainer.restore(failed).fit())


def test_checkpoints_that_only_another_rank_has_files_for(tmp_path):
    def train_on(config):
        rank = minitrain.get_context().get_world_rank()
        folder = Path(tempfile.mkdtemp())
        for step in range(3):
            minitrain.report({"step": step}, Checkpoint.from_directory(folder) if rank else None)
        if config["fails"]:
            minitrain.collective.barrier()
            raise ValueError("later")

    trainer = DataParallelTrainer(
        train_on,
        train_loop_config={"fails": True},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="run", storage_path=tmp_path),
    )
    with pytest.raises(WorkerGroupError):
        trainer.fit()
    again = DataParallelTrainer.restore(tmp_path / "run", train_loop_config={"fails": False})
    assert list(again.fit().metrics_dataframe["step"]) == [0, 1, 2, 0, 1, 2]


def test_a_row_that_was_committed_and_not_written_any_more_is_written(failed):
    lines = (failed / "result.json").read_text().splitlines(keepends=True)
    (failed / "result.json").write_text("".join(lines[:-1]))
    check_whole(failed, DataParallelTrainer.restore(failed).fit())


def test_a_table_that_fell_behind_is_written_again(failed):
    (failed / "progress.csv").write_text("step\n0\n")
    check_whole(failed, DataParallelTrainer.restore(failed).fit())


# ------------------------------------------------------------------ what is kept, and what is not
def test_can_restore_says_whether_there_is_a_run(failed, tmp_path):
    assert DataParallelTrainer.can_restore(failed)
    assert DataParallelTrainer.can_restore(str(failed) + "/")
    assert DataParallelTrainer.can_restore(f"file://{failed}")
    assert not DataParallelTrainer.can_restore(tmp_path)
    assert not DataParallelTrainer.can_restore(tmp_path / "nothing")


@pytest.mark.parametrize("path", ["nothing", "."])
def test_where_there_is_no_run_is_said(tmp_path, path):
    with pytest.raises(ValueError, match="Invalid restore path"):
        DataParallelTrainer.restore(tmp_path / path)


def test_what_could_not_be_kept_has_to_be_given_again_by_name(tmp_path):
    class Locked(UserCallback):
        def __init__(self):
            self.lock = threading.Lock()

    run_config = RunConfig(name="run", storage_path=tmp_path, callbacks=[Locked()])
    DataParallelTrainer(lambda: None, run_config=run_config).fit()
    with pytest.raises(ConfigurationError, match=r"restore\(path, run_config=\.\.\.\)") as caught:
        DataParallelTrainer.restore(tmp_path / "run")
    assert "lock" in str(caught.value)
    assert DataParallelTrainer.restore(tmp_path / "run", run_config=run_config).fit()


@pytest.mark.campaign
def test_what_cannot_be_unpickled_here_has_to_be_given_again_by_name(start_script, tmp_path):
    (tmp_path / "their_module.py").write_text("class Thing:\n    pass\n")
    script = start_script(
        f"""
        import their_module
        from minitrain import RunConfig
        from minitrain.trainer import DataParallelTrainer

        DataParallelTrainer(
            lambda config: None,
            train_loop_config={{"thing": their_module.Thing()}},
            run_config=RunConfig(name="run", storage_path={str(tmp_path)!r}),
        ).fit()
        """
    )
    assert script.wait() == 0, script.output
    with pytest.raises(ConfigurationError) as caught:
        DataParallelTrainer.restore(tmp_path / "run")
    assert "restore(path, train_loop_config=...)" in str(caught.value)
    assert "their_module" in str(caught.value)
    assert DataParallelTrainer.restore(tmp_path / "run", train_loop_config={"thing": 1}).fit()


def test_datasets_have_to_be_given_again_under_the_same_names(tmp_path):
    trainer = DataParallelTrainer(
        lambda: minitrain.get_dataset_shard("train"),
        datasets={"train": [1, 2], "val": [3]},
        run_config=RunConfig(name="run", storage_path=tmp_path),
    )
    trainer.fit()
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"\['val'\] need to be provided again"):
        DataParallelTrainer.restore(run, datasets={"train": [1, 2]})
    with pytest.raises(ValueError, match="don't match the original dataset keys"):
        DataParallelTrainer.restore(run, datasets={"train": [1], "val": [2], "more": [3]})
    DataParallelTrainer.restore(run, datasets={"train": [1], "val": [2]})


def test_an_argument_that_no_trainer_has_is_refused(failed):
    with pytest.raises(ConfigurationError, match="learning_rate"):
        DataParallelTrainer.restore(failed, learning_rate=1)


def test_another_class_of_trainer_is_warned_of(failed, caplog):
    with pytest.raises(ConfigurationError):
        BaseTrainer.restore(failed)  # it takes no train function
    assert "Invalid trainer type" in caplog.text


def test_a_trainer_class_of_the_user_is_restored_with_what_it_was_given(tmp_path):
    class Mine(BaseTrainer):
        def __init__(self, number, *, run_config=None):
            super().__init__(run_config=run_config)
            self.number = number

        def training_loop(self):
            minitrain.report({"number": self.number})
            if not (tmp_path / "mark").exists():
                (tmp_path / "mark").touch()
                os._exit(1)

    with pytest.raises(WorkerGroupError):
        Mine(42, run_config=RunConfig(name="run", storage_path=tmp_path)).fit()
    result = Mine.restore(tmp_path / "run").fit()
    assert list(result.metrics_dataframe["number"]) == [42, 42]


@pytest.mark.campaign
def test_a_run_that_is_still_being_trained_is_left_alone(start_script, tmp_path):
    script = start_script(
        """
        import time
        from minitrain import RunConfig
        from minitrain.trainer import DataParallelTrainer

        def train():
            print("training", flush=True)
            time.sleep(600)

        DataParallelTrainer(
            train, run_config=RunConfig(name="run", storage_path=".")
        ).fit()
        """
    )
    script.wait_for("training")
    trainer = DataParallelTrainer.restore(tmp_path / "run")
    with pytest.raises(ConfigurationError, match=f"trained by process {script.process.pid}"):
        trainer.fit()
    script.process.send_signal(signal.SIGINT)
    script.wait()


# ------------------------------------------------------------------ other beginnings
def test_a_new_run_may_start_from_a_checkpoint_of_another(failed, tmp_path):
    newest = Result.from_path(failed).checkpoint
    result = DataParallelTrainer(
        train,
        train_loop_config={},
        run_config=RunConfig(name="new", storage_path=tmp_path / "results"),
        resume_from_checkpoint=newest,
    ).fit()
    assert result.return_value == 3
    names = sorted(path.name for path in Path(result.path).glob("checkpoint_*"))
    assert names == ["checkpoint_000000", "checkpoint_000001", "checkpoint_000002"]


@pytest.mark.campaign
def test_the_newest_of_its_own_comes_before_the_one_it_resumed_from(failed, tmp_path):
    newest = Result.from_path(failed).checkpoint
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"die_at": 5, "mark": str(tmp_path / "second mark")},
        run_config=RunConfig(
            name="new",
            storage_path=tmp_path / "results",
            failure_config=FailureConfig(max_failures=1),
        ),
        resume_from_checkpoint=newest,
    )
    result = trainer.fit()
    assert result.return_value == 5


# ------------------------------------------------------------------ killed at any moment
COUNT = """
    import os, sys, tempfile, time
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    folder = Path(__file__).parent

    def train():
        rank = minitrain.get_context().get_world_rank()
        start = minitrain.get_checkpoint()
        first = 0
        if start is not None:
            with start.as_directory() as path:
                first = int(Path(path, "step").read_text()) + 1
        acknowledged = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for step in range(first, first + 100_000):
            with tempfile.TemporaryDirectory() as path:
                Path(path, "step").write_text(str(step))
                minitrain.report({"step": step}, Checkpoint.from_directory(path))
            if rank == 0:
                os.write(acknowledged, f"{step}\\n".encode())

    DataParallelTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run", storage_path=folder, checkpoint_config=CheckpointConfig(num_to_keep=2)
        ),
    ).fit()
"""


@pytest.mark.parametrize("whom", ["driver", pytest.param("everybody", marks=LONG)])
@pytest.mark.parametrize("steps", [pytest.param(0, marks=LONG), pytest.param(1, marks=LONG), 7])
def test_after_a_kill_at_any_moment_everything_agrees(
    whom, steps, start_script, tmp_path, all_gone
):
    script = start_script(COUNT)
    path = tmp_path / "run"

    def acknowledged():
        try:
            return [int(line) for line in (tmp_path / "acknowledged").read_text().split()]
        except FileNotFoundError:
            return []

    while len(acknowledged()) < steps or not (path / "run.json").exists():
        assert script.process.poll() is None, script.output
    everybody = script.descendants()
    for pid in [script.process.pid, *(everybody if whom == "everybody" else [])]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    script.wait()
    all_gone(everybody)
    done = acknowledged()
    before = Result.from_path(path)
    assert before.metrics.get("step", -1) >= (done[-1] if done else -1)
    result = DataParallelTrainer.restore(path, train_loop_per_worker=count_on).fit()
    resumed_at = result.return_value
    assert resumed_at >= (done[-1] if done else -1), "what was acknowledged is started from"
    frame = result.metrics_dataframe
    assert list(frame["step"]) == list(range(len(frame)))
    assert list(frame["training_iteration"]) == list(range(1, len(frame) + 1))
    record = json.loads((path / "run.json").read_text())
    assert set(record["checkpoints"]) == {one.name for one in path.glob("checkpoint_*")}
    assert len(record["checkpoints"]) <= 2


def count_on():
    """Make three more steps; return where the checkpoint stood."""
    import tempfile
    from pathlib import Path

    start = minitrain.get_checkpoint()
    at = -1
    if start is not None:
        with start.as_directory() as path:
            at = int(Path(path, "step").read_text())
    for step in range(at + 1, at + 4):
        with tempfile.TemporaryDirectory() as path:
            Path(path, "step").write_text(str(step))
            minitrain.report({"step": step}, Checkpoint.from_directory(path))
    return at


@pytest.mark.campaign
def test_the_pattern_of_a_job_that_is_started_until_it_is_done(start_script, tmp_path):
    text = """
        import sys
        from minitrain import RunConfig
        from minitrain.torch import TorchTrainer

        def train():
            import os
            import minitrain
            minitrain.report({"by": int(sys.argv[1])})
            if sys.argv[1] == "0":
                os._exit(1)

        path = "results/experiment"
        if TorchTrainer.can_restore(path):
            trainer = TorchTrainer.restore(path, train_loop_per_worker=train)
        else:
            run_config = RunConfig(storage_path="results", name="experiment")
            trainer = TorchTrainer(train, run_config=run_config)
        print(list(trainer.fit().metrics_dataframe["by"]))
    """
    assert start_script(text, "0").wait() == 1
    for number in ("1", "2"):
        script = start_script(text, number)
        assert script.wait() == 0, script.output
        assert "[0, 1]" in script.output
    assert os.listdir(tmp_path / "results") == ["experiment"]
