"""Evidence of out-of-memory kills: the kernel's own counters.

The kernel counts a kill before it sends the signal, so whoever has seen the process end can read
the counter at once. References: Documentation/admin-guide/cgroup-v2.rst (``memory.events``) and
cgroup-v1/memory.rst (``memory.oom_control``) of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minitrain.exceptions import OomEvidence

__all__ = ["Cgroup", "OomCounter", "lowest_limit", "memory_cgroup", "oom_kills"]

_UNLIMITED_BYTES = 1 << 60
"""Version 1 says "unlimited" with the largest multiple of the page size."""
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The memory cgroup of this process.

    Attributes:
        mount: Where its hierarchy is mounted.
        name: Its path below, as ``/proc/self/cgroup`` has it.
        counter: The file that counts its kills.
        limit: The file with its limit.
    """

    mount: Path
    name: str
    counter: str
    limit: str

    @property
    def folder(self) -> Path:
        """Its directory."""
        return self.mount / self.name.lstrip("/")

    @property
    def lineage(self) -> list[Path]:
        """Its directory and those above: the limits of all of them hold."""
        own = self.folder
        return [own, *(one for one in own.parents if one.is_relative_to(self.mount))]


class OomCounter:
    """Counts the out-of-memory kills since it was made: in this process's cgroup, if it has one.

    Where cgroups cannot be read it counts those of the whole machine.
    """

    def __init__(self) -> None:
        self._cgroup = _own_cgroup()
        self._before = self._count()

    def evidence(self) -> OomEvidence | None:
        """Return what the kernel has counted since; None where it counts nothing."""
        now = self._count()
        if now is None or self._before is None:
            return None
        kills = now - self._before
        cgroup = self._cgroup
        if cgroup is None:
            return OomEvidence(str(_VMSTAT), kills, whole_machine=True)
        texts = (_text(folder / cgroup.limit) for folder in cgroup.lineage)
        return OomEvidence(f"{cgroup.counter} of {cgroup.name}", kills, lowest_limit(texts))

    def _count(self) -> int | None:
        cgroup = self._cgroup
        return oom_kills(_text(_VMSTAT if cgroup is None else cgroup.folder / cgroup.counter))


def _own_cgroup() -> Cgroup | None:
    cgroup = memory_cgroup(_text(Path("/proc/self/cgroup")), _text(Path("/proc/self/mountinfo")))
    # The root of version 2 counts nothing, nor does a kernel older than 4.13.
    if cgroup is None or oom_kills(_text(cgroup.folder / cgroup.counter)) is None:
        return None
    return cgroup


def memory_cgroup(cgroups: str, mounts: str) -> Cgroup | None:
    """Return the memory cgroup of a process; None if it has none that is mounted.

    Args:
        cgroups: Its ``/proc/PID/cgroup``: lines ``number:controllers:path``.
        mounts: Its ``/proc/PID/mountinfo``.
    """
    paths = {}
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    if "memory" in paths:
        place = _mounted(mounts, "cgroup", "memory", paths["memory"])
        return place and Cgroup(*place, "memory.oom_control", "memory.limit_in_bytes")
    if "" in paths:
        place = _mounted(mounts, "cgroup2", None, paths[""])
        return place and Cgroup(*place, "memory.events", "memory.max")
    return None


def _mounted(mounts: str, kind: str, controller: str | None, path: str) -> tuple[Path, str] | None:
    """Return where a hierarchy is mounted, and a path in it relative to that mount."""
    for line in mounts.splitlines():
        own, _, filesystem = line.partition(" - ")
        mounted_kind, _, options = filesystem.split(" ", 2)
        if mounted_kind == kind and (controller is None or controller in options.split(",")):
            root, mount = own.split(" ")[3:5]
            inside = Path(path).is_relative_to(root)
            # A container that was given only its own part of the hierarchy has that as the mount.
            name = "/" + str(Path(path).relative_to(root)).removeprefix(".") if inside else "/"
            return Path(mount), name
    return None


def oom_kills(text: str) -> int | None:
    """Return the count in any of the kernel's three files; None if it has none."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None


def lowest_limit(texts: Iterable[str]) -> int | None:
    """Return the lowest of the limits in files of the kernel; None if there is none."""
    limits = [int(text) for text in texts if text.strip().isdigit()]
    return min((limit for limit in limits if limit < _UNLIMITED_BYTES), default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
