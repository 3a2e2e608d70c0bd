"""Hosts for tests: some that stay for the whole session, and some to break."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.hosts import slurm
from tests.hosts.drivers import Driver
from tests.hosts.namespaces import DRIVER, WITHIN_S
from tests.hosts.world import World, outliving_tests, why_not

HOSTS = 4
NODES = 3
GONE_WITHIN_S = 3.0
"""How long after a test what it started on a host may take to vanish."""


@pytest.fixture(scope="session")
def hosts_can_be() -> None:
    """Skip where there can be no hosts."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def _world_of_session(hosts_can_be) -> Iterator[World]:
    with World(HOSTS) as world:
        yield world


@pytest.fixture(scope="session")
def _cluster_of_session(hosts_can_be) -> Iterator[World]:
    if reason := why_not(*slurm.PROGRAMS):
        pytest.skip(reason)
    with World(NODES) as world:
        world.slurm()
        yield world


@pytest.fixture
def world(
    leak_police, _world_of_session: World, _lasting_driver: _LastingDriver
) -> Iterator[World]:
    """Four hosts, whole again and empty after the test: what it left on one fails it."""
    _lasting_driver.end()
    yield _world_of_session
    _leave_as_found(_world_of_session)


@pytest.fixture
def cluster(leak_police, _cluster_of_session: World) -> Iterator[World]:
    """Three hosts that are the nodes of a Slurm; jobs that the test left are cancelled."""
    yield _cluster_of_session
    env = {"SLURM_CONF": _cluster_of_session.slurm_conf}
    _cluster_of_session.run(["scancel", "--user=root"], env=env)
    _leave_as_found(_cluster_of_session, WITHIN_S)  # Slurm's own processes end after seconds


class _LastingDriver:
    """A driver whose agents stay warm for as long as tests want nothing else of the hosts."""

    def __init__(self, world: World, folders: pytest.TempPathFactory) -> None:
        self._world = world
        self._folders = folders
        self._stack = ExitStack()
        self._driver: Driver | None = None

    def get(self) -> Driver:
        if self._driver is None:
            self._driver = Driver(self._world, self._folders.mktemp("driver"))
            self._stack.enter_context(outliving_tests(self._driver.process.pid))
            self._stack.callback(self._driver.kill)
        return self._driver

    def end(self) -> None:
        with self._stack:
            if self._driver is not None:
                driver, self._driver = self._driver, None
                assert driver.end() == 0
                _leave_as_found(self._world)


@pytest.fixture(scope="session")
def _lasting_driver(
    _world_of_session: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_LastingDriver]:
    driver = _LastingDriver(_world_of_session, tmp_path_factory)
    yield driver
    driver.end()


@pytest.fixture
def driver(leak_police, _lasting_driver: _LastingDriver) -> Iterator[Driver]:
    """A driver among four hosts; only it and its idle agents may be left."""
    driver = _lasting_driver.get()
    yield driver
    driver.world.tidy()
    driver.interrupt()
    left = driver.wait_until_idle(GONE_WITHIN_S)
    assert not left, f"the test left behind: {left}"


@pytest.fixture
def make_driver(world: World, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Return a function that makes a driver of its own for the test; see :class:`Driver`."""
    drivers: list[Driver] = []

    def make(**settings) -> Driver:
        folder = tmp_path / f"driver_{len(drivers)}"
        folder.mkdir()
        drivers.append(Driver(world, folder, **settings))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.kill()


@pytest.fixture
def make_world(hosts_can_be) -> Iterator[Callable[..., World]]:
    """Return a function that makes a world of its own for the test; see :class:`World`."""
    with ExitStack() as worlds:
        yield lambda hosts, **settings: worlds.enter_context(World(hosts, **settings))


def _leave_as_found(world: World, within_s: float = GONE_WITHIN_S) -> None:
    world.tidy()
    left = wait_until_empty(world, within_s)
    for pid in (pid for processes in left.values() for pid in processes):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # or it would fail the next test as well
    assert not left, f"the test left behind: {left}"


def wait_until_empty(world: World, within_s: float = GONE_WITHIN_S) -> dict[str, dict[int, str]]:
    """Wait until nothing that a test started runs on any host, and return what still does."""
    deadline_s = time.monotonic() + within_s
    while left := {
        name: found for name in (DRIVER, *world.hosts) if (found := world.processes(name))
    }:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.02)
    return left
