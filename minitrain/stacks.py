"""What the workers of a running run are doing: ``python -m minitrain.stacks RUN_DIR``.

Training goes on undisturbed. It works from another terminal, and for workers in a deadlock.
``minitrain.stacks`` is this module, and calling it calls :func:`stacks`.
"""

from __future__ import annotations

import argparse
import os
import pwd
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from minitrain._os.stacks import stacks_of
from minitrain._storage.files import write_bytes
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import RunRecord

__all__ = ["stacks"]

_TIMEOUT_S = 5.0


def stacks(run_dir: str | os.PathLike[str]) -> dict[int, str]:
    """Return the Python stacks of a running run's workers, every thread of each.

    They are also written next to the workers' logs. A worker that cannot answer, because it is
    stopped for one, has that in its text; so has one on another host, where one has to ask.

    Args:
        run_dir: The run's directory.

    Returns:
        A text per rank, as a traceback has it: most recent call last.

    Raises:
        RuntimeError: There is no run, it does not run, or its workers are out of reach.
    """
    layout = RunLayout(Path(run_dir).expanduser().absolute())
    record = _record(layout)
    _require_running(record, layout.root)
    pids = _pids_here(record.attempts[-1].workers)
    _require_permission(pids)
    texts = stacks_of(pids.values(), _TIMEOUT_S)
    by_rank = {rank: texts[pid] for rank, pid in pids.items()}
    for rank, text in by_rank.items():
        with suppress(OSError):  # a full disk must not hide them
            write_bytes(layout.stacks(len(record.attempts) - 1, rank), text.encode())
    elsewhere = _hosts_elsewhere(record.attempts[-1].workers)
    remarks = {rank: f"which is on {host}: ask there" for rank, host in elsewhere.items()}
    return dict(sorted({**by_rank, **remarks}.items()))


def _record(layout: RunLayout) -> RunRecord:
    try:
        return RunRecord.load(layout)
    except FileNotFoundError:
        raise RuntimeError(
            f"{layout.root} is not the folder of a run: it has no {layout.record.name}"
        ) from None
    except PermissionError:
        raise RuntimeError(f"not permitted: {layout.record} may not be read by this user") from None


def _require_running(record: RunRecord, root: Path) -> None:
    if record.status != "running":
        raise RuntimeError(f"{root.name} is not running: it has {record.status}")
    driver = record.driver
    if driver["hostname"] == socket.gethostname() and not record.driver_is_alive:
        raise RuntimeError(
            f"{root.name} is not running: its driver (pid {driver['pid']}) was killed"
        )
    if not record.attempts or record.attempts[-1].ended or not record.attempts[-1].workers:
        raise RuntimeError(
            f"{root.name} has no workers at the moment: they are being started, or it trains in "
            f"the driver's own process (pid {driver['pid']})"
        )


def _pids_here(workers: list[dict[str, object]]) -> dict[int, int]:
    """Return the process ids of a run's workers by rank, as far as they are on this host."""
    elsewhere = _hosts_elsewhere(workers)
    pids = {int(str(worker["rank"])): int(str(worker["pid"])) for worker in workers}
    if len(elsewhere) == len(pids):
        hosts = ", ".join(sorted(set(elsewhere.values())))
        raise RuntimeError(
            f"workers run on {hosts}, and this is {socket.gethostname()}: run it there"
        )
    return {rank: pid for rank, pid in pids.items() if rank not in elsewhere}


def _hosts_elsewhere(workers: list[dict[str, object]]) -> dict[int, str]:
    """Return the hosts of those workers, by rank, that are not on this one."""
    hosts = {int(str(worker["rank"])): str(worker["hostname"]) for worker in workers}
    return {rank: host for rank, host in hosts.items() if host != socket.gethostname()}


def _require_permission(pids: dict[int, int]) -> None:
    for rank, pid in pids.items():
        with suppress(FileNotFoundError):  # it has ended, which its text will say
            owner = Path(f"/proc/{pid}").stat().st_uid
            if os.geteuid() not in {0, owner}:
                raise RuntimeError(
                    f"not permitted: rank {rank} (pid {pid}) belongs to {_user(owner)}, so only "
                    f"{_user(owner)} and root may look"
                )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


class _CallableModule(ModuleType):
    """Lets the function and the command share a name: importing the one would hide the other."""

    def __call__(self, run_dir: str | os.PathLike[str]) -> dict[int, str]:
        return stacks(run_dir)


sys.modules[__name__].__class__ = _CallableModule


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minitrain.stacks", description="Print what a run's workers are doing."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the run's directory")
    try:
        by_rank = stacks(parser.parse_args().run_dir)
    except RuntimeError as error:
        parser.exit(1, f"minitrain: {error}\n")
    sys.stdout.writelines(f"=== rank {rank}, {text.rstrip()}\n\n" for rank, text in by_rank.items())


if __name__ == "__main__":
    _main()
