"""How a framework is added: a configuration, and what is done around the train function.

A framework outside this package subclasses both, and passes its configuration as
``DataParallelTrainer(backend_config=...)``. ``examples/custom_backend.py`` is a whole one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

__all__ = ["Backend", "BackendConfig", "Workers"]


class Workers(Protocol):
    """The workers of an attempt, as a backend sees them from the driver."""

    def __len__(self) -> int:
        """Return the number of workers."""

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function in every worker at once and return the results by rank."""

    def execute_single(
        self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function in one worker and return its result."""

    def get_resources_per_worker(self) -> dict[str, float]:
        """Return the resources of one worker."""


class Backend:
    """What is done around the train function. The methods run in the driver.

    They may call functions in the workers with ``worker_group.execute``. An exception in
    ``on_start`` or ``on_training_start`` fails the attempt; one in ``on_shutdown`` is logged.

    Functions travel as train functions do: one from the script itself goes by value, with
    globals of its own. What a backend prepares for the train function belongs into a module that
    both import, or into ``os.environ``.
    """

    def on_start(self, worker_group: Workers, backend_config: BackendConfig) -> None:
        """Is called when all workers run."""

    def on_training_start(self, worker_group: Workers, backend_config: BackendConfig) -> None:
        """Is called just before the train function."""

    def on_shutdown(self, worker_group: Workers, backend_config: BackendConfig) -> None:
        """Is called before workers end; after a failure some may no longer answer."""


@dataclass
class BackendConfig:
    """The settings of a framework; the base class is for train functions that need none.

    Attributes:
        preload: Modules that the agent imports before it forks workers, so that workers have
            them at once. They must be safe to fork: no thread may run after their import.
    """

    preload: ClassVar[tuple[str, ...]] = ("torch",)

    @property
    def backend_cls(self) -> type[Backend]:
        """The class with what is done around the train function."""
        return Backend

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[Any]]:
        """What the train function runs inside of, in every worker."""
        return nullcontext
