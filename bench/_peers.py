"""The first line of a training, and the peers that get there without minitrain.

``first_line`` is what every side runs in every worker. Run as a script this file is a peer::

    python bench/_peers.py spawn 8 OUT                                 torch.multiprocessing.spawn
    python -m torch.distributed.run --nproc-per-node 8 bench/_peers.py torchrun OUT

Either leaves in OUT when the last rank got to its first line; ``spawn`` also when it was called
and when it returned.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

__all__ = ["first_line", "free_port", "here", "spawn_command", "torchrun_command"]


def first_line() -> float:
    """Use the process group once, and return when the last rank had done so."""
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(1))
    noted_s = time.time()
    everybody = [0.0] * dist.get_world_size()
    dist.all_gather_object(everybody, noted_s)
    return max(everybody)


def here(name: str) -> str:
    """Return the path of a file beside this one."""
    return str(Path(__file__).resolve().with_name(name))


def free_port() -> int:
    """Return a port that is free now, as scripts without a launcher choose theirs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn_command(num_workers: int, out: Path) -> list[str]:
    """Return the command that trains under ``torch.multiprocessing.spawn``."""
    return [sys.executable, here("_peers.py"), "spawn", str(num_workers), str(out)]


def torchrun_command(num_workers: int, script: str, *arguments: str) -> list[str]:
    """Return the command that runs a script of this folder under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    options = ["--nproc-per-node", str(num_workers), "--master-port", str(free_port())]
    return [*launcher, *options, here(script), *arguments]


def train_as_rank(rank: int, world_size: int, port: int, out: str) -> None:
    """Train where no launcher has set the variables of the rendezvous."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
    }
    train(out)


def train(out: str) -> None:
    """Make the process group, get to the first line, and let rank 0 write down when."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    line_s = first_line()
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps({"line": line_s}), encoding="utf-8")
    dist.destroy_process_group()


def spawn(num_workers: int, out: str) -> None:
    """Train in spawned processes, and write down when that began and ended."""
    import torch.multiprocessing as mp

    called_s = time.time()
    mp.spawn(train_as_rank, (num_workers, free_port(), out), nprocs=num_workers)
    times = {"called": called_s, "returned": time.time()}
    noted = json.loads(Path(out).read_text(encoding="utf-8"))
    Path(out).write_text(json.dumps(noted | times), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "spawn":
        spawn(int(sys.argv[2]), sys.argv[3])
    else:
        train(sys.argv[2])
