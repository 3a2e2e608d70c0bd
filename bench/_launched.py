"""What :mod:`launch` runs over hosts: a script as users write it, and what it says of itself.

python -m minitrain.launch --hosts h1:2,h2:2 bench/_launched.py fits OUT 4

``fits`` trains several times to the first line, ``restart`` once until the last rank has been
killed and again, ``reports`` with and without reports. Either leaves what it has seen in OUT.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from _peers import first_line
from _restarted import train

import minitrain
from minitrain import FailureConfig, RunConfig, ScalingConfig
from minitrain.torch import TorchTrainer

NUM_FITS = 4
SCALARS = {"loss": 0.125, "accuracy": 0.875, "learning_rate": 3e-4, "epoch": 3, "step": 1234}


def fit(folder: Path, function: Any, num_workers: int, max_failures: int = 0) -> Any:
    """Train and return what rank 0 returned."""
    trainer = TorchTrainer(
        function,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )
    return trainer.fit().return_value


def fits(folder: Path, num_workers: int) -> list[dict[str, float]]:
    """Train several times; return when each was called, had its first line, and returned."""
    times = []
    for _ in range(NUM_FITS):
        called_s = time.time()
        line_s = fit(folder, first_line, num_workers)
        times.append({"called": called_s, "line": line_s, "returned": time.time()})
    return times


def restart(folder: Path, num_workers: int) -> float:
    """Return the seconds from the death of the last rank to the next first line."""
    seconds = fit(folder, lambda: train(str(folder), num_workers - 1), num_workers, 1)
    return float(seconds)


def report(count: int) -> None:
    """Report a number of times."""
    for _ in range(count):
        minitrain.report(SCALARS)


def reports(folder: Path, count: int) -> float:
    """Return how many bytes the driver reads for a report of rank 0."""
    from minitrain._wire.channel import Channel

    read = [0]
    fill = Channel._fill  # noqa: SLF001 - there is no other place that all of it passes

    def counted(channel: Channel) -> bool:
        before = len(channel._received)  # noqa: SLF001
        is_open = fill(channel)
        read[0] += len(channel._received) - before  # noqa: SLF001
        return is_open

    Channel._fill = counted  # type: ignore[method-assign]  # noqa: SLF001
    fit(folder, lambda: report(0), 1)
    without, read[0] = read[0], 0
    fit(folder, lambda: report(count), 1)
    return (read[0] - without) / count


def main() -> None:
    """Do one of these and write down what came of it."""
    what, out, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    seen = {"fits": fits, "restart": restart, "reports": reports}[what](out.parent, number)
    out.write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main()
