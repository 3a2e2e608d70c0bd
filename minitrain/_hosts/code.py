"""The user's code, as one archive: what git tracks, or would if it were asked."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from minitrain.exceptions import ConfigurationError

__all__ = ["pack", "unpack"]

_MAX_BYTES = 500 << 20
_NUM_NAMED = 5


def pack(folder: str | Path) -> bytes:
    """Return the files of a folder as a compressed archive; equal files give equal bytes.

    What git ignores stays here, whether the folder is a repository or not; without git, hidden
    folders, bytecode and virtual environments do. A link is kept if it leads to something inside.

    Raises:
        ConfigurationError: They are too many bytes to be code.
    """
    root = Path(folder).resolve()
    paths = sorted(path for path in _files(root) if _is_kept(root, path))
    _check_size(root, paths)
    compressed = io.BytesIO()
    # The level of "as fast as possible": most of it goes over a fast network, once.
    with (
        gzip.GzipFile(fileobj=compressed, mode="wb", compresslevel=1, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for path in paths:
            _add(archive, root, path)
    return compressed.getvalue()


def unpack(data: bytes, folder: str | Path) -> None:
    """Write the files of an archive into a folder, and nowhere else."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")


def _files(root: Path) -> Iterator[Path]:
    # What a repository has to say of a folder that it ignores as a whole is nothing.
    listed = _git(root, "ls-files", "-coz", "--exclude-standard") or _listed_as_if_repository(root)
    if listed is None:
        yield from _walk(root)
        return
    for name in set(listed.split(b"\0")) - {b""}:
        path = root / os.fsdecode(name)
        if path.is_dir() and not path.is_symlink():  # a repository of its own
            yield from _files(path)
        else:
            yield path


def _listed_as_if_repository(root: Path) -> bytes | None:
    with tempfile.TemporaryDirectory(prefix="minitrain-") as elsewhere:
        environ = {"GIT_DIR": elsewhere, "GIT_WORK_TREE": str(root)}
        if _git(root, "init", "-q", environ=environ) is None:
            return None
        return _git(root, "ls-files", "-oz", "--exclude-standard", environ=environ)


def _git(root: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> bytes | None:
    """Return what git says; None if it fails or is not there."""
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
    # The variables that a hook of git's sets are about another folder.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(
            command, capture_output=True, check=True, env={**clean, **(environ or {})}
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout


def _walk(root: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _is_left_out(Path(where, name))]
        links = (name for name in folders if Path(where, name).is_symlink())
        yield from (Path(where, name) for name in [*links, *names] if not name.endswith(".pyc"))


def _is_left_out(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name == "__pycache__"
    return hidden or (folder / "pyvenv.cfg").exists()


def _is_kept(root: Path, path: Path) -> bool:
    """Return whether a path is a file, or a link to what goes along."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # git still lists what was deleted
        return False
    if stat.S_ISLNK(mode):
        return not path.readlink().is_absolute() and path.resolve().is_relative_to(root)
    return stat.S_ISREG(mode)


def _check_size(root: Path, paths: list[Path]) -> None:
    sizes = {path: path.lstat().st_size for path in paths}
    total_bytes = sum(sizes.values())
    if total_bytes <= _MAX_BYTES:
        return
    largest = sorted(paths, key=lambda path: -sizes[path])[:_NUM_NAMED]
    named = ", ".join(f"{path.relative_to(root)} ({sizes[path] >> 20:,} MB)" for path in largest)
    raise ConfigurationError(
        f"sync_code: {root} holds {total_bytes >> 20:,} MB, more than {_MAX_BYTES >> 20} MB of "
        f"code: {named}. Name what is no code in a .gitignore, or start in another folder"
    )


def _add(archive: tarfile.TarFile, root: Path, path: Path) -> None:
    info = archive.gettarinfo(path, arcname=str(path.relative_to(root)))
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    if not info.isreg():
        archive.addfile(info)
        return
    with path.open("rb") as file:
        archive.addfile(info, file)
