"""How long 4 workers take to save 1 GB that is divided among them, and what memory rank 0 needs.

The state is a model of ``fully_shard``. Ours is ``save_state``: every worker writes its shards. The
peer is what is done without: gather the whole state on rank 0
(``get_model_state_dict(full_state_dict=True, cpu_offload=True)``) and ``torch.save`` it there. The
sides take turns in the same workers. Both write to the same folder of the local disk, each file is
synced (``fsync``) by whoever wrote it, which ``save_state`` leaves to ``report()``, and the time
is over when the last worker has. The files of a turn are deleted before the next::

    python bench/sharded_save.py --runs 7

The memory is by how much the peak of rank 0 (VmHWM, set back before each save) exceeds what it
had before. ``save_state(wait=False)`` copies the shards of one worker and returns; how long that
keeps training from going on stands beside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from _figures import Row, note, one_thread_each, print_table, rotated, spread, verdict
from _machine import print_machine
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from minitrain import RunConfig, ScalingConfig, get_context
from minitrain.torch import TorchTrainer, prepare_model, save_state

NUM_WORKERS = 4
TARGET = 1.5
LAYER_MIB = 64
OURS, BACKGROUND, GATHER = "save_state", "save_state(wait=False)", "gather and torch.save"


def make_model(total_mib: int) -> nn.Module:
    """Return a model that is divided from the beginning: nobody ever has all of it."""
    width = 4096  # a layer of float32 has LAYER_MIB
    with torch.device("meta"):
        layers = [nn.Linear(width, width, bias=False) for _ in range(total_mib // LAYER_MIB)]
        model = nn.Module()
        model.layers = nn.ModuleList(layers)
    model = prepare_model(
        model,
        move_to_device=False,
        parallel_strategy="fsdp",
        parallel_strategy_kwargs={"mesh": dist.device_mesh.init_device_mesh("cpu", (NUM_WORKERS,))},
    )
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.uniform_(parameter.to_local())
    return model


def sync(folder: Path) -> None:
    """Have every file of a folder on the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def save(side: str, model: nn.Module, folder: Path) -> float:
    """Save once, and return after how many seconds training could have gone on."""
    began_s = time.perf_counter()
    if side == GATHER:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(model, options=options)
        if get_context().get_world_rank() == 0:
            torch.save(whole, folder / "model.pt")
        sync(folder)
        return time.perf_counter() - began_s
    checkpoint = save_state({"model": model}, folder, wait=side == OURS)
    took_s = time.perf_counter() - began_s
    with checkpoint.as_directory():  # waits
        sync(folder)
    return took_s if side == BACKGROUND else time.perf_counter() - began_s


def memory_mib(name: str) -> float:
    """Return a figure of this process from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def measure(config: dict) -> dict[str, list[tuple[float, float]]]:
    """Save in turns; return the seconds of the slowest worker and rank 0's growth for each."""
    model = make_model(config["mib"])
    rank = get_context().get_world_rank()
    figures: dict[str, list[tuple[float, float]]] = {OURS: [], BACKGROUND: [], GATHER: []}
    for turn in range(config["runs"] + 1):
        for side in rotated(list(figures), turn):
            folder = Path(config["folder"], f"rank_{rank}")
            folder.mkdir()
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
            before_mib = memory_mib("VmRSS")
            dist.barrier()
            seconds = torch.tensor(save(side, model, folder))
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
            if turn:  # the first makes connections and warms up the disk
                figures[side].append((seconds.item(), memory_mib("VmHWM") - before_mib))
            shutil.rmtree(folder)
            os.sync()
            if rank == 0:
                print(f"turn {turn}: {side} {seconds.item():.2f} s")
    return figures


def rows(figures: dict[str, list[tuple[float, float]]], mib: int) -> list[Row]:
    """Hold ours against the peer."""
    times = {side: [seconds for seconds, _ in pairs] for side, pairs in figures.items()}
    growths = {side: [growth for _, growth in pairs] for side, pairs in figures.items()}
    ratios = [theirs / ours for ours, theirs in zip(times[OURS], times[GATHER], strict=True)]
    ratio, growth = median(ratios), median(growths[OURS])
    limit_mib = mib / NUM_WORKERS
    gathered = f"{GATHER} {spread(growths[GATHER], 'MiB', 0)}"
    return [
        Row(
            f"{mib} MiB on {NUM_WORKERS} workers, written and synced",
            spread(times[OURS], "s", 2),
            f"{GATHER} {spread(times[GATHER], 's', 2)}",
            f"{ratio:.2f} x faster ({min(ratios):.2f} to {max(ratios):.2f})",
            f">= {TARGET} x faster",
            verdict(met=ratio >= TARGET),
        ),
        Row("the same, until training goes on (wait=False)", spread(times[BACKGROUND], "s", 2)),
        Row(
            "memory that rank 0 needs for it",
            spread(growths[OURS], "MiB", 0),
            gathered,
            "",
            f"< {limit_mib:.0f} MiB, a worker's share",
            verdict(met=growth < limit_mib),
        ),
        Row("the same, wait=False (a copy)", spread(growths[BACKGROUND], "MiB", 0)),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1024)
    arguments = parser.parse_args()
    one_thread_each()
    print_machine(f"Saving {arguments.mib} MiB that {NUM_WORKERS} workers have between them")
    with tempfile.TemporaryDirectory() as folder:
        note(f"writing to {folder}")
        result = TorchTrainer(
            measure,
            train_loop_config={"mib": arguments.mib, "runs": arguments.runs, "folder": folder},
            scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
            run_config=RunConfig(storage_path=str(Path(folder, "runs"))),
        ).fit()
    print_table(rows(result.return_value, arguments.mib))


if __name__ == "__main__":
    main()
