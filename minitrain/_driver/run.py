"""``fit()`` from beginning to end: check, make the directory, train, tell how it went."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

import cloudpickle

from minitrain import _env
from minitrain._driver.controller import Controller
from minitrain._driver.job import Job, make_run_directory
from minitrain._driver.local import train_here
from minitrain._driver.payload import by_value, dump
from minitrain._driver.placement import workers_that_fit
from minitrain._driver.state import Failed, Finished, Interrupted
from minitrain._logging import logger, show_on_console
from minitrain._os.gpus import list_gpus
from minitrain._storage.files import write_bytes
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import RunRecord, Status, now
from minitrain._wire.messages import Payload
from minitrain.result import Result

__all__ = ["fit"]


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a run ended."""

    status: Status
    error: BaseException | None = None
    return_value: Any = None


def fit(job: Job) -> Result:
    """Do a job.

    Raises:
        ConfigurationError: It cannot be done on this machine, or not be sent to workers; nothing
            was started.
        TrainingFailedError: It failed.
        KeyboardInterrupt: The user pressed Ctrl-C; what was reported is kept.
    """
    _env.check()
    _set_up_console(job)
    gpus = list_gpus() if job.scaling.use_gpu else []
    num_workers = workers_that_fit(job.scaling, gpus)
    train = _dump(job) if num_workers else b""
    layout = make_run_directory(job)
    record = job.new_record(layout)
    record.save(layout)
    logger.info("%s: %s, results in %s", layout.root.name, _workers(num_workers), layout.root)
    if num_workers == 0:
        ending = _train_here(job, layout, record)
    else:
        payload = pickle.dumps(Payload(train, job.facts(layout)))
        ending = _control(Controller(job, layout, record, gpus, num_workers, payload))
    _write_ending(layout, record, ending)
    if ending.error is not None:
        logger.info("%s: %s; everything it left is in %s", record.name, ending.status, layout.root)
        raise ending.error
    return Result._of(layout, return_value=ending.return_value)  # noqa: SLF001 - its own package


def _set_up_console(job: Job) -> None:
    run_config = job.run_config
    assert run_config.logging_config is not None
    level = run_config.logging_config.log_level
    show_on_console("WARNING" if run_config.verbose == 0 else level.replace("TRACE", "NOTSET"))


def _workers(num_workers: int) -> str:
    if num_workers == 0:
        return "training in this process"
    return f"{num_workers} worker{'s' if num_workers > 1 else ''}"


def _dump(job: Job) -> bytes:
    """Pickle what workers train with; each argument by itself first, so that errors name it."""
    around = job.backend_config.train_func_context
    named = {
        "train_loop_config": job.config,
        "datasets": job.datasets,
        "backend_config.train_func_context": around,
        "train_loop_per_worker": job.function,
    }
    with by_value(job.function):
        for name, value in named.items():
            dump(name, value)
        return dump("the trainer", (job.function, job.arguments, around, dict(job.datasets)))


def _control(controller: Controller) -> _Ending:
    end = controller.run()
    match end:
        case Finished():
            status: Status = "stopped" if controller.stopped else "finished"
            return _Ending(status, return_value=controller.return_value)
        case Failed(error=error):
            return _Ending("failed", error)
        case Interrupted():
            return _Ending("interrupted", KeyboardInterrupt())


def _train_here(job: Job, layout: RunLayout, record: RunRecord) -> _Ending:
    outcome = train_here(job, layout, record)
    if isinstance(outcome.error, KeyboardInterrupt):
        return _Ending("interrupted", outcome.error)
    if outcome.error is not None:
        return _Ending("failed", outcome.error)
    status: Status = "stopped" if outcome.stopped else "finished"
    return _Ending(status, return_value=outcome.return_value)


def _write_ending(layout: RunLayout, record: RunRecord, ending: _Ending) -> None:
    record.status = ending.status
    record.ended = now()
    if ending.error is not None:
        text = "".join(traceback.format_exception_only(ending.error))
        write_bytes(layout.error_text, text.encode())
        try:
            write_bytes(layout.error_pickle, cloudpickle.dumps(ending.error))
        except Exception:  # noqa: BLE001 - a stranger's exception; its text is there
            logger.debug("the error could not be pickled", exc_info=True)
    record.save(layout)
