"""Workers that reach the run's directory through the driver only: checkpoints come home.

They run on this host, and are watched: none opens a file in the run's directory itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

import minitrain
from minitrain import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
)
from minitrain.exceptions import CheckpointError, WorkerGroupError
from minitrain.trainer import DataParallelTrainer

SYNC, ASYNC, NO_UPLOAD = CheckpointUploadMode


@pytest.fixture(autouse=True)
def through_the_driver(monkeypatch):
    monkeypatch.setenv("MINITRAIN_COLLECT", "1")


def run(function, num_workers=2, *, config=None, failures=0, keep=None, resume=None) -> Result:
    return DataParallelTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            name="run",
            failure_config=FailureConfig(max_failures=failures),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
        ),
        resume_from_checkpoint=resume,
    ).fit()


def never_open_the_run_s_checkpoints() -> None:
    """Have this worker fail when it opens a checkpoint of the run itself."""
    root = minitrain.get_context().get_storage().experiment_fs_path

    def look(event: str, arguments: tuple) -> None:
        path = arguments[0] if event in {"open", "os.scandir", "os.rename"} else ""
        if isinstance(path, str | Path) and str(path).startswith(f"{root}/checkpoint_"):
            raise AssertionError(f"{event} {path}")

    sys.addaudithook(look)


def content(step: int, rank: int) -> dict[str, bytes]:
    """Return what a rank adds to the checkpoint of a step."""
    large = bytes(range(256)) * (1 << 12) * 9 + bytes([step, rank])  # takes two calls
    return {f"rank_{rank}.bin": large, f"deep/er/{rank}": f"{step}".encode(), f"empty_{rank}": b""}


def save(step: int, mode=SYNC) -> Path:
    """Report a step with a checkpoint that is given away; in a worker."""
    folder = Path(tempfile.mkdtemp())
    for name, data in content(step, minitrain.get_context().get_world_rank()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    minitrain.report(
        {"step": step},
        Checkpoint.from_directory(folder),
        checkpoint_upload_mode=mode,
        delete_local_checkpoint_after_upload=True,
    )
    return folder


def files_of(checkpoint) -> dict[str, bytes]:
    with checkpoint.as_directory() as path:
        return {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in Path(path).rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }


@pytest.mark.campaign
def test_a_run_saves_is_killed_goes_on_and_has_everything_at_home(storage):
    def train():
        never_open_the_run_s_checkpoints()
        rank = minitrain.get_context().get_world_rank()
        start = minitrain.get_checkpoint()
        first = 0
        if start is not None:
            assert start.filesystem.type_name == "py::minitrain-driver"
            start.verify()
            found = files_of(start)
            first = int(found[f"deep/er/{rank}"]) + 1
            assert found == {**content(first - 1, 0), **content(first - 1, 1)}
        for step in range(first, 5):
            folder = save(step, ASYNC if step % 2 else SYNC)
            assert not folder.exists()
            if step == 2 and first == 0 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return first, minitrain.get_all_reported_checkpoints()[-1].checkpoint

    result = run(train, failures=1, keep=3)
    first, returned = result.return_value
    assert first == 3
    assert [metrics["step"] for _, metrics in result.best_checkpoints] == [2, 3, 4]
    for checkpoint, metrics in result.best_checkpoints:
        checkpoint.verify()
        step = metrics["step"]
        assert files_of(checkpoint) == {**content(step, 0), **content(step, 1)}
    assert result.checkpoint.is_local
    assert returned in [checkpoint for checkpoint, _ in result.best_checkpoints]
    assert left_behind(storage) == []


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it has got its name
        return 0


def left_behind(storage: Path) -> list[Path]:
    """Return the files of a run that are not whole."""
    names = (".part-", ".unfinished")
    return [path for path in Path(storage, "run").rglob("*") if path.name.startswith(names)]


def test_a_worker_killed_in_the_middle_of_a_put_leaves_nothing_that_is_taken_for_a_checkpoint(
    storage,
):
    def train():
        start = minitrain.get_checkpoint()
        if start is not None:
            return {name: data for name, data in files_of(start).items() if name == "step"}
        home = Path(minitrain.get_context().get_storage().experiment_fs_path, "checkpoint_000001")
        for step, size in enumerate([5, 256 << 20]):
            folder = Path(tempfile.mkdtemp())
            (folder / "step").write_text(str(step))
            with (folder / "weights").open("wb") as file:
                file.truncate(size)
            threading.Thread(target=die_when_it_is_written, args=(home,), daemon=True).start()
            minitrain.report({"step": step}, Checkpoint.from_directory(folder))
        return None

    def die_when_it_is_written(home):
        while not any(size_of(path) > 1 << 20 for path in home.glob(".part-*")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    result = run(train, 1, failures=1)
    assert result.return_value == {"step": b"0"}
    assert [metrics["step"] for _, metrics in result.best_checkpoints] == [0]
    assert left_behind(storage) == []
    assert not Path(storage, "run", "checkpoint_000001").exists()


def test_files_that_users_put_there_themselves_and_the_way_that_is_refused():
    def upload(checkpoint, name):
        there = minitrain.get_context().get_storage()
        path = there.build_checkpoint_path_from_name(name)
        there.storage_filesystem.create_dir(path)
        with there.storage_filesystem.open_output_stream(f"{path}/weights") as stream:
            stream.write(Path(checkpoint.path, "weights").read_bytes())
        return Checkpoint(path, there.storage_filesystem)

    def train():
        never_open_the_run_s_checkpoints()
        folder = Path(tempfile.mkdtemp())
        (folder / "weights").write_text("12345")
        minitrain.report({"n": 0}, Checkpoint(folder), checkpoint_upload_fn=upload)
        written = upload(Checkpoint(folder), "mine")
        minitrain.report({"n": 1}, written, checkpoint_upload_mode=NO_UPLOAD)
        with pytest.raises(ValueError, match="but not in its filesystem, get_context"):
            minitrain.report({}, Checkpoint(written.path), checkpoint_upload_mode=NO_UPLOAD)

    result = run(train, 1)
    names = [Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints]
    assert names == ["checkpoint_000000", "mine"]
    for checkpoint, _ in result.best_checkpoints:
        checkpoint.verify()
        assert files_of(checkpoint) == {"weights": b"12345"}


def test_a_checkpoint_from_elsewhere_and_a_process_that_a_worker_forked(tmp_path):
    def train():
        import multiprocessing

        context = multiprocessing.get_context("fork")
        start = minitrain.get_checkpoint()
        said = context.SimpleQueue()

        def read_there():
            try:
                files_of(start)
            except RuntimeError as error:
                said.put(str(error))

        process = context.Process(target=read_there)
        process.start()
        process.join()
        return files_of(start), said.get()

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights").write_text("12345")
    result = run(train, 1, resume=Checkpoint(tmp_path / "elsewhere"))
    files, said = result.return_value
    assert files == {"weights": b"12345"}
    assert "only the worker" in said
    assert "that was forked from it: read a checkpoint in the worker" in said


def test_a_problem_with_the_files_is_every_rank_s_and_names_the_checkpoint():
    def train():
        folder = Path(tempfile.mkdtemp())
        if minitrain.get_context().get_world_rank() == 1:
            os.mkfifo(folder / "pipe")
        minitrain.report({}, Checkpoint(folder))

    with pytest.raises(WorkerGroupError) as caught:
        run(train)
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert "checkpoint_000000 could not be written" in str(caught.value.__cause__)
    assert caught.value.worker_failures.keys() == {0, 1}


LARGE = """
    import os, sys, tempfile
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    def peak_bytes(pid):
        (line,) = [s for s in Path(f"/proc/{pid}/status").open() if s.startswith("VmHWM")]
        return int(line.split()[1]) << 10

    def train(config):
        pids = {"worker": os.getpid(), "agent": os.getppid(), "driver": config["driver"]}
        before = {name: peak_bytes(pid) for name, pid in pids.items()}
        folder = Path(tempfile.mkdtemp())
        block = os.urandom(1 << 20)
        for name in "abc":
            with (folder / name).open("wb") as file:
                for _ in range(100):
                    file.write(block)
        minitrain.report({}, Checkpoint(folder), delete_local_checkpoint_after_upload=True)
        with minitrain.get_checkpoint().as_directory() as path:
            assert os.path.getsize(f"{path}/c") == 100 << 20
        return {name: (peak_bytes(pid) - before[name]) >> 20 for name, pid in pids.items()}

    if __name__ == "__main__":
        result = DataParallelTrainer(
            train,
            train_loop_config={"driver": os.getpid()},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="run"),
        ).fit()
        result.checkpoint.verify()
        print("grown", result.return_value)
"""


@pytest.mark.campaign
def test_hundreds_of_megabytes_pass_through_with_little_memory(start_script):
    script = start_script(LARGE)
    assert script.wait() == 0, script.output
    grown = json.loads(script.output.rpartition("grown ")[2].replace("'", '"'))
    assert grown["agent"] < 40
    assert grown["driver"] < 80
    assert grown["worker"] < 200


FULL = """
    import os, sys, tempfile
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, RunConfig, ScalingConfig
    from minitrain.exceptions import OutOfSpaceError
    from minitrain.trainer import DataParallelTrainer

    def report(step, size):
        folder = tempfile.mkdtemp()
        Path(folder, "weights").write_bytes(bytes(size))
        minitrain.report({"step": step}, Checkpoint.from_directory(folder))

    def train(config):
        report(0, 1 << 20)
        for fill in (False, True):
            if fill:  # it is not known before that there is no room
                from minitrain._storage.home_disk import HomeDisk
                HomeDisk.free_bytes = lambda self: None
            try:
                report(1, 30 << 20)
            except OutOfSpaceError as error:
                print("full:", error, flush=True)
        report(2, 1 << 20)

    if __name__ == "__main__":
        result = DataParallelTrainer(
            train,
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="run", storage_path=sys.argv[1]),
        ).fit()
        for checkpoint, metrics in result.best_checkpoints:
            checkpoint.verify()
            print("whole", metrics["step"], checkpoint.path)
        print(sorted(os.listdir(result.path)))
"""


@pytest.mark.campaign
def test_a_full_disk_at_home_is_out_of_space_in_the_worker(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(FULL))
    disk = tmp_path / "disk"
    disk.mkdir()
    in_namespace = ["unshare", "-m", "bash", "-c"]
    mount = 'mount -t tmpfs -o size=20m tmpfs "$0"'
    tried = subprocess.run([*in_namespace, mount, str(disk)], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("mounting a small filesystem needs root and unshare")
    done = subprocess.run(
        [*in_namespace, f'{mount} && exec "$@" "$0"', disk, sys.executable, tmp_path / "train.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("full:") == 2, done.stdout + done.stderr
    assert "bytes are free there" in done.stdout
    assert "whole 0" in done.stdout
    assert "whole 2" in done.stdout
    assert "'artifacts', 'checkpoint_000000', 'checkpoint_000003', 'events" in done.stdout


KILLED = """
    import os, signal, sys, tempfile
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    def train(config):
        for step in range(2):
            folder = tempfile.mkdtemp()
            with open(f"{folder}/weights", "wb") as file:
                file.truncate(step * (2 << 30) + 5)
            print("reporting", step, flush=True)
            minitrain.report({"step": step}, Checkpoint.from_directory(folder))

    if __name__ == "__main__":
        DataParallelTrainer(
            train,
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="run"),
        ).fit()
"""


@pytest.mark.campaign
def test_a_driver_killed_in_the_middle_of_a_put_goes_on_from_what_was_whole(
    start_script, storage, all_gone
):
    script = start_script(KILLED)
    script.wait_for("reporting 1")
    begun = Path(storage, "run", "checkpoint_000001")
    deadline_s = time.monotonic() + 20
    while not any(size_of(path) > 1 << 20 for path in begun.glob(".part-*")):
        assert time.monotonic() < deadline_s
    below = script.descendants()
    script.process.kill()
    script.wait()
    all_gone(below)
    assert left_behind(storage) != []

    def train(config):
        return files_of(minitrain.get_checkpoint())

    trainer = DataParallelTrainer.restore(
        Path(storage, "run"), train_loop_per_worker=train, train_loop_config={}
    )
    assert trainer.fit().return_value == {"weights": bytes(5)}
    assert left_behind(storage) == []
