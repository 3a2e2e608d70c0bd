"""Files that are a row each: their bytes, or the image in them. A block is several of them."""

from __future__ import annotations

import io
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from minitrain.data.context import DataContext
from minitrain.data.files.paths import File
from minitrain.data.files.source import FileSource, Once, OnError, Skips, ahead, is_corruption
from minitrain.data.plans.block import Block
from minitrain.data.plans.tables import sliced
from minitrain.data.values.types import RaggedTensorType, ragged_tensor_array, tensor_array
from minitrain.exceptions import ConfigurationError, DataError, DataFileError, SchemaMismatchError

__all__ = [
    "BytesFormat",
    "FilesBlock",
    "FilesSource",
    "ImageFormat",
    "WholeFileFormat",
    "check_mode",
]

_FILES_PER_TABLE = 64
_FILES_PER_BLOCK = 256
_READ_AT_A_TIME_REMOTE = 8
_IMAGES_LOOKED_AT = 16


class WholeFileFormat(ABC):
    """What a file is as a value.

    Attributes:
        column: What the column is called.
        ratio: About how much larger it is in memory than as a file.
    """

    column: str
    ratio: int

    @abstractmethod
    def type_of(self, files: Sequence[File]) -> pa.DataType:
        """Return Arrow's type for the values of these files."""

    @abstractmethod
    def load(self, file: File) -> Any:
        """Return the value of a file.

        Raises:
            OSError, ValueError: It is not what it should be.
        """

    @abstractmethod
    def array(self, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        """Return values as a column."""

    def mismatch(self, value: Any, kind: pa.DataType) -> str:
        """Say why a value does not fit a type; nothing if it does."""
        del value, kind
        return ""


@dataclass(frozen=True)
class BytesFormat(WholeFileFormat):
    """The bytes of a file as they are."""

    column: str = "bytes"
    ratio: int = 1

    def type_of(self, files: Sequence[File]) -> pa.DataType:
        """Return the type of bytes."""
        del files
        return pa.binary()

    def load(self, file: File) -> bytes:
        """Read the file."""
        with file.filesystem.open_input_file(file.path) as stream:
            return bytes(stream.read())

    def array(self, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        """Return a column of bytes, which are copied once; ``pa.array`` would copy them often."""
        offsets = np.zeros(len(values) + 1, np.int64)
        np.cumsum([len(value) for value in values], out=offsets[1:])
        if kind != pa.binary() or offsets[-1] > np.iinfo(np.int32).max:
            return pa.array(values, kind)
        buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(values))]
        return pa.Array.from_buffers(kind, len(values), buffers)


@dataclass(frozen=True)
class ImageFormat(WholeFileFormat):
    """The pixels of an image: height, width and, unless it is grey, channels.

    Attributes:
        size: The height and width that all images get; None: their own.
        mode: What Pillow calls the kind of pixels that all get, such as RGB; None: their own.
    """

    size: tuple[int, int] | None = None
    mode: str | None = None
    column: str = "image"
    ratio: int = 8

    def type_of(self, files: Sequence[File]) -> pa.DataType:
        """Look at the first images: if they have the same shape, all must have it."""
        found = [self._shape(file) for file in files[:_IMAGES_LOOKED_AT]]
        shapes = {shape for shape in found if shape is not None}
        if not shapes:
            return RaggedTensorType(pa.uint8())
        kinds = {np.dtype(dtype) for _, dtype in shapes}
        values = pa.from_numpy_dtype(np.result_type(*kinds))
        if len(shapes) > 1:
            return RaggedTensorType(values)
        ((shape, _),) = shapes
        return pa.fixed_shape_tensor(values, shape)

    def load(self, file: File) -> np.ndarray:
        """Decode the image."""
        with file.filesystem.open_input_file(file.path) as stream:
            image: Any = _pillow().open(io.BytesIO(stream.read()))
        with image:
            if self.size is not None and image.size != self.size[::-1]:
                image = image.resize(self.size[::-1], resample=_pillow().Resampling.BILINEAR)
            if self.mode is not None and image.mode != self.mode:
                image = image.convert(self.mode)
            return np.asarray(image)

    def array(self, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        """Return a column of tensors."""
        if isinstance(kind, RaggedTensorType):
            dtype = kind.value_type.to_pandas_dtype()
            flat = [np.asarray(value, dtype).reshape(-1) for value in values]
            return ragged_tensor_array(values, pa.array(np.concatenate(flat), kind.value_type))
        stacked = np.stack(
            [np.asarray(value, kind.value_type.to_pandas_dtype()) for value in values]
        )
        return tensor_array(pa.array(stacked.reshape(-1), kind.value_type), stacked.shape)

    def mismatch(self, value: np.ndarray, kind: pa.DataType) -> str:
        """Compare an image with the first ones."""
        mine = pa.from_numpy_dtype(value.dtype).to_pandas_dtype()
        other = kind.value_type.to_pandas_dtype()
        shape = None if isinstance(kind, RaggedTensorType) else tuple(kind.shape)
        if shape in {None, value.shape} and np.can_cast(mine, other):
            return ""
        first = f"{np.dtype(other)}" + ("" if shape is None else f" of shape {shape}")
        return (
            f"it is {value.dtype} of shape {value.shape}, and the first images are {first}; "
            'size=(height, width) and mode="RGB" make all of them alike'
        )

    def _shape(self, file: File) -> tuple[tuple[int, ...], str] | None:
        """Return what an image will be, from its header."""
        try:
            with file.filesystem.open_input_file(file.path) as stream:
                image: Any = _pillow().open(stream)
                with image:
                    width, height = image.size
                    mode = image.mode
        except (OSError, ValueError, SyntaxError) as error:
            if not is_corruption(error):
                raise
            return None
        height, width = self.size or (height, width)
        pixel = np.asarray(_pillow().new(self.mode or mode, (1, 1)))
        return (height, width, *pixel.shape[2:]), str(pixel.dtype)


def check_mode(mode: str | None) -> str | None:
    """Return a mode that Pillow has; refuse anything else."""
    if mode is not None:
        try:
            _pillow().new(mode, (1, 1))
        except (TypeError, ValueError, KeyError):
            modes = _pillow().MODES
            raise ConfigurationError(f"mode={mode!r}: must be one of {modes}") from None
    return mode


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigurationError("read_images() needs Pillow: pip install pillow") from error
    return Image


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """What the blocks of a source have in common."""

    format: WholeFileFormat
    type: pa.DataType
    schema: pa.Schema
    on_error: OnError
    skips: Skips

    @property
    def needs_files(self) -> bool:
        """Whether more is wanted than what paths say."""
        return self.on_error == "skip" or self.format.column in self.schema.names


@dataclass(frozen=True, slots=True, eq=False)
class FilesBlock(Block):
    """Some files, each of which is a row.

    Attributes:
        files: The files, with what the columns are that their paths stand for.
    """

    files: tuple[tuple[File, Mapping[str, Any]], ...]
    reading: _Reading

    @property
    def name(self) -> str:  # type: ignore[override]
        """The first and the last file."""
        first, last = self.files[0][0], self.files[-1][0]
        return str(first) if first is last else f"{first} to {last}"

    @property
    def rows(self) -> int | None:  # type: ignore[override]
        """One for each file, unless bad ones are skipped."""
        return len(self.files) if self.reading.on_error == "raise" else None

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        """About what the files are in memory."""
        return sum(file.size_bytes for file, _ in self.files) * self.reading.format.ratio

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield rows; files before ``start`` are not opened, unless they may be bad."""
        if self.reading.on_error == "raise":
            yield from self._tables(self.files[start:stop])
        else:
            yield from sliced(self._tables(self.files), start, stop)

    def cut(self, start: int, stop: int | None, rows: int | None) -> Iterator[Block] | None:
        """Cut them into fewer files each; where bad ones are skipped they are read here."""
        if self.reading.on_error != "raise":
            return None
        return self._cut(self.files[start:stop], rows)

    def _cut(
        self, files: Sequence[tuple[File, Mapping[str, Any]]], rows: int | None
    ) -> Iterator[Block]:
        target = DataContext.get_current().target_table_bytes
        first = size = 0
        for index, (file, _) in enumerate(files):
            size += file.size_bytes * self.reading.format.ratio
            number = index + 1 - first
            is_full = number == _FILES_PER_TABLE or size >= target
            if index + 1 == len(files) or (is_full if rows is None else number == rows):
                yield replace(self, files=tuple(files[first : index + 1]))
                first, size = index + 1, 0

    def _tables(self, files: Sequence[tuple[File, Mapping[str, Any]]]) -> Iterator[pa.Table]:
        target = DataContext.get_current().target_table_bytes
        loaded: list[tuple[Any, Mapping[str, Any]]] = []
        size = 0
        for value, constants in self._loaded(files):
            loaded.append((value, constants))
            size += value.nbytes if isinstance(value, np.ndarray) else len(value)
            if len(loaded) == _FILES_PER_TABLE or size >= target:
                yield self._table(loaded)
                loaded, size = [], 0
        if loaded:
            yield self._table(loaded)

    def _loaded(
        self, files: Sequence[tuple[File, Mapping[str, Any]]]
    ) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        if not self.reading.needs_files:
            yield from ((b"", constants) for _, constants in files)
            return
        several = len(files) > 1 and not files[0][0].is_local
        only = [file for file, _ in files]
        values = (
            ahead(self._load, only, _READ_AT_A_TIME_REMOTE) if several else map(self._load, only)
        )
        for value, (_, constants) in zip(values, files, strict=True):
            if value is not None:
                yield value, constants

    def _load(self, file: File) -> Any:
        reading = self.reading
        try:
            value = _loaded(reading.format, file)
            problem = reading.format.mismatch(value, reading.type)
            if problem:
                raise SchemaMismatchError(f"{file}: {problem}")
        except (DataFileError, SchemaMismatchError) as error:
            if reading.on_error == "raise":
                raise
            reading.skips.note(file.path, DataFileError(str(error)))
            return None
        return value

    def _table(self, loaded: Sequence[tuple[Any, Mapping[str, Any]]]) -> pa.Table:
        reading = self.reading
        arrays = []
        for one in reading.schema:
            if one.name == reading.format.column:
                array = reading.format.array([value for value, _ in loaded], reading.type)
            else:
                array = pa.array([constants[one.name] for _, constants in loaded], one.type)
            arrays.append(array)
        if not arrays:
            return pa.table({"": pa.nulls(len(loaded))}).select([])
        return pa.Table.from_arrays(arrays, schema=reading.schema)


def _loaded(format_: WholeFileFormat, file: File) -> Any:
    try:
        return format_.load(file)
    except FileNotFoundError as error:
        raise DataFileError(f"{file}: is no longer there") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, DataError) or not is_corruption(error):
            raise
        reason = re.sub(r" <_io\.\S+ object at \w+>", "", str(error).partition("\n")[0])
        raise DataFileError(
            f'{file}: cannot be decoded: {reason}. on_error="skip" leaves such files out'
        ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class FilesSource(FileSource):
    """Reads files that are a row each."""

    format: WholeFileFormat
    _type: Once[pa.DataType] = field(default_factory=Once, repr=False)

    def schema(self) -> pa.Schema:
        """Return the columns, from the first files."""
        own = pa.field(self.format.column, self._type.get(self._find_type))
        return self.selected(pa.schema([own, *self.where.constants(but=[own.name])]))

    def blocks(self) -> Iterator[Block]:
        """List the blocks; files are not opened for that."""
        reading = _Reading(
            format=self.format,
            type=self._type.get(self._find_type),
            schema=self.schema(),
            on_error=self.on_error,
            skips=self.skips,
        )
        group: list[tuple[File, Mapping[str, Any]]] = []
        size, most, target = 0, *self._limits()
        for file in self.where.files():
            if group and (len(group) == most or size >= target):
                yield FilesBlock(tuple(group), reading)
                group, size = [], 0
            group.append((file, self.where.values(file)))
            size += file.size_bytes * self.format.ratio
        yield FilesBlock(tuple(group), reading)

    def _limits(self) -> tuple[int, float]:
        """Return how many files, and about how many bytes, make up a block."""
        if self.override_num_blocks is not None:
            return -(-len(self.where.files()) // self.override_num_blocks), math.inf
        return _FILES_PER_BLOCK, DataContext.get_current().target_block_bytes

    def _find_type(self) -> pa.DataType:
        return self.format.type_of(self.where.files())
