"""What a manifest says, and how files differ from it."""

from __future__ import annotations

import json
import zlib

import pytest
from pyarrow.fs import LocalFileSystem

from minitrain import _manifest
from minitrain._manifest import FileState, Manifest, differences
from minitrain._storage.disk import LocalDisk
from minitrain._storage.run_storage import RunStorage

WRITTEN = FileState(5, 0xAB)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (FileState(5, 0xAB), None),
        (FileState(5), None),
        (None, "f: missing (5 bytes)"),
        (FileState(4), "f: 4 bytes instead of 5"),
        (FileState(6, 0xAB), "f: 6 bytes instead of 5"),
        (FileState(5, 1), "f: checksum 00000001 instead of 000000ab (5 bytes)"),
        (OSError("no disk"), "f: cannot be read (no disk)"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_a_problem(found, problem):
    files = {} if found is None else {"f": found}
    assert differences({"f": WRITTEN}, files) == ([] if problem is None else [problem])


def test_a_checksum_that_was_not_written_is_not_compared():
    assert differences({"f": FileState(5)}, {"f": FileState(5, 7)}) == []


def test_every_problem_is_told_in_the_order_of_names():
    written = dict.fromkeys(["b", "a", "c"], WRITTEN)
    assert [text[0] for text in differences(written, {"c": WRITTEN})] == ["a", "b"]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"{}", b'{"files": 5}', b'{"files": {"a": {}}}', b"\xff"]
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(ValueError, match="not a manifest"):
        _manifest.parse(data)


def test_what_a_commit_writes_is_understood(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "f").write_bytes(b"12345")
    storage = RunStorage(LocalDisk(str(tmp_path)))
    storage.begin("c")
    storage.commit("c", [storage.put(tmp_path / "source", "c")], 0, {}, {})
    manifest = _manifest.read(LocalFileSystem(), str(tmp_path / "c"))
    assert manifest == Manifest({"f": FileState(5, zlib.crc32(b"12345"))})
    assert manifest.size_bytes == 5


def test_a_file_that_cannot_be_read_does_not_keep_the_others_from_being_looked_at(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345")
    files = {name: {"bytes": 5, "crc32": 1} for name in ("a", "b")}
    content = {"files": files}
    content["crc32"] = _manifest.checksum(content)
    manifest = _manifest.parse(json.dumps(content).encode())

    class Failing(LocalFileSystem):
        def open_input_stream(self, path):
            if path.endswith("a"):
                raise OSError("no such sector")
            return super().open_input_stream(path)

    problems = _manifest.find_problems(manifest, Failing(), str(tmp_path), contents=True)
    assert problems[0] == "a: cannot be read (no such sector)"
    assert problems[1].startswith("b: checksum")
