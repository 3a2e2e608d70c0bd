"""What a run has given: metrics, checkpoints, where everything is."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minitrain._storage.layout import ERROR_PICKLE, ERROR_TEXT, RECORD, ROWS
from minitrain._storage.ranking import best, lookup, ranked
from minitrain._storage.record import RunRecord
from minitrain._storage.resolve import resolve
from minitrain._storage.rows import parse_rows
from minitrain._storage.run_storage import RunStorage
from minitrain.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pandas import DataFrame
    from pyarrow.fs import FileSystem

__all__ = ["Result"]


class Result:
    """What a run has given. ``fit()`` returns one; :meth:`from_path` reads one back.

    Attributes:
        metrics: The last report's metrics with the keys that are filled in
            (``training_iteration`` and so on); empty if nothing was reported.
        checkpoint: The newest checkpoint.
        error: The exception of a run that failed; None for one that ``fit()`` returned.
        path: The run's directory.
        best_checkpoints: The ``num_to_keep`` best checkpoints, each with the metrics it was
            reported with; the best is the last.
        config: The train function's configuration, as far as JSON can hold it.
        return_value: What rank 0's train function returned; None when read back.
    """

    def __init__(
        self,
        metrics: dict[str, Any] | None,
        checkpoint: Checkpoint | None,
        error: BaseException | None,
        path: str | None = None,
        *,
        metrics_dataframe: DataFrame | None = None,
        best_checkpoints: list[tuple[Checkpoint, dict[str, Any]]] | None = None,
        config: dict[str, Any] | None = None,
        return_value: Any = None,
    ) -> None:
        self.metrics = metrics
        self.checkpoint = checkpoint
        self.error = error
        self.path = path
        self.best_checkpoints = best_checkpoints or []
        self.config = config
        self.return_value = return_value
        self._metrics_dataframe = metrics_dataframe
        self._storage: RunStorage | None = None

    @property
    def metrics_dataframe(self) -> DataFrame | None:
        """One row per report, nested keys joined by slashes; None if nothing was reported."""
        if self._metrics_dataframe is None and self._storage is not None:
            rows = _rows(self._storage)
            if rows:
                import pandas as pd

                self._metrics_dataframe = pd.json_normalize(rows, sep="/")
        return self._metrics_dataframe

    @property
    def filesystem(self) -> FileSystem:
        """The ``pyarrow.fs`` filesystem that holds ``path``."""
        if self._storage is not None:
            return self._storage.filesystem
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    def get_best_checkpoint(self, metric: str, mode: Literal["max", "min"]) -> Checkpoint:
        """Return the checkpoint of ``best_checkpoints`` with the best value of a metric.

        Args:
            metric: Its name, nested as ``"val/acc"``.
            mode: ``"max"`` or ``"min"``.

        Raises:
            ValueError: The mode is neither.
            RuntimeError: There is no checkpoint, or none with this metric.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"get_best_checkpoint(mode={mode!r}): must be 'max' or 'min'")
        if not self.best_checkpoints:
            raise RuntimeError(f"the run in {self.path} has no checkpoint")
        scored = [
            (value if mode == "max" else -value, index)
            for index, (_, metrics) in enumerate(self.best_checkpoints)
            if isinstance(value := lookup(metrics, metric), int | float) and value == value  # noqa: PLR0124
        ]
        if not scored:
            known = sorted({name for _, metrics in self.best_checkpoints for name in metrics})
            raise RuntimeError(f"no checkpoint has the metric {metric!r}; there are: {known}")
        return self.best_checkpoints[max(scored)[1]][0]

    @classmethod
    def from_path(cls, path: str | Path, storage_filesystem: FileSystem | None = None) -> Result:
        """Read back the result of a run, also of one that failed or whose driver was killed.

        Args:
            path: The run's directory, wherever it is now: a path or a URI.
            storage_filesystem: The ``pyarrow.fs`` or fsspec filesystem that holds it, if the path
                does not say so.

        Raises:
            RuntimeError: There is no run in this directory.
        """
        storage = resolve(path, storage_filesystem, one_process=True).itself()
        if storage.is_local and not Path(storage.root).is_dir():
            raise RuntimeError(f"the folder {storage.root} does not exist")
        try:
            record = RunRecord.parse(storage.read(RECORD))
        except FileNotFoundError:
            raise RuntimeError(
                f"{storage.root} is not the folder of a run: it has no {RECORD}"
            ) from None
        error = None if record.is_over else _stored_error(storage)
        return cls._of(storage, error=error)

    @classmethod
    def _of(
        cls, storage: RunStorage, *, error: BaseException | None = None, return_value: Any = None
    ) -> Result:
        record = RunRecord.parse(storage.read(RECORD))
        rows = _rows(storage)
        metrics = rows[-1] if rows else {}
        if metrics and record.is_over:
            metrics["done"] = True
        checkpoints = storage.committed()
        in_order = ranked(checkpoints, record.score_attribute, record.score_order)
        result = cls(
            metrics,
            storage.checkpoint(checkpoints[-1].name) if checkpoints else None,
            error,
            storage.root,
            best_checkpoints=[
                (storage.checkpoint(registered.name), dict(registered.report))
                for registered in best(in_order, record.num_to_keep)
            ],
            config=record.config,
            return_value=return_value,
        )
        result._storage = storage
        return result

    def __repr__(self) -> str:
        shown = {
            "metrics": self.metrics,
            "path": self.path,
            "checkpoint": self.checkpoint,
            "error": self.error,
        }
        return f"Result({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _rows(storage: RunStorage) -> list[dict[str, Any]]:
    try:
        return parse_rows(storage.read(ROWS))
    except FileNotFoundError:
        return []


def _stored_error(storage: RunStorage) -> BaseException | None:
    """Return the exception a failed run left; its text where its class is not to be had."""
    try:
        text = storage.read(ERROR_TEXT)
    except FileNotFoundError:
        return None
    with suppress(Exception):  # whatever unpickling a stranger's exception does
        error = pickle.loads(storage.read(ERROR_PICKLE))
        if isinstance(error, BaseException):
            return error
    return RuntimeError(text.decode())
