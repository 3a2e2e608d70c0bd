"""Copies of files that are durable, and described by what they really hold, in one pass."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import queue
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["can_clone", "checksum", "copy_file", "start_writing_back"]

_PIECE_BYTES = 2 << 20
_BUFFER_BYTES = 256 << 10  # stays in the processor's cache between reading and summing up
_LARGE_BYTES = 32 << 20
_FICLONE = 0x40049409
_SYNC_FILE_RANGE_WRITE = 2


def copy_file(source: Path, target: Path) -> tuple[int, int]:
    """Copy a file with its permissions, durably, and return the copy's size and CRC-32.

    Where the filesystem can share blocks between files (XFS, Btrfs), nothing is written.

    Raises:
        OSError: It cannot be read, or the target's disk is full; a part of it may be there.
    """
    with source.open("rb", buffering=0) as reader, target.open("w+b", buffering=0) as writer:
        if can_clone(reader.fileno(), writer.fileno()):
            found = checksum(writer.fileno())
        else:
            found = _copy_in_pieces(reader.fileno(), writer.fileno())
        os.fchmod(writer.fileno(), os.fstat(reader.fileno()).st_mode & 0o7777)
        os.fsync(writer.fileno())
    return found


def can_clone(reader: int, writer: int) -> bool:
    """Make an empty file share all blocks of another one; False if their disk cannot do that."""
    if os.fstat(reader).st_size == 0:
        return False  # also what files of /proc claim
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        return False
    return True


def checksum(descriptor: int) -> tuple[int, int]:
    """Return the size and the CRC-32 of what a file holds."""
    offset = crc32 = 0
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while size := os.preadv(descriptor, [buffer], offset):
        crc32 = zlib.crc32(buffer[:size], crc32)
        offset += size
    return offset, crc32


def _copy_in_pieces(reader: int, writer: int) -> tuple[int, int]:
    """Copy, and compute the checksum of what was written: the source may change meanwhile.

    The kernel is asked to write each piece to the disk at once, so that the disk works while the
    checksum is computed, and little is left for the final fsync. For a large file another thread
    follows behind with the checksum; for small ones, of which several are copied at once, it would
    only be in the way.
    """
    if os.fstat(reader).st_size <= _LARGE_BYTES:
        size = sum(_pieces(reader, writer))
        found, crc32 = checksum(writer)
        if found != size:
            raise _cut_short()
        return size, crc32
    size = 0
    written: queue.SimpleQueue[int] = queue.SimpleQueue()
    with ThreadPoolExecutor(1, "minitrain-checksum") as pool:
        following = pool.submit(_checksum_of_pieces, writer, written)
        try:
            for piece_bytes in _pieces(reader, writer):
                written.put(piece_bytes)
                size += piece_bytes
        finally:
            written.put(0)
        os.fsync(writer)
    return size, following.result()


def _pieces(reader: int, writer: int) -> Iterator[int]:
    """Copy piece by piece, and yield how large each was."""
    offset = 0
    while size := _copy_piece(reader, writer, offset):
        start_writing_back(writer, offset, size)
        offset += size
        yield size


def _copy_piece(reader: int, writer: int, offset: int) -> int:
    """Append a piece of one file to another one and return its size; 0 at the end."""
    try:
        return os.sendfile(writer, reader, offset, _PIECE_BYTES)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
    piece = os.pread(reader, _PIECE_BYTES, offset)  # from files that no pipe can be fed from
    return os.write(writer, piece) if piece else 0


def start_writing_back(descriptor: int, offset: int, size: int) -> None:
    """Have the kernel begin to write a part of a file to the disk; only a hint."""
    begin, length = ctypes.c_int64(offset), ctypes.c_int64(size)
    _LIBC.sync_file_range(descriptor, begin, length, _SYNC_FILE_RANGE_WRITE)


_LIBC = ctypes.CDLL(None)


def _checksum_of_pieces(descriptor: int, sizes: queue.SimpleQueue[int]) -> int:
    offset = crc32 = 0
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while size := sizes.get():
        end = offset + size
        while offset < end:
            num_read = os.preadv(descriptor, [buffer[: end - offset]], offset)
            if not num_read:
                raise _cut_short()
            crc32 = zlib.crc32(buffer[:num_read], crc32)
            offset += num_read
    return crc32


def _cut_short() -> OSError:
    return OSError(errno.EIO, "the copy was cut short by another process")
