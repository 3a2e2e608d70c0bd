"""What is left to do when the agent is killed, and the driver cannot do it: remove their traces.

A process of the agent's has this duty, on every host and in every attempt. It is that of the
rendezvous store, or one that does nothing else.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from minitrain._os.processes import die_with_parent, remove_traces

__all__ = ["LastDuty", "Survivor"]

_END_S = 1.5
"""How long an agent may take to end after its driver."""


@dataclass(frozen=True, slots=True)
class LastDuty:
    """Waits for the agent's death, which the agent may not notice itself, and removes its traces.

    An agent that outlives its driver has been stopped, and is killed.

    Attributes:
        agent: The agent's process id.
        driver: The driver's process id if it is on this host, else 0.
        channel_fd: Where the agent hears its driver, which closes it if that is elsewhere.
        mark: The agent's mark.
        folder: The agent's temporary folder.
    """

    agent: int
    driver: int
    channel_fd: int
    mark: str
    folder: Path

    def __call__(self) -> None:
        """Wait; the process ends here."""

        def end(*_: object) -> None:
            if os.getppid() != self.agent:  # else the signal is for all, and the agent's business
                remove_traces(self.mark, self.folder)
                os._exit(0)

        signal.signal(signal.SIGTERM, end)
        die_with_parent(self.agent, signal.SIGTERM)
        self._wait_for_drivers_end()
        agent_fd = os.pidfd_open(self.agent)  # while it lives: this process ends when it does not
        if not select.select([agent_fd], [], [], _END_S)[0]:
            signal.pidfd_send_signal(agent_fd, signal.SIGKILL)
        while True:
            signal.pause()

    def _wait_for_drivers_end(self) -> None:
        if self.driver:
            with suppress(ProcessLookupError):
                select.select([os.pidfd_open(self.driver)], [], [])
            return
        hung_up = select.poll()
        hung_up.register(self.channel_fd, select.POLLRDHUP)
        hung_up.poll()


class Survivor:
    """A process that has only the last duty.

    Args:
        duty: The duty.
        close_fds: The agent's descriptors, which it must not hold.
    """

    def __init__(self, duty: Callable[[], None], close_fds: tuple[int, ...]) -> None:
        self._process: Any = mp.get_context("fork").Process(
            target=_stay, args=(duty, close_fds), name="survivor"
        )
        self._process.start()

    def stop(self) -> None:
        """End it; the attempt is over."""
        self._process.kill()
        self._process.join()
        self._process.close()


def _stay(duty: Callable[[], None], close_fds: tuple[int, ...]) -> None:
    for descriptor in close_fds:
        os.close(descriptor)
    duty()
