"""What workers send while they train, and what they get back: the controller's daily business."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from minitrain import _env
from minitrain._driver.checkpoints import CheckpointKeeper
from minitrain._driver.gatherings import Gatherings, Incomplete
from minitrain._driver.job import Job
from minitrain._driver.tables import Tables
from minitrain._logging import logger
from minitrain._storage.layout import RunLayout
from minitrain._storage.ranking import lookup
from minitrain._storage.record import RunRecord
from minitrain._wire.messages import (
    Answer,
    CheckpointCommitted,
    CollectiveEntered,
    NameAsked,
    Reported,
    WorkerNews,
    WorkerOrder,
)
from minitrain.callbacks import RunContext, UserCallback
from minitrain.checkpoint import Checkpoint
from minitrain.exceptions import (
    CheckpointError,
    CollectiveTimeoutError,
    ControllerError,
    ReportMismatchError,
    WorkerGroupError,
)

__all__ = ["Served", "Traffic", "should_stop"]


class Served(Protocol):
    """The workers of an attempt, as far as serving them goes."""

    world_size: int

    def order(self, rank: int, order: WorkerOrder) -> None:
        """Send a worker an order."""

    def order_all(self, order: WorkerOrder) -> None:
        """Send every worker an order."""


class Traffic:
    """Serves the workers of a run, attempt after attempt.

    Args:
        job: What the run does.
        layout: Where.
        record: Its record.
    """

    def __init__(self, job: Job, layout: RunLayout, record: RunRecord) -> None:
        self._job = job
        self._layout = layout
        self._callbacks: Sequence[UserCallback] = job.run_config.callbacks or ()
        self._context = RunContext(layout.root.name, str(layout.root), job.run_config)
        self._timeout_s = _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
        self._warn_s = _env.seconds("MINITRAIN_COLLECTIVE_WARN_S")
        self._tables = Tables(layout, job.facts(layout).config)
        self.checkpoints = CheckpointKeeper(layout, record, job.metadata)
        self.stopped = False
        self._group: Served
        self._reports: Gatherings[Reported]
        self._collectives: Gatherings[CollectiveEntered]
        self._warned_until_s = 0.0
        self._lines: dict[int, bytes] = {}

    def begin(self, group: Served) -> None:
        """Turn to the workers of another attempt."""
        self._group = group
        self._reports = Gatherings(group.world_size)
        self._collectives = Gatherings(group.world_size)
        self.checkpoints.begin_attempt()

    def end_attempt(self) -> None:
        """Bring in order what workers that were ended may have left undone."""
        self.flush_output()
        try:
            self._tables.agree_with(self._layout.rows)
        except OSError as error:  # a full disk, which the run's own error tells more of
            logger.warning("result.json and progress.csv may differ: %s", error)

    def close(self) -> None:
        """Close the tables."""
        self._tables.close()

    # ------------------------------------------------------------------ reports and questions
    def serve(self, rank: int, news: WorkerNews) -> None:
        """Do what a worker's message asks for.

        Raises:
            ControllerError: A callback or a stop condition raised.
        """
        match news:
            case Reported():
                reports = self._reports.add(rank, news, time.monotonic())
                if reports is not None:
                    self._complete(reports)
            case NameAsked(question=question, index=index, dir_name=dir_name):
                try:
                    answer = Answer(question, self.checkpoints.path_for(index, dir_name))
                except CheckpointError as error:
                    answer = Answer(question, error=error)
                self._group.order(rank, answer)
            case CollectiveEntered():
                entered = self._collectives.add(rank, news, time.monotonic())
                if entered is not None:
                    self._answer_collective(entered)
            case _:
                pass

    def _complete(self, reports: list[Reported]) -> None:
        """Do what follows when every rank has made the same report."""
        row = dict(reports[0].row or reports[0].metrics)
        checkpoint, error = None, None
        name = next((report.checkpoint for report in reports if report.checkpoint), None)
        if name is not None:
            row |= {"checkpoint_dir_name": name, "should_checkpoint": True}
            try:
                self.checkpoints.commit(reports, row)
            except CheckpointError as commit_error:
                error = commit_error
            else:
                checkpoint = Checkpoint(self._layout.checkpoint(name))
                self._group.order_all(CheckpointCommitted(checkpoint.path))
        goes_on = not self._decide_to_stop(row)
        for rank, report in enumerate(reports):
            if report.question is not None:
                self._group.order(rank, Answer(report.question, goes_on, error))
        self._tables.append(row)
        self._tell_callbacks(reports, checkpoint)

    def _decide_to_stop(self, row: dict[str, Any]) -> bool:
        try:
            stop = should_stop(self._job.run_config.stop, self._job.run_id, row)
        except Exception as error:
            raise ControllerError(
                f"RunConfig(stop) raised {type(error).__name__}: {error}"
            ) from error
        self.stopped = self.stopped or stop
        return stop

    def _tell_callbacks(self, reports: list[Reported], checkpoint: Checkpoint | None) -> None:
        metrics = [report.metrics for report in reports]
        for callback in self._callbacks:
            try:
                callback.after_report(self._context, metrics, checkpoint)
            except Exception as error:
                raise _callback_error(callback, "after_report", error) from error

    def tell_callbacks_of(self, error: BaseException) -> None:
        """Call ``after_exception`` of every callback; one that raises is only logged."""
        if not isinstance(error, WorkerGroupError):
            return
        for callback in self._callbacks:
            try:
                callback.after_exception(self._context, error.worker_failures)
            except Exception as callback_error:  # noqa: BLE001 - the run's own error must win
                logger.warning("%s", _callback_error(callback, "after_exception", callback_error))

    def _answer_collective(self, entered: list[CollectiveEntered]) -> None:
        names = {one.operation for one in entered}
        error = None
        if len(names) > 1:
            by_rank = ", ".join(f"rank {n}: {one.operation}" for n, one in enumerate(entered))
            error = RuntimeError(f"ranks are in different collectives: {by_rank}")
        for rank, one in enumerate(entered):
            if one.question is not None:
                self._group.order(rank, Answer(one.question, entered[0].data, error))

    # ------------------------------------------------------------------ who is missing
    def deadline_s(self) -> float | None:
        """Return when :meth:`act_on_waits` is to be called, if at all."""
        waits = self._waits()
        if not waits:
            return None
        first_s = waits[0][1].since_s
        ends_s = [wait.since_s + self._timeout_s for _, wait in waits if _questions(wait)]
        warning_s = max(first_s + self._warn_s, self._warned_until_s)
        return min([*ends_s, warning_s])

    def _waits(self) -> list[tuple[str, Incomplete[Any]]]:
        """Return what ranks wait for, the longest wait first."""
        found: list[tuple[str, Incomplete[Any]]] = []
        report, collective = self._reports.oldest(), self._collectives.oldest()
        if report is not None:
            found.append(("report()", report))
        if collective is not None:
            found.append((f"{next(iter(collective.items.values())).operation}()", collective))
        return sorted(found, key=lambda pair: pair[1].since_s)

    def mismatch(self, returned: Collection[int]) -> tuple[int, ReportMismatchError] | None:
        """Return a call that will never be completed, with a rank that made it.

        Args:
            returned: Ranks whose train function has returned; what they have not called yet,
                they never will.
        """
        for name, gatherings in (("report()", self._reports), ("a collective", self._collectives)):
            if gatherings.is_hopeless(returned):
                ahead = max(gatherings.counts, key=lambda rank: gatherings.counts[rank])
                return ahead, ReportMismatchError(name, gatherings.counts)
        return None

    def act_on_waits(self) -> None:
        """Warn of ranks that others wait for; after the timeout, let the others fail."""
        now_s = time.monotonic()
        for name, wait in self._waits():
            if _questions(wait) and now_s >= wait.since_s + self._timeout_s:
                self._time_out(name, wait)
            elif now_s >= max(wait.since_s + self._warn_s, self._warned_until_s):
                self._warned_until_s = now_s + self._warn_s
                logger.warning(
                    "%s: rank %s has not made the call that rank %s made %.0f s ago; every rank "
                    "must make it equally often",
                    name,
                    ", ".join(map(str, wait.missing)),
                    ", ".join(map(str, wait.items)),
                    now_s - wait.since_s,
                )

    def _time_out(self, name: str, wait: Incomplete[Any]) -> None:
        error = CollectiveTimeoutError(name, wait.missing, self._timeout_s)
        for rank, question in _questions(wait).items():
            self._group.order(rank, Answer(question, error=error))
        self._reports.replace(_answered)
        self._collectives.replace(_answered)

    # ------------------------------------------------------------------ output
    def show(self, rank: int, data: bytes) -> None:
        """Show what a worker printed, whole lines at a time, each with the rank before it."""
        *lines, rest = (self._lines.get(rank, b"") + data).split(b"\n")
        self._lines[rank] = rest
        _print(rank, lines)

    def flush_output(self) -> None:
        """Show the beginnings of lines whose ends will not come."""
        for rank, rest in self._lines.items():
            if rest:
                _print(rank, [rest])
        self._lines.clear()


def _print(rank: int, lines: list[bytes]) -> None:
    text = "".join(f"[rank {rank}] {line.decode(errors='replace')}\n" for line in lines)
    with suppress(OSError, ValueError):  # a closed console must not end a training
        sys.stdout.write(text)
        sys.stdout.flush()


def _questions(wait: Incomplete[Any]) -> dict[int, int]:
    """Return the ranks that wait for an answer, with their questions."""
    return {r: item.question for r, item in wait.items.items() if item.question is not None}


def _answered(item: Any) -> Any:
    return replace(item, question=None)


def _callback_error(callback: UserCallback, method: str, error: Exception) -> ControllerError:
    name = f"{type(callback).__name__}.{method}"
    return ControllerError(f"the callback {name} raised {type(error).__name__}: {error}")


def should_stop(condition: Any, run_id: str, row: dict[str, Any]) -> bool:
    """Return whether a ``RunConfig(stop)`` is met by a row.

    Raises:
        KeyError: It names a metric that was not reported.

    >>> should_stop({"accuracy": 0.9}, "run", {"accuracy": 0.95})
    True
    """
    if condition is None:
        return False
    if callable(condition):
        return bool(condition(run_id, row))
    for name, threshold in condition.items():
        value = lookup(row, name)
        if value is None:
            raise KeyError(f"the metric {name!r} was not reported; there are: {sorted(row)}")
        if value >= threshold:
            return True
    return False
