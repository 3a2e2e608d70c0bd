"""What this host can reach of an attempt's other hosts, found out before its workers need it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from minitrain._os.machine import first_reachable
from minitrain._wire.messages import Survey, Surveyed

__all__ = ["survey"]


def survey(order: Survey) -> Surveyed:
    """Look for the rendezvous store and for the run's directory."""
    address = first_reachable(order.addresses, order.port, order.timeout_s)
    problem = _problem_with(Path(order.folder), order.token) if order.folder else ""
    return Surveyed(order.attempt, address, problem)


def _problem_with(folder: Path, token: str) -> str:
    """Return why a directory is not the one in which the driver has put a file."""
    try:
        if not folder.is_dir():
            return "there is no such directory"
        if not (folder / token).exists():
            return "there is a directory of that name, but it is another one"
    except OSError as error:
        return f"it cannot be looked into: {error.strerror}"
    own = folder / f"{token}-{socket.gethostname()}-{os.getpid()}"
    try:
        own.write_bytes(b"")
        own.unlink()
    except OSError as error:
        return f"it cannot be written to: {error.strerror}"
    return ""
