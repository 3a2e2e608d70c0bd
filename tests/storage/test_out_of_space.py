"""A full disk is said in bytes, and costs no checkpoint that is there already."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.disk import LocalDisk
from minitrain._storage.retry import Retry
from minitrain._storage.run_storage import RunStorage
from minitrain.exceptions import OutOfSpaceError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

forking = multiprocessing.get_context("fork")
MANY = 100_000


def make_files(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    (folder / "big").write_bytes(b"x" * MANY)
    return folder


def left_of(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*"))


class FullDisk(LocalDisk):
    """A disk that says how much is free, and fails when it is used up."""

    free = 10

    def free_bytes(self):
        return self.free


# ------------------------------------------------------------------ before writing
def test_a_checkpoint_that_does_not_fit_is_not_begun_to_be_written(tmp_path):
    run = RunStorage(FullDisk(str(tmp_path)))
    run.begin("c")
    with pytest.raises(OutOfSpaceError) as caught:
        run.put(make_files(tmp_path / "source"), "c")
    error = caught.value
    assert (error.path, error.needed_bytes, error.free_bytes) == (f"{tmp_path}/c", MANY + 1, 10)
    assert f"{tmp_path}/c: the checkpoint's files need 100,001 bytes" in str(error)
    assert "10 bytes are free" in str(error)
    assert left_of(tmp_path / "c") == [".unfinished"]


def test_files_that_are_moved_need_no_room(tmp_path):
    run = RunStorage(FullDisk(str(tmp_path)))
    run.begin("c")
    run.commit("c", [run.put(make_files(tmp_path / "source"), "c", move=True)], 0, {}, {})
    assert run.verify("c") == []


def test_files_whose_blocks_are_shared_need_no_room(tmp_path, monkeypatch):
    import fcntl

    def ioctl(writer, request, reader):
        os.write(writer, os.pread(reader, MANY, 0))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    run = RunStorage(FullDisk(str(tmp_path)))
    run.begin("c")
    run.commit("c", [run.put(make_files(tmp_path / "source"), "c")], 0, {}, {})
    assert run.verify("c") == []


# ------------------------------------------------------------------ while writing
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_meanwhile_keeps_nothing_of_it(tmp_path, number):
    class Filling(LocalDisk):
        def put(self, source, path, *, move=False):
            if source.name == "big":
                raise OSError(number, os.strerror(number))
            return super().put(source, path, move=move)

    run = RunStorage(Filling(str(tmp_path)))
    run.begin("c")
    with pytest.raises(OutOfSpaceError, match=r"need 100,001 bytes, and [\d,]+ bytes are free"):
        run.put(make_files(tmp_path / "source"), "c")
    assert left_of(tmp_path / "c") == [".unfinished"]


def test_a_remote_filesystem_that_is_full_keeps_nothing_of_it(tmp_path):
    class Filling(FSSpecHandler):
        def open_output_stream(self, path, metadata):
            if path.endswith("big"):
                return pyarrow.OSFile("/dev/full", mode="wb")
            return super().open_output_stream(path, metadata)

    filesystem = PyFileSystem(Filling(LocalFileSystem()))
    run = RunStorage(ArrowDisk(filesystem, str(tmp_path / "run"), Retry(60.0)))
    with pytest.raises(OutOfSpaceError, match="and the storage is full"):
        run.put(make_files(tmp_path / "source"), "c")
    assert left_of(tmp_path / "run" / "c") == [".unfinished"]


def test_a_file_beyond_the_limit_of_the_process_leaves_nothing(tmp_path):
    run = RunStorage(LocalDisk(str(tmp_path)))
    source = make_files(tmp_path / "source")
    run.begin("c")

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            run.put(source, "c")
        except OSError as error:
            os._exit(error.errno)

    child = forking.Process(target=write)
    child.start()
    child.join(30)
    assert child.exitcode == errno.EFBIG
    assert left_of(tmp_path / "c") == [".unfinished"]
    assert run.sweep() == ["c"]


# ------------------------------------------------------------------ a disk that is really full
FILL = """
    import os, sys
    from pathlib import Path

    from minitrain._storage.disk import LocalDisk
    from minitrain._storage.run_storage import RunStorage
    from minitrain.exceptions import OutOfSpaceError

    class Hopeful(LocalDisk):
        def takes_no_room(self, source, *, move):
            return True  # others fill the disk after the check

    source, target, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    disk = (Hopeful if kind == "while writing" else LocalDisk)(str(target))
    run = RunStorage(disk)
    sizes = {"old": 1 << 20, "new": 6 << 20}
    for name, size in sizes.items():
        folder = source / name
        folder.mkdir()
        for part in range(2):
            (folder / f"part_{part}").write_bytes(b"x" * size)
    run.begin("old")
    run.commit("old", [run.put(source / "old", "old")], 0, {}, {})
    free = os.statvfs(target).f_bavail * os.statvfs(target).f_frsize
    run.begin("new")
    try:
        run.put(source / "new", "new")
    except OutOfSpaceError as error:
        print(error)
        assert error.needed_bytes == 12 << 20
        assert error.free_bytes <= free
    else:
        raise SystemExit("it should not have fitted")
    assert os.listdir(target / "new") == [".unfinished"]
    assert run.verify("old") == []
    assert run.sweep() == ["new"]
    assert [one.name for one in run.committed()] == ["old"]
    print("kept the old one")
"""


@pytest.mark.parametrize("kind", ["before writing", "while writing"])
def test_a_full_disk(tmp_path, kind):
    (tmp_path / "fill.py").write_text(textwrap.dedent(FILL))
    (tmp_path / "source").mkdir()
    (tmp_path / "small").mkdir()
    in_namespace = ["unshare", "-m", "bash", "-c"]
    mount = 'mount -t tmpfs -o size=10m tmpfs "$0"'
    if subprocess.run(
        [*in_namespace, mount, str(tmp_path / "small")], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small filesystem needs root and unshare")
    command = f'{mount} && exec "$@" "$0" "{kind}"'
    done = subprocess.run(
        [
            *in_namespace,
            command,
            str(tmp_path / "small"),
            sys.executable,
            str(tmp_path / "fill.py"),
            str(tmp_path / "source"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept the old one" in done.stdout
    assert f"{tmp_path}/small/new: the checkpoint's files need 12,582,912 bytes" in done.stdout
