"""``num_workers=0``: the train function in the driver's own process, for a debugger.

The same session functions, the same files, the same kind of error; no other process. The working
directory stays as it is.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from minitrain import session as public_session
from minitrain._driver.controller import shut_down
from minitrain._driver.failures import group_error
from minitrain._driver.home import Home
from minitrain._driver.job import Job
from minitrain._driver.preemption import Preemption
from minitrain._driver.starting import start_order
from minitrain._driver.traffic import Traffic
from minitrain._session import StopTraining, TrainSession, context_of
from minitrain._storage.record import Attempt, RunRecord, now
from minitrain._wire.failure import user_traceback
from minitrain._wire.messages import Place, RunFacts, WorkerNews, WorkerOrder
from minitrain.context import TrainContext
from minitrain.exceptions import ControllerError, PreemptionError, WorkerFailure

__all__ = [
    "OneWorker",
    "OrderQueue",
    "Outcome",
    "heeding_sigterm",
    "installed",
    "logged",
    "note_end",
    "train_here",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended."""

    error: BaseException | None
    return_value: Any
    stopped: bool


def train_here(job: Job, home: Home, record: RunRecord) -> Outcome:
    """Run the train function in this process."""
    log = home.layout.log(len(record.attempts), 0)
    log.parent.mkdir(parents=True)
    record.attempts.append(Attempt(world_size=0))
    record.save(home.layout)
    with closing(Traffic(job, home, record, waits=False)) as traffic:
        inbox = _DirectInbox(traffic)
        traffic.begin(inbox)
        facts = job.facts(home)
        context = _context(facts, job)
        session = TrainSession(
            inbox, context, facts, start_order(job, home, traffic.checkpoints), job.datasets
        )
        preemption = Preemption(job.failures.preemption_grace_s)
        error: BaseException | None = None
        value: Any = None
        with (
            installed(context, session),
            logged(log),
            heeding_sigterm(
                preemption.grace_s,
                first=lambda: _notice(preemption, traffic),
                at_end=lambda: preemption.error(home, timed_out=True),
            ),
        ):
            try:
                value = _train(job, session)
            except (KeyboardInterrupt, ControllerError, PreemptionError) as own:
                error = own
            except Exception as cause:  # noqa: BLE001 - the user's, as a worker's would be
                error = _failure(cause, log)
                traffic.tell_callbacks_of(error)
            finally:
                session.close()
        if error is None and traffic.preemption_was_seen:
            error = preemption.error(home, timed_out=False)
        traffic.end_attempt()
    note_end(record.attempts[-1], error)
    return Outcome(error, value, traffic.stopped)


def note_end(attempt: Attempt, error: BaseException | None) -> None:
    """Note how an attempt ended."""
    attempt.outcome = "returned" if error is None else str(error).split("\n", 1)[0]
    attempt.ended = now()


def _train(job: Job, session: TrainSession) -> Any:
    value: Any = None
    with suppress(StopTraining):
        value = _call(job)
    session.settle()
    return value


def _notice(preemption: Preemption, traffic: Traffic) -> None:
    preemption.notice(socket.gethostname(), [0], of_driver=True)
    traffic.preemption = preemption.info


@contextmanager
def heeding_sigterm(
    grace_s: float, first: Callable[[], object], at_end: Callable[[], BaseException]
) -> Generator[None]:
    """Do something at SIGTERM; when the time is up, or at a second one, end what runs.

    Args:
        grace_s: The time.
        first: Is called at the first one, in the signal's handler.
        at_end: Returns what to raise, where the main thread is then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have signals
        return
    timer: threading.Timer | None = None

    def note(*_: object) -> None:
        nonlocal timer
        if timer is not None:
            raise at_end()
        timer = threading.Timer(grace_s, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
        first()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def installed(context: TrainContext, session: public_session.Session) -> Generator[None]:
    """Make this process a worker, as far as the functions for train functions go."""
    public_session.install_context(context)
    public_session.install(session)
    try:
        yield
    finally:
        public_session.install(None)
        public_session.install_context(None)


def _call(job: Job) -> Any:
    """Call the train function with what its framework does around it."""
    config = job.backend_config
    backend, group = config.backend_cls(), OneWorker(job.resources)
    try:
        backend.on_start(group, config)
        backend.on_training_start(group, config)
        with config.train_func_context():
            return job.function(*job.arguments)
    finally:
        shut_down(backend, group, config)


def _context(facts: RunFacts, job: Job) -> TrainContext:
    gpus = (0,) if job.scaling.use_gpu else ()
    return context_of(facts, Place(0, 1, 0, 1, 0), working_dir=str(Path.cwd()), gpus=gpus)


def _failure(cause: Exception, log: Path) -> BaseException:
    failure = WorkerFailure(
        rank=0,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        cause=cause,
        traceback=user_traceback(cause),
        log_path=str(log),
    )
    return group_error([failure], attempt=0, limit=0, here=True)


class OrderQueue:
    """Orders for a train function in this process; another thread may put them there."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._orders: deque[WorkerOrder] = deque()
        self._end: Callable[[], BaseException] | None = None

    def put(self, order: WorkerOrder) -> None:
        """Add an order."""
        with self._arrived:
            self._orders.append(order)
            self._arrived.notify()

    def end(self, error: Callable[[], BaseException]) -> None:
        """Have whoever looks for orders find an error instead, from now on.

        Args:
            error: Returns it, a new one every time.
        """
        with self._arrived:
            self._end = error
            self._arrived.notify_all()

    def check(self) -> None:
        """Raise the error there is instead of orders, if there is one."""
        if self._end is not None:
            raise self._end()

    def poll(self) -> list[WorkerOrder]:
        """Return every order that has arrived, without waiting."""
        self.check()
        with self._arrived:
            arrived = list(self._orders)
            self._orders.clear()
        return arrived

    def put_back(self, orders: Sequence[WorkerOrder]) -> None:
        """Return orders that were not for the caller."""
        with self._arrived:
            self._orders.extendleft(reversed(orders))

    def wait(self, timeout_s: float | None) -> WorkerOrder | None:
        """Return the next order; None if there is none in time."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._orders or self._end, timeout_s)
            self.check()
            return self._orders.popleft() if self._orders else None


class _DirectInbox(OrderQueue):
    """The way to :class:`Traffic` when it is in the same process: a call.

    Checkpoints may be written by a thread, which speaks to the traffic as well.
    """

    world_size = 1

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic
        self._turn = threading.RLock()

    def order(self, rank: int, order: WorkerOrder) -> None:
        assert rank == 0
        self.put(order)

    def order_all(self, order: WorkerOrder) -> None:
        self.put(order)

    def send(self, news: WorkerNews) -> None:
        with self._turn:
            self._traffic.serve(0, news)


class OneWorker:
    """This process as a backend's only worker."""

    def __init__(self, resources: dict[str, float]) -> None:
        self._resources = resources

    def __len__(self) -> int:
        """Return that it is one."""
        return 1

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function here."""
        return [function(*args, **kwargs)]

    def execute_single(
        self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function here."""
        assert rank == 0
        return function(*args, **kwargs)

    def get_resources_per_worker(self) -> dict[str, float]:
        """Return the resources of one worker."""
        return dict(self._resources)


@contextmanager
def logged(path: Path) -> Generator[None]:
    """Write what is printed to a log as well as to the console."""
    with path.open("a", encoding="utf-8") as log:
        before = sys.stdout, sys.stderr
        sys.stdout = _Tee(sys.stdout, log)
        sys.stderr = _Tee(sys.stderr, log)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


class _Tee:
    def __init__(self, console: TextIO, log: TextIO) -> None:
        self._console = console
        self._log = log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._console.write(text)

    def flush(self) -> None:
        self._log.flush()
        self._console.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)
