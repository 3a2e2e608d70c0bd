"""The process group around a train function."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from minitrain._os.processes import MARK_VARIABLE
from minitrain.backend import Backend, BackendConfig, Workers
from minitrain.exceptions import ConfigurationError
from minitrain.session import get_context
from minitrain.torch.device import get_device

__all__ = ["TorchBackend", "TorchConfig", "collective_timeout"]

_timeout: datetime.timedelta | None = None


@dataclass
class TorchConfig(BackendConfig):
    """How the process group is made.

    Attributes:
        backend: ``"nccl"``, ``"gloo"`` or another of torch's; by default nccl with GPUs and gloo
            without.
        init_method: ``"env"`` or ``"tcp"``; both meet at the agent's store.
        timeout_s: How long a collective may take before it fails.

    Raises:
        ConfigurationError: (a ValueError) ``init_method`` or ``timeout_s`` is wrong.
    """

    preload = ("torch", "minitrain.torch")

    backend: str | None = None
    init_method: Literal["env", "tcp"] = "env"
    timeout_s: float = 1800

    def __post_init__(self) -> None:
        if self.backend is not None and not isinstance(self.backend, str):
            raise ConfigurationError(
                f"TorchConfig(backend={self.backend!r}): must be the name of a backend, like 'gloo'"
            )
        if self.init_method not in ("env", "tcp"):
            raise ConfigurationError(
                f"TorchConfig(init_method={self.init_method!r}): must be 'env' or 'tcp'"
            )
        number = isinstance(self.timeout_s, int | float) and not isinstance(self.timeout_s, bool)
        if not number or not 0 < self.timeout_s < float("inf"):
            raise ConfigurationError(
                f"TorchConfig(timeout_s={self.timeout_s!r}): must be a positive number of seconds"
            )

    @property
    def backend_cls(self) -> type[Backend]:
        """What makes the process group."""
        return TorchBackend

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[Any]]:
        """Sets the worker's GPU as torch's current one."""
        return _on_own_device


class TorchBackend(Backend):
    """Makes the process group before the train function and ends it afterwards."""

    def on_start(self, worker_group: Workers, backend_config: BackendConfig) -> None:
        """Make the process group on all workers at once."""
        assert isinstance(backend_config, TorchConfig)
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        backend = backend_config.backend or ("nccl" if has_gpus else "gloo")
        worker_group.execute(
            _join, backend, backend_config.init_method, float(backend_config.timeout_s)
        )

    def on_shutdown(self, worker_group: Workers, backend_config: BackendConfig) -> None:
        """End the process group; where workers no longer answer, their end ends it."""
        del backend_config
        worker_group.execute(_leave)


def collective_timeout() -> datetime.timedelta | None:
    """Return how long a collective of this process may take; None for torch's own default."""
    return _timeout


def _join(backend: str, init_method: str, timeout_s: float) -> None:
    global _timeout  # noqa: PLW0603 - a process is in one group of all ranks
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return  # a debugger's session made its own
    timeout = _timeout = datetime.timedelta(seconds=timeout_s)
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    os.environ.setdefault("ACCELERATE_TORCH_DEVICE", str(get_device()))
    if torch.cuda.is_available() and get_device().type == "cuda":
        torch.cuda.set_device(get_device())
    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if "MASTER_ADDR" not in os.environ:  # the driver's own process: nobody to meet
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return
    url = "env://"
    if init_method == "tcp":
        url = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if MARK_VARIABLE in os.environ:
        dist.init_process_group(
            backend, init_method=url, rank=rank, world_size=world_size, timeout=timeout
        )
        return
    # Another launcher's store outlives the process group. The next one in these processes would
    # have the same keys, and find in them where ranks of the last one were.
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    store, _, _ = next(rendezvous(url, rank, world_size, timeout=timeout))
    own = PrefixStore(f"minitrain/{context.get_trial_id()}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world_size, timeout=timeout)


def _leave() -> None:
    import torch
    import torch.distributed as dist

    from minitrain.torch.state import END_S, finish_saving

    finish_saving(END_S)  # it uses a process group
    if dist.is_initialized():
        dist.destroy_process_group()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def _on_own_device() -> Generator[None]:
    import torch

    device = get_device()
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(device)
    yield
