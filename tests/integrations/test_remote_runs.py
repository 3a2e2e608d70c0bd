"""Whole runs whose results lie on a real storage server: what is there, what survives what."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem

import minitrain
from minitrain import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    SyncConfig,
)
from minitrain._driver import agents
from minitrain.exceptions import (
    CheckpointError,
    ConfigurationError,
    ControllerError,
    TrainingFailedError,
)
from minitrain.trainer import DataParallelTrainer
from minitrain.verify import main

SYNC, ASYNC, NO_UPLOAD = CheckpointUploadMode


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Where runs lie on this host before they are brought to their storage."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MINITRAIN_CACHE", str(folder))
    return folder


def runs_on(server, tmp_path, name: str = "") -> str:
    """Return the URI of this test's runs, or of one of them."""
    return server.uri(f"{tmp_path.name}/{name}".rstrip("/"))


def trainer_of(function, num_workers=2, *, config=None, resume=None, failures=0, keep=None, **run):
    return DataParallelTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            failure_config=FailureConfig(max_failures=failures),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
            **run,
        ),
        resume_from_checkpoint=resume,
    )


def files_on(server, path: str) -> dict[str, bytes]:
    """Return every file below a directory on a server."""
    return files_in(server.filesystem(), server.path(path))


def files_in(filesystem, root: str) -> dict[str, bytes]:
    from pyarrow.fs import FileSelector, FileType

    selector = FileSelector(root, recursive=True, allow_not_found=True)
    found = {}
    for info in filesystem.get_file_info(selector):
        if info.type == FileType.File:
            with filesystem.open_input_stream(info.path, compression=None) as stream:
                found[info.path[len(root) :].lstrip("/")] = stream.read()
    return found


def content(step: int, rank: int) -> dict[str, bytes]:
    """Return what a rank adds to the checkpoint of a step."""
    large = bytes(range(256)) * 4096 + bytes([step, rank])
    return {f"rank_{rank}.bin": large, f"deep/er/{rank}": f"{step}".encode(), f"empty_{rank}": b""}


def folder_with(files: dict[str, bytes]) -> Path:
    """Return a new directory with these files; in a worker, below its working directory."""
    folder = Path(tempfile.mkdtemp(dir="."))
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def files_of(checkpoint) -> dict[str, bytes]:
    with checkpoint.as_directory() as path:
        return {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in Path(path).rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }


def save(step: int, mode=SYNC, **metrics) -> None:
    """Report a step with a checkpoint; in a worker."""
    folder = folder_with(content(step, minitrain.get_context().get_world_rank()))
    minitrain.report(
        {"step": step, **metrics},
        Checkpoint.from_directory(folder),
        checkpoint_upload_mode=mode,
        delete_local_checkpoint_after_upload=True,
    )


# ------------------------------------------------------------------ a run from beginning to end
@pytest.mark.campaign
def test_everything_of_a_run_is_on_its_storage_and_nothing_stays_here(
    storage_server, tmp_path, cache
):
    def train():
        assert minitrain.get_checkpoint() is None
        rank = minitrain.get_context().get_world_rank()
        Path(f"artifact_{rank}.txt").write_text("made by a worker")
        for step in range(5):
            print("step", step)
            save(step, ASYNC if step % 2 else SYNC, score=-step if step != 4 else 0)
            minitrain.report({"step": step, "between": True})
        # The newest, whole, in a folder that both workers share.
        newest = minitrain.get_checkpoint()
        with newest.as_directory() as path:
            minitrain.collective.barrier()
            return path, {name: len(data) for name, data in files_of(newest).items()}

    where = runs_on(storage_server, tmp_path)
    result = trainer_of(train, keep=2, name="run", storage_path=where).fit()
    expected = {**content(4, 0), **content(4, 1)}
    assert result.return_value[1] == {name: len(data) for name, data in expected.items()}
    assert not Path(result.return_value[0]).exists()
    assert list(cache.iterdir()) == []

    here = Path(tmp_path.name, "run").as_posix()
    found = files_on(storage_server, here)
    kept = {"checkpoint_000003": 3, "checkpoint_000004": 4}
    for name, step in kept.items():
        for file, data in {**content(step, 0), **content(step, 1)}.items():
            assert found.pop(f"{name}/{file}") == data
        assert set(json.loads(found.pop(f"{name}/.manifest.json"))["files"]) == {
            *content(step, 0),
            *content(step, 1),
        }
    events = [name for name in found if "tfevents" in name]
    assert len(events) == 1
    assert found.pop(events[0])
    assert set(found) == {
        "run.json",
        "result.json",
        "progress.csv",
        "trainer.pkl",
        "logs/attempt_0/rank_0.log",
        "logs/attempt_0/rank_1.log",
    }
    record = json.loads(found["run.json"])
    assert record["status"] == "finished"
    assert record["checkpoints"] == list(kept)
    assert found["logs/attempt_0/rank_1.log"].decode() == "".join(f"step {n}\n" for n in range(5))
    rows = [json.loads(line) for line in found["result.json"].splitlines()]
    assert [row["step"] for row in rows] == [step for step in range(5) for _ in range(2)]
    table = list(csv.DictReader(io.StringIO(found["progress.csv"].decode())))
    assert [int(row["step"]) for row in table] == [row["step"] for row in rows]

    for again in (result, Result.from_path(runs_on(storage_server, tmp_path, "run"))):
        assert again.path == storage_server.path(here)
        assert again.error is None
        assert again.metrics["step"] == 4
        assert list(again.metrics_dataframe["step"]) == [row["step"] for row in rows]
        assert files_of(again.checkpoint) == expected
        assert [metrics["step"] for _, metrics in again.best_checkpoints] == [3, 4]
        for step, (checkpoint, _) in enumerate(again.best_checkpoints, 3):
            checkpoint.verify()
            assert files_of(checkpoint) == {**content(step, 0), **content(step, 1)}
    assert main([runs_on(storage_server, tmp_path, "run")]) == 0


@pytest.mark.campaign
@pytest.mark.parametrize("wanted", [False, True])
def test_what_workers_write_to_their_directory_comes_along_if_that_is_wanted(
    moto, tmp_path, cache, wanted
):
    def train():
        Path("artifact.txt").write_text("made by a worker")
        Path("deep").mkdir()
        Path("deep", "er.txt").write_text("as well")

    trainer_of(
        train,
        1,
        name="run",
        storage_path=runs_on(moto, tmp_path),
        sync_config=SyncConfig(sync_artifacts=wanted),
    ).fit()
    found = files_on(moto, f"{tmp_path.name}/run")
    artifacts = {name for name in found if name.startswith("artifacts")}
    assert artifacts == ({"artifacts/artifact.txt", "artifacts/deep/er.txt"} if wanted else set())
    assert list(cache.iterdir()) == []


# ------------------------------------------------------------------ what is killed
TRAIN = """
    import os, signal, sys, tempfile, time
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, CheckpointUploadMode, RunConfig, ScalingConfig, SyncConfig
    from minitrain.trainer import DataParallelTrainer

    def train(config):
        start = minitrain.get_checkpoint()
        step = 0
        if start is not None:
            with start.as_directory() as path:
                step = int(Path(path, "step").read_text()) + 1
        rank = minitrain.get_context().get_world_rank()
        while step < config["last"]:
            if step == config["pause"]:
                # Rows that only this host has, and a checkpoint that is not whole.
                print("has saved", flush=True)
                while not os.path.exists(f"{__file__}.go"):
                    time.sleep(0.01)
                for number in range(3):
                    minitrain.report({"step": step, "extra": number})
                if rank == 0:
                    print("pausing", flush=True)
                    folder = tempfile.mkdtemp(dir=".")
                    Path(folder, "half").write_text("half")
                    minitrain.report({"step": step}, Checkpoint.from_directory(folder))
                signal.pause()
            folder = tempfile.mkdtemp(dir=".")
            Path(folder, "step").write_text(str(step))
            minitrain.report(
                {"step": step},
                Checkpoint.from_directory(folder),
                delete_local_checkpoint_after_upload=True,
            )
            step += 1
        return start and start.path.rpartition("/")[2]

    DataParallelTrainer(
        train,
        train_loop_config={"last": 5, "pause": 3},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="run", storage_path=sys.argv[1]),
    ).fit()
"""


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("storage_server", "elsewhere"),
    [("seaweedfs", False), ("seaweedfs", True), ("gcs", True)],
    indirect=["storage_server"],
    ids=["same host", "another host", "another host, gcs"],
)
def test_a_run_whose_driver_was_killed_goes_on_from_what_its_storage_has(
    storage_server, start_script, tmp_path, cache, monkeypatch, elsewhere
):
    """The rows since the last checkpoint lie on the driver's host; all else is in the storage."""
    uri = runs_on(storage_server, tmp_path, "run")
    script = start_script(TRAIN, runs_on(storage_server, tmp_path))
    script.wait_for("has saved")
    wait_for_rows(storage_server, f"{tmp_path.name}/run", 2)
    Path(tmp_path, "script_0.py.go").touch()
    script.wait_for("pausing")
    wait_for_file(storage_server, f"{tmp_path.name}/run/checkpoint_000003/half")
    script.process.kill()
    script.wait()
    (left,) = cache.iterdir()
    steps = [json.loads(line)["step"] for line in (left / "result.json").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 3, 3]
    stored = files_on(storage_server, f"{tmp_path.name}/run")
    there = [json.loads(line)["step"] for line in stored["result.json"].splitlines()]
    if 2 not in there:
        there.append(2)  # its row is in its manifest

    if elsewhere:
        cache = tmp_path / "another"
        monkeypatch.setenv("MINITRAIN_CACHE", str(cache))
    assert DataParallelTrainer.can_restore(uri)
    config = {"last": 5, "pause": None}
    result = DataParallelTrainer.restore(uri, train_loop_config=config).fit()
    assert result.return_value == "checkpoint_000002"
    expected = [*(there if elsewhere else steps), 3, 4]
    assert list(result.metrics_dataframe["step"]) == expected
    found = files_on(storage_server, f"{tmp_path.name}/run")
    checkpoints = {name.partition("/")[0] for name in found if name.startswith("checkpoint")}
    # The name of the one that was begun is not used again while it is there to be seen.
    assert checkpoints == {f"checkpoint_{n:06d}" for n in (0, 1, 2, 4, 5)}
    assert {"logs/attempt_0/rank_0.log", "logs/attempt_1/rank_0.log"} <= found.keys()
    record = json.loads(found["run.json"])
    assert record["status"] == "finished"
    assert [attempt["outcome"] for attempt in record["attempts"]] == [None, "returned"]
    rows = [json.loads(line) for line in found["result.json"].splitlines()]
    assert [row["training_iteration"] for row in rows] == [*range(1, len(rows) + 1)]
    table = list(csv.DictReader(io.StringIO(found["progress.csv"].decode())))
    assert [int(row["step"]) for row in table] == expected
    assert list(cache.iterdir()) == []
    assert main([uri]) == 0
    # Back on the first host, what lies there is of no account any more.
    monkeypatch.setenv("MINITRAIN_CACHE", str(left.parent))
    again = DataParallelTrainer.restore(uri).fit()
    assert list(again.metrics_dataframe["step"]) == expected
    assert files_on(storage_server, f"{tmp_path.name}/run") == found


def wait_for_rows(server, path: str, number: int) -> None:
    deadline_s = time.monotonic() + 20
    while files_on(server, path).get("result.json", b"").count(b"\n") < number:
        assert time.monotonic() < deadline_s, path
        time.sleep(0.01)


def wait_for_file(server, path: str) -> None:
    from pyarrow.fs import FileType

    filesystem = server.filesystem()
    deadline_s = time.monotonic() + 20
    while filesystem.get_file_info(server.path(path)).type != FileType.File:
        assert time.monotonic() < deadline_s, path
        time.sleep(0.01)


@pytest.mark.campaign
def test_a_killed_worker_is_followed_by_an_attempt_from_the_newest_that_is_whole(
    storage_server, tmp_path
):
    def train():
        context = minitrain.get_context()
        start = minitrain.get_checkpoint()
        tasks = len(os.listdir(f"/proc/{os.getppid()}/task"))
        if start is None:
            for step in range(3):
                save(step, ASYNC if step == 1 else SYNC)
            if context.get_world_rank() == 0:
                # The other rank is killed before it has put its files.
                minitrain.report(
                    {"step": 3}, Checkpoint.from_directory(folder_with({"half": b"1"}))
                )
            storage = context.get_storage()
            half = storage.build_checkpoint_path_from_name("checkpoint_000003") + "/half"
            while not storage.storage_filesystem.get_file_info(half).is_file:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        names = set(files_of(start))
        save(4)
        return start.path.rpartition("/")[2], names, tasks

    where = runs_on(storage_server, tmp_path)
    result = trainer_of(train, failures=1, name="run", storage_path=where).fit()
    started_from, names, tasks = result.return_value
    assert started_from == "checkpoint_000002"
    assert names == {*content(2, 0), *content(2, 1)}
    assert tasks == 1, "an agent that opened a storage would have its threads, and could not fork"
    assert list(result.metrics_dataframe["step"]) == [0, 1, 2, 4]
    found = files_on(storage_server, f"{tmp_path.name}/run")
    assert not any(name.endswith("half") for name in found)
    attempts = json.loads(found["run.json"])["attempts"]
    assert ["SIGKILL" in attempt["outcome"] for attempt in attempts] == [True, False]
    assert main([runs_on(storage_server, tmp_path, "run")]) == 0


# ------------------------------------------------------------------ a server that goes away
@pytest.fixture
def server(seaweedfs):
    """A server to kill, which comes back for the tests that follow."""
    if seaweedfs._process is None:
        seaweedfs.start_again()
    yield seaweedfs
    if seaweedfs._process is None:
        seaweedfs.start_again()


@pytest.mark.campaign
@pytest.mark.parametrize("mode", [SYNC, pytest.param(ASYNC, marks=pytest.mark.campaign)])
def test_a_server_that_is_killed_under_an_upload_and_comes_back_costs_nothing(
    server, tmp_path, cache, mode
):
    size = 32 << 20

    def train():
        rank = minitrain.get_context().get_world_rank()
        for step in range(3):
            large = bytes([step, rank]) * (size // 2)
            folder = folder_with({f"large_{rank}": large, f"small_{rank}": b"1"})
            if step == 1 and rank == 0:
                Path("uploading").touch()
            minitrain.report(
                {"step": step},
                Checkpoint.from_directory(folder),
                checkpoint_upload_mode=mode,
                delete_local_checkpoint_after_upload=True,
            )

    trainer = trainer_of(train, name="run", storage_path=runs_on(server, tmp_path))
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(trainer.fit)
        # The server is a child of this thread, and dies with the thread that starts it.
        wait_until(lambda: any(cache.glob("*/artifacts/uploading")))
        filesystem = server.filesystem()
        marked = server.path(f"{tmp_path.name}/run/checkpoint_000001/.unfinished")
        wait_until(lambda: filesystem.get_file_info(marked).is_file)
        server.kill()
        assert not training.done()
        server.start_again()
        result = training.result()
    assert list(result.metrics_dataframe["step"]) == [0, 1, 2]
    assert len(result.best_checkpoints) == 3
    for step, (checkpoint, _) in enumerate(result.best_checkpoints):
        checkpoint.verify()
        found = files_of(checkpoint)
        for rank in range(2):
            assert found[f"large_{rank}"] == bytes([step, rank]) * (size // 2)
    assert list(cache.iterdir()) == []


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.mark.campaign
def test_while_the_server_is_away_reports_go_on_and_a_checkpoint_says_which_file_it_could_not_put(
    server, tmp_path, cache, monkeypatch, caplog
):
    monkeypatch.setenv("MINITRAIN_RETRY_S", "2")

    def train(config):
        rank = minitrain.get_context().get_world_rank()
        save(0)
        if rank == 0:
            os.kill(config["server"], signal.SIGKILL)
        minitrain.collective.barrier()
        problem = None
        for step in range(1, 51):
            minitrain.report({"step": step})
        try:
            save(51)
        except CheckpointError as error:
            problem = str(error)
        minitrain.report({"step": 52})
        Path("problem").write_text(problem)

    pid = server._process.pid
    trainer = trainer_of(
        train, name="run", storage_path=runs_on(server, tmp_path), config={"server": pid}
    )
    with pytest.raises(ControllerError, match=r"is finished, but .* does not answer") as caught:
        trainer.fit()
    (left,) = cache.iterdir()
    assert str(left) in str(caught.value)
    assert f"they stay in {left}" in caplog.text
    problem = (left / "artifacts" / "problem").read_text()
    assert "/run/checkpoint_000001 could not be written: " in problem
    assert f"key '{tmp_path.name}/run/checkpoint_000001/" in problem, "the file that failed first"
    server.kill()
    steps = [json.loads(line)["step"] for line in (left / "result.json").read_text().splitlines()]
    assert steps == [0, *range(1, 51), 52]

    server.start_again()
    uri = runs_on(server, tmp_path, "run")
    result = DataParallelTrainer.restore(uri).fit()
    assert list(result.metrics_dataframe["step"]) == steps
    assert result.error is None
    assert list(cache.iterdir()) == []
    assert "finished" in files_on(server, f"{tmp_path.name}/run")["run.json"].decode()


@pytest.mark.campaign
def test_ctrl_c_does_not_wait_for_a_server_that_is_gone(server, start_script, tmp_path, cache):
    script = start_script(
        """
        import os, signal, sys

        import minitrain
        from minitrain import Checkpoint, RunConfig
        from minitrain.trainer import DataParallelTrainer

        def train():
            os.mkdir("saved")
            minitrain.report({"step": 0}, Checkpoint.from_directory("saved"))
            os.kill(int(sys.argv[2]), signal.SIGKILL)
            minitrain.report({"step": 1})
            print("reported", flush=True)
            minitrain.report({"step": 2}, Checkpoint.from_directory("saved"))

        try:
            DataParallelTrainer(
                train, run_config=RunConfig(name="run", storage_path=sys.argv[1])
            ).fit()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
        runs_on(server, tmp_path),
        str(server._process.pid),
        env={"MINITRAIN_RETRY_S": "600"},
    )
    script.wait_for("trying again")
    script.process.send_signal(signal.SIGINT)
    assert script.wait() == 0, script.output
    server.kill()
    assert "interrupted" in script.output
    (left,) = cache.iterdir()
    assert f"they stay in {left}" in script.output
    rows = [json.loads(line) for line in (left / "result.json").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert json.loads((left / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.campaign
# ------------------------------------------------------------------ what is refused
def test_a_storage_that_cannot_be_written_to_is_refused_before_anything_starts(
    moto, seaweedfs, tmp_path, cache, monkeypatch
):
    monkeypatch.setenv("MINITRAIN_RETRY_S", "0.5")
    minitrain.shutdown()
    good = runs_on(seaweedfs, tmp_path)
    refused = {
        "wrong bucket": runs_on(moto, tmp_path).replace("@bkt/", "@other/"),
        "wrong credentials": good.replace("test:test", "test:wrong"),
        "nobody there": good.replace(seaweedfs.address, "127.0.0.1:9"),
    }
    for what, where in refused.items():
        with pytest.raises(ConfigurationError, match=r"^RunConfig\(storage_path\)=") as caught:
            trainer_of(lambda: None, name="run", storage_path=where).fit()
        assert "cannot be used: " in str(caught.value), what
        assert "\n" not in str(caught.value), what
    assert not agents._pool.idle
    assert not agents._pool.leased
    assert not cache.exists()


@pytest.mark.campaign
# ------------------------------------------------------------------ names and other ways to say it
def test_a_name_that_is_taken_gets_a_number(storage_server, tmp_path):
    def train():
        minitrain.report({"step": 1})

    where = runs_on(storage_server, tmp_path)
    with storage_server.filesystem().open_output_stream(
        storage_server.path(f"{tmp_path.name}/run_1/somebody's")
    ) as stream:
        stream.write(b"1")
    paths = [trainer_of(train, 1, name="run", storage_path=where).fit().path for _ in range(2)]
    root = storage_server.path(tmp_path.name)
    assert paths == [f"{root}/run", f"{root}/run_2"]
    assert files_on(storage_server, f"{tmp_path.name}/run_1") == {"somebody's": b"1"}


def test_there_is_nothing_to_restore_where_no_run_is(storage_server, tmp_path, cache):
    uri = runs_on(storage_server, tmp_path, "run")
    assert not DataParallelTrainer.can_restore(uri)
    with pytest.raises(ConfigurationError, match="there is no run"):
        DataParallelTrainer.restore(uri)
    with pytest.raises(RuntimeError, match="not the folder of a run"):
        Result.from_path(uri)
    assert not cache.exists()


@pytest.mark.campaign
def test_a_restored_run_that_failed_goes_on_and_is_rid_of_its_error(moto, tmp_path, cache):
    def train(config):
        if minitrain.get_checkpoint() is None:
            save(0)
        if config["fails"]:
            raise ValueError("this time")

    trainer = trainer_of(
        train, name="run", storage_path=runs_on(moto, tmp_path), config={"fails": True}
    )
    with pytest.raises(TrainingFailedError, match="this time"):
        trainer.fit()
    uri = runs_on(moto, tmp_path, "run")
    assert "this time" in str(Result.from_path(uri).error)
    assert "error.txt" in files_on(moto, f"{tmp_path.name}/run")
    DataParallelTrainer.restore(uri, train_loop_config={"fails": False}).fit()
    assert Result.from_path(uri).error is None
    assert not any("error" in name for name in files_on(moto, f"{tmp_path.name}/run"))
    assert list(cache.iterdir()) == []


@pytest.mark.campaign
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_checkpoint_on_a_server_starts_a_run_elsewhere_and_is_not_changed(
    moto, storage, tmp_path, num_workers, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def first():
        save(7)

    def second():
        start = minitrain.get_checkpoint()
        names = sorted(files_of(start))
        minitrain.report({"step": 8}, start)
        return names

    given = trainer_of(first, num_workers, name="run", storage_path=runs_on(moto, tmp_path)).fit()
    before = files_on(moto, f"{tmp_path.name}/run")
    result = trainer_of(second, num_workers, name="next", resume=given.checkpoint).fit()
    ranks = range(max(1, num_workers))
    expected = {name: data for rank in ranks for name, data in content(7, rank).items()}
    assert result.return_value == sorted(expected)
    assert Path(result.checkpoint.path).is_relative_to(storage)
    assert files_of(result.checkpoint) == expected
    assert files_on(moto, f"{tmp_path.name}/run") == before


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["pyarrow", "fsspec"])
def test_a_filesystem_can_be_given_instead_of_a_uri(kind, moto, tmp_path, cache):
    def train():
        save(3)
        assert minitrain.get_context().get_storage().storage_filesystem == filesystem_seen

    if kind == "pyarrow":
        filesystem, path = moto.filesystem(), moto.path(tmp_path.name)
        seen = filesystem
    else:
        filesystem, path = fsspec.filesystem("file"), str(tmp_path / "runs elsewhere")
        seen = PyFileSystem(FSSpecHandler(filesystem))
    filesystem_seen = seen
    given = {"storage_path": path, "storage_filesystem": filesystem}
    result = trainer_of(train, name="run", **given).fit()
    expected = {**content(3, 0), **content(3, 1)}
    assert files_of(result.checkpoint) == expected
    found = files_in(seen, f"{path}/run")
    assert {"run.json", "result.json", "trainer.pkl", "progress.csv"} <= found.keys()
    again = Result.from_path(f"{path}/run", filesystem)
    assert files_of(again.checkpoint) == expected
    assert DataParallelTrainer.can_restore(f"{path}/run", filesystem)
    assert (
        DataParallelTrainer.restore(f"{path}/run", storage_filesystem=filesystem)
        .fit()
        .metrics["step"]
        == 3
    )
    assert list(cache.iterdir()) == []
