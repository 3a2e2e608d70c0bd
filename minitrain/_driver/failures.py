"""Turns what happened to workers into one error that a person can act on. Mostly pure."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from minitrain._logging import logger
from minitrain._storage.layout import RunLayout
from minitrain._wire.messages import Raised, WorkerExited
from minitrain.exceptions import (
    ConfigurationError,
    ControllerError,
    HostLostError,
    LaunchError,
    OomEvidence,
    RemoteError,
    RendezvousTimeoutError,
    ReportMismatchError,
    WorkerDiedError,
    WorkerFailure,
    WorkerGroupError,
)

__all__ = [
    "SETTLE_S",
    "Failures",
    "Worker",
    "advice",
    "controller_error",
    "end_of_log",
    "exception_of",
    "group_error",
    "in_order",
    "only_told",
]

SETTLE_S = 0.1
"""How long ranks have, after the first failure, to fail in the same way and be named with it."""
_SIGKILL = -9
_TAIL_LINES = 40
_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker of an attempt."""

    attempt: int
    rank: int
    hostname: str
    pid: int


class Failures:
    """What has gone wrong in an attempt, by rank.

    Args:
        layout: Where the workers' logs are.

    Attributes:
        settled_at_s: When ranks have had the time to fail in the same way and be named with the
            first, on the monotonic clock; infinity as long as nothing has gone wrong.
    """

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout
        self._by_rank: dict[int, WorkerFailure] = {}
        self.settled_at_s = math.inf

    def __bool__(self) -> bool:
        return bool(self._by_rank)

    @property
    def ranks(self) -> set[int]:
        """Those that have failed."""
        return set(self._by_rank)

    def clear(self) -> None:
        """Turn to another attempt."""
        self._by_rank.clear()
        self.settled_at_s = math.inf

    def settle_now(self) -> None:
        """Wait for no other rank to fail."""
        self.settled_at_s = time.monotonic()

    def add(
        self,
        worker: Worker,
        cause: BaseException,
        news: Raised | WorkerExited | None = None,
        *,
        traceback: str = "",
    ) -> None:
        """Note the failure of a rank; the first one counts.

        Args:
            worker: Which.
            cause: What happened to it.
            news: How the driver was told, if it was.
            traceback: Its stack; by default that of the exception, or the end of its log.
        """
        if worker.rank in self._by_rank:
            return  # it has said why; now it ends
        log_path = self._layout.log(worker.attempt, worker.rank)
        if isinstance(news, Raised):
            traceback = news.traceback
        elif not traceback:
            traceback = end_of_log(log_path)
        self._by_rank[worker.rank] = WorkerFailure(
            rank=worker.rank,
            hostname=worker.hostname,
            pid=worker.pid,
            cause=cause,
            traceback=traceback,
            log_path=str(log_path),
            time_s=news.time_s if news is not None else time.monotonic(),
        )
        self.settled_at_s = min(self.settled_at_s, time.monotonic() + SETTLE_S)

    def error(self, *, spent: int = 0, limit: int = 0, here: bool = False) -> WorkerGroupError:
        """Return them all as one error.

        Args:
            spent: How many failures the run has had before.
            limit: The run's ``max_failures``.
            here: Whether the run trains in this process, where there is nothing to advise.
        """
        return group_error(list(self._by_rank.values()), attempt=spent, limit=limit, here=here)


def exception_of(raised: Raised) -> BaseException:
    """Return a worker's exception with its type, or what stands for it."""
    if raised.exception is not None:
        try:
            error = pickle.loads(raised.exception)
        except Exception:  # noqa: BLE001 - whatever its class does when it is rebuilt
            error = None
        if isinstance(error, BaseException):
            return error
    return RemoteError(raised.type_name, raised.message)


def end_of_log(path: Path) -> str:
    """Return the last lines a worker printed: all there is to see of one that ended wordlessly."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return ""
    return "\n".join(["The end of its output:", *(f"  {line}" for line in lines)]) if lines else ""


def in_order(failures: Iterable[WorkerFailure]) -> list[WorkerFailure]:
    """Return failures with the likely cause first.

    A process that a signal ended, or that was lost with its host, comes before the peers that
    noticed, even if one of them was quicker to say so than the kernel was to tell us; all others
    stand in order of time.
    """

    def was_ended(failure: WorkerFailure) -> bool:
        if isinstance(failure.cause, WorkerDiedError):
            return failure.cause.exitcode < 0
        return isinstance(failure.cause, HostLostError)

    return sorted(failures, key=lambda failure: (not was_ended(failure), failure.time_s))


def group_error(
    failures: Sequence[WorkerFailure], *, attempt: int, limit: int, here: bool = False
) -> WorkerGroupError:
    """Return the error of a failed attempt.

    Args:
        failures: What happened to which worker.
        attempt: The attempt's number.
        limit: The run's ``max_failures``.
        here: Whether it happened in this process, where there is nothing to advise.
    """
    ordered = in_order(failures)
    hint = "" if here else advice(ordered[0].cause, attempt=attempt, limit=limit)
    error = WorkerGroupError(ordered, hint)
    error.__cause__ = ordered[0].cause
    return error


def advice(cause: BaseException, *, attempt: int, limit: int) -> str:
    """Return what the user can do about a failure, in a sentence or two.

    Args:
        cause: The failure.
        attempt: The number of the attempt that failed.
        limit: The run's ``max_failures``.
    """
    parts = []
    if isinstance(cause, WorkerDiedError) and cause.exitcode == _SIGKILL:
        parts.append(_advice_on_memory(cause.oom))
    elif isinstance(cause, ReportMismatchError | RendezvousTimeoutError):
        return ""  # these say themselves what to do
    elif isinstance(cause, ModuleNotFoundError) and (here := _where_it_is(cause)):
        parts.append(
            f"It is here: {here}. Install it on the workers' hosts as well, or have this directory "
            "copied there with --sync-code (LaunchConfig(sync_code=True))."
        )
    elif not isinstance(cause, WorkerDiedError | HostLostError):
        parts.append("To debug it in this process, use ScalingConfig(num_workers=0).")
    if limit == 0:
        parts.append("To go on from the newest checkpoint, use FailureConfig(max_failures=...).")
    elif attempt:
        parts.append(f"This was attempt {attempt + 1} (max_failures={limit}).")
    return " ".join(parts)


def _where_it_is(missing: ModuleNotFoundError) -> str | None:
    """Return where this process finds a module that a worker, on another host, did not."""
    if not missing.name or "." in missing.name:  # a part of something that is there
        return None
    try:
        spec = find_spec(missing.name)
    except ValueError:  # it is imported, and no file's
        return None
    return None if spec is None else spec.origin


def _advice_on_memory(oom: OomEvidence | None) -> str:
    if oom is not None and not oom.kills:
        return "Somebody sent the signal: a job scheduler, a memory watchdog or a user."
    less = "use fewer workers, smaller batches or fewer data loader processes."
    return f"If memory ran out, {less}" if oom is None else f"Memory ran out: {less}"


@contextmanager
def only_told() -> Generator[None]:
    """Only tell of what fails while an attempt ends: it hides no other error."""
    try:
        yield
    except (ControllerError, OSError) as error:
        logger.warning("while the attempt ended: %s", error)


def controller_error(what: str, cause: BaseException) -> ControllerError:
    """Return an error of the driver's own side as users see it.

    Args:
        what: What could not be done.
        cause: Why.
    """
    is_own = isinstance(cause, LaunchError | ConfigurationError)
    kind = "" if is_own else f"{type(cause).__name__}: "
    if is_own:
        cause.__traceback__ = None  # it says what is wrong; the lines of ours would bury that
    error = ControllerError(f"{what}: {kind}{cause}")
    error.__cause__ = cause
    return error
