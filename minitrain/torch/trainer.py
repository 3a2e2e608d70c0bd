"""The trainer for PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minitrain.checkpoint import Checkpoint
from minitrain.config import DataConfig, RunConfig, ScalingConfig
from minitrain.exceptions import ConfigurationError
from minitrain.torch.config import TorchConfig
from minitrain.trainer import DataParallelTrainer, TrainFunction

__all__ = ["TorchTrainer"]


class TorchTrainer(DataParallelTrainer):
    """Runs a train function in several workers with a process group between them.

    Args:
        train_loop_per_worker: The train function. It takes nothing or the configuration.
        train_loop_config: The configuration it is given.
        torch_config: How the process group is made.
        scaling_config: How many workers.
        run_config: Where the run goes and how it is watched.
        dataset_config: Which datasets are divided among the workers.
        datasets: By name, for :func:`minitrain.get_dataset_shard`.
        metadata: JSON that is added to the metadata of every checkpoint.
        resume_from_checkpoint: What :func:`minitrain.get_checkpoint` returns at the start.

    Raises:
        ConfigurationError: (a ValueError) An argument is of the wrong kind.
        TypeError: ``metadata`` is not a dict.

    Example:
        >>> import minitrain
        >>> from minitrain import ScalingConfig
        >>> from minitrain.torch import TorchTrainer
        >>> def train():
        ...     import torch
        ...     total = torch.ones(1)
        ...     torch.distributed.all_reduce(total)
        ...     minitrain.report({"total": total.item()})
        >>> trainer = TorchTrainer(train, scaling_config=ScalingConfig(num_workers=2))
        >>> trainer.fit().metrics["total"]
        2.0
    """

    def __init__(
        self,
        train_loop_per_worker: TrainFunction,
        *,
        train_loop_config: Mapping[str, Any] | None = None,
        torch_config: TorchConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        dataset_config: DataConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        resume_from_checkpoint: Checkpoint | None = None,
    ) -> None:
        if torch_config is not None and not isinstance(torch_config, TorchConfig):
            raise ConfigurationError(
                f"torch_config={torch_config!r}: must be a minitrain.torch.TorchConfig, "
                f"not {type(torch_config).__name__}"
            )
        super().__init__(
            train_loop_per_worker,
            train_loop_config=train_loop_config,
            backend_config=torch_config or TorchConfig(),
            scaling_config=scaling_config,
            run_config=run_config,
            dataset_config=dataset_config,
            datasets=datasets,
            metadata=metadata,
            resume_from_checkpoint=resume_from_checkpoint,
        )
