"""Where a run lives: its storage, and its directory on the driver's host, often the same."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from minitrain import _env
from minitrain._storage.files import rename_new, write_bytes
from minitrain._storage.layout import RECORD, RunLayout
from minitrain._storage.record import RunRecord
from minitrain._storage.resolve import Location, resolve
from minitrain._storage.run_storage import RunStorage
from minitrain.config import RunConfig
from minitrain.exceptions import ConfigurationError

__all__ = ["Home", "bring_here", "find", "is_left_here", "make", "newest_record"]


@dataclass(frozen=True, slots=True)
class Home:
    """The two places of a run.

    Attributes:
        name: The run's.
        layout: Its directory on this host: logs, tables, working directory.
        storage: What outlives this host: checkpoints, and a copy of the rest.
    """

    name: str
    layout: RunLayout
    storage: RunStorage


Fill: TypeAlias = Callable[[str, RunLayout], object]
"""Writes a new run's first files: given its name, and a directory that nobody else knows yet."""


def make(run_config: RunConfig, trainer: str, fill: Fill, *, one_process: bool) -> Home:
    """Make a new run's directories; a name that is taken gets a number, nothing is overwritten.

    The run's directory appears with everything in it that makes it one which can be restored.

    Args:
        run_config: Where.
        trainer: The trainer's class, for a run without a name.
        fill: Writes the first files.
        one_process: Whether it trains in this process.

    Raises:
        ConfigurationError: The storage path cannot be written to.
    """
    given = run_config.storage_path or _env.text("MINITRAIN_STORAGE")
    location = resolve(given, run_config.storage_filesystem, one_process=one_process)
    name = run_config.name or f"{trainer}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    try:
        if location.is_local:
            return _make_here(location, name, fill)
        return _make_elsewhere(location, name, fill)
    except OSError as error:
        raise ConfigurationError(
            f"RunConfig(storage_path={str(given)!r}): cannot be written to: {error}"
        ) from error


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(1))


def _make_here(location: Location, name: str, fill: Fill) -> Home:
    storage = Path(location.root)
    storage.mkdir(parents=True, exist_ok=True)
    nameless = storage / f".starting-{uuid.uuid4().hex[:12]}"
    nameless.mkdir()
    try:
        for candidate in _numbered(name):
            path = storage / candidate
            if path.exists():
                continue
            _begin(candidate, RunLayout(nameless), fill)
            with suppress(FileExistsError, NotADirectoryError):  # somebody was quicker
                rename_new(nameless, path)
                return Home(candidate, RunLayout(path), location.run(candidate))
    except BaseException:
        shutil.rmtree(nameless, ignore_errors=True)
        raise
    raise AssertionError("there is always another number")


def _make_elsewhere(location: Location, name: str, fill: Fill) -> Home:
    location.probe()
    candidate, storage = next(
        (candidate, storage)
        for candidate in _numbered(name)
        if not (storage := location.run(candidate)).disk.scan()
    )
    folder = _folder_at_hand(candidate, storage)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layout = RunLayout(folder)
    _begin(candidate, layout, fill)
    for path in (layout.trainer, layout.record):
        storage.upload(path, path.name)
    return Home(candidate, layout, storage)


def _begin(name: str, layout: RunLayout, fill: Fill) -> None:
    layout.artifacts.mkdir(exist_ok=True)
    write_bytes(layout.rows, b"")
    fill(name, layout)


def _folder_at_hand(name: str, storage: RunStorage) -> Path:
    key = hashlib.sha256(storage.root.encode()).hexdigest()[:12]
    return Path(_env.text("MINITRAIN_CACHE")).expanduser() / f"{name}-{key}"


def find(path: str, filesystem: object) -> Home:
    """Return the places of a run that has been; nothing is made or fetched.

    Args:
        path: Its directory, as a path or URI.
        filesystem: What holds it, if that is not said by the path.

    Raises:
        ConfigurationError: There is no run, or nobody can tell.
    """
    storage = resolve(path, filesystem, one_process=True).itself()
    name = storage.root.rstrip("/").rpartition("/")[2]
    try:
        is_run = storage.exists(RECORD)
    except OSError as error:
        raise ConfigurationError(f"restore(path={str(path)!r}): cannot be read: {error}") from error
    if not is_run:
        raise ConfigurationError(
            f"restore(path={str(path)!r}): Invalid restore path: there is no run ({RECORD}) there"
        )
    folder = Path(storage.root) if storage.is_local else _folder_at_hand(name, storage)
    return Home(name, RunLayout(folder), storage)


def newest_record(home: Home) -> RunRecord:
    """Return the record of a run as its last driver left it.

    What lies on this host is newer than what the storage has, unless another driver has taken the
    run up since: the first thing that one did was to say so in the storage.
    """
    stored = RunRecord.parse(home.storage.read(RECORD))
    return RunRecord.load(home.layout) if is_left_here(home, stored) else stored


def is_left_here(home: Home, record: RunRecord) -> bool:
    """Return whether the directory on this host is that of the driver that a record names."""
    try:
        return RunRecord.load(home.layout).driver == record.driver
    except FileNotFoundError:
        return False


def bring_here(home: Home, record: RunRecord) -> None:
    """Have a run's directory on this host as its last driver left it, if it lies elsewhere.

    Args:
        home: The run's places.
        record: The newest record. It is not written: whoever goes on with the run does that.
    """
    if home.storage.is_local or is_left_here(home, record):
        return
    layout = home.layout
    shutil.rmtree(layout.root, ignore_errors=True)  # the run has gone on without it
    layout.artifacts.mkdir(parents=True)
    for path in (layout.rows, layout.table, layout.trainer):
        data = b""  # a driver that ended early has not brought them there
        with suppress(FileNotFoundError):
            data = home.storage.read(path.name)
        write_bytes(path, data)
