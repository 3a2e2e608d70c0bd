"""The agents of this process: started once, lent to one run at a time, ended with the process.

The first one may be started before the first ``fit()``, so that it imports torch beside the
driver instead of after it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from minitrain import _env
from minitrain._os.processes import MARK_VARIABLE, remove_traces
from minitrain._wire.channel import Channel, ChannelClosed
from minitrain._wire.messages import AgentReady, Exit, Preload

__all__ = ["SAFE_TO_FORK", "AgentProcess", "lease", "prestart", "release", "shutdown"]

SAFE_TO_FORK = (
    "accelerate",
    "datasets",
    "lightning",
    "matplotlib",
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

_COMMAND = (sys.executable, "-P", "-m", "minitrain._agent")
_LEAVE_S = 5.0
"""How long an agent that was sent away may take to end."""


class AgentProcess:
    """An agent on this host, as its driver sees it.

    Attributes:
        channel: To the agent.
        facts: What it said when it was ready; None before.
        lost: Whether it is known to be gone.
    """

    def __init__(self) -> None:
        self.facts: AgentReady | None = None
        self.lost = False
        self._preloaded: set[str] = set()
        name = uuid.uuid4().hex[:12]
        self._mark = f"{os.environ.get(MARK_VARIABLE, '')}/{name}"
        self._folder = Path(tempfile.gettempdir(), f"minitrain-{name}")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [*_COMMAND, "--driver", str(os.getpid()), "--folder", str(self._folder)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=_agent_environment(self._mark),
                start_new_session=True,  # a terminal's Ctrl-C is the driver's to act on
            )
        descriptor = ours.detach()
        self.channel = Channel(descriptor, descriptor)

    @property
    def pid(self) -> int:
        """The agent's process id."""
        return self._process.pid

    def preload(self, modules: Iterable[str], *, when_idle: bool = False) -> None:
        """Have it import modules, if it has not yet.

        Args:
            modules: Their names.
            when_idle: Whether to wait for a moment with nothing else to do; otherwise before it
                forks the next worker.
        """
        new = [module for module in dict.fromkeys(modules) if module not in self._preloaded]
        if not when_idle:
            self._preloaded.update(new)
        if new:
            with suppress(ChannelClosed):  # whoever waits for it will notice
                self.channel.send(Preload(tuple(new), when_idle))

    @property
    def is_usable(self) -> bool:
        """Whether it runs, as far as anybody knows."""
        return not self.lost and self._process.poll() is None

    def exitcode(self) -> int:
        """Return how it ended, once its channel is closed."""
        try:
            return self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        """End it, and its workers with it: it does not answer, and would not take an order."""
        self.lost = True
        self._process.kill()

    def close(self) -> None:
        """Send it away and see to it that nothing of it is left."""
        with suppress(ChannelClosed):
            self.channel.send(Exit())
        self.channel.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVE_S)
        self._process.kill()
        self._process.wait()
        remove_traces(self._mark, self._folder)


def _agent_environment(mark: str) -> dict[str, str]:
    home = str(Path(__file__).parents[2])
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        MARK_VARIABLE: mark,
        "PYTHONPATH": f"{home}{os.pathsep}{path}" if path else home,
        # Two libraries would start threads when they are imported, and the agent must have none:
        # numpy's BLAS (workers are given theirs by call) and the allocator of pyarrow.
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        # A library that asks at import whether there is a GPU must not start CUDA in the agent:
        # it could not be used in any fork. This way torch asks NVML.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


class _Pool:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.idle: list[AgentProcess] = []
        self.leased: list[AgentProcess] = []


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


def lease(preload: tuple[str, ...]) -> AgentProcess:
    """Return an agent for one run, an idle one if there is one.

    Args:
        preload: Modules it is to import, besides what it and this process have.
    """
    pool = _own_pool()
    with pool.lock:
        pool.idle = [agent for agent in pool.idle if agent.is_usable or _bury(agent)]
        agent = pool.idle.pop() if pool.idle else AgentProcess()
        pool.leased.append(agent)
    added = _added()
    if added is not None:
        agent.preload([*preload, *_safe_ones(sys.modules), *added])
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
    if used and _added() is not None:
        agent.preload(_safe_ones(used), when_idle=True)
    pool = _own_pool()
    with pool.lock:
        if agent not in pool.leased:
            return  # shutdown() was called meanwhile
        pool.leased.remove(agent)
        if agent.is_usable:
            pool.idle.append(agent)
            return
    agent.close()


def prestart(when_idle: Collection[str] = ()) -> None:
    """Start an agent now, so that it is warm when the first run asks for it.

    Does nothing where no run is likely to start: in agents, workers and other launchers'
    processes, in children made by :mod:`multiprocessing`, and with ``MINITRAIN_PRESTART=0``.

    Args:
        when_idle: Modules it may import if it has time before that.
    """
    started_by_others = (
        MARK_VARIABLE in os.environ
        or "RANK" in os.environ
        or multiprocessing.parent_process() is not None
    )
    pool = _own_pool()
    with pool.lock:
        if started_by_others or pool.idle or pool.leased or not _env.flag("MINITRAIN_PRESTART"):
            return
        agent = AgentProcess()
        pool.idle.append(agent)
    if _added() is not None:
        agent.preload(when_idle, when_idle=True)


def shutdown() -> None:
    """End every agent of this process; the next ``fit()`` starts a new one.

    Called by itself when the process ends.
    """
    pool = _own_pool()
    with pool.lock:
        agents = pool.idle + pool.leased
        pool.idle, pool.leased = [], []
    for agent in agents:  # all are told before any is waited for
        with suppress(ChannelClosed):
            agent.channel.send(Exit())
    for agent in agents:
        agent.close()


atexit.register(shutdown)
