"""An exception as data that can travel, with a traceback that shows the user's frames."""

from __future__ import annotations

import os
import socket
import time
import traceback
from pathlib import Path

import cloudpickle

from minitrain._wire.messages import Raised

__all__ = ["describe", "user_traceback"]

_OWN_FOLDER = f"{Path(__file__).parents[1]}{os.sep}"


def describe(error: BaseException) -> Raised:
    """Return an exception as a message."""
    kind = type(error)
    try:
        pickled = cloudpickle.dumps(error)
    except Exception:  # noqa: BLE001 - whatever a stranger's __reduce__ does, the error must arrive
        pickled = None
    return Raised(
        type_name=f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
        message=_text(error),
        traceback=user_traceback(error),
        exception=pickled,
        pid=os.getpid(),
        hostname=socket.gethostname(),
        time_s=time.monotonic(),
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as own:  # noqa: BLE001 - a stranger's __str__; the error must arrive
        return f"(its text cannot be had: {type(own).__name__})"


def user_traceback(error: BaseException) -> str:
    """Return a formatted traceback without the frames of this library."""
    summary = traceback.TracebackException.from_exception(error, compact=True)
    pending = [summary]
    while pending:
        part = pending.pop()
        shown = [frame for frame in part.stack if not frame.filename.startswith(_OWN_FOLDER)]
        part.stack = traceback.StackSummary.from_list(shown or part.stack)
        pending += [linked for linked in (part.__cause__, part.__context__) if linked is not None]
        pending += part.exceptions or []
    return "".join(summary.format())
