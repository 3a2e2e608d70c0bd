"""Makes a data loader give each rank its part, on its device, and changes nothing else."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from minitrain._batches import mapped, moved, on_gpu
from minitrain.session import get_context
from minitrain.torch.device import get_device, reproducible_seed

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

__all__ = ["move", "prepare_data_loader"]


def prepare_data_loader(
    data_loader: DataLoader[Any],
    add_dist_sampler: bool = True,
    move_to_device: bool = True,
    auto_transfer: bool = True,
) -> DataLoader[Any]:
    """Return a data loader that gives each rank its own part of the data, on its device.

    With one worker, an ``IterableDataset`` or a sampler that is distributed already, the data
    stays undivided. A loader that shuffles does so in the same order on all ranks: call
    ``data_loader.sampler.set_epoch(epoch)`` for another order in each epoch. Samplers of the
    user's own, of rows or of batches, are kept: each rank takes every world-size-th of what they
    give. All ranks get equally many batches; the last ones may repeat the first.

    Args:
        data_loader: Any loader. What the user set stays: processes, prefetching, the generator,
            pinning, the collate function and the rest.
        add_dist_sampler: Whether to divide the data.
        move_to_device: Whether batches are moved to this worker's device.
        auto_transfer: Whether, on a GPU, the next batch is copied while this one is used. It
            overlaps best with ``pin_memory=True``. Not where this process reads ``to_torch()`` of
            a dataset itself: its position would be a batch ahead of the loop.

    Raises:
        NotInTrainingError: This is not a train function.
    """
    from torch.utils.data import IterableDataset
    from torch.utils.data.distributed import DistributedSampler

    divided = isinstance(data_loader.sampler, DistributedSampler) or isinstance(
        data_loader.dataset, IterableDataset
    )
    if add_dist_sampler and get_context().get_world_size() > 1 and not divided:
        data_loader = _divided(data_loader)
    elif reproducible_seed() is not None:
        data_loader = _rebuilt(data_loader, {})
    device = get_device()
    if move_to_device and device.type != "cpu":
        return _on_device(data_loader, device, auto_transfer)
    return data_loader


def _divided(loader: DataLoader[Any]) -> DataLoader[Any]:
    from torch.utils.data import BatchSampler

    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return _rebuilt(loader, {"batch_sampler": _part_of(loader.batch_sampler)})
    return _rebuilt(loader, {"sampler": _sampler(loader)})


def _sampler(loader: DataLoader[Any]) -> Any:
    from torch.utils.data import RandomSampler, SequentialSampler
    from torch.utils.data.distributed import DistributedSampler

    sampler: Any = loader.sampler
    shuffles = type(sampler) is RandomSampler and not sampler.replacement
    whole = shuffles and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    if not whole and type(sampler) is not SequentialSampler:
        return _part_of(sampler)
    context = get_context()
    seed = loader.generator.initial_seed() if loader.generator is not None else 0
    return DistributedSampler(
        loader.dataset,
        num_replicas=context.get_world_size(),
        rank=context.get_world_rank(),
        shuffle=shuffles,
        seed=(reproducible_seed() or 0) + seed % 2**31,
    )


def _part_of(sampler: Any) -> Any:
    """Return a sampler that gives this rank's part of what another one gives."""
    import torch
    from torch.utils.data import Sampler

    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()

    class Part(Sampler[Any]):
        def __init__(self) -> None:
            self.epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

        def __iter__(self) -> Iterator[Any]:
            # Every rank must see the same order to take its own part of it.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.epoch)
                everything = list(sampler)
            for first in range(0, len(everything), world_size):
                yield everything[(first + rank) % len(everything)]

        def __len__(self) -> int:
            return (len(sampler) + world_size - 1) // world_size

    return Part()


_OWN_ARGUMENTS = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"}


def _rebuilt(loader: DataLoader[Any], changes: dict[str, Any]) -> DataLoader[Any]:
    """Return a loader like another one, with another sampler."""
    from torch.utils.data import DataLoader

    names = [name for name in inspect.signature(DataLoader.__init__).parameters if name != "self"]
    kept = {
        name: getattr(loader, name)
        for name in names
        if name not in _OWN_ARGUMENTS and hasattr(loader, name)
    }
    if loader.num_workers == 0:  # these two may only be given with processes
        kept.pop("prefetch_factor", None)
        kept.pop("multiprocessing_context", None)
    return DataLoader(**{**kept, **_batches(loader, changes), **changes, **_seeding(loader)})


def _batches(loader: DataLoader[Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return how rows become batches, also where the user gave a plain BatchSampler."""
    batch_sampler: Any = loader.batch_sampler
    if "batch_sampler" in changes:
        return {}
    if "sampler" not in changes:
        if batch_sampler is not None:
            return {"batch_sampler": batch_sampler}
        return {"batch_size": None, "sampler": loader.sampler}
    if batch_sampler is None:
        return {"batch_size": None}
    return {"batch_size": batch_sampler.batch_size, "drop_last": batch_sampler.drop_last}


def _seeding(loader: DataLoader[Any]) -> dict[str, Any]:
    seed = reproducible_seed()
    if seed is None:
        return {}
    import torch

    generator = loader.generator
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(seed)
    return {"worker_init_fn": _SeededStart(loader.worker_init_fn), "generator": generator}


class _SeededStart:
    """Seeds what torch does not seed in a loader's process, then calls the user's function."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        import numpy as np
        import torch

        seed = torch.initial_seed() % 2**32
        np.random.seed(seed)
        random.seed(seed)
        if self._then is not None:
            self._then(worker)


def move(batch: Any, device: torch.device) -> Any:
    """Return a batch on a device; its structure and the types of its containers stay.

    Whatever has a ``to`` method is asked to move itself: tensors, packed sequences, and the batch
    classes of other libraries.
    """
    return mapped(batch, lambda one: moved(one, device, non_blocking=True))


def _on_device(loader: DataLoader[Any], device: torch.device, ahead: bool) -> DataLoader[Any]:
    """Return a loader that shares everything with another one and moves its batches."""
    from torch.utils.data import DataLoader

    class DeviceLoader(DataLoader[Any]):
        def __init__(self) -> None:
            self.__dict__.update(loader.__dict__)

        def __iter__(self) -> Any:
            if ahead and device.type == "cuda" and not _has_position(loader):
                return _copied_ahead(iter(loader), device)
            return (move(batch, device) for batch in iter(loader))

        def __len__(self) -> int:
            return len(loader)

    return DeviceLoader()


def _has_position(loader: DataLoader[Any]) -> bool:
    """Tell whether what is taken from a loader counts as delivered, as reports say it.

    What was taken ahead of the loop would never come again after a restart.
    """
    module = sys.modules.get("minitrain.data.feeding.loading")
    if module is None or loader.num_workers > 0:
        return False
    return isinstance(loader.dataset, module.TorchBatches)


def _copied_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Copy the next batch on a stream of its own while the caller computes with this one."""
    import torch

    copying = torch.cuda.Stream(device)

    def next_batch() -> Any:
        batch = next(batches, _END)
        with torch.cuda.stream(copying):
            return batch if batch is _END else move(batch, device)

    upcoming = next_batch()
    while upcoming is not _END:
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        batch = upcoming
        for one in on_gpu(batch):
            # Its memory must not be used again before the stream is done with it.
            one.record_stream(computing)
        upcoming = next_batch()
        yield batch


_END = object()
