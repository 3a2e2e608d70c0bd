"""The agents of this process: started once, lent to one run at a time, ended with the process.

The first one may be started before the first ``fit()``, so that it imports torch beside the
driver instead of after it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import select
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from minitrain import _env
from minitrain._driver.agent_process import HERE, AgentKey, AgentProcess, key_of
from minitrain._hosts.contact import make_room_for
from minitrain._hosts.plan import Plan, plan_of
from minitrain._hosts.spec import Host
from minitrain._os.launchers import is_launched
from minitrain._os.processes import MARK_VARIABLE
from minitrain.config import FailureConfig, LaunchConfig, ScalingConfig
from minitrain.exceptions import ConfigurationError, HostError

__all__ = ["SAFE_TO_FORK", "lease", "prestart", "release", "shutdown"]

SAFE_TO_FORK = (
    "accelerate",
    "datasets",
    "lightning",
    "matplotlib",
    "minitrain.data.dataset",
    "numpy",
    "pandas",
    "PIL",
    "pyarrow",
    "scipy",
    "sklearn",
    "tokenizers",
    "torch._dynamo",
    "torchmetrics",
    "torchvision",
    "tqdm",
    "transformers",
)
"""Modules that are safe to fork; the agent imports those that the driver or workers have."""

_PINGS_PER_SILENCE = 5
"""How often an agent elsewhere is told that its driver lives, in the time it may hear nothing."""


class _Pool:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.RLock()
        self.idle: list[AgentProcess] = []
        self.leased: list[AgentProcess] = []
        self.heart: _Heart | None = None

    @property
    def agents(self) -> list[AgentProcess]:
        return [*self.idle, *self.leased]

    def follow(self) -> None:
        """Have a heart exactly while there are agents elsewhere."""
        elsewhere = [agent for agent in self.agents if not agent.is_here]
        if elsewhere:
            self.beat_for(min(elsewhere, key=lambda agent: agent.silence_s))
        elif self.heart is not None:
            self.heart.stop()
            self.heart = None

    def beat_for(self, agent: AgentProcess) -> None:
        """Have a heart that beats often enough for an agent."""
        period_s = agent.silence_s / _PINGS_PER_SILENCE
        if agent.is_here or (self.heart is not None and self.heart.period_s <= period_s):
            return
        if self.heart is not None:
            self.heart.stop()
        self.heart = _Heart(self, period_s)


class _Heart:
    """Tells every agent elsewhere, again and again, that this process is alive.

    A thread, because the main one may be at something else for long: the user's own code, before
    the first run or between two. Agents that nobody has been lent yet are brought up by it, too.
    """

    def __init__(self, pool: _Pool, period_s: float) -> None:
        self.period_s = period_s
        self._pool = pool
        self._stopped = False
        self._waker = os.eventfd(0, os.EFD_CLOEXEC)
        self._next_s = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="minitrain-heart", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while True:
            self._wait()
            with self._pool.lock:
                if self._stopped:
                    os.close(self._waker)
                    return
                for agent in self._being_born():
                    agent.look()
                if time.monotonic() >= self._next_s:
                    self._next_s = time.monotonic() + self.period_s
                    for agent in self._pool.agents:
                        agent.ping()

    def _wait(self) -> None:
        """Wait for the next beat, or for an agent that comes up to say something."""
        with self._pool.lock:
            waiting = select.poll()
            waiting.register(self._waker, select.POLLIN)
            for agent in self._being_born():
                waiting.register(agent.read_fd, select.POLLIN)
                if agent.wants_to_write:
                    waiting.register(agent.write_fd, select.POLLOUT)
        waiting.poll(1000 * max(0.0, self._next_s - time.monotonic()))

    def _being_born(self) -> list[AgentProcess]:
        return [
            agent
            for agent in self._pool.idle
            if agent.facts is None and not agent.is_here and not agent.lost
        ]

    def stop(self) -> None:
        """Have it end; it does so as soon as it gets the pool's lock."""
        if not self._stopped:
            self._stopped = True
            os.eventfd_write(self._waker, 1)

    def join(self) -> None:
        """Wait until it has ended; the pool's lock must be free."""
        self._thread.join()


_pool = _Pool()


def _own_pool() -> _Pool:
    """Return the pool of this process; a forked child has none of its parent's agents."""
    global _pool  # noqa: PLW0603 - one pool per process
    if _pool.owner != os.getpid():
        _pool = _Pool()
    return _pool


def _safe_ones(modules: Collection[str]) -> list[str]:
    return [name for name in SAFE_TO_FORK if name in modules]


def _added() -> list[str] | None:
    """Return the modules the user wants preloaded as well; None if only torch is wanted."""
    added = _env.text("MINITRAIN_PRELOAD").strip()
    return None if added == "off" else [name.strip() for name in added.split(",") if name.strip()]


def lease(
    hosts: Sequence[Host], plan: Plan, silence_s: float, preload: Collection[str]
) -> list[AgentProcess | HostError]:
    """Return an agent per host for one run, idle ones where there are; others are started.

    Args:
        hosts: The hosts.
        plan: How they are reached.
        silence_s: How long an agent elsewhere may say nothing.
        preload: Modules they are to import, besides what they and this process have.

    Returns:
        The agents, or why one could not even be begun with, in the order of the hosts.
    """
    added = _added()
    modules = None if added is None else [*preload, *_safe_ones(sys.modules), *added]
    leased: list[AgentProcess | HostError] = []
    make_room_for(len(hosts))
    pool = _own_pool()
    with pool.lock:
        pool.idle = [agent for agent in pool.idle if agent.is_usable or _bury(agent)]
        idle = {agent.key: agent for agent in pool.idle}
    for host in hosts:
        try:
            agent = _lease(host, plan, silence_s, idle)
        except HostError as error:
            leased.append(error)
            continue
        leased.append(agent)
        if modules is not None:
            agent.preload(modules)
    return leased


def _lease(
    host: Host, plan: Plan, silence_s: float, idle: dict[AgentKey, AgentProcess]
) -> AgentProcess:
    pool = _own_pool()
    with pool.lock:  # for each anew: many take their time, and the heart must go on beating
        agent = idle.pop(key_of(host, plan), None)
        if agent is not None and agent in pool.idle:
            pool.idle.remove(agent)
        else:
            agent = AgentProcess(host, plan, silence_s)
        agent.silence_s, agent.heard_s = silence_s, time.monotonic()
        agent.ping()  # says so: it may hear nothing more
        pool.leased.append(agent)
        pool.beat_for(agent)
    return agent


def _bury(agent: AgentProcess) -> bool:
    agent.close()
    return False


def release(agent: AgentProcess, used: Collection[str] = ()) -> None:
    """Give an agent back after a run.

    Args:
        agent: The agent.
        used: Modules that its workers imported; the next ones will want them too.
    """
    if used and _added() is not None and not agent.lost:
        agent.preload(_safe_ones(used), when_idle=True)
    pool = _own_pool()
    with pool.lock:
        if agent not in pool.leased:
            return  # shutdown() was called meanwhile
        pool.leased.remove(agent)
        if agent.is_usable and agent.facts is not None:
            pool.idle.append(agent)
            return
    agent.close()
    with pool.lock:
        pool.follow()


def prestart(when_idle: Collection[str] = ()) -> None:
    """Start agents now, so that they are warm when the first run asks for them.

    They are those of the hosts that the environment names, or one on this machine. Does nothing
    where no run is likely to start: in agents, workers and other launchers' processes, in children
    made by :mod:`multiprocessing`, and with ``MINITRAIN_PRESTART=0``.

    Args:
        when_idle: Modules they may import if they have time before that.
    """
    started_by_others = (
        MARK_VARIABLE in os.environ
        or "RANK" in os.environ
        or is_launched(os.environ)
        or multiprocessing.parent_process() is not None
    )
    pool = _own_pool()
    with pool.lock:
        if started_by_others or pool.agents or not _env.flag("MINITRAIN_PRESTART"):
            return
        agents = _started_in_advance()
        pool.idle += agents
        pool.follow()
    if _added() is not None:
        for agent in agents:
            agent.preload(when_idle, when_idle=True)


def _started_in_advance() -> list[AgentProcess]:
    silence_s = FailureConfig().heartbeat_timeout_s
    started: list[AgentProcess] = []
    with suppress(ConfigurationError, HostError):  # fit() will say so
        plan = plan_of(ScalingConfig(), LaunchConfig())
        make_room_for(len(plan.hosts))
        started.extend(AgentProcess(host, plan, silence_s) for host in plan.hosts or [HERE])
    return started


def shutdown() -> None:
    """End every agent of this process; the next ``fit()`` starts new ones.

    Called by itself when the process ends.
    """
    pool = _own_pool()
    with pool.lock:
        agents = pool.agents
        pool.idle, pool.leased = [], []
        heart = pool.heart
        pool.follow()
    if heart is not None:
        heart.join()
    for agent in agents:  # all are told before any is waited for
        agent.send_away()
    for agent in agents:
        agent.close()


atexit.register(shutdown)
