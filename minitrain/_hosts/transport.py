"""How a program is started on a host: a command before it that gives its standard streams.

::

    ssh OPTIONS -- node2 'PROGRAM ...'      the far end is a shell: one quoted string
    srun OPTIONS --nodelist=node2 PROGRAM ...
    docker exec -i node2 PROGRAM ...        a template: docker exec -i {host}

Nothing is started here.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from minitrain.exceptions import ConfigurationError

__all__ = ["KEEPALIVE_S", "Transport", "srun", "ssh", "transport_of"]

KEEPALIVE_S = 20.0
"""How long ssh waits for a sign of life from the other host, unless told otherwise."""

_PROBES = 4
_HOST = "{host}"
_SHELLS = frozenset({"plink", "rsh", "ssh"})
"""Programs that join their arguments with spaces and give them to a shell over there."""


@dataclass(frozen=True, slots=True)
class Transport:
    """A command prefix that starts a program on a host and gives its stdin and stdout.

    Attributes:
        template: Its words; ``{host}`` in them stands for the host.
        quotes: Whether the far end is a shell, so that the program must be one quoted string.
        by_hand: What a person would type to try it, where that is shorter.
    """

    template: tuple[str, ...]
    quotes: bool = False
    by_hand: tuple[str, ...] = ()

    def command(self, host: str, program: Sequence[str]) -> list[str]:
        """Return the command to run here that runs a program there."""
        prefix = [word.replace(_HOST, host) for word in self.template]
        return [*prefix, shlex.join(program)] if self.quotes else [*prefix, *program]

    def trial(self, host: str) -> str:
        """Return what to type to see whether a program can be started on a host."""
        words = self.by_hand or self.template
        return shlex.join([*(word.replace(_HOST, host) for word in words), "true"])


def ssh(options: Sequence[str] = (), keepalive_s: float = KEEPALIVE_S) -> Transport:
    """Return OpenSSH's own client: its config, agent, jump hosts and shared connections all work.

    Args:
        options: More options. They come first: ssh takes the first value it is given.
        keepalive_s: How long the other host may be silent before ssh ends.
    """
    ours = {
        "BatchMode": "yes",  # nobody is there to type a password
        "ConnectTimeout": "10",
        "ServerAliveInterval": f"{max(1, round(keepalive_s / _PROBES))}",
        "ServerAliveCountMax": f"{_PROBES}",
        "RemoteCommand": "none",  # one in the user's config would be refused beside ours
    }
    words = [word for name, value in ours.items() for word in ("-o", f"{name}={value}")]
    template = ("ssh", *options, "-T", *words, "--", _HOST)
    return Transport(template, quotes=True, by_hand=("ssh", *options, _HOST))


def srun() -> Transport:
    """Return Slurm's own launcher, for hosts of the allocation this process is in."""
    where = ("srun", "--nodes=1", "--ntasks=1", f"--nodelist={_HOST}")
    how = (
        "--overlap",  # beside the batch script and other steps
        "--cpu-bind=none",  # the agent's workers share the whole of what is allocated there
        "--unbuffered",  # otherwise what has no newline stays there
        "--export=PATH,HOME,USER,LOGNAME,SHELL,LANG",  # what else crosses is decided elsewhere
        "--quiet",
    )
    return Transport((*where, *how), by_hand=(*where, "--overlap"))


def transport_of(
    text: str, options: Sequence[str] = (), keepalive_s: float = KEEPALIVE_S
) -> Transport:
    """Return the transport that a text names: ``ssh``, ``srun`` or a command with ``{host}``.

    Args:
        text: The name or the command.
        options: For ``ssh``.
        keepalive_s: For ``ssh``.

    Raises:
        ConfigurationError: It is none of these.
    """
    if text == "ssh":
        return ssh(options, keepalive_s)
    if options:
        raise ConfigurationError(f"ssh_options={list(options)!r}: only for transport='ssh'")
    if text == "srun":
        return srun()
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigurationError(f"transport={text!r}: {error}") from error
    if not any(_HOST in word for word in words):
        allowed = "must be 'ssh', 'srun' or a command with {host}, as 'docker exec -i {host}'"
        raise ConfigurationError(f"transport={text!r}: {allowed}")
    return Transport(words, quotes=any(PurePath(word).name in _SHELLS for word in words))
