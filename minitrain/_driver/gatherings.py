"""Calls that every rank must make equally often: who has come, who is missing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Gatherings", "Incomplete"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Incomplete(Generic[T]):
    """A call that some ranks have made and others have not.

    Attributes:
        since_s: When the first one made it.
        items: What came with it, by rank.
        missing: The ranks that have not made it.
    """

    since_s: float
    items: dict[int, T]
    missing: tuple[int, ...]


@dataclass(slots=True)
class Gatherings(Generic[T]):
    """One kind of call. A rank's calls come in order; ranks may be ahead of each other.

    Attributes:
        world_size: Number of ranks.
        counts: How often each rank has made the call.
    """

    world_size: int
    counts: dict[int, int] = field(init=False)
    _first: int = field(default=0, init=False)  # index of the oldest call that is incomplete
    _pending: dict[int, tuple[float, dict[int, T]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.counts = dict.fromkeys(range(self.world_size), 0)

    def add(self, rank: int, item: T, now_s: float) -> list[T] | None:
        """Note that a rank has made its next call.

        Returns:
            What came with it, by rank, if that rank was the last to make it; else None.
        """
        index = self.counts[rank]
        self.counts[rank] += 1
        _, items = self._pending.setdefault(index, (now_s, {}))
        items[rank] = item
        if len(items) < self.world_size:
            return None
        assert index == self._first, "every rank makes its calls in order"
        self._first += 1
        del self._pending[index]
        return [items[number] for number in range(self.world_size)]

    def oldest(self) -> Incomplete[T] | None:
        """Return the call that ranks have waited for longest; None if all are complete."""
        if self._first not in self._pending:
            return None
        since_s, items = self._pending[self._first]
        missing = tuple(rank for rank in range(self.world_size) if rank not in items)
        return Incomplete(since_s, dict(items), missing)

    def replace(self, change: Callable[[T], T]) -> None:
        """Change what came with the calls that are incomplete."""
        for _, items in self._pending.values():
            items.update({rank: change(item) for rank, item in items.items()})

    def is_hopeless(self, returned: Collection[int]) -> bool:
        """Return whether a rank that has returned made the call less often than another."""
        most = max(self.counts.values())
        return any(self.counts[rank] < most for rank in returned)
