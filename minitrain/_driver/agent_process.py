"""One agent as its driver sees it: on this host a child, elsewhere what a transport leads to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from minitrain._env import AGENT_VARIABLES, CROSSED_VARIABLE
from minitrain._hosts.contact import Contact, kill_for_certain
from minitrain._hosts.crossing import crossing
from minitrain._hosts.plan import Plan
from minitrain._hosts.spec import Host
from minitrain._os.processes import MARK_VARIABLE, agent_folder, remove_traces
from minitrain._wire.channel import Channel, ChannelClosed
from minitrain._wire.messages import AgentReady, Exit, Ping, Pong, Preload
from minitrain.exceptions import HostError, describe_exit

__all__ = ["HERE", "AgentKey", "AgentProcess", "key_of"]

HERE = Host("localhost")
"""This machine."""

_COMMAND = (sys.executable, "-P", "-m", "minitrain._agent")
_LEAVE_S = 5.0
"""How long an agent that was sent away may take to end."""

AgentKey: TypeAlias = tuple[object, ...]
"""What an agent must have in common with a host of a run to be lent to it."""


def key_of(host: Host, plan: Plan) -> AgentKey:
    """Return what tells the agents of a host, reached in some way, from others."""
    if host.is_here:
        return ("",)
    way = plan.transport.by_hand or plan.transport.template  # however long ssh waits on it
    return (host.name, way, plan.python, plan.env, plan.working_dir)


class AgentProcess:
    """An agent.

    Args:
        host: Where it runs.
        plan: How it is reached, if that is not here.
        silence_s: How long an agent elsewhere may say nothing, and its driver to it.

    Attributes:
        key: What it is lent by.
        host: Where it runs.
        is_here: Whether that is this host.
        name: What tells it from all others; its host has it in the mark of its processes.
        facts: What it said when it was ready; None before.
        lost: Whether it is known to be gone, or out of reach.
        silent: Whether it is out of reach: it may be there and not know.
        leaving: Whether its host is about to be taken away.
        given_up: Why its driver has given it up, if so.
        heard_s: When it last said something, on the monotonic clock.
        clock_ahead_s: How much its host's monotonic clock is ahead of this one's.

    Raises:
        HostError: The transport cannot be started here.
    """

    def __init__(self, host: Host, plan: Plan, silence_s: float) -> None:
        self.key = key_of(host, plan)
        self.host = host
        self.is_here = host.is_here
        self.name = uuid.uuid4().hex[:12]
        self.facts: AgentReady | None = None
        self.lost = self.silent = self.leaving = False
        self.given_up = ""
        self.silence_s = silence_s
        self.heard_s = time.monotonic()
        self.clock_ahead_s = 0.0
        self._preloaded: set[str] = set()
        self._waiting: deque[Any] = deque()  # messages for an agent that has not greeted yet
        self._contact: Contact | None = None
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes]
        if self.is_here:
            self._start_here()
        else:
            self._start_there(plan)

    def _start_here(self) -> None:
        self._mark = f"{os.environ.get(MARK_VARIABLE, '')}/{self.name}"
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*_COMMAND, "--driver", str(os.getpid()), "--name", self.name],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=_environment_here(self._mark),
                start_new_session=True,  # a terminal's Ctrl-C is the driver's to act on
            )
        descriptor = ours.detach()
        self._channel = Channel(descriptor, descriptor)

    def _start_there(self, plan: Plan) -> None:
        crossed = crossing(os.environ, plan.env)
        environ = {
            **crossed,
            **AGENT_VARIABLES,
            MARK_VARIABLE: self.name,
            CROSSED_VARIABLE: ",".join(crossed),
        }
        arguments = ["--name", self.name, "--silence", str(self.silence_s)]
        self._contact = Contact(self.host, plan, arguments, environ)
        self._process = self._contact.process

    # ------------------------------------------------------------------ the two ways
    @property
    def pid(self) -> int:
        """The process here: the agent's, or that of the transport."""
        return self._process.pid

    @property
    def read_fd(self) -> int:
        """Where it is heard."""
        return self._ends[0]

    @property
    def write_fd(self) -> int:
        """Where it is told."""
        return self._ends[1]

    @property
    def _ends(self) -> tuple[int, int]:
        if self._channel is not None:
            return self._channel.read_fd, self._channel.write_fd
        assert self._contact is not None
        return self._contact.read_fd, self._contact.write_fd

    @property
    def wants_to_write(self) -> bool:
        """Whether there is something to send when ``write_fd`` is writable."""
        if self._channel is not None:
            return self._channel.unsent_bytes > 0
        assert self._contact is not None
        return self._contact.wants_to_write

    def send(self, message: Any, data: bytes = b"") -> None:
        """Send a message, now or as soon as that is possible.

        Args:
            message: The message.
            data: What its field ``data`` is to be where it arrives.

        Raises:
            ChannelClosed: It is gone.
        """
        if self._channel is None:
            assert not data, "it is of a worker, which there can be none of yet"
            self._waiting.append(message)
        else:
            self._channel.send(message, data)

    def receive(self) -> list[Any]:
        """Return what it has said, without waiting, and send what waits to be sent.

        Raises:
            ChannelClosed: It is gone.
            HostError: It could not be started.
        """
        if self._channel is None and not self._is_handed_over():
            return []
        assert self._channel is not None
        with suppress(ChannelClosed):  # what it has said before is read first
            self._channel.flush()
        messages = self._channel.receive()
        self.heard_s = time.monotonic()
        for message in messages:
            if isinstance(message, AgentReady):
                self.facts = message
                self.clock_ahead_s = 0.0 if self.is_here else message.time_s - self.heard_s
        return [message for message in messages if not isinstance(message, Pong)]

    def _is_handed_over(self) -> bool:
        """Go on with the greeting; return whether the agent is at the other end now."""
        assert self._contact is not None
        if not self._contact.advance():
            return False
        self._channel = Channel(*self._contact.hand_over(), received=self._contact.leftover)
        while self._waiting:
            self._channel.send(self._waiting.popleft())
        return True

    def look(self) -> None:
        """Go on with the greeting of an agent that nobody has been lent; it says nothing else."""
        try:
            self.receive()
        except (ChannelClosed, HostError):  # whoever is to be lent it gets another
            self.lost = True

    def ping(self) -> None:
        """Tell an agent elsewhere that its driver is alive."""
        if not self.is_here and self.facts is not None and not self.lost:
            with suppress(ChannelClosed):  # whoever waits for it will notice
                self.send(Ping(self.silence_s))
                if self._channel is not None:
                    self._channel.flush()  # the main thread may not come to it for long

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
                self.send(Preload(tuple(new), when_idle))

    # ------------------------------------------------------------------ its end
    @property
    def is_usable(self) -> bool:
        """Whether it runs, as far as anybody knows."""
        return not self.lost and not self.leaving and self._process.poll() is None

    def exitcode(self) -> int:
        """Return how its process here ended, once its channel is closed."""
        try:
            return self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            kill_for_certain(self._process)
            return self._process.poll() or 0

    def why_lost(self) -> str:
        """Return in words how an agent elsewhere was lost."""
        if self.given_up:
            return f"the agent there {self.given_up}"
        if self.silent:
            return (
                f"it has said nothing for {self.silence_s:g} s (heartbeat_timeout_s): it was "
                "switched off, stopped, or cut off from this host"
            )
        exitcode = self.exitcode()
        assert self._contact is not None
        words = [line.strip() for line in self._contact.words().splitlines() if line.strip()]
        said = f": {words[-1]}" if words else ""
        return f"the agent there ended (its transport {describe_exit(exitcode)}{said})"

    def late(self, waited_s: float) -> Exception | None:
        """Return why it is not ready yet, if it has not even greeted."""
        if self._channel is not None or self._contact is None:
            return None
        return self._contact.error(waited_s)

    def kill(self) -> None:
        """End it, and its workers with it: it does not answer, and would not take an order."""
        self.lost = True
        kill_for_certain(self._process)

    def send_away(self) -> None:
        """Tell it to end; nobody waits for that yet."""
        with suppress(ChannelClosed):
            self.send(Exit())

    def close(self) -> None:
        """Send it away and see to it that nothing of it is left."""
        if not self.silent:
            self.send_away()
        if self._channel is not None:
            self._channel.close()
            if not self.silent:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_LEAVE_S)
        if self._contact is not None:
            self._contact.close()
            return
        kill_for_certain(self._process)
        remove_traces(self._mark, agent_folder(self.name))


def _environment_here(mark: str) -> dict[str, str]:
    home = str(Path(__file__).parents[2])
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        **AGENT_VARIABLES,
        MARK_VARIABLE: mark,
        "PYTHONPATH": f"{home}{os.pathsep}{path}" if path else home,
    }
