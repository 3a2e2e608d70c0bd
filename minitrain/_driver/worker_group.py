"""The workers of one attempt, as the driver reaches them through their agent.

Everything that can happen arrives through :meth:`WorkerGroup.receive`, the one wait of a run.
"""

from __future__ import annotations

import pickle
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import cloudpickle

from minitrain._driver.agents import AgentProcess
from minitrain._driver.clerk import Clerk
from minitrain._driver.failures import exception_of
from minitrain._driver.interrupt import Interrupts
from minitrain._wire.channel import ChannelClosed
from minitrain._wire.messages import (
    AgentReady,
    AttemptGone,
    Execute,
    Executed,
    FromWorker,
    Joined,
    Output,
    PreemptionSensed,
    Raised,
    Returned,
    StacksWritten,
    StoreServed,
    ToWorker,
    WorkerExited,
    WorkerNews,
    WorkerOrder,
    WorkerStarted,
)
from minitrain.exceptions import LaunchError

__all__ = [
    "AgentLost",
    "Happening",
    "Interrupt",
    "News",
    "StorageWorkDone",
    "WorkerGroup",
    "WorkersUnableError",
]


@dataclass(frozen=True, slots=True)
class News:
    """A worker said something."""

    rank: int
    message: WorkerNews


@dataclass(frozen=True, slots=True)
class AgentLost:
    """The agent ended, and its workers with it."""

    exitcode: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The driver was sent a signal: Ctrl-C, or SIGTERM.

    Attributes:
        signum: Which.
    """

    signum: signal.Signals


@dataclass(frozen=True, slots=True)
class StorageWorkDone:
    """The clerk has something to deliver."""


Happening: TypeAlias = (
    News | AgentReady | StoreServed | WorkerStarted | WorkerExited | Output | AttemptGone
    | AgentLost | Interrupt | StorageWorkDone | PreemptionSensed | StacksWritten
)  # fmt: skip


class WorkersUnableError(LaunchError):
    """A backend asked workers that cannot answer; what happened to them is still to be received."""


class WorkerGroup:
    """The workers of one attempt.

    Args:
        agent: Where they run.
        interrupts: What notices signals.
        resources: Of one worker.

    Attributes:
        attempt: The attempt they belong to.
        world_size: Their number.
        pids: Their process ids, by rank.
        answer_by_s: Until when, on the monotonic clock, they must answer :meth:`execute`.
    """

    def __init__(
        self, agent: AgentProcess, interrupts: Interrupts, resources: dict[str, float]
    ) -> None:
        self.agent = agent
        self._interrupts = interrupts
        self._resources = resources
        self.attempt = -1
        self.world_size = 0
        self.pids: dict[int, int] = {}
        self._idle: set[int] = set()
        self._calls = 0
        self._kept: deque[Happening] = deque()
        self.answer_by_s: float | None = None
        self._waits_to_write = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(agent.channel.read_fd, selectors.EVENT_READ)
        self._selector.register(interrupts, selectors.EVENT_READ)

    def listen_to(self, clerk: Clerk) -> None:
        """Wait for a clerk's work as well."""
        self._selector.register(clerk, selectors.EVENT_READ)

    def close(self) -> None:
        """Close what it waits with."""
        self._selector.close()

    def begin(self, attempt: int, world_size: int) -> None:
        """Turn to another attempt."""
        self.attempt, self.world_size = attempt, world_size
        self.pids.clear()
        self._idle.clear()
        self._kept.clear()

    # ------------------------------------------------------------------ orders
    def order_agent(self, order: Any) -> None:
        """Send the agent an order; a lost agent is noticed by the next wait."""
        try:
            self.agent.channel.send(order)
        except ChannelClosed:
            self.agent.lost = True

    def order(self, rank: int, order: WorkerOrder) -> None:
        """Send a worker an order."""
        self.order_agent(ToWorker(self.attempt, rank, order))

    def order_all(self, order: WorkerOrder) -> None:
        """Send every worker an order."""
        for rank in range(self.world_size):
            self.order(rank, order)

    def train(self, order: WorkerOrder) -> None:
        """Tell every worker to train; until they return they can do nothing else."""
        self._idle.clear()
        self.order_all(order)

    # ------------------------------------------------------------------ the one wait
    def receive(self, deadline_s: float | None) -> list[Happening]:
        """Return what has happened; waits until something does, or the deadline passes.

        Args:
            deadline_s: On the monotonic clock; None: for as long as it takes.
        """
        if self._kept:
            kept = list(self._kept)
            self._kept.clear()
            return kept
        return self._wait(deadline_s)

    def _wait(self, deadline_s: float | None) -> list[Happening]:
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            self._follow_unsent()
            ready = self._selector.select(left_s)
            happened: list[Happening] = []
            for key, events in ready:
                if key.fileobj is self._interrupts:
                    happened += [Interrupt(signum) for signum in self._interrupts.take()]
                elif isinstance(key.fileobj, Clerk):
                    happened.append(StorageWorkDone())
                else:
                    happened += self._from_agent(events)
            if happened or (deadline_s is not None and time.monotonic() >= deadline_s):
                return happened

    def _follow_unsent(self) -> None:
        wanted = self.agent.channel.unsent_bytes > 0
        if wanted != self._waits_to_write and not self.agent.lost:
            self._waits_to_write = wanted
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(self.agent.channel.read_fd, events)

    def _from_agent(self, events: int) -> Iterable[Happening]:
        try:
            if events & selectors.EVENT_WRITE:
                self.agent.channel.flush()
            messages = self.agent.channel.receive() if events & selectors.EVENT_READ else []
        except ChannelClosed:
            self.agent.lost = True
            self._selector.unregister(self.agent.channel.read_fd)
            return [AgentLost(self.agent.exitcode())]
        return [happening for message in messages for happening in self._unpacked(message)]

    def _unpacked(self, message: Any) -> list[Happening]:
        if isinstance(message, AgentReady):
            self.agent.facts = message
            return [message]
        if isinstance(message, StoreServed | PreemptionSensed):
            return [message]
        if message.attempt != self.attempt:
            return []  # late news from an attempt that is over
        if isinstance(message, FromWorker):
            news = [pickle.loads(data) for data in message.news]
            self._follow(message.rank, news)
            return [News(message.rank, one) for one in news]
        if isinstance(message, WorkerStarted):
            self.pids[message.rank] = message.pid
        elif isinstance(message, WorkerExited):
            self._idle.discard(message.rank)
        assert isinstance(
            message, WorkerStarted | WorkerExited | Output | AttemptGone | StacksWritten
        )
        return [message]

    def _follow(self, rank: int, news: list[WorkerNews]) -> None:
        for one in news:
            if isinstance(one, Joined | Returned):
                self._idle.add(rank)
            elif isinstance(one, Raised):
                self._idle.discard(rank)

    def keep(self, happenings: Iterable[Happening]) -> None:
        """Put back what was received for somebody else."""
        self._kept.extend(happenings)

    # ------------------------------------------------------------------ for backends
    def __len__(self) -> int:
        """Return the number of workers."""
        return self.world_size

    def get_resources_per_worker(self) -> dict[str, float]:
        """Return the resources of one worker."""
        return dict(self._resources)

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function in every worker at once and return the results by rank.

        Raises:
            WorkersUnableError: A worker is gone, or busy training.
            Exception: What the function raised, from the lowest rank where it did.
        """
        return self._execute(range(self.world_size), (function, args, kwargs))

    def execute_single(
        self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function in one worker and return its result; raises as :meth:`execute`."""
        return self._execute([rank], (function, args, kwargs))[0]

    def _execute(self, ranks: Iterable[int], call: tuple[Any, ...]) -> list[Any]:
        data = cloudpickle.dumps(call)
        waiting = list(ranks)
        self._require_idle(waiting)
        self._calls += 1
        for rank in waiting:
            self.order(rank, Execute(self._calls, data))
        answers: dict[int, Executed] = {}
        others: list[Happening] = []
        try:
            while len(answers) < len(waiting):
                for happening in self._wait(self.answer_by_s):
                    match happening:
                        case News(rank=rank, message=Executed() as answer) if (
                            answer.call == self._calls
                        ):
                            answers[rank] = answer
                        case _:
                            others.append(happening)
                if any(isinstance(one, WorkerExited | AgentLost | Interrupt) for one in others):
                    raise WorkersUnableError("workers ended while the backend asked them")
                if self.answer_by_s is not None and time.monotonic() >= self.answer_by_s:
                    late = sorted(set(waiting) - answers.keys())
                    raise LaunchError(f"rank {late} did not answer the backend in time")
        finally:
            self.keep(others)
        return [_value(answers[rank]) for rank in waiting]

    def _require_idle(self, ranks: Iterable[int]) -> None:
        busy = [rank for rank in ranks if rank not in self._idle]
        if busy:
            raise WorkersUnableError(f"rank {busy} cannot answer: it is training, or gone")


def _value(answer: Executed) -> Any:
    if answer.failure is not None:
        error = exception_of(answer.failure)
        error.add_note(answer.failure.traceback)
        raise error
    return pickle.loads(answer.value) if answer.value is not None else None
