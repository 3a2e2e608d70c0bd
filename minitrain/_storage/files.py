"""Files that are either the old ones or the new ones, whenever the power goes."""

from __future__ import annotations

import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

__all__ = ["read_json", "rename_new", "sync_directory", "write_bytes", "write_json"]


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically and durably."""
    write_bytes(path, json.dumps(value, indent=1).encode() + b"\n")


def rename_new(source: Path, target: Path) -> None:
    """Give a directory a name that nothing has, durably.

    Raises:
        FileExistsError: Something has it.
    """
    try:
        source.rename(target)  # replaces an empty directory, and nothing else
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(target) from error
        raise
    sync_directory(target.parent)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_bytes())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
