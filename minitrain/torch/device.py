"""Devices and random numbers of a worker."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from minitrain.session import installed_context

if TYPE_CHECKING:
    import torch

__all__ = ["enable_reproducibility", "get_device", "get_devices", "reproducible_seed"]

_seed: int | None = None


def get_device() -> torch.device:
    """Return this worker's GPU, the first of them if it has several; the CPU without GPUs.

    Outside a worker: the first GPU there is, or the CPU.
    """
    return get_devices()[0]


def get_devices() -> list[torch.device]:
    """Return all GPUs of this worker; the CPU without GPUs."""
    import torch

    context = installed_context()
    if context is None:
        return [torch.device("cuda:0" if torch.cuda.is_available() else "cpu")]
    gpus = context._gpus  # noqa: SLF001 - ray.train's context has no name for it
    return [torch.device(f"cuda:{index}") for index in gpus] or [torch.device("cpu")]


def enable_reproducibility(seed: int = 0) -> None:
    """Make training give the same numbers every time, as far as torch can.

    Seeds torch, numpy, :mod:`random` and, through ``prepare_data_loader``, the processes of data
    loaders, and has torch use deterministic algorithms. This costs speed.

    Reference: https://docs.pytorch.org/docs/stable/notes/randomness.html

    Args:
        seed: Any integer; the same on every rank.
    """
    global _seed  # noqa: PLW0603 - a process trains one model
    import numpy as np
    import torch

    _seed = seed
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False
    # cuBLAS is deterministic only with a workspace of fixed size.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def reproducible_seed() -> int | None:
    """Return the seed given to :func:`enable_reproducibility`; None if it was not called."""
    return _seed
