"""Arguments and statistics of preprocessors as JSON, and back.

What JSON has stays what it is. Anything else is an object with one key that begins with a dollar
sign: ``{"$tuple": [1, 2]}``, ``{"$float": "nan"}``. Only a user's own function or estimator is
pickled.
"""

from __future__ import annotations

import base64
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["decode", "encode"]


def encode(value: Any) -> Any:
    """Return a value as something that :mod:`json` writes, the same for equal values."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": str(value)}
        case list():
            return [encode(item) for item in value]
        case dict():
            return _encode_dict(value)
        case np.generic():
            return encode(value.item())
        case _:
            return _encode_other(value)


def decode(value: Any) -> Any:
    """Return what :func:`encode` was given; unpickling what was pickled can run any code."""
    match value:
        case list():
            return [decode(item) for item in value]
        case dict() if len(value) == 1 and next(iter(value)).startswith("$"):
            ((tag, content),) = value.items()
            return _DECODERS[tag](content)
        case dict():
            return {key: decode(item) for key, item in value.items()}
        case _:
            return value


def _encode_other(value: Any) -> dict[str, Any]:
    encoded = _encode_pandas(value)  # first, since its times are Python's too
    if encoded is not None:
        return encoded
    for tag, (kind, to_json, _) in _TAGGED.items():
        if isinstance(value, kind):
            return {tag: to_json(value)}
    return {"$pickle": base64.b64encode(_pickled(value)).decode()}


def _encode_dict(value: dict[Any, Any]) -> dict[str, Any]:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: encode(item) for key, item in value.items()}
    return {"$dict": [[encode(key), encode(item)] for key, item in value.items()]}


def _encode_pandas(value: Any) -> dict[str, Any] | None:
    """Encode what pandas has for categories, bins, and times that Python's do not hold."""
    match type(value).__module__.partition(".")[0], type(value).__name__:
        case "pandas", "CategoricalDtype":
            categories = None if value.categories is None else list(value.categories)
            return {"$categories": [encode(categories), value.ordered]}
        case "pandas", "IntervalIndex":
            edges = [encode(list(value.left)), encode(list(value.right))]
            return {"$intervals": [*edges, value.closed]}
        case "pandas", "Timestamp" if value.nanosecond:
            return {"$timestamp": value.isoformat()}
        case "pandas", "Timedelta" if value.nanoseconds:
            return {"$nanoseconds": value.value}
        case _:
            return None


def _pickled(value: Any) -> bytes:
    """Return equal bytes for equal values: only what was unpickled shares its parts like others."""
    return bytes(cloudpickle.dumps(cloudpickle.loads(cloudpickle.dumps(value))))


def _decode_categories(content: list[Any]) -> Any:
    import pandas as pd

    return pd.CategoricalDtype(decode(content[0]), ordered=content[1])


def _decode_intervals(content: list[Any]) -> Any:
    import pandas as pd

    left, right, closed = content
    return pd.IntervalIndex.from_arrays(decode(left), decode(right), closed=closed)


def _decode_timestamp(content: str) -> Any:
    import pandas as pd

    return pd.Timestamp(content)


def _decode_nanoseconds(content: int) -> Any:
    import pandas as pd

    return pd.Timedelta(content, "ns")


_TAGGED: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "$tuple": (tuple, lambda v: [encode(item) for item in v], lambda c: tuple(map(decode, c))),
    "$set": (set, lambda v: [encode(item) for item in sorted(v)], lambda c: set(map(decode, c))),
    "$range": (range, lambda v: [v.start, v.stop, v.step], lambda c: range(*c)),
    "$bytes": (bytes, lambda v: base64.b64encode(v).decode(), base64.b64decode),
    "$datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "$date": (date, date.isoformat, date.fromisoformat),
    "$time": (time, time.isoformat, time.fromisoformat),
    "$seconds": (timedelta, timedelta.total_seconds, lambda c: timedelta(seconds=c)),
    "$decimal": (Decimal, str, Decimal),
    "$dtype": (np.dtype, lambda v: v.str, np.dtype),
    "$array": (
        np.ndarray,
        lambda v: [v.dtype.str, encode(v.tolist())],
        lambda c: np.array(decode(c[1]), dtype=c[0]),
    ),
}

_DECODERS: dict[str, Callable[[Any], Any]] = {
    **{tag: from_json for tag, (_, _, from_json) in _TAGGED.items()},
    "$float": float,
    "$dict": lambda content: {decode(key): decode(item) for key, item in content},
    "$categories": _decode_categories,
    "$intervals": _decode_intervals,
    "$timestamp": _decode_timestamp,
    "$nanoseconds": _decode_nanoseconds,
    "$pickle": lambda content: cloudpickle.loads(base64.b64decode(content)),
}
