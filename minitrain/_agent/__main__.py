"""Starts an agent: ``python -m minitrain._agent``, the channel on its standard input and output."""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from pathlib import Path

from minitrain._agent.agent import Agent
from minitrain._agent.preload import preload
from minitrain._wire.channel import Channel

_WATCH_PERIOD_S = 0.2


def main() -> None:
    """Run an agent until its driver is gone or sends it away."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", type=int, default=0, help="the driver's pid, if on this host")
    parser.add_argument("--folder", type=Path, required=True, help="for its temporary files")
    arguments = parser.parse_args()
    driver: int = arguments.driver
    channel = Channel(*_take_channel())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _leave_the_processor_to_workers()
    _watch_driver_while_importing(driver)
    preload(["torch", "minitrain._worker.main", "psutil", "threadpoolctl"])
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    Agent(channel, driver, arguments.folder).run()


def _leave_the_processor_to_workers() -> None:
    """Do not push a worker off its processor when it reports: what it said can wait a moment.

    Workers are forked with the usual scheduling.
    """
    with suppress(OSError):  # some sandboxes forbid it; it is only a matter of speed
        policy = os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(0))


def _take_channel() -> tuple[int, int]:
    """Move the channel away from standard input and output, which anything may read or print to."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return read_fd, write_fd


def _watch_driver_while_importing(driver: int) -> None:
    """End this process if the driver dies before anybody reads the channel."""
    if not driver:
        return

    def look(*_: object) -> None:
        if os.getppid() != driver:
            os._exit(1)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _WATCH_PERIOD_S, _WATCH_PERIOD_S)


if __name__ == "__main__":
    main()
