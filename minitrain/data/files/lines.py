"""Files of lines: cut into ranges of bytes, read in whole lines, searched for a bad one."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from minitrain.data.files.paths import File

__all__ = ["Piece", "bad_line", "good_parts", "is_compressed", "line_number", "pieces", "ranges"]

T = TypeVar("T")

_STEP_BYTES = 64 * 1024
_COMPRESSED = ("gz", "bz2", "zst", "lz4", "br")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some whole lines of a file.

    Attributes:
        offset: Where they begin, in bytes after decompression.
        data: The lines; the last may lack its end.
    """

    offset: int
    data: bytes


def is_compressed(file: File) -> bool:
    """Whether the name of a file says so."""
    return file.path.lower().rpartition(".")[2] in _COMPRESSED


def ranges(first: int, size_bytes: int, target_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a file from ``first`` on into ranges of almost equal size, none above the target."""
    total = size_bytes - first
    if total <= 0:
        return
    number = -(-total // target_bytes)
    for index in range(number):
        yield first + total * index // number, first + total * (index + 1) // number


def pieces(
    file: File, first: int, start: int, end: int | None, *, size: int, encoding: str = "utf-8"
) -> Generator[Piece, None, None]:
    """Yield the lines that begin in a range of a file, in pieces of about a size.

    Args:
        file: The file.
        first: Where its first line begins, after a header.
        start: Where the range begins.
        end: Where it ends; None: at the file's end, whose place is not known before it is read.
        size: The bytes of a piece, unless one line is longer.
        encoding: What the file is written in; a range of bytes needs one that ASCII is part of.
    """
    if end is None:
        yield from _streamed(file, first, size, encoding)
        return
    with file.filesystem.open_input_file(file.path) as stream:
        position = _line_start(stream, start, first)
        limit = _line_start(stream, end, first)
        rest, begin = b"", position
        while position < limit:
            data = stream.read_at(min(size, limit - position), position)
            if not data:
                break  # it has become shorter
            position += len(data)
            rest += data
            cut = len(rest) if position >= limit else rest.rfind(b"\n") + 1
            if cut:
                yield Piece(begin, rest[:cut])
                begin, rest = begin + cut, rest[cut:]
        if rest:
            yield Piece(begin, rest)


def _line_start(stream: Any, place: int, first: int) -> int:
    """Return where the first line begins that does not begin before a place."""
    if place <= first:
        return first
    position = place - 1
    while data := stream.read_at(_STEP_BYTES, position):
        newline = bytes(data).find(b"\n")
        if newline >= 0:
            return int(position + newline + 1)
        position += len(data)
    return position


def _streamed(file: File, first: int, size: int, encoding: str) -> Iterator[Piece]:
    with closing(open_stream(file, encoding)) as stream:
        begin, rest, skip = first, b"", first
        while data := stream.read(size):
            data = bytes(data)
            if skip:
                data, skip = data[skip:], max(0, skip - len(data))
            rest += data
            cut = rest.rfind(b"\n") + 1
            if cut >= size // 2 or (cut and len(rest) >= size):
                yield Piece(begin, rest[:cut])
                begin, rest = begin + cut, rest[cut:]
        if rest:
            yield Piece(begin, rest)


def open_stream(file: File, encoding: str = "utf-8") -> Any:
    """Open a file from its beginning: decompressed, and in UTF-8 whatever it is written in."""
    compression = "detect" if is_compressed(file) else None
    stream = file.filesystem.open_input_stream(file.path, compression=compression)
    if codecs.lookup(encoding).name in {"utf-8", "ascii"}:
        return stream
    return pa.transcoding_input_stream(stream, encoding, "utf-8")


def can_be_cut(file: File, encoding: str) -> bool:
    """Whether lines can be found from anywhere in a file."""
    return not is_compressed(file) and codecs.lookup(encoding).name in {"utf-8", "ascii"}


def bad_line(data: bytes, parse: Callable[[bytes], object]) -> tuple[int, bytes]:
    """Return where the first line is that cannot be parsed, and that line."""
    lines = _lines(data)
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            parse(b"".join(lines[low:middle]))
        except (pa.ArrowException, ValueError):
            high = middle
        else:
            low = middle
    return sum(map(len, lines[:low])), lines[low] if lines else b""


def good_parts(
    piece: Piece, parse: Callable[[bytes], T], bad: Callable[[int, Exception], None]
) -> Iterator[T]:
    """Yield the parsed parts of a piece of which some lines cannot be parsed.

    Args:
        piece: Lines.
        parse: What parses some of them.
        bad: Told the offset of each line that cannot be parsed, and why.
    """
    try:
        parsed = parse(piece.data)
    except (pa.ArrowException, ValueError) as error:
        lines = _lines(piece.data)
        if len(lines) <= 1:
            bad(piece.offset, error)
            return
        middle = len(lines) // 2
        head = b"".join(lines[:middle])
        tail = Piece(piece.offset + len(head), b"".join(lines[middle:]))
        yield from good_parts(Piece(piece.offset, head), parse, bad)
        yield from good_parts(tail, parse, bad)
    else:
        yield parsed


def _lines(data: bytes) -> list[bytes]:
    """Split at newlines alone."""
    lines = data.split(b"\n")
    whole = [line + b"\n" for line in lines[:-1]]
    return [*whole, lines[-1]] if lines[-1] else whole


def line_number(file: File, offset: int, encoding: str) -> int:
    """Return the number of the line that begins at an offset, counting from 1."""
    number, left = 1, offset
    with closing(open_stream(file, encoding)) as stream:
        while left > 0 and (data := bytes(stream.read(min(left, 1 << 20)))):
            number += data.count(b"\n")
            left -= len(data)
    return number
