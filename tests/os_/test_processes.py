"""Real processes, real signals: nothing that was started stays."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import uuid

import psutil
import pytest

from minitrain._os.processes import (
    MARK_VARIABLE,
    allow_open_files,
    is_alive,
    kill_marked,
    make_private_folder,
    remove_traces,
    signal_group,
)

WAIT_S = 20.0
PRELUDE = """
import os, signal, subprocess, sys, threading
from minitrain._os.processes import die_with_parent, let_forked_children_die_too

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait_for_ever():
    while True:
        signal.pause()
"""


class Program:
    """A Python process that says lines, and is gone when the test is over."""

    def __init__(self, text: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(text)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.known = [self.pid]

    def line(self) -> str:
        """Wait for the next line."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self.process.stdout], [], [], WAIT_S)[0], "it says nothing"
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, f"it ended after {line!r}"
            line += byte
        return line.decode().strip()

    def pids(self) -> list[int]:
        """Wait for a line of process ids; they end with the test at the latest."""
        pids = [int(word) for word in self.line().split()]
        self.known += pids
        return pids

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for pid in self.known:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start():
    programs = []

    def start(text, **env):
        programs.append(Program(text, **env))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


# ------------------------------------------------------------------ with the parent
def test_a_child_dies_the_moment_its_parent_does(start, all_gone):
    parent = start(
        """
        me = os.getpid()
        if os.fork() == 0:
            die_with_parent(me)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say(os.getpid())
            wait_for_ever()
        wait_for_ever()
        """
    )
    (child,) = parent.pids()
    parent.kill()
    all_gone([child])


def test_a_child_whose_parent_has_died_before_exits_at_once(start, all_gone):
    parent = start(
        """
        me = os.getpid()
        read_fd, write_fd = os.pipe()
        if os.fork() == 0:
            os.close(write_fd)
            os.read(read_fd, 1)  # returns when the parent is gone
            while os.getppid() == me:
                pass
            say(os.getpid())
            die_with_parent(me)
            say("still here")
            wait_for_ever()
        """
    )
    (child,) = parent.pids()
    all_gone([child])
    assert parent.process.stdout.read() == b""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_another_parent_than_expected_is_a_dead_one(start, signum):
    program = start(f"die_with_parent(1, signal.Signals({int(signum)}))\nsay('still here')")
    assert program.process.stdout.read() == b""
    assert program.process.wait(WAIT_S) == -signum


def test_a_child_may_have_another_signal_sent_to_it(start):
    parent = start(
        """
        me = os.getpid()
        if os.fork() == 0:
            signal.signal(signal.SIGUSR1, lambda *_: say("orphaned"))
            die_with_parent(me, signal.SIGUSR1)
            say(os.getpid())
            signal.pause()
            os._exit(0)
        wait_for_ever()
        """
    )
    parent.pids()
    parent.kill()
    assert parent.line() == "orphaned"


# ------------------------------------------------------------------ children of children
FORKS = """
def forked(then=wait_for_ever):
    pid = os.fork()
    if pid == 0:
        try:
            then()
        finally:
            os._exit(0)
    return pid
"""


def test_children_forked_from_the_main_thread_die_too_and_theirs_as_well(start, all_gone):
    worker = start(
        f"""
{FORKS}
let_forked_children_die_too()
def grandchild():
    say(os.getpid())
    wait_for_ever()
def child():
    forked(grandchild)
    say(os.getpid())
    wait_for_ever()
forked(child)
wait_for_ever()
"""
    )
    pids = worker.pids() + worker.pids()
    worker.kill()
    all_gone(pids)


def test_a_child_that_is_an_orphan_from_the_first_moment_dies_too(start, all_gone):
    worker = start(
        f"""
{FORKS}
parent = os.getpid()
def wait_until_orphaned():  # registered first, and so called before the library's own
    say(os.getpid())
    while os.getppid() == parent:
        pass
os.register_at_fork(after_in_child=wait_until_orphaned)
let_forked_children_die_too()
forked()
wait_for_ever()
"""
    )
    (child,) = worker.pids()
    worker.kill()
    all_gone([child])


def test_a_child_that_left_the_group_dies_too(start, all_gone):
    worker = start(
        f"""
{FORKS}
let_forked_children_die_too()
def child():
    os.setsid()
    say(os.getpid())
    wait_for_ever()
forked(child)
wait_for_ever()
"""
    )
    pids = worker.pids()
    worker.kill()
    all_gone(pids)


def test_children_forked_from_another_thread_outlive_it(start):
    worker = start(
        f"""
{FORKS}
let_forked_children_die_too()
children = []
thread = threading.Thread(target=lambda: children.append(forked()))
thread.start()
thread.join()
say(*children)
os.read(0, 1)
ended, _ = os.waitpid(children[0], os.WNOHANG)
say("ended" if ended else "alive")
wait_for_ever()
"""
    )
    (child,) = worker.pids()
    threads = f"/proc/{worker.pid}/task"
    while len(os.listdir(threads)) > 1:
        pass  # the thread that forked is still on its way out
    worker.process.stdin.write(b".")
    worker.process.stdin.flush()
    assert worker.line() == "alive"
    assert is_alive(child)


def test_a_fork_of_the_main_thread_after_one_of_another_still_dies(start, all_gone):
    worker = start(
        f"""
{FORKS}
let_forked_children_die_too()
def child():
    say(os.getpid())
    wait_for_ever()
thread = threading.Thread(target=forked)
thread.start()
thread.join()
forked(child)
wait_for_ever()
"""
    )
    (child,) = worker.pids()
    other = [pid for pid in children_of(worker.pid) if pid != child]
    worker.known += other
    worker.kill()
    all_gone([child])
    assert len(other) == 1
    assert is_alive(other[0])


def children_of(pid):
    """Return the children of all threads of a process."""
    return [child.pid for child in psutil.Process(pid).children()]


# ------------------------------------------------------------------ groups
def test_a_signal_reaches_the_whole_group(start, all_gone):
    leader = start(
        f"""
{FORKS}
say(os.getpid(), forked())
wait_for_ever()
"""
    )
    pids = leader.pids()
    signal_group(leader.pid, signal.SIGTERM)
    leader.process.wait(WAIT_S)
    assert leader.process.returncode == -signal.SIGTERM
    all_gone(pids)


def test_signalling_a_group_that_is_gone_is_harmless(start):
    program = start("pass")
    program.process.wait(WAIT_S)
    signal_group(program.pid, signal.SIGKILL)


# ------------------------------------------------------------------ alive
def test_this_process_is_alive():
    assert is_alive(os.getpid())


def test_a_zombie_is_not_alive(start):
    program = start("say('here')")
    assert program.line() == "here"
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    assert os.path.exists(f"/proc/{program.pid}")
    assert not is_alive(program.pid)


def test_a_number_that_no_process_has_is_not_alive(start):
    program = start("pass")
    program.process.wait(WAIT_S)
    assert not is_alive(program.pid)


@pytest.mark.parametrize("name", ["a) Z (b", "x Z", ") Z"])
def test_a_name_cannot_make_a_process_look_dead(tmp_path, name):
    shutil.copy(shutil.which("sleep"), tmp_path / name)
    process = subprocess.Popen([tmp_path / name, "60"])
    try:
        assert is_alive(process.pid)
    finally:
        process.kill()
        process.wait()


# ------------------------------------------------------------------ marked
@pytest.fixture
def mark():
    return f"/{uuid.uuid4().hex}"


ESCAPES = f"""
{FORKS}
def grandchild():
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(os.getpid(), os.getppid())
    wait_for_ever()
def child():
    forked(grandchild)
    wait_for_ever()
forked(child)
wait_for_ever()
"""


def test_all_that_carry_the_mark_are_killed_wherever_they_went(start, all_gone, mark):
    program = start(ESCAPES, **{MARK_VARIABLE: mark})
    pids = [program.pid, *program.pids()]
    assert set(kill_marked(mark)) == set(pids)
    program.process.wait(WAIT_S)
    assert program.process.returncode == -signal.SIGKILL
    all_gone(pids)


def test_a_program_started_by_a_descendant_carries_the_mark(start, all_gone, mark):
    program = start(
        """
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        say(os.getpid(), child.pid)
        wait_for_ever()
        """,
        **{MARK_VARIABLE: mark},
    )
    pids = program.pids()
    assert set(kill_marked(mark)) == set(pids)
    all_gone(pids)


def test_a_process_of_an_agent_within_an_agent_carries_both_marks(start, mark):
    inner = f"{mark}/{uuid.uuid4().hex}"
    program = start("say('here')\nwait_for_ever()", **{MARK_VARIABLE: inner})
    program.line()
    assert set(kill_marked(mark)) == {program.pid}


def test_those_to_spare_are_spared(start, mark):
    spared, other = (start("say('here')\nwait_for_ever()", **{MARK_VARIABLE: mark}) for _ in "12")
    assert (spared.line(), other.line()) == ("here", "here")
    assert set(kill_marked(mark, spare=[spared.pid])) == {other.pid}
    other.process.wait(WAIT_S)
    assert is_alive(spared.pid)


def test_processes_with_another_mark_are_left_alone(start, mark):
    program = start("say('here')\nwait_for_ever()", **{MARK_VARIABLE: "/another"})
    program.line()
    assert kill_marked(mark) == []
    assert is_alive(program.pid)


def test_the_caller_is_always_spared(start, mark):
    program = start(
        """
        from minitrain._os.processes import MARK_VARIABLE, kill_marked
        say(kill_marked(os.environ[MARK_VARIABLE]))
        """,
        **{MARK_VARIABLE: mark},
    )
    assert program.line() == "[]"
    assert program.process.wait(WAIT_S) == 0


def test_each_is_named_once(start, mark):
    programs = [
        start(
            "held = bytearray(100_000_000)\nsay('here')\nwait_for_ever()", **{MARK_VARIABLE: mark}
        )
        for _ in range(2)
    ]
    for program in programs:
        program.line()
    killed = kill_marked(mark)
    assert sorted(killed) == sorted(program.pid for program in programs)


def test_the_traces_of_an_agent_are_its_processes_and_its_folder(start, all_gone, mark, tmp_path):
    program, spared = (
        start("say('here')\nwait_for_ever()", **{MARK_VARIABLE: mark}) for _ in range(2)
    )
    assert (program.line(), spared.line()) == ("here", "here")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "socket").touch()
    for _ in range(2):  # the second time there is nothing to remove
        remove_traces(mark, tmp_path / "folder", spare=[spared.pid])
    program.process.wait(WAIT_S)
    assert is_alive(spared.pid)
    assert not (tmp_path / "folder").exists()


def test_a_private_folder_takes_those_of_killed_processes_away_and_no_others(tmp_path):
    mine, killed, alive, users = (
        tmp_path / f"minitrain-{name}" for name in ("mine", "killed", "alive", "users")
    )
    users.mkdir()
    (users / "file").touch()
    make = (
        "import sys; from pathlib import Path; "
        "from minitrain._os.processes import make_private_folder; "
        "make_private_folder(Path(sys.argv[1])); print('made', flush=True); sys.stdin.read()"
    )
    running = {}
    for path in (killed, alive):
        running[path] = subprocess.Popen(
            [sys.executable, "-c", make, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert running[path].stdout.readline() == b"made\n"
    running[killed].kill()
    running[killed].communicate()
    make_private_folder(mine)
    assert sorted(tmp_path.iterdir()) == sorted([mine, alive, users])
    running[alive].communicate(b"")
    make_private_folder(mine)
    assert sorted(tmp_path.iterdir()) == sorted([mine, users])


@pytest.fixture
def file_limit():
    """Set the soft limit of open files for a test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_as_many_files_can_be_opened_as_were_asked_for(file_limit):
    file_limit(128)
    allow_open_files(300)
    with contextlib.ExitStack() as files:
        for _ in range(300):
            files.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def test_no_more_files_are_allowed_than_may_be_and_never_fewer(file_limit):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    file_limit(128)
    allow_open_files(1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (128, hard)
    allow_open_files(1 << 30)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
