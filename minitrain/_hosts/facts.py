"""What a host says of itself when a program starts there, and what this machine has."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

__all__ = ["HostFacts", "Versions", "own_versions", "read_facts"]


@dataclass(frozen=True, slots=True)
class Versions:
    """What must be equal on all hosts.

    Attributes:
        python: Such as ``3.11.7``.
        minitrain: "": it is there, but was not installed; None: it is not there.
        torch: Likewise.
    """

    python: str
    minitrain: str | None
    torch: str | None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host said of itself.

    Attributes:
        hostname: What it calls itself.
        executable: The Python that runs there.
        versions: That Python's, and of what it finds.
        num_cpus: Processors that a program may use.
        gpus: The models of its GPUs.
        free_bytes: Memory that is available.
        total_bytes: All memory.
        time_offset_s: How much its clock is ahead of this one, to within the time of a message.
        address: The address that ssh reached it at; None by other ways.
    """

    hostname: str
    executable: str
    versions: Versions
    num_cpus: int
    gpus: tuple[str, ...]
    free_bytes: int
    total_bytes: int
    time_offset_s: float
    address: str | None


def read_facts(line: bytes, now_s: float) -> HostFacts:
    """Return what a host said.

    Args:
        line: The line it sent, without its marker.
        now_s: The time here when it arrived.

    Raises:
        ValueError: That is none.
    """
    said = json.loads(line)
    try:
        return HostFacts(
            hostname=said["hostname"],
            executable=said["executable"],
            versions=Versions(said["python"], said["minitrain"], said["torch"]),
            num_cpus=said["num_cpus"],
            gpus=tuple(said["gpus"]),
            free_bytes=said["free_bytes"],
            total_bytes=said["total_bytes"],
            time_offset_s=said["time_s"] - now_s,
            address=said["address"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a greeting: {line[:200]!r}") from error


@cache
def own_versions() -> Versions:
    """Return what is installed here; nothing is imported for it."""
    return Versions(platform.python_version(), _version("minitrain"), _version("torch"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None if find_spec(package) is None else ""
