"""Where a run goes and how: what was configured, else what the environment says."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from minitrain import _env
from minitrain._hosts.spec import Host, parse_hosts
from minitrain._hosts.transport import KEEPALIVE_S, Transport, ssh, transport_of
from minitrain.config import LaunchConfig, ScalingConfig
from minitrain.exceptions import ConfigurationError

__all__ = ["Plan", "plan_of"]


@dataclass(frozen=True)
class Plan:
    """Where a run goes, and how.

    Attributes:
        hosts: The hosts in the order of their ranks; none: this machine only.
        transport: What starts a program on them.
        python: The Python there.
        env: Names of variables that cross besides the usual ones.
        working_dir: The working directory there; None: the driver's, where that exists.
        sync_code: Whether the working directory is copied there.
        collect: Whether what they write is brought here.
        from_environment: Whether the hosts were given outside the script.
    """

    hosts: tuple[Host, ...] = ()
    transport: Transport = field(default_factory=ssh)
    python: str = sys.executable
    env: tuple[str, ...] = ()
    working_dir: str | None = None
    sync_code: bool = False
    collect: bool = False
    from_environment: bool = False

    @property
    def num_workers(self) -> int | None:
        """How many workers were asked for outside the script, if every host has a number."""
        if not self.from_environment:
            return None
        counts = [host.workers for host in self.hosts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def command(self, host: Host, program: Sequence[str]) -> list[str]:
        """Return the command to run here that runs Python there, with arguments."""
        if host.is_here:
            return [sys.executable, *program]
        return self.transport.command(host.name, [self.python, *program])

    def python_on(self, host: Host) -> str:
        """Return the path of the Python of a host."""
        return sys.executable if host.is_here else self.python


def plan_of(scaling: ScalingConfig, launch: LaunchConfig, keepalive_s: float = KEEPALIVE_S) -> Plan:
    """Return where a run goes.

    Args:
        scaling: Names the hosts, or leaves that to the environment.
        launch: Likewise how they are reached.
        keepalive_s: How long a host may be silent before its transport ends.

    Raises:
        ConfigurationError: Something given is wrong; the message names it.
    """
    given = parse_hosts(scaling.hosts) if scaling.hosts is not None else ()
    named = _env.text("MINITRAIN_HOSTS").strip()
    hosts = given or (_named(named) if named else ())
    transport = launch.transport or _env.text("MINITRAIN_TRANSPORT")
    options = tuple(launch.ssh_options)
    if not options and launch.transport in {None, "ssh"}:  # they are not for a script's own way
        options = _words(_env.text("MINITRAIN_SSH_OPTIONS"))
    working_dir = launch.working_dir or _env.text("MINITRAIN_REMOTE_WORKDIR") or None
    return Plan(
        hosts=_with_counts(hosts),
        transport=transport_of(transport, options, keepalive_s),
        python=launch.python or _env.text("MINITRAIN_REMOTE_PYTHON") or sys.executable,
        env=(*launch.env, *_env.text("MINITRAIN_REMOTE_ENV").replace(",", " ").split()),
        working_dir=None if working_dir is None else os.fspath(working_dir),
        sync_code=_env.flag("MINITRAIN_SYNC_CODE")
        if launch.sync_code is None
        else launch.sync_code,
        collect=_env.flag("MINITRAIN_COLLECT") if launch.collect is None else launch.collect,
        from_environment=not given and bool(hosts),
    )


def _named(text: str) -> tuple[Host, ...]:
    try:
        return parse_hosts(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"MINITRAIN_HOSTS={text!r}: {error}") from None


def _with_counts(hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    text = _env.text("MINITRAIN_WORKERS_PER_HOST").strip()
    if not text:
        return hosts
    if not text.isdecimal() or int(text) < 1:
        allowed = "must be an integer >= 1"
        raise ConfigurationError(f"MINITRAIN_WORKERS_PER_HOST={text!r}: {allowed}")
    count = int(text)
    return tuple(host if host.workers else replace(host, workers=count) for host in hosts)


def _words(options: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(options))
    except ValueError as error:
        raise ConfigurationError(f"MINITRAIN_SSH_OPTIONS={options!r}: {error}") from error
