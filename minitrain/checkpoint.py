"""A reference to a directory of files that a training can start from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["Checkpoint"]

_METADATA = ".metadata.json"
_REMOVED = {
    "from_dict": "write files to a directory and use Checkpoint.from_directory()",
    "to_dict": "read the files below Checkpoint.as_directory()",
    "from_bytes": "write files to a directory and use Checkpoint.from_directory()",
    "to_bytes": "read the files below Checkpoint.as_directory()",
    "from_uri": "use Checkpoint(uri)",
    "to_uri": "pass the checkpoint to minitrain.report()",
    "uri": "use Checkpoint.path and Checkpoint.filesystem",
    "get_preprocessor": "keep it in Checkpoint.set_metadata()",
    "set_preprocessor": "keep it in Checkpoint.set_metadata()",
}


def _refuse(kind: str, name: str) -> NoReturn:
    if name in _REMOVED:
        raise AttributeError(f"Checkpoint.{name} was removed from ray.train: {_REMOVED[name]}")
    raise AttributeError(f"{kind} has no attribute {name!r}")


class _SaysWhatWasRemoved(type):
    """Says also of class methods, ``Checkpoint.from_dict``, what to use instead."""

    def __getattr__(cls, name: str) -> NoReturn:
        _refuse(f"type object {cls.__name__!r}", name)


class Checkpoint(metaclass=_SaysWhatWasRemoved):
    """A directory with files that a training can start from, on any ``pyarrow.fs`` filesystem.

    It is only a reference: nothing is read or checked before somebody asks for the files. Two
    checkpoints are equal if they refer to the same directory.

    Args:
        path: A local path, which is made absolute, or a URI such as ``s3://bucket/run``.
        filesystem: Where ``path`` lies, if not where it says itself.

    Raises:
        ValueError: The path is empty.
        TypeError: The path is neither a string nor a path.

    Example:
        >>> import pathlib, tempfile
        >>> from minitrain import Checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "weights.txt").write_text("1 2 3")
        ...     checkpoint = Checkpoint.from_directory(folder)
        ...     with checkpoint.as_directory() as path:
        ...         print(pathlib.Path(path, "weights.txt").read_text())
        1 2 3
    """

    def __init__(self, path: str | os.PathLike[str], filesystem: FileSystem | None = None) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"Checkpoint(path={path!r}): must be a path, not {type(path).__name__}")
        name = os.fspath(path)
        if not name:
            raise ValueError("Checkpoint(path=''): must name a directory")
        self._filesystem: FileSystem | None = filesystem
        if filesystem is not None and filesystem.type_name != "local":
            self.path = name
        elif filesystem is None and "://" in name:
            from pyarrow.fs import FileSystem as AnyFileSystem

            self._filesystem, self.path = AnyFileSystem.from_uri(name)
        else:
            self.path = os.path.abspath(Path(name).expanduser())  # noqa: PTH100 - keeps symlinks

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Self:
        """Return a checkpoint of a local directory; nothing is read yet."""
        return cls(path)

    @property
    def filesystem(self) -> FileSystem:
        """The ``pyarrow.fs`` filesystem that holds the files."""
        if self._filesystem is None:
            from pyarrow.fs import LocalFileSystem

            self._filesystem = LocalFileSystem()
        return self._filesystem

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine's own filesystem."""
        return self._filesystem is None or self._filesystem.type_name == "local"

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Copy the files to a local directory and return its path.

        Args:
            path: The directory, made if it is missing; files of the same name are replaced, each
                in one step, so that several processes may copy to the same place. By default one
                in the temporary folder that belongs to the caller.

        Raises:
            FileNotFoundError: The checkpoint's directory does not exist.
        """
        self._check_exists()
        if path is None:
            target = Path(tempfile.gettempdir(), f"checkpoint_tmp_{uuid.uuid4().hex}")
        else:
            target = Path(path).expanduser()
        target.mkdir(parents=True, exist_ok=True)
        try:
            self._copy(target)
        except BaseException:
            if path is None:
                shutil.rmtree(target, ignore_errors=True)
            raise
        return str(target)

    def _identity(self) -> str:
        return f"{'local' if self.is_local else self.filesystem.type_name}:{self.path}"

    def _check_exists(self) -> None:
        if self.is_local:
            found = Path(self.path).is_dir()
        else:
            from pyarrow.fs import FileType

            found = self.filesystem.get_file_info(self.path).type == FileType.Directory
        if not found:
            raise FileNotFoundError(f"{self!r}: the directory does not exist")

    def _copy(self, target: Path) -> None:
        if self.is_local:
            shutil.copytree(self.path, target, dirs_exist_ok=True, copy_function=_copy_in_one_step)
            return
        from pyarrow.fs import LocalFileSystem, copy_files

        copy_files(
            self.path,
            str(target),
            source_filesystem=self.filesystem,
            destination_filesystem=LocalFileSystem(),
        )

    @contextmanager
    def as_directory(self) -> Generator[str]:
        """Give the files as a local directory for as long as the ``with`` block lasts.

        A local checkpoint is given as it lies there, not copied: do not write to it. Another one
        is copied to a temporary folder that is removed afterwards.

        Raises:
            FileNotFoundError: The checkpoint's directory does not exist.
        """
        if self.is_local:
            self._check_exists()
            yield self.path
            return
        copy = self.to_directory()
        try:
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def get_metadata(self) -> dict[str, Any]:
        """Return the metadata stored with the checkpoint; empty if there is none."""
        path = f"{self.path.rstrip('/')}/{_METADATA}"
        try:
            if self.is_local:
                data = Path(path).read_bytes()
            else:
                with self.filesystem.open_input_stream(path) as stream:
                    data = stream.read()
        except FileNotFoundError:
            return {}
        metadata: dict[str, Any] = json.loads(data)
        return metadata

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata.

        Raises:
            TypeError: Something in it is not JSON.
        """
        data = json.dumps(dict(metadata)).encode()
        path = f"{self.path.rstrip('/')}/{_METADATA}"
        if not self.is_local:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}")
        temporary.write_bytes(data)
        temporary.replace(path)

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Add to the metadata; keys that are there already get the new values."""
        self.set_metadata({**self.get_metadata(), **metadata})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Checkpoint):
            return NotImplemented
        if self.is_local or other.is_local:
            return self._identity() == other._identity()
        return self.path == other.path and bool(self.filesystem == other.filesystem)

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        name = "local" if self.is_local else self.filesystem.type_name
        return f"{type(self).__name__}(filesystem={name}, path={self.path})"

    def __fspath__(self) -> NoReturn:
        raise TypeError(
            "a Checkpoint is not a path: use `with checkpoint.as_directory() as path:` or "
            "checkpoint.to_directory()"
        )

    def __getattr__(self, name: str) -> NoReturn:
        _refuse(f"{type(self).__name__!r} object", name)


def _copy_in_one_step(source: str, target: str) -> None:
    temporary = f"{target}.{uuid.uuid4().hex[:8]}"
    shutil.copy2(source, temporary)
    Path(temporary).replace(target)
