"""The orders that an attempt begins with: to fork its workers, and to train."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from minitrain import _env
from minitrain._driver.checkpoints import CheckpointKeeper
from minitrain._driver.home import Home
from minitrain._driver.job import Job
from minitrain._storage.layout import RunLayout
from minitrain._storage.rows import read_rows
from minitrain._wire.messages import Place, StartWorkers, Train

__all__ = ["start_order", "workers_order"]


def workers_order(
    job: Job,
    layout: RunLayout,
    payload: bytes,
    attempt: int,
    places: Sequence[Place],
    store_port: int,
) -> StartWorkers:
    """Return the order to fork the workers of an attempt, and make the directory of their logs.

    Args:
        job: The run's.
        layout: Its directory on this host.
        payload: What workers train with, pickled.
        attempt: The attempt's number.
        places: Where each worker stands.
        store_port: Where the rendezvous store listens.
    """
    log_dir = layout.logs(attempt)
    log_dir.mkdir(parents=True, exist_ok=True)
    here = os.getcwd()  # noqa: PTH109 - as a string, for the search path
    config = job.run_config
    own_variables = (config.worker_runtime_env or {}).get("env_vars", {})
    return StartWorkers(
        attempt=attempt,
        places=tuple(places),
        payload=payload,
        environ={**os.environ, **own_variables},
        own_variables=frozenset(own_variables),
        sys_path=_search_path(here),
        argv=tuple(sys.argv),
        working_dir=str(layout.artifacts) if _env.flag("MINITRAIN_CHDIR") else here,
        log_dir=str(log_dir),
        console_ranks=frozenset(place.rank for place in places if config.shows(place.rank)),
        cpus_per_worker=(job.scaling.resources_per_worker or {}).get("CPU"),
        store_address="127.0.0.1",
        store_port=store_port,
        run_id=job.run_id,
        max_restarts=max(0, job.failures.max_failures),
    )


def _search_path(here: str) -> tuple[str, ...]:
    """Return the module search path with its relative entries made absolute."""
    return tuple(os.path.join(here, entry) if entry else here for entry in sys.path)  # noqa: PTH118


def start_order(job: Job, home: Home, checkpoints: CheckpointKeeper) -> Train:
    """Return the order to train: where the run's reports and checkpoints have got to."""
    rows = read_rows(home.layout.rows)
    total_s = rows[-1].get("time_total_s", 0.0) if rows else 0.0
    checkpoint = checkpoints.newest() or job.resume_from
    pickled = pickle.dumps(checkpoint) if checkpoint is not None else None
    return Train(pickled, _iterations(rows), total_s)


def _iterations(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many reports a run has, also where some rows were lost with another host."""
    last = rows[-1].get("training_iteration") if rows else 0
    return max(len(rows), last) if isinstance(last, int) else len(rows)
