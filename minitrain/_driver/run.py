"""``fit()`` from beginning to end: check, make the directory, train, tell how it went."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle

from minitrain import _env
from minitrain._datasets import pickled_for
from minitrain._driver.controller import Controller
from minitrain._driver.home import Home, bring_here, is_left_here, make, newest_record
from minitrain._driver.job import Job
from minitrain._driver.local import train_here
from minitrain._driver.mend import mend
from minitrain._driver.mirror import Mirror, bring_all_home
from minitrain._driver.payload import by_value, dump
from minitrain._driver.placement import Room, workers_that_fit
from minitrain._driver.state import Failed, Finished, Interrupted
from minitrain._hosts.code import pack
from minitrain._hosts.plan import Plan, plan_of
from minitrain._logging import logger, show_on_console
from minitrain._os.gpus import list_gpus
from minitrain._storage.files import write_bytes
from minitrain._storage.layout import RECORD, RunLayout
from minitrain._storage.record import RunRecord, Status, now
from minitrain._storage.retry import retry_again
from minitrain.config import LaunchConfig, ScalingConfig, SyncConfig
from minitrain.exceptions import ConfigurationError, ControllerError, PreemptionError
from minitrain.result import Result

__all__ = [
    "Ending",
    "fit",
    "result_if_over",
    "result_of",
    "set_up_console",
    "take_up",
    "with_datasets",
    "write_ending",
    "write_error",
]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    Attributes:
        status: For ``run.json``.
        error: Why, if it did not end well.
        return_value: What rank 0's train function returned.
    """

    status: Status
    error: BaseException | None = None
    return_value: Any = None


def fit(job: Job, restored: Home | None = None) -> Result:
    """Do a job, or go on with it.

    Args:
        job: What to do.
        restored: Where the run is that goes on; None for a new one.

    Raises:
        ConfigurationError: It cannot be done on this machine, or not be sent to workers; nothing
            was started.
        DataError: A dataset cannot be read, or a step of it fails; likewise.
        TrainingFailedError: It failed.
        KeyboardInterrupt: The user pressed Ctrl-C; what was reported is kept.
    """
    _env.check()
    set_up_console(job)
    if restored is not None and (over := result_if_over(restored, job.sync)) is not None:
        return over
    job = _planned(job)
    num_workers = _num_workers(job)
    job, train = _made_ready(job, num_workers)
    if restored is None:
        home = _begin(job, in_this_process=num_workers == 0)
        record = RunRecord.load(home.layout)
    else:
        home = restored
        record = take_up(job, home)
        job = replace(job, run_id=record.run_id)
    where = _workers(num_workers, job.plan)
    logger.info("%s: %s, results in %s", home.name, where, home.storage.root)
    try:
        if num_workers == 0:
            ending = _train_here(job, home, record)
        else:
            job = _collecting(job, home)
            ending = _control(Controller(job, home, record, num_workers, train))
        write_ending(home, job.sync, record, ending)
    finally:
        retry_again()
    if ending.error is not None:
        where = home.storage.root
        logger.info("%s: %s; everything it left is in %s", record.name, ending.status, where)
        raise ending.error
    return result_of(home, ending)


def _collecting(job: Job, home: Home) -> Job:
    """Return a job whose workers reach the run's directory through the driver, if so wanted."""
    return replace(job, collects=job.plan.collect and home.storage.is_local)


def result_of(home: Home, ending: Ending) -> Result:
    """Return what a run that ended well has given.

    Raises:
        ControllerError: Its storage does not answer.
    """
    try:
        return Result._of(home.storage, return_value=ending.return_value)  # noqa: SLF001 - its own package
    except OSError as error:
        raise ControllerError(
            f"{home.storage.root}: the training is {ending.status}, but its storage does not "
            f"answer: {error}. When it does, restore() and fit() bring there what is in "
            f"{home.layout.root}"
        ) from error


def result_if_over(home: Home, sync: SyncConfig) -> Result | None:
    """Return the result of a run that has nothing left to train."""
    record = newest_record(home)
    if record.driver_is_alive and record.driver["pid"] != os.getpid():
        raise ConfigurationError(
            f"{home.storage.root}: this run is being trained by process {record.driver['pid']}"
        )
    if not record.is_over:
        return None
    logger.info("%s: is over already; nothing is trained", home.name)
    if is_left_here(home, record):  # its storage did not take it then
        bring_all_home(home, sync)
    return Result._of(home.storage)  # noqa: SLF001 - its own package


def take_up(job: Job, home: Home) -> RunRecord:
    """Make a run this driver's, in an order in which nothing is lost if it ends in between."""
    record = newest_record(home)
    try:
        bring_here(home, record)
        job.take_up(record)
        Mirror(home, job.sync).sync()  # what an earlier driver left here, while it is known as its
        home.storage.write(RECORD, record.dump())
        record.save(home.layout)
        mend(home)
    except OSError as error:
        raise ConfigurationError(
            f"{home.storage.root}: the run cannot be gone on with: {error}"
        ) from error
    return record


def _begin(job: Job, *, in_this_process: bool) -> Home:
    def fill(name: str, layout: RunLayout) -> None:
        write_bytes(layout.trainer, job.trainer_file)
        job.new_record(name).save(layout)

    return make(job.run_config, job.trainer, fill, one_process=in_this_process)


def set_up_console(job: Job) -> None:
    """Show what the user wants to see of the log."""
    run_config = job.run_config
    assert run_config.logging_config is not None
    level = run_config.logging_config.log_level
    show_on_console("WARNING" if run_config.verbose == 0 else level.replace("TRACE", "NOTSET"))


def _planned(job: Job) -> Job:
    """Return the job with the hosts it goes to, and as many workers as were asked for there."""
    if job.scaling.max_workers == 0:
        return job  # in this process
    launch = job.run_config.launch_config or LaunchConfig()
    plan = plan_of(job.scaling, launch, job.failures.heartbeat_timeout_s)
    code = b""
    if plan.sync_code and not all(host.is_here for host in plan.hosts):
        code = pack(Path.cwd())
    return replace(job, plan=plan, code=code, scaling=_scaling(job.scaling, plan))


def _scaling(scaling: ScalingConfig, plan: Plan) -> ScalingConfig:
    num_workers = plan.num_workers
    if num_workers is None or num_workers == scaling.num_workers:
        return scaling
    hosts = ", ".join(map(str, plan.hosts))
    if scaling.elasticity_enabled:
        bounds = (min(scaling.min_workers, num_workers), num_workers)
        logger.info("%s: %d to %d workers", hosts, *bounds)
        return replace(scaling, num_workers=bounds)
    logger.info(
        "%s: %d workers, instead of ScalingConfig(num_workers=%r)",
        hosts,
        num_workers,
        scaling.num_workers,
    )
    return replace(scaling, num_workers=num_workers)


def _made_ready(job: Job, num_workers: int) -> tuple[Job, bytes]:
    """Return the job with its datasets looked at, and what workers train with."""
    job = with_datasets(job, shared=num_workers > 0)
    job.datasets.say_what_is_dropped(max(1, num_workers))
    return job, _dump(job) if num_workers else b""


def with_datasets(job: Job, *, shared: bool = False) -> Job:
    """Return the job with its datasets listed and counted: what is wrong with them is said now.

    Args:
        job: What is to be done.
        shared: Whether other processes will map what lies in this one's memory.

    Raises:
        ConfigurationError: The configuration names a dataset that there is not.
        DataError: A dataset cannot be read, or a step of it fails.
    """
    with by_value(job.function):  # steps are functions of the same module
        return replace(job, datasets=job.datasets.resolved(shared=shared))


def _num_workers(job: Job) -> int:
    """Return how many workers to begin with, as far as this host can tell."""
    if job.plan.hosts:
        return job.scaling.max_workers  # the hosts will say what they have
    gpus = tuple(list_gpus()) if job.scaling.use_gpu else ()
    return workers_that_fit(job.scaling, [Room(gpus)])


def _workers(num_workers: int, plan: Plan) -> str:
    if num_workers == 0:
        return "training in this process"
    on_hosts = f" on {', '.join(host.name for host in plan.hosts)}" if plan.hosts else ""
    return f"{num_workers} worker{'s' if num_workers > 1 else ''}{on_hosts}"


def _dump(job: Job) -> bytes:
    """Pickle what workers train with; if that fails, the error names the argument."""
    around = job.backend_config.train_func_context
    named = {
        "train_loop_config": job.config,
        "datasets": job.datasets.given,
        "dataset_config": job.datasets.config,
        "backend_config.train_func_context": around,
        "train_loop_per_worker": job.function,
    }
    one_host = all(host.is_here for host in job.plan.hosts)
    with by_value(job.function), pickled_for(one_host=one_host):
        try:
            return dump("the trainer", (job.function, job.arguments, around, job.datasets))
        except ConfigurationError:
            job.datasets.check_functions()
            for name, value in named.items():
                dump(name, value)
            raise


def _control(controller: Controller) -> Ending:
    end = controller.run()
    match end:
        case Finished():
            status: Status = "stopped" if controller.stopped else "finished"
            return Ending(status, return_value=controller.return_value)
        case Failed(error=PreemptionError() as error):
            return Ending("preempted", error)
        case Failed(error=error):
            return Ending("failed", error)
        case Interrupted():
            return Ending("interrupted", KeyboardInterrupt())


def _train_here(job: Job, home: Home, record: RunRecord) -> Ending:
    outcome = train_here(job, home, record)
    if isinstance(outcome.error, KeyboardInterrupt):
        return Ending("interrupted", outcome.error)
    if isinstance(outcome.error, PreemptionError):
        return Ending("preempted", outcome.error)
    if outcome.error is not None:
        return Ending("failed", outcome.error)
    status: Status = "stopped" if outcome.stopped else "finished"
    return Ending(status, return_value=outcome.return_value)


def write_ending(home: Home, sync: SyncConfig, record: RunRecord, ending: Ending) -> None:
    """Write down how a run ended, and bring everything to its storage."""
    layout = home.layout
    record.status = ending.status
    record.ended = now()
    if ending.error is None:
        layout.error_text.unlink(missing_ok=True)  # of an attempt before a restore
        layout.error_pickle.unlink(missing_ok=True)
        record.save(layout)
    else:
        try:
            write_error(layout, ending.error)
            record.save(layout)
        except OSError as error:  # a full disk, say: the run's own error is the one to raise
            logger.warning("%s: how the run ended is not written down: %s", layout.root, error)
    bring_all_home(home, sync)


def write_error(layout: RunLayout, error: BaseException) -> None:
    """Write down how a run failed, for people and for programs."""
    text = "".join(traceback.format_exception_only(error))
    write_bytes(layout.error_text, text.encode())
    try:
        pickled = cloudpickle.dumps(error)
    except Exception:  # noqa: BLE001 - a stranger's exception; its text is there
        logger.debug("the error could not be pickled", exc_info=True)
    else:
        write_bytes(layout.error_pickle, pickled)
