"""SIGTERM while a run is under way: until when workers may go on, and how the run ends then."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from minitrain._driver.home import Home
from minitrain.context import PreemptionInfo
from minitrain.exceptions import PreemptionError

__all__ = ["Preemption"]


class Preemption:
    """What is known of a preemption.

    Args:
        grace_s: How long workers may go on after the signal.

    Attributes:
        info: What workers are told; None as long as there is nothing to tell.
        deadline_s: When the attempt ends, on the monotonic clock; infinity: by itself.
        is_of_driver: Whether the driver has to go as well, so that there is no next attempt.
    """

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.info: PreemptionInfo | None = None
        self.deadline_s = math.inf
        self.is_of_driver = False

    def begin_attempt(self) -> None:
        """Forget the preemption of an agent: the attempt runs elsewhere, or under another one."""
        if not self.is_of_driver:
            self.info, self.deadline_s = None, math.inf

    def notice(self, hostname: str, ranks: Sequence[int], *, of_driver: bool) -> None:
        """Note that a host is about to be taken away; the first notice sets the deadline.

        Args:
            hostname: Which.
            ranks: Those that go with it.
            of_driver: Whether the driver is on it.
        """
        self.is_of_driver = self.is_of_driver or of_driver
        if self.info is None:
            self.deadline_s = time.monotonic() + self.grace_s
            deadline_ms = int((time.time() + self.grace_s) * 1000)
            self.info = PreemptionInfo(deadline_ms, {hostname: tuple(ranks)})
        else:
            by_host = {**self.info.preempted_node_to_ranks, hostname: tuple(ranks)}
            self.info = replace(self.info, preempted_node_to_ranks=by_host)

    def error(self, home: Home, *, timed_out: bool) -> PreemptionError:
        """Return the error the attempt ends with.

        Args:
            home: Where the run is.
            timed_out: Whether workers were still training.
        """
        return PreemptionError(self.info, timed_out, home.storage.root)
