"""Checkpoints on real storage servers: downloaded once, checked, and cleaned up after."""

from __future__ import annotations

import fcntl
import json
import signal
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from minitrain import Checkpoint, _manifest
from minitrain.checkpoint import use_shared_folder
from minitrain.exceptions import CheckpointCorruptError, CheckpointError
from minitrain.verify import main

CONTENT = {
    "weights": bytes(range(256)) * 4000,
    "deep/er/state": b"state",
    "empty": b"",
}

USER = """
import fcntl, os, pathlib, signal, sys
from minitrain import Checkpoint
from fsspec.implementations.local import LocalFileSystem

downloads, gate, role = sys.argv[1:]

class Counted(Checkpoint):
    def _download(self, target):
        with open(downloads, "a") as counter:
            counter.write("x")
        if role == "dies halfway":
            (target / "weights").write_bytes(b"half")
            print("halfway", flush=True)
            signal.pause()
        super()._download(target)

checkpoint = {checkpoint}
print("asks", flush=True)
with checkpoint.as_directory() as path:
    print("has", path, len(pathlib.Path(path, "weights").read_bytes()), flush=True)
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    print("still has", len(pathlib.Path(path, "weights").read_bytes()), flush=True)
"""


class Place:
    """Somewhere that checkpoints lie."""

    def __init__(self, filesystem, root: str, expression: str) -> None:
        self.filesystem = filesystem
        self.root = root
        self.expression = expression  # how a script makes the checkpoint, with %s for its name

    def put(self, name: str, data: bytes) -> None:
        """Write a file; a directory only where there can be no file without one."""
        if self.filesystem.type_name.startswith("py::"):
            self.filesystem.create_dir(f"{self.root}/{name}".rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(f"{self.root}/{name}") as stream:
            stream.write(data)

    def put_checkpoint(self, name: str, sequence: int = 0) -> Checkpoint:
        for file, data in CONTENT.items():
            self.put(f"{name}/{file}", data)
        files = {
            file: {"bytes": len(data), "crc32": zlib.crc32(data)} for file, data in CONTENT.items()
        }
        manifest = {"version": 1, "sequence": sequence, "files": files, "report": {}}
        manifest["crc32"] = _manifest.checksum(manifest)
        self.put(f"{name}/.manifest.json", json.dumps(manifest).encode())
        return self.checkpoint(name)

    def checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint(f"{self.root}/{name}", self.filesystem)


LONG = pytest.mark.campaign


@pytest.fixture(
    params=[
        pytest.param("seaweedfs", marks=LONG),
        "moto",
        pytest.param("gcs", marks=LONG),
        pytest.param("fsspec", marks=LONG),
    ]
)
def place(request, tmp_path) -> Place:
    if request.param == "fsspec":
        here = tmp_path / "elsewhere"
        here.mkdir()
        wrapped = Checkpoint(here, LocalFileSystem()).filesystem
        return Place(wrapped, str(here), f"Counted('{here}/%s', LocalFileSystem())")
    server = request.getfixturevalue(request.param)
    if server._process is None:
        server.start_again()
    root = f"runs/{tmp_path.name}"
    uri = server.uri(f"{root}/NAME").replace("%", "%%").replace("NAME", "%s")
    return Place(server.filesystem(), server.path(root), f"Counted({uri!r})")


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The temporary folder of this process and of all that it starts."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def users(tmp_path, start_script, temporary):
    return Users(tmp_path, start_script)


class Users:
    """Processes that want the same checkpoint."""

    def __init__(self, folder: Path, start_script) -> None:
        self._start_script = start_script
        self._counter = folder / "downloads"
        self._gate = folder / "gate"
        self._gate.touch()

    def start(self, place: Place, name: str, role: str = "user"):
        text = USER.replace("{checkpoint}", place.expression % name)
        return self._start_script(text, str(self._counter), str(self._gate), role)

    @contextmanager
    def kept_inside(self):
        """Let nobody out of the ``with`` block that the processes are in."""
        with self._gate.open() as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield

    @property
    def num_downloads(self) -> int:
        return len(self._counter.read_text())


def files_of(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != ".manifest.json"
    }


def leave(scripts) -> None:
    assert [script.wait() for script in scripts] == [0] * len(scripts), [s.output for s in scripts]


# ------------------------------------------------------------------ once per machine
@pytest.mark.campaign
def test_of_six_that_ask_at_once_one_downloads_and_the_last_removes(place, users, temporary):
    place.put_checkpoint("c")
    with users.kept_inside():
        scripts = [users.start(place, "c") for _ in range(6)]
        outputs = {script.wait_for("has").splitlines()[1] for script in scripts}
        assert users.num_downloads == 1
        assert len(outputs) == 1, "all have the same folder"
        assert outputs.pop().endswith(f" {len(CONTENT['weights'])}")
    leave(scripts)
    assert list(temporary.iterdir()) == []


@pytest.mark.campaign
@pytest.mark.parametrize("place", ["seaweedfs", "fsspec"], indirect=True)
def test_a_download_whose_process_is_killed_is_started_again_by_one_of_those_who_wait(
    place, users, temporary
):
    place.put_checkpoint("c")
    with users.kept_inside():
        victim = users.start(place, "c", "dies halfway")
        victim.wait_for("halfway")
        others = [users.start(place, "c") for _ in range(3)]
        for other in others:
            other.wait_for("asks")
        victim.process.send_signal(signal.SIGKILL)
        victim.wait()
        for other in others:
            assert f" {len(CONTENT['weights'])}\n" in other.wait_for("has")
        assert users.num_downloads == 2
    leave(others)
    assert list(temporary.iterdir()) == []


@pytest.mark.campaign
@pytest.mark.parametrize("place", ["seaweedfs", "fsspec"], indirect=True)
def test_a_user_that_is_killed_takes_nothing_from_the_others(place, users, temporary):
    place.put_checkpoint("c")
    with users.kept_inside():
        victim, *others = scripts = [users.start(place, "c") for _ in range(3)]
        for script in scripts:
            script.wait_for("has")
        victim.process.send_signal(signal.SIGKILL)
        victim.wait()
    leave(others)
    for other in others:
        assert f"still has {len(CONTENT['weights'])}" in other.output
    assert list(temporary.iterdir()) == []


@pytest.mark.campaign
@pytest.mark.parametrize("place", ["seaweedfs", "fsspec"], indirect=True)
def test_what_the_only_user_left_when_it_was_killed_the_next_one_takes_over(
    place, users, temporary
):
    place.put_checkpoint("c")
    with users.kept_inside():
        victim = users.start(place, "c")
        victim.wait_for("has")
        victim.process.send_signal(signal.SIGKILL)
        victim.wait()
    leave([users.start(place, "c")])
    assert users.num_downloads == 1
    assert list(temporary.iterdir()) == []


# ------------------------------------------------------------------ the copies of one process
def test_the_files_arrive_as_they_were_written(place, temporary):
    with place.put_checkpoint("c").as_directory() as path:
        assert files_of(path) == CONTENT
    assert list(temporary.iterdir()) == []


def test_to_directory_gives_everybody_a_copy_of_their_own(place, temporary):
    checkpoint = place.put_checkpoint("c")
    with checkpoint.as_directory() as shared:
        own = [checkpoint.to_directory() for _ in range(2)]
        assert len({shared, *own}) == 3
    for path in own:
        assert files_of(path) == CONTENT


def test_two_checkpoints_are_two_copies(place, temporary):
    first, second = place.put_checkpoint("a"), place.put_checkpoint("b")
    with first.as_directory() as one, second.as_directory() as other:
        assert one != other


def test_copies_go_where_the_process_was_told(place, temporary, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    use_shared_folder(own)
    try:
        with place.put_checkpoint("c").as_directory() as path:
            assert Path(path).parent == own
            assert list(temporary.iterdir()) == []
    finally:
        use_shared_folder(None)
    assert list(own.iterdir()) == []


# ------------------------------------------------------------------ damage
def flip(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


def test_what_is_whole_is_found_whole(place):
    checkpoint = place.put_checkpoint("c")
    place.put("c/added", b"later")
    checkpoint.verify()
    checkpoint.verify(contents=False)


def test_every_damaged_file_is_named(place):
    checkpoint = place.put_checkpoint("c")
    weights = CONTENT["weights"]
    place.put("c/weights", flip(weights))
    place.put("c/deep/er/state", b"sta")
    place.filesystem.delete_file(f"{checkpoint.path}/empty")
    before, now = zlib.crc32(weights), zlib.crc32(flip(weights))
    with pytest.raises(CheckpointCorruptError) as caught:
        checkpoint.verify()
    assert str(caught.value).splitlines() == [
        f"{checkpoint!r} is damaged:",
        "  deep/er/state: 3 bytes instead of 5",
        "  empty: missing (0 bytes)",
        f"  weights: checksum {now:08x} instead of {before:08x} ({len(weights)} bytes)",
    ]
    with pytest.raises(CheckpointCorruptError, match="deep/er/state") as caught:
        checkpoint.verify(contents=False)
    assert "weights" not in str(caught.value), "a flipped bit is not seen by the size"


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1]], ids=["flipped", "cut off"])
def test_a_damaged_checkpoint_is_not_given_to_anybody(place, temporary, damage):
    checkpoint = place.put_checkpoint("c")
    place.put("c/weights", damage(CONTENT["weights"]))
    with pytest.raises(CheckpointCorruptError, match="weights: "), checkpoint.as_directory():
        pass
    with pytest.raises(CheckpointCorruptError, match="weights: "):
        checkpoint.to_directory()
    assert list(temporary.iterdir()) == []


def test_without_a_manifest_nobody_can_tell(place):
    place.put("c/weights", b"1")
    with pytest.raises(CheckpointError, match=r"has no \.manifest\.json") as caught:
        place.checkpoint("c").verify()
    assert not isinstance(caught.value, CheckpointCorruptError)
    with pytest.raises(FileNotFoundError):
        place.checkpoint("nowhere").verify()


@pytest.mark.campaign
def test_a_server_that_is_gone_is_an_error_and_leaves_nothing(seaweedfs, temporary, tmp_path):
    place = Place(seaweedfs.filesystem(), seaweedfs.path(f"runs/{tmp_path.name}"), "")
    checkpoint = place.put_checkpoint("c")
    seaweedfs.kill()
    try:
        with pytest.raises(OSError, match="runs"), checkpoint.as_directory():
            pass
        assert list(temporary.iterdir()) == []
    finally:
        seaweedfs.start_again()
    with checkpoint.as_directory() as path:
        assert files_of(path) == CONTENT


# ------------------------------------------------------------------ python -m minitrain.verify
def test_a_run_on_a_server_is_verified_by_its_uri(storage_server, tmp_path, capsys):
    root = f"runs/{tmp_path.name}"
    place = Place(storage_server.filesystem(), storage_server.path(root), "")
    place.put_checkpoint("checkpoint_000000")
    assert main([storage_server.uri(root)]) == 2
    place.put("run.json", b"{}")
    assert main([storage_server.uri(root)]) == 0
    place.put("checkpoint_000000/weights", flip(CONTENT["weights"]))
    assert main([storage_server.uri(root), "--sizes"]) == 0
    assert main([storage_server.uri(root)]) == 1
    assert "    weights: checksum" in capsys.readouterr().out
