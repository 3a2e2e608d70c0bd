"""Mixed precision as ray.train's ``accelerate``, ``prepare_optimizer`` and ``backward`` have it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["accelerate", "backward", "prepare_optimizer", "wrap_forward"]


class _Settings:
    """What ``accelerate()`` chose for this process."""

    def __init__(self, *, amp: bool) -> None:
        import torch

        self.amp = amp
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp and torch.cuda.is_available())


_settings: _Settings | None = None


def accelerate(amp: bool = False) -> None:
    """Choose the precision of this train function; call it before ``prepare_model``.

    Args:
        amp: Whether models compute in half precision where that is safe, with scaled gradients
            on GPUs.

    Raises:
        RuntimeError: It was called before.
    """
    global _settings  # noqa: PLW0603 - a process trains with one precision
    if _settings is not None:
        raise RuntimeError("accelerate() was called before; call it once, at the beginning")
    _settings = _Settings(amp=amp)


def _current() -> _Settings:
    global _settings  # noqa: PLW0603
    if _settings is None:
        _settings = _Settings(amp=False)
    return _settings


def wrap_forward(model: nn.Module, device: torch.device) -> None:
    """Have a model compute with the precision that was chosen."""
    if _settings is None or not _settings.amp:
        return
    import torch

    forward = model.forward

    @functools.wraps(forward)
    def in_mixed_precision(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type):
            return forward(*args, **kwargs)

    model.forward = in_mixed_precision


def prepare_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer to step; with scaled gradients it unscales them first."""
    scaler = _current().scaler
    if not scaler.is_enabled():
        return optimizer
    step = optimizer.step

    @functools.wraps(step)
    def unscaled_step(*args: Any, **kwargs: Any) -> Any:
        optimizer.step = step  # type: ignore[method-assign]
        try:
            result = scaler.step(optimizer, *args, **kwargs)
        finally:
            optimizer.step = unscaled_step  # type: ignore[method-assign]
        scaler.update()
        return result

    optimizer.step = unscaled_step  # type: ignore[method-assign]
    return optimizer


def backward(loss: torch.Tensor) -> None:
    """Compute the gradients of a loss, scaled if the precision needs it."""
    _current().scaler.scale(loss).backward()
