"""Plays the agents of many hosts, and their workers, in one process; nothing is trained.

What is said is the real protocol, from the greeting on. Every worker reports once a second, each
at a moment of its own, and returns when it has done so often enough::

    python bench/_simulated_agents.py SOCKET REPORTS
"""

from __future__ import annotations

import heapq
import json
import os
import pickle
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from minitrain._hosts.facts import own_versions
from minitrain._hosts.greeting import MARKER
from minitrain._wire import messages as wire
from minitrain._wire.channel import Channel, ChannelClosed

__all__ = ["SCALARS"]

SCALARS = {"loss": 0.125, "accuracy": 0.875, "learning_rate": 3e-4, "epoch": 3, "step": 1234}
"""What every report says."""

_PERIOD_S = 1.0
_APART_S = 0.618033988749895
"""How much later than the rank before it a worker reports, modulo the period: spread evenly."""
_BACKLOG = 4096
_READ_BYTES = 1 << 16


class _Host:
    """One host: greets, then answers orders as an agent whose workers are quick would.

    Args:
        number: Its number; also its process id.
        read_fd: Where orders arrive.
        write_fd: Where news go.
        lifeline: What its transport's process waits for the end of.
        num_reports: How many each of its workers makes.

    Attributes:
        trains: Whether its workers have just been told to train.
    """

    def __init__(
        self, number: int, read_fd: int, write_fd: int, lifeline: socket.socket, num_reports: int
    ) -> None:
        self.read_fd, self.write_fd = read_fd, write_fd
        self._number = number
        self._lifeline = lifeline
        self._num_reports = num_reports
        self._received = b""
        self._greeted = False
        self._channel: Channel | None = None
        self.ranks: list[int] = []
        self._attempt = 0
        self.trains = False

    @property
    def wants_to_write(self) -> bool:
        """Whether the driver has not taken all it was sent."""
        return self._channel is not None and self._channel.unsent_bytes > 0

    def advance(self) -> None:
        """Take what has arrived.

        Raises:
            ChannelClosed: The driver sent it away, or is gone.
        """
        if self._channel is None:
            self._greet()
        if self._channel is not None:
            self._channel.flush()
            for order in self._channel.receive():
                self._obey(order)

    def _greet(self) -> None:
        data = os.read(self.read_fd, _READ_BYTES)
        if not data:
            raise ChannelClosed
        self._received += data
        if not self._greeted:
            _program, newline, rest = self._received.partition(b"\n")
            if not newline:
                return
            self._received, self._greeted = rest, True
            os.write(self.write_fd, f"{MARKER}{json.dumps(self._facts())}\n".encode())
        length, space, rest = self._received.partition(b" ")
        if space and len(rest) >= int(length):
            self._channel = Channel(self.read_fd, self.write_fd, rest[int(length) :])
            name, now_s = f"simulated{self._number}", time.monotonic()
            self._send(wire.AgentReady(self._number, name, ("10.0.0.1",), 8, (), now_s))

    def _facts(self) -> dict[str, Any]:
        versions = own_versions()
        return {
            "hostname": f"simulated{self._number}",
            "python": versions.python,
            "executable": sys.executable,
            "minitrain": versions.minitrain,
            "torch": versions.torch,
            "num_cpus": 8,
            "gpus": [],
            "free_bytes": 1 << 34,
            "total_bytes": 1 << 35,
            "address": None,
            "time_s": time.time(),
        }

    def _send(self, message: Any) -> None:
        assert self._channel is not None
        self._channel.send(message)

    def _tell(self, rank: int, news: wire.WorkerNews) -> None:
        data = pickle.dumps(news, protocol=pickle.HIGHEST_PROTOCOL)
        self._send(wire.FromWorker(self._attempt, rank, (data,)))

    def _obey(self, order: Any) -> None:  # noqa: C901 - the protocol, line by line
        match order:
            case wire.Ping():
                self._send(wire.Pong())
            case wire.ServeStore():
                self._send(wire.StoreServed(29500))
            case wire.Survey(attempt=attempt, addresses=addresses):
                self._send(wire.Surveyed(attempt, addresses[0], ""))
            case wire.StartWorkers(attempt=attempt, places=places):
                self._attempt = attempt
                self.ranks = [place.rank for place in places]
                for rank in self.ranks:
                    self._send(wire.WorkerStarted(attempt, rank, self._number + rank))
                    self._tell(rank, wire.Joined())
            case wire.ToWorker(rank=rank, order=wire.Execute(call=call)):
                for asked in self.ranks if rank is None else [rank]:
                    self._tell(asked, wire.Executed(call, pickle.dumps(None)))
            case wire.ToWorker(order=wire.Train()):
                self.trains = True
            case wire.StopWorkers(attempt=attempt):
                for rank in self.ranks:
                    self._send(wire.WorkerExited(attempt, rank, 0, 1 << 27, time.monotonic()))
                self._send(wire.AttemptGone(attempt, ()))
            case wire.Exit():
                raise ChannelClosed
            case _:
                pass

    def report(self, rank: int, index: int) -> None:
        """Have a worker make its next report, or return if it has made all of them."""
        if index == self._num_reports:
            self._tell(rank, wire.Returned(index, None))
            return
        row = None if rank else {**SCALARS, "training_iteration": index + 1, "time_total_s": index}
        self._tell(rank, wire.Reported(index, SCALARS, row))

    def close(self) -> None:
        """Let the driver, and the transport's process, read the end."""
        for descriptor in (self.read_fd, self.write_fd):
            os.close(descriptor)
        self._lifeline.close()


class _Hosts:
    """All hosts, and the one wait for what any of them is told.

    Args:
        path: Where the processes of their transports come to.
        num_reports: How many each worker makes.
    """

    def __init__(self, path: str, num_reports: int) -> None:
        self._num_reports = num_reports
        self._count = 0
        self._due: list[tuple[float, int, int, _Host]] = []  # when, rank, which report, where
        self._selector = selectors.DefaultSelector()
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(path)
        self._door.listen(_BACKLOG)
        self._selector.register(self._door, selectors.EVENT_READ, self._take_in)

    def serve(self) -> None:
        """Serve until this process is ended."""
        while True:
            left_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, _ in self._selector.select(left_s):
                callback: Callable[[], object] = key.data
                callback()
            while self._due and self._due[0][0] <= time.monotonic():
                self._report(*heapq.heappop(self._due))

    def _take_in(self) -> None:
        lifeline, _ = self._door.accept()
        _, streams, _, _ = socket.recv_fds(lifeline, 1, 2)
        self._count += 1
        host = _Host(self._count, *streams, lifeline, self._num_reports)
        events = selectors.EVENT_READ
        self._selector.register(host.read_fd, events, lambda: self._advance(host))

    def _advance(self, host: _Host) -> None:
        try:
            host.advance()
        except ChannelClosed:
            self._let_go(host)
            return
        if host.trains:
            host.trains = False
            now_s = time.monotonic()
            for rank in host.ranks:
                due_s = now_s + rank * _APART_S % _PERIOD_S
                heapq.heappush(self._due, (due_s, rank, 0, host))
        self._follow_unsent(host)

    def _report(self, due_s: float, rank: int, index: int, host: _Host) -> None:
        with suppress(ChannelClosed):
            host.report(rank, index)
            if index < self._num_reports:
                heapq.heappush(self._due, (due_s + _PERIOD_S, rank, index + 1, host))
            self._follow_unsent(host)

    def _follow_unsent(self, host: _Host) -> None:
        registered = host.write_fd in self._selector.get_map()
        if host.wants_to_write and not registered:
            self._selector.register(
                host.write_fd, selectors.EVENT_WRITE, lambda: self._advance(host)
            )
        elif registered and not host.wants_to_write:
            self._selector.unregister(host.write_fd)

    def _let_go(self, host: _Host) -> None:
        self._selector.unregister(host.read_fd)
        if host.write_fd in self._selector.get_map():
            self._selector.unregister(host.write_fd)
        host.close()


def main() -> None:
    """Serve, with as many descriptors as are allowed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    hosts = _Hosts(sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    hosts.serve()


if __name__ == "__main__":
    main()
