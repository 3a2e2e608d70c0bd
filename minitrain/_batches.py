"""What can be moved to a device in a batch, whatever its user made it of.

Nothing here knows a framework: what has a method ``to`` is asked to move itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = ["mapped", "moved", "on_gpu"]


def mapped(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return a batch with another thing in the place of each that has a ``to`` method.

    That is tensors, packed sequences, and the batch classes of other libraries. The structure and
    the types of containers stay.
    """
    if hasattr(batch, "to"):
        return change(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(item, change) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(mapped(item, change) for item in batch)
    if isinstance(batch, Mapping):
        items = {key: mapped(value, change) for key, value in batch.items()}
        return items if type(batch) is dict else _like(batch, items)
    return batch


def _like(mapping: Any, items: dict[Any, Any]) -> Any:
    same = copy.copy(mapping)
    for key, value in items.items():
        same[key] = value
    return same


def moved(one: Any, device: Any, *, non_blocking: bool) -> Any:
    """Return what has a ``to`` method on a device."""
    try:
        return one.to(device, non_blocking=non_blocking)
    except TypeError:  # its `to` knows nothing of that
        return one.to(device)


def on_gpu(batch: Any) -> Iterator[Any]:
    """Yield what lies in a GPU's memory, and can be told of a stream that uses it.

    Also from inside of what moved itself, where it is an attribute.
    """
    seen: dict[int, Any] = {}  # kept, so that no other thing gets the same id
    left = [batch]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if not hasattr(one, "record_stream"):
            left.extend(_parts(one))
        elif getattr(one, "is_cuda", True):
            yield one


def _parts(one: Any) -> Iterable[Any]:
    if isinstance(one, Mapping):
        return one.values()
    if isinstance(one, list | tuple):
        return one
    return vars(one).values() if hasattr(one, "to") and hasattr(one, "__dict__") else ()
