"""The training loop that step_time.py runs on both sides, word for word.

Under torchrun this file is the script, ``_loop_driver.py`` is the one that calls ``fit()``::

    python -m torch.distributed.run --nproc-per-node 2 bench/_loops.py mlp 20 200 SOCKET

Both sides are alive at the same time and train in turns, a block of steps each: what the machine
does to one it does to the other. Rank 0 waits at SOCKET for its turn and says there how long its
steps took; the other rank waits for rank 0, in the collective.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn

__all__ = ["LOOPS", "train_in_turns"]

Wrap = Callable[[nn.Module], nn.Module]


class Block(nn.Module):
    """Two convolutions and a way around them, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum of both ways."""
        return torch.relu(self.body(images) + self.around(images))


def residual_net(width: int = 16) -> nn.Module:
    """Return ResNet-18's four stages of two blocks, narrower, for images of 32 x 32."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(4):
        outputs = width << stage
        layers.append(Block(channels, outputs, 1 if stage == 0 else 2))
        layers.append(Block(outputs, outputs, 1))
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def small_mlp() -> nn.Module:
    """Return a perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


LOOPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (small_mlp, (64, 64)),
    "cnn": (residual_net, (16, 3, 32, 32)),
}
"""Model and shape of a batch, by name."""


def train_in_turns(name: str, blocks: int, steps: int, address: str, wrap: Wrap) -> None:
    """Train block by block, each when it is this side's turn.

    Args:
        name: Which of the loops.
        blocks: How many blocks.
        steps: How many steps a block has.
        address: The socket where turns are given.
        wrap: Makes the model a distributed one.
    """
    torch.manual_seed(0)
    make, shape = LOOPS[name]
    model = wrap(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, labels = torch.randn(shape), torch.randint(10, shape[:1])

    def block() -> float:
        took_s = []
        for _ in range(steps):
            began_s = time.perf_counter()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            took_s.append(time.perf_counter() - began_s)
        return median(took_s)

    if os.environ["RANK"] == "0":
        with _turns(address) as turns:
            for _ in range(blocks):
                turns(block)
    else:
        for _ in range(blocks):
            block()


@contextmanager
def _turns(address: str) -> Iterator[Callable[[Callable[[], float]], None]]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw") as lines:

            def take(block: Callable[[], float]) -> None:
                if not lines.readline():
                    raise RuntimeError("whoever gives the turns is gone")
                print(block(), file=lines, flush=True)

            yield take


def _main(name: str, blocks: int, steps: int, address: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    train_in_turns(name, blocks, steps, address, nn.parallel.DistributedDataParallel)
    # The wrapped model is part of a reference cycle, and its reducer holds the process group. Left
    # to the end of the interpreter, that aborts one run in ten (torch 2.13, "terminate called").
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
