"""Runs a job: waits for what happens, lets :mod:`state` decide, does what it says.

This is the only place with effects on the driver's side. Reports, checkpoints, collectives and
output are served as they come (:mod:`traffic`); what changes the course of the run, a worker that
ended, an exception, Ctrl-C, becomes an event for the state machine.
"""

from __future__ import annotations

import math
import pickle
import signal
import socket
import time
from contextlib import closing, suppress
from typing import Any

from minitrain import _env
from minitrain._driver.assembly import Assembly
from minitrain._driver.chronicle import Chronicle
from minitrain._driver.failures import (
    SETTLE_S,
    Failures,
    Worker,
    controller_error,
    exception_of,
    only_told,
)
from minitrain._driver.files import RunFiles
from minitrain._driver.fleet import Fleet
from minitrain._driver.growth import Growth
from minitrain._driver.hangs import Silence, guilty_ranks, why_silent
from minitrain._driver.home import Home
from minitrain._driver.interrupt import Interrupts
from minitrain._driver.job import Job
from minitrain._driver.policies import Budget
from minitrain._driver.preemption import Preemption
from minitrain._driver.starting import start_order
from minitrain._driver.state import (
    Action,
    AttemptFailed,
    Event,
    Failed,
    Finished,
    Interrupted,
    InterruptRequested,
    ResizePossible,
    Running,
    Starting,
    StartWorkers,
    State,
    StopWorkers,
    WorkersGone,
    WorkersReady,
    WorkersReturned,
    step,
)
from minitrain._driver.traffic import Traffic
from minitrain._driver.worker_group import (
    AgentLost,
    Happening,
    HostNews,
    Interrupt,
    News,
    StorageWorkDone,
    WorkerGroup,
    WorkersUnableError,
)
from minitrain._logging import logger
from minitrain._storage.record import RunRecord
from minitrain._wire import messages as wire
from minitrain.backend import Backend, BackendConfig, Workers
from minitrain.exceptions import (
    AgentDiedError,
    ConfigurationError,
    ControllerError,
    HangError,
    HostLostError,
    LaunchError,
    PreemptionError,
    TrainingFailedError,
    WorkerDiedError,
    WorkerGroupError,
)

__all__ = ["Controller", "shut_down"]

_LEAVE_S = 10.0
"""How long workers may take to leave when their work is done."""
_BACKEND_SHUTDOWN_S = 30.0
"""How long a backend's on_shutdown may take."""
_HURRY_S = 0.1
"""The time between SIGTERM and SIGKILL after a second Ctrl-C."""
_LOOKS_PER_HANG = 20
"""How often all ranks are looked at, within the time that each may be silent."""
_STACKS_S = 3.0
"""How long workers have to write their stacks."""
_SHUTDOWN_MARGIN_S = 20.0
"""How much longer than its own deadlines an agent may take to end workers."""


class Controller:
    """One run.

    Args:
        job: What to do.
        home: Where.
        record: The run's record, kept up to date on disk.
        num_workers: How many to start.
        train: What they train with, pickled.
    """

    def __init__(
        self, job: Job, home: Home, record: RunRecord, num_workers: int, train: bytes
    ) -> None:
        self._job = job
        self._home = home
        self._layout = home.layout
        self._record = record
        self._backend = job.backend_config.backend_cls()
        self._budget = Budget(
            job.failures.max_failures,
            job.failures.max_preemption_failures,
            job.scaling.min_workers,
        )
        self._state: State = Starting(len(record.attempts), num_workers)
        self._failures = Failures(home.layout)
        self._returned: set[int] = set()
        self._interrupts = Interrupts()
        self._preemption = Preemption(job.failures.preemption_grace_s)
        self._silence = Silence(job.failures.hang_timeout_s)
        self._look_for_hangs_s = 0.0
        self._growth = Growth(job.scaling)
        self._fleet = Fleet(
            job.plan,
            job.failures.heartbeat_timeout_s,
            job.backend_config.preload,
            job.scaling,
        )
        self._group = WorkerGroup(self._fleet, job.resources)
        self._assembly = Assembly(
            job,
            home,
            self._group,
            train,
            self._take_while_starting,
            lambda: bool(self._failures),
        )
        self._traffic: Traffic
        self._chronicle: Chronicle
        self._files: RunFiles
        self._used: tuple[str, ...] = ()
        self.return_value: Any = None

    @property
    def stopped(self) -> bool:
        """Whether a stop condition ended the training."""
        return self._traffic.stopped

    @property
    def _attempt(self) -> int:
        return self._group.attempt

    # ------------------------------------------------------------------ the loop
    def run(self) -> Finished | Failed | Interrupted:
        """Train, again if need be, until the run is over."""
        usable = False
        with self._interrupts:
            try:
                self._traffic = Traffic(self._job, self._home, self._record, waits=True)
                self._chronicle = Chronicle(self._record, self._traffic.save_record)
                with closing(self._traffic), closing(self._serve_files()):
                    self._group.listen_to(self._interrupts)
                    self._group.listen_to(self._traffic.clerk)
                    end = self._loop()
                    usable = True  # otherwise nobody knows what the agents' workers are doing
                    return end
            finally:
                self._group.close()
                self._fleet.release(self._used, usable=usable)

    def _serve_files(self) -> RunFiles:
        resumed = self._job.resume_from
        readable = [resumed.path] if resumed is not None and resumed.is_local else []
        self._files = RunFiles(
            str(self._layout.root), readable, self._traffic.clerk, self._group.answer_about_files
        )
        return self._files

    def _loop(self) -> Finished | Failed | Interrupted:
        assert isinstance(self._state, Starting)
        action: Action | None = StartWorkers(self._state.attempt, self._state.num_workers)
        while not isinstance(self._state, Finished | Failed | Interrupted):
            events = self._next_events() if action is None else self._perform(action)
            action = None
            for event in events:
                assert action is None, "nothing happens after an event that asks for an action"
                self._state, action = step(self._state, event, self._budget)
                self._chronicle.note(event, self._state)
                if isinstance(event, AttemptFailed):
                    self._traffic.tell_callbacks_of(event.error)
        return self._state

    def _perform(self, action: Action) -> list[Event]:
        match action:
            case StartWorkers(attempt=attempt, num_workers=num_workers):
                return [self._guarded_start(attempt, num_workers)]
            case StopWorkers(attempt=attempt, done=done):
                return self._stop(attempt, done=done)

    # ------------------------------------------------------------------ starting
    def _guarded_start(self, attempt: int, num_workers: int) -> Event:
        self._chronicle.begin(num_workers)
        try:
            self._begin(attempt)
            return self._start_on_living_agents(attempt, num_workers)
        except WorkersUnableError as unable:
            for rank in unable.late:
                self._failures.add(self._worker(rank), unable.__cause__ or unable)
            return self._settled_failure()
        except TrainingFailedError as error:
            return self._failed(error)
        except (LaunchError, ConfigurationError) as error:
            return self._failed(controller_error("the workers could not be started", error))
        except OSError as error:  # its storage does not answer
            return self._failed(controller_error("the attempt could not be begun", error))
        except KeyboardInterrupt:
            return InterruptRequested(attempt)
        except Exception as error:  # noqa: BLE001 - the backend's, which may raise anything
            return self._failed(controller_error("the backend could not start", error))

    def _begin(self, attempt: int) -> None:
        self._failures.clear()
        self._returned.clear()
        self._preemption.begin_attempt()
        self._group.begin(attempt)

    def _start_on_living_agents(self, attempt: int, num_workers: int) -> Event:
        """Start; on other agents if one, idle since an earlier run, turns out to be dead."""
        were_idle = bool(self._fleet.ready())
        try:
            return self._start(attempt, num_workers)
        except WorkersUnableError:
            if not were_idle or self._group.pids or not self._fleet.has_lost:
                raise
        self._begin(attempt)
        return self._start(attempt, num_workers)

    def _start(self, attempt: int, num_workers: int) -> Event:
        group = self._group
        self._assembly.assemble(num_workers)
        rank_0_is_here = self._fleet.hosts[group.host_of[0]].is_here
        self._traffic.begin(group, self._preemption.info, writes_rows=not rank_0_is_here)
        group.answer_by_s = time.monotonic() + _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
        self._backend.on_start(group, self._job.backend_config)
        self._backend.on_training_start(group, self._job.backend_config)
        self._chronicle.name_workers(group.hostname, group.pids)
        group.train(
            start_order(
                self._job, self._home, self._traffic.checkpoints, writes_rows=rank_0_is_here
            )
        )
        self._silence.begin(group.world_size, time.monotonic())
        self._growth.begin(group.world_size, self._traffic.checkpoints.num_committed)
        return WorkersReady(attempt, group.world_size)

    def _take_while_starting(self, happening: Happening) -> None:
        match happening:
            case Interrupt(signum=signal.SIGTERM):
                self._notice_preemption()
                raise self._preemption.error(self._home, timed_out=False)
            case Interrupt():
                raise KeyboardInterrupt
            case _:
                self._take(happening)

    # ------------------------------------------------------------------ what happens
    def _next_events(self) -> list[Event]:
        """Wait for something to happen and return what it means for the course of the run."""
        try:
            for happening in self._group.receive(self._deadline_s()):
                if isinstance(happening, Interrupt) and happening.signum == signal.SIGINT:
                    return [InterruptRequested(self._attempt)]
                if isinstance(happening, Interrupt) and self._preemption.is_of_driver:
                    return [self._preempted(timed_out=True)]  # a second SIGTERM: at once
                self._take(happening)
            self._traffic.act_on_waits()
        except ControllerError as error:
            return [self._failed(error)]
        except Exception as error:  # noqa: BLE001 - a full disk, a bug: the workers must be ended
            return [self._failed(controller_error("the driver failed", error))]
        mismatch = self._traffic.mismatch(self._returned)
        if mismatch is not None:
            rank, cause = mismatch
            self._failures.add(self._worker(rank), cause)
        self._look_for_hangs()
        return self._decided()

    def _deadline_s(self) -> float | None:
        deadlines = [
            self._failures.settled_at_s,
            self._traffic.deadline_s(),
            self._preemption.deadline_s,
            self._look_for_hangs_s if self._silence.timeout_s is not None else math.inf,
        ]
        earliest_s = min(deadlines)
        return None if earliest_s == math.inf else earliest_s

    def _decided(self) -> list[Event]:
        everybody = self._group.world_size
        if self._failures:
            over = len(self._failures.ranks | self._returned) == everybody
            late = time.monotonic() >= self._failures.settled_at_s
            return [self._failure_event()] if over or late else []
        if not isinstance(self._state, Running):
            return []
        if len(self._returned) == everybody:
            # Those who were told of the preemption may have left early because of it.
            if self._preemption.info is not None and self._traffic.preemption_was_seen:
                return [self._preempted(timed_out=False)]
            return [WorkersReturned(self._attempt)]
        if time.monotonic() >= self._preemption.deadline_s:
            return [self._preempted(timed_out=True)]
        return self._growth_event()

    def _growth_event(self) -> list[Event]:
        room = self._growth.look(
            self._traffic.checkpoints.num_committed, time.monotonic(), self._room_to_grow
        )
        if room is None or self._preemption.info is not None:
            return []
        return [ResizePossible(self._attempt, room)]

    def _room_to_grow(self) -> int:
        """Return how many workers there is room for; try the hosts that were lost again."""
        self._group.lease_lost_ones()
        return self._assembly.fits()

    def _failed(self, error: TrainingFailedError) -> AttemptFailed:
        fits = self._assembly.fits_perhaps()
        would_go_on = isinstance(error, WorkerGroupError | PreemptionError)
        if would_go_on and fits < self._job.scaling.min_workers:
            error.add_note(
                f"There is no next attempt: there is room for fewer than "
                f"{self._job.scaling.min_workers} workers now (ScalingConfig)."
            )
        return AttemptFailed(self._attempt, error, fits, self._preemption.is_of_driver)

    # ------------------------------------------------------------------ preemption
    def _notice_preemption(self, host: int | None = None) -> None:
        """Give workers the time that is left to save what they have.

        Args:
            host: The host that is taken away; None: the driver's.
        """
        group = self._group
        if host is None:
            ranks, name = list(range(group.world_size)), socket.gethostname()
        else:
            ranks, name = group.ranks_on(host), self._fleet.name(host)
            self._fleet.leave(host)
            if not ranks:
                return  # the next attempt will do without it
        self._preemption.notice(name, ranks, of_driver=host is None)
        self._traffic.preemption = self._preemption.info
        logger.warning(
            "SIGTERM: %s is about to be taken away; workers have %g s (preemption_grace_s)",
            name,
            self._preemption.grace_s,
        )

    def _preempted(self, *, timed_out: bool) -> Event:
        return self._failed(self._preemption.error(self._home, timed_out=timed_out))

    # ------------------------------------------------------------------ silence
    def _excused(self) -> set[int]:
        """Return the ranks that need not say anything: they have ended, or wait themselves."""
        return self._returned | self._failures.ranks | self._traffic.waiting()

    def _look_for_hangs(self) -> None:
        timeout_s, now_s = self._silence.timeout_s, time.monotonic()
        if timeout_s is None or now_s < self._look_for_hangs_s:
            return
        self._look_for_hangs_s = now_s + timeout_s / _LOOKS_PER_HANG
        silent = self._silence.of(excused := self._excused(), now_s)
        if not silent or self._failures:
            return
        stacks = self._ask_for_stacks()
        guilty = guilty_ranks(silent, stacks, self._traffic.writing(), excused)
        if self._group.lost or not guilty:  # its channel will say so; or they are at work
            self._silence.begin(self._group.world_size, time.monotonic())
            return
        waiting = sorted(set(range(self._group.world_size)) - set(guilty) - self._returned)
        for rank in guilty:
            stack = stacks.get(rank, "")
            error = HangError(timeout_s, waiting, why_silent(stack))
            self._failures.add(self._worker(rank), error, traceback=stack)
        self._failures.settle_now()

    def _ask_for_stacks(self) -> dict[int, str]:
        """Have every worker write its stacks; keep them with the logs, and return them by rank."""
        stacks, silent = self._group.stacks(_STACKS_S)
        for host in silent:
            self._fleet.give_up(host, "does not answer")
        for rank, text in stacks.items():
            path = self._layout.stacks(self._attempt, rank)
            with suppress(OSError):  # a full disk; the error has them as well
                path.write_text(text, encoding="utf-8")  # not synced: those it woke go on meanwhile
        return stacks

    def _take(self, happening: Happening) -> None:
        match happening:
            case News(rank=rank, message=message):
                self._take_news(rank, message)
            case wire.WorkerExited(rank=rank, exitcode=exitcode) if rank not in self._returned:
                died = WorkerDiedError(exitcode, happening.peak_bytes, happening.oom)
                self._failures.add(self._worker(rank), died, happening)
            case AgentLost(host=host):
                self._fail_host(host)
            case wire.Output(rank=rank, data=data):
                self._show(rank, data)
            case StorageWorkDone() | wire.FileRequest():
                self._take_storage_work(happening)
            case Interrupt():
                self._notice_preemption()
            case HostNews():
                self._take_host_news(happening)
            case _:
                pass

    def _take_host_news(self, news: HostNews) -> None:
        match news.message:
            case wire.PreemptionSensed():
                self._notice_preemption(news.host)
            case wire.AgentReady():
                self._growth.hurry()
            case _:
                pass

    def _take_storage_work(self, happening: StorageWorkDone | wire.FileRequest) -> None:
        if isinstance(happening, StorageWorkDone):
            self._traffic.clerk.deliver()
            return
        self._silence.heard(happening.rank, time.monotonic())
        self._files.take(happening.rank, happening.data)

    def _take_news(self, rank: int, message: wire.WorkerNews) -> None:
        match message:
            case wire.Returned():
                self._returned.add(rank)
                self._take_value(message)
            case wire.Raised():
                self._failures.add(self._worker(rank), exception_of(message), message)
            case _:
                self._silence.heard(rank, time.monotonic())
                self._traffic.serve(rank, message)

    def _worker(self, rank: int) -> Worker:
        pid = self._group.pids.get(rank, 0)
        return Worker(self._attempt, rank, self._group.host_name(rank), pid)

    def _show(self, rank: int, data: bytes) -> None:
        """Show what a worker printed, and write down what its own host does not."""
        if not self._fleet.hosts[self._group.host_of[rank]].is_here:
            with suppress(OSError), self._layout.log(self._attempt, rank).open("ab") as log:
                log.write(data)  # a full disk must not end the training
        if self._job.run_config.shows(rank):
            self._traffic.show(rank, data)

    def _fail_host(self, host: int) -> None:
        """An agent is gone: its workers were killed with it, before they returned or not."""
        ranks = self._group.ranks_on(host)
        if not ranks:
            return
        agent = self._fleet.agents[host]
        assert agent is not None
        cause = (
            AgentDiedError(agent.exitcode())
            if agent.is_here
            else HostLostError(agent.host.name, agent.why_lost())
        )
        for rank in ranks:
            self._failures.add(self._worker(rank), cause)
        self._failures.settle_now()

    def _take_value(self, returned: wire.Returned) -> None:
        self._used = self._used or returned.modules
        if returned.problem:
            logger.warning(
                "rank 0's return value could not be sent to the driver, so "
                "Result.return_value is None: %s",
                returned.problem,
            )
        if returned.value is not None:
            try:
                self.return_value = pickle.loads(returned.value)
            except Exception as error:  # noqa: BLE001 - a training is not lost for its return value
                logger.warning("rank 0's return value could not be unpickled: %r", error)

    # ------------------------------------------------------------------ failing and stopping
    def _settled_failure(self) -> Event:
        """Wait for the rest of what goes wrong while workers start, and make one error of it."""
        until_s = time.monotonic() + SETTLE_S
        while time.monotonic() < until_s:
            for happening in self._group.receive(until_s):
                if isinstance(happening, Interrupt):
                    return self._cut_short(happening)
                self._take(happening)
        if self._failures:
            return self._failure_event()
        error = WorkersUnableError("the workers stopped answering while they were starting")
        return self._failed(controller_error("the backend could not start", error))

    def _failure_event(self) -> Event:
        spent = self._state.spent.failures if isinstance(self._state, Starting | Running) else 0
        error = self._failures.error(spent=spent, limit=self._job.failures.max_failures)
        if self._preemption.info is None:
            return self._failed(error)
        # Who takes the machine away ends workers, too.
        preempted = self._preemption.error(self._home, timed_out=False)
        preempted.__cause__ = error
        return self._failed(preempted)

    def _stop(self, attempt: int, *, done: bool) -> list[Event]:
        group = self._group
        group.answer_by_s = time.monotonic() + _BACKEND_SHUTDOWN_S
        shut_down(self._backend, group, self._job.backend_config)
        grace_s = _env.seconds("MINITRAIN_STOP_GRACE_S")
        leave_s = _LEAVE_S if done else 0.0
        if done:
            group.order_all(wire.Exit())
        group.order_hosts(wire.StopWorkers(attempt, leave_s, grace_s))
        deadline_s = time.monotonic() + leave_s + grace_s + _SHUTDOWN_MARGIN_S
        events: list[Event] = []
        left = set(group.hosts)
        while left := {host for host in left if not self._fleet.is_lost(host)}:
            happenings = group.receive(deadline_s)
            if not happenings and time.monotonic() >= deadline_s:
                for host in left:
                    self._fleet.give_up(host, "did not end its workers")
            for happening in happenings:
                if isinstance(happening, Interrupt):
                    events = [self._cut_short(happening)]
                    group.order_hosts(wire.StopWorkers(attempt, 0.0, _HURRY_S))
                if isinstance(happening, HostNews) and isinstance(
                    happening.message, wire.AttemptGone
                ):
                    left.discard(happening.host)
                self._take_last(happening)
        self._fleet.bury_those_here()
        self._files.end_attempt()
        with only_told():
            self._traffic.end_attempt()
        return [*events, WorkersGone(attempt)]

    def _cut_short(self, interrupt: Interrupt) -> Event:
        """Return what a signal means when no worker trains."""
        if interrupt.signum == signal.SIGINT:
            return InterruptRequested(self._attempt)
        self._notice_preemption()
        return self._preempted(timed_out=False)

    def _take_last(self, happening: Happening) -> None:
        """Take what workers had sent before they ended: it was acknowledged.

        Not from a rank that has failed: one that hung may have been woken for its stacks.
        """
        with only_told():
            match happening:
                case News(rank=rank, message=(wire.Reported() | wire.Uploaded()) as news):
                    if rank not in self._failures.ranks:
                        self._traffic.serve(rank, news)
                case StorageWorkDone():
                    self._traffic.clerk.deliver()
                case wire.Output(rank=rank, data=data):
                    self._show(rank, data)
                case HostNews(host=host, message=wire.AttemptGone(survivors=survivors)):
                    self._warn_of_survivors(host, survivors)
                case _:
                    pass

    def _warn_of_survivors(self, host: int, pids: tuple[int, ...]) -> None:
        if pids:
            logger.warning(
                "%s: processes %s did not end on SIGKILL: they are stuck in the kernel, often in a "
                "driver or a network file system",
                self._fleet.name(host),
                ", ".join(map(str, pids)),
            )


def shut_down(backend: Backend, workers: Workers, config: BackendConfig) -> None:
    """Let a backend end its own; the workers end whatever it thinks of that."""
    try:
        backend.on_shutdown(workers, config)
    except WorkersUnableError:
        pass  # after a failure that is to be expected
    except Exception as error:  # noqa: BLE001 - the training is over and its result stands
        name = type(backend).__name__
        logger.warning("%s.on_shutdown raised %s: %s", name, type(error).__name__, error)
