"""Pickles what users give to trainers, by value; what cannot be pickled is named."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import cloudpickle

from minitrain.exceptions import ConfigurationError

__all__ = ["by_value", "dump"]

_MAX_DEPTH = 4


@contextmanager
def by_value(function: Callable[..., Any]) -> Generator[None]:
    """Send what a function's module defines by value, if workers could not import the module."""
    module = _module_not_importable(function)
    if module is None:
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def dump(what: str, value: Any) -> bytes:
    """Return a value pickled so that a worker can load it without the user's script.

    Args:
        what: The argument's name, for the error.
        value: Its value.

    Raises:
        ConfigurationError: It cannot be pickled; the message names the part that cannot.
    """
    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:
        path, culprit, reason = _culprit(value, error)
        where = f" because of {path}, a {type(culprit).__name__}" if path else ""
        raise ConfigurationError(
            f"{what} cannot be sent to the workers{where}: {reason}. Make it inside the train "
            "function instead, or pass what it is made from"
        ) from error
    return data


def _module_not_importable(value: Any) -> ModuleType | None:
    """Return the module of a function if workers could not import it under its name.

    A test runner or a notebook extension loads files under names that only it knows.
    """
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return None
    return None if _origin(module.__name__) == getattr(module, "__file__", None) else module


def _origin(name: str) -> str | None:
    """Return the file that a fresh process with this search path would import under a name."""
    if name in sys.builtin_module_names:
        return None
    path: Sequence[str] | None = None
    spec = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), path)
        if spec is None:
            return ""
        path = spec.submodule_search_locations
    return spec.origin if spec is not None else ""


def _culprit(value: Any, error: Exception, depth: int = 0) -> tuple[str, Any, str]:
    """Return the innermost part that cannot be pickled: how to reach it, itself, and why."""
    if depth < _MAX_DEPTH:
        for path, part in _parts(value):
            try:
                cloudpickle.dumps(part)
            except Exception as part_error:  # noqa: BLE001 - this is what we look for
                inner, culprit, reason = _culprit(part, part_error, depth + 1)
                return f"{path}, {inner}" if inner else path, culprit, reason
    return "", value, str(error)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"the key {key!r}", part
    elif isinstance(value, list | tuple | set):
        for index, part in enumerate(value):
            yield f"item {index}", part
    elif inspect.isfunction(value):
        captured = inspect.getclosurevars(value)
        for name, part in (*captured.nonlocals.items(), *captured.globals.items()):
            yield f"the captured variable {name!r}", part
        for name, part in zip(_default_names(value), value.__defaults__ or (), strict=False):
            yield f"the default of {name!r}", part
    else:
        yield from _attributes(value)


def _default_names(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is not inspect.Parameter.empty]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    bound_to = getattr(value, "__self__", None)
    if bound_to is not None and not isinstance(bound_to, ModuleType):
        yield "the object it is bound to", bound_to
    if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        yield "the function", value.func
        yield "the arguments", [*value.args, *value.keywords.values()]
    elif not isinstance(value, type | ModuleType):
        for name, part in getattr(value, "__dict__", {}).items():
            yield f"the attribute {name!r}", part
