"""What a run has given: metrics, checkpoints, where everything is."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minitrain._storage.commit import committed
from minitrain._storage.layout import RunLayout
from minitrain._storage.ranking import best, lookup, ranked
from minitrain._storage.record import RunRecord
from minitrain._storage.rows import read_rows
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

    @property
    def metrics_dataframe(self) -> DataFrame | None:
        """One row per report, nested keys joined by slashes; None if nothing was reported."""
        if self._metrics_dataframe is None and self.path is not None:
            rows = read_rows(RunLayout(Path(self.path)).rows)
            if rows:
                import pandas as pd

                self._metrics_dataframe = pd.json_normalize(rows, sep="/")
        return self._metrics_dataframe

    @property
    def filesystem(self) -> FileSystem:
        """The ``pyarrow.fs`` filesystem that holds ``path``."""
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
            path: The run's directory, wherever it is now.
            storage_filesystem: A local ``pyarrow.fs`` filesystem.

        Raises:
            RuntimeError: There is no run in this directory.
        """
        if storage_filesystem is not None and storage_filesystem.type_name != "local":
            raise ValueError("Result.from_path(storage_filesystem): must be a local filesystem")
        root = Path(path).expanduser().absolute()
        if not root.is_dir():
            raise RuntimeError(f"the folder {root} does not exist")
        layout = RunLayout(root)
        if not layout.record.exists():
            raise RuntimeError(f"{root} is not the folder of a run: it has no {layout.record.name}")
        error = None
        if RunRecord.load(layout).status not in {"finished", "stopped"}:
            error = _stored_error(layout)
        return cls._of(layout, error=error)

    @classmethod
    def _of(
        cls, layout: RunLayout, *, error: BaseException | None = None, return_value: Any = None
    ) -> Result:
        record = RunRecord.load(layout)
        rows = read_rows(layout.rows)
        metrics = rows[-1] if rows else {}
        if metrics and record.status in {"finished", "stopped"}:
            metrics["done"] = True
        checkpoints = committed(layout.root)
        in_order = ranked(checkpoints, record.score_attribute, record.score_order)
        return cls(
            metrics,
            _checkpoint(layout, checkpoints[-1].name) if checkpoints else None,
            error,
            str(layout.root),
            best_checkpoints=[
                (_checkpoint(layout, registered.name), dict(registered.report))
                for registered in best(in_order, record.num_to_keep)
            ],
            config=record.config,
            return_value=return_value,
        )

    def __repr__(self) -> str:
        shown = {
            "metrics": self.metrics,
            "path": self.path,
            "checkpoint": self.checkpoint,
            "error": self.error,
        }
        return f"Result({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _checkpoint(layout: RunLayout, name: str) -> Checkpoint:
    return Checkpoint(layout.checkpoint(name))


def _stored_error(layout: RunLayout) -> BaseException | None:
    """Return the exception a failed run left; its text where its class is not to be had."""
    if not layout.error_text.exists():
        return None
    with suppress(Exception):  # whatever unpickling a stranger's exception does
        error = pickle.loads(layout.error_pickle.read_bytes())
        if isinstance(error, BaseException):
            return error
    return RuntimeError(layout.error_text.read_text(encoding="utf-8"))
