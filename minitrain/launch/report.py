"""What ``--check`` and ``--dry-run`` print."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from minitrain._hosts.check import Checked
from minitrain._hosts.code import pack
from minitrain._hosts.contact import BOOTSTRAP
from minitrain._hosts.crossing import crossing, is_secret
from minitrain._hosts.plan import Plan

__all__ = ["check_report", "dry_run_report"]

_HEAD = (
    "host",
    "reachable",
    "Python",
    "minitrain",
    "torch",
    "GPUs",
    "CPUs",
    "free memory",
    "clock",
    "storage",
)


def check_report(checked: Sequence[Checked]) -> str:
    """Return a table of hosts, and below it a sentence for each that cannot train."""
    rows = [_HEAD, *(_row(one) for one in checked)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    errors = [str(one.error) for one in checked if one.error is not None]
    return "\n".join([*lines, *([""] if errors else []), *errors]) + "\n"


def _row(checked: Checked) -> tuple[str, ...]:
    facts = checked.facts
    if facts is None:
        return (checked.host.name, "no", *("-" for _ in _HEAD[2:]))
    shares = {None: "-", True: "shared", False: "not shared"}[checked.shares_storage]
    versions = facts.versions
    return (
        checked.host.name,
        "yes",
        versions.python,
        _shown(versions.minitrain),
        _shown(versions.torch),
        ", ".join(f"{number} x {model}" for model, number in Counter(facts.gpus).items()) or "0",
        str(facts.num_cpus),
        f"{facts.free_bytes / 2**30:.1f} of {facts.total_bytes / 2**30:.1f} GiB",
        f"{round(facts.time_offset_s, 1) + 0.0:+.1f} s",
        shares,
    )


def _shown(version: str | None) -> str:
    return "none" if version is None else version or "yes"


def dry_run_report(plan: Plan, command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return what would be run where.

    Args:
        plan: Where and how.
        command: The user's script, as it would be run here.
        environ: The variables here.
    """
    lines = ["here:", f"  {shlex.join(command)}"]
    for host in plan.hosts:
        workers = "" if host.workers is None else f", at most {host.workers} workers"
        lines.append(f"{host.name}{workers}:")
        there = shlex.join(plan.command(host, BOOTSTRAP))
        lines.append("  (this machine)" if host.is_here else f"  {there}")
    if any(not host.is_here for host in plan.hosts):
        lines += ["sent to other hosts, on no command line:", *_sent(plan, environ)]
    return "\n".join(lines) + "\n"


def _sent(plan: Plan, environ: Mapping[str, str]) -> list[str]:
    variables = crossing(environ, plan.env)
    lines = [f"  {name}={_value(name, value)}" for name, value in sorted(variables.items())]
    if plan.sync_code:
        folder = Path.cwd()
        lines.append(f"  the code in {folder}: {len(pack(folder)):,} bytes, compressed")
    return lines


def _value(name: str, value: str) -> str:
    return f"({len(value)} characters, not shown)" if is_secret(name) else shlex.quote(value)
