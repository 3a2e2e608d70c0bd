"""A worker's life: settle in, join, do as the driver says, leave."""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from typing import Any

import cloudpickle

from minitrain import session as public_session
from minitrain._os.memory import OomCounter
from minitrain._session import StopTraining, TrainSession, context_of
from minitrain._storage.file_connection import connect
from minitrain._wire.channel import Channel, ChannelClosed
from minitrain._wire.failure import describe
from minitrain._wire.messages import (
    Execute,
    Executed,
    Exit,
    ForkedWorker,
    Joined,
    Payload,
    Returned,
    Train,
)
from minitrain._worker.environment import (
    own_devices,
    run_exit_handlers,
    settle,
    temporary_folder,
)
from minitrain._worker.inbox import PipeInbox
from minitrain.checkpoint import use_shared_folder

__all__ = ["run"]


def run(forked: ForkedWorker) -> None:
    """Be the worker at ``forked.place``; the process ends when this returns."""
    settle(forked)
    if forked.file_fds is not None:
        connect(*forked.file_fds)
    inbox = PipeInbox(forked.ring, Channel(forked.orders_fd, forked.orders_fd))
    try:
        worker = Worker(forked, inbox)
    except BaseException as error:  # noqa: BLE001 - the user's modules are imported here
        inbox.send(describe(error))
        worker = None
    try:
        if worker is not None:
            inbox.send(Joined())
        _obey(worker, inbox)
    except ChannelClosed:
        os._exit(1)  # the agent is gone
    run_exit_handlers()
    if worker is None or worker.failed:
        sys.exit(1)


def _obey(worker: Worker | None, inbox: PipeInbox) -> None:
    """Do as the driver says until it says leave."""
    while True:
        order = inbox.wait(None)
        match order:
            case Exit():
                return
            case Execute() if worker is not None:
                inbox.send(worker.execute(order))
            case Train() if worker is not None:
                worker.train(order)
            case _:
                pass  # an answer that nobody waits for any more


class Worker:
    """The user's code in this process.

    Args:
        forked: What the agent handed over.
        inbox: The pipes.
    """

    def __init__(self, forked: ForkedWorker, inbox: PipeInbox) -> None:
        payload: Payload = pickle.loads(forked.start.payload)
        self._inbox = inbox
        self._run = payload.run
        self._oom_counter = OomCounter()
        place = forked.place
        self._context = context_of(
            payload.run, place, working_dir=forked.start.working_dir, gpus=own_devices(place)
        )
        public_session.install_context(self._context)
        use_shared_folder(temporary_folder())
        self._function, self._arguments, self._around, self._datasets = pickle.loads(payload.train)
        self._datasets.settle(temporary_folder())
        self.failed = False

    def execute(self, order: Execute) -> Executed:
        """Call a function of the backend."""
        try:
            function, args, kwargs = pickle.loads(order.function)
            return Executed(order.call, cloudpickle.dumps(function(*args, **kwargs)))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the driver
            return Executed(order.call, None, describe(error))

    def train(self, order: Train) -> None:
        """Run the train function and say how it ended."""
        session = TrainSession(self._inbox, self._context, self._run, order, self._datasets)
        value: Any = None
        public_session.install(session)
        try:
            value = self._call(session)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: the rank did not return
            self.failed = True
            session.finish_uploads()  # the next attempt may start from them
            self._add_evidence(error)
            self._inbox.send(describe(error))
            return
        finally:
            public_session.install(None)
            session.close()
            sys.stdout.flush()
            sys.stderr.flush()
        self._inbox.send(self._returned(session, value))

    def _call(self, session: TrainSession) -> Any:
        value: Any = None
        with self._around(), suppress(StopTraining):
            value = self._function(*self._arguments)
        session.settle()
        return value

    def _add_evidence(self, error: BaseException) -> None:
        """Say of an error if one of the processes started here, a data loader's, was killed."""
        evidence = self._oom_counter.evidence()
        if evidence is not None and evidence.kills and not evidence.whole_machine:
            error.add_note(f"The out-of-memory killer was at work: {evidence}.")

    def _returned(self, session: TrainSession, value: Any) -> Returned:
        if self._context.get_world_rank() != 0:
            return Returned(session.num_reports, None)
        pickled = None
        problem = ""
        try:
            pickled = cloudpickle.dumps(value)
        except Exception as error:  # noqa: BLE001 - a training is not lost for its return value
            problem = f"{type(value).__name__}: {error}"
        return Returned(session.num_reports, pickled, problem, tuple(sys.modules))
