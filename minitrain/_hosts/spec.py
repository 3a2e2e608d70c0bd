"""Which hosts: read from a line, a file, or Slurm. Nothing is contacted here."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minitrain.exceptions import ConfigurationError

__all__ = ["Host", "parse_hosts", "read_hostfile", "slurm_hosts"]

_HOST = re.compile(
    r"(?P<user>[^\s@\[\]:]+@)?(?:\[(?P<ip>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<name>[^\s\[\]:,;@-][^\s\[\]:,;@]*))"
    r"(?::(?P<workers>[^:]*))?"
)
_SCONTROL_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Host:
    """One host.

    Attributes:
        name: As the transport wants it: ``node1``, ``user@node1``, ``10.0.0.7``.
        workers: How many workers it takes at most; None: that is not said.
    """

    name: str
    workers: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, where nothing needs a transport."""
        own = socket.gethostname()
        return self.name in {"localhost", "127.0.0.1", "::1", own, own.partition(".")[0]}

    def __str__(self) -> str:
        """Return it as :func:`parse_hosts` reads it."""
        user, at, name = self.name.rpartition("@")
        text = f"{user}{at}[{name}]" if ":" in name else self.name
        return text if self.workers is None else f"{text}:{self.workers}"


def parse_hosts(given: str | Sequence[str | Host]) -> tuple[Host, ...]:
    """Return the hosts that a line or a list names.

    Raises:
        ConfigurationError: There is none, one is named twice, or one is not a host.

    >>> parse_hosts("a,user@b:2,[fe80::7]:4")
    (Host(name='a', workers=None), Host(name='user@b', workers=2), Host(name='fe80::7', workers=4))
    """
    parts = given.split(",") if isinstance(given, str) else given
    hosts = [part if isinstance(part, Host) else _host(part.strip()) for part in parts]
    if not hosts:
        raise ConfigurationError(f"hosts={given!r}: must name a host")
    seen: set[str] = set()
    for host in hosts:
        if host.name in seen:
            raise ConfigurationError(
                f"hosts: {host.name!r} is named twice; {host.name}:2 gives a host two workers"
            )
        seen.add(host.name)
    return tuple(hosts)


def _host(text: str) -> Host:
    match = _HOST.fullmatch(text)
    if match is None:
        allowed = "must be like 'node1', 'user@node1:4' or '[fe80::7]:4'"
        if not text:
            allowed = "a name is missing; they stand with commas and no spaces, as in 'a,b:2'"
        if text.count(":") > 1:
            allowed = "an IPv6 address stands in brackets, as in '[fe80::7]:4'"
        raise ConfigurationError(f"hosts: {text!r}: {allowed}")
    name = (match["user"] or "") + (match["ip"] or match["name"])
    return Host(name, None if match["workers"] is None else _count(text, match["workers"]))


def _count(where: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        allowed = "the number of workers must be an integer >= 1"
        raise ConfigurationError(f"hosts: {where!r}: {allowed}")
    return int(text)


def read_hostfile(path: str | Path) -> tuple[Host, ...]:
    """Return the hosts of a file: one a line, ``node1``, ``node1:4`` or ``node1 slots=4``.

    Raises:
        ConfigurationError: It cannot be read, or a line is none of these.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"hostfile {path} cannot be read: {error}") from error
    hosts = []
    for number, line in enumerate(lines, 1):
        text, *rest = line.partition("#")[0].split() or [""]
        if not text:
            continue
        slots = [word.removeprefix("slots=") for word in rest if word.startswith("slots=")]
        if len(rest) > len(slots) or len(slots) > 1 or (slots and _host(text).workers is not None):
            allowed = "must be like 'node1', 'node1:4' or 'node1 slots=4'"
            raise ConfigurationError(f"hostfile {path}, line {number}: {line.strip()!r}: {allowed}")
        hosts.append(_host(":".join([text, *slots])))
    if not hosts:
        raise ConfigurationError(f"hostfile {path}: names no host")
    return parse_hosts(hosts)


def slurm_hosts(environ: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the nodes of the Slurm allocation that an environment is in; None outside one.

    Raises:
        ConfigurationError: Slurm does not say which they are.
    """
    nodes = environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        return None
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],  # noqa: S607 - where Slurm is depends on the site
            capture_output=True,
            text=True,
            check=True,
            env=dict(environ),
            timeout=_SCONTROL_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, "stderr", None) or str(error)).strip()
        raise ConfigurationError(
            f"SLURM_JOB_NODELIST={nodes!r}: `scontrol show hostnames` failed: {words}; "
            "name the hosts with --hosts"
        ) from error
    return parse_hosts(shown.stdout.split())
