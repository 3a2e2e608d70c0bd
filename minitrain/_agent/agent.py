"""The agent's life: one wait on its driver, its workers and the next deadline.

::

    driver --- channel ---> orders  --> fork, pass on, stop
           <-- news ------- rings, outputs, ends of workers

It has no threads and never touches CUDA, so that it can always fork another worker. Whatever
happens to the driver ends the channel, and with it the agent and all that carry its mark. A driver
on another host says every few seconds that it is alive: a link that was cut ends no channel.
"""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from tarfile import TarError
from typing import Any, TypeAlias

from minitrain._agent.child import Child, fork_worker
from minitrain._agent.local_order import LocalOrder
from minitrain._agent.preload import preload
from minitrain._agent.store import Store
from minitrain._agent.survey import survey
from minitrain._agent.survivor import LastDuty, Survivor
from minitrain._os.gpus import list_gpus
from minitrain._os.machine import addresses, interface_towards, num_cpus
from minitrain._os.memory import OomCounter
from minitrain._os.processes import (
    MARK_VARIABLE,
    adopt_orphans,
    agent_folder,
    make_private_folder,
    reap_orphans,
    remove_shared_memory,
    remove_traces,
)
from minitrain._os.stacks import stacks_of
from minitrain._wire.channel import Channel, ChannelClosed
from minitrain._wire.messages import (
    AgentReady,
    AttemptGone,
    Exit,
    FileAnswer,
    FileRequest,
    FromWorker,
    Output,
    Ping,
    Pong,
    PreemptionSensed,
    Preload,
    RemoveTraces,
    ServeStore,
    StacksWritten,
    StartFailed,
    StartWorkers,
    StopWorkers,
    StoreServed,
    Survey,
    TakeCode,
    ToWorker,
    WorkerExited,
    WorkerStarted,
    WriteStacks,
)

__all__ = ["Agent"]

_REAP_S = 5.0
"""How long processes may take to vanish after SIGKILL; one stuck in the kernel never does."""
_PART_BYTES = 128 << 10
"""What workers ask of the run's files travels in parts that stay in a processor's cache."""
_MAX_UNSENT_BYTES = 16 << 20
"""While the driver leaves more than this unread, workers keep what they have to say."""

_ORPHANS_S = 1.0
"""How long killed descendants, whose parents were killed before them, may take to vanish."""
_IDLE_S = 0.2
"""How long there must have been nothing to do before a module is imported in advance."""
_PONGS_PER_SILENCE = 5
"""How often the agent says that it is alive, in the time it may say nothing."""

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
        name: What the driver calls it; names the folder of its workers' temporary files.
        driver: The driver's process id if it is on this host, else 0.
        silence_s: How long a driver elsewhere may say nothing before it counts as gone.
    """

    def __init__(self, channel: Channel, name: str, driver: int, silence_s: float = 0.0) -> None:
        self._channel = channel
        self._mark = os.environ[MARK_VARIABLE]
        self._folder = agent_folder(name)
        self._driver = driver
        self._silence_s = silence_s
        self._heard_s = self._said_s = time.monotonic()
        self._orders = LocalOrder(self._folder, elsewhere=not driver)
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._store: Store | Survivor | None = None
        self._stop: _Stop | None = None
        self._leaving = False
        self._when_idle: list[str] = []
        self._paused = False
        self._waits_to_write = False
        self._num_cpus = num_cpus()
        self._buffer = memoryview(bytearray(_PART_BYTES))
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
        self._send(
            AgentReady(
                os.getpid(),
                socket.gethostname(),
                addresses(),
                self._num_cpus,
                tuple(list_gpus()),
                time.monotonic(),
            )
        )
        while not self._leaving:
            ready = self._selector.select(self._time_left_s())
            for key, _ in ready:
                callback: Callback = key.data
                callback()
                if self._leaving:
                    break
            self._take_due_step()
            if self._silence_left_s() <= 0:
                self._leaving = True
            elif not ready and self._is_idle():
                self._preload([self._when_idle.pop(0)])
        self._end_everything()

    def _is_idle(self) -> bool:
        return bool(self._when_idle) and not self._children and self._stop is None

    def _time_left_s(self) -> float | None:
        left_s = self._silence_left_s()
        if self._is_idle():
            left_s = min(left_s, _IDLE_S)
        if self._stop is not None:
            left_s = min(left_s, self._stop.steps[0][0] - time.monotonic())
        return None if left_s == math.inf else max(0.0, left_s)

    def _silence_left_s(self) -> float:
        """Return how long the driver may still say nothing; infinity if that is no sign of it."""
        if not self._silence_s:
            return math.inf
        left_s = self._heard_s + self._silence_s - time.monotonic()
        if left_s <= 0 and select.select([self._channel.read_fd], [], [], 0)[0]:
            return 0.001  # it has spoken while this agent was busy
        return left_s

    @property
    def _pong_period_s(self) -> float:
        return self._silence_s / _PONGS_PER_SILENCE

    def _preload(self, modules: Iterable[str]) -> None:
        with self._saying_so():
            preload(modules)

    @contextmanager
    def _saying_so(self) -> Generator[None]:
        """Tell a driver elsewhere that the agent is alive while it is at something else for long.

        It must not send anything itself meanwhile: the signal's handler does, at any moment.
        """
        if not self._silence_s:
            yield
            return
        signal.signal(signal.SIGALRM, lambda *_: self._send(Pong()))
        signal.setitimer(signal.ITIMER_REAL, self._pong_period_s, self._pong_period_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _send(self, message: Any, data: memoryview | bytes = b"") -> None:
        self._said_s = time.monotonic()
        try:
            self._channel.send(message, data)
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
                self._unwatch_questions(child)
            else:
                self._listen_to(child)

    # ------------------------------------------------------------------ orders
    def _read_orders(self) -> None:
        try:
            orders = self._channel.receive()
        except ChannelClosed:
            self._leaving = True
            return
        self._heard_s = time.monotonic()
        if self._silence_s and self._heard_s >= self._said_s + self._pong_period_s:
            self._send(Pong())  # a large order is on its way, and pings wait behind it
        for order in orders:
            self._obey(order)

    def _obey(self, order: Any) -> None:
        match order:
            case Ping(timeout_s=timeout_s):
                self._silence_s = timeout_s
                self._send(Pong())
            case Preload(modules=modules, when_idle=when_idle):
                self._preload(modules if not when_idle else ())
                self._when_idle += modules if when_idle else ()
            case RemoveTraces(name=name):
                remove_traces(name, agent_folder(name))
            case TakeCode(archive=archive):
                self._orders.code = archive
            case Exit():
                self._leaving = True
            case _:
                self._obey_for_attempt(order)

    def _obey_for_attempt(self, order: Any) -> None:
        match order:
            case ServeStore(for_others=for_others):
                self._serve_store("0.0.0.0" if for_others else "127.0.0.1")  # noqa: S104
            case Survey():
                with self._saying_so():
                    found = survey(order)
                self._send(found)
            case StartWorkers():
                try:
                    self._start_workers(self._orders.here(order))
                except (OSError, TarError) as error:
                    self._send(StartFailed(order.attempt, str(error)))
            case ToWorker() | FileAnswer():
                self._pass_on(order)
            case StopWorkers():
                self._begin_stop(order)
            case WriteStacks():
                self._write_stacks(order)
            case _:
                raise AssertionError(f"unknown order {order!r}")

    def _pass_on(self, order: ToWorker | FileAnswer) -> None:
        for child in self._children.values():
            if child.attempt != order.attempt or order.rank not in {None, child.rank}:
                continue
            if isinstance(order, ToWorker):
                child.order(order.order)
                self._flush_when_writable(child.orders)
            elif child.files is not None:
                with suppress(ChannelClosed):  # its end will be noticed
                    child.files.send_bytes(order.data)
                self._flush_when_writable(child.files)

    def _flush_when_writable(self, channel: Channel) -> None:
        """See to it that a worker gets the rest of what did not fit into its pipe."""
        if channel.unsent_bytes and channel.write_fd not in self._selector.get_map():
            flush = partial(self._flush_to_worker, channel)
            self._selector.register(channel.write_fd, selectors.EVENT_WRITE, flush)

    def _flush_to_worker(self, channel: Channel) -> None:
        is_open = True
        try:
            channel.flush()
        except ChannelClosed:
            is_open = False
        if not is_open or not channel.unsent_bytes:
            self._selector.unregister(channel.write_fd)

    def _serve_store(self, address: str) -> None:
        self._stop_store()  # of a start that came to nothing
        store = Store(address, *self._for_survivor())
        self._store = store
        self._send(StoreServed(store.port))

    def _stop_store(self) -> None:
        if self._store is not None:
            self._store.stop()
            self._store = None

    def _for_survivor(self) -> tuple[tuple[int, ...], LastDuty]:
        """Return what a process with the last duty must close, and the duty."""
        read_fd = self._channel.read_fd
        others = tuple(fd for fd in self._own_descriptors() if fd != read_fd)
        duty = LastDuty(os.getpid(), self._driver, read_fd, self._mark, self._folder)
        return (self._own_descriptors(), duty) if self._driver else (others, duty)

    def _own_descriptors(self) -> tuple[int, ...]:
        """Return every descriptor of the agent that no other process must hold."""
        own = [self._selector.fileno(), self._sigterm_fd]
        own += {self._channel.read_fd, self._channel.write_fd}
        if self._driver_pidfd is not None:
            own.append(self._driver_pidfd)
        for child in self._children.values():
            own += [child.pidfd, child.orders.read_fd, child.output_fd, child.log_fd]
            if child.files is not None:
                own += [child.files.read_fd, child.files.write_fd]
        return tuple(own)

    def _start_workers(self, order: StartWorkers) -> None:
        interface = interface_towards(order.store_address)
        with self._saying_so():
            self._give_temporary_folder()
            self._orders.make_folders(order)
        if self._store is None:
            close_fds, duty = self._for_survivor()
            self._store = Survivor(duty, close_fds)
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
        if child.files is not None:
            self._watch(child.files.read_fd, partial(self._pass_question_on, child))

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

    # ------------------------------------------------------------------ the run's files
    def _pass_question_on(self, child: Child) -> None:
        """Pass on what a worker asks of the run's files, a part at a time."""
        assert child.files is not None
        if self._paused:
            return  # since a moment ago: the driver does not keep up
        try:
            data = child.files.receive_bytes(self._buffer)
        except ChannelClosed:
            self._unwatch_questions(child)
        else:
            if data:
                self._send(FileRequest(child.attempt, child.rank), data)

    def _unwatch_questions(self, child: Child) -> None:
        if child.files is not None:
            with suppress(KeyError):  # it has ended
                self._selector.unregister(child.files.read_fd)

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
        channels = [child.orders] if child.files is None else [child.orders, child.files]
        ends = {end for channel in channels for end in (channel.read_fd, channel.write_fd)}
        for descriptor in (child.ring.fileno(), child.output_fd, child.pidfd, *ends):
            with suppress(KeyError):
                self._selector.unregister(descriptor)
        del self._children[child.rank]
        child.close()
        self._send(WorkerExited(child.attempt, child.rank, exitcode, peak_bytes, noticed_s, oom))
        if self._stop is not None and not self._children:
            self._finish_stop()

    def _write_stacks(self, order: WriteStacks) -> None:
        pids = {child.pid: rank for rank, child in self._children.items()}
        with self._saying_so():
            texts = stacks_of(pids, order.timeout_s, wake=True)
        self._send(StacksWritten(order.attempt, {pids[pid]: text for pid, text in texts.items()}))

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
        self._stop_store()
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
