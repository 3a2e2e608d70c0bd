"""Folders that the processes of this machine share: the first one fills it, the last removes it.

Two locks of the kind ``flock``, which the kernel takes away when their process ends, however it
ends, so that nobody waits for the dead:

* on a file beside the folder, exclusive: who comes or leaves, and who fills or removes the folder;
* on the folder itself, shared: who uses it. Who leaves and can make it exclusive was the last.

Nobody ever waits for users: a folder may be in use for as long as a training lasts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["shared_copy"]


@contextmanager
def shared_copy(folder: Path, fill: Callable[[Path], None]) -> Generator[None]:
    """Have a folder for as long as the ``with`` block lasts.

    Args:
        folder: The folder; under this name it is never seen half filled.
        fill: Called with another name if the folder is not there; what an earlier process left
            there when it was killed is removed before.

    Raises:
        PermissionError: The lock or the folder belongs to another user.
    """
    users = _enter(folder, fill)
    try:
        yield
    finally:
        _leave(users, folder)


def _enter(folder: Path, fill: Callable[[Path], None]) -> int:
    with _at_the_door(folder):
        if not folder.exists():
            _fill(folder, fill)
        users = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_owner(users, folder)
            fcntl.flock(users, fcntl.LOCK_SH)
        except BaseException:
            os.close(users)
            raise
        return users


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    half_filled = _half_filled(folder)
    shutil.rmtree(half_filled, ignore_errors=True)
    try:
        half_filled.mkdir(mode=0o700)
        fill(half_filled)
        half_filled.rename(folder)
    except BaseException:
        shutil.rmtree(half_filled, ignore_errors=True)
        _lock_path(folder).unlink(missing_ok=True)
        raise


def _leave(users: int, folder: Path) -> None:
    try:
        with _at_the_door(folder):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.rename(_half_filled(folder))  # if we are killed now, nobody uses half of it
            shutil.rmtree(_half_filled(folder), ignore_errors=True)
            _lock_path(folder).unlink(missing_ok=True)
    except BlockingIOError:
        pass  # others use it, and the last of them removes it
    except FileNotFoundError:
        pass  # somebody has cleaned up the folder that it lay in
    finally:
        fcntl.flock(users, fcntl.LOCK_UN)  # also for copies of the descriptor that forks have
        os.close(users)


@contextmanager
def _at_the_door(folder: Path) -> Generator[None]:
    """Be the only one who comes or leaves; others who want to wait meanwhile."""
    while True:
        descriptor = os.open(
            _lock_path(folder), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            _check_owner(descriptor, _lock_path(folder))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_current(descriptor, folder):
                yield
                return
            # The last user has removed the file that we waited for: others lock a new one.
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _check_owner(descriptor: int, path: Path) -> None:
    if os.fstat(descriptor).st_uid != os.geteuid():
        raise PermissionError(f"{path}: belongs to another user; remove it")


def _is_current(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), _lock_path(folder).lstat())
    except FileNotFoundError:
        return False


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _half_filled(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")
