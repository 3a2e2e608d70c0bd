"""Messages between ranks, through torch's store: every rank has a box that all can post to.

The store is torchrun's, or the one that rank 0 serves on the port where ``init_process_group``
will look for it and find it served already, in the same process.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minitrain import _env
from minitrain._launched.codec import decode, encode
from minitrain._os.launchers import Launched
from minitrain.exceptions import ControllerError, LaunchError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["Post"]

_FOR_EVER = datetime.timedelta(days=30)
_CLOSE = ""
_CLOSE_S = 5.0

_served: TCPStore | None = None
"""Rank 0's own; process groups made after ``fit()`` may want it as well."""


class Post:
    """One rank's way to all others.

    A wait holds the connection, so there are two: one to wait with, one to send with.

    Args:
        launched: Which rank of which launch.
        number: How many runs this process has had before.

    Raises:
        LaunchError: There is no way.
    """

    def __init__(self, launched: Launched, number: int) -> None:
        self._launched = launched
        self._rank = launched.rank
        attempt = f"{launched.launch_id}/{launched.restart_count}/{number}"
        self._prefix = f"minitrain/{attempt}"
        self._turn = threading.RLock()  # a signal's handler may find its own thread sending
        self._thread: threading.Thread | None = None
        self._out = _connect(launched)
        self._in = _connect(launched)
        self._results: TCPStore | None = None

    def send(self, to: int, message: Any) -> None:
        """Put a message into a rank's box.

        Raises:
            ControllerError: The store is gone.
        """
        self._put(to, encode((self._rank, message)).decode())

    def _put(self, to: int, data: str) -> None:
        box = f"{self._prefix}/{to}"
        try:
            with self._turn:
                number = self._out.add(box, 1)
                self._out.set(f"{box}/{number}", data)
        except RuntimeError as error:
            raise _lost() from error

    def flush(self) -> None:
        """Return when the store has everything that was sent: this process may be about to end.

        Raises:
            ControllerError: The store is gone.
        """
        try:
            with self._turn:
                self._out.add(f"{self._prefix}/{self._rank}", 0)
        except RuntimeError as error:
            raise _lost() from error

    def publish(self, name: str, text: str) -> None:
        """Let all ranks find a text under a name that is used once.

        Raises:
            ControllerError: The store is gone.
        """
        try:
            with self._turn:
                self._out.set(f"{self._prefix}/published/{name}", text)
        except RuntimeError as error:
            raise _lost() from error

    def find(self, name: str) -> str:
        """Return what a rank has published, or publishes soon.

        Raises:
            ControllerError: It does not, within ``MINITRAIN_START_TIMEOUT_S``.
        """
        if self._results is None:
            self._results = _connect(self._launched)
        try:
            data: bytes = self._results.get(f"{self._prefix}/published/{name}")
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ControllerError(f"no rank has published {name}: {reason}") from error
        return data.decode()

    def listen(
        self, take: Callable[[int, Any], object], lose: Callable[[ControllerError], object]
    ) -> None:
        """Have a thread read this rank's box.

        Args:
            take: Is called there with the sender's rank and the message, one after the other.
            lose: Is called there when the store is gone.
        """
        self._thread = threading.Thread(
            target=self._read, args=(take, lose), name="minitrain-post", daemon=True
        )
        self._thread.start()

    def _read(
        self, take: Callable[[int, Any], object], lose: Callable[[ControllerError], object]
    ) -> None:
        number = 0
        while True:
            number += 1
            key = f"{self._prefix}/{self._rank}/{number}"
            try:
                self._in.wait([key], _FOR_EVER)
                data = self._in.get(key)
                self._in.delete_key(key)
            except RuntimeError:
                lose(_lost())
                return
            if data == _CLOSE.encode():
                return
            take(*decode(data))

    def close(self) -> None:
        """End the thread."""
        if self._thread is None:
            return
        with suppress(ControllerError):  # then the thread has noticed as well
            self._put(self._rank, _CLOSE)
        self._thread.join(_CLOSE_S)


def _lost() -> ControllerError:
    return ControllerError(
        "the store through which ranks speak to each other is gone: rank 0, or the launcher, has "
        "ended; its own output says why"
    )


def _connect(launched: Launched) -> TCPStore:
    """Return a connection to the store; in rank 0, serve it if nobody else does."""
    global _served  # noqa: PLW0603 - a process has one
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout_s = _env.seconds("MINITRAIN_START_TIMEOUT_S")
    serves = launched.rank == 0 and not launched.has_store
    try:
        store = TCPStore(
            launched.master_addr,
            launched.master_port,
            is_master=serves,
            multi_tenant=serves,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
    except RuntimeError as error:
        raise _no_way(launched, str(error), serves=serves) from error
    if serves and _served is None:
        _served = store
    return store


def _no_way(launched: Launched, reason: str, *, serves: bool) -> LaunchError:
    where = f"{launched.master_addr}:{launched.master_port}"
    if not serves:
        return LaunchError(
            f"rank {launched.rank} does not reach the store at {where} within "
            "MINITRAIN_START_TIMEOUT_S: has rank 0 called fit(), and does MASTER_ADDR name its "
            f"host? ({reason.splitlines()[0]})"
        )
    guessed = ""
    if launched.port_is_guessed:
        guessed = f", which was made from the ids that {launched.kind} gave the job,"
    return LaunchError(
        f"rank 0 cannot serve the store on port {launched.master_port}{guessed}: "
        f"{reason.splitlines()[0]}. Set MASTER_PORT to a free one, in all processes"
    )
