"""What a process of another launcher finds, and what it is given so that every library works."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from minitrain._launched.letters import Present
from minitrain._os.gpus import assign, list_gpus, num_needed
from minitrain._os.launchers import Launched, torchrun_variables
from minitrain._os.machine import interface_towards
from minitrain.config import ScalingConfig
from minitrain.exceptions import ConfigurationError

__all__ = ["completed", "own_gpus", "reachable", "settle"]

_SCONTROL_S = 20.0


def reachable(launched: Launched) -> Launched:
    """Return what a launcher says with an address for a name that only Slurm knows."""
    try:
        socket.gethostbyname(launched.master_addr)
    except OSError:
        address = _slurms_address(launched.master_addr) if launched.kind == "Slurm" else None
        return replace(launched, master_addr=address or launched.master_addr)
    return launched


def _slurms_address(node: str) -> str | None:
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        return None
    command = [scontrol, "--oneliner", "show", "node", node]
    with suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=_SCONTROL_S, check=False
        )
        found = re.search(r"\bNodeAddr=(\S+)", asked.stdout)
        return found[1] if found else None
    return None


def completed(launched: Launched, peers: Sequence[Present]) -> Launched:
    """Return what a launcher says with what it leaves out, from where the processes are.

    Args:
        launched: What it says.
        peers: All processes, by rank.
    """
    hosts = [peer.hostname for peer in peers]
    here = hosts[launched.rank]
    first_ranks = {host: hosts.index(host) for host in hosts}
    if launched.local_rank is not None and launched.local_world_size is not None:
        node_rank = launched.node_rank
        if node_rank is None:
            node_rank = sorted(first_ranks.values()).index(first_ranks[here])
        return replace(launched, node_rank=node_rank)
    return replace(
        launched,
        local_rank=hosts[: launched.rank].count(here),
        local_world_size=hosts.count(here),
        node_rank=sorted(first_ranks.values()).index(first_ranks[here]),
    )


def settle(launched: Launched, peers: Sequence[Present]) -> None:
    """Set the variables that torchrun would have set, where they are missing.

    Args:
        launched: What is known, with nothing left out.
        peers: All processes, by rank.
    """
    variables = torchrun_variables(launched)
    here = peers[launched.rank]
    # The host of rank 0 reaches itself by loopback, which nobody else can use.
    elsewhere = [peer.address for peer in peers if peer.hostname != here.hostname]
    interface = interface_towards((elsewhere or [launched.master_addr])[0])
    if interface is not None:
        variables |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def own_gpus(scaling: ScalingConfig, launched: Launched) -> tuple[int, ...]:
    """Return this rank's GPUs as indices of those that it sees.

    A launcher shows every process its own GPUs, or each process all of its host's.

    Raises:
        ConfigurationError: There are none.
    """
    if not scaling.use_gpu:
        return ()
    names = [str(index) for index in range(len(list_gpus()))]
    assert launched.local_rank is not None
    assert launched.local_world_size is not None
    each, here = scaling.num_gpus_per_worker, launched.local_world_size
    if num_needed(here, each) <= len(names):
        return tuple(int(name) for name in assign(here, each, names)[launched.local_rank])
    if not 0 < num_needed(1, each) <= len(names):
        raise ConfigurationError(
            f"ScalingConfig(use_gpu=True): rank {launched.rank} needs {each:g} GPUs and sees "
            f"{len(names)}"
        )
    return tuple(range(num_needed(1, each)))
