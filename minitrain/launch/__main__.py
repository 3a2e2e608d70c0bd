"""Runs a script over hosts: ``python -m minitrain.launch --hosts node1,node2 train.py``.

It sets the variables that tell ``fit()`` where to train, and becomes the script: the same process,
so that signals, the terminal and the exit status are the script's own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from minitrain import _env
from minitrain._hosts.plan import Plan, plan_of
from minitrain._hosts.spec import Host, parse_hosts, read_hostfile, slurm_hosts
from minitrain.config import LaunchConfig, ScalingConfig
from minitrain.exceptions import ConfigurationError

__all__ = ["main"]

_INTERRUPTED = 128 + signal.SIGINT
"""As a shell reports it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit status if it is not the script's."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.command or options.check):
        parser.error("name a script, or --check")
    try:
        os.environ.update(variables(options, os.environ))
        plan = plan_of(ScalingConfig(), LaunchConfig())
        if options.check:
            return _check(plan, options.storage)
        _require_script(options)
        command = [sys.executable, *(["-m"] if options.module else []), *options.command]
        if options.dry_run:
            from minitrain.launch.report import dry_run_report

            _print(dry_run_report(plan, command, os.environ))
            return 0
    except ConfigurationError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return _INTERRUPTED
    return os.execv(sys.executable, command)  # noqa: S606 - no shell is the point


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minitrain.launch",
        usage="%(prog)s [OPTION ...] SCRIPT [ARG ...]",
        description="Run a training script over several hosts, or on this one.",
        epilog="Inside a Slurm allocation its nodes are used if no others are named. The run's "
        "directory must be one that all hosts see, or use --collect.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
    )
    command = parser.add_argument(
        "command", metavar="SCRIPT", nargs=argparse.PARSER, help="what to run, and its arguments"
    )
    command.required = False  # --check needs none
    hosts = parser.add_argument_group("which hosts")
    where = hosts.add_mutually_exclusive_group()
    where.add_argument("--hosts", help="as a,b:2; a number says how many workers a host takes")
    where.add_argument("--hostfile", metavar="FILE", help="one host a line: a, a:2 or a slots=2")
    where.add_argument("--slurm", action="store_true", help="the nodes of this allocation")
    hosts.add_argument("--workers-per-host", metavar="N", help="for hosts that have no number")
    way = parser.add_argument_group("how they are reached")
    way.add_argument(
        "--transport",
        metavar="COMMAND",
        help="ssh, srun, or a command with {host}: 'docker exec -i {host}'",
    )
    way.add_argument("--ssh-options", metavar="OPTIONS", help="as in --ssh-options='-p 2222'")
    way.add_argument("--python", metavar="PATH", help="the Python there; by default this one's")
    goods = parser.add_argument_group("what goes there, and what comes back")
    goods.add_argument(
        "--env",
        metavar="PATTERN",
        action="append",
        help="variables that go there, too: WANDB_*; secrets only if named in full",
    )
    goods.add_argument("--workdir", metavar="DIR", help="the working directory there")
    goods.add_argument("--sync-code", action="store_true", help="copy this directory there")
    goods.add_argument("--collect", action="store_true", help="bring all hosts' checkpoints here")
    instead = parser.add_argument_group("instead of training")
    instead.add_argument("--check", action="store_true", help="look at all hosts, start nothing")
    instead.add_argument(
        "--storage", metavar="PATH", help="what --check looks for; by default $MINITRAIN_STORAGE"
    )
    instead.add_argument("--dry-run", action="store_true", help="print what would be run where")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module's name")
    return parser


def _require_script(options: argparse.Namespace) -> None:
    if not options.command or options.module or Path(options.command[0]).exists():
        return
    script, *others = options.command
    advice = ""
    if options.hosts is not None and any(name.endswith(".py") for name in others):
        advice = f"; several hosts are written with commas: --hosts {options.hosts},{script}"
    raise ConfigurationError(f"SCRIPT: there is no file {script!r} here{advice}")


def variables(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that say what the options do.

    Args:
        options: Of the command line.
        environ: The variables there are.

    Raises:
        ConfigurationError: The hosts cannot be found out.
    """
    hosts, transport = _hosts(options, environ)
    given = {
        "MINITRAIN_HOSTS": ",".join(map(str, hosts)),
        "MINITRAIN_TRANSPORT": transport,
        "MINITRAIN_WORKERS_PER_HOST": options.workers_per_host,
        "MINITRAIN_REMOTE_PYTHON": options.python,
        "MINITRAIN_REMOTE_ENV": ",".join(options.env or ()),
        "MINITRAIN_REMOTE_WORKDIR": options.workdir,
        "MINITRAIN_SSH_OPTIONS": options.ssh_options,
        "MINITRAIN_SYNC_CODE": "1" if options.sync_code else None,
        "MINITRAIN_COLLECT": "1" if options.collect else None,
    }
    return {name: value for name, value in given.items() if value}


def _hosts(
    options: argparse.Namespace, environ: Mapping[str, str]
) -> tuple[tuple[Host, ...], str | None]:
    """Return the hosts, and what reaches them if they say so themselves."""
    if options.hosts is not None:
        return parse_hosts(options.hosts), options.transport
    if options.hostfile is not None:
        return read_hostfile(options.hostfile), options.transport
    if options.slurm or not environ.get("MINITRAIN_HOSTS"):
        nodes = slurm_hosts(environ)
        if nodes is not None:
            return nodes, options.transport or "srun"
        if options.slurm:
            raise ConfigurationError("--slurm: this is no Slurm allocation; salloc makes one")
        if options.workers_per_host:
            return (Host("localhost"),), options.transport
    return (), options.transport


def _check(plan: Plan, storage: str | None) -> int:
    from minitrain._hosts.check import check_hosts
    from minitrain.launch.report import check_report

    path = storage or _env.text("MINITRAIN_STORAGE")
    is_looked_for = "://" not in path and not plan.collect
    deadline_s = _env.seconds("MINITRAIN_START_TIMEOUT_S")
    if not plan.hosts:
        plan = replace(plan, hosts=(Host("localhost"),))
    try:
        checked = check_hosts(plan, deadline_s, Path(path).expanduser() if is_looked_for else None)
    except OSError as error:
        raise ConfigurationError(f"storage {path}: cannot be written to here: {error}") from error
    _print(check_report(checked))
    return 1 if any(one.error for one in checked) else 0


def _print(text: str) -> None:
    sys.stdout.write(text)


if __name__ == "__main__":
    sys.exit(main())
