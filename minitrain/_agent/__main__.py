"""Starts an agent: ``python -m minitrain._agent``, the channel on its standard input and output."""

from __future__ import annotations

import argparse
import os
import select
import signal
from contextlib import suppress

from minitrain._agent.preload import preload
from minitrain._wire.channel import Channel

_WATCH_PERIOD_S = 0.2


def main() -> None:
    """Run an agent until its driver is gone or sends it away."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", type=int, default=0, help="the driver's pid, if on this host")
    parser.add_argument("--name", required=True, help="what the driver calls it")
    parser.add_argument(
        "--silence",
        type=float,
        default=0.0,
        help="seconds the driver may say nothing, if elsewhere",
    )
    arguments = parser.parse_args()
    driver: int = arguments.driver
    channel = Channel(*_take_channel())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of a terminal's end; the channel's end counts
    _leave_the_processor_to_workers()
    _watch_driver_while_importing(driver, channel)
    preload(["torch", "minitrain._worker.main", "psutil", "threadpoolctl"])
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    from minitrain._agent.agent import Agent  # not before: it imports torch, and nobody watched

    Agent(channel, arguments.name, driver, arguments.silence).run()


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


def _watch_driver_while_importing(driver: int, channel: Channel) -> None:
    """End this process if the driver dies before anybody reads the channel."""
    hung_up = select.poll()
    hung_up.register(channel.read_fd, select.POLLRDHUP)

    def look(*_: object) -> None:
        if hung_up.poll(0) or (driver and os.getppid() != driver):
            os._exit(1)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _WATCH_PERIOD_S, _WATCH_PERIOD_S)


if __name__ == "__main__":
    main()
