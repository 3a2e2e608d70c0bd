"""Which errors of a remote storage pass by themselves, and how long they are waited for."""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from minitrain._logging import logger

__all__ = ["Retry", "backoff_s", "is_transient", "retry_again", "stop_retrying"]

T = TypeVar("T")

_LOOK_S = 0.1
_stopped = False

_PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_HTTP_STATUS = re.compile(r"HTTP (?:status|response code|code)[ :]*(\d{3})", re.IGNORECASE)
_PASSING_STATUS = frozenset({408, 425, 429, *range(500, 600)})
_ERROR_STATUS = range(400, 600)
_PASSING_WORDS = re.compile(
    r"NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_?DOWN|THROTTL|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
    r"|INTERNAL_ERROR|\bUNAVAILABLE\b|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|time[d-]? ?out"
    r"|connection|disconnected|temporar|try again|too many requests|curlCode",
    re.IGNORECASE,
)
_LASTING_WORDS = re.compile(
    r"ACCESS_?DENIED|access denied|NO_SUCH|no such|NOT_FOUND|not found|does not exist"
    r"|INVALID_|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION|TOKEN"
    r"|PERMISSION_DENIED|UNAUTHENTICATED|forbidden|unauthorized|credential|is a directory"
    r"|no space left|quota",
    re.IGNORECASE,
)


def is_transient(error: BaseException) -> bool:
    """Return whether an error may be gone when the same thing is tried again. Pure.

    ``pyarrow`` tells most of what a server said only in the message of an ``OSError``; libraries
    behind ``fsspec`` have classes of their own, with the server's status as ``status`` or ``code``.
    """
    if isinstance(error, _LASTING):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number not in {None, errno.EIO}:  # s3fs: EIO is "other"
        return number in _PASSING
    status = _http_status(error)
    if status is not None:
        return status in _PASSING_STATUS
    text = f"{type(error).__name__} {error}"
    if _LASTING_WORDS.search(text):
        return False
    return isinstance(error, Exception) and bool(_PASSING_WORDS.search(text))


def _http_status(error: BaseException) -> int | None:
    match = _HTTP_STATUS.search(str(error))
    if match:
        return int(match[1])
    for name in ("status", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and value in _ERROR_STATUS:
            return value
    return None


def backoff_s(failures: int, jitter: float) -> float:
    """Return how long to wait after so many failures in a row.

    Args:
        failures: At least 1.
        jitter: Random, from 0 to 1, so that many ranks do not all come back at once.

    >>> [backoff_s(failures, 1.0) for failures in (1, 2, 3, 99)]
    [0.25, 0.5, 1.0, 10.0]
    """
    return float(min(0.25 * 2 ** min(failures - 1, 10), 10.0) * (0.5 + 0.5 * jitter))


def stop_retrying() -> None:
    """Have nothing tried again in this process any more, until :func:`retry_again`.

    Somebody pressed Ctrl-C and waits. After the first thing that fails and might pass nothing else
    is tried either: a client takes seconds to find that nobody answers. A signal handler may call
    this: it takes no lock.
    """
    global _stopped  # noqa: PLW0603 - one per process, as Ctrl-C is
    _stopped = True


def retry_again() -> None:
    """Take :func:`stop_retrying` back."""
    global _stopped, _last_failure
    _stopped, _last_failure = False, None


_last_failure: Exception | None = None


def _give_up(error: Exception) -> None:
    global _last_failure  # noqa: PLW0603
    _last_failure = error


def _raise_if_given_up() -> None:
    if _stopped and _last_failure is not None:
        raise OSError(f"not tried after Ctrl-C, because of: {_last_failure}")


def _sleep(wait_s: float) -> None:
    end_s = time.monotonic() + wait_s
    while not _stopped and (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(left_s, _LOOK_S))


@dataclass(frozen=True)
class Retry:
    """Tries again what fails for a while.

    Attributes:
        deadline_s: How long after the first try the last one may begin.
        sleep: Waits.
        clock: Tells the time in seconds.
    """

    deadline_s: float
    sleep: Callable[[float], None] = _sleep
    clock: Callable[[], float] = time.monotonic

    def __call__(self, action: Callable[[], T], what: str) -> T:
        """Return what an action returns, from the first time that it does.

        Args:
            action: What to do; it starts from the beginning each time.
            what: The file's name, for the log.

        Raises:
            Exception: What the action raised, if it lasts, or when the time is up.
        """
        last_s = self.clock() + self.deadline_s
        for failures in count(1):
            _raise_if_given_up()
            try:
                return action()
            except Exception as error:
                wait_s = backoff_s(failures, random.random())  # noqa: S311
                if not is_transient(error):
                    raise
                if _stopped:
                    _give_up(error)
                    raise
                if self.clock() + wait_s > last_s:
                    raise
                reason = str(error).partition("\n")[0] or type(error).__name__
                logger.warning("%s: %s; trying again in %.1f s", what, reason, wait_s)
            self.sleep(wait_s)
        raise AssertionError("count() has no end")
