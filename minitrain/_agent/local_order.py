"""Turns a driver's order to start workers into one for this host, where the driver is elsewhere."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from minitrain._env import AGENT_VARIABLES, CROSSED_VARIABLE
from minitrain._hosts.code import unpack
from minitrain._os.processes import MARK_VARIABLE
from minitrain._wire.messages import StartWorkers

__all__ = ["LocalOrder"]


class LocalOrder:
    """What this host has of its own: an environment, a search path, a place for files.

    Args:
        folder: The agent's folder for temporary files.
        elsewhere: Whether the driver is on another host.

    Attributes:
        code: The user's packed files, if the driver sent any.
    """

    def __init__(self, folder: Path, *, elsewhere: bool) -> None:
        self._elsewhere = elsewhere
        self._code_folder = folder / "code"
        self._work_folder = folder / "work"
        # What crossed when the agent started may have been taken back: orders bring it anew.
        crossed = os.environ.get(CROSSED_VARIABLE, "").split(",")
        own = {*AGENT_VARIABLES, MARK_VARIABLE, CROSSED_VARIABLE, *crossed}
        self._environ = {name: text for name, text in os.environ.items() if name not in own}
        self._sys_path = tuple(sys.path)
        self.code = b""

    def here(self, order: StartWorkers) -> StartWorkers:
        """Return the order as it is meant on this host."""
        if not self._elsewhere:
            return order
        sent = [self._moved(entry, order.code_from) for entry in order.sys_path]
        working_dir = order.working_dir or str(self._work_folder)
        if order.working_dir == order.code_from:  # and not the run's directory below it
            working_dir = self._moved(working_dir, order.code_from)
        return replace(
            order,
            environ={**self._environ, **order.environ},
            sys_path=tuple(dict.fromkeys([*sent, *self._sys_path])),
            working_dir=working_dir,
        )

    def _moved(self, path: str, code_from: str) -> str:
        """Return where a path of the driver's host lies here."""
        if code_from and Path(path).is_relative_to(code_from):
            return str(self._code_folder / Path(path).relative_to(code_from))
        return path

    def make_folders(self, order: StartWorkers) -> None:
        """Make the folders that workers start in, once there is one for temporary files.

        Raises:
            OSError: The disk is full, or there is no such directory.
        """
        if not self._elsewhere:
            return
        if order.code_from:
            unpack(self.code, self._code_folder)
        if order.working_dir == str(self._work_folder):
            self._work_folder.mkdir(exist_ok=True)
        elif not Path(order.working_dir).is_dir():
            raise FileNotFoundError(
                f"the workers' directory {order.working_dir} does not exist there; name another "
                "with --workdir, or have the files brought there with --sync-code"
            )
