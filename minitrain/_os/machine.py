"""Processors and network interfaces of this machine."""

from __future__ import annotations

import os
import socket

__all__ = ["interface_towards", "num_cpus", "threads_per_worker"]


def num_cpus() -> int:
    """Return the number of processors this process may run on."""
    return len(os.sched_getaffinity(0))


def threads_per_worker(cpus_per_worker: float | None, workers_here: int, cpus_here: int) -> int:
    """Return how many threads one worker computes with.

    Args:
        cpus_per_worker: What the user asked for; None: an equal share of the machine.
        workers_here: Workers on this machine.
        cpus_here: Processors of this machine.
    """
    share = cpus_here / workers_here if cpus_per_worker is None else cpus_per_worker
    return max(1, int(share))


def interface_towards(host: str) -> str | None:
    """Return the network interface whose address reaches ``host``; None if none does.

    No packet is sent: connecting a datagram socket only asks the kernel for the route.
    """
    import psutil

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            own_address = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own_address for address in addresses):
            return name
    return None
