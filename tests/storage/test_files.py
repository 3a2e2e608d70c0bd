"""A file is the old one or the new one, and nothing else is left beside it."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import resource
import stat
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._storage.files import read_json, sync_directory, write_bytes, write_json

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

forking = multiprocessing.get_context("fork")
KILLED = 77


def in_child(function) -> int:
    child = forking.Process(target=function)
    child.start()
    child.join(30)
    return child.exitcode


@pytest.mark.parametrize("before", [None, b"old", b"old" * 10_000])
def test_a_file_is_made_or_replaced(tmp_path, before):
    path = tmp_path / "run.json"
    if before is not None:
        path.write_bytes(before)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "run.json"
    seen = set()
    number = 0
    exitcode = KILLED
    while exitcode == KILLED:
        number += 1
        path.write_bytes(b"old")

        def run(number=number):
            count = 0

            def watch(_frame, event, called):
                nonlocal count
                by_a_file = isinstance(getattr(called, "__self__", None), io.IOBase)
                posix = getattr(called, "__module__", None) == "posix"
                if event == "c_call" and (by_a_file or posix or called is open):
                    count += 1
                    if count == number:
                        os._exit(KILLED)

            sys.setprofile(watch)
            write_bytes(path, b"the new one")
            os._exit(0)

        exitcode = in_child(run)
        seen.add(path.read_bytes())
    assert number > 6, "the calls to the kernel were not seen"
    assert seen == {b"old", b"the new one"}


def test_it_is_synced_before_it_gets_its_name_and_the_name_afterwards(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    happened = []
    really_sync, really_replace = os.fsync, os.replace

    def fsync(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        happened.append("folder" if name == str(tmp_path) else "file")
        really_sync(descriptor)

    def replace(old, new):
        happened.append("name")
        really_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_bytes(path, b"x")
    assert happened == ["file", "name", "folder"]


def test_a_disk_without_room_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(b"old")

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_bytes(path, b"x" * 100_000)
        except OSError:
            os._exit(KILLED)

    assert in_child(write) == KILLED
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_it_is_for_the_umask_to_say(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "run.json", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == mode


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, max_examples=50)
@given(value=json_values)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("files") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_nan_survives_json(tmp_path):
    write_json(tmp_path / "value.json", {"loss": math.nan})
    assert math.isnan(read_json(tmp_path / "value.json")["loss"])


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "value.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", {"value": object()})
    assert read_json(tmp_path / "value.json") == 1


def test_syncing_a_directory_leaves_no_descriptor_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    sync_directory(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_only_directories_are_synced_as_such(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")
