"""The orders that an attempt begins with: to fork its workers, and to train."""

from __future__ import annotations

import os
import pickle
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitrain import _env
from minitrain._driver.checkpoints import CheckpointKeeper
from minitrain._driver.fleet import Fleet
from minitrain._driver.home import Home
from minitrain._driver.job import Job
from minitrain._hosts.crossing import crossing
from minitrain._storage.rows import read_rows
from minitrain._wire.messages import Payload, Place, StartWorkers, TakeCode, Train

__all__ = ["Seen", "Start", "start_order", "worker_orders"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the hosts of an attempt have found out.

    Attributes:
        store: The rendezvous store's address, as each host reaches it.
        folder_by: The hosts, besides this one, that see the run's directory.
    """

    store: Mapping[int, str]
    folder_by: frozenset[int]


@dataclass(frozen=True, slots=True)
class Start:
    """What the orders for all hosts of an attempt have in common.

    Attributes:
        job: The run's.
        home: Where it is.
        attempt: The attempt's number.
        port: The rendezvous store's.
        train: What workers train with, pickled.
    """

    job: Job
    home: Home
    attempt: int
    port: int
    train: bytes


def worker_orders(
    start: Start, fleet: Fleet, placed: Mapping[int, Sequence[Place]], seen: Seen
) -> dict[int, list[Any]]:
    """Return the orders to fork the workers of an attempt, by host.

    Args:
        start: What they have in common.
        fleet: The hosts.
        placed: Where each worker stands, by host.
        seen: What the hosts have found out.
    """
    job, layout = start.job, start.home.layout
    log_dir = layout.logs(start.attempt)
    log_dir.mkdir(parents=True, exist_ok=True)
    payload = pickle.dumps(Payload(start.train, job.facts(start.home)))
    own_variables = (job.run_config.worker_runtime_env or {}).get("env_vars", {})
    shows = job.run_config.shows
    environ_here, environ_there = dict(os.environ), crossing(os.environ, job.plan.env)
    path_here = _search_path()
    path_there = _users_part(path_here)
    orders: dict[int, list[Any]] = {}
    for host, own in placed.items():
        if not own:
            continue
        is_here = fleet.hosts[host].is_here
        environ = environ_here if is_here else environ_there
        order = StartWorkers(
            attempt=start.attempt,
            places=tuple(own),
            payload=payload,
            environ={**environ, **own_variables},
            own_variables=frozenset(own_variables),
            sys_path=path_here if is_here else path_there,
            argv=tuple(sys.argv),
            working_dir=_working_dir(start, has_run=is_here or host in seen.folder_by),
            code_from=_here() if job.code and not is_here else "",
            log_dir=str(log_dir) if is_here else "",
            console_ranks=frozenset(
                place.rank for place in own if shows(place.rank) or not is_here
            ),
            cpus_per_worker=(job.scaling.resources_per_worker or {}).get("CPU"),
            store_address=seen.store[host],
            store_port=start.port,
            run_id=job.run_id,
            max_restarts=max(0, job.failures.max_failures),
            files=job.collects,
        )
        code = [TakeCode(job.code)] if order.code_from else []
        orders[host] = [*code, order]
    return orders


def _here() -> str:
    return os.getcwd()  # noqa: PTH109 - as a string, for the search path


def _working_dir(start: Start, *, has_run: bool) -> str:
    """Return where workers start; empty: in a folder of their host's agent."""
    if not _env.flag("MINITRAIN_CHDIR"):
        return _here() if start.job.plan.working_dir is None else start.job.plan.working_dir
    return str(start.home.layout.artifacts) if has_run else ""


def _search_path() -> tuple[str, ...]:
    """Return the module search path with its relative entries made absolute."""
    here = _here()
    return tuple(os.path.join(here, entry) if entry else here for entry in sys.path)  # noqa: PTH118


def _users_part(path: Sequence[str]) -> tuple[str, ...]:
    """Return a search path without what belongs to this host's Python."""
    of_python = {Path(folder) for folder in (*sysconfig.get_paths().values(), sys.base_prefix)}
    return tuple(
        entry
        for entry in path
        if not any(Path(entry).is_relative_to(folder) for folder in of_python)
        and not entry.endswith(".zip")
    )


def start_order(
    job: Job, home: Home, checkpoints: CheckpointKeeper, *, writes_rows: bool = True
) -> Train:
    """Return the order to train: where the run's reports and checkpoints have got to.

    Args:
        job: The run's.
        home: Where it is.
        checkpoints: What it has.
        writes_rows: Whether rank 0 is on this host, and writes its reports down itself.
    """
    rows = read_rows(home.layout.rows)
    total_s = rows[-1].get("time_total_s", 0.0) if rows else 0.0
    checkpoint = checkpoints.newest() or job.resume_from
    pickled = None
    if checkpoint is not None:
        pickled = pickle.dumps(job.as_workers_reach_it(home, checkpoint))
    path = str(home.layout.rows) if writes_rows else ""
    return Train(pickled, _iterations(rows), total_s, path, checkpoints.resume_positions())


def _iterations(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many reports a run has, also where some rows were lost with another host."""
    last = rows[-1].get("training_iteration") if rows else 0
    return max(len(rows), last) if isinstance(last, int) else len(rows)
