"""The session of a rank that another launcher started: what ranks tell each other is JSON."""

from __future__ import annotations

import json
from typing import Any

from minitrain._session import TrainSession
from minitrain.context import PreemptionInfo

__all__ = ["LaunchedSession", "packed"]


class LaunchedSession(TrainSession):
    """A session that unpickles nothing from the store.

    What rank 0 broadcasts and JSON cannot hold travels through torch's process group.
    """

    _broadcast: Any = None

    def _packed(self, data: Any) -> bytes:
        self._broadcast = data
        return packed(data)

    def _unpacked(self, data: bytes) -> Any:
        (way, value), *_ = json.loads(data).items()
        if way == "problem":
            raise TypeError(value)
        if way == "preemption":
            return PreemptionInfo(*value)
        if way == "group":
            value = self._by_process_group()
        self._broadcast = None
        return value

    def _by_process_group(self) -> Any:
        import torch.distributed as dist

        items = [self._broadcast]
        dist.broadcast_object_list(items, src=0)
        return items[0]


def packed(data: Any) -> bytes:
    """Return what rank 0 says to all as JSON, or by which way it comes."""
    if isinstance(data, PreemptionInfo):
        ranks = {host: list(of_host) for host, of_host in data.preempted_node_to_ranks.items()}
        return json.dumps({"preemption": [data.deadline_ms, ranks]}).encode()
    if _is_json(data):
        return json.dumps({"json": data}).encode()
    if _has_process_group():
        return b'{"group": null}'
    return json.dumps(
        {
            "problem": f"broadcast_from_rank_zero({type(data).__name__}): inside another launcher "
            "this takes numbers, strings, booleans, None, and lists and dicts of them; anything "
            "else needs torch's process group (TorchTrainer, or init_process_group)"
        }
    ).encode()


def _is_json(data: Any) -> bool:
    """Return whether a value comes out of JSON as what it was."""
    if type(data) is dict:
        return all(type(key) is str and _is_json(value) for key, value in data.items())
    if type(data) is list:
        return all(map(_is_json, data))
    return type(data) in {int, float, str, bool, type(None)}


def _has_process_group() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()
