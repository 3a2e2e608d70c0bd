"""A run as it was asked for: everything checked and pickled, nothing started."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from minitrain import _env
from minitrain._datasets import Datasets
from minitrain._driver.home import Home
from minitrain._hosts.plan import Plan
from minitrain._storage.record import RunRecord, this_process
from minitrain._storage.rows import as_plain_data
from minitrain._storage.run_storage import RunStorage
from minitrain._wire.messages import RunFacts
from minitrain.backend import BackendConfig
from minitrain.checkpoint import Checkpoint
from minitrain.config import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    SyncConfig,
)

__all__ = ["Job"]


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
        datasets: The trainer's, and which of them are divided.
        metadata: For every checkpoint.
        resume_from: The checkpoint to start from.
        trainer_file: What ``restore`` needs, pickled.
        collects: Whether workers cannot reach the run's directory, and the driver serves it.
        run_id: Unique.
        plan: On which hosts.
        code: The user's files, packed, for hosts that do not have them; empty: they do.
    """

    trainer: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    config: Mapping[str, Any]
    backend_config: BackendConfig
    scaling: ScalingConfig
    run_config: RunConfig
    datasets: Datasets
    metadata: Mapping[str, Any]
    resume_from: Checkpoint | None
    trainer_file: bytes = b""
    collects: bool = False
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    plan: Plan = field(default_factory=Plan)
    code: bytes = b""

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

    @property
    def sync(self) -> SyncConfig:
        """How what is written on this host reaches the storage."""
        assert self.run_config.sync_config is not None
        return self.run_config.sync_config

    def facts(self, home: Home) -> RunFacts:
        """Return what workers may know."""
        return RunFacts(
            name=home.name,
            run_id=self.run_id,
            path=home.storage.root,
            storage=self._storage_of_workers(home),
            trial_name=f"{self.trainer}_{self.run_id}",
            metadata=dict(self.metadata),
            resources=self.resources,
            score_attribute=self.checkpoints.checkpoint_score_attribute,
            asks_to_go_on=self.run_config.stop is not None,
            collective_timeout_s=_env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S"),
            config=as_plain_data(self.config),
        )

    def _storage_of_workers(self, home: Home) -> RunStorage:
        if not self.collects:
            return home.storage
        from minitrain._storage.home_disk import HomeDisk, HomeFileSystem

        root = home.storage.root
        return RunStorage(HomeDisk(HomeFileSystem(root), root))

    def as_workers_reach_it(self, home: Home, checkpoint: Checkpoint) -> Checkpoint:
        """Return a checkpoint as a worker can read it."""
        if not self.collects or not checkpoint.is_local:
            return checkpoint
        return type(checkpoint)(checkpoint.path, self._storage_of_workers(home).filesystem)

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one worker."""
        scaling = self.scaling
        amounts = {"CPU": scaling.num_cpus_per_worker, "GPU": scaling.num_gpus_per_worker}
        shown = {name: amount for name, amount in amounts.items() if amount}
        return {**shown, **scaling.additional_resources_per_worker}

    def take_up(self, record: RunRecord) -> None:
        """Bring the record of a run that goes on up to date."""
        record.status, record.ended = "running", None
        record.driver = this_process()
        record.minitrain_version = version("minitrain")
        record.scaling = as_plain_data(asdict(self.scaling))
        record.config = as_plain_data(self.config)
        record.num_to_keep = self.checkpoints.num_to_keep
        record.score_attribute = self.checkpoints.checkpoint_score_attribute
        record.score_order = self.checkpoints.checkpoint_score_order

    def new_record(self, name: str) -> RunRecord:
        """Return the record of a run that begins now."""
        checkpoints = self.checkpoints
        return RunRecord(
            name=name,
            run_id=self.run_id,
            trainer=self.trainer,
            minitrain_version=version("minitrain"),
            scaling=as_plain_data(asdict(self.scaling)),
            config=as_plain_data(self.config),
            num_to_keep=checkpoints.num_to_keep,
            score_attribute=checkpoints.checkpoint_score_attribute,
            score_order=checkpoints.checkpoint_score_order,
        )
