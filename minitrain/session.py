"""The functions of a train function: ``report``, ``get_context``, ``get_checkpoint`` ...

They check what they are given and pass it to the session of this process, which whoever runs the
train function has installed: a worker, or the driver for ``num_workers=0``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from minitrain.checkpoint import Checkpoint
from minitrain.context import TrainContext
from minitrain.exceptions import NotInTrainingError

__all__ = [
    "Session",
    "current_session",
    "get_checkpoint",
    "get_context",
    "get_dataset_shard",
    "install",
    "install_context",
    "installed_context",
    "report",
]


class Session(Protocol):
    """What runs a train function offers it."""

    @property
    def score_attribute(self) -> str | None:
        """The metric that ranks checkpoints."""

    def report(
        self, metrics: dict[str, Any], checkpoint: Checkpoint | None, dir_name: str | None
    ) -> None:
        """Take a report; it is checked and plain."""

    def checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint."""

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
) -> None:
    """Report metrics, and a checkpoint if there is one. Every rank must call it equally often.

    Rank 0's metrics are the run's: they are on disk when the call returns. With a checkpoint
    the call returns when the files of all ranks are on disk and the checkpoint is committed:
    a restart starts from there. The directory given stays as it is.

    Args:
        metrics: Names and values: numbers, strings, booleans, None, and lists and dicts of them;
            numpy scalars and tensors without dimensions become numbers.
        checkpoint: The files this rank adds to the checkpoint; ranks may add different ones.
        checkpoint_dir_name: The checkpoint's name, instead of ``checkpoint_000000`` and so on;
            the same on every rank that adds files.

    Raises:
        TypeError: An argument is of the wrong kind; the message names the metric.
        ValueError: A checkpoint's directory is missing, or cannot be meant.
        CheckpointError: The checkpoint's name is taken, or it could not be written.
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
    if checkpoint is not None:
        _check_checkpoint(checkpoint)
        _check_score(plain, session.score_attribute)
    _check_dir_name(checkpoint_dir_name)
    session.report(plain, checkpoint, checkpoint_dir_name)


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


def get_dataset_shard(dataset_name: str | None = None) -> Any:
    """Return this worker's part of a dataset given as ``Trainer(datasets={...})``.

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


def _check_checkpoint(checkpoint: Any) -> None:
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
