"""The workers of a launch, as a backend sees them: every rank calls the backend itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from minitrain._driver.local import OneWorker
from minitrain._launched.post import Post
from minitrain.exceptions import ControllerError

__all__ = ["EveryRank"]


class EveryRank(OneWorker):
    """All ranks; a function is called in this process, while the other ranks call it in theirs.

    What it returns in other ranks is fetched when somebody looks at it, and must be JSON. So
    nobody waits for ranks whose result is of no interest.

    Args:
        rank: This one.
        world_size: How many there are.
        resources: Of one worker.
        post: The way to other ranks.
    """

    def __init__(self, rank: int, world_size: int, resources: dict[str, float], post: Post) -> None:
        super().__init__(resources)
        self._rank = rank
        self._world_size = world_size
        self._post = post
        self._num_calls = 0

    def __len__(self) -> int:
        """Return the number of ranks."""
        return self._world_size

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function here, as all other ranks do."""
        call = self._next_call()
        result = self._call(call, function, *args, **kwargs)
        return _Results(self._world_size, lambda rank: self._result(call, rank, result))

    def execute_single(
        self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function if this is the rank that is to; return what it returns there."""
        call = self._next_call()
        result = self._call(call, function, *args, **kwargs) if rank == self._rank else None
        return self._result(call, rank, result)

    def _next_call(self) -> int:
        self._num_calls += 1
        return self._num_calls

    def _call(self, call: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        name = f"{call}/{self._rank}"
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            self._post.publish(name, json.dumps({"error": f"{type(error).__name__}: {error}"}))
            raise
        try:
            text = json.dumps({"result": result})
        except (TypeError, ValueError):
            text = json.dumps({"error": f"a {type(result).__name__} is no JSON"})
        self._post.publish(name, text)
        return result

    def _result(self, call: int, rank: int, own: Any) -> Any:
        if rank == self._rank:
            return own
        found = json.loads(self._post.find(f"{call}/{rank}"))
        if "error" in found:
            raise ControllerError(
                f"what a backend's function returned in rank {rank} cannot be had: {found['error']}"
            )
        return found["result"]


class _Results(list[Any]):
    """What a function returned in every rank, fetched when it is looked at."""

    def __init__(self, size: int, fetch: Callable[[int], Any]) -> None:
        super().__init__([None] * size)
        self._fetch = fetch

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._fetch(rank) for rank in range(*index.indices(len(self)))]
        return self._fetch(range(len(self))[index])

    def __iter__(self) -> Iterator[Any]:
        return (self._fetch(rank) for rank in range(len(self)))
