"""Makes a model a distributed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from minitrain._logging import logger
from minitrain.session import get_context
from minitrain.torch.accelerate import wrap_forward
from minitrain.torch.device import get_device

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["prepare_model"]


def prepare_model(
    model: nn.Module,
    move_to_device: bool | torch.device = True,
    parallel_strategy: Literal["ddp", "fsdp"] | None = "ddp",
    parallel_strategy_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Move a model to this worker's device and make its gradients those of all workers.

    Args:
        model: The model; every rank must give the same one.
        move_to_device: Whether, or where, to move it.
        parallel_strategy: ``"ddp"``: a copy on every worker. ``"fsdp"``: parameters, gradients
            and optimizer states are divided among the workers by ``fully_shard``, which changes
            the model in place; every element of a ``ModuleList`` is a unit of its own. None:
            only move it. With one worker nothing is wrapped.
        parallel_strategy_kwargs: Given to ``DistributedDataParallel`` or ``fully_shard``.

    Returns:
        The model to train.

    Raises:
        ValueError: The strategy is none of these.
        NotInTrainingError: This is not a train function.
    """
    import torch

    if parallel_strategy not in {"ddp", "fsdp", None}:
        raise ValueError(
            f"prepare_model(parallel_strategy={parallel_strategy!r}): must be 'ddp', 'fsdp' or None"
        )
    world_size = get_context().get_world_size()
    device = move_to_device if isinstance(move_to_device, torch.device) else get_device()
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(device)
    if move_to_device:
        model = model.to(device)
    wrap_forward(model, device)
    if world_size == 1 or parallel_strategy is None:
        return model
    logger.debug("wrapping the model for %s", parallel_strategy)
    kwargs = dict(parallel_strategy_kwargs or {})
    if parallel_strategy == "fsdp":
        return _fully_sharded(model, kwargs)
    if device.type == "cuda":
        kwargs = {"device_ids": [device], "output_device": device, **kwargs}
    return torch.nn.parallel.DistributedDataParallel(model, **kwargs)


def _fully_sharded(model: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
    from torch import nn

    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # torch < 2.6
        from torch.distributed._composable.fsdp import fully_shard  # type: ignore[attr-defined]
    if "mesh" not in kwargs:
        from torch.distributed.device_mesh import init_device_mesh

        kind = next(model.parameters()).device.type
        kwargs["mesh"] = init_device_mesh(kind, (get_context().get_world_size(),))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for unit in module:
                fully_shard(unit, **kwargs)
    fully_shard(model, **kwargs)
    return model
