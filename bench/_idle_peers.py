"""Torch processes that have joined a process group and wait, for memory.py to look at.

``python bench/_idle_peers.py one`` is one process in a group of its own, ``spawn 8`` the parent of
8 spawned ones. Either prints ``idle`` when all wait, and ends when its standard input does.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp
from _peers import first_line, free_port


def say_idle_and_wait() -> None:
    """Tell memory.py to look, and wait until it has."""
    print("idle", flush=True)
    sys.stdin.read()


def one() -> None:
    """Be one torch process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    first_line()
    say_idle_and_wait()


def spawn(num_workers: int) -> None:
    """Be the parent of spawned processes."""
    context = mp.get_context("spawn")
    joined = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=join_and_wait, args=(rank, num_workers, port, joined))
        for rank in range(num_workers)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        joined.get()
    say_idle_and_wait()
    for process in processes:
        process.kill()
        process.join()


def join_and_wait(rank: int, world_size: int, port: int, joined: Any) -> None:
    """Be one of them."""
    url = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)
    first_line()
    joined.put(rank)
    signal.pause()


if __name__ == "__main__":
    if sys.argv[1] == "one":
        one()
    else:
        spawn(int(sys.argv[2]))
