"""The run's directory as a worker sees it that cannot reach it, over real pipes."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import threading
import zlib
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector, FileType, LocalFileSystem

from minitrain import Checkpoint
from minitrain._driver.files import Desk
from minitrain._storage import file_connection
from minitrain._storage.disk import LocalDisk
from minitrain._storage.file_calls import PIECE_BYTES, Frames
from minitrain._storage.file_connection import FileConnection
from minitrain._storage.home_disk import HomeDisk, HomeFileSystem
from minitrain._storage.run_storage import RunStorage
from minitrain.exceptions import CheckpointCorruptError, OutOfSpaceError


@pytest.fixture
def home(tmp_path) -> Path:
    """The directory of a run."""
    folder = tmp_path / "home" / "run"
    folder.mkdir(parents=True)
    (folder / "run.json").touch()
    return folder


@pytest.fixture
def desk(home, monkeypatch):
    """What serves this process the directory of a run, and nothing else."""
    calls_read, calls_write = os.pipe()
    answers_read, answers_write = os.pipe()
    desk = Desk(str(home))

    def serve():
        frames = Frames()
        while data := os.read(calls_read, 1 << 16):
            for part in frames.feed(data):
                for answer in desk.serve(part):
                    view = memoryview(answer)
                    while view:
                        view = view[os.write(answers_write, view) :]

    thread = threading.Thread(target=serve)
    thread.start()
    connection = FileConnection(answers_read, calls_write)
    monkeypatch.setattr(file_connection, "_connection", connection)
    yield desk
    connection.close()
    thread.join()
    desk.close()
    os.close(calls_read)
    os.close(answers_write)


@pytest.fixture
def storage(desk, home) -> RunStorage:
    """The run's storage as a worker has it."""
    return RunStorage(HomeDisk(HomeFileSystem(str(home)), str(home)))


@pytest.fixture
def source(tmp_path) -> Path:
    """A checkpoint to be; one of its files takes several calls."""
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "deep" / "er").write_text("deeper")
    (folder / "large").write_bytes(os.urandom(PIECE_BYTES * 2 + 3))
    (folder / "no files").mkdir()
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def facts_of(infos) -> set[tuple]:
    return {(info.path, info.type, info.size, info.mtime_ns) for info in infos}


def begun(home: Path, name: str) -> RunStorage:
    """Begin a checkpoint as the driver does, and return the driver's storage."""
    ours = RunStorage(LocalDisk(str(home)))
    ours.begin(name)
    return ours


def test_what_a_worker_puts_the_driver_commits_and_the_worker_reads(storage, home, source):
    ours = begun(home, "c")
    entries = storage.put(source, "c")
    large = (source / "large").read_bytes()
    assert {entry.path: (entry.size_bytes, entry.crc32) for entry in entries} == {
        "empty": (0, 0),
        "deep/er": (6, zlib.crc32(b"deeper")),
        "large": (len(large), zlib.crc32(large)),
    }
    ours.commit("c", [entries], 0, {}, {"made by": "a test"})
    assert ours.verify("c") == []
    assert storage.verify("c") == []
    assert [one.name for one in storage.committed()] == ["c"]
    checkpoint = storage.checkpoint("c")
    checkpoint.verify()
    assert checkpoint.get_metadata() == {"made by": "a test"}
    with checkpoint.as_directory() as folder:
        assert folder != str(home / "c")
        assert files_in(Path(folder)) == files_in(home / "c")
    assert files_in(source).items() <= files_in(home / "c").items()
    (home / "c" / "deep" / "er").write_text("deepen")
    with pytest.raises(CheckpointCorruptError, match="deep/er: checksum"):
        checkpoint.verify()


def test_what_was_put_is_durable_when_put_returns(storage, home, source, monkeypatch):
    begun(home, "c")
    synced = set()
    fsync = os.fsync

    def follow(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", follow)
    storage.put(source, "c")
    names = ["", "/.unfinished", "/deep", "/deep/er", "/empty", "/large", "/no files"]
    assert synced == {f"{home}/c{name}" for name in names}


def test_a_file_appears_when_it_is_whole(storage, desk, home):
    filesystem = storage.filesystem
    with filesystem.open_output_stream(f"{home}/file") as stream:
        stream.write(b"some")
        assert [path.name for path in home.iterdir() if path.name.startswith("file")] == []
        stream.write(b"thing")
    assert (home / "file").read_bytes() == b"something"
    stream = filesystem.open_output_stream(f"{home}/never")
    stream.write(b"half of it")
    desk.close()  # the worker has been killed
    assert sorted(path.name for path in home.iterdir()) == ["file", "run.json"]
    with pytest.raises(OSError, match="KeyError"):
        stream.close()


def test_a_write_that_fails_is_raised_with_its_number_and_leaves_nothing(storage, home, source):
    """The largest file that this process may write stands for a disk that is full."""
    begun(home, "c")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PIECE_BYTES + 5, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            storage.put(source, "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert list(files_in(home / "c")) == [".unfinished"]
    assert len(storage.put(source, "c")) == 3


def test_what_does_not_fit_is_not_begun(storage, home, source):
    begun(home, "c")
    with (source / "huge").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(OutOfSpaceError):
        storage.put(source, "c")


def test_it_lists_and_changes_what_there_is(storage, home):
    filesystem = storage.filesystem
    filesystem.create_dir(f"{home}/a/b")
    with filesystem.open_output_stream(f"{home}/a/b/file") as stream:
        stream.write(b"12345")
    filesystem.copy_file(f"{home}/a/b/file", f"{home}/a/copy")
    filesystem.move(f"{home}/a/copy", f"{home}/a/moved")
    found = filesystem.get_file_info(FileSelector(f"{home}/a", recursive=True))
    local = LocalFileSystem().get_file_info(FileSelector(f"{home}/a", recursive=True))
    assert facts_of(found) == facts_of(local)
    assert filesystem.get_file_info(f"{home}/none").type == FileType.NotFound
    with pytest.raises(FileNotFoundError):
        filesystem.get_file_info(FileSelector(f"{home}/none"))
    assert filesystem.get_file_info(FileSelector(f"{home}/none", allow_not_found=True)) == []
    with filesystem.open_input_file(f"{home}/a/moved") as file:
        assert file.size() == 5
        assert file.read_at(2, 3) == b"45"
        file.seek(1)
        assert file.read() == b"2345"
    filesystem.delete_file(f"{home}/a/moved")
    filesystem.delete_dir_contents(f"{home}/a")
    assert list((home / "a").iterdir()) == []
    filesystem.delete_dir(f"{home}/a")
    assert not (home / "a").exists()
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_stream(f"{home}/none")
    with pytest.raises(NotImplementedError, match="nothing is appended"):
        filesystem.open_append_stream(f"{home}/file")


@pytest.mark.parametrize("where", ["above", "dots", "beside", "link", "link to a file"])
def test_nothing_outside_the_directory_is_reached(storage, desk, home, tmp_path, where):
    secret = tmp_path / "home" / "run-2" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    (home / "link").symlink_to(secret.parent)
    (home / "file").symlink_to(secret)
    path = {
        "above": str(tmp_path / "home"),
        "dots": f"{home}/../run-2/secret",
        "beside": str(secret),
        "link": f"{home}/link/secret",
        "link to a file": f"{home}/file",
    }[where]
    filesystem = storage.filesystem
    for act in (
        filesystem.get_file_info,
        filesystem.open_input_stream,
        lambda path: filesystem.get_file_info(FileSelector(path)),
        lambda path: filesystem.copy_file(path, f"{home}/stolen"),
    ):
        with pytest.raises(PermissionError, match="is not in the run's directory"):
            act(path)
    if where == "link to a file":
        filesystem.delete_file(path)  # the link is in the directory
        assert not (home / "file").is_symlink()
    else:
        for act in (
            filesystem.open_output_stream,
            filesystem.create_dir,
            filesystem.delete_dir,
            filesystem.delete_file,
            lambda path: filesystem.move(f"{home}/run.json", path),
            lambda path: desk._sync([path]),
        ):
            with pytest.raises(PermissionError, match="is not in the run's directory"):
                act(path)
    with pytest.raises(PermissionError, match="the run's directory itself"):
        filesystem.delete_dir(str(home))
    assert secret.read_text() == "secret"
    assert not (home / "stolen").exists()


def test_a_directory_elsewhere_may_be_read_and_not_written(home, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    desk = Desk(str(home), [str(elsewhere)])
    assert desk._describe([str(elsewhere)])[0][1] == "directory"
    with pytest.raises(PermissionError, match="is not in the run's directory"):
        desk._create(f"{elsewhere}/file")


def test_pickled_it_is_the_same_in_a_worker_and_the_local_one_at_home(storage, home, monkeypatch):
    checkpoint = storage.checkpoint("c")
    data = pickle.dumps(checkpoint)
    assert pickle.loads(data) == checkpoint
    assert pickle.loads(data).filesystem.type_name == "py::minitrain-driver"
    monkeypatch.setattr(file_connection, "_connection", None)
    assert pickle.loads(data) == Checkpoint(home / "c")
    assert pickle.loads(data).is_local
    (home / "run.json").unlink()
    elsewhere = pickle.loads(data)
    with pytest.raises(RuntimeError, match="is none of its workers: read a checkpoint in the"):
        elsewhere.to_directory()


def test_after_an_interrupted_call_the_next_one_is_refused():
    """The answer to the first would be taken for that to the second."""

    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    calls_read, calls_write = os.pipe()
    answers_read, answers_write = os.pipe()
    connection = FileConnection(answers_read, calls_write)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupted):
            connection.call("free_bytes")
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(OSError, match="an exception from a signal handler had interrupted a call"):
        connection.call("free_bytes")
    connection.close()
    os.close(calls_read)
    os.close(answers_write)
