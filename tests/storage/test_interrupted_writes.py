"""Whoever writes or deletes a checkpoint may die at any moment, on a local disk and elsewhere."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import pyarrow
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from minitrain._manifest import MANIFEST
from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.disk import LocalDisk
from minitrain._storage.retry import Retry
from minitrain._storage.run_storage import RunStorage

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

forking = multiprocessing.get_context("fork")
KILLED = 77
NAMES = ["checkpoint_000002", "chosen by the user"]
CONTENT = {"weights": b"w" * 3000, "deep/er/state": b"s" * 10, "empty": b""}
OF_RANK_1 = {"weights": b"v" * 2000, "own": b"1"}


def make_files(folder: Path, content) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def local(root: Path) -> RunStorage:
    return RunStorage(LocalDisk(str(root)))


def remote(root: Path) -> RunStorage:
    filesystem = PyFileSystem(FSSpecHandler(LocalFileSystem()))
    return RunStorage(ArrowDisk(filesystem, str(root), Retry(0.0)))


class Died(BaseException):
    """No code runs after this one, so nothing may be done about it."""


class Life:
    """Counts calls, and ends before one of them."""

    def __init__(self, last: int) -> None:
        self._left = last
        self._lock = threading.Lock()

    def call(self) -> None:
        with self._lock:
            if self._left == 0:
                raise Died
            self._left -= 1


class MortalDisk:
    """A disk that nobody reaches any more after so many calls."""

    def __init__(self, disk, life: Life) -> None:
        self._disk = disk
        self._life = life

    def __getattr__(self, name):
        value = getattr(self._disk, name)
        if not callable(value):
            return value

        def call(*args, **kwargs):
            self._life.call()
            return value(*args, **kwargs)

        return call


class MortalFile(io.RawIOBase):
    """An open file of a mortal filesystem; what was written before the end is there."""

    def __init__(self, file, life: Life) -> None:
        self._file = file
        self._life = life

    def writable(self):
        return True

    def write(self, data):
        half = len(data) // 2
        self._file.write(bytes(data)[:half])
        self._life.call()
        self._file.write(bytes(data)[half:])
        return len(data)

    def close(self):
        self._file.close()


class MortalHandler(FSSpecHandler):
    """A filesystem that nobody reaches any more after so many calls."""

    def __init__(self, life: Life) -> None:
        super().__init__(LocalFileSystem())
        self._life = life

    def open_output_stream(self, path, metadata):
        self._life.call()
        return pyarrow.PythonFile(MortalFile(self.fs.open(path, "wb"), self._life), mode="w")


def mortal(name):
    def call(self, *args):
        self._life.call()
        return getattr(FSSpecHandler, name)(self, *args)

    return call


for each in (
    "get_file_info",
    "get_file_info_selector",
    "create_dir",
    "delete_dir",
    "delete_file",
    "open_input_stream",
):
    setattr(MortalHandler, each, mortal(each))


def mortal_local(root: Path, life: Life) -> RunStorage:
    return RunStorage(MortalDisk(LocalDisk(str(root)), life))


def mortal_remote(root: Path, life: Life) -> RunStorage:
    return RunStorage(MortalDisk(remote(root).disk, life))


def mortal_filesystem(root: Path, life: Life) -> RunStorage:
    return RunStorage(ArrowDisk(PyFileSystem(MortalHandler(life)), str(root), Retry(0.0)))


def write(run: RunStorage, sources: list[Path], name: str, sequence: int) -> None:
    run.begin(name)
    parts = [run.put(source, name) for source in sources]
    run.commit(name, parts, sequence, {"loss": 0.5}, {"by": "the trainer"})


def directories(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.iterdir()))


# ------------------------------------------------------------------ no call after the last one
@pytest.mark.parametrize(
    ("make", "fresh"),
    [(mortal_local, local), (mortal_remote, remote), (mortal_filesystem, remote)],
    ids=["local disk", "remote disk", "remote filesystem"],
)
@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.campaign)])
def test_after_any_call_there_are_only_whole_checkpoints_and_ones_to_sweep(
    tmp_path, make, fresh, name
):
    sources = [make_files(tmp_path / "0", CONTENT), make_files(tmp_path / "1", OF_RANK_1)]
    seen = set()
    calls = 0
    alive = False
    while not alive:
        root = tmp_path / f"run_{calls}"
        root.mkdir()
        for sequence, old in enumerate(["kept", "mine"]):
            write(fresh(root), sources, old, sequence)
        run = make(root, Life(calls))
        try:
            write(run, sources, name, 2)
            run.delete("mine")
            run.write("run.json", b"{}")
            alive = True
        except Died:
            pass

        after = fresh(root)
        found = [one.name for one in after.committed()]
        assert found in (
            ["kept", "mine"],
            ["kept", "mine", name],
            ["kept", name],
        ), f"died before call {calls + 1}"
        for one in found:
            assert after.verify(one) == [], f"{one}; died before call {calls + 1}"
            assert after.manifest(one)["files"].keys() == {
                *CONTENT,
                *OF_RANK_1,
                ".metadata.json",
            }
        swept = after.sweep()
        assert not set(swept) & set(found)
        assert directories(root) == sorted(found), f"died before call {calls + 1}"
        seen.add(tuple(found))
        calls += 1
    assert len(seen) == 3, "every outcome was met"
    assert calls > 15


@pytest.mark.parametrize(
    ("make", "fresh"),
    [(mortal_local, local), (mortal_filesystem, remote)],
    ids=["local disk", "remote filesystem"],
)
def test_a_damaged_checkpoint_that_is_being_set_aside_loses_no_file(tmp_path, make, fresh):
    sources = [make_files(tmp_path / "0", CONTENT), make_files(tmp_path / "1", OF_RANK_1)]
    name = "checkpoint_000000"
    calls = 0
    alive = False
    while not alive:
        root = tmp_path / f"run_{calls}"
        root.mkdir()
        write(fresh(root), sources, name, 0)
        try:
            make(root, Life(calls)).set_aside(name)
            alive = True
        except Died:
            pass
        assert fresh(root).sweep() == []
        (kept,) = root.iterdir()
        assert {path.name for path in kept.rglob("*")} >= {"weights", "state", "own", "empty"}
        calls += 1
    assert calls > 3


# ------------------------------------------------------------------ a process that is killed
def touches_the_disk(function) -> bool:
    """Return whether a function of the interpreter asks the kernel for something."""
    by_a_file = isinstance(getattr(function, "__self__", None), io.IOBase)
    return (
        by_a_file
        or function is open
        or getattr(function, "__module__", None)
        in {
            "posix",
            "fcntl",
        }
    )


def killed_before_call(number: int, function) -> bool:
    """Run a function in a fork that dies just before its ``number``-th call to the kernel.

    Returns:
        False if the function, with its threads, made fewer calls.
    """

    def run():
        count = 0

        def watch(_frame, event, called):
            nonlocal count
            if event == "c_call" and touches_the_disk(called):
                count += 1
                if count == number:
                    os._exit(KILLED)

        threading.setprofile(watch)
        sys.setprofile(watch)
        function()
        sys.setprofile(None)
        os._exit(0)

    child = forking.Process(target=run)
    child.start()
    child.join(30)
    assert child.exitcode in {0, KILLED}
    return child.exitcode == KILLED


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("name", "move"),
    [
        pytest.param(NAMES[0], False, id="copied"),
        pytest.param(NAMES[1], True, id="moved"),
    ],
)
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint_or_one_to_sweep(
    tmp_path, name, move
):
    outcomes = set()
    number = 0
    killed = True
    while killed:
        number += 1
        root = tmp_path / f"run_{number}"
        root.mkdir()
        run = local(root)
        source = make_files(tmp_path / f"source_{number}", CONTENT)

        def work(run=run, source=source):
            run.begin(name)
            run.commit(name, [run.put(source, name, move=move)], 0, {}, {})

        killed = killed_before_call(number, work)
        whole = [one.name for one in run.committed()]
        outcomes.add(bool(whole))
        if whole:
            assert run.verify(name) == []
            assert run.manifest(name)["files"].keys() == CONTENT.keys()
        swept = run.sweep()
        assert [one.name for one in root.iterdir()] == whole, f"killed before call {number}"
        assert not (swept and whole)
    assert number > 20, "the calls to the kernel were not seen"
    assert outcomes == {True, False}


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
def test_a_deletion_killed_at_any_moment_leaves_a_whole_checkpoint_or_one_to_sweep(tmp_path, name):
    source = make_files(tmp_path / "source", CONTENT)
    number = 0
    killed = True
    while killed:
        number += 1
        root = tmp_path / f"run_{number}"
        root.mkdir()
        run = local(root)
        write(run, [source], name, 0)
        killed = killed_before_call(number, lambda run=run: run.delete(name))
        if run.committed():
            assert run.verify(name) == []
            continue
        run.sweep()
        assert list(root.iterdir()) == [], f"killed before call {number}"
    assert number > 5, "the calls to the kernel were not seen"


def test_the_manifest_is_the_last_file_that_appears(tmp_path):
    source = make_files(tmp_path / "source", CONTENT)
    order = []

    class Watched(LocalDisk):
        def put(self, source, path, *, move=False):
            order.append(path)
            return super().put(source, path, move=move)

        def write(self, path, data):
            order.append(path)
            super().write(path, data)

    write(RunStorage(Watched(str(tmp_path))), [source], "c", 0)
    assert order[-1] == f"c/{MANIFEST}"
    assert set(order[:-1]) == {f"c/{path}" for path in [*CONTENT, ".metadata.json"]}
