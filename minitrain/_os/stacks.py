"""Python stacks of other processes: asked for by signal, answered in C, read through /proc.

A process answers in its signal handler, without the interpreter's lock: also in a deadlock, and
in native code that never gives the lock back. The answer goes into memory of its own that nobody
has to open before it is needed::

    asking: truncate, SIGNAL -->   the main thread's handler: write every thread's stack
            wait for its end <--   no longer pending, something written, no longer blocked
            read /proc/PID/fd/N

Linux only.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import os
import platform
import re
import signal
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "SIGNAL",
    "Frame",
    "ProcessStatus",
    "answer_stack_requests",
    "innermost_frames",
    "parse_status",
    "readable",
    "stacks_of",
    "waits_in_collective",
]

SIGNAL = signal.SIGRTMIN + 11
"""A real-time signal: train functions use SIGUSR1 and SIGUSR2, the C library the first ones."""

_NAME = "minitrain-stacks"
_LOOK_S = 0.001
"""Nothing can be waited on for a handler's end, so the kernel's word is looked at this often."""
_TGKILL = {"x86_64": 234, "aarch64": 131}
"""The call's number: the C library has had a function for it only since glibc 2.30."""
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "uninterruptible",
    "T": "stopped",
    "t": "stopped by a debugger",
    "I": "idle",
}


# ------------------------------------------------------------------ answering
def answer_stack_requests() -> None:
    """Have this process, and every child it forks, answer :func:`stacks_of` from now on."""
    memory_fd = -1

    def prepare() -> None:
        """Answer into memory of this process alone: a child's still writes into its parent's."""
        nonlocal memory_fd
        inherited_fd, memory_fd = memory_fd, os.memfd_create(f"{_NAME}-{os.getpid()}")
        # Whoever asks truncates; a handler must not go on where it stood before.
        fcntl.fcntl(memory_fd, fcntl.F_SETFL, os.O_APPEND)
        faulthandler.register(SIGNAL, file=memory_fd, all_threads=True, chain=False)
        if inherited_fd >= 0:
            os.close(inherited_fd)

    prepare()
    os.register_at_fork(after_in_child=prepare)


# ------------------------------------------------------------------ asking
def stacks_of(pids: Iterable[int], timeout_s: float, *, wake: bool = False) -> dict[int, str]:
    """Return the Python stacks of processes, or in words why there are none.

    All are asked at once. A process runs on undisturbed once it has answered, which takes it a
    millisecond or so; system calls are restarted.

    Args:
        pids: Processes that have called :func:`answer_stack_requests`; others are left alone.
        timeout_s: When to give up on those that have not answered.
        wake: Whether to continue a stopped process, which cannot answer; that it answers is then
            the first thing it does.
    """
    deadline_s = time.monotonic() + timeout_s
    texts: dict[int, str] = {}
    waiting = {pid: _answer(pid, wake=wake) for pid in pids}
    while waiting:
        late = time.monotonic() >= deadline_s
        for pid, answer in list(waiting.items()):
            try:
                next(answer)
            except StopIteration as done:
                texts[pid] = done.value
                del waiting[pid]
        if late:
            break
        if waiting:
            time.sleep(_LOOK_S)
    for pid, answer in waiting.items():
        answer.close()
        texts[pid] = _unanswered(pid, timeout_s)
    return {pid: texts[pid] for pid in sorted(texts)}


def _answer(pid: int, *, wake: bool) -> Generator[None, None, str]:
    """Ask a process, wait for its answer with every step, and return it."""
    try:
        before = _status(pid)
        with _memory_of(pid, before) as memory_fd:
            if memory_fd is None:
                said = "It does not answer such questions."
            elif before.is_stopped and not wake:
                said = "A stopped process cannot answer."
            else:
                said = yield from _dump(pid, memory_fd)
        return f"{_header(pid, before)}\n{said}"
    except (FileNotFoundError, ProcessLookupError):
        return f"pid {pid} has ended."
    except PermissionError:
        return f"pid {pid} belongs to somebody else, or this process may not look at it."


def _dump(pid: int, memory_fd: int) -> Generator[None, None, str]:
    while not _locked(memory_fd):  # somebody else is asking it
        yield
    status = _status(pid)
    if not status.pending:  # else it still owes an answer from before it was stopped
        os.ftruncate(memory_fd, 0)
        _signal_main_thread(pid)
    if status.is_stopped:
        os.kill(pid, signal.SIGCONT)
    yield
    while not _answered(memory_fd, pid):
        yield
    dump = os.pread(memory_fd, os.fstat(memory_fd).st_size, 0)
    return "\n" + readable(dump.decode(errors="replace"))


@contextmanager
def _memory_of(pid: int, status: ProcessStatus) -> Generator[int | None, None, None]:
    """Open the memory that a process answers into; None where there is no handler or none."""
    name = _link(status.own_pid)
    descriptors = Path(f"/proc/{pid}/fd").iterdir() if status.catches else ()
    path = next((one for one in descriptors if _target(one) == name), None)
    if path is None:
        yield None
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _link(own_pid: int) -> str:
    """Return the link to a process's memory; others may hold it too, while they read it."""
    return f"/memfd:{_NAME}-{own_pid} (deleted)"


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # closed since the directory was read
        return ""


def _locked(memory_fd: int) -> bool:
    try:
        fcntl.flock(memory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signal_main_thread(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_TGKILL[platform.machine()], pid, pid, int(SIGNAL)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _answered(memory_fd: int, pid: int) -> bool:
    """Return whether the handler has run to its end.

    The kernel takes a signal from the pending ones before it blocks it for the handler's time.
    In between it is neither, so that something must have been written before that means the end.
    """
    written = os.fstat(memory_fd).st_size > 0
    status = _status(pid)
    return written and not status.pending and not status.blocked


def _unanswered(pid: int, timeout_s: float) -> str:
    try:
        status = _status(pid)
        header = _header(pid, status)
    except OSError:
        return f"pid {pid} has ended."
    why = f"; its main thread blocks signal {int(SIGNAL)}" if status.blocked else ""
    return f"{header}\nIt did not answer within {timeout_s:g} s{why}."


# ------------------------------------------------------------------ what the kernel says
@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What ``/proc/PID/status`` says of a process, and of the signal for its main thread.

    Attributes:
        state: The kernel's letter.
        threads: How many it has, also those that Python knows nothing of.
        pending: Whether the signal waits to be taken.
        blocked: Whether it is blocked, as it is while its handler runs.
        catches: Whether there is a handler; without one the signal ends a process.
        own_pid: The process's id as it knows it itself, in a container another one.
    """

    state: str
    threads: int
    pending: bool
    blocked: bool
    catches: bool
    own_pid: int

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped, by SIGSTOP or by a debugger."""
        return self.state in {"T", "t"}


def parse_status(text: str) -> ProcessStatus:
    """Return what is in a ``/proc/PID/status``."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    bit = 1 << (SIGNAL - 1)
    return ProcessStatus(
        state=fields["State"].split()[0],
        threads=int(fields["Threads"]),
        pending=bool(int(fields["SigPnd"], 16) & bit),
        blocked=bool(int(fields["SigBlk"], 16) & bit),
        catches=bool(int(fields["SigCgt"], 16) & bit),
        own_pid=int(fields["NSpid"].split()[-1]),
    )


def _status(pid: int) -> ProcessStatus:
    status = parse_status(Path(f"/proc/{pid}/status").read_text(errors="replace"))
    if status.state in {"Z", "X"}:
        raise ProcessLookupError(pid)
    return status


def _header(pid: int, status: ProcessStatus) -> str:
    state = _STATES.get(status.state, status.state)
    if status.state == "D":
        state += f" in {_wait_channel(pid)}"
    return f"pid {pid}, {state}, {status.threads} thread{'' if status.threads == 1 else 's'}"


def _wait_channel(pid: int) -> str:
    try:
        function = Path(f"/proc/{pid}/wchan").read_text(encoding="ascii")
    except OSError:
        function = "0"
    return "the kernel" if function == "0" else function


# ------------------------------------------------------------------ what a dump says
_THREAD = re.compile(r"(Current thread|Thread) (.*) \(most recent call first\):")
_MAIN = "Main thread"
_WORKER = '/minitrain/_worker/main.py", '
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')


class Frame(NamedTuple):
    """One call on a stack; ``line`` is 0 where it is not known."""

    file: str
    line: int
    function: str


def readable(dump: str) -> str:
    """Return a dump of :mod:`faulthandler` as a traceback has it: most recent call last.

    The main thread, which was the one to be asked, comes first. What led to a worker's main
    function, the agent that forked it, is left out.
    """
    blocks: list[list[str]] = []
    began = False
    for line in dump.splitlines():
        thread = _THREAD.match(line)
        if thread:
            name = _MAIN if thread[1] == "Current thread" else "Thread"
            blocks.append([f"{name} {thread[2]} (most recent call last):"])
            began = False
        elif line.strip() and blocks and not began:
            blocks[-1].insert(1, line)
            began = _WORKER in line and line.endswith("in run")
    blocks.sort(key=lambda block: not block[0].startswith(_MAIN))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def innermost_frames(text: str) -> list[Frame]:
    """Return the main thread's frames from a text of :func:`stacks_of`, the innermost first."""
    frames: list[Frame] = []
    in_main = False
    for line in text.splitlines():
        frame = _FRAME.fullmatch(line)
        if line.startswith(_MAIN):
            in_main = True
        elif in_main and frame:
            number = int(frame[2]) if frame[2].isdigit() else 0
            frames.insert(0, Frame(frame[1], number, frame[3]))
        elif in_main and not line:
            break
    return frames


def waits_in_collective(text: str) -> bool:
    """Return whether a main thread is where torch waits for other ranks.

    That is a call of :mod:`torch.distributed`, or the backward pass, at whose end gradients are
    averaged. What only runs inside of them, a hook or a wrapped model's forward, is not waiting.
    On a GPU collectives return at once, and a rank waits for them wherever it needs a value.
    """
    for frame in innermost_frames(text):
        if frame.file.endswith("/torch/_ops.py"):
            continue  # how functional collectives call into C++
        if frame.file.endswith("/torch/autograd/graph.py"):
            return frame.function == "_engine_run_backward"
        return "/torch/distributed/" in frame.file
    return False
