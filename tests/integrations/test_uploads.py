"""report() with every way of bringing a checkpoint to the run's directory, in real workers."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from pathlib import Path

import pytest

import minitrain
from minitrain import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
)
from minitrain.exceptions import CheckpointError, WorkerGroupError
from minitrain.trainer import DataParallelTrainer

SYNC, ASYNC, NO_UPLOAD = CheckpointUploadMode


def run(function, num_workers=2, *, config=None, failures=0, keep=None, **where):
    return DataParallelTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            failure_config=FailureConfig(max_failures=failures),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
            **where,
        ),
    ).fit()


def cause_of(function, num_workers=2, **how):
    with pytest.raises(WorkerGroupError) as caught:
        run(function, num_workers, **how)
    return caught.value.__cause__


def folder_with(**files) -> Path:
    """Return a new directory with a file for every name; in a worker."""
    artifacts = Path(minitrain.get_context().get_trial_dir(), "artifacts")
    folder = Path(tempfile.mkdtemp(dir=artifacts))
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def content(checkpoint) -> dict[str, str]:
    with checkpoint.as_directory() as path:
        return {
            file.name: file.read_text()
            for file in Path(path).iterdir()
            if not file.name.startswith(".")
        }


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_asynchronous_checkpoints_are_committed_in_the_order_of_their_reports(num_workers):
    def train():
        rank = minitrain.get_context().get_world_rank()
        for step in range(5):
            folder = folder_with(**{f"rank_{rank}": str(step)})
            minitrain.report(
                {"step": step},
                Checkpoint.from_directory(folder),
                checkpoint_upload_mode=ASYNC,
            )
            assert not folder.exists(), "it belongs to minitrain now"

    result = run(train, num_workers)
    steps = [metrics["step"] for _, metrics in result.best_checkpoints]
    assert steps == [0, 1, 2, 3, 4]
    assert list(result.metrics_dataframe["step"]) == steps
    expected = {f"rank_{rank}": "4" for rank in range(max(1, num_workers))}
    assert content(result.checkpoint) == expected
    result.checkpoint.verify()


def test_asynchronous_reports_do_not_wait_and_at_most_two_are_on_their_way():
    def train():
        import threading

        gate = threading.Semaphore(0)

        class Slow(Checkpoint):
            def wait(self):
                gate.acquire(timeout=30)

        def report(number):
            minitrain.report(
                {"number": number},
                Slow(folder_with(number=str(number))),
                checkpoint_upload_mode=ASYNC,
            )

        report(0)
        report(1)
        reported_with_none_committed = minitrain.get_checkpoint() is None
        third = threading.Thread(target=report, args=(2,))
        third.start()
        third.join(0.2)
        third_waits = third.is_alive()
        gate.release(3)
        third.join(30)
        return reported_with_none_committed, third_waits, third.is_alive()

    result = run(train, 1)
    assert result.return_value == (True, True, False)
    assert [metrics["number"] for _, metrics in result.best_checkpoints] == [0, 1, 2]


def test_an_asynchronous_checkpoint_may_come_from_a_directory_that_is_removed_at_once():
    def train():
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "state").write_text("kept")
            minitrain.report(
                {"x": 1}, Checkpoint.from_directory(folder), checkpoint_upload_mode=ASYNC
            )

    assert content(run(train).checkpoint) == {"state": "kept"}


def test_asynchronous_and_synchronous_ranks_may_mix():
    def train():
        rank = minitrain.get_context().get_world_rank()
        for step in range(3):
            minitrain.report(
                {"step": step},
                Checkpoint.from_directory(folder_with(**{f"rank_{rank}": str(step)})),
                checkpoint_upload_mode=ASYNC if (rank + step) % 2 else SYNC,
                delete_local_checkpoint_after_upload=True,
            )

    result = run(train)
    assert [metrics["step"] for _, metrics in result.best_checkpoints] == [0, 1, 2]
    assert content(result.checkpoint) == {"rank_0": "2", "rank_1": "2"}


@pytest.mark.campaign
@pytest.mark.parametrize("mode", [SYNC, ASYNC])
@pytest.mark.parametrize("delete", [None, True, False])
def test_whether_the_local_directory_stays(mode, delete):
    def train():
        folder = folder_with(state="x")
        minitrain.report(
            {"x": 1},
            Checkpoint.from_directory(folder),
            checkpoint_upload_mode=mode,
            delete_local_checkpoint_after_upload=delete,
        )
        minitrain.get_all_reported_checkpoints()  # waits for the upload
        there = folder.exists()
        if there:
            (folder / "state").unlink()
            folder.rmdir()
        return there

    result = run(train, 1)
    goes = delete if delete is not None else mode is ASYNC
    assert result.return_value is (not goes)
    assert content(result.checkpoint) == {"state": "x"}


def test_a_checkpoint_of_the_run_is_never_taken_away():
    def train():
        minitrain.report({"n": 0}, Checkpoint.from_directory(folder_with(state="x")))
        minitrain.report({"n": 1}, minitrain.get_checkpoint(), checkpoint_upload_mode=ASYNC)

    result = run(train, 1)
    assert [content(checkpoint) for checkpoint, _ in result.best_checkpoints] == [
        {"state": "x"},
        {"state": "x"},
    ]
    for checkpoint, _ in result.best_checkpoints:
        checkpoint.verify()


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_a_checkpoint_that_cannot_be_written_is_an_error_on_every_rank_and_names_the_file(
    mode, tmp_path
):
    def train():
        rank = minitrain.get_context().get_world_rank()
        folder = folder_with(good="x")
        if rank == 1:
            (folder / "dangling").symlink_to("nowhere")
        try:
            minitrain.report(
                {"n": 0}, Checkpoint.from_directory(folder), checkpoint_upload_mode=mode
            )
            for number in itertools.count(1):
                time.sleep(0.001)  # as steps take; what is told comes behind what was reported
                minitrain.report({"n": number})
        except CheckpointError as error:
            (tmp_path / f"error_{rank}").write_text(str(error))
            minitrain.collective.barrier()
            raise

    error = cause_of(train)
    assert isinstance(error, CheckpointError)
    for rank in range(2):
        assert "dangling" in (tmp_path / f"error_{rank}").read_text()


@pytest.mark.campaign
def test_after_a_checkpoint_that_could_not_be_written_ranks_may_go_on(tmp_path):
    """The report does not count, on any rank: their numbers agree."""

    def train():
        rank = minitrain.get_context().get_world_rank()
        for step in range(4):
            folder = folder_with(**{f"rank_{rank}": str(step)})
            if rank == 1 and step == 1:
                (folder / "dangling").symlink_to("nowhere")
            try:
                minitrain.report({"step": step}, Checkpoint.from_directory(folder))
            except CheckpointError:
                assert step == 1

    result = run(train, storage_path=tmp_path, name="run")
    frame = result.metrics_dataframe
    assert list(frame["step"]) == [0, 2, 3]
    assert list(frame["training_iteration"]) == [1, 2, 3]
    assert [metrics["step"] for _, metrics in result.best_checkpoints] == [0, 2, 3]
    names = {path.name for path in (tmp_path / "run").glob("checkpoint_*")}
    assert names == {"checkpoint_000000", "checkpoint_000002", "checkpoint_000003"}


def test_an_upload_that_fails_after_the_last_report_fails_the_run():
    def train():
        folder = folder_with(state="x")
        (folder / "dangling").symlink_to("nowhere")
        minitrain.report({"x": 1}, Checkpoint.from_directory(folder), checkpoint_upload_mode=ASYNC)

    assert "dangling" in str(cause_of(train, 1))


# ------------------------------------------------------------------ files that are there already
def test_files_may_be_written_to_the_runs_directory_by_the_user():
    def train():
        rank = minitrain.get_context().get_world_rank()
        path = Path(minitrain.get_context().get_storage().build_checkpoint_path_from_name("mine"))
        path.mkdir(exist_ok=True)
        (path / f"rank_{rank}").write_text("here")
        minitrain.report(
            {"x": 1}, Checkpoint.from_directory(path), checkpoint_upload_mode=NO_UPLOAD
        )
        return minitrain.get_checkpoint().path

    result = run(train)
    assert result.return_value == result.checkpoint.path
    assert content(result.checkpoint) == {"rank_0": "here", "rank_1": "here"}
    result.checkpoint.verify()


def test_files_elsewhere_are_refused_with_the_way_to_do_it():
    def train():
        checkpoint = Checkpoint.from_directory(folder_with(state="x"))
        minitrain.report({"x": 1}, checkpoint, checkpoint_upload_mode=NO_UPLOAD)

    error = cause_of(train, 1)
    assert isinstance(error, ValueError)
    assert "build_checkpoint_path_from_name" in str(error)


@pytest.mark.campaign
def test_a_function_of_the_user_may_write_the_files(tmp_path):
    def upload(checkpoint, name):
        path = Path(minitrain.get_context().get_storage().build_checkpoint_path_from_name(name))
        path.mkdir(exist_ok=True)
        for source in Path(checkpoint.path).iterdir():
            (path / source.name).write_text(source.read_text().upper())
        return Checkpoint(path)

    def train(config):
        minitrain.report(
            {"x": 1},
            Checkpoint.from_directory(folder_with(state="small")),
            checkpoint_upload_mode=config["mode"],
            checkpoint_upload_fn=upload,
        )

    for mode in (SYNC, ASYNC):
        assert content(run(train, 1, config={"mode": mode}).checkpoint) == {"state": "SMALL"}


@pytest.mark.campaign
def test_a_function_that_writes_elsewhere_or_returns_nothing_is_refused():
    def train(config):
        minitrain.report(
            {"x": 1},
            Checkpoint.from_directory(folder_with(state="x")),
            checkpoint_upload_fn=config["upload"],
        )

    for upload in (lambda checkpoint, name: None, lambda checkpoint, name: checkpoint):
        error = cause_of(train, 1, config={"upload": upload})
        assert "checkpoint_upload_fn" in str(error)


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"checkpoint_upload_mode": "FAST"}, TypeError),
        ({"checkpoint_upload_mode": None}, TypeError),
        ({"delete_local_checkpoint_after_upload": "yes"}, TypeError),
        ({"checkpoint_upload_fn": 3}, TypeError),
        ({"checkpoint_upload_mode": NO_UPLOAD, "checkpoint_upload_fn": print}, ValueError),
        (
            {"checkpoint_upload_mode": NO_UPLOAD, "delete_local_checkpoint_after_upload": True},
            ValueError,
        ),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_in_the_call(arguments, kind):
    def train():
        minitrain.report({"x": 1}, None, **arguments)

    error = cause_of(train, 1)
    assert type(error) is kind
    assert any(f"report({name}" in str(error) for name in arguments)


# ------------------------------------------------------------------ all checkpoints
def test_every_rank_sees_the_checkpoints_that_are_kept_in_order():
    def train():
        rank = minitrain.get_context().get_world_rank()
        for step in range(4):
            minitrain.report(
                {"step": step},
                Checkpoint.from_directory(folder_with(**{f"rank_{rank}": str(step)})),
                checkpoint_upload_mode=ASYNC,
            )
        found = minitrain.get_all_reported_checkpoints()
        return [(one.metrics["step"], Path(one.checkpoint.path).name) for one in found]

    result = run(train, keep=2)
    assert result.return_value == [(2, "checkpoint_000002"), (3, "checkpoint_000003")]


def test_asking_with_a_timeout_returns_what_is_there():
    def train():
        rank = minitrain.get_context().get_world_rank()
        minitrain.report({"step": 0}, Checkpoint.from_directory(folder_with(state="x")))
        if rank == 0:
            minitrain.report({"step": 1})
            found = minitrain.get_all_reported_checkpoints(timeout_s=0.2)
        minitrain.collective.barrier()
        if rank == 1:
            minitrain.report({"step": 1})
            return None
        return len(found)

    assert run(train).return_value == 1


# ------------------------------------------------------------------ a full disk
def test_a_full_disk_is_noticed_and_the_old_checkpoints_stay(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=8m tmpfs {disk} 2>/dev/null"):
        pytest.skip("cannot mount a small disk: needs root")
    try:

        def train():
            for step, size in enumerate([1 << 20, 32 << 20]):
                source = tmp_path / str(step)
                source.mkdir()
                (source / "state").write_text("x" * size)
                minitrain.report({"step": step}, Checkpoint.from_directory(source))

        error = cause_of(train, 1, storage_path=disk, name="run")
        assert type(error).__name__ == "OutOfSpaceError"
        assert f"need {32 << 20:,} bytes" in str(error)
        assert "bytes are free" in str(error)
        result = minitrain.Result.from_path(disk / "run")
        assert result.metrics["step"] == 0
        result.checkpoint.verify()
        used = sum(file.stat().st_size for file in disk.rglob("*") if file.is_file())
        assert used < 3 << 20, "nothing of what did not fit is left"
    finally:
        assert os.system(f"umount {disk}") == 0
