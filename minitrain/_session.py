"""The session behind ``report()`` and its kind: news goes to the driver, answers come back.

It is the same in a worker and, for ``num_workers=0``, in the driver's own process; they differ in
their inbox.
"""

from __future__ import annotations

import pickle
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from minitrain._datasets import Datasets, Shards
from minitrain._manifest import MANIFEST
from minitrain._storage.disk import FileEntry
from minitrain._storage.rows import RowBuilder, RowFile
from minitrain._uploads import Upload, Uploads, out_of_reach
from minitrain._wire.messages import (
    Answer,
    CheckpointCommitted,
    CheckpointLost,
    CheckpointsAsked,
    CollectiveEntered,
    NameAsked,
    Place,
    Reported,
    RunFacts,
    Train,
    Uploaded,
    WorkerNews,
    WorkerOrder,
)
from minitrain.checkpoint import Checkpoint
from minitrain.context import TrainContext
from minitrain.exceptions import CheckpointError, CollectiveTimeoutError
from minitrain.session import CheckpointUploadMode, ReportedCheckpoint, UploadOptions

__all__ = ["Inbox", "StopTraining", "TrainSession", "context_of"]

_Write: TypeAlias = Callable[[], tuple[FileEntry, ...]]
_Positions: TypeAlias = dict[str, Any]

_LATE_S = 60.0
"""How much longer than the driver a worker waits: the driver can say whom it waits for."""


class StopTraining(BaseException):
    """Raised out of report() when a stop condition is met; a train function must let it pass."""


def context_of(
    run: RunFacts, place: Place, *, working_dir: str, gpus: tuple[int, ...]
) -> TrainContext:
    """Return what a train function can learn about where it runs.

    Args:
        run: What is known of the run.
        place: Where the function's process stands.
        working_dir: Where it started.
        gpus: Its GPUs, as indices into those it sees.
    """
    return TrainContext(
        _name=run.name,
        _trial_name=run.trial_name,
        _run_id=run.run_id,
        _path=run.path,
        _world_size=place.world_size,
        _rank=place.rank,
        _local_rank=place.local_rank,
        _local_world_size=place.local_world_size,
        _node_rank=place.node_rank,
        _working_dir=working_dir,
        _gpus=gpus,
        _metadata=run.metadata,
        _resources=run.resources,
        _filesystem=run.remote_filesystem,
    )


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
        datasets: The trainer's.
    """

    def __init__(
        self,
        inbox: Inbox,
        context: TrainContext,
        run: RunFacts,
        train: Train,
        datasets: Datasets,
    ) -> None:
        self.context = context
        self.score_attribute = run.score_attribute
        self._inbox = inbox
        self._run = run
        self._storage = run.storage
        self._shards = Shards(datasets, context, train.positions)
        self._checkpoint = pickle.loads(train.checkpoint) if train.checkpoint else None
        self._lock = threading.RLock()  # a train function may report from several threads
        self._questions = 0
        self.num_reports = 0
        self._uploads = Uploads(self._say_uploaded)
        self._unsettled: set[int] = set()  # asynchronous reports whose checkpoints are on their way
        self._lost: Exception | None = None
        self._rows: RowFile | None = None
        self._builder: RowBuilder | None = None
        if context.get_world_rank() == 0:
            self._builder = RowBuilder(run.run_id, train.iterations, train.time_total_s)
            if train.rows:  # otherwise this is not the driver's host, and the driver writes them
                self._rows = RowFile(Path(train.rows), run.config)

    def settle(self) -> None:
        """Wait until every checkpoint on its way is committed.

        Raises:
            CheckpointError: One could not be written.
        """
        with self._lock:
            self.finish_uploads()
            others: list[WorkerOrder] = []
            while self._unsettled:
                order = self._next_order("the commit of a checkpoint")
                if not self._take(order):
                    others.append(order)
            self._inbox.put_back(others)
            self._raise_if_lost()

    def finish_uploads(self) -> None:
        """Wait until every checkpoint on its way is written, or could not be."""
        self._uploads.close()

    def close(self) -> None:
        """Close what the session has open."""
        self.finish_uploads()
        if self._rows is not None:
            self._rows.close()

    def checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint."""
        with self._lock:
            self._look()
            return self._checkpoint

    def all_checkpoints(self, timeout_s: float | None) -> list[ReportedCheckpoint]:
        """Return every checkpoint of the run, when those reported so far are settled."""
        with self._lock:
            question = self._next_question()
            news = CheckpointsAsked(question, self.num_reports)
            try:
                found = self._ask(news, question, "get_all_reported_checkpoints", timeout_s)
            except CollectiveTimeoutError:
                if timeout_s is None:
                    raise
                question = self._next_question()
                found = self._ask(CheckpointsAsked(question, 0), question, "checkpoints")
        return [ReportedCheckpoint(self._storage.checkpoint(name), row) for name, row in found]

    def dataset_shard(self, name: str | None) -> Any:
        """Return this worker's part of a dataset, the same each time."""
        with self._lock:
            return self._shards.get(name)

    # ------------------------------------------------------------------ reports
    def report(
        self, metrics: dict[str, Any], checkpoint: Checkpoint | None, options: UploadOptions
    ) -> None:
        """Hand a report over; with a checkpoint, wait until it is committed, or is on its way."""
        with self._lock:
            # Now, not when the files are written; and always: another rank may have a checkpoint.
            positions = self._shards.positions()
            if checkpoint is None:
                self._report_metrics(metrics, positions)
            elif options.mode is CheckpointUploadMode.ASYNC:
                self._report_and_go_on(metrics, checkpoint, options, positions)
            else:
                self._report_and_wait(metrics, checkpoint, options, positions)
            if self._unsettled or self._lost:
                self._look()
                self._raise_if_lost()

    def _report_metrics(self, metrics: dict[str, Any], positions: _Positions) -> None:
        row = self._row(metrics, None, write=True)
        news = Reported(self._next_report(), metrics, row, positions=positions)
        self._hand_over(news, ask=self._run.asks_to_go_on)

    def _report_and_wait(
        self,
        metrics: dict[str, Any],
        checkpoint: Checkpoint,
        options: UploadOptions,
        positions: _Positions,
    ) -> None:
        name = self._name_for(checkpoint, options)
        files: tuple[FileEntry, ...] = ()
        problem: Exception | None = None
        try:
            files = self._writing(checkpoint, name, options)()
        except CheckpointError as error:  # all ranks learn of it, and it is raised in each of them
            problem = error
        row = self._row(metrics, name, write=False)
        index = self._next_report()
        question = self._next_question()
        news = Reported(
            index,
            metrics,
            row,
            name,
            files,
            _is_in_place(options),
            problem=problem,
            question=question,
            positions=positions,
        )
        try:
            goes_on = self._ask(news, question, "report")
        except Exception:
            if self._builder is not None:
                self._builder.take_back()
            raise
        if self._rows is not None and row is not None:
            self._rows.append(row, durable=True)
        if not goes_on:
            raise StopTraining

    def _report_and_go_on(
        self,
        metrics: dict[str, Any],
        checkpoint: Checkpoint,
        options: UploadOptions,
        positions: _Positions,
    ) -> None:
        self._uploads.make_room()
        try:
            name = self._name_for(checkpoint, options)
            write = self._writing(self._taken(checkpoint, options), name, options)
            row = self._row(metrics, name, write=True)
        except BaseException:
            self._uploads.give_room_back()
            raise
        index = self._next_report()
        self._unsettled.add(index)
        # Before the report, which may be the last: a stop condition ends the training in it.
        self._uploads.begin(Upload(index, write))
        in_place = options.function is not None
        news = Reported(
            index, metrics, row, name, in_place=in_place, pending=True, positions=positions
        )
        self._hand_over(news, ask=self._run.asks_to_go_on)

    def _row(
        self, metrics: dict[str, Any], name: str | None, *, write: bool
    ) -> dict[str, Any] | None:
        """Return a report's row, if this rank is the one that makes them."""
        if self._builder is None:
            return None
        row = self._builder.row(metrics, name)
        if write and self._rows is not None:
            self._rows.append(row, durable=False)
        return row

    def _hand_over(self, news: Reported, *, ask: bool) -> None:
        if not ask:
            self._inbox.send(news)
            return
        question = self._next_question()
        if not self._ask(replace(news, question=question), question, "report"):
            raise StopTraining

    def _name_for(self, checkpoint: Checkpoint, options: UploadOptions) -> str:
        """Ask the driver for the checkpoint's name."""
        dir_name = options.dir_name
        if options.mode is CheckpointUploadMode.NO_UPLOAD:
            dir_name = self._name_in_run(checkpoint, dir_name, "report(NO_UPLOAD)")
        question = self._next_question()
        news = NameAsked(question, self.num_reports, dir_name, _is_in_place(options))
        return str(self._ask(news, question, "report"))

    def _name_in_run(self, checkpoint: Checkpoint, wanted: str | None, where: str) -> str:
        folder, _, name = checkpoint.path.rstrip("/").rpartition("/")
        same_place = checkpoint.is_local == self._storage.is_local and folder == self._storage.root
        if not same_place or wanted not in {None, name}:
            path = self._storage.checkpoint(wanted or "NAME").path
            there = checkpoint.path
            if checkpoint.is_local != self._storage.is_local:
                there += ", but not in its filesystem, get_context().get_storage()"
                there += ".storage_filesystem: pass that to Checkpoint(path, filesystem) as well"
            raise ValueError(
                f"{where}: the files must be in the run's directory, in {path}, which "
                "get_context().get_storage().build_checkpoint_path_from_name(name) gives; they are "
                f"in {there}"
            )
        return name

    def _taken(self, checkpoint: Checkpoint, options: UploadOptions) -> Checkpoint:
        """Return a checkpoint that was given away, where its giver cannot touch it any more.

        One whose files are still being written stays where it is until they are.
        """
        is_plain = type(checkpoint).wait is Checkpoint.wait
        if not is_plain or not options.given_away or not _may_be_moved(checkpoint):
            return checkpoint
        return Checkpoint.from_directory(out_of_reach(Path(checkpoint.path)))

    def _writing(self, checkpoint: Checkpoint, name: str, options: UploadOptions) -> _Write:
        """Return what writes the files of a checkpoint, and returns what it has written."""

        def write() -> tuple[FileEntry, ...]:
            try:
                checkpoint.wait()
                if options.mode is CheckpointUploadMode.NO_UPLOAD:
                    return ()
                if options.function is not None:
                    self._write_by(options.function, checkpoint, name)
                    files: tuple[FileEntry, ...] = ()
                else:
                    with checkpoint.as_directory() as folder:
                        move = options.given_away and _may_be_moved(checkpoint)
                        files = self._storage.put(Path(folder), name, move=move)
            except CheckpointError:
                raise
            except Exception as error:
                path = self._storage.checkpoint(name).path
                kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
                raise CheckpointError(
                    f"the checkpoint {path} could not be written: {kind}{error}"
                ) from error
            if options.given_away and _may_be_moved(checkpoint):
                shutil.rmtree(checkpoint.path, ignore_errors=True)
            return files

        return write

    def _write_by(
        self, function: Callable[[Checkpoint, str], Checkpoint], checkpoint: Checkpoint, name: str
    ) -> None:
        written = function(checkpoint, name)
        if not isinstance(written, Checkpoint):
            raise TypeError(
                f"report(checkpoint_upload_fn): returned {written!r}, must return the Checkpoint "
                "that it has written"
            )
        self._name_in_run(written, name, "report(checkpoint_upload_fn)")

    def _say_uploaded(
        self, index: int, files: tuple[FileEntry, ...], problem: Exception | None
    ) -> None:
        """In the thread that uploads: tell the driver."""
        self._inbox.send(Uploaded(index, files, problem))

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            lost, self._lost = self._lost, None
            raise lost

    # ------------------------------------------------------------------ questions and orders
    def collective(self, operation: str, data: Any) -> Any:
        """Wait for all ranks and return rank 0's data."""
        with self._lock:
            sent = self._packed(data) if self.context.get_world_rank() == 0 else None
            question = self._next_question()
            news = CollectiveEntered(question, operation, sent)
            return self._unpacked(self._ask(news, question, operation))

    def _packed(self, data: Any) -> bytes:
        return pickle.dumps(data)

    def _unpacked(self, data: bytes) -> Any:
        return pickle.loads(data)

    def _next_report(self) -> int:
        self.num_reports += 1
        return self.num_reports - 1

    def _next_question(self) -> int:
        self._questions += 1
        return self._questions

    def _ask(
        self, news: WorkerNews, question: int, operation: str, timeout_s: float | None = None
    ) -> Any:
        """Say something and wait for the driver's answer to it."""
        self._inbox.send(news)
        others: list[WorkerOrder] = []
        try:
            while True:
                order = self._next_order(operation, timeout_s)
                if isinstance(order, Answer) and order.question == question:
                    if order.error is not None:
                        raise order.error
                    return order.value
                if not self._take(order):
                    others.append(order)
        finally:
            self._inbox.put_back(others)

    def _next_order(self, operation: str, timeout_s: float | None = None) -> WorkerOrder:
        limit_s = self._run.collective_timeout_s
        order = self._inbox.wait(limit_s + _LATE_S if timeout_s is None else timeout_s)
        if order is None:
            raise CollectiveTimeoutError(operation, (), limit_s if timeout_s is None else timeout_s)
        return order

    def _look(self) -> None:
        """Take what has arrived, without waiting."""
        self._inbox.put_back([order for order in self._inbox.poll() if not self._take(order)])

    def _take(self, order: WorkerOrder) -> bool:
        """Take news of checkpoints; return whether it was."""
        match order:
            case CheckpointCommitted(name=name, index=index):
                self._checkpoint = self._storage.checkpoint(name)
                self._unsettled.discard(index)
            case CheckpointLost(index=index, error=error):
                self._unsettled.discard(index)
                self._lost = self._lost or error
            case _:
                return False
        return True


def _is_in_place(options: UploadOptions) -> bool:
    return options.mode is CheckpointUploadMode.NO_UPLOAD or options.function is not None


def _may_be_moved(checkpoint: Checkpoint) -> bool:
    """Return whether a directory that was given away is one that may be taken.

    A checkpoint of a run may not: it is somebody's already.
    """
    return checkpoint.is_local and not Path(checkpoint.path, MANIFEST).exists()
