"""Copies hold what the original held, and say so."""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._storage import copying
from minitrain._storage.copying import can_clone, checksum, copy_file

PIECE = copying._PIECE_BYTES
SIZES = [0, 1, 4096, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 17]


def some_bytes(size: int) -> bytes:
    return (os.urandom(min(size, 65_521)) * (size // 65_521 + 1))[:size]


@pytest.fixture(params=[True, False], ids=["followed by a thread", "in one thread"])
def large(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(copying, "_LARGE_BYTES", 0)


@pytest.fixture(params=["kernel", "no sendfile"])
def way(request, monkeypatch):
    if request.param == "no sendfile":

        def refuse(*args):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(os, "sendfile", refuse)


@pytest.mark.parametrize("size", SIZES)
def test_a_copy_holds_the_same_and_is_described(tmp_path, way, large, size):
    data = some_bytes(size)
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "source").chmod(0o640)
    assert copy_file(tmp_path / "source", tmp_path / "copy") == (size, zlib.crc32(data))
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o640


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=500), piece=st.integers(1, 60), buffer=st.integers(1, 60))
def test_pieces_of_any_size_fit_together(tmp_path_factory, data, piece, buffer):
    folder = tmp_path_factory.mktemp("copies")
    (folder / "source").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_PIECE_BYTES", piece)
        patch.setattr(copying, "_BUFFER_BYTES", buffer)
        patch.setattr(copying, "_LARGE_BYTES", 100)
        assert copy_file(folder / "source", folder / "copy") == (len(data), zlib.crc32(data))
    assert (folder / "copy").read_bytes() == data


def test_a_source_that_grows_and_changes_is_described_as_it_was_copied(
    tmp_path, monkeypatch, large
):
    data = bytearray(some_bytes(3 * PIECE))
    source = tmp_path / "source"
    source.write_bytes(data)
    really_send = os.sendfile

    def send(*args):
        sent = really_send(*args)
        source.write_bytes(b"changed" + data[7:])
        return sent

    monkeypatch.setattr(os, "sendfile", send)
    size, crc32 = copy_file(source, tmp_path / "copy")
    copied = (tmp_path / "copy").read_bytes()
    assert (size, crc32) == (len(copied), zlib.crc32(copied))
    assert copied == data, "its first piece was copied before the change"


def test_a_file_that_claims_to_be_empty_is_read_to_its_end(tmp_path):
    size, _ = copy_file(Path("/proc/self/limits"), tmp_path / "copy")
    assert size == (tmp_path / "copy").stat().st_size > 0


def test_blocks_are_shared_where_the_filesystem_can(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(b"shared")
    asked = []

    def ioctl(writer, request, reader):
        asked.append(request)
        os.write(writer, os.pread(reader, 100, 0))  # what the filesystem does without writing

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "sendfile", None)
    assert copy_file(tmp_path / "source", tmp_path / "copy") == (6, zlib.crc32(b"shared"))
    assert asked == [copying._FICLONE]
    assert (tmp_path / "copy").read_bytes() == b"shared"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.EINVAL])
def test_blocks_that_cannot_be_shared_are_copied(tmp_path, monkeypatch, number):
    (tmp_path / "source").write_bytes(b"copied")

    def ioctl(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    copy_file(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"copied"


def test_no_room_for_shared_blocks_is_an_error(tmp_path, monkeypatch):
    def ioctl(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with (tmp_path / "a").open("w+b") as file:
        file.write(b"1")
        file.flush()
        with pytest.raises(OSError, match="No space left"):
            can_clone(file.fileno(), file.fileno())


def test_an_error_of_the_disk_ends_the_copy_and_its_thread(tmp_path, monkeypatch, large):
    (tmp_path / "source").write_bytes(some_bytes(3 * PIECE))
    really_send = os.sendfile

    def send(writer, reader, offset, count):
        if offset >= PIECE:
            raise OSError(errno.EIO, "Input/output error")
        return really_send(writer, reader, offset, count)

    monkeypatch.setattr(os, "sendfile", send)
    with pytest.raises(OSError, match="Input/output error"):
        copy_file(tmp_path / "source", tmp_path / "copy")


def test_a_copy_that_another_process_cuts_short_is_an_error(tmp_path, monkeypatch, large):
    (tmp_path / "source").write_bytes(some_bytes(3 * PIECE))
    really_send = os.sendfile

    def send(writer, reader, offset, count):
        sent = really_send(writer, reader, offset, count)
        os.truncate(tmp_path / "copy", 10)
        return sent

    monkeypatch.setattr(os, "sendfile", send)
    with pytest.raises(OSError, match="cut short"):
        copy_file(tmp_path / "source", tmp_path / "copy")


def test_a_checksum_is_that_of_the_whole_file(tmp_path):
    data = some_bytes(700_000)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        assert checksum(file.fileno()) == (len(data), zlib.crc32(data))
