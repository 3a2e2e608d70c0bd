"""What the workers of ``ingest.py`` do, on our side and on that of ``torch.utils.data``."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from _ingest_data import FEATURES

__all__ = [
    "BATCH",
    "WINDOW",
    "drained",
    "killed_and_resumed",
    "rows_per_second",
    "scale",
    "streaming",
    "with_loader",
    "with_shard",
]

BATCH = 1024
WINDOW = 50_000


def scale(batch: dict[str, Any]) -> dict[str, Any]:
    """Scale the features: a function as users write them."""
    return batch | {name: (batch[name] - 0.5) * 3.46 for name in FEATURES}


def drained(batches: Iterable[Any]) -> tuple[int, float]:
    """Take all batches; return their rows, and how long that took."""
    rows, began_s = 0, time.perf_counter()
    for batch in batches:
        rows += len(batch["label"])
    return rows, time.perf_counter() - began_s


def rows_per_second(epochs: int, begin: Callable[[int], Iterable[Any]]) -> list[float]:
    """Return the rate of all workers together in each epoch but the first: the slowest counts."""
    import torch
    import torch.distributed as dist

    rates = []
    for epoch in range(epochs + 1):
        batches = begin(epoch)
        dist.barrier()
        rows, seconds = drained(batches)
        slowest = torch.tensor(seconds, dtype=torch.float64)
        together = torch.tensor(rows)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        dist.all_reduce(together)
        rates.append(together.item() / slowest.item())
    return rates[1:]


def with_shard(config: dict[str, Any]) -> list[float]:
    """Read this rank's part of the dataset."""
    from minitrain import get_dataset_shard

    shard = get_dataset_shard("train")
    batches = shard.iter_torch_batches(
        batch_size=BATCH, local_shuffle_buffer_size=config.get("window")
    )
    return rows_per_second(config["epochs"], lambda _: batches)


def with_loader(config: dict[str, Any]) -> list[float]:
    """Read this rank's part of the same rows, which lie in memory, through a DataLoader."""
    import pyarrow.parquet as pq
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from torch.utils.data.distributed import DistributedSampler

    table = pq.read_table(config["folder"])
    features = torch.stack([torch.tensor(table[name].to_numpy()) for name in FEATURES], dim=1)
    rows = TensorDataset((features - 0.5) * 3.46, torch.tensor(table["label"].to_numpy()))
    del table, features
    sampler = DistributedSampler(rows, shuffle=True, drop_last=True)
    loader = DataLoader(rows, batch_size=BATCH, sampler=sampler, num_workers=2)

    def begin(epoch: int) -> Iterable[Any]:
        sampler.set_epoch(epoch)
        return ({"features": features, "label": label} for features, label in loader)

    return rows_per_second(config["epochs"], begin)


def killed_and_resumed(config: dict[str, Any]) -> list[Any] | None:
    """Kill rank 1 in the middle of an epoch; return when the next attempt had its first batch.

    Returns:
        Of the last rank to get there: the seconds from the beginning of this function; and of every
        rank whether the batch is the one that comes there if nothing interrupts.
    """
    began_s = time.perf_counter()
    import torch.distributed as dist

    import minitrain

    rank, stop = dist.get_rank(), config["batches"]
    shard = minitrain.get_dataset_shard("train")
    batches = iter(
        shard.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=config["window"])
    )
    labels = next(batches)["label"].tolist()
    if minitrain.get_checkpoint() is not None:
        seconds = time.perf_counter() - began_s
        expected = config["expected"][rank]
        everybody: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, (seconds, labels == expected))
        return [max(one for one, _ in everybody), all(exact for _, exact in everybody)]
    for _ in range(stop - 1):
        next(batches)
    minitrain.report({}, checkpoint=_empty_checkpoint(Path(config["scratch"]), rank))
    dist.barrier()  # the checkpoint is there
    next(batches)  # delivered, but not in the checkpoint
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()  # until the others end
    return None


def _empty_checkpoint(folder: Path, rank: int) -> Any:
    import minitrain

    if rank != 0:
        return None
    folder.mkdir(exist_ok=True)
    (folder / "model").write_bytes(b"weights")
    return minitrain.Checkpoint.from_directory(str(folder))


def streaming(config: dict[str, Any]) -> tuple[float, int]:
    """Take batches slowly; return by how many MiB memory grew at most, and the rows."""
    from minitrain import get_dataset_shard

    shard = get_dataset_shard("train")
    batches = shard.iter_torch_batches(batch_size=config["batch_size"])
    with _Peak() as peak:
        rows = 0
        for batch in batches:
            rows += len(batch["label"])
            time.sleep(config["pause_s"])  # so that as much is read ahead as may be
    return peak.grown_mib, rows


class _Peak:
    """Looks at this process's memory all the time, anonymous and shared.

    Attributes:
        grown_mib: The most it had beyond what it had at first.
    """

    def __init__(self) -> None:
        self.grown_mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._before_mib = _memory_mib()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.005):
            self.grown_mib = max(self.grown_mib, _memory_mib() - self._before_mib)


def _memory_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    sizes = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(size.split()[0]) for size in sizes.values()) / 1024
