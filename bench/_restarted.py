"""A training in which one rank is killed once, for :mod:`restart`; under torchrun a script::

python -m torch.distributed.run --nproc-per-node 4 --max-restarts 1 bench/_restarted.py FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from _peers import first_line

__all__ = ["train"]


def train(folder: str, victim: int = 1) -> float:
    """Train; in the first attempt until a rank is killed, then to the first line.

    Args:
        folder: Where it leaves when that was.
        victim: The rank that kills itself.

    Returns:
        The seconds from the kill to the first line of the last rank.
    """
    import torch
    import torch.distributed as dist

    killed = Path(folder, "killed")
    if not killed.exists():  # torchrun counts restarts on the host of the failure only
        dist.all_reduce(torch.ones(1))
        if dist.get_rank() == victim:
            killed.write_text(repr(time.time()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))
    return first_line() - float(killed.read_text(encoding="utf-8"))


def main() -> None:
    """Train under torchrun and leave the figure in the folder."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    seconds = train(sys.argv[1], *map(int, sys.argv[2:]))
    if dist.get_rank() == 0:
        Path(sys.argv[1], "seconds").write_text(json.dumps(seconds), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
