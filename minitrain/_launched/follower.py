"""Every rank but 0: trains, and has rank 0 serve it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from minitrain import _env
from minitrain._driver.failures import group_error
from minitrain._driver.local import OrderQueue
from minitrain._launched.letters import (
    Ended,
    Farewell,
    Look,
    Present,
    Refused,
    RunTold,
    SignalSensed,
)
from minitrain._launched.meeting import Mail
from minitrain._launched.post import Post
from minitrain._os.processes import began_at
from minitrain._wire.failure import describe
from minitrain._wire.messages import WorkerNews
from minitrain.exceptions import (
    CollectiveTimeoutError,
    ControllerError,
    PreemptionError,
    WorkerFailure,
)

__all__ = ["Follower"]


class Follower(OrderQueue):
    """The way to rank 0, and back.

    Args:
        rank: This rank.
        post: The way to other ranks.
        mail: Where to put what is not for a train function.
    """

    def __init__(self, rank: int, post: Post, mail: Mail) -> None:
        super().__init__()
        self._rank = rank
        self._post = post
        self._mail = mail
        self._over = threading.Event()
        self._ended: Ended | None = None
        self._root = ""
        self._peers: Sequence[Present] = ()

    def join(self, root: str, peers: Sequence[Present]) -> None:
        """Note what rank 0 has said of the run.

        Args:
            root: Its directory.
            peers: All processes, by rank.
        """
        self._root, self._peers = root, peers

    # ------------------------------------------------------------------ the post's thread
    def take(self, sender: int, message: Any) -> None:
        """Take what rank 0 says while this rank trains."""
        assert sender == 0, f"rank {sender} is no leader"
        match message:
            case Look() | Refused() | RunTold():
                self._mail.put((sender, message))
            case Ended():
                self._ended = message
                self.end(self._error)
                self._over.set()
            case _:
                self.put(message)

    def lose(self, error: ControllerError) -> None:
        """Take that there is no way to rank 0 any more."""
        self._mail.put((0, error))
        self.end(lambda: ControllerError(*error.args))
        self._over.set()

    # ------------------------------------------------------------------ the train function
    def send(self, news: WorkerNews) -> None:
        """Say something to rank 0."""
        self.check()
        self._post.send(0, news)

    def await_end(self) -> Ended:
        """Wait, when the train function has returned, until the run is over.

        Raises:
            BaseException: It did not end well.
        """
        limit_s = _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
        if not self._over.wait(2 * limit_s):  # rank 0 waits for the slowest, and says who it is
            raise CollectiveTimeoutError("the end of the run", [0], limit_s)
        if self._ended is None or self._ended.error:
            self.check()
        assert self._ended is not None
        return self._ended

    def leave(self) -> None:
        """Tell rank 0 that it need not wait for this rank any more."""
        with suppress(ControllerError):  # it has not waited
            self._post.send(0, Farewell())
            self._post.flush()

    def _error(self) -> BaseException:
        assert self._ended is not None
        if self._ended.status == "preempted":
            return PreemptionError(None, path=self._root)
        text = self._ended.error or "it is over"
        return ControllerError(f"rank 0 has ended the run: {text}")

    def fail(self, error: BaseException, log_path: str) -> BaseException:
        """Tell rank 0 what the train function has raised, and return what fit() raises."""
        if self._ended is not None:
            self.leave()
        if isinstance(error, KeyboardInterrupt | ControllerError | PreemptionError):
            return error
        raised = describe(error)
        with suppress(ControllerError):  # it is gone: then nobody can be told
            self._post.send(0, replace(raised, exception=None))
            self._post.flush()
        failure = WorkerFailure(
            rank=self._rank,
            hostname=raised.hostname,
            pid=raised.pid,
            cause=error,
            traceback=raised.traceback,
            log_path=log_path,
        )
        return group_error([failure], attempt=0, limit=0, here=True)

    # ------------------------------------------------------------------ SIGTERM
    def take_sigterm(self) -> None:
        """Tell rank 0, in the signal's handler; if it follows the end of another rank, end.

        Raises:
            ControllerError: Another process of this host is gone already.
        """
        self.check()
        for rank, peer in enumerate(self._peers):
            is_here = peer.hostname == socket.gethostname() and peer.began is not None
            if is_here and began_at(peer.pid) != peer.began:
                raise ControllerError(
                    f"SIGTERM: the launcher ends all ranks, because rank {rank} (pid {peer.pid} on "
                    f"{peer.hostname}) has ended"
                )
        self._post.send(0, SignalSensed())

    def grace_is_over(self) -> BaseException:
        """Return what this rank ends with when the time is up that SIGTERM left."""
        return PreemptionError(None, drain_timed_out=True, path=self._root)
