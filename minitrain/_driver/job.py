"""A run as it was asked for: everything checked and pickled, nothing started."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minitrain import _env
from minitrain._storage.files import write_bytes
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import RunRecord
from minitrain._storage.rows import as_plain_data
from minitrain._wire.messages import RunFacts
from minitrain.backend import BackendConfig
from minitrain.checkpoint import Checkpoint
from minitrain.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from minitrain.exceptions import ConfigurationError

__all__ = ["Job", "make_run_directory"]


@dataclass(frozen=True)
class Job:
    """What ``fit()`` is to do.

    Attributes:
        trainer: Name of the trainer's class.
        function: The train function.
        arguments: What it is called with.
        config: The configuration, for the rows.
        backend_config: The framework's settings.
        scaling: How many workers.
        run_config: Where the run goes and how it is watched.
        datasets: The trainer's datasets.
        metadata: For every checkpoint.
        resume_from: The checkpoint to start from.
        run_id: Unique.
    """

    trainer: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    config: Mapping[str, Any]
    backend_config: BackendConfig
    scaling: ScalingConfig
    run_config: RunConfig
    datasets: Mapping[str, Any]
    metadata: Mapping[str, Any]
    resume_from: Checkpoint | None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def checkpoints(self) -> CheckpointConfig:
        """Which checkpoints stay."""
        assert self.run_config.checkpoint_config is not None
        return self.run_config.checkpoint_config

    @property
    def failures(self) -> FailureConfig:
        """What happens after a failure."""
        assert self.run_config.failure_config is not None
        return self.run_config.failure_config

    def facts(self, layout: RunLayout) -> RunFacts:
        """Return what workers may know."""
        return RunFacts(
            name=layout.root.name,
            run_id=self.run_id,
            path=str(layout.root),
            trial_name=f"{self.trainer}_{self.run_id}",
            metadata=dict(self.metadata),
            resources=self.resources,
            score_attribute=self.checkpoints.checkpoint_score_attribute,
            asks_to_go_on=self.run_config.stop is not None,
            collective_timeout_s=_env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S"),
            config=as_plain_data(self.config),
        )

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one worker."""
        scaling = self.scaling
        amounts = {"CPU": scaling.num_cpus_per_worker, "GPU": scaling.num_gpus_per_worker}
        shown = {name: amount for name, amount in amounts.items() if amount}
        return {**shown, **scaling.additional_resources_per_worker}

    def new_record(self, layout: RunLayout) -> RunRecord:
        """Return the record of a run that begins now."""
        checkpoints = self.checkpoints
        return RunRecord(
            name=layout.root.name,
            run_id=self.run_id,
            trainer=self.trainer,
            minitrain_version=version("minitrain"),
            scaling=as_plain_data(asdict(self.scaling)),
            config=as_plain_data(self.config),
            num_to_keep=checkpoints.num_to_keep,
            score_attribute=checkpoints.checkpoint_score_attribute,
            score_order=checkpoints.checkpoint_score_order,
        )


def make_run_directory(job: Job) -> RunLayout:
    """Make the run's directory; a name that is taken gets a number, nothing is overwritten.

    Raises:
        ConfigurationError: The storage path cannot be written to.
    """
    given = job.run_config.storage_path or _env.text("MINITRAIN_STORAGE")
    storage = Path(str(given).removeprefix("file://")).expanduser().absolute()
    name = job.run_config.name or f"{job.trainer}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        layout = RunLayout(_make_new(storage, name))
        layout.artifacts.mkdir()
        write_bytes(layout.rows, b"")
    except OSError as error:
        raise ConfigurationError(
            f"RunConfig(storage_path={str(given)!r}): cannot be written to: {error}"
        ) from error
    return layout


def _make_new(storage: Path, name: str) -> Path:
    number = 0
    while True:
        path = storage / (f"{name}_{number}" if number else name)
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
