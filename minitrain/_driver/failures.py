"""Turns what happened to workers into one error that a person can act on. Mostly pure."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

from minitrain._wire.messages import Raised
from minitrain.exceptions import (
    RemoteError,
    RendezvousTimeoutError,
    ReportMismatchError,
    WorkerDiedError,
    WorkerFailure,
    WorkerGroupError,
)

__all__ = ["advice", "end_of_log", "exception_of", "group_error", "in_order"]

_SIGKILL = -9
_TAIL_LINES = 40
_TAIL_BYTES = 8192


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

    A process that a signal ended comes before the peers that noticed, even if one of them was
    quicker to say so than the kernel was to tell us; all others stand in order of time.
    """

    def by_signal(failure: WorkerFailure) -> bool:
        return isinstance(failure.cause, WorkerDiedError) and failure.cause.exitcode < 0

    return sorted(failures, key=lambda failure: (not by_signal(failure), failure.time_s))


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
        parts.append(
            "If memory ran out, use fewer workers, smaller batches or fewer data loader processes."
        )
    elif isinstance(cause, ReportMismatchError | RendezvousTimeoutError):
        return ""  # these say themselves what to do
    elif not isinstance(cause, WorkerDiedError):
        parts.append("To debug it in this process, use ScalingConfig(num_workers=0).")
    if limit == 0:
        parts.append("To go on from the newest checkpoint, use FailureConfig(max_failures=...).")
    elif attempt:
        parts.append(f"This was attempt {attempt + 1} (max_failures={limit}).")
    return " ".join(parts)
