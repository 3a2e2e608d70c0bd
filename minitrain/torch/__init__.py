"""PyTorch: ``TorchTrainer``, and what a train function needs to become a distributed one.

Importing this starts the agent in the background (``MINITRAIN_PRESTART=0`` turns that off), so
that it imports torch beside your script instead of after it.
"""

from __future__ import annotations

from minitrain._driver.agents import prestart
from minitrain.torch.accelerate import accelerate, backward, prepare_optimizer
from minitrain.torch.checkpoint import TorchCheckpoint
from minitrain.torch.config import TorchConfig
from minitrain.torch.device import enable_reproducibility, get_device, get_devices
from minitrain.torch.loader import prepare_data_loader
from minitrain.torch.model import prepare_model
from minitrain.torch.state import load_state, save_state
from minitrain.torch.trainer import TorchTrainer

__all__ = [
    "TorchCheckpoint",
    "TorchConfig",
    "TorchTrainer",
    "accelerate",
    "backward",
    "enable_reproducibility",
    "get_device",
    "get_devices",
    "load_state",
    "prepare_data_loader",
    "prepare_model",
    "prepare_optimizer",
    "save_state",
]

# Every optimizer imports torch._dynamo, which takes the better part of a second.
prestart(when_idle=("minitrain.torch", "torch._dynamo"))
