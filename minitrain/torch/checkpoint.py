"""Checkpoints that hold a torch model in one file, ``model.pt``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from minitrain.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TorchCheckpoint"]


class TorchCheckpoint(Checkpoint):
    """A checkpoint with a model or its state."""

    MODEL_FILENAME = "model.pt"

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Any]) -> Self:
        """Return a checkpoint of a state dict; the names DDP gives lose their ``module.``.

        The files are in a temporary folder that belongs to the caller.
        """
        return cls._saved({name.removeprefix("module."): v for name, v in state_dict.items()})

    @classmethod
    def from_model(cls, model: nn.Module) -> Self:
        """Return a checkpoint of a whole model, pickled."""
        from torch.nn.parallel import DistributedDataParallel

        return cls._saved(model.module if isinstance(model, DistributedDataParallel) else model)

    @classmethod
    def _saved(cls, value: Any) -> Self:
        import torch

        folder = tempfile.mkdtemp(prefix="torch_checkpoint_")
        torch.save(value, Path(folder, cls.MODEL_FILENAME))
        return cls.from_directory(folder)

    def get_model(self, model: nn.Module | None = None) -> nn.Module:
        """Return the model, on the CPU.

        Args:
            model: Where to load the state into, if the checkpoint holds a state dict.

        Raises:
            ValueError: It holds a state dict and there is no model to load it into.
        """
        import torch

        with self.as_directory() as path:
            # A whole model is a pickle of the user's own making, not only tensors.
            loaded = torch.load(
                Path(path, self.MODEL_FILENAME), map_location="cpu", weights_only=False
            )
        if not isinstance(loaded, dict):
            whole: nn.Module = loaded
            return whole
        if model is None:
            raise ValueError("this checkpoint holds a state dict: pass get_model(model)")
        model.load_state_dict(loaded)
        return model
