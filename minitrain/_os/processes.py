"""Ends processes for certain: with their parent, with their group, with everything they started.

Linux only. Three nets, each for what slips through the one before:

* the kernel kills a worker the moment its parent dies (``PR_SET_PDEATHSIG``);
* a worker leads a process group, and the group is killed when the worker is gone;
* every descendant of an agent carries the agent's mark in its environment, also after it left
  the group, and is found by it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

__all__ = [
    "MARK_VARIABLE",
    "adopt_orphans",
    "agent_folder",
    "allow_open_files",
    "began_at",
    "die_with_parent",
    "is_alive",
    "kill_marked",
    "let_forked_children_die_too",
    "make_private_folder",
    "reap_orphans",
    "remove_shared_memory",
    "remove_traces",
    "signal_group",
]

MARK_VARIABLE = "MINITRAIN_AGENT"
"""Holds the marks of the agents that a process descends from, outermost first."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_REAP_PERIOD_S = 0.002
_OWNER = ".owner"
_MAX_SWEEPS = 20


def allow_open_files(more: int) -> None:
    """Let this process open this many more files, as far as it may.

    The usual limit of 1,024 is there for programs that use ``select``; what is meant for others is
    the hard one.

    Args:
        more: How many, besides those that are open now.
    """
    wanted = len(os.listdir("/proc/self/fd")) + more  # noqa: PTH208 - their number only
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def die_with_parent(parent_pid: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent dies, or now if it is dead already.

    Args:
        parent_pid: The parent as it was known before the fork.
        signum: The signal.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)


def let_forked_children_die_too() -> None:
    """Have every child that this process forks from its main thread die with it.

    A data loader's processes look for a lost parent only every few seconds, and other children
    never do. Children forked from other threads are left alone: the kernel's "parent" is a
    thread, and they would be killed when that thread ends. The main thread ends last.
    """
    forking = 0  # this process while its main thread forks

    def before() -> None:
        nonlocal forking
        in_main = threading.current_thread() is threading.main_thread()
        forking = os.getpid() if in_main else 0

    def in_child() -> None:
        if forking:
            die_with_parent(forking)

    os.register_at_fork(before=before, after_in_child=in_child)


def signal_group(pid: int, signum: signal.Signals) -> None:
    """Signal the process group that ``pid`` leads; nothing happens if it is gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie, dead but not yet reaped, does not."""
    return began_at(pid) is not None


def began_at(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine did; None if it is gone.

    A number that was given to another process since then has another beginning.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])


def kill_marked(mark: str, *, spare: Collection[int] = ()) -> list[int]:
    """Kill every process that carries ``mark`` in its environment, and return their ids.

    Args:
        mark: The mark of an agent.
        spare: Process ids to leave alone; the caller always is.
    """
    spared = {os.getpid(), *spare}
    killed: dict[int, None] = {}
    for _ in range(_MAX_SWEEPS):  # one of them may fork while we look
        found = [pid for pid in _marked(mark) if pid not in spared]
        if not found:
            break
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed.update(dict.fromkeys(found))  # one that dies slowly is found again
    return list(killed)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that :func:`reap_orphans` can."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reap_orphans(timeout_s: float) -> list[int]:
    """Wait until this process has no children, and return the ids of those it had.

    Args:
        timeout_s: When to give up on one that does not end.
    """
    reaped: list[int] = []
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid:
            reaped.append(pid)
        else:
            time.sleep(_REAP_PERIOD_S)  # there is nothing to wait on for any child but this
    return reaped


def remove_shared_memory(pids: Collection[int]) -> None:
    """Remove the shared memory that torch names after processes which are gone.

    The name is taken back as soon as the memory is open; a data loader's process that is killed
    in between leaves it.
    """
    for pid in pids:
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):  # noqa: S108 - where shm_open puts it
            with suppress(OSError):
                path.unlink()


def agent_folder(name: str) -> Path:
    """Return the folder of the temporary files of an agent's workers, on the agent's host."""
    return Path(tempfile.gettempdir(), f"minitrain-{name}")


def make_private_folder(path: Path) -> None:
    """Make a folder that belongs to this process, and remove those whose process was killed.

    Where all that could have removed a folder were killed together, the next one to make one here
    does. Processes of another container, which cannot be seen from here, are left alone.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    owner = f"{os.getpid()} {began_at(os.getpid())} {_pid_namespace()}"
    (path / _OWNER).write_text(owner, encoding="utf-8")
    for other in path.parent.glob(f"minitrain-*/{_OWNER}"):
        with suppress(OSError, ValueError):
            pid, began, namespace = other.read_text(encoding="utf-8").split()
            if namespace == _pid_namespace() and str(began_at(int(pid))) != began:
                shutil.rmtree(other.parent, ignore_errors=True)


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def remove_traces(mark: str, folder: Path, *, spare: Collection[int] = ()) -> list[int]:
    """Remove what an agent and its workers may have left: processes and temporary files.

    Returns:
        The ids of the processes that had to be killed.

    Args:
        mark: The agent's mark.
        folder: Its temporary folder.
        spare: Process ids to leave alone; the caller always is.
    """
    killed = kill_marked(mark, spare=spare)
    shutil.rmtree(folder, ignore_errors=True)
    remove_shared_memory(killed)
    return killed


def _marked(mark: str) -> list[int]:
    wanted = mark.encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it ended meanwhile, or belongs to another user
            environ = Path(entry.path, "environ").read_bytes()
            if wanted in environ and is_alive(int(entry.name)):
                found.append(int(entry.name))
    return found
