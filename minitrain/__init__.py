"""Distributed training in plain processes, with the programming interface of Ray Train.

Everything is imported when it is first used: ``import minitrain`` itself imports neither torch
nor pandas nor pyarrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitrain import collective, torch
    from minitrain._driver.agents import shutdown
    from minitrain.backend import Backend, BackendConfig
    from minitrain.callbacks import RunContext, UserCallback
    from minitrain.checkpoint import Checkpoint
    from minitrain.config import (
        CheckpointConfig,
        DataConfig,
        FailureConfig,
        LaunchConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
        SyncConfig,
    )
    from minitrain.context import PreemptionInfo, TrainContext
    from minitrain.exceptions import (
        ControllerError,
        HostError,
        MinitrainError,
        PreemptionError,
        TrainingFailedError,
        WorkerGroupError,
    )
    from minitrain.result import Result
    from minitrain.session import (
        CheckpointConsistencyMode,
        CheckpointUploadMode,
        ReportedCheckpoint,
        ReportedCheckpointStatus,
        get_all_reported_checkpoints,
        get_checkpoint,
        get_context,
        get_dataset_shard,
        get_preemption_info,
        report,
    )
    from minitrain.stacks import stacks

TRAIN_DATASET_KEY = "train"

_HOMES = {
    "minitrain._driver.agents": ["shutdown"],
    "minitrain.backend": ["Backend", "BackendConfig"],
    "minitrain.callbacks": ["RunContext", "UserCallback"],
    "minitrain.checkpoint": ["Checkpoint"],
    "minitrain.config": [
        "CheckpointConfig",
        "DataConfig",
        "FailureConfig",
        "LaunchConfig",
        "LoggingConfig",
        "RunConfig",
        "ScalingConfig",
        "SyncConfig",
    ],
    "minitrain.context": ["PreemptionInfo", "TrainContext"],
    "minitrain.exceptions": [
        "ControllerError",
        "HostError",
        "MinitrainError",
        "PreemptionError",
        "TrainingFailedError",
        "WorkerGroupError",
    ],
    "minitrain.result": ["Result"],
    "minitrain.session": [
        "CheckpointConsistencyMode",
        "CheckpointUploadMode",
        "ReportedCheckpoint",
        "ReportedCheckpointStatus",
        "get_all_reported_checkpoints",
        "get_checkpoint",
        "get_context",
        "get_dataset_shard",
        "get_preemption_info",
        "report",
    ],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = {"backend", "collective", "exceptions", "stacks", "torch", "trainer"}

__all__ = [
    "TRAIN_DATASET_KEY",
    "Backend",
    "BackendConfig",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointConsistencyMode",
    "CheckpointUploadMode",
    "ControllerError",
    "DataConfig",
    "FailureConfig",
    "HostError",
    "LaunchConfig",
    "LoggingConfig",
    "MinitrainError",
    "PreemptionError",
    "PreemptionInfo",
    "ReportedCheckpoint",
    "ReportedCheckpointStatus",
    "Result",
    "RunConfig",
    "RunContext",
    "ScalingConfig",
    "SyncConfig",
    "TrainContext",
    "TrainingFailedError",
    "UserCallback",
    "WorkerGroupError",
    "__version__",
    "collective",
    "get_all_reported_checkpoints",
    "get_checkpoint",
    "get_context",
    "get_dataset_shard",
    "get_preemption_info",
    "report",
    "shutdown",
    "stacks",
    "torch",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("minitrain")
    if name in _MODULES:
        return importlib.import_module(f"minitrain.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'minitrain' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
