"""Small collectives on the control plane, without any framework: for coordination, not for tensors.

Every rank must make the same calls in the same order. If one does not arrive in time, the others
get a :class:`minitrain.exceptions.CollectiveTimeoutError` that names it.
"""

from __future__ import annotations

from typing import TypeVar

from minitrain.session import current_session

__all__ = ["barrier", "broadcast_from_rank_zero"]

T = TypeVar("T")


def barrier() -> None:
    """Wait until every rank has called it.

    Raises:
        CollectiveTimeoutError: Some rank did not.
        NotInTrainingError: This is not a train function.
    """
    current_session("barrier").collective("barrier", None)


def broadcast_from_rank_zero(data: T) -> T:
    """Return rank 0's ``data`` on every rank.

    Args:
        data: Anything that can be pickled; meant for less than a kilobyte. Ignored on ranks
            other than 0.

    Raises:
        CollectiveTimeoutError: Some rank did not call it.
        NotInTrainingError: This is not a train function.
    """
    result: T = current_session("broadcast_from_rank_zero").collective(
        "broadcast_from_rank_zero", data
    )
    return result
