"""What a train function can learn about where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PreemptionInfo", "StorageContext", "TrainContext"]


@dataclass(frozen=True)
class PreemptionInfo:
    """That workers are about to be ended, and when.

    Attributes:
        deadline_ms: When, in milliseconds since the epoch.
        preempted_node_to_ranks: The ranks on every host that is taken away.
    """

    deadline_ms: int | None
    preempted_node_to_ranks: Mapping[str, Sequence[int]]

    @property
    def preempted_node_ids(self) -> list[str]:
        """The hosts that are taken away."""
        return list(self.preempted_node_to_ranks)

    @property
    def preempted_ranks(self) -> list[int]:
        """The ranks on these hosts."""
        return sorted(rank for ranks in self.preempted_node_to_ranks.values() for rank in ranks)


@dataclass(frozen=True)
class StorageContext:
    """Where the run keeps its files.

    Attributes:
        experiment_fs_path: The run's directory.
        experiment_dir_name: Its last part.
        local_working_directory: Where this worker started.
    """

    experiment_fs_path: str
    experiment_dir_name: str
    local_working_directory: str
    _filesystem: Any = None  # None: this host's own, which is not imported before it is asked for

    @property
    def storage_filesystem(self) -> Any:
        """The ``pyarrow.fs`` filesystem that holds the run."""
        if self._filesystem is not None:
            return self._filesystem
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    @property
    def storage_fs_path(self) -> str:
        """The directory that holds the run's directory."""
        return str(Path(self.experiment_fs_path).parent)

    def build_checkpoint_path_from_name(self, checkpoint_name: str) -> str:
        """Return the path of a checkpoint of this run."""
        return str(Path(self.experiment_fs_path, checkpoint_name))


@dataclass(frozen=True)
class TrainContext:
    """The answers of :func:`minitrain.get_context`, named as in ray.train."""

    _name: str
    _trial_name: str
    _run_id: str
    _path: str
    _world_size: int
    _rank: int
    _local_rank: int
    _local_world_size: int
    _node_rank: int
    _working_dir: str
    _gpus: tuple[int, ...] = ()
    _metadata: Mapping[str, Any] = field(default_factory=dict)
    _resources: Mapping[str, float] = field(default_factory=dict)
    _filesystem: Any = None

    def get_experiment_name(self) -> str:
        """Return the run's name."""
        return self._name

    def get_world_size(self) -> int:
        """Return the number of workers."""
        return self._world_size

    def get_world_rank(self) -> int:
        """Return this worker's rank among all workers."""
        return self._rank

    def get_local_rank(self) -> int:
        """Return this worker's rank among the workers of its host."""
        return self._local_rank

    def get_local_world_size(self) -> int:
        """Return the number of workers of this host."""
        return self._local_world_size

    def get_node_rank(self) -> int:
        """Return the rank of this host."""
        return self._node_rank

    def get_storage(self) -> StorageContext:
        """Return where the run keeps its files."""
        name = Path(self._path).name
        return StorageContext(self._path, name, self._working_dir, self._filesystem)

    def get_metadata(self) -> dict[str, Any]:
        """Return a copy of the trainer's ``metadata``."""
        return dict(self._metadata)

    def get_trial_name(self) -> str:
        """Return the trial's name: the trainer's class and the run's id."""
        return self._trial_name

    def get_trial_id(self) -> str:
        """Return the run's unique id."""
        return self._run_id

    def get_trial_resources(self) -> dict[str, float]:
        """Return the resources of one worker."""
        return dict(self._resources)

    def get_trial_dir(self) -> str:
        """Return the run's directory."""
        return self._path
