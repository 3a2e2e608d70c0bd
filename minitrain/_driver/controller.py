"""Runs a job: waits for what happens, lets :mod:`state` decide, does what it says.

This is the only place with effects on the driver's side. Reports, checkpoints, collectives and
output are served as they come (:mod:`traffic`); what changes the course of the run, a worker that
ended, an exception, Ctrl-C, becomes an event for the state machine.
"""

from __future__ import annotations

import math
import pickle
import signal
import time
from contextlib import closing, suppress
from typing import Any

from minitrain import _env
from minitrain._driver import agents
from minitrain._driver.chronicle import Chronicle
from minitrain._driver.failures import SETTLE_S, Failures, Worker, exception_of
from minitrain._driver.growth import Growth
from minitrain._driver.hangs import Silence, guilty_ranks, why_silent
from minitrain._driver.home import Home
from minitrain._driver.interrupt import Interrupts
from minitrain._driver.job import Job
from minitrain._driver.placement import places_on_one_host, workers_that_fit
from minitrain._driver.policies import Budget
from minitrain._driver.preemption import Preemption
from minitrain._driver.starting import start_order, workers_order
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
    Interrupt,
    News,
    StorageWorkDone,
    WorkerGroup,
    WorkersUnableError,
)
from minitrain._logging import logger
from minitrain._os.gpus import Gpu, list_gpus
from minitrain._storage.record import RunRecord
from minitrain._wire import messages as wire
from minitrain.backend import Backend, BackendConfig, Workers
from minitrain.exceptions import (
    AgentDiedError,
    ConfigurationError,
    ControllerError,
    HangError,
    RendezvousTimeoutError,
    TrainingFailedError,
    WorkerDiedError,
)

__all__ = ["Controller", "shut_down"]

_LEAVE_S = 10.0
"""How long workers may take to leave when their work is done."""
_BACKEND_SHUTDOWN_S = 30.0
"""How long a backend's on_shutdown may take."""
_HURRY_S = 0.1
"""The time between SIGTERM and SIGKILL after a second Ctrl-C."""
_STACKS_S = 3.0
"""How long workers have to write their stacks."""
_STACKS_MARGIN_S = 2.0
"""How much longer their agent has to say so."""
_SHUTDOWN_MARGIN_S = 20.0
"""How much longer than its own deadlines an agent may take to end workers."""


class Controller:
    """One run.

    Args:
        job: What to do.
        home: Where.
        record: The run's record, kept up to date on disk.
        gpus: Those the workers may use.
        num_workers: How many to start.
        payload: What they train with, pickled.
    """

    def __init__(
        self,
        job: Job,
        home: Home,
        record: RunRecord,
        gpus: list[Gpu],
        num_workers: int,
        payload: bytes,
    ) -> None:
        self._job = job
        self._home = home
        self._layout = home.layout
        self._record = record
        self._gpus = gpus
        self._payload = payload
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
        self._growth = Growth(job.scaling)
        self._group: WorkerGroup
        self._traffic: Traffic
        self._chronicle: Chronicle
        self._used: tuple[str, ...] = ()
        self.return_value: Any = None

    @property
    def stopped(self) -> bool:
        """Whether a stop condition ended the training."""
        return self._traffic.stopped

    @property
    def _attempt(self) -> int:
        return self._group.attempt

    @property
    def _hostname(self) -> str:
        facts = self._group.agent.facts
        return facts.hostname if facts else "localhost"

    # ------------------------------------------------------------------ the loop
    def run(self) -> Finished | Failed | Interrupted:
        """Train, again if need be, until the run is over."""
        with self._interrupts:
            self._lease()
            try:
                self._traffic = Traffic(self._job, self._home, self._record, waits=True)
                self._chronicle = Chronicle(self._record, self._traffic.save_record)
                with closing(self._traffic):
                    self._group.listen_to(self._traffic.clerk)
                    return self._loop()
            except BaseException:
                self._group.agent.lost = True  # nobody knows what its workers are doing
                raise
            finally:
                self._group.close()
                agents.release(self._group.agent, self._used)

    def _lease(self) -> None:
        agent = agents.lease(self._job.backend_config.preload)
        self._group = WorkerGroup(agent, self._interrupts, self._job.resources)

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
            self._begin(attempt, num_workers)
        except OSError as error:  # its storage does not answer
            return self._failed(_controller_error("the attempt could not be begun", error))
        try:
            return self._start_on_living_agent(attempt, num_workers)
        except WorkersUnableError:
            return self._settled_failure()
        except TrainingFailedError as error:
            return self._failed(error)
        except KeyboardInterrupt:
            return InterruptRequested(attempt)
        except Exception as error:  # noqa: BLE001 - the backend's, which may raise anything
            return self._failed(_controller_error("the backend could not start", error))

    def _begin(self, attempt: int, num_workers: int) -> None:
        self._failures.clear()
        self._returned.clear()
        self._preemption.begin_attempt()
        if self._group.agent.lost:
            self._group.close()
            agents.release(self._group.agent)
            self._lease()
            self._group.listen_to(self._traffic.clerk)
        self._group.begin(attempt, num_workers)
        self._traffic.begin(self._group, self._preemption.info)

    def _start_on_living_agent(self, attempt: int, num_workers: int) -> Event:
        """Start; on another agent if this one, idle since an earlier run, turns out to be dead."""
        was_idle = self._group.agent.facts is not None
        try:
            return self._start(attempt, num_workers)
        except WorkersUnableError:
            if not was_idle or self._group.pids or not self._group.agent.lost:
                raise
        self._begin(attempt, num_workers)
        return self._start(attempt, num_workers)

    def _start(self, attempt: int, num_workers: int) -> Event:
        deadline_s = time.monotonic() + _env.seconds("MINITRAIN_START_TIMEOUT_S")
        group = self._group
        if group.agent.facts is None:
            self._await(wire.AgentReady, 1, deadline_s, ["the agent"])
        group.order_agent(wire.ServeStore("127.0.0.1"))
        served = self._await(wire.StoreServed, 1, deadline_s, ["the rendezvous store"])[0]
        assert isinstance(served, wire.StoreServed)
        places = places_on_one_host(num_workers, self._job.scaling.num_gpus_per_worker, self._gpus)
        group.order_agent(
            workers_order(self._job, self._layout, self._payload, attempt, places, served.port)
        )
        ranks = [f"rank {rank}" for rank in range(num_workers)]
        self._await(wire.Joined, num_workers, deadline_s, ranks)
        group.answer_by_s = time.monotonic() + _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
        self._backend.on_start(group, self._job.backend_config)
        self._backend.on_training_start(group, self._job.backend_config)
        self._chronicle.name_workers(self._hostname, group.pids)
        group.train(start_order(self._job, self._home, self._traffic.checkpoints))
        self._silence.begin(num_workers, time.monotonic())
        self._growth.begin(num_workers, self._traffic.checkpoints.num_committed)
        return WorkersReady(attempt)

    def _await(self, kind: type[Any], count: int, deadline_s: float, names: list[str]) -> list[Any]:
        """Wait until something has happened so many times, while nothing has gone wrong.

        Args:
            kind: The class of a happening, or of a worker's news.
            count: How many of them.
            deadline_s: Until when.
            names: What is waited for, by rank, for the error.
        """
        found: dict[int, Any] = {}
        while len(found) < count:
            happenings = self._group.receive(deadline_s)
            if not happenings:
                raise self._late(
                    {rank: name for rank, name in enumerate(names) if rank not in found}
                )
            for happening in happenings:
                if isinstance(happening, News) and isinstance(happening.message, kind):
                    found[happening.rank] = happening.message
                elif isinstance(happening, kind):
                    found[0] = happening
                else:
                    self._take_while_starting(happening)
            if self._failures or self._group.agent.lost:
                raise WorkersUnableError("workers failed while they were starting")
        return list(found.values())

    def _late(self, missing: dict[int, str]) -> Exception:
        """Return the error of a start that takes too long; where workers are late, they failed."""
        setting = "MINITRAIN_START_TIMEOUT_S"
        error = RendezvousTimeoutError([*missing.values()], _env.seconds(setting), setting)
        started = [rank for rank in missing if rank in self._group.pids]
        for rank in started:
            self._failures.add(self._worker(rank), error)
        if started:
            return WorkersUnableError("workers did not join")
        return _controller_error("the workers could not be started", error)

    def _take_while_starting(self, happening: Happening) -> None:
        match happening:
            case Interrupt(signum=signal.SIGTERM):
                self._notice_preemption(of_driver=True)
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
            return [self._failed(_controller_error("the driver failed", error))]
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
            self._silence.due_s(self._excused()),
        ]
        earliest_s = min(deadlines)
        return None if earliest_s == math.inf else earliest_s

    def _decided(self) -> list[Event]:
        everybody = set(range(self._group.world_size))
        if self._failures:
            over = everybody <= self._failures.ranks | self._returned
            late = time.monotonic() >= self._failures.settled_at_s
            return [self._failure_event()] if over or late else []
        if not isinstance(self._state, Running):
            return []
        if everybody <= self._returned:
            # Those who were told of the preemption may have left early because of it.
            if self._preemption.info is not None and self._traffic.preemption_was_seen:
                return [self._preempted(timed_out=False)]
            return [WorkersReturned(self._attempt)]
        if time.monotonic() >= self._preemption.deadline_s:
            return [self._preempted(timed_out=True)]
        return self._growth_event()

    def _growth_event(self) -> list[Event]:
        room = self._growth.look(
            self._traffic.checkpoints.num_committed, time.monotonic(), self._fits
        )
        if room is None or self._preemption.info is not None:
            return []
        return [ResizePossible(self._attempt, room)]

    def _fits(self) -> int:
        """Return how many workers there is room for now."""
        if self._job.scaling.use_gpu:
            self._gpus = list_gpus()
        try:
            return workers_that_fit(self._job.scaling, self._gpus)
        except ConfigurationError:
            return 0

    def _failed(self, error: TrainingFailedError) -> AttemptFailed:
        fits = self._fits()
        if fits < self._job.scaling.min_workers:
            error.add_note(
                f"There is no next attempt: there is room for fewer than "
                f"{self._job.scaling.min_workers} workers now (ScalingConfig)."
            )
        return AttemptFailed(self._attempt, error, fits, self._preemption.is_of_driver)

    # ------------------------------------------------------------------ preemption
    def _notice_preemption(self, *, of_driver: bool) -> None:
        """Give workers the time that is left to save what they have."""
        hostname = self._hostname
        self._preemption.notice(hostname, self._group.world_size, of_driver=of_driver)
        self._traffic.preemption = self._preemption.info
        logger.warning(
            "SIGTERM: %s is about to be taken away; workers have %g s (preemption_grace_s)",
            hostname,
            self._preemption.grace_s,
        )

    def _preempted(self, *, timed_out: bool) -> Event:
        return self._failed(self._preemption.error(self._home, timed_out=timed_out))

    # ------------------------------------------------------------------ silence
    def _excused(self) -> set[int]:
        """Return the ranks that need not say anything: they have ended, or wait themselves."""
        return self._returned | self._failures.ranks | self._traffic.waiting()

    def _look_for_hangs(self) -> None:
        silent = self._silence.of(self._excused(), time.monotonic())
        if not silent or self._failures:
            return
        stacks = self._ask_for_stacks()
        guilty = guilty_ranks(silent, stacks, self._traffic.writing())
        if self._group.agent.lost or not guilty:  # its channel will say so; or they are at work
            self._silence.begin(self._group.world_size, time.monotonic())
            return
        waiting = sorted(set(range(self._group.world_size)) - set(guilty) - self._returned)
        assert self._silence.timeout_s is not None
        for rank in guilty:
            stack = stacks.get(rank, "")
            error = HangError(self._silence.timeout_s, waiting, why_silent(stack))
            self._failures.add(self._worker(rank), error, traceback=stack)
        self._failures.settle_now()

    def _ask_for_stacks(self) -> dict[int, str]:
        """Have the agent write every worker's stacks, and return them by rank."""
        log_dir = str(self._layout.logs(self._attempt))
        self._group.order_agent(wire.WriteStacks(self._attempt, log_dir, _STACKS_S))
        deadline_s = time.monotonic() + _STACKS_S + _STACKS_MARGIN_S
        others: list[Happening] = []
        try:
            while time.monotonic() < deadline_s and not self._group.agent.lost:
                for happening in self._group.receive(deadline_s):
                    if isinstance(happening, wire.StacksWritten):
                        return happening.stacks
                    others.append(happening)
        finally:
            self._group.keep(others)
        self._give_agent_up("does not answer")
        return {}

    def _take(self, happening: Happening) -> None:
        match happening:
            case News(rank=rank, message=message):
                self._take_news(rank, message)
            case wire.WorkerExited(rank=rank, exitcode=exitcode):
                if rank not in self._returned:
                    died = WorkerDiedError(exitcode, happening.peak_bytes, happening.oom)
                    self._failures.add(self._worker(rank), died, happening)
            case AgentLost(exitcode=exitcode):
                self._fail_all(exitcode)
            case wire.Output(rank=rank, data=data):
                self._traffic.show(rank, data)
            case StorageWorkDone():
                self._traffic.clerk.deliver()
            case Interrupt() | wire.PreemptionSensed():
                self._notice_preemption(of_driver=isinstance(happening, Interrupt))
            case _:
                pass

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
        return Worker(self._attempt, rank, self._hostname, pid)

    def _fail_all(self, exitcode: int) -> None:
        """The agent is gone: its workers were killed with it, before they returned or not."""
        cause = AgentDiedError(exitcode)
        for rank in range(self._group.world_size):
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
        return self._failed(_controller_error("the backend could not start", error))

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
        group.order_agent(wire.StopWorkers(attempt, leave_s, grace_s))
        deadline_s = time.monotonic() + leave_s + grace_s + _SHUTDOWN_MARGIN_S
        events: list[Event] = []
        gone = False
        while not gone and not group.agent.lost:
            happenings = group.receive(deadline_s)
            if not happenings and time.monotonic() >= deadline_s:
                self._give_agent_up("did not end its workers")
            for happening in happenings:
                if isinstance(happening, Interrupt):
                    events = [self._cut_short(happening)]
                    group.order_agent(wire.StopWorkers(attempt, 0.0, _HURRY_S))
                gone = gone or isinstance(happening, wire.AttemptGone)
                self._take_last(happening)
        if group.agent.lost:
            agents.release(group.agent)  # ends what is left of it
        self._traffic.end_attempt()
        return [*events, WorkersGone(attempt)]

    def _cut_short(self, interrupt: Interrupt) -> Event:
        """Return what a signal means when no worker trains."""
        if interrupt.signum == signal.SIGINT:
            return InterruptRequested(self._attempt)
        self._notice_preemption(of_driver=True)
        return self._preempted(timed_out=False)

    def _take_last(self, happening: Happening) -> None:
        """Take what workers had sent before they ended: it was acknowledged."""
        with suppress(ControllerError):  # a callback that fails now hides no other error
            match happening:
                case News(rank=rank, message=(wire.Reported() | wire.Uploaded()) as news):
                    self._traffic.serve(rank, news)
                case StorageWorkDone():
                    self._traffic.clerk.deliver()
                case wire.Output(rank=rank, data=data):
                    self._traffic.show(rank, data)
                case wire.AttemptGone(survivors=survivors):
                    self._warn_of_survivors(survivors)
                case _:
                    pass

    def _give_agent_up(self, why: str) -> None:
        logger.warning("the agent (pid %d) %s; ending it", self._group.agent.pid, why)
        self._group.agent.kill()

    def _warn_of_survivors(self, pids: tuple[int, ...]) -> None:
        if pids:
            logger.warning(
                "processes %s did not end on SIGKILL: they are stuck in the kernel, often in a "
                "driver or a network file system",
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


def _controller_error(what: str, cause: BaseException) -> ControllerError:
    error = ControllerError(f"{what}: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
