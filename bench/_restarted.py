"""A training in which rank 1 is killed once, for :mod:`restart`; under torchrun a script::

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


def train(folder: str) -> float:
    """Train; in the first attempt until rank 1 is killed, then to the first line.

    Returns:
        The seconds from the kill to the first line of the last rank.
    """
    import torch
    import torch.distributed as dist

    killed = Path(folder, "killed")
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        dist.all_reduce(torch.ones(1))
        if dist.get_rank() == 1:
            killed.write_text(repr(time.time()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))
    return first_line() - float(killed.read_text(encoding="utf-8"))


def main() -> None:
    """Train under torchrun and leave the figure in the folder."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    seconds = train(sys.argv[1])
    if dist.get_rank() == 0:
        Path(sys.argv[1], "seconds").write_text(json.dumps(seconds), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
