"""Where each worker goes: ranks, hosts, GPUs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from minitrain._os.gpus import Gpu, assign, num_needed
from minitrain._wire.messages import Place
from minitrain.config import ScalingConfig
from minitrain.exceptions import ConfigurationError

__all__ = ["places_on_one_host", "workers_that_fit"]


def workers_that_fit(scaling: ScalingConfig, gpus: Sequence[Gpu]) -> int:
    """Return how many workers to start on this machine.

    Raises:
        ConfigurationError: It has fewer GPUs than the smallest number of workers needs, or they
            are of another model.
    """
    per_worker = scaling.num_gpus_per_worker
    if not per_worker:
        return scaling.max_workers
    _check_model(scaling, gpus)
    for num_workers in range(scaling.max_workers, scaling.min_workers - 1, -1):
        if num_needed(num_workers, per_worker) <= len(gpus):
            return num_workers
    needed = num_needed(scaling.min_workers, per_worker)
    raise ConfigurationError(
        f"ScalingConfig asks for {needed} GPU{'s' if needed > 1 else ''} ({scaling.min_workers} "
        f"workers with {per_worker:g} each), but this machine has {len(gpus)}"
    )


def _check_model(scaling: ScalingConfig, gpus: Sequence[Gpu]) -> None:
    wanted = scaling.accelerator_type
    if wanted is None or not gpus:
        return
    others = sorted({gpu.model for gpu in gpus if _letters(wanted) not in _letters(gpu.model)})
    if others:
        raise ConfigurationError(
            f"ScalingConfig(accelerator_type={wanted!r}): this machine has {', '.join(others)}"
        )


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def places_on_one_host(
    num_workers: int, gpus_per_worker: float, gpus: Sequence[Gpu]
) -> tuple[Place, ...]:
    """Return where each worker stands when all are on one host."""
    own: list[tuple[str, ...]] = [()] * num_workers
    if gpus_per_worker:
        own = assign(num_workers, gpus_per_worker, [gpu.name for gpu in gpus])
    union = tuple(dict.fromkeys(name for names in own for name in names))
    return tuple(
        Place(rank, num_workers, rank, num_workers, 0, gpus=own[rank], visible_gpus=union)
        for rank in range(num_workers)
    )
