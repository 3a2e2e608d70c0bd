"""Where each worker goes: ranks, hosts, GPUs. Pure.

Ranks are contiguous on every host, in the order of the hosts; a host without workers has no node
rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minitrain._os.gpus import Gpu, assign, num_needed
from minitrain._wire.messages import Place
from minitrain.config import ScalingConfig
from minitrain.exceptions import ConfigurationError

__all__ = ["Room", "places", "workers_that_fit"]


@dataclass(frozen=True, slots=True)
class Room:
    """What one host has for workers.

    Attributes:
        gpus: Its GPUs, if the run uses GPUs.
        limit: How many workers it takes at most; None: nobody said.
        host: What it is called in errors.
    """

    gpus: tuple[Gpu, ...] = ()
    limit: int | None = None
    host: str = "this machine"

    def capacity(self, gpus_per_worker: float) -> float:
        """Return how many workers there is room for; infinity where nothing is used up."""
        limit = math.inf if self.limit is None else self.limit
        return min(limit, _most(gpus_per_worker, len(self.gpus))) if gpus_per_worker else limit


def _most(gpus_per_worker: float, num_gpus: int) -> int:
    """Return how many workers some GPUs are enough for.

    >>> _most(0.5, 3), _most(2, 5)
    (6, 2)
    """
    if gpus_per_worker < 1:
        return num_gpus * int(1 / gpus_per_worker + 1e-9)
    return num_gpus // int(gpus_per_worker)


def workers_that_fit(scaling: ScalingConfig, rooms: Sequence[Room]) -> int:
    """Return how many workers to start.

    Args:
        scaling: What was asked for.
        rooms: The hosts.

    Raises:
        ConfigurationError: They have room for fewer than the smallest number of workers, or GPUs
            of another model.
    """
    _check_model(scaling, rooms)
    there = _total(scaling, [room.capacity(scaling.num_gpus_per_worker) for room in rooms])
    if there >= scaling.min_workers:
        return int(min(scaling.max_workers, there))
    raise ConfigurationError(_too_few(scaling, rooms, int(there)))


def _total(scaling: ScalingConfig, capacities: Sequence[float]) -> float:
    if len(capacities) > 1 and scaling.placement_strategy == "STRICT_SPREAD":
        return sum(min(capacity, 1) for capacity in capacities)
    if scaling.placement_strategy == "STRICT_PACK":
        return max(capacities, default=0)
    return sum(capacities)


def _too_few(scaling: ScalingConfig, rooms: Sequence[Room], there: int) -> str:
    per_worker = scaling.num_gpus_per_worker
    names = ", ".join(room.host for room in rooms)
    if per_worker:
        needed = num_needed(scaling.min_workers, per_worker)
        num_gpus = sum(len(room.gpus) for room in rooms)
        asked = (
            f"ScalingConfig asks for {needed} GPU{'s' if needed > 1 else ''} "
            f"({scaling.min_workers} workers with {per_worker:g} each)"
        )
        if num_gpus < needed:
            has = "has" if len(rooms) == 1 else "together have"
            return f"{asked}, but {names} {has} {num_gpus}"
    asked = f"ScalingConfig asks for {scaling.min_workers} workers"
    strategy = f" with placement_strategy={scaling.placement_strategy!r}"
    strict = scaling.placement_strategy.startswith("STRICT")
    return f"{asked}{strategy if strict else ''}, but there is room for {there} on {names}"


def _check_model(scaling: ScalingConfig, rooms: Sequence[Room]) -> None:
    wanted = scaling.accelerator_type
    if wanted is None:
        return
    for room in rooms:
        others = sorted(
            {gpu.model for gpu in room.gpus if _letters(wanted) not in _letters(gpu.model)}
        )
        if others:
            raise ConfigurationError(
                f"ScalingConfig(accelerator_type={wanted!r}): {room.host} has {', '.join(others)}"
            )


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def places(
    scaling: ScalingConfig, rooms: Sequence[Room], num_workers: int
) -> list[tuple[Place, ...]]:
    """Return where each worker stands, host by host.

    Args:
        scaling: How workers are to be placed, and what GPUs each gets.
        rooms: The hosts.
        num_workers: How many workers; there is room for them.
    """
    per_worker = scaling.num_gpus_per_worker
    capacities = [room.capacity(per_worker) for room in rooms]
    counts = shares(num_workers, capacities, scaling.placement_strategy)
    num_nodes = sum(count > 0 for count in counts)
    found: list[tuple[Place, ...]] = []
    first = node = 0
    for room, count in zip(rooms, counts, strict=True):
        own: list[tuple[str, ...]] = [()] * count
        if per_worker:
            own = assign(count, per_worker, [gpu.name for gpu in room.gpus])
        union = tuple(dict.fromkeys(name for names in own for name in names))
        found.append(
            tuple(
                Place(first + n, num_workers, n, count, node, num_nodes, own[n], union)
                for n in range(count)
            )
        )
        first += count
        node += count > 0
    return found


def shares(num_workers: int, capacities: Sequence[float], strategy: str) -> list[int]:
    """Return how many workers each host gets.

    Packing fills one host after the other. Where nothing says how many workers a host takes, all
    hosts that were named get a share, as with spreading.

    >>> shares(5, [4, 4, 4], "PACK"), shares(5, [4, 4, 4], "SPREAD")
    ([4, 1, 0], [2, 2, 1])
    >>> shares(4, [float("inf"), float("inf")], "PACK"), shares(4, [1, 2, 4], "SPREAD")
    ([2, 2], [1, 2, 1])
    """
    counts = [0] * len(capacities)
    if strategy == "STRICT_PACK":
        counts[next(n for n, room in enumerate(capacities) if room >= num_workers)] = num_workers
        return counts
    if strategy == "PACK" and math.inf not in capacities:
        left = num_workers
        for host, capacity in enumerate(capacities):
            counts[host] = min(left, int(capacity))
            left -= counts[host]
        return counts
    left = num_workers
    while left:  # a round of one worker each
        with_room = [host for host, room in enumerate(capacities) if counts[host] + 1 <= room]
        for host in with_room[:left]:
            counts[host] += 1
        left -= min(left, len(with_room))
    return counts
