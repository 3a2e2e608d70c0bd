"""Messages as JSON. Whoever reaches the store can write to it: nothing from it is unpickled.

A value that JSON does not have is a dict with a tag; dicts get one as well, so that no metric's
name is mistaken for a tag.
"""

from __future__ import annotations

import base64
import builtins
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from minitrain import exceptions
from minitrain._launched import letters
from minitrain._storage.disk import FileEntry
from minitrain._wire import messages as wire
from minitrain.exceptions import MinitrainError, RemoteError

__all__ = ["decode", "encode"]

_TAG = "!"
_MESSAGES = {
    kind.__name__: kind
    for kind in (
        FileEntry,
        letters.Ended,
        letters.Farewell,
        letters.Look,
        letters.Present,
        letters.Refused,
        letters.RunTold,
        letters.SignalSensed,
        wire.Answer,
        wire.CheckpointCommitted,
        wire.CheckpointLost,
        wire.CheckpointsAsked,
        wire.CollectiveEntered,
        wire.NameAsked,
        wire.Raised,
        wire.Reported,
        wire.Returned,
        wire.Uploaded,
    )
}
_OURS = {
    name: kind
    for name in exceptions.__all__
    if isinstance(kind := getattr(exceptions, name), type) and issubclass(kind, MinitrainError)
}
"""Errors that are told from others where they arrive, made again from plain arguments."""


def encode(message: Any) -> bytes:
    """Return a message as JSON."""
    return json.dumps(_plain(message), separators=(",", ":")).encode()


def decode(data: bytes) -> Any:
    """Return the message that somebody encoded.

    Raises:
        ValueError: It is none.
    """
    try:
        return _value(json.loads(data))
    except (TypeError, KeyError, LookupError) as error:
        raise ValueError(f"not a message: {data[:200]!r}") from error


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return {_TAG: "tuple", "of": [_plain(item) for item in value]}
    if isinstance(value, dict):
        return {_TAG: "dict", "of": {key: _plain(item) for key, item in value.items()}}
    if isinstance(value, bytes):
        return {_TAG: "bytes", "of": base64.b64encode(value).decode()}
    if isinstance(value, BaseException):
        return _plain_error(value)
    assert is_dataclass(value), f"{type(value).__name__} does not travel"
    assert type(value).__name__ in _MESSAGES, f"{type(value).__name__} does not travel"
    named = {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    return {_TAG: type(value).__name__, **named}


def _plain_error(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    plain = {_TAG: "error", "type": kind.__qualname__, "text": str(error), "args": None}
    if _OURS.get(kind.__qualname__) is kind and _is_simple(error.args):
        plain["args"] = _plain(list(error.args))
    return plain


def _is_simple(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_simple(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_simple(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    tag = plain[_TAG]
    if tag in _CONTAINERS:
        return _CONTAINERS[tag](plain["of"])
    if tag == "error":
        return _error(plain)
    given = {name: _value(item) for name, item in plain.items() if name != _TAG}
    return _MESSAGES[tag](**given)


def _dict(of: dict[str, Any]) -> dict[str, Any]:
    return {key: _value(item) for key, item in of.items()}


_CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda of: tuple(_value(item) for item in of),
    "dict": _dict,
    "bytes": base64.b64decode,
}


def _error(plain: dict[str, Any]) -> Exception:
    """Return an error of ours as it was, of the language with its text, any other described."""
    name, text = plain["type"], plain["text"]
    if name in _OURS and plain["args"] is not None:
        return _OURS[name](*_value(plain["args"]))
    if name in {"RuntimeError", "ValueError", "TypeError", "OSError"}:
        kind: type[Exception] = getattr(builtins, name)
        return kind(text)
    return RemoteError(name, text)
