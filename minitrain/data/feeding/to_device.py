"""Copies batches of tensors to a device, beside what the device does meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["to_device"]


def to_device(
    collate_fn: Callable[[Any], Any] | None, device: Any, *, pin_memory: bool
) -> Callable[[Any], Any] | None:
    """Return what makes of a batch the one that the user gets; None: nothing is to be done.

    Args:
        collate_fn: The user's function, if there is one.
        device: Where tensors go.
        pin_memory: Whether they go there from pinned memory, asynchronously.
    """
    import torch

    where = torch.device(device)
    if where.type == "cpu" and not pin_memory:
        return collate_fn
    move = _on_own_stream(where, pin_memory=pin_memory) if where.type == "cuda" else None

    def finish(batch: Any) -> Any:
        if collate_fn is not None:
            batch = collate_fn(batch)
        if move is not None:
            return move(batch)
        return _mapped(batch, lambda tensor: _moved(tensor, where, pin_memory=pin_memory))

    return finish


def _moved(tensor: Any, device: Any, *, pin_memory: bool) -> Any:
    import torch

    if pin_memory and tensor.device.type == "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=pin_memory)


def _on_own_stream(device: Any, *, pin_memory: bool) -> Callable[[Any], Any]:
    """Return what copies to a GPU on a stream of its own, in the thread that prefetches.

    The batch is handed over when it has arrived: the thread waits, not the training's stream.
    """
    import torch

    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def move(batch: Any) -> Any:
        with torch.cuda.stream(stream):
            moved = _mapped(batch, lambda tensor: _moved(tensor, device, pin_memory=pin_memory))
        stream.synchronize()
        # The memory belongs to this stream's pool: it must not be used again by the next copy
        # while the training still reads it on its own stream.
        used_on = torch.cuda.default_stream(device)
        _mapped(moved, lambda tensor: tensor.record_stream(used_on))
        return moved

    return move


def _mapped(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return a batch with another tensor in the place of each."""
    import torch

    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: _mapped(one, change) for name, one in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_mapped(one, change) for one in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_mapped(one, change) for one in batch)
    return batch
