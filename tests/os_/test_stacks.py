"""Stacks of real processes: in a deadlock, in a call, stopped, with children, and not ours."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from minitrain._os.stacks import (
    SIGNAL,
    Frame,
    innermost_frames,
    parse_status,
    readable,
    stacks_of,
    waits_in_collective,
)

WAIT_S = 20.0
PRELUDE = """
import ctypes, os, signal, socket, sys, threading, time
from minitrain._os.stacks import SIGNAL, answer_stack_requests

answer_stack_requests()

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

"""
KEEPING_THE_LOCK = """
c = ctypes.PyDLL(None)  # what it calls keeps the interpreter's lock
sys.setswitchinterval(1000)

def lock_twice():
    mutex = ctypes.create_string_buffer(64)
    c.pthread_mutex_lock(mutex)
    c.write(1, b'there\\n', 6)
    c.pthread_mutex_lock(mutex)

"""
DEAF = (
    KEEPING_THE_LOCK
    + """
signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
lock_twice()
"""
)


class Program:
    """A process that says lines, and is gone when the test is over."""

    def __init__(self, text: str, prelude: str = PRELUDE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + textwrap.dedent(text)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def line(self) -> str:
        """Wait for the next line."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self.process.stdout], [], [], WAIT_S)[0], "it says nothing"
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, f"it ended after {line!r}"
            line += byte
        return line.decode().strip()

    def tell(self) -> None:
        """Have it read something from its standard input."""
        os.write(self.process.stdin.fileno(), b"x")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start():
    programs = []

    def start(text, **settings):
        programs.append(Program(text, **settings))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_state(pid: int, wanted: str) -> None:
    wait_until(lambda: state(pid) == wanted)


def memories(pid: int) -> list[Path]:
    """Return what a process holds to answer into, the handler's memory and the thread's."""
    by_link = {os.readlink(one): one for one in Path(f"/proc/{pid}/fd").iterdir()}
    return [by_link[link] for link in sorted(by_link) if "minitrain" in link]


def stack_of(pid: int, **settings) -> str:
    return stacks_of([pid], WAIT_S, **settings)[pid]


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def functions(text: str) -> list[str]:
    """Return the main thread's functions, the innermost first, but for its way to talk to us."""
    names = [frame.function for frame in innermost_frames(text)]
    return [name for name in names if name != "say"]


# ------------------------------------------------------------------ wherever it is
def test_a_deadlock_in_native_code_that_holds_the_interpreters_lock_shows(start):
    program = start(f"{KEEPING_THE_LOCK}\nlock_twice()")
    program.line()
    for _ in range(2):
        wait_for_state(program.pid, "S")
        text = stack_of(program.pid)
        assert text.startswith(f"pid {program.pid}, sleeping, 2 threads\n")
        assert functions(text) == ["lock_twice", "<module>"]


def test_a_busy_loop_shows(start):
    program = start(
        """
        def spin():
            say("spinning")
            while True:
                pass

        spin()
        """
    )
    program.line()
    assert functions(stack_of(program.pid)) == ["spin", "<module>"]


def test_every_thread_shows_the_main_one_first(start):
    program = start(
        """
        def wait_for_ever(event):
            say("waiting")
            event.wait()

        threading.Thread(target=wait_for_ever, args=(threading.Event(),), daemon=True).start()
        threading.Event().wait()
        """
    )
    program.line()
    wait_until(lambda: stack_of(program.pid).rstrip().endswith("in wait"))
    text = stack_of(program.pid)
    assert "3 threads" in text.splitlines()[0]
    assert text.count("(most recent call last)") == 2
    main, other = text.split("\n\n")[1:]
    assert main.startswith("Main thread 0x")
    assert "in wait_for_ever" not in main
    assert "in wait_for_ever" in other
    lines = other.splitlines()
    assert lines[0].endswith("(most recent call last):")
    assert "in _bootstrap\n" in other
    assert lines[-1].endswith("in wait")


def test_the_main_thread_is_asked_also_while_another_one_runs(start):
    program = start(
        """
        def spin():
            while True:
                pass

        def wait_for_ever():
            say("waiting")
            while True:
                signal.pause()

        threading.Thread(target=spin, daemon=True).start()
        wait_for_ever()
        """
    )
    program.line()
    for _ in range(20):
        assert functions(stack_of(program.pid)) == ["wait_for_ever", "<module>"]


@pytest.mark.campaign
def test_threads_that_run_are_asked_many_times_and_run_on(start):
    # Reading a stack that changes crashes the process: once in some two hundred times.
    program = start(
        """
        def nest(depth):
            return sum(nest(depth - 1) for _ in range(depth)) if depth else 1

        def spin():
            while True:
                nest(6)

        for _ in range(2):
            threading.Thread(target=spin, daemon=True).start()
        say("there")
        os.read(0, 1)
        """
    )
    program.line()
    for _ in range(150):
        assert functions(stack_of(program.pid)) == ["<module>"]


def test_the_answer_is_complete_and_only_of_the_last_question(start):
    program = start(
        """
        at_the_bottom = threading.Semaphore(0)

        def dig(depth):
            if depth:
                return dig(depth - 1)
            at_the_bottom.release()
            while True:
                signal.sigwait([signal.SIGUSR1])

        for _ in range(60):
            threading.Thread(target=dig, args=(60,), daemon=True).start()
        for _ in range(60):
            at_the_bottom.acquire()
        say("there")
        dig(60)
        """
    )
    program.line()
    wait_until(lambda: functions(stack_of(program.pid)).count("dig") == 61)
    for _ in range(10):
        text = stack_of(program.pid)  # long enough to be caught half written
        assert text.count("Main thread") == 1
        assert text.count("Thread 0x") == 60
        assert text.count("in dig") == 61 * 61


def test_two_who_ask_at_once_get_a_whole_answer_each(start):
    program = start("say('there')\nwhile True:\n    signal.pause()\n")
    program.line()
    texts = []

    def ask():
        texts.extend(stack_of(program.pid) for _ in range(30))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 60
    assert all(text.count("Main thread") == 1 for text in texts)
    assert all(functions(text) == ["<module>"] for text in texts)


# ------------------------------------------------------------------ undisturbed
SLEEP = """
until_s = time.monotonic() + 0.5
time.sleep(0.5)
assert time.monotonic() >= until_s
"""
RECEIVE = """
here, there = socket.socketpair()
threading.Thread(target=lambda: there.send(os.read(0, 1))).start()
assert here.recv(1) == b'x'
"""
READ = "assert os.read(0, 1) == b'x'"
LOCK = """
lock = threading.Lock()
lock.acquire()
threading.Thread(target=lambda: (os.read(0, 1), lock.release())).start()
assert lock.acquire(timeout=20)
"""


@pytest.mark.parametrize(
    "call", [SLEEP, RECEIVE, READ, LOCK], ids=["sleep", "recv", "read", "lock"]
)
def test_a_blocking_call_goes_on_as_if_nothing_had_happened(start, call):
    program = start(f"say('begins')\n{call}\nsay('done')\nos.read(0, 1)")
    program.line()
    for _ in range(5):
        assert innermost_frames(stack_of(program.pid))
    program.tell()
    assert program.line() == "done"


def test_signals_that_the_main_thread_blocks_wait_for_it(start):
    program = start(
        """
        signal.signal(signal.SIGTERM, lambda *_: say("taken"))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        say("there")
        os.read(0, 1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.read(0, 1)
        """
    )
    program.line()
    assert innermost_frames(stack_of(program.pid))  # so that the thread is there
    os.kill(program.pid, signal.SIGTERM)
    assert innermost_frames(stack_of(program.pid))  # any thread could have taken it by now
    assert int(status_field(program.pid, "ShdPnd"), 16) & 1 << (signal.SIGTERM - 1)
    program.tell()
    assert program.line() == "taken"


# ------------------------------------------------------------------ stopped
def test_a_stopped_process_says_so_and_stays_stopped(start):
    program = start("say('there')\nwhile True:\n    signal.pause()\n")
    program.line()
    os.kill(program.pid, signal.SIGSTOP)
    wait_for_state(program.pid, "T")
    text = stack_of(program.pid)
    assert text == f"pid {program.pid}, stopped, 2 threads\nA stopped process cannot answer."
    assert state(program.pid) == "T"


def test_a_stopped_process_that_may_go_on_answers_from_where_it_stood(start):
    program = start("""
        def stop_itself():
            os.kill(os.getpid(), signal.SIGSTOP)

        say("there")
        stop_itself()
        while True:
            pass
    """)
    program.line()
    wait_for_state(program.pid, "T")
    text = stack_of(program.pid, wake=True)
    assert ", stopped, " in text
    assert functions(text) == ["stop_itself", "<module>"]
    assert state(program.pid) == "R"


@pytest.mark.campaign
def test_an_answer_owed_since_before_is_not_asked_for_twice(start):
    program = start(
        KEEPING_THE_LOCK
        + """
signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
c.write(1, b'there\\n', 6)
c.read(0, ctypes.create_string_buffer(1), 1)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNAL])
say('hears')
os.read(0, 1)
"""
    )
    program.line()
    for _ in range(2):
        assert "did not answer within 0.6 s" in stacks_of([program.pid], 0.6)[program.pid]
    program.tell()
    assert program.line() == "hears"
    by_handler, by_thread = memories(program.pid)
    assert by_handler.read_text().count("Current thread") == 1
    wait_until(lambda: "answered" in by_thread.read_text())
    assert by_thread.read_text().count("answered") == 1
    assert stack_of(program.pid).count("Main thread") == 1


# ------------------------------------------------------------------ families
def test_a_forked_child_answers_for_itself(start):
    program = start(
        """
        def child():
            say(os.getpid())
            while True:
                signal.pause()

        def parent():
            os.waitpid(-1, 0)

        if os.fork() == 0:
            child()
        parent()
        """
    )
    child = int(program.line())
    for _ in range(3):
        texts = stacks_of([program.pid, child], WAIT_S)
        assert list(texts) == sorted([program.pid, child])
        assert functions(texts[program.pid]) == ["parent", "<module>"]
        assert functions(texts[child]) == ["child", "<module>"]
        assert texts[child].startswith(f"pid {child}, ")


def test_children_of_children_hold_descriptors_of_their_own_alone(start):
    program = start(
        """
        for _ in range(3):
            if os.fork():
                os.waitpid(-1, 0)
                os._exit(0)
        say(os.getpid())
        os.read(0, 1)
        """
    )
    grandchild = int(program.line())
    assert len(memories(grandchild)) == 2


# ------------------------------------------------------------------ no answer
def test_a_process_that_never_agreed_is_left_alone(start):
    program = start("import os\nos.write(1, b'there\\n')\nos.read(0, 1)", prelude="")
    program.line()
    assert stack_of(program.pid).endswith("It does not answer such questions.")
    assert "does not answer" in stack_of(os.getpid())
    assert program.process.poll() is None


def test_a_program_that_a_worker_became_is_left_alone(start):
    program = start("say('there')\nos.read(0, 1)\nos.execvp('cat', ['cat'])")
    program.line()
    assert "Main thread" in stack_of(program.pid)
    program.tell()
    os.write(program.process.stdin.fileno(), b"now a cat\n")
    assert program.line() == "now a cat"
    assert "does not answer" in stack_of(program.pid)
    assert program.process.poll() is None


def test_one_that_has_given_up_its_handler_survives_being_asked(start):
    program = start(
        """
        import faulthandler
        faulthandler.unregister(SIGNAL)
        say("deaf")
        os.read(0, 1)
        """
    )
    program.line()
    assert len(memories(program.pid)) == 2
    assert "does not answer" in stack_of(program.pid)
    assert program.process.poll() is None


def test_a_process_that_has_ended_says_so(start):
    program = start("")
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    assert stack_of(program.pid) == f"pid {program.pid} has ended."  # a zombie
    program.process.wait()
    assert stack_of(program.pid) == f"pid {program.pid} has ended."


def test_one_that_ends_while_it_is_asked_says_so(start):
    program = start(DEAF)
    program.line()
    texts = {}
    asking = threading.Thread(target=lambda: texts.update(stacks_of([program.pid], WAIT_S)))
    asking.start()
    bit = 1 << (SIGNAL - 1)
    wait_until(lambda: int(status_field(program.pid, "SigPnd"), 16) & bit)
    program.process.kill()
    asking.join()
    assert texts == {program.pid: f"pid {program.pid} has ended."}


def test_one_that_has_ended_before_it_could_be_asked_says_so(start):
    program = start("say('there')\nos.read(0, 1)")
    program.line()
    with open(memories(program.pid)[0], "rb") as memory:  # as another asker has it
        fcntl.flock(memory, fcntl.LOCK_EX)
        texts = {}
        asking = threading.Thread(target=lambda: texts.update(stacks_of([program.pid], WAIT_S)))
        asking.start()
        wait_until(lambda: open_files_named(f"minitrain-stacks-{program.pid}") == 3)
        program.process.kill()
    asking.join()
    assert texts == {program.pid: f"pid {program.pid} has ended."}


def open_files_named(name: str) -> int:
    links = []
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(one))
    return sum(name in link for link in links)


def status_field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1] for line in lines if line.startswith(f"{name}:"))


def test_one_that_cannot_answer_holds_up_nobody(start):
    deaf = start(DEAF)
    program = start("say('there')\nos.read(0, 1)")
    deaf.line()
    program.line()
    texts = stacks_of([deaf.pid, program.pid], 0.6)
    assert functions(texts[program.pid]) == ["<module>"]
    assert texts[deaf.pid].splitlines()[1:] == [
        f"It did not answer within 0.6 s; its main thread blocks signal {SIGNAL}."
    ]


def test_asking_leaves_no_descriptor_open(start):
    deaf = start(DEAF)
    program = start("say('there')\nos.read(0, 1)")
    deaf.line()
    program.line()
    before = os.listdir("/proc/self/fd")
    stacks_of([deaf.pid, program.pid, os.getpid()], 0.1)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_processes_of_others_say_so(start):
    program = start("say('there')\nos.read(0, 1)")
    program.line()
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        os.write(write_fd, stack_of(program.pid).encode())
        os._exit(0)
    os.close(write_fd)
    os.waitpid(child, 0)
    assert "belongs to somebody else" in os.read(read_fd, 4096).decode()
    os.close(read_fd)


# ------------------------------------------------------------------ parsers
STATUS = """Name:\tpython: x
State:\t{state}
Pid:\t4711
NSpid:\t4711\t12
Threads:\t3
SigQ:\t0/1
SigPnd:\t{pending:016x}
ShdPnd:\t0000000000000000
SigBlk:\t{blocked:016x}
SigIgn:\t0000000001001000
SigCgt:\t{caught:016x}
"""
BIT = 1 << (SIGNAL - 1)


@pytest.mark.parametrize(("pending", "blocked", "caught"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_the_kernels_status_is_read(pending, blocked, caught):
    others = ~BIT & (1 << 64) - 1
    status = parse_status(
        STATUS.format(
            state="S (sleeping)",
            pending=others | pending * BIT,
            blocked=others | blocked * BIT,
            caught=others | caught * BIT,
        )
    )
    assert (status.pending, status.blocked, status.catches) == (pending, blocked, caught)
    assert (status.state, status.threads, status.own_pid) == ("S", 3, 12)
    assert not status.is_stopped


@pytest.mark.parametrize("state", ["T (stopped)", "t (tracing stop)"])
def test_a_stop_is_known(state):
    assert parse_status(STATUS.format(state=state, pending=0, blocked=0, caught=0)).is_stopped


DUMP = """\
Thread 0x00007f3034000000 (most recent call first):
  File "/lib/threading.py", line 327 in wait
  File "/lib/threading.py", line 1002 in _bootstrap

Thread 0x00007f3035000000 (most recent call first):
  <no Python frame>

Current thread 0x00007f3036000000 (most recent call first):
  Garbage-collecting
  File "/home/me/train.py", line 8 in train
  File "/site/minitrain/_worker/main.py", line 45 in run
  File "/site/minitrain/_agent/child.py", line 139 in fork_worker
"""
READABLE = """\
Main thread 0x00007f3036000000 (most recent call last):
  File "/site/minitrain/_worker/main.py", line 45 in run
  File "/home/me/train.py", line 8 in train
  Garbage-collecting

Thread 0x00007f3034000000 (most recent call last):
  File "/lib/threading.py", line 1002 in _bootstrap
  File "/lib/threading.py", line 327 in wait

Thread 0x00007f3035000000 (most recent call last):
  <no Python frame>
"""


def test_a_dump_is_turned_round():
    assert readable(DUMP) == READABLE


def test_the_thread_that_answers_is_left_out_and_one_that_begins_has_its_makers_number():
    dump = """\
Thread 0x00007f3036000000 (most recent call first):
  <no Python frame>

Current thread 0x00007f3037000000 (most recent call first):
  File "/site/minitrain/_os/stacks.py", line 116 in _answer_requests

Thread 0x00007f3036000000 [python] (most recent call first):
  File "/lib/threading.py", line 327 in wait
  File "/home/me/train.py", line 8 in train
"""
    assert (
        readable(dump, "0x00007f3036000000")
        == """\
Main thread 0x00007f3036000000 [python] (most recent call last):
  File "/home/me/train.py", line 8 in train
  File "/lib/threading.py", line 327 in wait

Thread 0x00007f3036000000 (most recent call last):
  <no Python frame>
"""
    )


def test_the_main_threads_innermost_frames_are_read_back():
    assert innermost_frames(f"pid 1, sleeping, 3 threads\n\n{READABLE}") == [
        Frame("/home/me/train.py", 8, "train"),
        Frame("/site/minitrain/_worker/main.py", 45, "run"),
    ]


@pytest.mark.parametrize("dump", ["", "Thread 0x1 (most recent call first):\n", "half a l"])
def test_a_dump_without_a_main_thread_has_no_frames(dump):
    assert innermost_frames(readable(dump)) == []


def test_a_line_that_is_not_known_is_zero():
    text = readable('Current thread 0x1 (most recent call first):\n  File "a", line ??? in f\n')
    assert innermost_frames(text) == [Frame("a", 0, "f")]


# ------------------------------------------------------------------ who waits for others
ALL_REDUCE = ("/site/torch/distributed/distributed_c10d.py", 3252, "all_reduce")
TRAIN = ("/home/me/train.py", 13, "train")
WRAPPER = ("/site/torch/distributed/c10d_logger.py", 83, "wrapper")
DDP_FORWARD = ("/site/torch/nn/parallel/distributed.py", 1655, "forward")
BACKWARD = ("/site/torch/autograd/graph.py", 979, "_engine_run_backward")
FUNCTIONAL = ("/site/torch/distributed/_functional_collectives.py", 142, "wait_tensor")
LOADER = ("/lib/python3.11/selectors.py", 415, "select")


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ([TRAIN, WRAPPER, ALL_REDUCE], True),
        ([TRAIN, ("/site/torch/_tensor.py", 623, "backward"), BACKWARD], True),
        ([TRAIN, FUNCTIONAL, ("/site/torch/_ops.py", 1279, "__call__")], True),
        ([TRAIN], False),
        ([TRAIN, LOADER], False),
        ([TRAIN, BACKWARD, ("/home/me/hooks.py", 3, "hook")], False),
        ([TRAIN, ("/site/torch/distributed/fsdp/x.py", 8, "forward"), TRAIN], False),
        ([TRAIN, DDP_FORWARD, ("/home/me/model.py", 3, "forward")], False),
        ([TRAIN, ("/site/torch/autograd/graph.py", 30, "saved_tensors_hooks")], False),
        ([TRAIN, ("/site/torch/_ops.py", 1279, "__call__")], False),
        ([], False),
    ],
)  # fmt: skip
def test_who_waits_for_other_ranks_is_told_from_who_does_not(stack, expected):
    lines = [f'  File "{file}", line {line} in {function}\n' for file, line, function in stack]
    head = "pid 1, sleeping, 1 thread\n\nMain thread 0x1 (most recent call last):\n"
    assert waits_in_collective(head + "".join(lines)) is expected
