"""Processors and network interfaces of this machine."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress

__all__ = [
    "address_towards",
    "addresses",
    "first_reachable",
    "interface_towards",
    "node_ip",
    "num_cpus",
    "threads_per_worker",
]


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


def node_ip() -> str:
    """Return the address by which this host reaches others, or any it has, or loopback."""
    return address_towards("10.255.255.255") or next(iter(addresses()), "127.0.0.1")


def addresses() -> tuple[str, ...]:
    """Return the IPv4 addresses at which other hosts may reach this one, the likeliest first.

    That is the one by which an ssh client has, if one did; then the one on the way out.
    """
    by_ssh = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    own = _own_addresses()
    on_the_way_out = address_towards("10.255.255.255")
    likely = [address for address in (*by_ssh, on_the_way_out) if address in own]
    return tuple(one for one in dict.fromkeys([*likely, *own]) if not one.startswith("127."))


def _own_addresses() -> list[str]:
    import psutil

    return [
        address.address
        for of_interface in psutil.net_if_addrs().values()
        for address in of_interface
        if address.family == socket.AF_INET
    ]


def first_reachable(hosts: Sequence[str], port: int, timeout_s: float) -> str | None:
    """Return the first of some addresses where something listens on a port.

    Args:
        hosts: IPv4 addresses; all are tried at once, and the first in order that answers counts.
        port: The port.
        timeout_s: How long they have to answer.
    """
    with ExitStack() as opened:
        trying: dict[socket.socket, str] = {}
        for host in hosts:
            probe = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.settimeout(0)
            if probe.connect_ex((host, port)) in {0, errno.EINPROGRESS}:
                trying[probe] = host
        answered = _those_that_answer(trying, time.monotonic() + timeout_s)
    return next((host for host in hosts if host in answered), None)


def _those_that_answer(trying: dict[socket.socket, str], deadline_s: float) -> Iterable[str]:
    """Wait until the first connection is made, or none can be any more."""
    while trying:
        left_s = max(0.0, deadline_s - time.monotonic())
        done = select.select([], list(trying), [], left_s)[1]
        answered = []
        for probe in done:
            host = trying.pop(probe)
            if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                answered.append(host)
                with suppress(OSError):
                    probe.shutdown(socket.SHUT_RDWR)
        if answered or not done:
            return answered
    return []


def address_towards(host: str) -> str | None:
    """Return this machine's address on the way to ``host``; None if there is no way.

    No packet is sent: connecting a datagram socket only asks the kernel for the route.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def interface_towards(host: str) -> str | None:
    """Return the network interface whose address reaches ``host``; None if none does."""
    import psutil

    own_address = address_towards(host)
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own_address for address in addresses):
            return name
    return None
