"""What passes by itself is tried again for a while; what lasts is raised at once."""

from __future__ import annotations

import errno
import logging
import os

import pyarrow
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from minitrain import _env
from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.retry import Retry, backoff_s, is_transient, retry_again, stop_retrying
from minitrain._storage.run_storage import RunStorage


class HttpError(Exception):
    """As gcsfs and others raise it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the server said {code}")
        self.code = code


class ServerDisconnectedError(Exception):
    """As aiohttp raises it."""


def numbered(number: int) -> OSError:
    return OSError(number, os.strerror(number))


AWS = "When reading information for key 'x' in bucket 'b': AWS Error "
PASSING = [
    OSError(f"{AWS}NETWORK_CONNECTION during HeadObject operation: curlCode: 7, no connection"),
    OSError(f"{AWS}SLOW_DOWN during PutObject operation: Please reduce your request rate."),
    OSError(f"{AWS}SERVICE_UNAVAILABLE during PutObject operation: (no message)"),
    OSError(f"{AWS}INTERNAL_FAILURE during UploadPart operation: We encountered an error"),
    OSError(f"{AWS}REQUEST_TIMEOUT during UploadPart operation: too slow"),
    OSError(f"{AWS}THROTTLING during ListObjectsV2 operation: Rate exceeded"),
    OSError(f"{AWS}UNKNOWN (HTTP status 503) during HeadObject operation: No response body."),
    OSError(f"{AWS}UNKNOWN (HTTP status 429) during HeadObject operation: No response body."),
    OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted in UploadChunk: timeout)"),
    OSError(errno.EIO, "Please reduce your request rate. (SlowDown)"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    TimeoutError("timed out"),
    numbered(errno.EHOSTUNREACH),
    numbered(errno.ESTALE),
    numbered(errno.EAGAIN),
    HttpError(500),
    HttpError(503),
    HttpError(429),
    ServerDisconnectedError("Server disconnected"),
]
LASTING = [
    OSError(f"{AWS}ACCESS_DENIED during HeadObject operation: No response body."),
    OSError(f"{AWS}NO_SUCH_BUCKET during CreateMultipartUpload operation: does not exist"),
    OSError(f"{AWS}INVALID_ACCESS_KEY_ID during PutObject operation: no connection to it"),
    OSError(f"{AWS}SIGNATURE_DOES_NOT_MATCH during PutObject operation: The request signature"),
    OSError(f"{AWS}UNKNOWN (HTTP status 400) during HeadObject operation: No response body."),
    OSError(f"{AWS}UNKNOWN (HTTP status 301) during HeadObject operation: No response body."),
    OSError("google::cloud::Status(PERMISSION_DENIED: Permanent error in UploadChunk)"),
    OSError("Cannot open for reading: path '/tmp' is a directory"),
    FileNotFoundError(errno.ENOENT, "Failed to open local file"),
    FileNotFoundError("connection"),
    FileExistsError(errno.EEXIST, "exists"),
    PermissionError(errno.EACCES, "Permission denied"),
    IsADirectoryError(errno.EISDIR, "Is a directory"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    numbered(errno.ENOSPC),
    numbered(errno.EDQUOT),
    numbered(errno.EROFS),
    numbered(errno.EIO),
    HttpError(401),
    HttpError(403),
    HttpError(404),
    ValueError("bad argument"),
    pyarrow.ArrowInvalid("Not a URI"),
    MemoryError(),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass(error):
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts(error):
    assert not is_transient(error)


def test_waits_grow_and_vary():
    waits = [backoff_s(failures, 1.0) for failures in range(1, 60)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.25, 10.0)
    assert backoff_s(3, 0.0) == backoff_s(3, 1.0) / 2


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def retry(self, deadline_s: float = 60.0) -> Retry:
        return Retry(deadline_s, self.sleep, lambda: self.now_s)


class Failing:
    """Fails a number of times, then returns how often it was called."""

    def __init__(self, times: float, error: Exception) -> None:
        self.times = times
        self.error = error
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.calls


def test_an_error_that_passes_is_not_seen(caplog):
    clock = Clock()
    with caplog.at_level(logging.WARNING):
        assert clock.retry()(Failing(3, ConnectionResetError("reset\nand more")), "run/file") == 4
    assert len(clock.slept) == 3
    assert len(caplog.messages) == 3, "one for every wait"
    assert caplog.messages[0].startswith("run/file: reset; trying again in 0.")


def test_an_error_that_lasts_is_raised_at_once(caplog):
    clock = Clock()
    failing = Failing(1, PermissionError("denied"))
    with pytest.raises(PermissionError, match="denied"):
        clock.retry()(failing, "run/file")
    assert (failing.calls, clock.slept, caplog.messages) == (1, [], [])


def test_an_error_that_does_not_pass_is_raised_when_the_time_is_up():
    clock = Clock()
    failing = Failing(float("inf"), TimeoutError("still"))
    with pytest.raises(TimeoutError, match="still"):
        clock.retry(60.0)(failing, "run/file")
    assert 45.0 < clock.now_s <= 60.0
    assert failing.calls == len(clock.slept) + 1


def test_the_time_is_set_by_a_variable(tmp_path):
    with _env.override("MINITRAIN_RETRY_S", "7"):
        disk = ArrowDisk(PyFileSystem(FSSpecHandler(LocalFileSystem())), str(tmp_path))
    assert disk.retry.deadline_s == 7.0


# ------------------------------------------------------------------ every operation of a disk
class FlakyHandler(FSSpecHandler):
    """A filesystem of which every operation fails the first time, some in the middle."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())
        self.failed: set[tuple[str, str]] = set()

    def fail_once(self, operation: str, path: object) -> None:
        if (operation, str(path)) not in self.failed:
            self.failed.add((operation, str(path)))
            raise ConnectionResetError(errno.ECONNRESET, f"{operation} was interrupted")

    def get_file_info_selector(self, selector):
        self.fail_once(f"list, recursive={selector.recursive}", selector.base_dir)
        return super().get_file_info_selector(selector)

    def delete_file(self, path):
        self.fail_once("delete", path)
        super().delete_file(path)

    def delete_dir(self, path):
        self.fail_once("delete", path)
        super().delete_dir(path)

    def open_input_stream(self, path):
        self.fail_once("read", path)
        return super().open_input_stream(path)

    def open_output_stream(self, path, metadata):
        stream = super().open_output_stream(path, metadata)
        if ("write", path) not in self.failed:
            with stream:
                stream.write(b"the beginning of something")
            self.fail_once("write", path)
        return stream


def test_every_operation_is_tried_again_from_its_beginning(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"w" * 1000)
    (source / "other").write_bytes(b"o")
    (tmp_path / "run").mkdir()
    handler, clock = FlakyHandler(), Clock()
    disk = ArrowDisk(PyFileSystem(handler), str(tmp_path / "run"), clock.retry())
    run = RunStorage(disk)
    for sequence, name in enumerate(["a", "b"]):
        run.commit(name, [run.put(source, name)], sequence, {}, {"by": "the trainer"})
    assert [one.name for one in run.committed()] == ["a", "b"]
    assert run.verify("a") == []
    run.delete("a")
    assert run.read("b/weights") == b"w" * 1000
    assert run.sweep() == []
    assert not run.exists("a")
    operations = {operation for operation, _ in handler.failed}
    assert operations == {
        "list, recursive=False",
        "list, recursive=True",
        "delete",
        "read",
        "write",
    }
    assert len(clock.slept) >= len(operations)


class HalfwayHandler(FSSpecHandler):
    """A filesystem to which uploads break off in the middle."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())
        self.breaks = 2

    def open_output_stream(self, path, metadata):
        file = self.fs.open(path, "wb")
        if self.breaks and path.endswith("weights"):
            self.breaks -= 1
            really_write = file.write

            class Breaking:
                closed = False

                def write(self, data):
                    really_write(bytes(data)[:10])
                    raise ConnectionResetError(errno.ECONNRESET, "the upload broke off")

                def writable(self):
                    return True

                def flush(self):
                    file.flush()

                def close(self):
                    file.close()

            return pyarrow.PythonFile(Breaking(), mode="w")
        return pyarrow.PythonFile(file, mode="w")


@pytest.mark.parametrize("deadline_s", [60.0, 0.0], ids=["tried again", "given up"])
def test_an_upload_that_breaks_off_starts_again_or_leaves_nothing(tmp_path, deadline_s):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_bytes(b"w" * 1000)
    handler = HalfwayHandler()
    disk = ArrowDisk(PyFileSystem(handler), str(tmp_path / "run"), Clock().retry(deadline_s))
    run = RunStorage(disk)
    if deadline_s:
        run.commit("c", [run.put(tmp_path / "source", "c")], 0, {}, {})
        assert run.verify("c") == []
        assert handler.breaks == 0
    else:
        with pytest.raises(ConnectionResetError, match="broke off"):
            run.put(tmp_path / "source", "c")
        assert [path.name for path in (tmp_path / "run/c").iterdir()] == [".unfinished"]


def test_a_failed_replacement_leaves_the_old_file(tmp_path):
    (tmp_path / "run.json").write_bytes(b"old")

    class Refusing(FSSpecHandler):
        def open_output_stream(self, path, metadata):
            raise PermissionError(errno.EACCES, "read only")

    disk = ArrowDisk(PyFileSystem(Refusing(LocalFileSystem())), str(tmp_path), Retry(0.0))
    with pytest.raises(PermissionError, match="read only"):
        RunStorage(disk).write("run.json", b"new")
    assert (tmp_path / "run.json").read_bytes() == b"old"


# ------------------------------------------------------------------ Ctrl-C
@pytest.fixture
def hurry():
    yield stop_retrying
    retry_again()


def test_after_ctrl_c_what_works_is_done_and_after_a_failure_nothing_else_is_tried(hurry):
    calls = []

    def fail():
        calls.append("failed")
        raise ConnectionError("gone")

    hurry()
    retry = Retry(600)
    assert retry(lambda: 42, "a file") == 42
    with pytest.raises(ConnectionError):
        retry(fail, "a file")
    with pytest.raises(OSError, match="not tried after Ctrl-C, because of: gone"):
        retry(lambda: calls.append("tried"), "another")
    assert calls == ["failed"]
    retry_again()
    assert retry(lambda: 42, "a file") == 42


def test_ctrl_c_ends_the_wait_for_the_next_try(hurry):
    calls = []

    def fail():
        if calls:
            hurry()
        calls.append("failed")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        Retry(600)(fail, "a file")
    assert calls == ["failed"] * 2
