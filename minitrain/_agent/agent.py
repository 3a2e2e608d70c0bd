"""The agent's life: one wait on its driver, its workers and the next deadline.

::

    driver --- channel ---> orders  --> fork, pass on, stop
           <-- news ------- rings, outputs, ends of workers

It has no threads and never touches CUDA, so that it can always fork another worker. Whatever
happens to the driver ends the channel, and with it the agent and all that carry its mark.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from minitrain._agent.child import Child, fork_worker
from minitrain._agent.preload import preload
from minitrain._agent.store import Store
from minitrain._os.machine import interface_towards, num_cpus
from minitrain._os.memory import OomCounter
from minitrain._os.processes import (
    MARK_VARIABLE,
    adopt_orphans,
    make_private_folder,
    reap_orphans,
    remove_shared_memory,
    remove_traces,
)
from minitrain._os.stacks import stacks_of
from minitrain._storage.rows import node_ip
from minitrain._wire.channel import Channel, ChannelClosed
from minitrain._wire.messages import (
    AgentReady,
    AttemptGone,
    Exit,
    FromWorker,
    Output,
    PreemptionSensed,
    Preload,
    ServeStore,
    StacksWritten,
    StartWorkers,
    StopWorkers,
    StoreServed,
    ToWorker,
    WorkerExited,
    WorkerStarted,
    WriteStacks,
)

__all__ = ["Agent"]

_REAP_S = 5.0
"""How long processes may take to vanish after SIGKILL; one stuck in the kernel never does."""
_MAX_UNSENT_BYTES = 16 << 20
"""While the driver leaves more than this unread, workers keep what they have to say."""

_ORPHANS_S = 1.0
"""How long killed descendants, whose parents were killed before them, may take to vanish."""
_IDLE_S = 0.2
"""How long there must have been nothing to do before a module is imported in advance."""

Callback: TypeAlias = Callable[[], object]


@dataclass(slots=True)
class _Stop:
    """An ordered stop under way: what comes next, and when."""

    attempt: int
    steps: list[tuple[float, signal.Signals | None]]


class Agent:
    """Runs workers for one driver.

    Args:
        channel: To the driver, over two descriptors.
        driver: The driver's process id if it is on this host, else 0.
        folder: For temporary files of this agent's workers; it need not exist.
    """

    def __init__(self, channel: Channel, driver: int, folder: Path) -> None:
        self._channel = channel
        self._mark = os.environ[MARK_VARIABLE]
        self._folder = folder
        self._driver = driver
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._store: Store | None = None
        self._stop: _Stop | None = None
        self._leaving = False
        self._when_idle: list[str] = []
        self._paused = False
        self._waits_to_write = False
        self._num_cpus = num_cpus()
        self._oom_counter: OomCounter
        self._driver_pidfd: int | None = None
        self._watch(channel.read_fd, self._read_orders)
        self._sigterm_fd = _eventfd_of(signal.SIGTERM)
        self._watch(self._sigterm_fd, self._sense_preemption)
        adopt_orphans()
        if driver:
            self._watch_driver(driver)

    def _watch(self, descriptor: int, callback: Callback) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def _watch_driver(self, driver: int) -> None:
        """Notice the driver's death even if a child of it holds the channel open."""
        try:
            self._driver_pidfd = os.pidfd_open(driver)
        except OSError:
            self._leaving = True
            return
        self._watch(self._driver_pidfd, self._leave)

    def _leave(self) -> None:
        self._leaving = True

    def _sense_preemption(self) -> None:
        os.eventfd_read(self._sigterm_fd)
        self._send(PreemptionSensed())

    # ------------------------------------------------------------------ the one wait
    def run(self) -> None:
        """Serve the driver until it is gone or sends the agent away."""
        self._send(AgentReady(os.getpid(), socket.gethostname(), node_ip(), self._num_cpus))
        while not self._leaving:
            ready = self._selector.select(self._time_left_s())
            for key, _ in ready:
                callback: Callback = key.data
                callback()
                if self._leaving:
                    break
            self._take_due_step()
            if not ready and self._is_idle():
                preload([self._when_idle.pop(0)])
        self._end_everything()

    def _is_idle(self) -> bool:
        return bool(self._when_idle) and not self._children and self._stop is None

    def _time_left_s(self) -> float | None:
        if self._is_idle():
            return _IDLE_S
        if self._stop is None:
            return None
        return max(0.0, self._stop.steps[0][0] - time.monotonic())

    def _send(self, message: Any) -> None:
        try:
            self._channel.send(message)
        except ChannelClosed:
            self._leaving = True
        self._follow_unsent()

    def _flush(self) -> None:
        try:
            self._channel.flush()
        except ChannelClosed:
            self._leaving = True
        self._follow_unsent()

    def _follow_unsent(self) -> None:
        """Wait for the channel to be writable exactly while something is unsent."""
        wanted = self._channel.unsent_bytes > 0
        if wanted != self._waits_to_write:
            self._waits_to_write = wanted
            if wanted:
                self._selector.register(self._channel.write_fd, selectors.EVENT_WRITE, self._flush)
            else:
                self._selector.unregister(self._channel.write_fd)
        self._follow_pressure()

    def _follow_pressure(self) -> None:
        """Listen to the workers exactly while the driver keeps up."""
        paused = self._channel.unsent_bytes > _MAX_UNSENT_BYTES
        if paused == self._paused:
            return
        self._paused = paused
        for child in self._children.values():
            if paused:
                self._selector.unregister(child.ring.fileno())
                self._unwatch_output(child)
            else:
                self._listen_to(child)

    # ------------------------------------------------------------------ orders
    def _read_orders(self) -> None:
        try:
            orders = self._channel.receive()
        except ChannelClosed:
            self._leaving = True
            return
        for order in orders:
            self._obey(order)

    def _obey(self, order: Any) -> None:
        match order:
            case Preload(modules=modules, when_idle=when_idle):
                preload(modules if not when_idle else ())
                self._when_idle += modules if when_idle else ()
            case ServeStore(address=address):
                self._serve_store(address)
            case StartWorkers():
                self._start_workers(order)
            case ToWorker():
                self._pass_on(order)
            case StopWorkers():
                self._begin_stop(order)
            case WriteStacks():
                self._write_stacks(order)
            case Exit():
                self._leaving = True
            case _:
                raise AssertionError(f"unknown order {order!r}")

    def _pass_on(self, order: ToWorker) -> None:
        child = self._children.get(order.rank)
        if child is not None and child.attempt == order.attempt:
            child.order(order.order)

    def _serve_store(self, address: str) -> None:
        assert self._store is None, "the attempt before has ended, and its store with it"
        descriptors = self._own_descriptors()
        self._store = Store(address, descriptors, self._mark, self._folder, self._driver)
        self._send(StoreServed(self._store.port))

    def _own_descriptors(self) -> tuple[int, ...]:
        """Return every descriptor of the agent that no other process must hold."""
        own = [self._selector.fileno(), self._sigterm_fd]
        own += {self._channel.read_fd, self._channel.write_fd}
        if self._driver_pidfd is not None:
            own.append(self._driver_pidfd)
        for child in self._children.values():
            own += [child.pidfd, child.orders.read_fd, child.output_fd, child.log_fd]
        return tuple(own)

    def _start_workers(self, order: StartWorkers) -> None:
        interface = interface_towards(order.store_address)
        self._give_temporary_folder()
        self._oom_counter = OomCounter()
        for place in order.places:
            child = fork_worker(
                order,
                place,
                self._own_descriptors(),
                interface=interface,
                num_cpus=self._num_cpus,
            )
            self._children[place.rank] = child
            self._watch(child.pidfd, partial(self._bury, child))
            if not self._paused:
                self._listen_to(child)
            self._send(WorkerStarted(order.attempt, place.rank, child.pid))

    def _give_temporary_folder(self) -> None:
        """Have :mod:`multiprocessing` in workers put its sockets where they will be removed.

        A data loader's process that is killed leaves them behind.
        """
        make_private_folder(self._folder)
        config = mp.process.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
        config["tempdir"] = str(self._folder)

    # ------------------------------------------------------------------ news of workers
    def _listen_to(self, child: Child) -> None:
        self._watch(child.ring.fileno(), partial(self._pass_news_on, child))
        self._watch(child.output_fd, partial(self._pass_output_on, child))

    def _unwatch_output(self, child: Child) -> None:
        with suppress(KeyError):  # it closed its output long ago
            self._selector.unregister(child.output_fd)

    def _pass_news_on(self, child: Child) -> None:
        news = child.ring.take()
        if news:
            self._send(FromWorker(child.attempt, child.rank, tuple(news)))

    def _pass_output_on(self, child: Child) -> bytes:
        data = child.read_output()
        if data and child.on_console:
            self._send(Output(child.attempt, child.rank, data))
        if not data:  # it closed its output
            self._unwatch_output(child)
        return data

    def _bury(self, child: Child) -> None:
        """Pass on what a worker left behind, end what it started, and say how it ended."""
        noticed_s = time.monotonic()
        exitcode, peak_bytes = child.reap()
        oom = self._oom_counter.evidence() if exitcode == -signal.SIGKILL else None
        news = child.ring.take()
        if news:
            self._send(FromWorker(child.attempt, child.rank, tuple(news)))
        while self._pass_output_on(child):
            pass
        for descriptor in (child.ring.fileno(), child.output_fd, child.pidfd):
            with suppress(KeyError):
                self._selector.unregister(descriptor)
        del self._children[child.rank]
        child.close()
        self._send(WorkerExited(child.attempt, child.rank, exitcode, peak_bytes, noticed_s, oom))
        if self._stop is not None and not self._children:
            self._finish_stop()

    def _write_stacks(self, order: WriteStacks) -> None:
        pids = {child.pid: rank for rank, child in self._children.items()}
        texts = stacks_of(pids, order.timeout_s, wake=True)
        stacks = {pids[pid]: text for pid, text in texts.items()}
        for rank, text in stacks.items():
            with suppress(OSError):  # a full disk; the driver is told them as well
                Path(order.log_dir, f"stacks_rank_{rank}.txt").write_text(text, encoding="utf-8")
        self._send(StacksWritten(order.attempt, stacks))

    # ------------------------------------------------------------------ stopping
    def _begin_stop(self, order: StopWorkers) -> None:
        """Ask, then tell, then make: each step for all workers at once."""
        now_s = time.monotonic()
        term_s = now_s + order.leave_s
        kill_s = term_s + order.grace_s
        steps = [(term_s, signal.SIGTERM), (kill_s, signal.SIGKILL), (kill_s + _REAP_S, None)]
        self._stop = _Stop(order.attempt, list(steps))
        if not self._children:
            self._finish_stop()

    def _take_due_step(self) -> None:
        while self._stop is not None and self._stop.steps[0][0] <= time.monotonic():
            _, signum = self._stop.steps.pop(0)
            if signum is None:
                self._finish_stop()
                return
            for child in self._children.values():
                child.signal(signum)
                child.signal(signal.SIGCONT)  # one that was stopped hears SIGTERM only then

    def _finish_stop(self) -> None:
        assert self._stop is not None
        survivors = tuple(child.pid for child in self._children.values())
        attempt, self._stop = self._stop.attempt, None
        if self._store is not None:
            self._store.stop()
            self._store = None
        killed = remove_traces(self._mark, self._folder, spare=survivors)
        if not survivors:
            remove_shared_memory([*killed, *reap_orphans(_ORPHANS_S)])
        self._send(AttemptGone(attempt, survivors))

    def _end_everything(self) -> None:
        with suppress(ChannelClosed):
            self._channel.flush()
        for child in self._children.values():
            child.signal(signal.SIGKILL)
            child.read_output()
        killed = remove_traces(self._mark, self._folder)
        remove_shared_memory([*killed, *reap_orphans(_ORPHANS_S)])
        os._exit(0)  # runs no exit handlers of what was only preloaded


def _eventfd_of(signum: signal.Signals) -> int:
    """Return a descriptor that is readable when a signal has come."""
    descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    signal.signal(signum, lambda *_: os.eventfd_write(descriptor, 1))
    return descriptor
