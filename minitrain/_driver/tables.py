"""The run's reports as ``progress.csv`` and, where TensorBoard is installed, its events.

``result.json`` is not written here: the worker of rank 0 does that itself, or, where that is on
another host, :mod:`traffic`.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from minitrain._storage.files import write_bytes
from minitrain._storage.layout import RunLayout
from minitrain._storage.rows import RowFile, count_rows, flatten, read_rows, repair

__all__ = ["Tables", "rewrite"]


class Tables:
    """Writes every report's row to the tables of a run.

    Args:
        layout: The run's directory.
        config: The configuration, part of every row.
        num_rows: How many they have from the run's earlier life, if it had one.
    """

    def __init__(self, layout: RunLayout, config: Any, num_rows: int = 0) -> None:
        self._csv = _CsvTable(layout.table)
        self._root = layout.root
        self._plain_config = config
        self._config = flatten({"config": config}) if config else {}
        self._events: _Events | None = None
        self._events_wanted = True
        self._count = num_rows
        self._last: Mapping[str, Any] = {}

    def agree_with(self, path: Path) -> None:
        """Make ``result.json`` and the tables agree after workers have ended.

        A worker that was killed may have written a row that never reached the driver, or have
        reported a checkpoint that was committed, and not come to write the row.

        Args:
            path: ``result.json``.
        """
        repair(path)
        missing = count_rows(path) - self._count
        if missing > 0:
            for row in read_rows(path)[-missing:]:
                self.append({key: value for key, value in row.items() if key != "config"})
        elif missing < 0:
            with closing(RowFile(path, self._plain_config)) as rows:
                rows.append(self._last, durable=True)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        self._count += 1
        self._last = row
        flat = flatten(row)
        self._csv.append({**flat, **self._config})
        if self._events_wanted and self._events is None:
            # Made at the first row: the import takes a moment that starting should not wait for.
            self._events = _event_writer(self._root)
            self._events_wanted = self._events is not None
        if self._events is not None:
            step = flat.get("training_iteration", 0)
            self._events.write(_numbers(flat), step if isinstance(step, int) else 0)

    def close(self) -> None:
        """Write what is held back and close the files."""
        self._csv.close()
        if self._events is not None:
            self._events.close()


def rewrite(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace ``progress.csv`` by the rows of ``result.json``."""
    flat = [flatten(row) for row in rows]
    _write(path, list(dict.fromkeys(name for row in flat for name in row)), flat)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if columns:
        writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def _numbers(flat: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class _CsvTable:
    """A CSV file whose columns are all keys ever seen: a new one rewrites the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        if path.exists():  # an earlier attempt's or an interrupted run's
            with path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])
        self._file = path.open("a", newline="")

    def append(self, flat: Mapping[str, Any]) -> None:
        new = [name for name in flat if name not in self._columns]
        if new:
            self._add_columns(new)
        csv.DictWriter(self._file, self._columns).writerow(flat)
        self._file.flush()

    def _add_columns(self, names: list[str]) -> None:
        self._file.close()
        with self._path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._columns += names
        _write(self._path, self._columns, rows)
        self._file = self._path.open("a", newline="")

    def close(self) -> None:
        self._file.close()


class _Events(Protocol):
    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add one event."""

    def close(self) -> None:
        """Close the file."""


def _event_writer(root: Path) -> _Events | None:
    if importlib.util.find_spec("tensorboard") is not None:
        return _TensorBoard(root)
    if importlib.util.find_spec("tensorboardX") is not None:
        return _TensorBoardX(root)
    return None


class _TensorBoard:
    def __init__(self, root: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(root))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=number) for name, number in numbers.items()
        ]
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._writer.close()


class _TensorBoardX:
    def __init__(self, root: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(root))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        self._writer.close()
