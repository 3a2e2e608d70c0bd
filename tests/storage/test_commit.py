"""A checkpoint exists completely or not at all, whenever its writer dies."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._storage import commit
from minitrain._storage.commit import MANIFEST, FileEntry
from minitrain._storage.ranking import Registered

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

forking = multiprocessing.get_context("fork")
KILLED = 77
NAMES = ["checkpoint_000000", "chosen by the user"]
CONTENT = {"weights": b"w" * 3000, "deep/er/state": b"s" * 10, "empty": b""}


def make_files(folder: Path, content=None) -> Path:
    for name, data in (CONTENT if content is None else content).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_whole(path: Path) -> None:
    """Fail unless what the manifest names is there, byte for byte."""
    for name, facts in commit.read_manifest(path)["files"].items():
        data = (path / name).read_bytes()
        assert facts == {"bytes": len(data), "crc32": zlib.crc32(data)}


def write_checkpoint(source: Path, path: Path, report=None) -> Registered:
    commit.begin(path)
    return commit.commit(path, commit.copy_into(source, path), 0, report or {"loss": 0.5})


def in_child(function) -> int:
    """Run a function in a fork and return its exit code."""
    child = forking.Process(target=function)
    child.start()
    child.join(30)
    return child.exitcode


def touches_the_disk(function) -> bool:
    """Return whether a function of the interpreter asks the kernel for something."""
    by_a_file = isinstance(getattr(function, "__self__", None), io.IOBase)
    return by_a_file or function is open or getattr(function, "__module__", None) == "posix"


def killed_before_call(number: int, function) -> bool:
    """Run a function in a fork that dies just before its ``number``-th call to the kernel.

    Returns:
        False if the function made fewer calls.
    """

    def run():
        count = 0

        def watch(_frame, event, called):
            nonlocal count
            if event == "c_call" and touches_the_disk(called):
                count += 1
                if count == number:
                    os._exit(KILLED)

        sys.setprofile(watch)
        function()
        sys.setprofile(None)
        os._exit(0)

    exitcode = in_child(run)
    assert exitcode in {0, KILLED}
    return exitcode == KILLED


# ------------------------------------------------------------------ whole
def test_a_checkpoint_holds_the_files_as_the_user_wrote_them(tmp_path):
    source = make_files(tmp_path / "source")
    path = tmp_path / "checkpoint_000000"
    assert write_checkpoint(source, path) == Registered(path.name, 0, {"loss": 0.5})
    assert {name: data for name, data in files_of(path).items() if name != MANIFEST} == CONTENT
    assert_whole(path)


def test_the_source_stays_as_it_is(tmp_path):
    source = make_files(tmp_path / "source")
    write_checkpoint(source, tmp_path / "checkpoint_000000")
    assert files_of(source) == CONTENT


def test_an_empty_directory_makes_a_checkpoint_without_files(tmp_path):
    (tmp_path / "source").mkdir()
    write_checkpoint(tmp_path / "source", tmp_path / "checkpoint_000000")
    assert commit.read_manifest(tmp_path / "checkpoint_000000")["files"] == {}


def test_an_empty_subdirectory_is_kept(tmp_path):
    (tmp_path / "source" / "empty").mkdir(parents=True)
    write_checkpoint(tmp_path / "source", tmp_path / "checkpoint_000000")
    assert (tmp_path / "checkpoint_000000" / "empty").is_dir()


def test_links_are_followed(tmp_path):
    make_files(tmp_path / "real", {"file": b"x", "folder/inner": b"y"})
    source = tmp_path / "source"
    source.mkdir()
    (source / "link").symlink_to(tmp_path / "real" / "file")
    (source / "linked").symlink_to(tmp_path / "real" / "folder")
    path = tmp_path / "checkpoint_000000"
    write_checkpoint(source, path)
    (tmp_path / "real" / "file").unlink()
    assert (path / "link").read_bytes() == b"x"
    assert (path / "linked" / "inner").read_bytes() == b"y"


def test_a_file_keeps_its_permissions(tmp_path):
    source = make_files(tmp_path / "source", {"script": b"#!/bin/sh", "secret": b"x"})
    (source / "script").chmod(0o755)
    (source / "secret").chmod(0o600)
    write_checkpoint(source, tmp_path / "c")
    assert (tmp_path / "c" / "script").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "c" / "secret").stat().st_mode & 0o777 == 0o600


def test_a_checkpoint_made_from_another_one_has_a_manifest_of_its_own(tmp_path):
    first, second = tmp_path / "checkpoint_000000", tmp_path / "checkpoint_000001"
    write_checkpoint(make_files(tmp_path / "source"), first, {"loss": 1})
    commit.begin(second)
    entries = commit.copy_into(first, second)
    assert {entry.path for entry in entries} == CONTENT.keys()
    assert not commit.is_committed(second)
    commit.commit(second, entries, 1, {"loss": 2})
    assert commit.read_manifest(second)["report"] == {"loss": 2}


def test_the_users_own_hidden_files_are_part_of_it(tmp_path):
    source = make_files(tmp_path / "source", {".metadata.json": b"{}", "deep/.manifest.json": b"x"})
    path = tmp_path / "checkpoint_000000"
    write_checkpoint(source, path)
    assert commit.read_manifest(path)["files"].keys() == {".metadata.json", "deep/.manifest.json"}


@settings(deadline=None, max_examples=50)
@given(report=st.dictionaries(st.text(), st.floats() | st.integers() | st.text(), max_size=4))
def test_any_report_survives_the_manifest(tmp_path_factory, report):
    root = tmp_path_factory.mktemp("run")
    commit.begin(root / "c")
    commit.commit(root / "c", [], 3, report)
    (found,) = commit.committed(root)
    assert (found.name, found.sequence) == ("c", 3)
    assert repr(found.report) == repr(report), "compared as text: NaN is not itself"


# ------------------------------------------------------------------ not a checkpoint
@pytest.mark.parametrize(
    "manifest",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 1}',
        b'{"sequence": 0, "files": {}}',
        b'{"version": 1, "sequence": 0, "files": {}, "report": {}',
        b"\xff\xfe",
    ],
    ids=str,
)
def test_a_directory_without_a_whole_manifest_is_no_checkpoint(tmp_path, manifest):
    path = make_files(tmp_path / "checkpoint_000000")
    if manifest is not None:
        (path / MANIFEST).write_bytes(manifest)
    assert not commit.is_committed(path)
    assert commit.read_manifest(path) is None
    assert commit.committed(tmp_path) == []


def test_files_beside_checkpoints_are_passed_over(tmp_path):
    write_checkpoint(make_files(tmp_path / "source"), tmp_path / "checkpoint_000000")
    (tmp_path / "result.json").write_text("{}\n")
    (tmp_path / "checkpoint_000001").write_text("a file with a checkpoint's name")
    assert [one.name for one in commit.committed(tmp_path)] == ["checkpoint_000000"]


def test_checkpoints_are_listed_from_the_oldest_whatever_their_names(tmp_path):
    for sequence, name in [(2, "a"), (0, "c"), (1, "b")]:
        commit.begin(tmp_path / name)
        commit.commit(tmp_path / name, [], sequence, {})
    assert [one.name for one in commit.committed(tmp_path)] == ["c", "b", "a"]


def test_a_directory_that_is_being_written_is_not_listed(tmp_path):
    source = make_files(tmp_path / "source")
    commit.begin(tmp_path / "checkpoint_000000")
    commit.copy_into(source, tmp_path / "checkpoint_000000")
    assert commit.committed(tmp_path) == []


@pytest.mark.parametrize("kind", ["directory", "file", "checkpoint"])
def test_a_name_that_is_taken_is_not_begun(tmp_path, kind):
    path = tmp_path / "checkpoint_000000"
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    else:
        write_checkpoint(make_files(tmp_path / "source"), path)
    with pytest.raises(FileExistsError):
        commit.begin(path)
    assert commit.is_committed(path) == (kind == "checkpoint")


# ------------------------------------------------------------------ durable
def test_files_and_their_names_are_synced_before_the_manifest_appears(tmp_path, monkeypatch):
    source = make_files(tmp_path / "source", {"a": b"1", "b": b"2", "deep/c": b"3"})
    path = tmp_path / "checkpoint_000000"
    happened = []
    really_sync, really_replace = os.fsync, os.replace

    def fsync(descriptor):
        happened.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        really_sync(descriptor)

    def replace(old, new):
        happened.append(("name", Path(old), Path(new)))
        really_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_checkpoint(source, path)

    synced = [one[1] for one in happened if one[0] == "sync"]
    named = [one for one in happened if one[0] == "name"]
    assert [new for _, _, new in named][-1] == path / MANIFEST
    assert {new for _, _, new in named} == {path / n for n in ("a", "b", "deep/c", MANIFEST)}
    for one in named:
        assert ("sync", one[1]) in happened[: happened.index(one)], f"{one[2]} was not synced"
    before_manifest = happened[: happened.index(named[-1])]
    for folder in (path, path / "deep"):
        last_named = max(n for n, one in enumerate(happened) if one in named[:-1])
        assert ("sync", folder) in before_manifest[last_named:]
    assert synced[-1] == tmp_path, "the checkpoint's own name"


# ------------------------------------------------------------------ a writer that dies
@pytest.mark.parametrize("name", NAMES)
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint_or_one_to_sweep(tmp_path, name):
    source = make_files(tmp_path / "source")
    outcomes = set()
    number = 0
    while True:
        number += 1
        root = tmp_path / f"run_{number}"
        root.mkdir()
        path = root / name
        killed = killed_before_call(number, lambda path=path: write_checkpoint(source, path))
        was_committed = commit.is_committed(path)
        outcomes.add(was_committed)
        if was_committed:
            assert_whole(path)
            assert {n: d for n, d in files_of(path).items() if n in CONTENT} == CONTENT
        swept = commit.sweep(root)
        left = [one.name for one in root.iterdir()]
        assert left == ([name] if was_committed else []), f"killed before call {number}"
        assert swept == [] or not was_committed
        if not killed:
            break
    assert number > 20, "the calls to the kernel were not seen"
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_a_deletion_killed_at_any_moment_leaves_a_whole_checkpoint_or_one_to_sweep(tmp_path, name):
    source = make_files(tmp_path / "source")
    number = 0
    killed = True
    while killed:
        number += 1
        root = tmp_path / f"run_{number}"
        root.mkdir()
        path = root / name
        write_checkpoint(source, path)
        killed = killed_before_call(number, lambda path=path: commit.delete(path))
        if commit.is_committed(path):
            assert_whole(path)
            continue
        commit.sweep(root)
        assert list(root.iterdir()) == [], f"killed before call {number}"
    assert number > 5, "the calls to the kernel were not seen"


# ------------------------------------------------------------------ several writers
def test_ranks_that_write_the_same_names_at_once_leave_whole_files_and_a_right_manifest(tmp_path):
    names = [f"file_{number}" for number in range(30)] + ["deep/one", "deep/two"]
    sources = []
    for rank in range(2):
        fill = b"ab"[rank : rank + 1]
        content = dict.fromkeys(names, fill * (2000 + 500 * rank)) | {f"own_{rank}": fill}
        sources.append(make_files(tmp_path / f"source_{rank}", content))
    path = tmp_path / "checkpoint_000000"
    commit.begin(path)
    start = forking.Barrier(2)

    def write(rank):
        start.wait(30)
        entries = commit.copy_into(sources[rank], path)
        facts = [[entry.path, entry.size_bytes, entry.crc32] for entry in entries]
        (tmp_path / f"entries_{rank}").write_text(json.dumps(facts))

    writers = [forking.Process(target=write, args=(rank,)) for rank in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    parts = [
        [FileEntry(*facts) for facts in json.loads((tmp_path / f"entries_{rank}").read_text())]
        for rank in range(2)
    ]
    commit.commit(path, commit.merge_entries(path, parts), 0, {})
    assert_whole(path)
    assert commit.read_manifest(path)["files"].keys() == {*names, "own_0", "own_1"}
    for name in names:
        assert (path / name).read_bytes() in {b"a" * 2000, b"b" * 2500}
    assert files_of(path).keys() == {*names, "own_0", "own_1", MANIFEST}


@pytest.mark.parametrize("stayed", [0, 1])
def test_of_two_files_of_one_name_the_manifest_describes_the_one_that_stayed(tmp_path, stayed):
    contents = [b"first", b"second one"]
    (tmp_path / "same").write_bytes(contents[stayed])
    parts = [[FileEntry("same", len(data), zlib.crc32(data))] for data in contents]
    (entry,) = commit.merge_entries(tmp_path, parts)
    assert entry == parts[stayed][0]


def test_files_of_three_ranks_with_one_name_are_described_once(tmp_path):
    (tmp_path / "same").write_bytes(b"xyz")
    parts = [[FileEntry("same", 1, 1)], [FileEntry("same", 2, 2)], [FileEntry("same", 1, 1)]]
    assert commit.merge_entries(tmp_path, parts) == [FileEntry("same", 3, zlib.crc32(b"xyz"))]


# ------------------------------------------------------------------ what cannot be written
def test_a_source_that_cannot_be_read_leaves_no_temporary_file(tmp_path):
    source = make_files(tmp_path / "source", {"a": b"1"})
    (source / "b").symlink_to("/proc/self/mem")  # opens, and cannot be read
    commit.begin(tmp_path / "c")
    with pytest.raises(OSError, match="Input/output error"):
        commit.copy_into(source, tmp_path / "c")
    assert files_of(tmp_path / "c").keys() == {"a", ".unfinished"}
    assert not commit.is_committed(tmp_path / "c")


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    source = make_files(tmp_path / "source", {"a": b"1"})
    (source / "b").symlink_to(tmp_path / "gone")
    commit.begin(tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        commit.copy_into(source, tmp_path / "c")


def test_a_disk_without_room_leaves_no_temporary_file(tmp_path):
    source = make_files(tmp_path / "source", {"a": b"1", "big": b"x" * 100_000})
    commit.begin(tmp_path / "c")

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            commit.copy_into(source, tmp_path / "c")
        except OSError:
            os._exit(KILLED)

    assert in_child(write) == KILLED
    assert files_of(tmp_path / "c").keys() == {"a", ".unfinished"}
    assert commit.sweep(tmp_path) == ["c"]


# ------------------------------------------------------------------ sweeping and deleting
def test_a_sweep_names_what_it_removed(tmp_path):
    for name in ("checkpoint_000001", "checkpoint_000000", "mine"):
        commit.begin(tmp_path / name)
    assert commit.sweep(tmp_path) == ["checkpoint_000000", "checkpoint_000001", "mine"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["checkpoint_best", "checkpoint_0001", "checkpoint_000000.bak", "plots", "artifacts"]
)
def test_a_sweep_leaves_the_users_own_folders(tmp_path, name):
    make_files(tmp_path / name)
    assert commit.sweep(tmp_path) == []
    assert files_of(tmp_path / name) == CONTENT


def test_a_sweep_leaves_files(tmp_path):
    (tmp_path / "checkpoint_000000").write_text("a file with a checkpoint's name")
    assert commit.sweep(tmp_path) == []


def test_a_sweep_leaves_a_checkpoint_whose_marker_was_not_yet_taken_away(tmp_path):
    write_checkpoint(make_files(tmp_path / "source"), tmp_path / "mine")
    (tmp_path / "mine" / ".unfinished").touch()
    assert commit.sweep(tmp_path) == []


def test_a_deleted_checkpoint_is_gone(tmp_path):
    path = tmp_path / "run" / "checkpoint_000000"
    path.parent.mkdir()
    write_checkpoint(make_files(tmp_path / "source"), path)
    commit.delete(path)
    assert list(path.parent.iterdir()) == []


def test_deleting_what_is_gone_already_is_harmless(tmp_path):
    commit.delete(tmp_path / "checkpoint_000000")
