"""What workers send while they train, and what they get back: the controller's daily business."""

from __future__ import annotations

import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from minitrain import _env
from minitrain._driver.checkpoints import CheckpointKeeper
from minitrain._driver.clerk import Clerk, Outcome
from minitrain._driver.gatherings import Gatherings, Incomplete
from minitrain._driver.home import Home
from minitrain._driver.job import Job
from minitrain._driver.mirror import Mirror
from minitrain._driver.tables import Tables
from minitrain._logging import logger
from minitrain._storage.layout import RECORD
from minitrain._storage.ranking import Registered, lookup
from minitrain._storage.record import RunRecord
from minitrain._storage.rows import RowFile, read_rows
from minitrain._wire.messages import (
    Answer,
    CheckpointCommitted,
    CheckpointLost,
    CheckpointsAsked,
    CollectiveEntered,
    NameAsked,
    Reported,
    Uploaded,
    WorkerNews,
    WorkerOrder,
)
from minitrain.callbacks import RunContext, UserCallback
from minitrain.checkpoint import Checkpoint
from minitrain.context import PreemptionInfo
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


@dataclass(slots=True)
class _Filed:
    """A report that every rank has made, until its checkpoint is committed or given up.

    Attributes:
        reports: By rank.
        row: Its row in the tables.
        name: Its checkpoint's.
        goes_on: Whether training does.
        is_at_work: Whether the checkpoint is being committed.
        is_over: Whether it has been, or could not be.
        problem: Why it could not be.
    """

    reports: list[Reported]
    row: dict[str, Any]
    name: str | None = None
    goes_on: bool = True
    is_at_work: bool = False
    is_over: bool = False
    problem: Exception | None = None
    pending: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.pending = {rank for rank, report in enumerate(self.reports) if report.pending}
        self.problem = next((one.problem for one in self.reports if one.problem), None)

    @property
    def index(self) -> int:
        """How many reports every rank had made before it in the attempt."""
        return self.reports[0].index

    def take(self, rank: int, news: Uploaded) -> None:
        """Add the files of a rank."""
        self.reports[rank] = replace(self.reports[rank], files=news.files)
        self.problem = self.problem or news.problem
        self.pending.discard(rank)


class Traffic:
    """Serves the workers of a run, attempt after attempt.

    Args:
        job: What the run does.
        home: Its directories.
        record: Its record.
        waits: Whether slow work with the storage is done in a thread of its own.
        pack: Turns what ranks are told of a preemption into what they can read.
    """

    def __init__(
        self,
        job: Job,
        home: Home,
        record: RunRecord,
        *,
        waits: bool,
        pack: Callable[[PreemptionInfo | None], bytes] = pickle.dumps,
    ) -> None:
        self._job = job
        self._record = record
        self._pack = pack
        self._home = home
        self._layout = home.layout
        self._storage = home.storage
        self._callbacks: Sequence[UserCallback] = job.run_config.callbacks or ()
        self._context = RunContext(record.name, home.storage.root, job.run_config)
        self._timeout_s = _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
        self._warn_s = _env.seconds("MINITRAIN_COLLECTIVE_WARN_S")
        rows = read_rows(home.layout.rows)
        self._tables = Tables(home.layout, job.facts(home).config, len(rows))
        self.clerk = Clerk(waits=waits and (job.collects or not home.storage.is_local))
        self.mirror = Mirror(home, job.sync)
        self.checkpoints = CheckpointKeeper(home.storage, record, job.metadata, self.clerk, rows)
        self.stopped = False
        self.preemption: PreemptionInfo | None = None
        self.preemption_was_seen = False
        self._group: Served
        self._reports: Gatherings[Reported]
        self._collectives: Gatherings[CollectiveEntered]
        self._filed: deque[_Filed] = deque()  # reports of all ranks, until they are settled
        self._early: dict[int, dict[int, Uploaded]] = {}
        self._asking: list[tuple[int, CheckpointsAsked]] = []
        self._num_settled = 0
        self._advancing = False
        self._writing: set[int] = set()
        self._warned_until_s = 0.0
        self._lines: dict[int, bytes] = {}
        self._rows: RowFile | None = None

    def begin(
        self,
        group: Served,
        preemption: PreemptionInfo | None = None,
        *,
        writes_rows: bool = False,
    ) -> None:
        """Turn to the workers of another attempt.

        Args:
            group: The workers.
            preemption: What is known of a preemption.
            writes_rows: Whether reports are written down here, because rank 0 is on another host.
        """
        self._group = group
        if writes_rows:
            self._rows = RowFile(self._layout.rows, self._job.facts(self._home).config)
        self.preemption, self.preemption_was_seen = preemption, False
        self._reports = Gatherings(group.world_size)
        self._collectives = Gatherings(group.world_size)
        self._filed.clear()
        self._early.clear()
        self._asking.clear()
        self._writing.clear()
        self._num_settled = 0
        self.checkpoints.begin_attempt()

    def end_attempt(self) -> None:
        """Bring in order what workers that were ended may have left undone."""
        self.flush_output()
        self._finish_storage_work()
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        try:
            self._tables.agree_with(self._layout.rows)
        except OSError as error:  # a full disk, which the run's own error tells more of
            logger.warning("result.json and progress.csv may differ: %s", error)

    def _finish_storage_work(self) -> None:
        timeout_s = self._job.sync.sync_timeout
        if not self.clerk.finish(timeout_s):
            logger.warning(
                "%s did not take what it was given within %g s (sync_timeout)",
                self._storage.root,
                timeout_s,
            )

    def close(self) -> None:
        """Close the tables."""
        try:
            self._tables.close()
        except OSError as error:  # a full disk; a restore completes it
            logger.warning("%s is not complete: %s", self._layout.table, error)
        self.clerk.close()

    # ------------------------------------------------------------------ reports and questions
    def serve(self, rank: int, news: WorkerNews) -> None:
        """Do what a worker's message asks for.

        Raises:
            ControllerError: A callback or a stop condition raised.
        """
        match news:
            case Reported():
                self._writing.discard(rank)
                self._write_down(news, if_waits=False)
                waits = news.question is not None
                if reports := self._reports.add(rank, news, time.monotonic(), is_waited_for=waits):
                    self._complete(reports)
            case NameAsked():
                self._answer_with_name(rank, news)
            case Uploaded():
                self._uploaded(rank, news)
            case CheckpointsAsked():
                self._asking.append((rank, news))
                self._answer_those_who_ask()
            case CollectiveEntered():
                if entered := self._collectives.add(
                    rank, news, time.monotonic(), is_waited_for=True
                ):
                    self._answer_collective(entered)
            case _:
                pass

    def _write_down(self, report: Reported, *, if_waits: bool) -> None:
        """Write down what rank 0 reports, if it cannot do that itself.

        Args:
            report: The report.
            if_waits: Whether this is for reports that wait for the commit of a checkpoint.
        """
        if self._rows is None or report.row is None or _waits_for_commit(report) != if_waits:
            return
        self._rows.append(report.row, durable=if_waits)

    def _answer_with_name(self, rank: int, asked: NameAsked) -> None:
        try:
            name = self.checkpoints.name_for(asked.index, asked.dir_name, in_place=asked.in_place)
        except CheckpointError as error:
            self._group.order(rank, Answer(asked.question, error=error))
        else:
            self._writing.add(rank)
            self._group.order(rank, Answer(asked.question, name))

    def _complete(self, reports: list[Reported]) -> None:
        """Do what can be done at once when every rank has made the same report."""
        filed = _Filed(reports, dict(reports[0].row or reports[0].metrics))
        filed.name = next((report.checkpoint for report in reports if report.checkpoint), None)
        if filed.name is not None:
            filed.row |= {"checkpoint_dir_name": filed.name, "should_checkpoint": True}
        filed.goes_on = not self._decide_to_stop(filed.row)
        for rank, report in enumerate(reports):
            if report.question is not None and not _waits_for_commit(report):
                self._group.order(rank, Answer(report.question, filed.goes_on))
        if not _waits_for_commit(reports[0]):
            self._tables.append(filed.row)
        self._filed.append(filed)
        for rank, news in self._early.pop(reports[0].index, {}).items():
            filed.take(rank, news)
        self._advance()

    def _uploaded(self, rank: int, news: Uploaded) -> None:
        for filed in self._filed:
            if filed.index == news.index:
                filed.take(rank, news)
                self._advance()
                return
        self._early.setdefault(news.index, {})[rank] = news  # other ranks have not reported yet

    def _advance(self) -> None:
        """Commit checkpoints, and tell callbacks, in the order of the reports."""
        if self._advancing:
            return  # a local disk was quick: whoever asked it is still at work here
        self._advancing = True
        try:
            while self._filed and self._is_settled(self._filed[0]):
                self._settle(self._filed.popleft())
        finally:
            self._advancing = False

    def _is_settled(self, filed: _Filed) -> bool:
        """Return whether it is known what has become of a report; have it found out if not."""
        if filed.name is None or filed.is_over:
            return True
        if filed.is_at_work or filed.pending:
            return False
        if filed.problem is not None:
            self.checkpoints.give_up(filed.name)
            return True
        filed.is_at_work = True
        self.checkpoints.commit(filed.name, filed.reports, filed.row, partial(self._over, filed))
        return filed.is_over

    def _over(self, filed: _Filed, outcome: Outcome[Registered]) -> None:
        filed.is_over = True
        filed.problem = outcome if isinstance(outcome, Exception) else None
        self._advance()

    def _settle(self, filed: _Filed) -> None:
        """Tell everybody what has become of a report's checkpoint, if it has one."""
        error = filed.problem
        name = filed.name if error is None else None
        if name is not None:
            self._group.order_all(CheckpointCommitted(name, filed.index))
            self.bring_home()
        waited = _waits_for_commit(filed.reports[0])
        if error is None:
            self._write_down(filed.reports[0], if_waits=True)
        for rank, report in enumerate(filed.reports):
            if report.pending and error is not None:
                self._group.order(rank, CheckpointLost(filed.index, error))
            elif _waits_for_commit(report) and report.question is not None:
                self._group.order(rank, Answer(report.question, filed.goes_on, error))
        self.checkpoints.tidy()
        self._num_settled += 1
        self._answer_those_who_ask()
        if waited and error is not None:
            return  # the report does not count
        if waited:
            self._tables.append(filed.row)
        checkpoint = self._storage.checkpoint(name) if name is not None else None
        self._tell_callbacks(filed.reports, checkpoint)

    def save_record(self) -> None:
        """Write the run's record: also to its storage, so that another host knows the attempts."""
        self._record.keep(self._layout)
        if not self._storage.is_local:
            data = self._record.dump()
            self.clerk.do(lambda: self._storage.write(RECORD, data), self.mirror.warn)

    def bring_home(self) -> None:
        """Bring what lies on this host to the run's storage, if that is elsewhere."""
        if not self._storage.is_local:
            self.clerk.do(self.mirror.sync, self.mirror.warn)

    def _answer_those_who_ask(self) -> None:
        ready = [one for one in self._asking if one[1].num_reports <= self._num_settled]
        self._asking = [one for one in self._asking if one not in ready]
        for rank, asked in ready:
            self._group.order(rank, Answer(asked.question, self.checkpoints.kept))

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
        data = entered[0].data
        if names == {"get_preemption_info"}:
            data = self._pack(self.preemption)
            self.preemption_was_seen |= self.preemption is not None
        for rank, one in enumerate(entered):
            if one.question is not None:
                self._group.order(rank, Answer(one.question, data, error))

    # ------------------------------------------------------------------ who is missing
    def deadline_s(self) -> float:
        """Return when :meth:`act_on_waits` is to be called, infinity if never."""
        waits = self._waits()
        if not waits:
            return self.mirror.due_s
        first_s = waits[0][1].since_s
        ends_s = [wait.since_s + self._timeout_s for _, wait in waits if wait.is_waited_for]
        warning_s = max(first_s + self._warn_s, self._warned_until_s)
        return min([*ends_s, warning_s, self.mirror.due_s])

    def _waits(self) -> list[tuple[str, Incomplete[Any]]]:
        """Return what ranks wait for, the longest wait first."""
        found: list[tuple[str, Incomplete[Any]]] = []
        report, collective = self._reports.oldest(), self._collectives.oldest()
        if report is not None:
            found.append(("report()", report))
        if collective is not None:
            found.append((f"{next(iter(collective.items.values())).operation}()", collective))
        return sorted(found, key=lambda pair: pair[1].since_s)

    def waiting(self) -> set[int]:
        """Return the ranks that wait for others."""
        return {rank for _, wait in self._waits() for rank in wait.items}

    def writing(self) -> set[int]:
        """Return the ranks whose files are being written, for a report or after one."""
        pending = {rank for filed in self._filed for rank in filed.pending}
        return self._writing | pending

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
        if now_s >= self.mirror.due_s:
            self.mirror.put_off()
            self.bring_home()
        for name, wait in self._waits():
            if wait.is_waited_for and now_s >= wait.since_s + self._timeout_s:
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
        self._reports.let_go(_answered)
        self._collectives.let_go(_answered)

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


def _waits_for_commit(report: Reported) -> bool:
    """Return whether a rank's report() returns only when its checkpoint is committed."""
    return report.checkpoint is not None and not report.pending


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
