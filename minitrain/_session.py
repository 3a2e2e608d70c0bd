"""The session behind ``report()`` and its kind: news goes to the driver, answers come back.

It is the same in a worker and, for ``num_workers=0``, in the driver's own process; they differ in
their inbox.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from minitrain._storage.commit import FileEntry, copy_into
from minitrain._storage.layout import RunLayout
from minitrain._storage.rows import RowBuilder, RowFile
from minitrain._wire.messages import (
    Answer,
    CheckpointCommitted,
    CollectiveEntered,
    NameAsked,
    Reported,
    RunFacts,
    Train,
    WorkerNews,
    WorkerOrder,
)
from minitrain.checkpoint import Checkpoint
from minitrain.context import TrainContext
from minitrain.exceptions import CheckpointError, CollectiveTimeoutError

__all__ = ["Inbox", "StopTraining", "TrainSession"]

_LATE_S = 60.0
"""How much longer than the driver a worker waits: the driver can say whom it waits for."""


class StopTraining(BaseException):
    """Raised out of report() when a stop condition is met; a train function must let it pass."""


class Inbox(Protocol):
    """The way to whoever serves the train function, and back."""

    def send(self, news: WorkerNews) -> None:
        """Say something; it outlives this process from here on."""

    def poll(self) -> list[WorkerOrder]:
        """Return every order that has arrived, without waiting."""

    def put_back(self, orders: Sequence[WorkerOrder]) -> None:
        """Return orders that were not for the caller."""

    def wait(self, timeout_s: float | None) -> WorkerOrder | None:
        """Return the next order; None if there is none in time."""


class TrainSession:
    """What a train function is offered, in a worker or in the driver's own process.

    Args:
        inbox: The way to the driver, and back.
        context: Where the function runs.
        run: What is known of the run.
        train: The order to train.
        datasets: The trainer's datasets.
    """

    def __init__(
        self,
        inbox: Inbox,
        context: TrainContext,
        run: RunFacts,
        train: Train,
        datasets: Mapping[str, Any],
    ) -> None:
        self.context = context
        self.score_attribute = run.score_attribute
        self._inbox = inbox
        self._run = run
        self._datasets = dict(datasets)
        self._checkpoint = Checkpoint(train.checkpoint) if train.checkpoint else None
        self._lock = threading.RLock()  # a train function may report from several threads
        self._questions = 0
        self.num_reports = 0
        self._rows: RowFile | None = None
        if context.get_world_rank() == 0:
            self._rows = RowFile(RunLayout(Path(run.path)).rows, run.config)
            self._builder = RowBuilder(run.run_id, train.iterations, train.time_total_s)

    def close(self) -> None:
        """Close what the session has open."""
        if self._rows is not None:
            self._rows.close()

    def checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint."""
        with self._lock:
            others = []
            for order in self._inbox.poll():
                if isinstance(order, CheckpointCommitted):
                    self._checkpoint = Checkpoint(order.path)
                else:
                    others.append(order)
            self._inbox.put_back(others)
            return self._checkpoint

    def dataset_shard(self, name: str | None) -> Any:
        """Return a dataset; one given as a function is made now, in the worker that asks."""
        if name is None and len(self._datasets) == 1:
            (name,) = self._datasets
        if name not in self._datasets:
            raise KeyError(
                f"there is no dataset {name!r}: the trainer was given {sorted(self._datasets)}; "
                "pass it as Trainer(datasets={...})"
            )
        dataset = self._datasets[name]
        if callable(dataset):
            dataset = self._datasets[name] = dataset()
        return dataset

    def report(
        self, metrics: dict[str, Any], checkpoint: Checkpoint | None, dir_name: str | None
    ) -> None:
        """Hand a report over; with a checkpoint, wait until it is committed."""
        with self._lock:
            index = self.num_reports
            name: str | None = None
            files: tuple[FileEntry, ...] = ()
            if checkpoint is not None:
                name, files = self._write_files(checkpoint, index, dir_name)
            row = None
            if self._rows is not None:
                row = self._builder.row(metrics, name)
                if name is None:
                    self._rows.append(row, durable=False)
            self.num_reports += 1
            if name is None and not self._run.asks_to_go_on:
                self._inbox.send(Reported(index, metrics, row))
                return
            news = Reported(index, metrics, row, name, files, self._next_question())
            goes_on = self._ask(news, news.question, "report")
            if name is not None and self._rows is not None and row is not None:
                self._rows.append(row, durable=True)
            if not goes_on:
                raise StopTraining

    def _write_files(
        self, checkpoint: Checkpoint, index: int, dir_name: str | None
    ) -> tuple[str, tuple[FileEntry, ...]]:
        question = self._next_question()
        path = Path(self._ask(NameAsked(question, index, dir_name), question, "report"))
        try:
            with checkpoint.as_directory() as folder:
                return path.name, copy_into(Path(folder), path)
        except OSError as error:
            raise CheckpointError(f"the checkpoint {path} could not be written: {error}") from error

    def collective(self, operation: str, data: Any) -> Any:
        """Wait for all ranks and return rank 0's data."""
        with self._lock:
            sent = pickle.dumps(data) if self.context.get_world_rank() == 0 else None
            question = self._next_question()
            news = CollectiveEntered(question, operation, sent)
            return pickle.loads(self._ask(news, question, operation))

    def _next_question(self) -> int:
        self._questions += 1
        return self._questions

    def _ask(self, news: WorkerNews, question: int | None, operation: str) -> Any:
        """Say something and wait for the driver's answer to it."""
        self._inbox.send(news)
        others: list[WorkerOrder] = []
        try:
            while True:
                order = self._inbox.wait(self._run.collective_timeout_s + _LATE_S)
                if order is None:
                    raise CollectiveTimeoutError(operation, (), self._run.collective_timeout_s)
                if isinstance(order, CheckpointCommitted):
                    self._checkpoint = Checkpoint(order.path)
                elif isinstance(order, Answer) and order.question == question:
                    if order.error is not None:
                        raise order.error
                    return order.value
                else:
                    others.append(order)
        finally:
            self._inbox.put_back(others)
