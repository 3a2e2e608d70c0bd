"""The run's log of reports: ``result.json``, one JSON line per report, only ever appended to.

The worker of rank 0 writes its row itself, before ``report()`` returns: from then on the row is in
the kernel's hands, and no process that is killed, the driver included, takes it along. Only where
that worker is on another host than the driver, the driver writes what it hears from it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitrain._os.machine import node_ip

__all__ = [
    "RowBuilder",
    "RowFile",
    "as_plain_data",
    "count_rows",
    "flatten",
    "parse_rows",
    "read_rows",
    "repair",
]


class RowBuilder:
    """Adds to a report's metrics the keys that ray.train fills in.

    Args:
        run_id: Becomes ``trial_id``.
        iterations: Reports the run already has.
        time_total_s: Seconds the run has already trained.
    """

    def __init__(self, run_id: str, iterations: int, time_total_s: float) -> None:
        self._fixed = {
            "done": False,
            "trial_id": run_id,
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "node_ip": node_ip(),
            "experiment_tag": "0",
        }
        self._iterations_before = iterations
        self._time_before_s = time_total_s
        self._began_s = self._last_s = self._before_s = time.monotonic()
        self._count = 0

    def row(self, metrics: Mapping[str, Any], checkpoint: str | None) -> dict[str, Any]:
        """Return the row of the next report; a key that the user reports is the user's."""
        now_s = time.monotonic()
        self._count += 1
        since_start_s = now_s - self._began_s
        wall = time.time()
        row = {
            "timestamp": int(wall),
            "checkpoint_dir_name": checkpoint,
            "should_checkpoint": checkpoint is not None,
            "training_iteration": self._iterations_before + self._count,
            "date": time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(wall)),
            "time_this_iter_s": now_s - self._last_s,
            "time_total_s": self._time_before_s + since_start_s,
            "time_since_restore": since_start_s,
            "iterations_since_restore": self._count,
            **self._fixed,
        }
        self._before_s, self._last_s = self._last_s, now_s
        return {**metrics, **{key: value for key, value in row.items() if key not in metrics}}

    def take_back(self) -> None:
        """Forget the last row: its report did not count."""
        self._count -= 1
        self._last_s = self._before_s


class RowFile:
    """Appends rows to ``result.json``.

    Args:
        path: The file; made if it is missing.
        config: The configuration, part of every row as in ray.train.
    """

    def __init__(self, path: Path, config: Any) -> None:
        self._path = path
        self._config = json.dumps(config)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, row: Mapping[str, Any], *, durable: bool) -> None:
        """Append one row.

        Args:
            row: Plain data without the configuration.
            durable: Whether it must also outlive a loss of power.

        Raises:
            OSError: The disk is full; the beginning of the row is taken back.
        """
        text = json.dumps(row)
        if "config" not in row:  # a key that the user reports is the user's
            text = f'{text[:-1]}, "config": {self._config}}}'
        line = f"{text}\n".encode()
        written = os.write(self._descriptor, line)
        if written < len(line):
            size = os.fstat(self._descriptor).st_size
            os.ftruncate(self._descriptor, size - written)
            raise OSError(f"{self._path}: only {written} of {len(line)} bytes fit on the disk")
        if durable:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return every whole row; a torn last line, left by a power cut, is passed over."""
    try:
        return parse_rows(path.read_bytes())
    except FileNotFoundError:
        return []


def parse_rows(data: bytes) -> list[dict[str, Any]]:
    """Return every whole row of a file's contents."""
    lines = data.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return [json.loads(line) for line in lines]


def count_rows(path: Path) -> int:
    """Return the number of whole rows."""
    return path.read_bytes().count(b"\n")


def repair(path: Path) -> None:
    """Cut off a torn last line, so that the next row starts on a line of its own."""
    try:
        with path.open("rb+") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
    except FileNotFoundError:
        return


def as_plain_data(value: Any) -> Any:
    """Return a configuration as JSON can hold it; what it cannot hold becomes its ``repr``."""
    if isinstance(value, Mapping):
        return {str(key): as_plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain_data(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a row with nested keys joined by slashes.

    >>> flatten({"loss": 1, "val": {"acc": 2}})
    {'loss': 1, 'val/acc': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
