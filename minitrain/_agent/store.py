"""The rendezvous store: a ``TCPStore`` in a process of its own.

It runs a thread, and a process with threads is not safe to fork; so the agent forks it and stays
without. The socket is bound before the fork: its port is the kernel's choice, nobody else can
take it in between, and a worker may connect before the store has even begun. It is an IPv4
socket: the one ``TCPStore`` would open listens dual-stack, and the reverse lookup of an address
like ``::ffff:127.0.0.1`` stalls every connection for seconds where that name does not resolve.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from minitrain._os.processes import die_with_parent, remove_traces

__all__ = ["Store"]

_BACKLOG = 4096
_END_S = 1.5
"""How long an agent may take to end after its driver."""


class Store:
    """A rendezvous store that is being served.

    Its process has a second duty: should the agent be killed, and the driver with it, it is the
    one that is left to remove their traces.

    Args:
        address: The address to listen on; ``127.0.0.1`` if all workers are on this host.
        close_fds: The agent's descriptors, which the store's process must not hold.
        mark: The agent's mark.
        folder: The agent's temporary folder.
        driver: The driver's process id if it is on this host, else 0.
    """

    def __init__(
        self, address: str, close_fds: tuple[int, ...], mark: str, folder: Path, driver: int
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(_BACKLOG)
            self.port: int = listener.getsockname()[1]
            last_duty = partial(_survive, os.getpid(), driver, mark, folder)
            self._process: Any = mp.get_context("fork").Process(
                target=_serve, args=(listener, close_fds, last_duty), name="store"
            )
            self._process.start()

    def stop(self) -> None:
        """End it; nobody uses it any more."""
        self._process.kill()
        self._process.join()
        self._process.close()


def _serve(
    listener: socket.socket, close_fds: tuple[int, ...], last_duty: Callable[[], None]
) -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    for descriptor in close_fds:
        os.close(descriptor)
    address, port = listener.getsockname()
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    last_duty()
    del store


def _survive(agent_pid: int, driver_pid: int, mark: str, folder: Path) -> None:
    """Wait for the agent's death, which it may not notice itself, and remove its traces.

    An agent that outlives its driver has been stopped, and is killed.
    """

    def end(*_: object) -> None:
        if os.getppid() != agent_pid:  # else it is a signal for everybody, and the agent's business
            remove_traces(mark, folder)
            os._exit(0)

    signal.signal(signal.SIGTERM, end)
    die_with_parent(agent_pid, signal.SIGTERM)
    if driver_pid:
        with suppress(ProcessLookupError):
            select.select([os.pidfd_open(driver_pid)], [], [])
        agent_fd = os.pidfd_open(agent_pid)  # while it lives: this process ends when it does not
        if not select.select([agent_fd], [], [], _END_S)[0]:
            signal.pidfd_send_signal(agent_fd, signal.SIGKILL)
    while True:
        signal.pause()
