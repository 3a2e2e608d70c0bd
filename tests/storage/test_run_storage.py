"""A checkpoint exists completely or not at all, on a local disk and on a remote filesystem."""

from __future__ import annotations

import json
import os
import pickle
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._manifest import MANIFEST
from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.disk import FileEntry, LocalDisk
from minitrain._storage.ranking import Registered
from minitrain._storage.retry import Retry
from minitrain._storage.run_storage import RunStorage

KINDS = ["local", "subtree", "handler"]
NAMES = ["checkpoint_000000", "chosen by the user"]
CONTENT = {"weights": b"w" * 3000, "deep/er/state": b"s" * 10, "empty": b""}
NO_RETRY = Retry(0.0)


def make_files(folder: Path, content=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
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


def storage_on(kind: str, root: Path) -> RunStorage:
    """Return storage of one kind whose files lie below ``root``."""
    if kind == "local":
        return RunStorage(LocalDisk(str(root)))
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

    if kind == "subtree":
        base = SubTreeFileSystem(str(root.parent), LocalFileSystem())
        return RunStorage(ArrowDisk(base, root.name, NO_RETRY))
    from fsspec.implementations.local import LocalFileSystem as AnotherLocalFileSystem

    return RunStorage(
        ArrowDisk(PyFileSystem(FSSpecHandler(AnotherLocalFileSystem())), str(root), NO_RETRY)
    )


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def run(kind, tmp_path) -> RunStorage:
    """Storage whose files lie below ``tmp_path / "run"``."""
    (tmp_path / "run").mkdir()
    return storage_on(kind, tmp_path / "run")


@pytest.fixture
def source(tmp_path) -> Path:
    return make_files(tmp_path / "source")


def write_checkpoint(run: RunStorage, source: Path, name: str, sequence=0, report=None):
    run.begin(name)
    return run.commit(name, [run.put(source, name)], sequence, report or {"loss": 0.5}, {})


# ------------------------------------------------------------------ whole
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_holds_the_files_as_the_user_wrote_them(run, tmp_path, source, name):
    assert write_checkpoint(run, source, name) == Registered(name, 0, {"loss": 0.5})
    found = files_of(tmp_path / "run" / name)
    assert {path: data for path, data in found.items() if path != MANIFEST} == CONTENT
    assert run.manifest(name)["files"] == {
        path: {"bytes": len(data), "crc32": zlib.crc32(data)} for path, data in CONTENT.items()
    }
    assert run.verify(name) == []
    assert files_of(source) == CONTENT, "the source stays as it is"


def test_a_reference_to_a_checkpoint_reaches_its_files(run, source):
    write_checkpoint(run, source, "checkpoint_000000")
    checkpoint = run.checkpoint("checkpoint_000000")
    with checkpoint.as_directory() as path:
        assert {n: d for n, d in files_of(Path(path)).items() if n != MANIFEST} == CONTENT
    assert checkpoint.is_local == run.is_local


def test_storage_travels_to_workers(run, source):
    again = pickle.loads(pickle.dumps(run))
    write_checkpoint(again, source, "checkpoint_000000")
    assert run.verify("checkpoint_000000") == []
    assert (again.root, again.is_local) == (run.root, run.is_local)
    assert run.filesystem.get_file_info(f"{run.root}/checkpoint_000000/weights").size == 3000


def test_an_empty_directory_makes_a_checkpoint_without_files(run, tmp_path):
    (tmp_path / "source").mkdir()
    write_checkpoint(run, tmp_path / "source", "checkpoint_000000")
    assert run.manifest("checkpoint_000000")["files"] == {}
    assert run.verify("checkpoint_000000") == []


def test_an_empty_subdirectory_is_kept_on_a_local_disk(tmp_path):
    (tmp_path / "source" / "empty").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    write_checkpoint(storage_on("local", tmp_path / "run"), tmp_path / "source", "c")
    assert (tmp_path / "run" / "c" / "empty").is_dir()


def test_links_are_followed(run, tmp_path):
    make_files(tmp_path / "real", {"file": b"x", "folder/inner": b"y"})
    source = make_files(tmp_path / "source", {})
    (source / "link").symlink_to(tmp_path / "real" / "file")
    (source / "linked").symlink_to(tmp_path / "real" / "folder")
    write_checkpoint(run, source, "checkpoint_000000")
    (tmp_path / "real" / "file").unlink()
    assert run.read("checkpoint_000000/link") == b"x"
    assert run.read("checkpoint_000000/linked/inner") == b"y"


def test_names_that_look_like_compressed_files_hold_what_was_written(run, tmp_path):
    source = make_files(tmp_path / "source", {"weights.gz": b"not compressed" * 100})
    write_checkpoint(run, source, "checkpoint_000000")
    assert run.read("checkpoint_000000/weights.gz") == b"not compressed" * 100
    assert (tmp_path / "run/checkpoint_000000/weights.gz").read_bytes() == b"not compressed" * 100
    assert run.verify("checkpoint_000000") == []


def test_a_file_keeps_its_permissions_on_a_local_disk(tmp_path):
    source = make_files(tmp_path / "source", {"script": b"#!/bin/sh", "secret": b"x"})
    (source / "script").chmod(0o755)
    (source / "secret").chmod(0o600)
    (tmp_path / "run").mkdir()
    write_checkpoint(storage_on("local", tmp_path / "run"), source, "c")
    assert (tmp_path / "run/c/script").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "run/c/secret").stat().st_mode & 0o777 == 0o600


def test_a_checkpoint_made_from_another_one_has_a_manifest_of_its_own(run, tmp_path, source):
    write_checkpoint(run, source, "checkpoint_000000", report={"loss": 1})
    first = tmp_path / "run" / "checkpoint_000000"
    (first / ".unfinished").touch()
    run.begin("checkpoint_000001")
    entries = run.put(first, "checkpoint_000001")
    assert {entry.path for entry in entries} == CONTENT.keys()
    assert run.manifest("checkpoint_000001") is None
    run.commit("checkpoint_000001", [entries], 1, {"loss": 2}, {})
    assert run.manifest("checkpoint_000001")["report"] == {"loss": 2}
    assert not (tmp_path / "run/checkpoint_000001/.unfinished").exists()


def test_the_users_own_hidden_files_are_part_of_it(run, tmp_path):
    names = {".metadata.json": b"{}", "deep/.manifest.json": b"x", "deep/.unfinished": b""}
    source = make_files(tmp_path / "source", names)
    write_checkpoint(run, source, "checkpoint_000000")
    assert run.manifest("checkpoint_000000")["files"].keys() == names.keys()


@settings(deadline=None, max_examples=30)
@given(report=st.dictionaries(st.text(), st.floats() | st.integers() | st.text(), max_size=4))
def test_any_report_survives_the_manifest(tmp_path_factory, report):
    run = storage_on("local", tmp_path_factory.mktemp("run"))
    run.begin("c")
    run.commit("c", [], 3, report, {})
    (found,) = run.committed()
    assert (found.name, found.sequence) == ("c", 3)
    assert repr(found.report) == repr(report), "compared as text: NaN is not itself"


# ------------------------------------------------------------------ metadata
@pytest.mark.parametrize(
    ("own", "expected"),
    [(None, {"a": 1, "b": 2}), (b'{"b": 3, "c": 4}', {"a": 1, "b": 3, "c": 4})],
)
def test_metadata_is_added_for_keys_that_the_checkpoint_has_not_set(run, tmp_path, own, expected):
    source = make_files(tmp_path / "source", {} if own is None else {".metadata.json": own})
    run.begin("c")
    run.commit("c", [run.put(source, "c")], 0, {}, {"a": 1, "b": 2})
    assert json.loads(run.read("c/.metadata.json")) == expected
    assert run.checkpoint("c").get_metadata() == expected
    assert run.verify("c") == []


def test_a_checkpoint_with_metadata_that_is_no_json_is_not_committed(run, tmp_path):
    source = make_files(tmp_path / "source", {".metadata.json": b"{"})
    run.begin("c")
    with pytest.raises(ValueError, match="Expecting"):
        run.commit("c", [run.put(source, "c")], 0, {}, {"a": 1})
    assert run.committed() == []


# ------------------------------------------------------------------ positions in datasets
POSITIONS = {"train": {"epoch": 3, "remaining": [[5, 9]]}}


def test_positions_are_written_with_a_checkpoint_and_verified_with_it(run, source, tmp_path):
    run.begin("c")
    run.commit("c", [run.put(source, "c")], 0, {}, {}, POSITIONS)
    assert run.positions("c") == POSITIONS
    assert run.verify("c") == []
    assert not run.verify("c", contents=False)
    (tmp_path / "run/c/.datasets.json").unlink()
    assert run.verify("c", contents=False)[0].startswith(".datasets.json: missing")


def test_what_is_made_from_a_checkpoint_does_not_take_its_positions(run, source, tmp_path):
    run.begin("c")
    run.commit("c", [run.put(source, "c")], 0, {}, {}, POSITIONS)
    run.begin("d")
    run.commit("d", [run.put(tmp_path / "run/c", "d")], 1, {}, {})
    assert run.positions("d") == {}
    (tmp_path / "run/e").mkdir()
    (tmp_path / "run/e/.datasets.json").write_text("of another run")
    run.commit("e", [run.adopt("e")], 2, {}, {}, {"val": {}})
    assert run.positions("e") == {"val": {}}
    assert run.verify("e") == []


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_positions_that_cannot_be_read_are_an_error(run, tmp_path, text):
    (tmp_path / "run/c").mkdir()
    (tmp_path / "run/c/.datasets.json").write_text(text)
    with pytest.raises(ValueError, match=r"c/\.datasets\.json is damaged"):
        run.positions("c")


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
def test_a_directory_without_a_whole_manifest_is_no_checkpoint(run, tmp_path, manifest):
    path = make_files(tmp_path / "run" / "checkpoint_000000")
    if manifest is not None:
        (path / MANIFEST).write_bytes(manifest)
    assert run.manifest("checkpoint_000000") is None
    assert run.committed() == []
    assert run.verify("checkpoint_000000") == [".manifest.json is missing or cannot be read"]


def test_files_beside_checkpoints_are_passed_over(run, tmp_path, source):
    write_checkpoint(run, source, "checkpoint_000000")
    (tmp_path / "run" / "result.json").write_text("{}\n")
    (tmp_path / "run" / "checkpoint_000001").write_text("a file with a checkpoint's name")
    assert [one.name for one in run.committed()] == ["checkpoint_000000"]


def test_a_run_that_has_no_directory_yet_has_no_checkpoints(kind, tmp_path):
    run = storage_on(kind, tmp_path / "run")
    assert (run.committed(), run.sweep(), run.next_index()) == ([], [], 0)
    assert not run.exists("result.json")


def test_checkpoints_are_listed_from_the_oldest_whatever_their_names(run):
    for sequence, name in [(2, "a"), (0, "c"), (1, "b")]:
        run.begin(name)
        run.commit(name, [], sequence, {}, {})
    assert [one.name for one in run.committed()] == ["c", "b", "a"]


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_that_is_being_written_is_not_listed(run, source, name):
    run.begin(name)
    run.put(source, name)
    assert run.committed() == []
    assert run.sweep() == [name]


@pytest.mark.parametrize("what", ["directory", "file", "checkpoint"])
def test_a_name_that_is_taken_is_not_begun_on_a_local_disk(tmp_path, source, what):
    run = storage_on("local", tmp_path)
    if what == "file":
        (tmp_path / "c").touch()
    elif what == "directory":
        (tmp_path / "c").mkdir()
    else:
        write_checkpoint(run, source, "c")
    with pytest.raises(FileExistsError, match="c"):
        run.begin("c")
    assert (run.manifest("c") is not None) == (what == "checkpoint")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_nothing_is_asked_of_a_remote_filesystem_to_begin(run, tmp_path):
    run.begin("c")
    assert list((tmp_path / "run").iterdir()) == []


def test_numbers_of_checkpoints_are_never_used_twice(run, tmp_path, source):
    assert run.next_index() == 0
    write_checkpoint(run, source, "checkpoint_000003")
    run.begin("checkpoint_000007")
    run.put(source, "checkpoint_000007")
    make_files(tmp_path / "run" / "checkpoint_best")
    assert run.next_index() == 8
    (tmp_path / "run" / "checkpoint_1234567").touch()
    assert run.next_index() == 1234568
    (tmp_path / "run" / "damaged_checkpoint_1234568_2").touch()
    assert run.next_index() == 1234569


# ------------------------------------------------------------------ durable
def test_files_and_their_names_are_synced_before_the_manifest_appears(tmp_path, monkeypatch):
    source = make_files(tmp_path / "source", {"a": b"1", "b": b"2" * (3 << 20), "deep/c": b"3"})
    run = storage_on("local", tmp_path / "run")
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "c"
    happened = []
    really_sync, really_replace = os.fsync, os.replace

    def fsync(descriptor):
        really_sync(descriptor)
        happened.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def replace(old, new):
        happened.append(("name", Path(old), Path(new)))
        really_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_checkpoint(run, source, "c")

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
    assert synced[-1] == tmp_path / "run", "the checkpoint's own name"


@pytest.mark.parametrize("way", ["moved", "adopted"])
def test_what_is_not_copied_is_synced_too(tmp_path, monkeypatch, way):
    source = make_files(tmp_path / "source", {"a": b"1", "deep/c": b"3"})
    run = storage_on("local", tmp_path)
    synced = set()
    really_sync = os.fsync

    def fsync(descriptor):
        really_sync(descriptor)
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    run.begin("c")
    if way == "moved":
        run.put(source, "c", move=True)
        files = {str(source / "a"), str(source / "deep/c")}
    else:
        make_files(tmp_path / "c", {"a": b"1", "deep/c": b"3"})
        run.adopt("c")
        files = {str(tmp_path / "c/a"), str(tmp_path / "c/deep/c")}
    assert synced == files | {str(tmp_path / "c"), str(tmp_path / "c/deep")}


# ------------------------------------------------------------------ moving
def test_moved_files_are_renamed_on_a_local_disk(tmp_path, source):
    run = storage_on("local", tmp_path)
    inode = (source / "weights").stat().st_ino
    run.begin("c")
    run.commit("c", [run.put(source, "c", move=True)], 0, {}, {})
    assert (tmp_path / "c" / "weights").stat().st_ino == inode
    assert not source.exists()
    assert run.verify("c") == []


def test_moved_files_are_gone_from_their_source(run, tmp_path, source):
    run.begin("c")
    entries = run.put(source, "c", move=True)
    run.commit("c", [entries], 0, {}, {})
    assert not source.exists()
    assert {n: d for n, d in files_of(tmp_path / "run/c").items() if n != MANIFEST} == CONTENT
    assert run.verify("c") == []


def test_files_from_another_disk_are_copied_and_then_gone(tmp_path):
    memory = Path("/dev/shm") / f"minitrain-test-{os.getpid()}"
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem")
    run = storage_on("local", tmp_path)
    run.begin("c")
    entries = run.put(make_files(memory), "c", move=True)
    run.commit("c", [entries], 0, {}, {})
    assert not memory.exists()
    assert run.verify("c") == []


def test_files_that_others_still_have_are_copied_not_moved(run, tmp_path):
    others = make_files(tmp_path / "others", {"file": b"1", "folder/inner": b"2", "hard": b"3"})
    source = make_files(tmp_path / "source", {})
    (source / "link").symlink_to(others / "file")
    (source / "linked").symlink_to(others / "folder")
    (source / "hard").hardlink_to(others / "hard")
    run.begin("c")
    run.put(source, "c", move=True)
    assert not source.exists()
    assert files_of(others) == {"file": b"1", "folder/inner": b"2", "hard": b"3"}
    (others / "hard").write_bytes(b"changed")
    assert run.read("c/hard") == b"3"
    assert not (tmp_path / "run/c/link").is_symlink()


# ------------------------------------------------------------------ adopting
def test_files_that_are_in_place_already_become_a_checkpoint(run, tmp_path):
    run.begin("c")
    make_files(tmp_path / "run" / "c")
    (tmp_path / "run/c/.part-0123456789ab").write_bytes(b"of another rank")
    entries = run.adopt("c")
    assert {entry.path: entry.size_bytes for entry in entries} == {
        name: len(data) for name, data in CONTENT.items()
    }
    expected = {name: zlib.crc32(data) for name, data in CONTENT.items()}
    if not run.is_local:
        expected = dict.fromkeys(CONTENT)
    assert {entry.path: entry.crc32 for entry in entries} == expected
    run.commit("c", [entries, entries], 0, {}, {})
    assert run.verify("c") == []


# ------------------------------------------------------------------ several writers
def test_ranks_that_write_the_same_names_at_once_leave_whole_files_and_a_right_manifest(
    run, tmp_path
):
    names = [f"file_{number}" for number in range(30)] + ["deep/one", "deep/two"]
    sources = []
    for rank in range(2):
        fill = b"ab"[rank : rank + 1]
        content = dict.fromkeys(names, fill * (2000 + 500 * rank)) | {f"own_{rank}": fill}
        sources.append(make_files(tmp_path / f"source_{rank}", content))
    run.begin("c")
    start = threading.Barrier(2)
    parts: list[tuple[FileEntry, ...]] = []

    def write(rank):
        start.wait(30)
        parts.append(run.put(sources[rank], "c"))

    writers = [threading.Thread(target=write, args=(rank,)) for rank in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert len(parts) == 2
    run.commit("c", parts, 0, {}, {})
    assert run.manifest("c")["files"].keys() == {*names, "own_0", "own_1"}
    found = files_of(tmp_path / "run" / "c")
    assert found.keys() == {*names, "own_0", "own_1", MANIFEST}
    if run.is_local:  # elsewhere a stream goes straight to its file; object stores replace it whole
        assert run.verify("c") == []
        assert {found[name] for name in names} <= {b"a" * 2000, b"b" * 2500}


@pytest.mark.parametrize("stayed", [0, 1])
def test_of_two_files_of_one_name_the_manifest_describes_the_one_that_stayed(run, tmp_path, stayed):
    contents = [b"first", b"second one"]
    make_files(tmp_path / "run" / "c", {"same": contents[stayed]})
    parts = [[FileEntry("same", len(data), zlib.crc32(data))] for data in contents]
    run.commit("c", [*parts, parts[0]], 0, {}, {})
    data = contents[stayed]
    facts = {"bytes": len(data), "crc32": zlib.crc32(data)}
    assert run.manifest("c")["files"] == {"same": facts}


# ------------------------------------------------------------------ what cannot be written
def test_a_source_that_cannot_be_read_leaves_no_file(run, tmp_path):
    source = make_files(tmp_path / "source", {"a": b"1"})
    (source / "b").symlink_to("/proc/self/mem")  # opens, and cannot be read
    run.begin("c")
    with pytest.raises(OSError, match="Input/output error"):
        run.put(source, "c")
    assert files_of(tmp_path / "run" / "c").keys() == {".unfinished"}
    assert run.sweep() == ["c"]


def test_a_link_that_leads_nowhere_is_an_error(run, tmp_path):
    source = make_files(tmp_path / "source", {"a": b"1"})
    (source / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        run.put(source, "c")


def test_a_folder_that_cannot_be_listed_is_an_error(run, tmp_path):
    source = make_files(tmp_path / "source", {"a": b"1"})
    (source / "again").symlink_to(source)  # has itself within itself
    with pytest.raises(OSError, match="symbolic links"):
        run.put(source, "c")


def test_a_pipe_is_refused_instead_of_waited_for(run, tmp_path):
    source = make_files(tmp_path / "source", {"a": b"1"})
    os.mkfifo(source / "pipe")
    with pytest.raises(OSError, match="pipe is neither a file nor a directory"):
        run.put(source, "c")


# ------------------------------------------------------------------ damage
def damage_first_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"X" + data[1:])


def test_damage_is_said_in_words(run, tmp_path):
    content = {"missing": b"1", "short": b"x" * 5000, "changed": b"2", "good": b"3"}
    write_checkpoint(run, make_files(tmp_path / "source", content), "c")
    (tmp_path / "run/c/missing").unlink()
    (tmp_path / "run/c/short").write_bytes(b"x" * 4999)
    damage_first_byte(tmp_path / "run/c/changed")
    expected = ["missing: missing (1 bytes)", "short: 4999 bytes instead of 5000"]
    assert run.verify("c", contents=False) == expected
    changed, *others = run.verify("c")
    assert changed.startswith("changed: checksum ")
    assert others == expected


def test_a_damaged_checkpoint_is_kept_for_the_user_and_is_none(run, tmp_path, source):
    write_checkpoint(run, source, "checkpoint_000004")
    run.set_aside("checkpoint_000004")
    assert run.committed() == []
    assert run.sweep() == []
    kept = "damaged_checkpoint_000004" if run.is_local else "checkpoint_000004"
    found = files_of(tmp_path / "run" / kept)
    assert {name: found[name] for name in CONTENT} == CONTENT


def test_a_second_damaged_checkpoint_of_a_name_gets_a_number(tmp_path, source):
    run = storage_on("local", tmp_path)
    for _ in range(3):
        write_checkpoint(run, source, "c")
        run.set_aside("c")
    names = {path.name for path in tmp_path.iterdir() if path.name.startswith("damaged")}
    assert names == {"damaged_c", "damaged_c_2", "damaged_c_3"}


def test_a_checkpoint_without_a_readable_manifest_can_be_set_aside(run, tmp_path):
    make_files(tmp_path / "run" / "checkpoint_000000")
    run.set_aside("checkpoint_000000")
    assert run.sweep() == []


# ------------------------------------------------------------------ sweeping and deleting
@pytest.mark.parametrize("change", [lambda data: b"{", lambda data: data.replace(b"0", b"1", 1)])
def test_a_checkpoint_whose_manifest_is_damaged_is_none_and_stays(run, tmp_path, source, change):
    write_checkpoint(run, source, "checkpoint_000003")
    manifest = tmp_path / "run" / "checkpoint_000003" / MANIFEST
    manifest.write_bytes(change(manifest.read_bytes()))
    assert run.committed() == []
    assert run.verify("checkpoint_000003") == [f"{MANIFEST} is missing or cannot be read"]
    assert run.sweep() == []
    (kept,) = (tmp_path / "run").iterdir()
    assert files_of(source).items() <= files_of(kept).items()
    assert run.sweep() == []


def test_a_sweep_names_what_it_removed(run, tmp_path, source):
    for name in ("checkpoint_000001", "checkpoint_000000", "mine"):
        run.begin(name)
        run.put(source, name)
    assert run.sweep() == ["checkpoint_000000", "checkpoint_000001", "mine"]
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["checkpoint_best", "checkpoint_0001", "checkpoint_000000.bak", "plots", "artifacts"]
)
def test_a_sweep_leaves_the_users_own_folders(run, tmp_path, name):
    make_files(tmp_path / "run" / name)
    assert run.sweep() == []
    assert files_of(tmp_path / "run" / name) == CONTENT


def test_a_sweep_leaves_files(run, tmp_path):
    (tmp_path / "run" / "checkpoint_000000").write_text("a file with a checkpoint's name")
    assert run.sweep() == []


def test_a_sweep_leaves_a_checkpoint_whose_mark_was_not_yet_taken_away(run, tmp_path, source):
    write_checkpoint(run, source, "mine")
    (tmp_path / "run" / "mine" / ".unfinished").touch()
    assert run.sweep() == []


def test_a_deleted_checkpoint_is_gone(run, tmp_path, source):
    write_checkpoint(run, source, "checkpoint_000000")
    run.delete("checkpoint_000000")
    assert list((tmp_path / "run").iterdir()) == []


def test_deleting_what_is_gone_already_is_harmless(run):
    run.delete("checkpoint_000000")
    assert run.committed() == []


# ------------------------------------------------------------------ other files
def test_other_files_are_written_and_read(run, tmp_path, source):
    run.write("run.json", b"old")
    run.write("run.json", b"new")
    run.upload(source / "weights", "logs/attempt_0/rank_0.log")
    assert run.read("run.json") == b"new"
    assert run.read("logs/attempt_0/rank_0.log") == CONTENT["weights"]
    assert run.exists("run.json")
    assert run.exists("logs/attempt_0/rank_0.log")
    assert not run.exists("logs/attempt_1/rank_0.log")
    assert (source / "weights").exists()
    with pytest.raises(FileNotFoundError):
        run.read("nothing")
