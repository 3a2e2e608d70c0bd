"""Calls that every rank must make equally often: who has come, who is missing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Gatherings", "Incomplete"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Incomplete(Generic[T]):
    """A call that some ranks have made and others have not.

    Attributes:
        since_s: When the first one made it.
        items: What came with it, by rank; grows as others make it.
        world_size: Number of ranks.
        is_waited_for: Whether a rank stands still until all have made it.
    """

    since_s: float
    items: Mapping[int, T]
    world_size: int
    is_waited_for: bool

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that have not made it."""
        return tuple(rank for rank in range(self.world_size) if rank not in self.items)


@dataclass(slots=True)
class _Call(Generic[T]):
    since_s: float
    items: dict[int, T] = field(default_factory=dict)
    is_waited_for: bool = False


@dataclass(slots=True)
class Gatherings(Generic[T]):
    """One kind of call. A rank's calls come in order; ranks may be ahead of each other.

    What is asked whenever a rank says something takes no longer with more ranks.

    Attributes:
        world_size: Number of ranks.
        counts: How often each rank has made the call.
    """

    world_size: int
    counts: dict[int, int] = field(init=False)
    _most: int = field(default=0, init=False)  # calls of a rank that has made most
    _first: int = field(default=0, init=False)  # index of the oldest call that is incomplete
    _pending: dict[int, _Call[T]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.counts = dict.fromkeys(range(self.world_size), 0)

    def add(
        self, rank: int, item: T, now_s: float, *, is_waited_for: bool = False
    ) -> list[T] | None:
        """Note that a rank has made its next call.

        Args:
            rank: The rank.
            item: What comes with it.
            now_s: The time.
            is_waited_for: Whether it stands still until all have made the call.

        Returns:
            What came with it, by rank, if that rank was the last to make it; else None.
        """
        index = self.counts[rank]
        self.counts[rank] += 1
        self._most = max(self._most, self.counts[rank])
        call = self._pending.get(index)
        if call is None:
            call = self._pending[index] = _Call(now_s)
        call.is_waited_for = call.is_waited_for or is_waited_for
        items = call.items
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
        call = self._pending[self._first]
        return Incomplete(call.since_s, call.items, self.world_size, call.is_waited_for)

    def let_go(self, change: Callable[[T], T]) -> None:
        """Let nobody wait for the calls that are incomplete, and change what came with them."""
        for call in self._pending.values():
            call.items.update({rank: change(item) for rank, item in call.items.items()})
            call.is_waited_for = False

    def is_hopeless(self, returned: Collection[int]) -> bool:
        """Return whether a rank that has returned made the call less often than another."""
        if not self._pending:
            return False  # all have made it equally often
        return any(self.counts[rank] < self._most for rank in returned)
