"""A checkpoint is a reference to a directory, wherever it lies."""

from __future__ import annotations

import copy
import json
import os
import pickle
import tempfile
import threading
from pathlib import Path

import fsspec
import pytest
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

import minitrain
from minitrain import Checkpoint
from minitrain._storage.disk import LocalDisk
from minitrain._storage.run_storage import RunStorage
from minitrain.exceptions import CheckpointCorruptError, CheckpointError

FILES = {"weights": "w", "deep/er/state": "s"}
REMOVED = [
    "from_bytes",
    "from_dict",
    "from_uri",
    "get_preprocessor",
    "set_preprocessor",
    "to_bytes",
    "to_dict",
    "to_uri",
    "uri",
]


def make_files(folder: Path, files=None) -> Path:
    for name, text in (files or FILES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def files_of(folder) -> dict[str, str]:
    folder = Path(folder)
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def folder(tmp_path):
    return make_files(tmp_path / "checkpoint")


def in_memory(path):
    """Copy a folder to a filesystem that is not local."""
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    memory.store = {}
    memory.pseudo_dirs = [""]
    memory.put(str(path), "/bucket/checkpoint", recursive=True)
    return Checkpoint("/bucket/checkpoint", PyFileSystem(FSSpecHandler(memory)))


def in_a_subtree(path):
    return Checkpoint(path.name, SubTreeFileSystem(str(path.parent), LocalFileSystem()))


def local(path):
    return Checkpoint(path)


def local_by_filesystem(path):
    return Checkpoint(str(path), LocalFileSystem())


def local_by_uri(path):
    return Checkpoint(f"file://{path}")


ALL = [local, local_by_filesystem, local_by_uri, in_a_subtree, in_memory]
LOCAL = [local, local_by_filesystem, local_by_uri]
ELSEWHERE = [in_a_subtree, in_memory]
everywhere = pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
where_local = pytest.mark.parametrize("make", LOCAL, ids=lambda make: make.__name__)
elsewhere = pytest.mark.parametrize("make", ELSEWHERE, ids=lambda make: make.__name__)


# ------------------------------------------------------------------ the path
@pytest.mark.parametrize("relative", ["weights", "./weights", "a/../weights", "weights/"])
@pytest.mark.parametrize("filesystem", [None, LocalFileSystem()], ids=["no filesystem", "local"])
def test_a_relative_path_is_made_absolute_at_once(tmp_path, monkeypatch, relative, filesystem):
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(relative, filesystem)
    monkeypatch.chdir("/")
    assert checkpoint.path == str(tmp_path / "weights")


def test_the_home_folder_is_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Checkpoint("~/run").path == str(tmp_path / "run")


def test_a_symbolic_link_stays_what_the_user_called_it(tmp_path, folder):
    (tmp_path / "latest").symlink_to(folder)
    assert Checkpoint(tmp_path / "latest").path == str(tmp_path / "latest")


def test_a_uri_says_itself_where_the_path_lies(folder):
    checkpoint = Checkpoint(f"file://{folder}")
    assert checkpoint.path == str(folder)
    assert checkpoint.filesystem == LocalFileSystem()


def test_a_local_path_lies_on_the_local_filesystem(folder):
    assert Checkpoint(folder).filesystem == LocalFileSystem()


def test_a_filesystem_is_taken_with_its_path(folder):
    checkpoint = in_a_subtree(folder)
    assert checkpoint.path == "checkpoint"
    assert checkpoint.filesystem.type_name == "subtree"


@pytest.mark.parametrize("path", ["", Path()], ids=repr)
def test_an_empty_path_is_refused(path):
    if path == Path():
        assert Checkpoint(path).path == os.getcwd(), "a dot names the working directory"
        return
    with pytest.raises(ValueError, match="must name a directory"):
        Checkpoint(path)


@pytest.mark.parametrize("path", [None, 5, b"/bytes", ["/list"], {"path": "/x"}])
def test_what_is_no_path_is_a_type_error_that_names_it(path):
    with pytest.raises(TypeError) as caught:
        Checkpoint(path)
    assert str(caught.value) == (
        f"Checkpoint(path={path!r}): must be a path, not {type(path).__name__}"
    )


def test_nothing_is_read_before_somebody_asks(tmp_path):
    assert Checkpoint(tmp_path / "not yet").path == str(tmp_path / "not yet")


def test_files_that_come_later_are_part_of_it(tmp_path):
    checkpoint = Checkpoint.from_directory(tmp_path / "later")
    make_files(tmp_path / "later")
    with checkpoint.as_directory() as path:
        assert files_of(path) == FILES


def test_a_subclass_makes_its_own_kind(folder):
    class Own(Checkpoint):
        pass

    assert type(Own.from_directory(folder)) is Own
    assert repr(Own(folder)).startswith("Own(")


# ------------------------------------------------------------------ equality
@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (Checkpoint("/a/b"), Checkpoint("/a/b"), True),
        (Checkpoint("/a/b"), Checkpoint("/a/b/"), True),
        (Checkpoint("/a/b"), Checkpoint("file:///a/b"), True),
        (Checkpoint("/a/b"), Checkpoint("/a/b", LocalFileSystem()), True),
        (Checkpoint("/a/b"), Checkpoint("/a/b/", LocalFileSystem()), True),
        (Checkpoint("/a/b"), Checkpoint("/a/c"), False),
        (Checkpoint("b"), Checkpoint("b", SubTreeFileSystem("/a", LocalFileSystem())), False),
        (
            Checkpoint("b", SubTreeFileSystem("/a", LocalFileSystem())),
            Checkpoint("b", SubTreeFileSystem("/a", LocalFileSystem())),
            True,
        ),
        (
            Checkpoint("b", SubTreeFileSystem("/a", LocalFileSystem())),
            Checkpoint("b", SubTreeFileSystem("/c", LocalFileSystem())),
            False,
        ),
    ],
)
def test_checkpoints_are_equal_if_they_are_the_same_directory(one, other, equal):
    assert (one == other) is equal
    assert (other == one) is equal
    if equal:
        assert hash(one) == hash(other)
        assert len({one, other}) == 1


@pytest.mark.parametrize("other", ["/a/b", Path("/a/b"), None, 5])
def test_a_checkpoint_equals_nothing_else(other):
    assert Checkpoint("/a/b") != other


@everywhere
@pytest.mark.parametrize("copied", ["pickle", "copy", "deepcopy"])
def test_a_copy_is_equal_and_gives_the_same_files(make, folder, copied):
    if make is in_memory and copied != "copy":
        pytest.skip("what lies in the memory of this process does not leave it")
    checkpoint = make(folder)
    if copied == "pickle":
        again = pickle.loads(pickle.dumps(checkpoint))
    else:
        again = getattr(copy, copied)(checkpoint)
    assert again == checkpoint
    assert hash(again) == hash(checkpoint)
    with again.as_directory() as path:
        assert files_of(path) == FILES


def test_it_says_where_it_is(folder):
    assert repr(Checkpoint(folder)) == f"Checkpoint(filesystem=local, path={folder})"
    assert repr(in_a_subtree(folder)) == "Checkpoint(filesystem=subtree, path=checkpoint)"


# ------------------------------------------------------------------ the files
@everywhere
def test_to_directory_copies_the_files(make, folder, tmp_path):
    target = tmp_path / "new" / "target"
    assert make(folder).to_directory(target) == str(target)
    assert files_of(target) == FILES
    assert files_of(folder) == FILES


@everywhere
def test_to_directory_without_a_path_makes_one_that_belongs_to_the_caller(
    make, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    first, second = (make(folder).to_directory() for _ in range(2))
    assert first != second
    for path in (first, second):
        assert Path(path).parent == tmp_path / "tmp"
        assert files_of(path) == FILES


@everywhere
def test_to_directory_merges_into_what_is_there_and_replaces_files(make, folder, tmp_path):
    target = make_files(tmp_path / "target", {"own": "o", "weights": "old", "deep/own": "d"})
    make(folder).to_directory(target)
    assert files_of(target) == {"own": "o", "deep/own": "d", **FILES}


def test_to_directory_takes_a_path_below_home(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Checkpoint(folder).to_directory("~/copy") == str(tmp_path / "copy")


def test_several_may_copy_to_the_same_place_at_once(folder, tmp_path):
    (folder / "big").write_text("x" * 200_000)
    target = tmp_path / "target"
    errors = []

    def copy_there():
        try:
            for _ in range(5):
                Checkpoint(folder).to_directory(target)
                assert (target / "big").stat().st_size == 200_000
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=copy_there) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert files_of(target) == files_of(folder)


@where_local
def test_a_local_checkpoint_is_given_as_it_lies_there(make, folder):
    with make(folder).as_directory() as path:
        assert path == str(folder)
    assert files_of(folder) == FILES


@elsewhere
def test_another_one_is_copied_and_the_copy_removed(make, folder):
    with make(folder).as_directory() as path:
        assert path != str(folder)
        assert files_of(path) == FILES
    assert not Path(path).exists()


@elsewhere
def test_the_copy_is_removed_after_an_error_too(make, folder):
    with pytest.raises(ZeroDivisionError), make(folder).as_directory() as path:
        raise ZeroDivisionError
    assert not Path(path).exists()


def open_copy(checkpoint):
    with checkpoint.as_directory():
        pass


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (local, Checkpoint.to_directory),
        (in_a_subtree, Checkpoint.to_directory),
        (in_a_subtree, open_copy),
    ],
)
def test_a_copy_that_fails_leaves_nothing_in_the_temporary_folder(
    make, use, folder, tmp_path, monkeypatch
):
    (folder / "unreadable").symlink_to("/proc/self/mem")  # opens, and cannot be read
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with pytest.raises(OSError, match="Input/output error"):
        use(make(folder))
    assert list((tmp_path / "tmp").iterdir()) == []


@everywhere
def test_a_missing_directory_is_named_when_somebody_asks_for_it(make, folder, tmp_path):
    checkpoint = make(folder)
    gone = copy.copy(checkpoint)
    gone.path += "_gone"
    with pytest.raises(FileNotFoundError, match="_gone"):
        gone.to_directory(tmp_path / "target")
    with pytest.raises(FileNotFoundError, match="_gone"), gone.as_directory():
        pass
    assert not (tmp_path / "target").exists()


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError), Checkpoint(tmp_path / "file").as_directory():
        pass


@pytest.mark.parametrize(
    "use", [os.fspath, open, Path, os.listdir, lambda it: os.path.join(it, "weights")]
)
def test_a_checkpoint_is_not_a_path_and_says_what_to_do(folder, use):
    with pytest.raises(TypeError, match=r"as_directory\(\) as path"):
        use(Checkpoint(folder))


# ------------------------------------------------------------------ metadata
@everywhere
def test_there_is_no_metadata_at_first(make, folder):
    assert make(folder).get_metadata() == {}


@everywhere
def test_metadata_is_replaced_by_set_and_added_to_by_update(make, folder):
    checkpoint = make(folder)
    checkpoint.set_metadata({"a": 1, "b": {"c": [1, None, "x"]}})
    assert checkpoint.get_metadata() == {"a": 1, "b": {"c": [1, None, "x"]}}
    checkpoint.update_metadata({"a": 2, "d": 3})
    assert checkpoint.get_metadata() == {"a": 2, "b": {"c": [1, None, "x"]}, "d": 3}
    checkpoint.set_metadata({"e": 4})
    assert checkpoint.get_metadata() == {"e": 4}


def test_metadata_lies_where_ray_train_has_it(folder):
    Checkpoint(folder).set_metadata({"a": 1})
    assert json.loads((folder / ".metadata.json").read_text()) == {"a": 1}
    assert files_of(folder).keys() == FILES.keys() | {".metadata.json"}


@everywhere
@pytest.mark.parametrize("change", ["set_metadata", "update_metadata"])
def test_metadata_that_is_no_json_is_a_type_error_and_changes_nothing(make, folder, change):
    checkpoint = make(folder)
    checkpoint.set_metadata({"a": 1})
    with pytest.raises(TypeError):
        getattr(checkpoint, change)({"a": object()})
    assert checkpoint.get_metadata() == {"a": 1}


@everywhere
def test_metadata_travels_with_the_files(make, folder, tmp_path):
    checkpoint = make(folder)
    checkpoint.set_metadata({"a": 1})
    assert Checkpoint(checkpoint.to_directory(tmp_path / "copy")).get_metadata() == {"a": 1}


# ------------------------------------------------------------------ what ray.train took away
@pytest.mark.parametrize(
    ("owner", "name"),
    [(Checkpoint("/a"), name) for name in REMOVED]
    + [(Checkpoint, name) for name in REMOVED if name.startswith("from_")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_was_removed_says_what_to_use_instead(owner, name):
    with pytest.raises(AttributeError, match=rf"Checkpoint\.{name} was removed from ray.train: "):
        getattr(owner, name)


@pytest.mark.parametrize("owner", [Checkpoint("/a"), Checkpoint], ids=["instance", "class"])
def test_what_never_was_is_an_ordinary_attribute_error(owner):
    assert not hasattr(owner, "from_nowhere")
    with pytest.raises(AttributeError, match="has no attribute 'from_nowhere'"):
        owner.from_nowhere  # noqa: B018 - looking it up is the test


def test_it_is_what_minitrain_exports():
    assert minitrain.Checkpoint is Checkpoint


# ------------------------------------------------------------------ whole or damaged
def committed(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run_checkpoint"
    storage = RunStorage(LocalDisk(str(path.parent)))
    storage.begin(path.name)
    storage.commit(path.name, [storage.put(folder, path.name)], 0, {}, {})
    return path


@everywhere
def test_what_was_reported_is_whole_until_somebody_touches_it(make, folder, tmp_path):
    path = committed(folder, tmp_path)
    checkpoint = make(path)
    checkpoint.verify()
    (path / "weights").write_text("v")
    if make is in_memory:
        checkpoint = make(path)  # a copy of what was damaged
    checkpoint.verify(contents=False)
    with pytest.raises(CheckpointCorruptError, match="weights: checksum"):
        checkpoint.verify()


@everywhere
def test_a_damaged_file_is_not_copied_unnoticed(make, folder, tmp_path):
    path = committed(folder, tmp_path)
    (path / "deep/er/state").write_text("longer")
    with pytest.raises(CheckpointCorruptError, match="deep/er/state: 6 bytes instead of 1"):
        make(path).to_directory()


def test_metadata_may_change_after_the_report(folder, tmp_path):
    Checkpoint(folder).set_metadata({"a": 1})
    checkpoint = Checkpoint(committed(folder, tmp_path))
    checkpoint.update_metadata({"b": 2})
    checkpoint.verify()


def test_a_manifest_that_is_damaged_itself_is_damage(folder, tmp_path):
    path = committed(folder, tmp_path)
    (path / ".manifest.json").write_bytes(b"{")
    for use in (Checkpoint.verify, Checkpoint.to_directory):
        with pytest.raises(CheckpointCorruptError, match=r"\.manifest\.json"):
            use(Checkpoint(path))


def test_a_directory_that_was_never_reported_cannot_be_verified(folder):
    with pytest.raises(CheckpointError, match="it was never reported"):
        Checkpoint(folder).verify()
    with pytest.raises(FileNotFoundError):
        Checkpoint(folder / "nowhere").verify()


def test_there_is_nothing_to_wait_for(folder):
    assert Checkpoint(folder).wait() is None


# ------------------------------------------------------------------ shared copies
def test_copies_at_the_same_time_are_one_folder(folder):
    with in_a_subtree(folder).as_directory() as one:
        with in_a_subtree(folder).as_directory() as other:
            assert one == other
        assert files_of(one) == FILES
    assert not Path(one).exists()


def test_a_filesystem_that_stays_in_this_process_is_shared_with_nobody(folder):
    class Local(type(fsspec.filesystem("file"))):  # cannot be pickled: nobody can import it
        protocol = "own"

    checkpoint = Checkpoint(str(folder), Local())
    with checkpoint.as_directory() as one, checkpoint.as_directory() as other:
        assert one != other
        assert files_of(one) == files_of(other) == FILES


def test_a_filesystem_of_fsspec_is_taken_as_it_is(folder):
    checkpoint = Checkpoint(str(folder), fsspec.filesystem("file"))
    assert checkpoint.filesystem.type_name.startswith("py::fsspec")
    assert not checkpoint.is_local
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint
    with checkpoint.as_directory() as path:
        assert files_of(path) == FILES
