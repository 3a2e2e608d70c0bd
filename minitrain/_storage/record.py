"""``run.json``: what was asked, every attempt, how it ended. Replaced in one step, never edited."""

from __future__ import annotations

import datetime
import os
import socket
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from minitrain._storage.files import read_json, write_json
from minitrain._storage.layout import RunLayout

__all__ = ["Attempt", "RunRecord", "Status", "now"]

Status = Literal["running", "finished", "stopped", "failed", "interrupted"]


def now() -> str:
    """Return the time as it is written into files, with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


@dataclass
class Attempt:
    """One life of the worker group.

    Attributes:
        world_size: Its workers.
        began: When it was started.
        ended: When nothing of it was left.
        outcome: How it ended, in a word or with the first line of its error.
    """

    world_size: int
    began: str = field(default_factory=now)
    ended: str | None = None
    outcome: str | None = None


@dataclass
class RunRecord:
    """A run as its directory remembers it.

    Attributes:
        name: The run's name.
        run_id: Its unique id.
        trainer: The trainer's class.
        minitrain_version: What wrote this.
        status: ``running`` also stands there when a driver was killed.
        driver: Process id and host of the driver.
        scaling: What was asked for.
        config: The train function's configuration as plain data.
        num_to_keep: How many checkpoints stay.
        score_attribute: What ranks them.
        score_order: ``max`` or ``min``.
        attempts: Every life of the worker group.
        checkpoints: Names of those that stay, oldest first.
        began: When fit() was called.
        ended: When it was over.
    """

    name: str
    run_id: str
    trainer: str
    minitrain_version: str
    scaling: dict[str, Any]
    config: Any
    num_to_keep: int | None
    score_attribute: str | None
    score_order: str
    status: Status = "running"
    driver: dict[str, Any] = field(
        default_factory=lambda: {"pid": os.getpid(), "hostname": socket.gethostname()}
    )
    attempts: list[Attempt] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    began: str = field(default_factory=now)
    ended: str | None = None

    def save(self, layout: RunLayout) -> None:
        """Replace ``run.json``."""
        write_json(layout.record, asdict(self))

    @classmethod
    def load(cls, layout: RunLayout) -> RunRecord:
        """Return what ``run.json`` says.

        Raises:
            FileNotFoundError: There is none.
        """
        values = read_json(layout.record)
        values["attempts"] = [Attempt(**attempt) for attempt in values["attempts"]]
        return cls(**values)
