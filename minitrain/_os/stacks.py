"""Python stacks of other processes: asked for and read through /proc.

A process answers into memory of its own that nobody has to open before it is needed. A thread
that does nothing else answers with the interpreter's lock, so that no other thread runs on while
its stack is read: that could crash the process. Where it does not get the lock, in a deadlock or
in native code that never gives it back, a signal handler in C answers without it::

    asking: truncate, a word -->   the thread: write every thread's stack, then the word
            wait for the word <--
    if it does not come:
            SIGNAL           -->   the main thread's handler: write every thread's stack
            wait for its end <--   no longer pending, something written, no longer blocked
    read /proc/PID/fd/N

Linux only.
"""

from __future__ import annotations

import _thread
import ctypes
import faulthandler
import fcntl
import math
import os
import platform
import re
import signal
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
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
"""Nothing can be waited on for an answer's end, so it is looked for this often."""
_LOCK_S = 0.5
"""How long a process gets to answer with the interpreter's lock: a hundred turns of it."""
_WORD_BYTES = 16
"""What a request consists of, and its answer ends with."""
_ANSWERED = re.compile(rb"\nMain thread (0x\w+) answered (\w+)\n")
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
    descriptors: tuple[int, ...] = ()

    def prepare() -> None:
        """Answer into memory of this process alone: a child's still writes into its parent's."""
        nonlocal descriptors
        inherited, requests_fd = descriptors, _requests()
        name = f"{_NAME}-{os.getpid()}-{os.fstat(requests_fd).st_ino}"
        thread_fd, handler_fd = (os.memfd_create(f"{name}-{by}") for by in ("thread", "handler"))
        descriptors = (requests_fd, thread_fd, handler_fd)
        for memory_fd in (thread_fd, handler_fd):
            # Whoever asks truncates; nobody must go on where it stood before.
            fcntl.fcntl(memory_fd, fcntl.F_SETFL, os.O_APPEND)
        faulthandler.register(SIGNAL, file=handler_fd, all_threads=True, chain=False)
        with suppress(RuntimeError):  # no more threads for this user: the handler is left
            # Not one of threading's, which programs count and join.
            _thread.start_new_thread(_answer_requests, (requests_fd, thread_fd, get_ident()))
        for descriptor in inherited:
            os.close(descriptor)

    prepare()
    os.register_at_fork(after_in_child=prepare)


def _requests() -> int:
    """Return a pipe that is both its ends, so that it never ends."""
    ends = os.pipe()
    try:
        return os.open(f"/proc/self/fd/{ends[0]}", os.O_RDWR)
    finally:
        for end in ends:
            os.close(end)


def _answer_requests(requests_fd: int, memory_fd: int, main_thread: int) -> None:
    # Or it would be given those that the main thread blocks for a while.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with suppress(OSError):  # somebody has closed them all
        while words := os.read(requests_fd, 100 * _WORD_BYTES):
            # Nothing here gives the lock away, for which threads that run would have to be
            # waited for again, before all has been written.
            faulthandler.dump_traceback(memory_fd, all_threads=True)
            os.write(memory_fd, b"\nMain thread 0x%016x answered %s\n" % (main_thread, words))


# ------------------------------------------------------------------ asking
def stacks_of(pids: Iterable[int], timeout_s: float, *, wake: bool = False) -> dict[int, str]:
    """Return the Python stacks of processes, or in words why there are none.

    All are asked at once. A process runs on undisturbed once it has answered, which takes it a
    millisecond or so; system calls are restarted.

    Args:
        pids: Processes that have called :func:`answer_stack_requests`; others are left alone.
        timeout_s: When to give up on those that have not answered.
        wake: Whether to continue a stopped process, which cannot answer; that it answers is then
            the first thing it does. Threads of it that run Python at that time may crash it.
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
        with _answering(pid, before) as answering:
            if answering is None:
                said = "It does not answer such questions."
            elif before.is_stopped and not wake:
                said = "A stopped process cannot answer."
            else:
                said = "\n" + readable(*(yield from _dump(pid, answering)))
        return f"{_header(pid, before)}\n{said}"
    except (FileNotFoundError, ProcessLookupError, BrokenPipeError):
        return f"pid {pid} has ended."
    except PermissionError:
        return f"pid {pid} belongs to somebody else, or this process may not look at it."


class _Answering(NamedTuple):
    """Descriptors of another process, opened again: where to ask, and where it answers."""

    requests_fd: int
    thread_fd: int
    handler_fd: int


def _dump(pid: int, answering: _Answering) -> Generator[None, None, tuple[str, str | None]]:
    """Ask, and return the dump and the main thread, if it is not the one that wrote the dump."""
    _, thread_fd, handler_fd = answering
    while not _locked(handler_fd):  # somebody else is asking it
        yield
    status = _status(pid)
    if not status.pending:  # else it still owes an answer from before it was stopped
        os.ftruncate(handler_fd, 0)
    os.ftruncate(thread_fd, 0)
    word = os.urandom(_WORD_BYTES // 2).hex().encode()
    until_s = _ask(pid, status, answering.requests_fd, word)
    while (answer := _threads_answer(_content(thread_fd), word)) is None:
        if until_s <= time.monotonic():
            until_s = math.inf
            _ask_handler(pid)
        elif until_s == math.inf and _handler_has_answered(pid, handler_fd):
            return _content(handler_fd).decode(errors="replace"), None
        _status(pid)  # it may have ended
        yield
    return answer


def _ask(pid: int, status: ProcessStatus, requests_fd: int, word: bytes) -> float:
    """Ask the thread, and return until when it is to answer; infinity: the handler was asked."""
    if status.is_stopped:
        _ask_handler(pid)  # it answers before the main thread goes on from where it stood
        os.kill(pid, signal.SIGCONT)
        return math.inf
    with suppress(BlockingIOError):  # it has been asked too often already
        os.write(requests_fd, word)
    return time.monotonic() + _LOCK_S


def _ask_handler(pid: int) -> None:
    if not _status(pid).pending:
        _signal_main_thread(pid)


def _threads_answer(written: bytes, word: bytes) -> tuple[str, str] | None:
    """Return the dump and the main thread from what a process's thread has written.

    Before it there may be an answer, or half of one, to somebody who did not wait for it.
    """
    parts = _ANSWERED.split(written)
    for dump, main_thread, words in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if word in words:
            return dump.decode(errors="replace"), main_thread.decode()
    return None


@contextmanager
def _answering(pid: int, status: ProcessStatus) -> Generator[_Answering | None, None, None]:
    """Open what a process is asked and answers through; None where there is no handler or none."""
    links = dict(map(_target, Path(f"/proc/{pid}/fd").iterdir())) if status.catches else {}
    # Others of these may be there too, while somebody reads them.
    name = re.compile(rf"/memfd:({_NAME}-{status.own_pid}-(\d+))-handler \(deleted\)")
    found = next(filter(None, map(name.fullmatch, links)), None)
    if found is None:
        yield None
        return
    targets = {f"pipe:[{found[2]}]": os.O_WRONLY | os.O_NONBLOCK}
    targets |= {f"/memfd:{found[1]}-{by} (deleted)": os.O_RDWR for by in ("thread", "handler")}
    with ExitStack() as opened:
        descriptors = []
        for target, flags in targets.items():
            if target not in links:  # it has just ended
                raise FileNotFoundError(target)
            descriptors.append(os.open(links[target], flags))
            opened.callback(os.close, descriptors[-1])
        yield _Answering(*descriptors)


def _target(link: Path) -> tuple[str, Path]:
    try:
        return str(link.readlink()), link
    except FileNotFoundError:  # closed since the directory was read
        return "", link


def _content(memory_fd: int) -> bytes:
    return os.pread(memory_fd, os.fstat(memory_fd).st_size, 0)


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


def _handler_has_answered(pid: int, memory_fd: int) -> bool:
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
_ANSWERING = re.compile(r'/minitrain/_os/stacks\.py", line \d+ in _answer_requests$')
_WORKER = '/minitrain/_worker/main.py", '
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')


class Frame(NamedTuple):
    """One call on a stack; ``line`` is 0 where it is not known."""

    file: str
    line: int
    function: str


def readable(dump: str, main_thread: str | None = None) -> str:
    """Return a dump of :mod:`faulthandler` as a traceback has it: most recent call last.

    The main thread comes first. What led to a worker's main function, the agent that forked it,
    is left out, and so is the thread that only answers.

    Args:
        dump: What was written.
        main_thread: The main thread, in hexadecimal; None if it wrote the dump.
    """
    blocks: list[list[str]] = []
    main: list[str] = []
    began = False
    for line in dump.splitlines():
        thread = _THREAD.match(line)
        if thread:
            blocks.append([f"Thread {thread[2]} (most recent call last):"])
            is_current = thread[1] == "Current thread"
            if is_current if main_thread is None else thread[2].startswith(main_thread):
                # The last one of that number: threads that begin have their maker's for a while.
                main = blocks[-1]
            began = False
        elif line.strip() and blocks and not began:
            blocks[-1].insert(1, line)
            began = _WORKER in line and line.endswith("in run")
    blocks = [block for block in blocks if not any(map(_ANSWERING.search, block))]
    if main:
        main[0] = _MAIN + main[0].removeprefix("Thread")
        blocks.sort(key=lambda block: block is not main)
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
