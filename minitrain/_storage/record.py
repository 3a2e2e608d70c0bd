"""``run.json``: what was asked, every attempt, how it ended. Replaced in one step, never edited."""

from __future__ import annotations

import datetime
import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any, Literal

from minitrain._logging import logger
from minitrain._os.processes import began_at
from minitrain._storage.files import write_bytes
from minitrain._storage.layout import RunLayout

__all__ = ["Attempt", "RunRecord", "Status", "now", "this_process"]

Status = Literal["running", "finished", "stopped", "failed", "interrupted", "preempted"]


def now() -> str:
    """Return the time as it is written into files, with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


def this_process() -> dict[str, Any]:
    """Return what tells this process from every other one."""
    return {
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "began": began_at(os.getpid()),
    }


@dataclass
class Attempt:
    """One life of the worker group.

    Attributes:
        world_size: Its workers.
        began: When it was started.
        ended: When nothing of it was left.
        workers: Rank, process id and host of every worker.
        outcome: How it ended, in a word or with the first line of its error.
    """

    world_size: int
    began: str = field(default_factory=now)
    ended: str | None = None
    outcome: str | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RunRecord:
    """A run as its directory remembers it.

    Attributes:
        name: The run's name.
        run_id: Its unique id.
        trainer: The trainer's class.
        minitrain_version: What wrote this.
        status: ``running`` also stands there when a driver was killed.
        driver: Process id and host of the driver, and when that process began.
        scaling: What was asked for.
        config: The train function's configuration as plain data.
        num_to_keep: How many checkpoints stay.
        score_attribute: What ranks them.
        score_order: ``max`` or ``min``.
        attempts: Every life of the worker group.
        checkpoints: Names of those that stay, oldest first.
        began: When fit() was called.
        ended: When it was over.
        launch: The launch of another launcher that it is part of; None: fit() started workers.
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
    driver: dict[str, Any] = field(default_factory=this_process)
    attempts: list[Attempt] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    began: str = field(default_factory=now)
    ended: str | None = None
    launch: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.status in {"finished", "stopped"}

    def dump(self) -> bytes:
        """Return what ``run.json`` is to say: one line a name, and one an attempt.

        Written again at every checkpoint, also where there are thousands of workers.
        """
        lines = [f" {json.dumps(name)}: {_lines(value)}" for name, value in vars(self).items()]
        return "\n".join(["{", ",\n".join(lines), "}", ""]).encode()

    @property
    def driver_is_alive(self) -> bool:
        """Whether the process that runs this is still there, as far as this host can tell."""
        if self.status != "running" or self.driver["hostname"] != socket.gethostname():
            return False
        return self.driver.get("began") == began_at(self.driver["pid"]) is not None

    def save(self, layout: RunLayout) -> None:
        """Replace ``run.json``."""
        write_bytes(layout.record, self.dump())

    def keep(self, layout: RunLayout) -> None:
        """Replace ``run.json`` if that is possible: where the disk is full, the run says why."""
        try:
            self.save(layout)
        except OSError as error:
            logger.warning("%s is not up to date: %s", layout.record, error)

    @classmethod
    def load(cls, layout: RunLayout) -> RunRecord:
        """Return what ``run.json`` says.

        Raises:
            FileNotFoundError: There is none.
        """
        return cls.parse(layout.record.read_bytes())

    @classmethod
    def parse(cls, data: bytes) -> RunRecord:
        """Return what ``run.json`` says, from its contents."""
        values = json.loads(data)
        values["attempts"] = [Attempt(**attempt) for attempt in values["attempts"]]
        return cls(**values)


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Attempt):
        return "[\n" + ",\n".join(f"  {json.dumps(vars(attempt))}" for attempt in value) + "\n ]"
    return json.dumps(value)
