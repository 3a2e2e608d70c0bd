"""The functions of a train function: ``report``, ``get_context``, ``get_checkpoint`` ...

They check what they are given and pass it to the session of this process, which whoever runs the
train function has installed: a worker, or the driver for ``num_workers=0``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from minitrain.checkpoint import Checkpoint
from minitrain.context import PreemptionInfo, TrainContext
from minitrain.exceptions import NotInTrainingError

__all__ = [
    "CheckpointConsistencyMode",
    "CheckpointUploadMode",
    "ReportedCheckpoint",
    "ReportedCheckpointStatus",
    "Session",
    "UploadOptions",
    "current_session",
    "get_all_reported_checkpoints",
    "get_checkpoint",
    "get_context",
    "get_dataset_shard",
    "get_preemption_info",
    "install",
    "install_context",
    "installed_context",
    "report",
]

UploadFunction: TypeAlias = Callable[[Checkpoint, str], Checkpoint]


class CheckpointUploadMode(Enum):
    """How :func:`report` brings a checkpoint to the run's directory.

    Attributes:
        SYNC: It is written and committed when the call returns.
        ASYNC: The call returns at once; a thread writes it while training goes on.
        NO_UPLOAD: Its files are in the run's directory already.
    """

    SYNC = "SYNC"
    ASYNC = "ASYNC"
    NO_UPLOAD = "NO_UPLOAD"


class CheckpointConsistencyMode(Enum):
    """What :func:`get_all_reported_checkpoints` waits for.

    Attributes:
        COMMITTED: Every checkpoint reported so far is committed, or was lost.
        VALIDATED: The same: nothing is validated after its commit.
    """

    COMMITTED = "COMMITTED"
    VALIDATED = "VALIDATED"


class ReportedCheckpointStatus(Enum):
    """What has become of a reported checkpoint.

    Attributes:
        COMMITTED: It is complete.
    """

    COMMITTED = "COMMITTED"


@dataclass(frozen=True)
class ReportedCheckpoint:
    """A checkpoint of the run.

    Attributes:
        checkpoint: The checkpoint.
        metrics: The row it was reported with.
        status: What has become of it.
    """

    checkpoint: Checkpoint
    metrics: Mapping[str, Any]
    status: ReportedCheckpointStatus = ReportedCheckpointStatus.COMMITTED


@dataclass(frozen=True)
class UploadOptions:
    """How one report's checkpoint is to be written.

    Attributes:
        dir_name: Its name, if the user gave one.
        mode: When.
        given_away: Whether the local directory may be taken, and is gone afterwards.
        function: The user's own way of writing it.
    """

    dir_name: str | None = None
    mode: CheckpointUploadMode = CheckpointUploadMode.SYNC
    given_away: bool = False
    function: UploadFunction | None = None


class Session(Protocol):
    """What runs a train function offers it."""

    @property
    def score_attribute(self) -> str | None:
        """The metric that ranks checkpoints."""

    def report(
        self, metrics: dict[str, Any], checkpoint: Checkpoint | None, options: UploadOptions
    ) -> None:
        """Take a report; it is checked and plain."""

    def checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint."""

    def all_checkpoints(self, timeout_s: float | None) -> list[ReportedCheckpoint]:
        """Return every checkpoint of the run, when those reported so far are settled."""

    def dataset_shard(self, name: str | None) -> Any:
        """Return this worker's part of a dataset."""

    def collective(self, operation: str, data: Any) -> Any:
        """Wait for all ranks and return rank 0's data."""


_context: TrainContext | None = None
_session: Session | None = None
_owner_pid = 0


def install_context(context: TrainContext | None) -> None:
    """Make this process a worker, before and after its train function too; None undoes it."""
    global _context  # noqa: PLW0603 - a process is one worker
    _context = context


def installed_context() -> TrainContext | None:
    """Return where this worker stands; None in a process that is no worker."""
    return _context


def install(session: Session | None) -> None:
    """Make a session the one of this process; None removes it."""
    global _session, _owner_pid
    _session, _owner_pid = session, os.getpid()


def current_session(function: str) -> Session:
    """Return the session of this process.

    Raises:
        NotInTrainingError: There is none, or it is a parent's from which this process was forked;
            the message names ``function``.
    """
    if _session is None or _owner_pid != os.getpid():
        raise _not_in_training(function)
    return _session


def _not_in_training(function: str) -> NotInTrainingError:
    return NotInTrainingError(
        f"`{function}` cannot be used outside a train function: it was called from the driver "
        "or another process. Call it in the function you pass to the trainer."
    )


def report(
    metrics: Mapping[str, Any],
    checkpoint: Checkpoint | None = None,
    checkpoint_dir_name: str | None = None,
    checkpoint_upload_mode: CheckpointUploadMode = CheckpointUploadMode.SYNC,
    delete_local_checkpoint_after_upload: bool | None = None,
    checkpoint_upload_fn: UploadFunction | None = None,
) -> None:
    """Report metrics, and a checkpoint if there is one. Every rank must call it equally often.

    Rank 0's metrics are the run's: they are on disk when the call returns. With a checkpoint
    the call returns when the files of all ranks are written and the checkpoint is committed: a
    restart starts from there.

    With ``ASYNC`` it returns at once. The directory then belongs to minitrain, which takes it away
    before the call returns, unless ``delete_local_checkpoint_after_upload=False``: then it must
    stay as it is until ``get_checkpoint()`` gives it back. At most two are on their way; what goes
    wrong is raised by a later report, or when the train function returns.

    Args:
        metrics: Names and values: numbers, strings, booleans, None, and lists and dicts of them;
            numpy scalars and tensors without dimensions become numbers.
        checkpoint: The files this rank adds to the checkpoint; ranks may add different ones.
        checkpoint_dir_name: The checkpoint's name, instead of ``checkpoint_000000`` and so on;
            the same on every rank that adds files.
        checkpoint_upload_mode: ``SYNC``, ``ASYNC``, or ``NO_UPLOAD`` for files that this rank has
            written to ``get_context().get_storage().build_checkpoint_path_from_name(name)``.
        delete_local_checkpoint_after_upload: Whether the directory is given away: it is moved
            where it can be, and gone afterwards. By default only with ``ASYNC``.
        checkpoint_upload_fn: Writes the files instead: ``(checkpoint, name) -> Checkpoint``, which
            returns where they are, a directory of that name in the run's directory.

    Raises:
        TypeError: An argument is of the wrong kind; the message names the metric.
        ValueError: A checkpoint's directory is missing, or cannot be meant.
        CheckpointError: The checkpoint's name is taken, or it could not be written; on all ranks
            that wait for it, and the report does not count. With ``ASYNC``, one of an earlier
            report; this report counts.
        CollectiveTimeoutError: Other ranks did not report.
        NotInTrainingError: This is not a train function.

    Example:
        >>> import minitrain
        >>> def train():
        ...     for epoch in range(3):
        ...         minitrain.report({"loss": 1 / (epoch + 1)})
    """
    session = current_session("report")
    plain = plain_metrics(metrics)
    mode = checkpoint_upload_mode
    if mode is not CheckpointUploadMode.SYNC:
        mode = _checked_mode(mode)
    given_away = delete_local_checkpoint_after_upload
    if given_away is None:
        given_away = mode is CheckpointUploadMode.ASYNC
    if checkpoint is not None:
        _check_checkpoint(checkpoint, mode)
        _check_score(plain, session.score_attribute)
    _check_dir_name(checkpoint_dir_name)
    _check_upload(mode, given_away, checkpoint_upload_fn)
    options = UploadOptions(checkpoint_dir_name, mode, given_away, checkpoint_upload_fn)
    session.report(plain, checkpoint, options)


def get_context() -> TrainContext:
    """Return where this train function runs: ranks, world size, the run's name and directory.

    Raises:
        NotInTrainingError: This is not a train function.
    """
    if _context is None:
        raise _not_in_training("get_context")
    return _context


def get_checkpoint() -> Checkpoint | None:
    """Return the newest checkpoint of the run; at the start, the one to start from.

    None if there is none yet.

    Raises:
        NotInTrainingError: This is not a train function.
    """
    return current_session("get_checkpoint").checkpoint()


def get_all_reported_checkpoints(
    consistency_mode: CheckpointConsistencyMode = CheckpointConsistencyMode.VALIDATED,
    timeout_s: float | None = None,
) -> list[ReportedCheckpoint]:
    """Return the checkpoints of the run that are kept, in the order they were reported.

    Waits until what this rank has reported so far is settled on all ranks: call it after the same
    number of reports on each.

    Args:
        consistency_mode: Accepted as in ray.train; both mean the same here.
        timeout_s: Return what there is after so many seconds; None: wait.

    Raises:
        CollectiveTimeoutError: Other ranks did not report.
        NotInTrainingError: This is not a train function.
    """
    session = current_session("get_all_reported_checkpoints")
    if not isinstance(consistency_mode, CheckpointConsistencyMode):
        raise TypeError(
            f"get_all_reported_checkpoints(consistency_mode={consistency_mode!r}): must be a "
            "minitrain.CheckpointConsistencyMode"
        )
    return session.all_checkpoints(timeout_s)


def get_preemption_info() -> PreemptionInfo | None:
    """Return whether this machine is about to be taken away, the same on every rank.

    After SIGTERM, what is returned says until when workers may train on. Save a checkpoint and
    return: the run ends, and ``restore`` goes on from there. Every rank must call it equally often,
    and each call waits for the others: after a report, say, not in every step.

    Returns:
        None: nothing is known of it.

    Raises:
        CollectiveTimeoutError: Some rank did not call it.
        NotInTrainingError: This is not a train function.
    """
    info: PreemptionInfo | None = current_session("get_preemption_info").collective(
        "get_preemption_info", None
    )
    return info


def get_dataset_shard(dataset_name: str | None = None) -> Any:
    """Return this worker's part of a dataset given as ``Trainer(datasets={...})``.

    It is the same iterator each time. How far all ranks have read is kept with every checkpoint
    that is reported: after a restart, also with another number of workers, it goes on with the
    rows that come next. A dataset given as a function is made now, in the worker that asks;
    anything that is not a :mod:`minitrain.data` dataset is returned as it is.

    Args:
        dataset_name: Its key; may be left out if there is only one dataset.

    Raises:
        KeyError: There is no such dataset.
        NotInTrainingError: This is not a train function.
    """
    return current_session("get_dataset_shard").dataset_shard(dataset_name)


def plain_metrics(metrics: Any) -> dict[str, Any]:
    """Return metrics as plain data that JSON can hold.

    Raises:
        TypeError: Something in it cannot be held; the message names the key.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"report(metrics={metrics!r}): must be a dict of names and values, "
            f"not {type(metrics).__name__}"
        )
    return {_plain_key(key, "metrics"): _plain(value, str(key)) for key, value in metrics.items()}


def _plain_key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(int(key))
    raise TypeError(f"report(): the key {key!r} in {where} must be a string")


def _plain(value: Any, name: str) -> Any:
    kind = type(value)
    if kind in {float, int, str, bool, type(None)}:
        return value
    if isinstance(value, Mapping):
        return {_plain_key(k, repr(name)): _plain(v, f"{name}/{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}/{index}") for index, item in enumerate(value)]
    for base in (bool, int, float, str):  # enumerations, numpy.float64 and the like
        if isinstance(value, base):
            return base(value)
    scalar = _scalar(value)
    if isinstance(scalar, bool | int | float | str):
        return scalar
    raise TypeError(_why_not(value, name))


def _scalar(value: Any) -> Any:
    """Return what a numpy scalar or a tensor without dimensions holds; None for all else."""
    numpy = sys.modules.get("numpy")
    torch = sys.modules.get("torch")
    is_numpy = numpy is not None and isinstance(value, numpy.generic | numpy.ndarray)
    is_tensor = torch is not None and isinstance(value, torch.Tensor)
    if not (is_numpy or is_tensor) or value.ndim != 0:
        return None
    item = value.item()
    # A long double's item is one again.
    return float(item) if numpy is not None and isinstance(item, numpy.floating) else item


def _why_not(value: Any, name: str) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    shape = getattr(value, "shape", None)
    if shape is not None:
        return (
            f"report(): the metric {name!r} is a {kind} of shape {tuple(shape)}; report a number "
            "(such as value.mean().item()), or a list (value.tolist())"
        )
    return (
        f"report(): the metric {name!r} is a {kind}, which JSON cannot hold; report numbers, "
        "strings, booleans, None, or lists and dicts of them"
    )


def _checked_mode(mode: Any) -> CheckpointUploadMode:
    try:
        return CheckpointUploadMode(mode)
    except ValueError:
        raise TypeError(
            f"report(checkpoint_upload_mode={mode!r}): must be a minitrain.CheckpointUploadMode: "
            f"{', '.join(CheckpointUploadMode.__members__)}"
        ) from None


def _check_upload(mode: CheckpointUploadMode, given_away: Any, function: Any) -> None:
    if not isinstance(given_away, bool):
        raise TypeError(
            f"report(delete_local_checkpoint_after_upload={given_away!r}): must be True or False"
        )
    in_place = mode is CheckpointUploadMode.NO_UPLOAD
    if given_away and in_place:
        raise ValueError(
            "report(delete_local_checkpoint_after_upload=True): would delete what NO_UPLOAD keeps"
        )
    if function is not None and not callable(function):
        raise TypeError(
            f"report(checkpoint_upload_fn={function!r}): must be a function "
            "(checkpoint, name) -> Checkpoint"
        )
    if function is not None and in_place:
        raise ValueError("report(checkpoint_upload_fn): contradicts NO_UPLOAD; use one of them")


def _check_checkpoint(checkpoint: Any, mode: CheckpointUploadMode) -> None:
    if not isinstance(checkpoint, Checkpoint):
        raise TypeError(
            f"report(checkpoint={checkpoint!r}): must be a minitrain.Checkpoint, "
            f"not {type(checkpoint).__name__}; use Checkpoint.from_directory(path)"
        )
    if not checkpoint.is_local:
        return  # it is looked for when it is copied
    path = Path(checkpoint.path)
    if not path.is_dir():
        raise ValueError(f"report(checkpoint={checkpoint!r}): the directory does not exist")
    if mode is CheckpointUploadMode.NO_UPLOAD:
        return  # nothing is copied
    run = Path(get_context().get_trial_dir()).resolve()
    here = path.resolve()
    everything = {Path("/"), Path.home().resolve(), Path(tempfile.gettempdir()).resolve()}
    if here in everything or run.is_relative_to(here):
        raise ValueError(
            f"report(checkpoint={checkpoint!r}): this would copy all of {here}; make a directory "
            "for the checkpoint, such as tempfile.TemporaryDirectory()"
        )


def _check_score(metrics: Mapping[str, Any], attribute: str | None) -> None:
    value: Any = metrics
    for part in (attribute or "").split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    flat = metrics.get(attribute, value) if attribute else None
    if flat is not None and (isinstance(flat, bool) or not isinstance(flat, int | float)):
        raise TypeError(
            f"report(): the metric {attribute!r} ranks checkpoints (checkpoint_score_attribute) "
            f"and must be a number, not {flat!r}"
        )


def _check_dir_name(name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & {"/", "\0"}:
        raise ValueError(
            f"report(checkpoint_dir_name={name!r}): must be the name of a directory "
            "that does not begin with a dot"
        )
