"""A worker's ends of its pipes: what it says, and the orders it gets."""

from __future__ import annotations

import pickle
import select
import time
from collections import deque
from collections.abc import Sequence

from minitrain._wire.channel import Channel
from minitrain._wire.messages import WorkerNews, WorkerOrder
from minitrain._wire.ring import Ring

__all__ = ["PipeInbox"]


class PipeInbox:
    """News goes up the ring, orders come down the pipe.

    Args:
        ring: Where news goes.
        orders: Where orders arrive.
    """

    def __init__(self, ring: Ring, orders: Channel) -> None:
        self._ring = ring
        self._channel = orders
        self._orders: deque[WorkerOrder] = deque()

    def send(self, news: WorkerNews) -> None:
        """Say something; it outlives this process from here on."""
        self._ring.put(pickle.dumps(news, protocol=pickle.HIGHEST_PROTOCOL))

    def poll(self) -> list[WorkerOrder]:
        """Return every order that has arrived, without waiting."""
        self._orders.extend(self._channel.receive())
        arrived = list(self._orders)
        self._orders.clear()
        return arrived

    def put_back(self, orders: Sequence[WorkerOrder]) -> None:
        """Return orders that were not for the caller."""
        self._orders.extendleft(reversed(orders))

    def wait(self, timeout_s: float | None) -> WorkerOrder | None:
        """Return the next order; None if there is none in time.

        Raises:
            ChannelClosed: The agent is gone.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._orders:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if not select.select([self._channel.read_fd], [], [], left_s)[0]:
                return None
            self._orders.extend(self._channel.receive())
        return self._orders.popleft()
