"""Runs a job: waits for what happens, lets :mod:`state` decide, does what it says.

This is the only place with effects on the driver's side. Reports, checkpoints, collectives and
output are served as they come (:mod:`traffic`); what changes the course of the run, a worker that
ended, an exception, Ctrl-C, becomes an event for the state machine.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from contextlib import closing, suppress
from typing import Any

from minitrain import _env
from minitrain._driver import agents
from minitrain._driver.failures import end_of_log, exception_of, group_error
from minitrain._driver.interrupt import Interrupts
from minitrain._driver.job import Job
from minitrain._driver.placement import places_on_one_host
from minitrain._driver.policies import MaxFailures
from minitrain._driver.state import (
    Action,
    AttemptFailed,
    Event,
    Failed,
    Finished,
    Interrupted,
    InterruptRequested,
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
    WorkerGroup,
    WorkersUnableError,
)
from minitrain._logging import logger
from minitrain._os.gpus import Gpu
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import Attempt, RunRecord, now
from minitrain._storage.rows import read_rows
from minitrain._wire import messages as wire
from minitrain.backend import Backend, BackendConfig, Workers
from minitrain.exceptions import (
    AgentDiedError,
    ControllerError,
    RendezvousTimeoutError,
    TrainingFailedError,
    WorkerDiedError,
    WorkerFailure,
)

__all__ = ["Controller", "shut_down"]

_SETTLE_S = 0.1
"""How long ranks have, after the first failure, to fail in the same way and be named with it."""
_LEAVE_S = 10.0
"""How long workers may take to leave when their work is done."""
_BACKEND_SHUTDOWN_S = 30.0
"""How long a backend's on_shutdown may take."""
_HURRY_S = 0.1
"""The time between SIGTERM and SIGKILL after a second Ctrl-C."""
_SHUTDOWN_MARGIN_S = 20.0
"""How much longer than its own deadlines an agent may take to end workers."""


class Controller:
    """One run.

    Args:
        job: What to do.
        layout: Where.
        record: The run's record, kept up to date on disk.
        gpus: Those the workers may use.
        num_workers: How many to start.
        payload: What they train with, pickled.
    """

    def __init__(
        self,
        job: Job,
        layout: RunLayout,
        record: RunRecord,
        gpus: list[Gpu],
        num_workers: int,
        payload: bytes,
    ) -> None:
        self._job = job
        self._layout = layout
        self._record = record
        self._gpus = gpus
        self._payload = payload
        self._backend = job.backend_config.backend_cls()
        self._policy = MaxFailures(job.failures.max_failures, num_workers)
        self._state: State = Starting(0, num_workers)
        self._failures: dict[int, WorkerFailure] = {}
        self._returned: set[int] = set()
        self._settle_at_s: float | None = None
        self._interrupts = Interrupts()
        self._group: WorkerGroup
        self._traffic: Traffic
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
        with self._interrupts:
            self._lease()
            try:
                self._traffic = Traffic(self._job, self._layout, self._record)
                with closing(self._traffic):
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
        action: Action | None = StartWorkers(0, self._state.num_workers)
        while not isinstance(self._state, Finished | Failed | Interrupted):
            events = self._next_events() if action is None else self._perform(action)
            action = None
            for event in events:
                assert action is None, "nothing happens after an event that asks for an action"
                self._state, action = step(self._state, event, self._policy)
                self._note(event)
        return self._state

    def _perform(self, action: Action) -> list[Event]:
        match action:
            case StartWorkers(attempt=attempt, num_workers=num_workers):
                return [self._guarded_start(attempt, num_workers)]
            case StopWorkers(attempt=attempt, done=done):
                return self._stop(attempt, done=done)

    def _note(self, event: Event) -> None:
        """Keep the record, and tell the user, where the course of the run changes."""
        attempts = self._record.attempts
        match event:
            case AttemptFailed(error=error):
                first_line = str(error).splitlines()[0]
                attempts[-1].outcome = attempts[-1].outcome or first_line
                self._traffic.tell_callbacks_of(error)
            case WorkersReturned():
                attempts[-1].outcome = "returned"
            case InterruptRequested():
                attempts[-1].outcome = "interrupted"
            case WorkersGone():
                attempts[-1].ended = now()
                self._record.save(self._layout)
                if isinstance(self._state, Starting):
                    logger.warning("%s; starting again", attempts[-1].outcome)
            case _:
                pass

    # ------------------------------------------------------------------ starting
    def _guarded_start(self, attempt: int, num_workers: int) -> Event:
        self._record.attempts.append(Attempt(num_workers))
        self._record.save(self._layout)
        self._begin(attempt, num_workers)
        try:
            return self._start_on_living_agent(attempt, num_workers)
        except WorkersUnableError:
            return self._settled_failure(attempt)
        except TrainingFailedError as error:
            return AttemptFailed(attempt, error)
        except KeyboardInterrupt:
            return InterruptRequested(attempt)
        except Exception as error:  # noqa: BLE001 - the backend's, which may raise anything
            return AttemptFailed(attempt, _controller_error("the backend could not start", error))

    def _begin(self, attempt: int, num_workers: int) -> None:
        self._failures.clear()
        self._returned.clear()
        self._settle_at_s = None
        if self._group.agent.lost:
            self._group.close()
            agents.release(self._group.agent)
            self._lease()
        self._group.begin(attempt, num_workers)
        self._traffic.begin(self._group)

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
        group.order_agent(self._start_order(attempt, num_workers, served.port))
        ranks = [f"rank {rank}" for rank in range(num_workers)]
        self._await(wire.Joined, num_workers, deadline_s, ranks)
        group.answer_by_s = time.monotonic() + _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
        self._backend.on_start(group, self._job.backend_config)
        self._backend.on_training_start(group, self._job.backend_config)
        rows = read_rows(self._layout.rows) if attempt else []
        total_s = rows[-1].get("time_total_s", 0.0) if rows else 0.0
        group.train(wire.Train(self._start_checkpoint(), len(rows), total_s))
        return WorkersReady(attempt)

    def _start_checkpoint(self) -> str | None:
        newest = self._traffic.checkpoints.newest
        if newest is None and self._job.resume_from is not None:
            return self._job.resume_from.path
        return newest

    def _start_order(self, attempt: int, num_workers: int, port: int) -> wire.StartWorkers:
        job = self._job
        log_dir = self._layout.logs(attempt)
        log_dir.mkdir(parents=True, exist_ok=True)
        here = os.getcwd()  # noqa: PTH109 - as a string, for the search path
        shown = [rank for rank in range(num_workers) if job.run_config.shows(rank)]
        cpus = (job.scaling.resources_per_worker or {}).get("CPU")
        return wire.StartWorkers(
            attempt=attempt,
            places=places_on_one_host(num_workers, job.scaling.num_gpus_per_worker, self._gpus),
            payload=self._payload,
            environ={**os.environ, **(job.run_config.worker_runtime_env or {}).get("env_vars", {})},
            sys_path=_search_path(here),
            argv=_arguments(),
            working_dir=str(self._layout.artifacts) if _env.flag("MINITRAIN_CHDIR") else here,
            log_dir=str(log_dir),
            console_ranks=frozenset(shown),
            cpus_per_worker=cpus,
            store_address="127.0.0.1",
            store_port=port,
            run_id=job.run_id,
            max_restarts=max(0, job.failures.max_failures),
        )

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
                missing = [name for rank, name in enumerate(names) if rank not in found]
                timeout_s = _env.seconds("MINITRAIN_START_TIMEOUT_S")
                error = RendezvousTimeoutError(missing, timeout_s, "MINITRAIN_START_TIMEOUT_S")
                raise _controller_error("the workers could not be started", error)
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

    def _take_while_starting(self, happening: Happening) -> None:
        if isinstance(happening, Interrupt):
            raise KeyboardInterrupt
        self._take(happening)

    # ------------------------------------------------------------------ what happens
    def _next_events(self) -> list[Event]:
        """Wait for something to happen and return what it means for the course of the run."""
        deadlines = [self._settle_at_s, self._traffic.deadline_s()]
        deadline_s = min((at_s for at_s in deadlines if at_s is not None), default=None)
        try:
            for happening in self._group.receive(deadline_s):
                if isinstance(happening, Interrupt):
                    return [InterruptRequested(self._attempt)]
                self._take(happening)
            self._traffic.act_on_waits()
        except ControllerError as error:
            return [AttemptFailed(self._attempt, error)]
        except Exception as error:  # noqa: BLE001 - a full disk, a bug: the workers must be ended
            return [AttemptFailed(self._attempt, _controller_error("the driver failed", error))]
        mismatch = self._traffic.mismatch(self._returned)
        if mismatch is not None:
            self._fail(*mismatch, None)
        return self._decided()

    def _decided(self) -> list[Event]:
        everybody = set(range(self._group.world_size))
        if self._failures:
            over = everybody <= self._failures.keys() | self._returned
            late = self._settle_at_s is not None and time.monotonic() >= self._settle_at_s
            return [self._failure_event(self._attempt)] if over or late else []
        if isinstance(self._state, Running) and everybody <= self._returned:
            return [WorkersReturned(self._attempt)]
        return []

    def _take(self, happening: Happening) -> None:
        match happening:
            case News(rank=rank, message=wire.Returned() as returned):
                self._returned.add(rank)
                self._take_value(returned)
            case News(rank=rank, message=wire.Raised() as raised):
                self._fail(rank, exception_of(raised), raised)
            case News(rank=rank, message=message):
                self._traffic.serve(rank, message)
            case wire.WorkerExited(rank=rank, exitcode=exitcode):
                if rank not in self._returned:
                    self._fail(rank, WorkerDiedError(exitcode, happening.peak_bytes), happening)
            case AgentLost(exitcode=exitcode):
                self._fail_all(exitcode)
            case wire.Output(rank=rank, data=data):
                self._traffic.show(rank, data)
            case _:
                pass

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

    def _fail(
        self, rank: int, cause: BaseException, news: wire.Raised | wire.WorkerExited | None
    ) -> None:
        if rank in self._failures:
            return  # it has said why; now it ends
        facts = self._group.agent.facts
        log_path = self._layout.log(self._attempt, rank)
        self._failures[rank] = WorkerFailure(
            rank=rank,
            hostname=facts.hostname if facts else "localhost",
            pid=self._group.pids.get(rank, 0),
            cause=cause,
            traceback=news.traceback if isinstance(news, wire.Raised) else end_of_log(log_path),
            log_path=str(log_path),
            time_s=news.time_s if news is not None else time.monotonic(),
        )
        if self._settle_at_s is None:
            self._settle_at_s = time.monotonic() + _SETTLE_S

    def _fail_all(self, exitcode: int) -> None:
        """The agent is gone: its workers were killed with it, before they returned or not."""
        cause = AgentDiedError(exitcode)
        for rank in range(self._group.world_size):
            self._fail(rank, cause, None)
        self._settle_at_s = time.monotonic()

    # ------------------------------------------------------------------ failing and stopping
    def _settled_failure(self, attempt: int) -> Event:
        """Wait for the rest of what goes wrong while workers start, and make one error of it."""
        until_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < until_s:
            for happening in self._group.receive(until_s):
                if isinstance(happening, Interrupt):
                    return InterruptRequested(attempt)
                self._take(happening)
        if self._failures:
            return self._failure_event(attempt)
        error = WorkersUnableError("the workers stopped answering while they were starting")
        return AttemptFailed(attempt, _controller_error("the backend could not start", error))

    def _failure_event(self, attempt: int) -> Event:
        failures = list(self._failures.values())
        error = group_error(failures, attempt=attempt, limit=self._job.failures.max_failures)
        return AttemptFailed(attempt, error)

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
            if not happenings:
                self._give_agent_up()
            for happening in happenings:
                if isinstance(happening, Interrupt):
                    events = [InterruptRequested(attempt)]
                    group.order_agent(wire.StopWorkers(attempt, 0.0, _HURRY_S))
                gone = gone or isinstance(happening, wire.AttemptGone)
                self._take_last(happening)
        if group.agent.lost:
            agents.release(group.agent)  # ends what is left of it
        self._traffic.end_attempt()
        return [*events, WorkersGone(attempt)]

    def _take_last(self, happening: Happening) -> None:
        """Take what workers had sent before they ended: it was acknowledged."""
        with suppress(ControllerError):  # a callback that fails now hides no other error
            match happening:
                case News(rank=rank, message=wire.Reported() as report):
                    self._traffic.serve(rank, report)
                case wire.Output(rank=rank, data=data):
                    self._traffic.show(rank, data)
                case wire.AttemptGone(survivors=survivors):
                    self._warn_of_survivors(survivors)
                case _:
                    pass

    def _give_agent_up(self) -> None:
        logger.warning(
            "the agent (pid %d) did not end its workers; ending it", self._group.agent.pid
        )
        self._group.agent.lost = True

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


def _search_path(here: str) -> tuple[str, ...]:
    """Return the module search path with its relative entries made absolute."""
    return tuple(os.path.join(here, entry) if entry else here for entry in sys.path)  # noqa: PTH118


def _arguments() -> tuple[str, ...]:
    return tuple(sys.argv)
