"""Peers of ``ingest.py`` that need nothing of minitrain; each prints its figures as JSON::

python bench/_ingest_peers.py pyarrow FOLDER EPOCHS BATCH_SIZE
python bench/_ingest_peers.py images FOLDER
PYTHON_WITH_RAY bench/_ingest_peers.py ray FOLDER EPOCHS
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from _ingest_data import decoded

IMAGES_PER_BATCH = 64
NUM_WORKERS = 2


def pyarrow(folder: str, epochs: str, batch_size: str) -> list[float]:
    """Return the rows per second of ``to_batches()`` with all cores, as tensors, by epoch."""
    import pyarrow as pa
    import pyarrow.dataset as pads
    import torch

    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    pa.set_cpu_count(len(os.sched_getaffinity(0)))  # OMP_NUM_THREADS is for workers
    rates = []
    for _ in range(int(epochs) + 1):
        rows, began_s = 0, time.perf_counter()
        for batch in pads.dataset(folder).to_batches(batch_size=int(batch_size)):
            tensors = {
                name: torch.from_numpy(column.to_numpy())
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }
            rows += len(tensors["label"])
        rates.append(rows / (time.perf_counter() - began_s))
    return rates[1:]


class Images:
    """The images of a folder, for a DataLoader."""

    def __init__(self, folder: str) -> None:
        self._paths = sorted(Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        import torch

        return torch.from_numpy(decoded(self._paths[index].read_bytes()))


def images(folder: str) -> None:
    """Say, whenever asked, the images per second of an epoch of a DataLoader with 2 processes."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    loader = DataLoader(
        Images(folder),  # type: ignore[arg-type]
        batch_size=IMAGES_PER_BATCH,
        num_workers=2,
        persistent_workers=True,
    )
    for _ in loader:  # the processes are started meanwhile
        pass
    for _ in sys.stdin:
        began_s = time.perf_counter()
        number = sum(len(batch) for batch in loader)
        print(number / (time.perf_counter() - began_s), flush=True)


def ray(folder: str, epochs: str) -> list[float]:
    """Return the rows per second of Ray Data through Ray Train, by epoch but the first."""
    import ray
    import ray.data
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    out = Path(folder).parent / "ray.json"

    def train() -> None:
        import ray.train
        import torch
        import torch.distributed as dist

        shard = ray.train.get_dataset_shard("train")
        rates = []
        for _ in range(int(epochs) + 1):
            dist.barrier()
            rows, began_s = 0, time.perf_counter()
            for batch in shard.iter_torch_batches(batch_size=1024):
                rows += len(batch["label"])
            slowest = torch.tensor(time.perf_counter() - began_s, dtype=torch.float64)
            together = torch.tensor(rows)
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            dist.all_reduce(together)
            rates.append(together.item() / slowest.item())
        if dist.get_rank() == 0:
            out.write_text(json.dumps(rates[1:]), encoding="utf-8")

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else it writes a file into ~
    # Four logical processors: two workers have one each, and what reads must have one, too.
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        train,
        datasets={"train": ray.data.read_parquet(folder)},
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(Path(folder).parent / "ray"), name="ingest"),
    ).fit()
    rates: list[float] = json.loads(out.read_text(encoding="utf-8"))
    ray.shutdown()
    return rates


PEERS = {"pyarrow": pyarrow, "images": images, "ray": ray}

if __name__ == "__main__":
    measured: Any = PEERS[sys.argv[1]](*sys.argv[2:])
    if measured is not None:
        print(json.dumps(measured))
