"""Starts programs in namespaces of the kernel, as if on another machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

DRIVER = "driver"
NAMESPACES = ("--net", "--mount", "--pid", "--uts")

WITHIN_S = 20.0
"""How long anything of the world may take before it counts as broken."""


class Inside(subprocess.Popen):
    """A program in other namespaces; signals go to it and not to the ``nsenter`` that waits.

    It is killed when the process that waits for it is, so none outlives the tests.
    """

    def send_signal(self, signum: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.inner_pid, signum)

    @property
    def inner_pid(self) -> int:
        """The program's own process id, as it is seen from outside of the namespaces."""
        deadline_s = time.monotonic() + WITHIN_S
        while self.poll() is None and time.monotonic() < deadline_s:
            with suppress(OSError):
                children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
                if children:
                    return int(children[0])
            time.sleep(0.001)
        raise ProcessLookupError(f"{self.args} has ended")


class Place:
    """Where programs run: the machine of the driver, or one of the hosts.

    Args:
        name: Its hostname.
        pid: A process that is there as long as the place is.
    """

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self._enter = ["nsenter", "--target", str(pid), *NAMESPACES]
        self._namespaces = Path(f"/proc/{pid}/ns")

    def popen(self, argv: Sequence[str], *, env=None, cwd="/", **settings) -> Inside:
        """Start a program; the settings are those of ``subprocess.Popen``.

        Args:
            argv: The program and its arguments.
            env: Variables to add to this process's own.
            cwd: Where it runs, as its place sees it.
            settings: More for ``subprocess.Popen``.
        """
        prefix = [*self._enter, "setpriv", "--pdeathsig", "KILL", "env", "-C", str(cwd)]
        return Inside([*prefix, *argv], env={**os.environ, **(env or {})}, **settings)

    def run(
        self, argv: Sequence[str], *, timeout_s=WITHIN_S, check=False, stdin=None, **settings
    ) -> subprocess.CompletedProcess:
        """Run a program to its end and return it with its output, as text unless told otherwise.

        Args:
            argv: The program and its arguments.
            timeout_s: When it is killed, and ``TimeoutExpired`` raised.
            check: Whether a failure is an error; its message holds the output.
            stdin: What it reads there, in full.
            settings: More for :meth:`popen`.
        """
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        pipes["stdin"] = subprocess.PIPE if stdin is not None else subprocess.DEVNULL
        with self.popen(argv, **{"text": True, **pipes, **settings}) as process:
            try:
                output, errors = process.communicate(stdin, timeout_s)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise RuntimeError(
                f"{list(argv)} ended with {process.returncode} on {self.name}:\n{output}{errors}"
            )
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def processes(self) -> dict[int, str]:
        """Return what runs there: process ids as seen from outside, and their command lines."""
        try:
            here = _identity(self._namespaces)
        except OSError:
            return {}  # it has no power
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ends just now
                if _identity(process / "ns") == here:
                    found[int(process.name)] = _command(process)
        return {pid: command for pid, command in found.items() if command}

    def signal_all(self, signum: signal.Signals) -> list[int]:
        """Signal everything that runs there and return whom."""
        pids = list(self.processes())
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
        return pids


def state(pid: int) -> str:
    """Return the letter by which the kernel tells what a process does; nothing if it is gone."""
    with suppress(OSError):
        return _stat(pid)[0]
    return ""


def waiting_for(pid: int) -> int | None:
    """Return the ``nsenter`` that waits, outside, for a program."""
    with suppress(OSError):
        parent = int(_stat(pid)[1])
        if Path(f"/proc/{parent}/comm").read_text() == "nsenter\n":
            return parent
    return None


def _identity(namespaces: Path) -> list[int]:
    """Return what tells a host's processes from others, and from an ``nsenter`` on its way."""
    return [os.stat(namespaces / kind).st_ino for kind in ("net", "pid")]


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _command(process: Path) -> str:
    """Return a command line; that of a zombie is empty."""
    return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def wait(
    ready: Callable[[], object],
    what: str,
    words: Callable[[], str] = str,
    *,
    timeout_s: float = WITHIN_S,
) -> None:
    """Wait until something is so; if it never is, ``words`` say more about it."""
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {timeout_s:g} s in vain for {what}\n{words()}")
        time.sleep(0.002)
