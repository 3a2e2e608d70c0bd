"""Which run a launch is about: a new one, or one that the launcher has started again."""

from __future__ import annotations

import os
import re
import socket

from minitrain import _env
from minitrain._driver.home import Home, find, make, newest_record
from minitrain._driver.job import Job
from minitrain._logging import logger
from minitrain._os.launchers import Launched
from minitrain._os.processes import began_at
from minitrain._storage.files import write_bytes
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import RunRecord
from minitrain._storage.resolve import Location, resolve
from minitrain.exceptions import ConfigurationError

__all__ = ["find_run", "location_of", "make_run", "name_of_launch"]


def name_of_launch(launched: Launched, number: int) -> str:
    """Return what tells a run of this launch from all others, also when it is started again.

    Args:
        launched: What the launcher says.
        number: How many runs this process has had before.
    """
    launch_id = launched.launch_id
    if not launch_id:  # its processes come from the same parent, torchrun's agent for one
        parent = os.getppid()
        launch_id = f"{socket.gethostname()}:{parent}:{began_at(parent)}"
    return f"{launched.kind}/{launch_id}/{number}"


def location_of(job: Job, launched: Launched) -> Location:
    """Return where the job's runs are.

    Raises:
        ConfigurationError: There is no such place, or only this process would see it.
    """
    config = job.run_config
    given = config.storage_path or _env.text("MINITRAIN_STORAGE")
    return resolve(given, config.storage_filesystem, one_process=launched.world_size == 1)


def find_run(job: Job, launched: Launched, launch: str) -> Home | None:
    """Return the run to go on with; None if there is none.

    It is the one that an earlier start of the same launch has begun. A launcher may not say that
    it has started something again (a pod in Kubernetes does not): then it is the newest run of
    the name the user gave, if that is not over and nobody is known to train it.

    Args:
        job: What is to be done.
        launched: What the launcher says.
        launch: What tells its run from others.
    """
    name = job.run_config.name
    if name is None and not launched.restart_count:
        return None
    runs = _runs(location_of(job, launched), job)
    if launched.restart_count:
        for home, record in runs:
            if record.launch == launch:
                return home
    if name is None or not runs:
        return None
    home, record = runs[-1]
    if record.is_over or record.driver_is_alive:
        return None
    logger.info("%s: it is not over; going on with it", home.storage.root)
    return home


def _runs(location: Location, job: Job) -> list[tuple[Home, RunRecord]]:
    """Return the runs that the job's may be, in the order of their numbers."""
    name = job.run_config.name
    pattern = rf"{re.escape(job.trainer)}_.+" if name is None else rf"{re.escape(name)}(_\d+)?"
    found = []
    for entry, is_directory in location.itself().disk.scan().items():
        if not is_directory or not re.fullmatch(pattern, entry):
            continue
        try:
            home = find(f"{location.root.rstrip('/')}/{entry}", location.filesystem)
        except ConfigurationError:  # something else of that name
            continue
        found.append((home, newest_record(home)))
    return sorted(found, key=lambda run: (len(run[0].name), run[0].name))


def make_run(job: Job, launched: Launched, launch: str) -> Home:
    """Make the directory of a new run.

    Args:
        job: What is to be done.
        launched: What the launcher says.
        launch: What tells its run from others.

    Raises:
        ConfigurationError: The storage path cannot be written to.
    """

    def fill(name: str, layout: RunLayout) -> None:
        write_bytes(layout.trainer, job.trainer_file)
        record = job.new_record(name)
        record.launch = launch
        record.save(layout)

    return make(job.run_config, job.trainer, fill, one_process=launched.world_size == 1)
