"""Copies batches of tensors to a device, beside what the device does meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from minitrain._batches import mapped, moved, on_gpu

__all__ = ["Moves", "to_device"]


class Moves(NamedTuple):
    """What is done on a batch's way to a device; None: nothing.

    Attributes:
        finish: Makes of a batch the one that the user gets; in the thread that prefetches.
        taken: Told of each of these by the thread that takes it.
    """

    finish: Callable[[Any], Any] | None = None
    taken: Callable[[Any], object] | None = None


def to_device(collate_fn: Callable[[Any], Any] | None, device: Any, *, pin_memory: bool) -> Moves:
    """Return how batches get to a device.

    Args:
        collate_fn: The user's function, if there is one.
        device: Where tensors go.
        pin_memory: Whether they go there from pinned memory, asynchronously.
    """
    import torch

    where = torch.device(device)
    if where.type == "cpu" and not pin_memory:
        return Moves(collate_fn)
    on_gpu = where.type == "cuda"
    move = (_on_own_stream if on_gpu else _at_once)(where, pin_memory=pin_memory)

    def finish(batch: Any) -> Any:
        return move(batch if collate_fn is None else collate_fn(batch))

    return Moves(finish, _keep_while_used if on_gpu else None)


def _at_once(device: Any, *, pin_memory: bool) -> Callable[[Any], Any]:
    return lambda batch: mapped(batch, lambda one: _moved(one, device, pin_memory=pin_memory))


def _moved(one: Any, device: Any, *, pin_memory: bool) -> Any:
    import torch

    if pin_memory and _is_on_cpu(one) and torch.cuda.is_available():
        one = one.pin_memory() if hasattr(one, "pin_memory") else one
    return moved(one, device, non_blocking=pin_memory)


def _is_on_cpu(one: Any) -> bool:
    device = getattr(one, "device", None)
    return not getattr(one, "is_cuda", False) and getattr(device, "type", "cpu") == "cpu"


def _on_own_stream(device: Any, *, pin_memory: bool) -> Callable[[Any], Any]:
    """Return what copies to a GPU on a stream of its own, in the thread that prefetches.

    The batch is handed over when it has arrived: the thread waits, not the training's stream.
    """
    import torch

    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def move(batch: Any) -> Any:
        with torch.cuda.stream(stream):
            arriving = mapped(batch, lambda one: _moved(one, device, pin_memory=pin_memory))
        stream.synchronize()
        return arriving

    return move


def _keep_while_used(batch: Any) -> None:
    """Have a batch's memory kept for the stream that its taker computes on.

    It belongs to the copies' stream: the next copy must not use it while the training reads it.
    """
    import torch

    for one in on_gpu(batch):
        one.record_stream(torch.cuda.current_stream(getattr(one, "device", None)))
