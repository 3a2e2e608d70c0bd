"""Drivers in the world: processes that call fit() when a test asks them to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.hosts.namespaces import wait
from tests.hosts.world import World

CONSOLE = Path(__file__).with_name("scripts") / "console.py"
WITHIN_S = 40.0
"""How long a run may take before it counts as broken; a cold host imports torch first."""

_AGENT = re.compile(r"minitrain\._agent .*--name (\w+)")
_PROJECT = str(Path(__file__).parents[2])


class Driver:
    """A process where the driver runs that knows how to call ``fit()``.

    Args:
        world: The hosts.
        folder: For its output.
        env: More variables.
        cwd: Where it runs.
        script: What it runs; another one may understand other requests.
    """

    def __init__(self, world: World, folder: Path, *, env=(), cwd=None, script=CONSOLE) -> None:
        self.world = world
        self._output = folder / "output"
        self._asked_at = -1
        own = {
            "MINITRAIN_SSH_OPTIONS": f"-F {world.ssh_config}",
            "MINITRAIN_PRESTART": "0",
            "PYTHONPATH": _PROJECT,
        }
        with self._output.open("wb") as output:
            self.process = world.popen(
                [sys.executable, str(script)],
                env={**own, **dict(env)},
                cwd=cwd or folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        """What it has printed since it was last asked for something."""
        return self._output.read_bytes()[max(0, self._asked_at) :].decode(errors="replace")

    def begin(self, what: str, /, **settings) -> None:
        """Ask it to do something; :meth:`answer` waits for its end."""
        self._asked_at = self._output.stat().st_size
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([what, settings]).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float = WITHIN_S) -> dict:
        """Return how what was begun went."""
        self.wait_for("\nanswer: ", timeout_s)
        wait(lambda: self.said.endswith("\n"), "the end of the line")
        return json.loads(self.said.rpartition("\nanswer: ")[2])

    def wait_for(self, text: str, timeout_s: float = WITHIN_S) -> None:
        """Wait until it has printed a text since it was last asked for something."""
        self.wait_until(lambda: text in self.said, repr(text), timeout_s)

    def wait_until(self, ready, what: str, timeout_s: float = WITHIN_S) -> None:
        """Wait until something is so, as long as it does what it was asked for."""

        def ready_or_over() -> bool:
            over = self.process.poll() is not None or "\nanswer: " in self.said
            return ready() or over

        wait(ready_or_over, what, lambda: self.said, timeout_s=timeout_s)
        assert ready(), f"it came to its end without {what}:\n{self.said}"

    def interrupt(self) -> None:
        """End what a test that failed has left under way."""
        if self.process.poll() is None and self._asked_at >= 0 and "\nanswer: " not in self.said:
            self.process.send_signal(signal.SIGINT)
            self.answer()

    def fit(self, train: str, folder: Path, hosts: Iterable[str], num_workers, **settings) -> dict:
        """Have it call ``fit()`` and return what came of it."""
        self.begin_fit(train, folder, hosts, num_workers, **settings)
        return self.answer()

    def begin_fit(
        self, train: str, folder: Path, hosts: Iterable[str], num_workers, *, scaling=(), **settings
    ) -> None:
        """Have it call ``fit()``; see the script for the settings."""
        scaling = {"hosts": list(hosts), "num_workers": num_workers, **dict(scaling)}
        self.begin("fit", train=train, folder=str(folder), scaling=scaling, **settings)

    def ask(self, what: str, /, **settings):
        """Ask it to do something, and return its answer."""
        self.begin(what, **settings)
        return self.answer()

    @contextmanager
    def environment(self, **variables: str | None) -> Generator[None]:
        """Change its environment; None removes a variable."""
        before = self.ask("setenv", variables=variables)
        try:
            yield
        finally:
            self.ask("setenv", variables=before)

    @contextmanager
    def working_in(self, folder: Path) -> Generator[None]:
        """Have it work in a folder, and find modules there."""
        before = self.ask("move_to", folder=str(folder))
        try:
            yield
        finally:
            self.ask("move_to", folder=before)

    def wait_until_idle(self, within_s: float) -> dict[str, dict[int, str]]:
        """Wait until its agents have nothing to do, and return what more there still is by host."""
        deadline_s = time.monotonic() + within_s
        while left := {
            host: found
            for host in self.world.hosts
            if (found := more_than_agents(self.world.processes(host)))
        }:
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.02)
        return left

    def end(self) -> int:
        """Have it leave by itself, and return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(WITHIN_S)

    def kill(self) -> None:
        """End it without a word."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Steps:
    """What the workers of the train function ``steps`` have done, as they note it.

    Args:
        driver: Who trains.
        folder: Where they note it.
    """

    def __init__(self, driver: Driver, folder: Path) -> None:
        self._driver = driver
        self._folder = folder

    def at(self, rank: int) -> dict:
        """Return where a rank is: its host, process, agent, first step and latest step."""
        path = self._folder / f"at_{rank}"
        return json.loads(path.read_text()) if path.exists() else {}

    def wait(self, ranks: int, *, first: int = 0, more: int = 2, on=None) -> list[dict]:
        """Wait until ranks have trained some steps of an attempt, and return where they are.

        Args:
            ranks: Their number.
            first: The earliest step that the attempt may have begun with.
            more: The number of steps.
            on: Their hosts, if those matter.
        """

        def there() -> bool:
            found = [self.at(rank) for rank in range(ranks)]
            return all(
                one and one["first"] >= first and one["step"] >= one["first"] + more - 1
                and one["world"] == ranks
                for one in found
            ) and (on is None or [one["host"] for one in found] == on)  # fmt: skip

        self._driver.wait_until(there, f"{ranks} ranks at work")
        return [self.at(rank) for rank in range(ranks)]

    def enough(self) -> dict:
        """Have the training end, and return the driver's answer."""
        (self._folder / "enough").touch()
        return self._driver.answer()


def run_record(folder: Path) -> dict:
    """Return a run's record."""
    return json.loads((folder / "runs/run/run.json").read_text())


def reported(folder: Path) -> list[dict]:
    """Return the rows of a run's result.json."""
    return [
        json.loads(line) for line in (folder / "runs/run/result.json").read_bytes().splitlines()
    ]


def more_than_agents(processes: Mapping[int, str]) -> dict[int, str]:
    """Return those of a host's processes that are no idle agent, nor the connection to one."""
    names = [found[1] for one in processes.values() if (found := _AGENT.search(one))]
    return {
        pid: command
        for pid, command in processes.items()
        if not command.startswith("sshd")
        and not ((found := _AGENT.search(command)) and names.count(found[1]) == 1)
    }


def seen_from_outside(world: World, host: str, pid: int) -> int:
    """Return the id by which the tests know a process of a host."""
    for outer in world.processes(host):
        lines = Path(f"/proc/{outer}/status").read_text().splitlines()
        if next(line.split()[-1] for line in lines if line.startswith("NSpid:")) == str(pid):
            return outer
    raise ProcessLookupError(f"{host} has no process {pid}")


def signal_inside(world: World, pid: int, name: str) -> None:
    """Send a signal to a process by the id that it has in the world."""
    world.run(["kill", f"-{name}", str(pid)], check=True)
