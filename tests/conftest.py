"""What every test gets: a place for its runs, scripts to kill, and the leak police."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import minitrain
from minitrain._driver import agents
from minitrain._os.processes import is_alive
from tests.hosts.world import world_pids

pytest_plugins = ["tests.servers"]

GONE_WITHIN_S = 3.0
"""How long after a test what it started may take to vanish: the promise made to users."""
CAMPAIGN_TIMEOUT_S = 180


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long tests a deadline that they do not come near on a busy machine either."""
    for item in items:
        if item.get_closest_marker("campaign") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(CAMPAIGN_TIMEOUT_S))


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what was imported: to look at it takes long."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Have modules find their objects again when they look for leaks at the end."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def private_temporary_folder() -> Iterator[Path]:
    """Give the session a temporary folder of its own, so that leaks in it are this session's."""
    before = os.environ.get("TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix="minitrain-tests-"))
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
    yield folder
    minitrain.shutdown()
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def storage(leak_police: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs without a storage path go in this test."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("MINITRAIN_STORAGE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def leak_police(private_temporary_folder: Path) -> Iterator[None]:
    """Fail a test that leaves anything behind. Idle agents and storage servers are meant to stay.

    Set up before the other fixtures, so that it looks when they have undone what they did.
    """
    before = _Surroundings(private_temporary_folder)
    yield
    after = _wait_until_clean(before, private_temporary_folder)
    leaks = after.more_than(before)
    assert not leaks, f"the test left behind: {leaks}"


class _Surroundings:
    """What is there that a test could leave behind. Read from /proc: it is done twice a test."""

    def __init__(self, temporary: Path) -> None:
        from tests.servers import server_pids  # a plugin, which pytest must be the first to import

        family = [os.getpid(), *_descendants(os.getpid(), but=server_pids() | world_pids())]
        self.processes = {
            f"process {pid}: {_command(pid)}" for pid in family[1:] if pid not in _idle_agents()
        }
        self.threads = {f"thread {thread.name}" for thread in threading.enumerate()}
        self.sockets = _sockets(family)
        self.memory = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
        kept = ("pytest-of-", "torchinductor_")  # pytest's own, and a cache of torch's
        self.temporary = {
            f"temporary {path}" for path in temporary.iterdir() if not path.name.startswith(kept)
        }
        names = (name for name in os.environ if name.startswith("MINITRAIN_"))
        self.variables = {f"variable {name}" for name in names}

    def more_than(self, other: _Surroundings) -> list[str]:
        more = {name: getattr(self, name) - getattr(other, name) for name in vars(self)}
        listening = [f"listening socket {name}" for name in _listening(more.pop("sockets"))]
        return listening + [leak for leaks in more.values() for leak in leaks]


def _wait_until_clean(before: _Surroundings, temporary: Path) -> _Surroundings:
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while (after := _Surroundings(temporary)).more_than(before):
        if time.monotonic() > deadline_s:
            break
        gc.collect()
        time.sleep(0.02)
    return after


def _idle_agents() -> set[int]:
    return {agent.pid for agent in agents._pool.idle}


def _descendants(pid: int, *, but: frozenset[int]) -> list[int]:
    """Return all processes below one; storage servers and hosts stay for the whole session."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                if child not in but and is_alive(child):
                    found += [child, *_descendants(child, but=but)]
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return "gone"


def _sockets(pids: list[int]) -> set[str]:
    """Return the sockets that any of these processes holds, as the kernel numbers them."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor.path)
                    if target.startswith("socket:"):
                        found.add(target)
    return found


def _listening(sockets: set[str]) -> list[str]:
    """Return the addresses at which any of these sockets listens for TCP connections."""
    if not sockets:
        return []  # the tables are slow to read
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # TCP_LISTEN
                found.append(fields[1])
    return found


class Script:
    """A user's script in a process of its own, to look at and to kill.

    Attributes:
        process: The process; its output is in ``output``.
    """

    def __init__(self, path: Path, args: tuple[str, ...], env: dict[str, str]) -> None:
        self.output_path = path.with_suffix(".out")
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(path), *args],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                cwd=path.parent,
            )

    @property
    def output(self) -> str:
        """Everything it has printed so far."""
        return self.output_path.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = 40.0) -> str:
        """Wait until it has printed a text, and return all it printed."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.output:
            assert time.monotonic() < deadline_s, f"no {text!r} in:\n{self.output}"
            assert self.process.poll() is None or text in self.output, (
                f"it ended ({self.process.returncode}) without {text!r}:\n{self.output}"
            )
            time.sleep(0.005)
        return self.output

    def wait(self, timeout_s: float = 40.0) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(timeout_s)

    def descendants(self) -> list[int]:
        """Return the ids of all processes below it."""
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Return a function that starts a script from its text."""
    scripts: list[Script] = []

    def start(text: str, *args: str, env: dict[str, str] | None = None) -> Script:
        path = tmp_path / f"script_{len(scripts)}.py"
        path.write_text(textwrap.dedent(text))
        scripts.append(Script(path, args, env or {}))
        return scripts[-1]

    yield start
    for script in scripts:
        if script.process.poll() is None:
            script.process.send_signal(signal.SIGKILL)
            script.process.wait()


@pytest.fixture
def all_gone() -> Callable[[list[int]], None]:
    """Return a function that fails unless all processes end within the promised time."""

    def check(pids: list[int]) -> None:
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while alive := [pid for pid in pids if is_alive(pid)]:
            assert time.monotonic() < deadline_s, f"still alive: {alive}"
            time.sleep(0.01)

    return check
