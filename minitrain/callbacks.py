"""What users hook into a run, on the driver's side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitrain.checkpoint import Checkpoint

__all__ = ["RunContext", "UserCallback"]


@dataclass(frozen=True)
class RunContext:
    """What a callback may know of the run it watches.

    Attributes:
        name: The run's name.
        path: The run's directory.
    """

    name: str
    path: str
    _run_config: Any = None

    def get_run_config(self) -> Any:
        """Return the :class:`minitrain.RunConfig` of the run."""
        return self._run_config


class UserCallback:
    """Subclass it, override what you need, and pass instances as ``RunConfig(callbacks=[...])``.

    The methods are called in the driver's process, one at a time. An exception in one of them
    ends the run with a :class:`minitrain.ControllerError` that names the callback: a logger
    that silently stopped would be noticed when the results are needed. Catch what may pass.

    Example:
        >>> from minitrain import UserCallback
        >>> class PrintLoss(UserCallback):
        ...     def after_report(self, run_context, metrics, checkpoint):
        ...         print([rank_metrics["loss"] for rank_metrics in metrics])
    """

    def after_report(
        self, run_context: RunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Is called when every rank has made the same report.

        Args:
            run_context: The run.
            metrics: What each rank reported, by rank.
            checkpoint: The checkpoint that was committed with this report, if there is one.
        """

    def after_exception(
        self, run_context: RunContext, worker_exceptions: dict[int, BaseException]
    ) -> None:
        """Is called when an attempt has failed, before it is decided whether to try again.

        Args:
            run_context: The run.
            worker_exceptions: The exception of every failed rank.
        """
