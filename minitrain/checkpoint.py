"""A reference to a directory of files that a training can start from."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
import tempfile
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from minitrain import _manifest
from minitrain._os.shared_copies import shared_copy
from minitrain.exceptions import CheckpointCorruptError, CheckpointError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow.fs import FileSystem

    from minitrain._manifest import Manifest

__all__ = ["Checkpoint", "use_shared_folder"]

_shared_folder: Path | None = None
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


def use_shared_folder(path: str | os.PathLike[str] | None) -> None:
    """Say where this process keeps the copies that :meth:`Checkpoint.as_directory` makes.

    Processes share copies only if they use the same folder: by default the temporary one, or
    again that one after None.
    """
    global _shared_folder  # noqa: PLW0603 - one per process, as tempfile.tempdir
    _shared_folder = None if path is None else Path(path)


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
        filesystem: Where ``path`` lies, if not where it says itself: a ``pyarrow.fs`` filesystem
            or an ``fsspec`` one.

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

    def __init__(
        self,
        path: str | os.PathLike[str],
        filesystem: FileSystem | AbstractFileSystem | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"Checkpoint(path={path!r}): must be a path, not {type(path).__name__}")
        name = os.fspath(path)
        if not name:
            raise ValueError("Checkpoint(path=''): must name a directory")
        self._filesystem: FileSystem | None = _as_pyarrow(filesystem)
        if not self.is_local:
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
        """Copy the files to a local directory of the caller's own and return its path.

        Where the checkpoint has a manifest, as every one that was reported has, the copy is
        compared with it.

        Args:
            path: The directory, made if it is missing; files of the same name are replaced, each
                in one step, so that several processes may copy to the same place. By default one
                in the temporary folder that belongs to the caller.

        Raises:
            FileNotFoundError: The checkpoint's directory does not exist.
            CheckpointCorruptError: A file is not as it was written.
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
        from pyarrow.fs import LocalFileSystem, copy_files

        here = LocalFileSystem()
        manifest = self._manifest()
        if self.is_local:
            shutil.copytree(self.path, target, dirs_exist_ok=True, copy_function=_copy_in_one_step)
        else:
            for name in _manifest.list_files(self.filesystem, self.path):
                (target / name).parent.mkdir(parents=True, exist_ok=True)  # GCS lists only files
            copy_files(
                self.path,
                str(target),
                source_filesystem=self.filesystem,
                destination_filesystem=here,
            )
        if manifest is not None:
            copied = _manifest.find_problems(manifest, here, str(target), contents=True)
            self._raise_if(copied)

    def _manifest(self) -> Manifest | None:
        try:
            return _manifest.read(self.filesystem, self.path)
        except ValueError as error:
            raise CheckpointCorruptError(
                f"{self!r} is damaged: {_manifest.MANIFEST}: {error}"
            ) from error

    def _raise_if(self, problems: list[str]) -> None:
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise CheckpointCorruptError(f"{self!r} is damaged:{lines}")

    @contextmanager
    def as_directory(self) -> Generator[str]:
        """Give the files as a local directory for as long as the ``with`` block lasts.

        The directory is not to be written to: others use it as well. A local checkpoint is given
        as it lies there. Another one is copied to a temporary folder, once for all processes of
        this machine that want it at the same time; the last of them removes the copy. It is
        compared with its manifest as by :meth:`to_directory`.

        Raises:
            FileNotFoundError: The checkpoint's directory does not exist.
            CheckpointCorruptError: A file is not as it was written.
        """
        if self.is_local:
            self._check_exists()
            yield self.path
            return
        folder = (_shared_folder or Path(tempfile.gettempdir())) / self._name_of_copy()
        with shared_copy(folder, self._download):
            yield str(folder)

    def _name_of_copy(self) -> str:
        """Return the same name in every process that means the same files."""
        kind = self.filesystem.type_name
        try:
            identity = pickle.dumps((kind, self.filesystem, self.path.rstrip("/"), os.geteuid()))
        except Exception:  # noqa: BLE001 - a user's filesystem that stays here is shared with none
            identity = uuid.uuid4().bytes
        if kind.endswith("memory"):  # called the same in every process, but not the same
            identity += str(os.getpid()).encode()
        return f"minitrain-checkpoint-{hashlib.sha256(identity).hexdigest()[:24]}"

    def _download(self, target: Path) -> None:
        self._check_exists()
        self._copy(target)

    def verify(self, contents: bool = True) -> None:  # noqa: FBT001, FBT002 - reads as a sentence
        """Compare every file with what was written when the checkpoint was reported.

        Metadata is left out, which may be changed at any time, and so are files that were added.

        Args:
            contents: Whether to read all files for their checksums; otherwise only their sizes
                are compared, which takes one look at the directory.

        Raises:
            CheckpointCorruptError: Files are missing or not as they were written; all are named.
            CheckpointError: Nobody can tell: it was never reported, or never written completely.
            FileNotFoundError: The checkpoint's directory does not exist.
        """
        self._check_exists()
        manifest = self._manifest()
        if manifest is None:
            raise CheckpointError(
                f"{self!r} has no {_manifest.MANIFEST} to compare it with: it was never reported, "
                "or its writing never ended"
            )
        self._raise_if(
            _manifest.find_problems(manifest, self.filesystem, self.path, contents=contents)
        )

    def wait(self) -> None:
        """Wait until its files are written; does nothing for one that is a plain directory."""

    def get_metadata(self) -> dict[str, Any]:
        """Return the metadata stored with the checkpoint; empty if there is none."""
        path = f"{self.path.rstrip('/')}/{_manifest.METADATA}"
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
        path = f"{self.path.rstrip('/')}/{_manifest.METADATA}"
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


def _as_pyarrow(filesystem: FileSystem | AbstractFileSystem | None) -> FileSystem | None:
    fsspec = sys.modules.get("fsspec")  # who has one of its filesystems has imported it
    if fsspec is None or not isinstance(filesystem, fsspec.AbstractFileSystem):
        return filesystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(filesystem))


def _copy_in_one_step(source: str, target: str) -> None:
    temporary = f"{target}.{uuid.uuid4().hex[:8]}"
    shutil.copy2(source, temporary)
    Path(temporary).replace(target)
