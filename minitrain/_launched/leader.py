"""Rank 0: trains, and serves the other ranks beside that, as the driver does elsewhere."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from minitrain import _env
from minitrain._driver.failures import Failures, Worker, exception_of
from minitrain._driver.home import Home
from minitrain._driver.job import Job
from minitrain._driver.local import OrderQueue
from minitrain._driver.run import write_error
from minitrain._driver.traffic import Traffic
from minitrain._launched.letters import Ended, Farewell, Present, SignalSensed
from minitrain._launched.meeting import Mail
from minitrain._launched.post import Post
from minitrain._logging import logger
from minitrain._os.processes import began_at
from minitrain._storage.record import RunRecord, Status
from minitrain._storage.rows import read_rows
from minitrain._wire.failure import describe
from minitrain._wire.messages import Raised, Returned, WorkerNews, WorkerOrder
from minitrain.context import PreemptionInfo
from minitrain.exceptions import (
    CollectiveTimeoutError,
    ControllerError,
    MinitrainError,
    PreemptionError,
    TrainingFailedError,
)

__all__ = ["Leader", "status_of"]

_LOOK_S = 1.0
"""How often processes of this host are looked after that say nothing."""
_FAREWELL_S = 10.0
"""How long ranks have to hear that the run is over, before rank 0 may take the store along."""
_SETTLED_S = 5.0


class Leader(OrderQueue):
    """Serves all ranks: its own by calls, the others through the post, in a thread.

    Args:
        job: What the run does.
        home: Its directories.
        record: Its record; its newest attempt is this one.
        traffic: What does as ranks ask.
        post: The way to the other ranks.
        peers: All processes, by rank.

    Attributes:
        world_size: How many ranks there are.
        error: Why the run has ended, if it has.
    """

    def __init__(
        self,
        job: Job,
        home: Home,
        record: RunRecord,
        traffic: Traffic,
        post: Post,
        peers: Sequence[Present],
    ) -> None:
        super().__init__()
        self.world_size = len(peers)
        self.error: BaseException | None = None
        self._home = home
        self._record = record
        self._traffic = traffic
        self._post = post
        self._peers = peers
        self._attempt = len(record.attempts) - 1
        self._failures = Failures(home.layout)
        self._grace_s = job.failures.preemption_grace_s
        self._preempted_at_s = math.inf
        self._returned: set[int] = set()
        self._gone: set[int] = set()  # ranks that know how it has ended
        self._is_over = False
        self._changed = threading.Condition(threading.RLock())

    @property
    def everybody(self) -> set[int]:
        """All ranks."""
        return set(range(self.world_size))

    # ------------------------------------------------------------------ its own train function
    def send(self, news: WorkerNews) -> None:
        """Do what rank 0's own session asks for."""
        self.check()
        with self._changed:
            self._traffic.serve(0, news)

    def order(self, rank: int, order: WorkerOrder) -> None:
        """Send a rank an order."""
        if rank == 0:
            self.put(order)
        else:
            self._post.send(rank, order)

    def order_all(self, order: WorkerOrder) -> None:
        """Send every rank an order."""
        for rank in range(self.world_size):
            self.order(rank, order)

    def await_others(self) -> None:
        """Wait, when rank 0's train function has returned, until all others' have.

        Raises:
            BaseException: Why the run has ended otherwise.
        """
        limit_s = _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
        with self._changed:
            self._returned.add(0)
            self._changed.wait_for(
                lambda: self.error is not None or self._returned == self.everybody, limit_s
            )
            self.check()
            missing = sorted(self.everybody - self._returned)
        if missing:
            raise CollectiveTimeoutError("the end of the train function", missing, limit_s)
        if self._traffic.preemption_was_seen:
            raise self._preemption(timed_out=False)

    def fail(self, error: BaseException) -> BaseException:
        """Return how the run has failed, now that rank 0's train function has raised something."""
        with self._changed:
            if isinstance(error, KeyboardInterrupt | ControllerError | PreemptionError):
                self._conclude(error)
            else:
                self._failures.add(self._worker(0), error, describe(error))
                # Others may have failed before, and said so a moment later.
                self._changed.wait_for(lambda: self.error is not None, _SETTLED_S)
                self._conclude(self._failures.error(here=True))
            assert self.error is not None
            return self.error

    # ------------------------------------------------------------------ SIGTERM
    def take_sigterm(self) -> None:
        """Find out, in the signal's handler, what SIGTERM means, and tell everybody.

        A launcher ends all ranks when one has failed: then there is nothing to wait for.

        Raises:
            BaseException: Why the run has ended.
        """
        with self._changed:
            self._look_for_the_dead()
            if self._failures:
                self._conclude(self._failures.error(here=True))
            self.check()
            self._notice(0)

    def grace_is_over(self) -> BaseException:
        """Return what the run ends with when the time is up that SIGTERM left."""
        with self._changed:
            self._conclude(self._preemption(timed_out=True))
            assert self.error is not None
            return self.error

    def _notice(self, rank: int) -> None:
        if self._traffic.preemption is not None:
            return
        host = self._peers[rank].hostname
        ranks = [number for number, peer in enumerate(self._peers) if peer.hostname == host]
        deadline_ms = int((time.time() + self._grace_s) * 1000)
        self._preempted_at_s = time.monotonic() + self._grace_s
        self._traffic.preemption = PreemptionInfo(deadline_ms, {host: ranks})
        logger.warning(
            "SIGTERM: %s is about to be taken away; ranks have %g s (preemption_grace_s)",
            host,
            self._grace_s,
        )

    def _preemption(self, *, timed_out: bool) -> PreemptionError:
        return PreemptionError(self._traffic.preemption, timed_out, self._home.storage.root)

    # ------------------------------------------------------------------ other ranks
    @contextmanager
    def serving(self, mail: Mail) -> Generator[None]:
        """Serve the other ranks in a thread meanwhile."""
        over = threading.Event()
        thread = threading.Thread(target=self._serve, args=(mail, over), name="minitrain-ranks")
        thread.start()
        try:
            yield
        finally:
            over.set()
            mail.put((0, None))
            thread.join()

    def _serve(self, mail: Mail, over: threading.Event) -> None:
        while not over.is_set():
            news: tuple[int, Any] | None = None
            settled_s = self._failures.settled_at_s - time.monotonic()
            with suppress(queue.Empty):
                news = mail.get(timeout=max(0.0, min(_LOOK_S, settled_s)))
            with self._changed:
                try:
                    if news is not None:
                        self._take(*news)
                    if not self._is_over:
                        self._look()
                except ControllerError as error:
                    self._conclude(error)
                except Exception as error:  # noqa: BLE001 - a full disk, a bug: training must end
                    self._conclude(_controller_error(error))
                self._changed.notify_all()

    def _take(self, rank: int, news: Any) -> None:
        match news:
            case Farewell():
                self._gone.add(rank)
            case ControllerError():
                raise news
            case Returned():
                self._returned.add(rank)
            case Raised():
                self._gone.add(rank)
                self._take_failure(rank, news)
            case SignalSensed():
                self._notice(rank)
            case None:
                pass
            case _ if not self._is_over:
                self._traffic.serve(rank, news)
            case _:
                pass

    def _take_failure(self, rank: int, raised: Raised) -> None:
        if raised.hostname != self._peers[0].hostname:
            raised = replace(raised, time_s=time.monotonic())  # clocks of hosts do not compare
        if not self._is_over:
            self._failures.add(self._worker(rank), exception_of(raised), raised)
            # The launcher may end this process any moment now.
            self._write_failure(self._failures.error(here=True), "failed")

    def _look(self) -> None:
        """Look for what ends the run."""
        self._traffic.act_on_waits()
        mismatch = self._traffic.mismatch(self._returned)
        if mismatch is not None:
            rank, cause = mismatch
            self._failures.add(self._worker(rank), cause)
        self._look_for_the_dead()
        if self._failures and time.monotonic() >= self._failures.settled_at_s:
            self._conclude(self._failures.error(here=True))
        elif time.monotonic() >= self._preempted_at_s + _LOOK_S:  # its own signal comes first
            self._conclude(self._preemption(timed_out=True))

    def _look_for_the_dead(self) -> None:
        """Note which processes of this host have ended without a word."""
        here = self._peers[0].hostname
        for rank, peer in enumerate(self._peers):
            is_over = rank in self._gone or peer.hostname != here or peer.began is None
            if not is_over and began_at(peer.pid) != peer.began:
                self._gone.add(rank)
                cause = MinitrainError("the process is gone, and has not said why")
                self._failures.add(self._worker(rank), cause)

    def _worker(self, rank: int) -> Worker:
        peer = self._peers[rank]
        return Worker(self._attempt, rank, peer.hostname, peer.pid)

    # ------------------------------------------------------------------ the end
    def _conclude(self, error: BaseException) -> None:
        """End the run in all ranks: where they are now, or what they do next, raises."""
        if self._is_over:
            return
        if self._traffic.preemption is not None and not isinstance(error, PreemptionError):
            # Who takes the machine away ends ranks, too.
            preempted = self._preemption(timed_out=False)
            preempted.__cause__ = error
            error = preempted
        self.error = error
        self.end(lambda: error)
        self._changed.notify_all()
        self._write_failure(error, status_of(error))
        self.say_over(status_of(error), str(error))
        self._traffic.tell_callbacks_of(error)

    def _write_failure(self, error: BaseException, status: Status) -> None:
        """Write down how it failed as long as there is time; the ending is written again."""
        self._record.status = status
        try:
            write_error(self._home.layout, error)
        except OSError as own:
            logger.warning("%s: its error is not written: %s", self._home.layout.root, own)
        self._record.keep(self._home.layout)

    def say_over(self, status: Status, error: str = "") -> None:
        """Tell all other ranks that the run is over."""
        self._is_over = True
        rows = read_rows(self._home.layout.rows)
        ended = Ended(status, error, rows[-1] if rows else {})
        with suppress(ControllerError):  # the store is gone, and they with it or told by that
            for rank in range(1, self.world_size):
                self._post.send(rank, ended)
            self._post.flush()

    def await_farewells(self) -> None:
        """Wait until every rank that is left knows that the run is over."""
        with self._changed:
            self._gone.add(0)

            def are_gone() -> bool:
                with suppress(OSError):
                    self._look_for_the_dead()
                return self._gone >= self.everybody

            self._changed.wait_for(are_gone, _FAREWELL_S)


def status_of(error: BaseException) -> Status:
    """Return what ``run.json`` says of a run that has ended with an error."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "preempted" if isinstance(error, PreemptionError) else "failed"


def _controller_error(cause: Exception) -> TrainingFailedError:
    error = ControllerError(f"rank 0 could not serve the others: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
