"""Folders that datasets are written to: a write's files appear together, when all are complete."""

from __future__ import annotations

import contextlib
import re
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType

from minitrain.data.files.paths import PathLike, resolved_path
from minitrain.exceptions import ConfigurationError, DataPathError

__all__ = ["OutputFolder", "SaveMode"]

_OBJECT_STORES = re.compile(r"\b(s3a?|gcs|gs|abfss?|adlf?s?|az|oss|https?|hf)\b")


class SaveMode(StrEnum):
    """What becomes of files that are there before a dataset is written."""

    APPEND = "append"
    """They stay, and are read before the new ones."""
    OVERWRITE = "overwrite"
    """They are deleted when the new ones are complete."""
    ERROR = "error"
    """The write is refused."""
    IGNORE = "ignore"
    """Nothing is written."""


class OutputFolder:
    """Where the files of one write go.

    Each is written under a name that readers leave out, and gets its own when all are complete.
    Storages of objects have no names to change: a file appears there when it is complete, and is
    deleted again when the write fails.

    Args:
        path: The folder: a path or a URI.
        filesystem: Where it is, if it is no URI: pyarrow's or fsspec's.
        mode: What becomes of files that are there.
        create: Whether to make folders that are not there.

    Raises:
        ConfigurationError: There is a file at the path, or there are files in it and the mode is
            ``"error"``.
    """

    def __init__(self, path: PathLike, filesystem: Any, mode: str, *, create: bool) -> None:
        self._filesystem, self._path = resolved_path(path, filesystem)
        self._mode = _mode(mode)
        self._create = create
        kind = self._filesystem.type_name
        self._is_store = bool(_OBJECT_STORES.search(kind))
        # Names sort in the order of rows, and those of a later write behind those of this one.
        self._prefix = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}"
        self._number = 0
        self._written: list[tuple[str, str]] = []
        self._before = self._files()
        if self._before and self._mode is SaveMode.ERROR:
            raise ConfigurationError(
                f"{path}: there are files already; write to another folder, or with "
                "mode='append', 'overwrite' or 'ignore'"
            )

    @property
    def is_left_alone(self) -> bool:
        """Whether nothing is written since there are files."""
        return bool(self._before) and self._mode is SaveMode.IGNORE

    def open(self, extension: str, subfolder: str = "") -> Any:
        """Return a stream to another file."""
        folder = f"{self._path}/{subfolder}" if subfolder else self._path
        if not self._number or subfolder:
            self._make(folder)
        name = f"{self._prefix}_{self._number:06}.{extension}"
        self._number += 1
        path = f"{folder}/{name}"
        partial = path if self._is_store else f"{folder}/.{name}.partial"
        self._written.append((partial, path))
        try:
            return self._filesystem.open_output_stream(partial)
        except FileNotFoundError as error:
            raise DataPathError(f"{folder}: there is no such folder to write to") from error

    def finish(self) -> None:
        """Let all files appear."""
        if self._mode is SaveMode.OVERWRITE:
            for path in self._before:
                self._filesystem.delete_file(path)
        for partial, path in self._written:
            if partial != path:
                self._filesystem.move(partial, path)
        self._written.clear()

    def give_up(self) -> None:
        """Delete what was written."""
        for partial, _ in self._written:
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(partial)
        self._written.clear()

    def _make(self, folder: str) -> None:
        if self._create and not self._is_store:
            self._filesystem.create_dir(folder, recursive=True)

    def _files(self) -> list[str]:
        return _files_in(self._filesystem, self._path)


def _mode(mode: str) -> SaveMode:
    try:
        return SaveMode(mode)
    except ValueError:
        names = [str(one) for one in SaveMode]
        raise ConfigurationError(f"mode={mode!r}: must be one of {names}") from None


def _files_in(filesystem: FileSystem, path: str) -> list[str]:
    if filesystem.get_file_info(path).type == FileType.File:
        raise ConfigurationError(f"{path}: is a file; a dataset is written to a folder")
    found = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return [info.path for info in found if info.type == FileType.File]
