"""``num_workers=0``: the train function in the driver's own process, for a debugger.

The same session functions, the same files, the same kind of error; no other process. The working
directory stays as it is.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from minitrain import session as public_session
from minitrain._driver.controller import shut_down
from minitrain._driver.failures import group_error
from minitrain._driver.job import Job
from minitrain._driver.traffic import Traffic
from minitrain._session import StopTraining, TrainSession
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import Attempt, RunRecord, now
from minitrain._wire.failure import user_traceback
from minitrain._wire.messages import RunFacts, Train, WorkerNews, WorkerOrder
from minitrain.context import TrainContext
from minitrain.exceptions import ControllerError, WorkerFailure

__all__ = ["Outcome", "train_here"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended."""

    error: BaseException | None
    return_value: Any
    stopped: bool


def train_here(job: Job, layout: RunLayout, record: RunRecord) -> Outcome:
    """Run the train function in this process."""
    layout.logs(0).mkdir(parents=True)
    record.attempts.append(Attempt(world_size=0))
    record.save(layout)
    facts = job.facts(layout)
    context = _context(facts, job)
    error: BaseException | None = None
    value: Any = None
    with closing(Traffic(job, layout, record)) as traffic:
        inbox = _DirectInbox(traffic)
        traffic.begin(inbox)
        start = Train(job.resume_from.path if job.resume_from else None, 0, 0.0)
        session = TrainSession(inbox, context, facts, start, job.datasets)
        try:
            with _installed(context, session), _logged(layout.log(0, 0)):
                value = _call(job)
        except StopTraining:
            pass
        except (KeyboardInterrupt, ControllerError) as own:
            error = own
        except Exception as cause:  # noqa: BLE001 - the user's, as a worker's would be
            error = _failure(cause, layout)
            traffic.tell_callbacks_of(error)
        finally:
            session.close()
    record.attempts[-1].outcome = "returned" if error is None else str(error).split("\n", 1)[0]
    record.attempts[-1].ended = now()
    return Outcome(error, value, traffic.stopped)


@contextmanager
def _installed(context: TrainContext, session: public_session.Session) -> Generator[None]:
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
    backend, group = config.backend_cls(), _OneWorker(job.resources)
    try:
        backend.on_start(group, config)
        backend.on_training_start(group, config)
        with config.train_func_context():
            return job.function(*job.arguments)
    finally:
        shut_down(backend, group, config)


def _context(facts: RunFacts, job: Job) -> TrainContext:
    return TrainContext(
        _name=facts.name,
        _trial_name=facts.trial_name,
        _run_id=facts.run_id,
        _path=facts.path,
        _world_size=1,
        _rank=0,
        _local_rank=0,
        _local_world_size=1,
        _node_rank=0,
        _working_dir=str(Path.cwd()),
        _gpus=(0,) if job.scaling.use_gpu else (),
        _metadata=facts.metadata,
        _resources=facts.resources,
    )


def _failure(cause: Exception, layout: RunLayout) -> BaseException:
    failure = WorkerFailure(
        rank=0,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        cause=cause,
        traceback=user_traceback(cause),
        log_path=str(layout.log(0, 0)),
    )
    return group_error([failure], attempt=0, limit=0, here=True)


class _DirectInbox:
    """The way to :class:`Traffic` when it is in the same process: a call."""

    world_size = 1

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._orders: deque[WorkerOrder] = deque()

    def order(self, rank: int, order: WorkerOrder) -> None:
        assert rank == 0
        self._orders.append(order)

    def order_all(self, order: WorkerOrder) -> None:
        self._orders.append(order)

    def send(self, news: WorkerNews) -> None:
        self._traffic.serve(0, news)

    def poll(self) -> list[WorkerOrder]:
        arrived = list(self._orders)
        self._orders.clear()
        return arrived

    def put_back(self, orders: Sequence[WorkerOrder]) -> None:
        self._orders.extendleft(reversed(orders))

    def wait(self, timeout_s: float | None) -> WorkerOrder | None:
        del timeout_s  # whatever there is to answer has been answered in send()
        return self._orders.popleft() if self._orders else None


class _OneWorker:
    """This process as a backend's only worker."""

    def __init__(self, resources: dict[str, float]) -> None:
        self._resources = resources

    def __len__(self) -> int:
        return 1

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        return [function(*args, **kwargs)]

    def execute_single(
        self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        assert rank == 0
        return function(*args, **kwargs)

    def get_resources_per_worker(self) -> dict[str, float]:
        return dict(self._resources)


@contextmanager
def _logged(path: Path) -> Generator[None]:
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
