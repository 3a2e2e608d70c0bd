"""Where storage is, from what a user says; bad input is refused in one sentence."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem as FsspecLocalFileSystem
from pyarrow.fs import (
    FileType,
    FSSpecHandler,
    LocalFileSystem,
    PyFileSystem,
    S3FileSystem,
    SubTreeFileSystem,
)

from minitrain import _env
from minitrain._storage.resolve import resolve
from minitrain.exceptions import ConfigurationError


def offline_s3(**options) -> S3FileSystem:
    return S3FileSystem(
        access_key="a", secret_key="b", region="us-east-1", scheme="http", **options
    )


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("/data/runs", "/data/runs"),
        ("/data/../runs/", "/runs"),
        ("file:///data/my%20runs", "/data/my runs"),
        ("file://localhost/data", "/data"),
        (Path("/data"), "/data"),
    ],
)
def test_a_local_path(given, root):
    location = resolve(given)
    assert (location.root, location.is_local) == (root, True)
    assert location.text == str(given)
    assert location.run("a").root == f"{root}/a"
    assert location.run("a").is_local


def test_a_local_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve("runs").root == str(tmp_path / "runs")
    assert resolve("~/runs").root == "/home/me/runs"


def test_local_storage_needs_no_pyarrow(tmp_path):
    code = (
        "import sys; from minitrain._storage.resolve import resolve\n"
        "location = resolve(sys.argv[1]); location.probe(); location.run('a').committed()\n"
        "assert not {'pyarrow', 'fsspec', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("uri", "type_name", "root"),
    [
        ("s3://bucket/a/b?endpoint_override=localhost:1&scheme=http", "s3", "bucket/a/b"),
        ("s3://bucket?region=us-east-1", "s3", "bucket"),
        ("s3://bucket/a/?region=us-east-1", "s3", "bucket/a"),
        ("gs://bucket/a?endpoint_override=localhost:1&scheme=http", "gcs", "bucket/a"),
    ],
)
def test_a_uri(uri, type_name, root):
    location = resolve(uri)
    assert location.filesystem.type_name == type_name
    assert (location.root, location.is_local, location.text) == (root, False, uri)
    assert location.run("name").root == f"{root}/name"
    assert not location.run("name").is_local


def test_a_path_in_a_filesystem(tmp_path):
    for given in (
        SubTreeFileSystem(str(tmp_path), LocalFileSystem()),
        PyFileSystem(FSSpecHandler(FsspecLocalFileSystem())),
        FsspecLocalFileSystem(),
        offline_s3(),
    ):
        location = resolve("bucket/runs", given)
        assert (location.root, location.is_local) == ("bucket/runs", False)


def test_a_local_filesystem_of_pyarrow_is_local(tmp_path):
    location = resolve(tmp_path, LocalFileSystem())
    assert (location.root, location.is_local) == (str(tmp_path), True)


def test_a_place_travels_to_workers(tmp_path):
    for location in (
        resolve(tmp_path),
        resolve("runs", SubTreeFileSystem(str(tmp_path), LocalFileSystem())),
        resolve(str(tmp_path), FsspecLocalFileSystem()),
        resolve("bucket/runs", offline_s3(endpoint_override="localhost:1")),
    ):
        again = pickle.loads(pickle.dumps(location))
        assert (again.root, again.is_local) == (location.root, location.is_local)
        run = pickle.loads(pickle.dumps(location.run("name")))
        assert run.root == f"{location.root}/name"


# ------------------------------------------------------------------ refused
@pytest.mark.parametrize(
    ("path", "filesystem", "message"),
    [
        ("", None, "RunConfig(storage_path)='': must be a path or a URI"),
        ("s3://", None, "must name a bucket or folder, s3://bucket/folder"),
        ("file://host/a", None, "must have three slashes, file:///folder"),
        ("nope://a/b", None, "must be a local path or a URI that pyarrow.fs or fsspec knows"),
        ("/a", "s3", "RunConfig(storage_filesystem)='s3': must be a pyarrow.fs.FileSystem or an"),
        ("file:///a", LocalFileSystem(), "must be a path without a scheme"),
        ("s3://a/b?nonsense=1", None, "cannot be opened: Unexpected query parameter"),
        ("memory://runs", None, "workers are other processes and would not see it"),
        ("runs", fsspec.filesystem("memory"), "workers are other processes and would not see it"),
        (
            "runs",
            SubTreeFileSystem("a", PyFileSystem(FSSpecHandler(fsspec.filesystem("memory")))),
            "workers are other processes and would not see it",
        ),
    ],
)
def test_bad_input_is_refused(path, filesystem, message):
    with pytest.raises(ConfigurationError) as caught:
        resolve(path, filesystem)
    text = str(caught.value)
    assert message in text
    assert text.startswith("RunConfig(storage_")
    assert "\n" not in text


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(ConfigurationError, match=r"az://a/b.*needs another package.*adlfs"):
        resolve("az://a/b")


def test_memory_is_storage_for_one_process():
    location = resolve("memory://runs", one_process=True)
    try:
        location.probe()
        run = location.run("a")
        run.write("run.json", b"{}")
        assert run.read("run.json") == b"{}"
    finally:
        fsspec.filesystem("memory").store.clear()


# ------------------------------------------------------------------ probing
def test_a_probe_leaves_nothing(tmp_path):
    for location in (
        resolve(tmp_path / "local"),
        resolve("remote", SubTreeFileSystem(str(tmp_path), LocalFileSystem())),
    ):
        location.probe()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("refused", ["write", "read", "delete"])
def test_a_place_that_cannot_be_used_is_refused_at_once(tmp_path, refused):
    class ReadOnly(FSSpecHandler):
        def open_output_stream(self, path, metadata):
            if refused == "write":
                raise PermissionError(errno.EACCES, "read only")
            return super().open_output_stream(path, metadata)

        def open_input_stream(self, path):
            if refused == "read":
                raise PermissionError(errno.EACCES, "write only")
            return super().open_input_stream(path)

        def delete_file(self, path):
            if refused == "delete":
                raise PermissionError(errno.EACCES, "append only")
            super().delete_file(path)

    filesystem = PyFileSystem(ReadOnly(FsspecLocalFileSystem()))
    with pytest.raises(ConfigurationError, match=r"cannot be used: .* only"):
        resolve(str(tmp_path), filesystem).probe()


def test_a_local_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"storage_path.*file.*cannot be used"):
        resolve(tmp_path / "file").probe()


def test_storage_that_returns_something_else_is_refused(tmp_path):
    class Forgetful(FSSpecHandler):
        def open_input_stream(self, path):
            Path(path).write_bytes(b"something else")
            return super().open_input_stream(path)

    filesystem = PyFileSystem(Forgetful(FsspecLocalFileSystem()))
    with pytest.raises(ConfigurationError, match="does not return what was written"):
        resolve(str(tmp_path), filesystem).probe()


@pytest.mark.campaign
def test_a_server_that_does_not_answer_is_refused_when_the_time_is_up():
    filesystem = offline_s3(endpoint_override="localhost:1", connect_timeout=1)
    with (
        _env.override("MINITRAIN_RETRY_S", "0.01"),
        pytest.raises(ConfigurationError, match=r"cannot be used: .*NETWORK_CONNECTION"),
    ):
        resolve("bucket/runs", filesystem).probe()


def test_the_directory_of_a_run_is_found_by_pyarrow_too(tmp_path):
    run = resolve("runs", SubTreeFileSystem(str(tmp_path), LocalFileSystem())).run("a")
    run.write("run.json", b"{}")
    assert run.filesystem.get_file_info(f"{run.root}/run.json").type == FileType.File
    assert os.listdir(tmp_path / "runs" / "a") == ["run.json"]


@pytest.mark.parametrize(
    ("uri", "seconds"),
    [
        ("gs://anonymous@bucket/runs", 5),
        ("gs://anonymous@bucket/runs?scheme=http", 5),
        ("gs://anonymous@bucket/runs?retry_limit_seconds=77", 77),
    ],
)
def test_googles_client_does_not_try_again_for_long_unless_the_user_wants_it(uri, seconds):
    filesystem = resolve(uri).filesystem
    _, (settings,) = filesystem.__reduce__()  # which is also how it comes to workers
    assert settings["retry_time_limit"].total_seconds() == seconds
