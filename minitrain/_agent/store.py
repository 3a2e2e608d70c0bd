"""The rendezvous store: a ``TCPStore`` in a process of its own.

It runs a thread, and a process with threads is not safe to fork; so the agent forks it and stays
without. The socket is bound before the fork: its port is the kernel's choice, nobody else can
take it in between, and a worker may connect before the store has even begun. It is an IPv4
socket: the one ``TCPStore`` would open listens dual-stack, and the reverse lookup of an address
like ``::ffff:127.0.0.1`` stalls every connection for seconds where that name does not resolve.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

__all__ = ["Store"]

_BACKLOG = 4096


class Store:
    """A rendezvous store that is being served.

    Args:
        address: The address to listen on; ``127.0.0.1`` if all workers are on this host.
        close_fds: The agent's descriptors, which the store's process must not hold.
        stay: What its process does while the store's thread serves, for ever: a survivor's duty.
    """

    def __init__(self, address: str, close_fds: tuple[int, ...], stay: Callable[[], None]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(_BACKLOG)
            self.port: int = listener.getsockname()[1]
            self._process: Any = mp.get_context("fork").Process(
                target=_serve, args=(listener, close_fds, stay), name="store"
            )
            self._process.start()

    def stop(self) -> None:
        """End it; nobody uses it any more."""
        self._process.kill()
        self._process.join()
        self._process.close()


def _serve(listener: socket.socket, close_fds: tuple[int, ...], stay: Callable[[], None]) -> None:
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
    stay()
    del store
