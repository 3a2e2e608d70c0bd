"""Brings what a run writes on the driver's host to its storage, where that is elsewhere."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

from minitrain._driver.clerk import Outcome
from minitrain._driver.home import Home
from minitrain._logging import logger
from minitrain._storage.layout import RECORD
from minitrain.config import SyncConfig

__all__ = ["Mirror", "bring_all_home"]


class Mirror:
    """Copies files that have changed: tables, logs, and what workers wrote if that is wanted.

    Args:
        home: The run's directories.
        config: How often, and what.

    Attributes:
        due_s: When the next copy is to be made, on the monotonic clock; infinity if never.
    """

    def __init__(self, home: Home, config: SyncConfig) -> None:
        self._layout = home.layout
        self._storage = home.storage
        self._config = config
        self._brought: dict[str, tuple[int, int]] = {}
        self.due_s = math.inf
        self.put_off()

    def put_off(self) -> None:
        """Begin to wait for the next time."""
        if not self._storage.is_local:
            self.due_s = time.monotonic() + self._config.sync_period

    def sync(self, *, at_end: bool = False) -> None:
        """Copy every file that has changed since it was last copied.

        Args:
            at_end: Whether nothing will change any more.

        Raises:
            OSError: The storage does not take it.
        """
        if self._storage.is_local:
            return
        for path in self._wanted(at_end=at_end):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            name = path.relative_to(self._layout.root).as_posix()
            seen = (status.st_size, status.st_mtime_ns)
            if self._brought.get(name) != seen:
                self._storage.upload(path, name)
                self._brought[name] = seen

    def _wanted(self, *, at_end: bool) -> list[Path]:
        root, artifacts = self._layout.root, self._layout.artifacts
        config = self._config
        # The record comes last, and its changes while training goes on by another way.
        record = [root / RECORD] if at_end else []
        files = [path for path in root.iterdir() if path.is_file() and path.name != RECORD]
        files += [path for path in (root / "logs").rglob("*") if path.is_file()]
        if config.sync_artifacts and (at_end or config.sync_artifacts_on_checkpoint):
            files += [path for path in artifacts.rglob("*") if path.is_file()]
        return [path for path in files if not path.name.endswith(".tmp")] + record

    def warn(self, outcome: Outcome[None]) -> None:
        """Say that something could not be copied; the next time it is tried again."""
        if isinstance(outcome, Exception):
            logger.warning("the run's files could not be brought to its storage: %s", outcome)


def bring_all_home(home: Home, config: SyncConfig) -> None:
    """Copy everything when a run is over, and remove what then lies on this host in vain."""
    if home.storage.is_local:
        return
    try:
        Mirror(home, config).sync(at_end=True)
        for path in (home.layout.error_text, home.layout.error_pickle):
            if not path.exists():
                home.storage.remove(path.name)  # of an attempt before a restore
    except OSError as error:
        logger.warning(
            "%s does not take the run's files (%s); they stay in %s",
            home.storage.root,
            error,
            home.layout.root,
        )
    else:
        shutil.rmtree(home.layout.root, ignore_errors=True)
