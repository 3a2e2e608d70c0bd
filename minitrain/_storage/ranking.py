"""Which checkpoints are better, and which go. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Registered", "best", "lookup", "ranked", "superfluous"]


@dataclass(frozen=True, slots=True)
class Registered:
    """A committed checkpoint.

    Attributes:
        name: Its directory's name.
        sequence: How many were committed in the run before it.
        report: The row it was reported with.
    """

    name: str
    sequence: int
    report: Mapping[str, Any]


def ranked(
    checkpoints: Iterable[Registered], attribute: str | None, order: str
) -> list[Registered]:
    """Return checkpoints from the worst to the best; of equals the newer is the better.

    Without an attribute they stay in the order they were made. A checkpoint whose score is
    missing, or is no number, is worse than one whose score is NaN, and that is worse than any
    number, in either order.
    """
    in_time = sorted(checkpoints, key=lambda checkpoint: checkpoint.sequence)
    if attribute is None:
        return in_time
    return sorted(in_time, key=lambda checkpoint: _score(checkpoint.report, attribute, order))


def _score(report: Mapping[str, Any], attribute: str, order: str) -> tuple[int, float]:
    value = lookup(report, attribute)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0, 0.0
    if math.isnan(value):
        return 1, 0.0
    return 2, value if order == "max" else -value


def lookup(report: Mapping[str, Any], attribute: str) -> Any:
    """Return a metric by its name or, for a nested one, by its path with slashes.

    >>> lookup({"val": {"acc": 0.5}}, "val/acc")
    0.5
    """
    if attribute in report:
        return report[attribute]
    value: Any = report
    for part in attribute.split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def best(in_order: Sequence[Registered], num_to_keep: int | None) -> list[Registered]:
    """Return the best ones of a ranked list, the best of all last."""
    return list(in_order if num_to_keep is None else in_order[-num_to_keep:])


def superfluous(in_order: Sequence[Registered], num_to_keep: int | None) -> list[Registered]:
    """Return those of a ranked list that need not be kept; never the newest."""
    if num_to_keep is None or not in_order:
        return []
    newest = max(in_order, key=lambda checkpoint: checkpoint.sequence)
    return [checkpoint for checkpoint in in_order[:-num_to_keep] if checkpoint is not newest]
