"""What must hold of a run whatever was done to it: read from its directory, and counted."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from _chaos_training import NUM_TO_KEEP, NUM_WORKERS, RUN, problem, step_of

from minitrain._os.processes import is_alive

__all__ = ["Checks", "Life", "Violation", "processes_with"]

GONE_WITHIN_S = 3.0
MOST_UNFINISHED = 4
"""Two on their way, one that is waited for, one that is being deleted."""


class Violation(Exception):  # noqa: N818 - what it is
    """Something that must hold does not."""


@dataclass
class Life:
    """One life of the training, by rank 0's journal.

    Attributes:
        resumed: The checkpoint it started from.
        start: That checkpoint's step.
        acknowledged: The step of the last report that returned.
        sync: Name and step of the last checkpoint whose report returned.
        num_reports: How many reports returned.
    """

    resumed: str | None
    start: int
    acknowledged: int
    sync: tuple[str, int] | None
    num_reports: int


@dataclass
class Checks:
    """The invariants of one campaign.

    Attributes:
        folder: The campaign's.
        storage: Where the run is.
        count: How many invariants have been looked at.
        damaged: Names of the checkpoints that the campaign damaged.
    """

    folder: Path
    storage: Path
    count: int = 0
    damaged: set[str] = field(default_factory=set)
    _lives: dict[str, Life] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.storage / RUN

    def that(self, condition: object, message: str) -> None:
        """Look at one invariant.

        Raises:
            Violation: It does not hold.
        """
        self.count += 1
        if not condition:
            raise Violation(message)

    # ------------------------------------------------------------------ what is there
    def lives(self) -> dict[str, Life]:
        """Return every life so far, oldest first; only the newest can still change."""
        names = sorted(path.name for path in (self.folder / "lives").iterdir())
        for name in names:
            if name not in self._lives or name in names[-2:]:
                life = _read_life(self.folder / "lives" / name)
                if life is not None:
                    self._lives[name] = life
        return {name: self._lives[name] for name in names if name in self._lives}

    def record(self) -> dict[str, Any]:
        """Return what ``run.json`` says now."""
        return dict(json.loads((self.run / "run.json").read_bytes()))

    def rows(self) -> list[dict[str, Any]]:
        """Return the whole lines of ``result.json``."""
        lines = (self.run / "result.json").read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def committed(self) -> dict[str, dict[str, Any]]:
        """Return the manifests of all directories that are checkpoints, by name."""
        found = {}
        for path in sorted(self.run.glob("checkpoint_*")):
            with suppress(FileNotFoundError):
                found[path.name] = json.loads((path / ".manifest.json").read_bytes())
        return found

    # ------------------------------------------------------------------ while it goes on
    def check(self) -> None:
        """Look at everything that must hold at any time."""
        violations = self.folder / "violations"
        self.that(not violations.exists(), violations.exists() and violations.read_text())
        lives = self.lives()
        self._check_starts(lives)
        self._check_rows(lives, self.rows())
        self._check_directory()

    def _check_starts(self, lives: dict[str, Life]) -> None:
        """No life starts from less than was promised to an earlier one."""
        promised: tuple[str, int] | None = None
        for name, life in lives.items():
            if name not in self._checked:
                excused = promised and any(one >= promised[0] for one in self.damaged)
                self.that(
                    promised is None or excused or life.start >= promised[1],
                    f"life {name} started from {life.resumed} (step {life.start}), but the report "
                    f"of {promised} had returned",
                )
                self._checked.add(name)
            promised = life.sync or promised

    def _check_rows(self, lives: dict[str, Life], rows: list[dict[str, Any]]) -> None:
        iterations = [row["training_iteration"] for row in rows]
        self.that(
            iterations == list(range(1, len(rows) + 1)),
            f"training_iteration is not 1, 2, 3 ...: {_around_the_break(iterations)}",
        )
        names = [row["checkpoint_dir_name"] for row in rows if row["checkpoint_dir_name"]]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        self.that(not twice, f"names of checkpoints that were used twice: {twice}")
        steps: dict[str, list[int]] = {}
        for row in rows:
            steps.setdefault(row["life"], []).append(row["step"])
        for name, life in lives.items():
            mine = steps.get(name, [])
            self.that(
                mine == list(range(life.start + 1, life.start + 1 + len(mine))),
                f"life {name} began after step {life.start}; its rows have the steps "
                f"{_around_the_break(mine)}",
            )
            self.that(
                len(mine) >= life.num_reports,
                f"life {name}: {life.num_reports} reports returned, {len(mine)} are in result.json",
            )

    def _check_directory(self) -> None:
        """Look at checkpoints while they come and go, with the eyes of somebody who may be late."""
        before = self.record()
        committed = self.committed()
        after = self.record()
        named = set(before["checkpoints"]) & set(after["checkpoints"])
        missing = sorted(named - committed.keys())
        self.that(not missing, f"run.json names {missing}, which are no checkpoints")
        self.that(
            len(committed) <= NUM_TO_KEEP + 2,
            f"num_to_keep={NUM_TO_KEEP}, but there are {sorted(committed)}",
        )
        unfinished = [path for path in self.run.iterdir() if path.name.startswith(".unfinished")]
        unfinished += [
            path for path in self.run.glob("checkpoint_*") if (path / ".unfinished").exists()
        ]
        self.that(len(unfinished) <= MOST_UNFINISHED, f"left unfinished: {unfinished}")

    # ------------------------------------------------------------------ after a driver
    def check_nothing_left(self, mark: str) -> None:
        """See to it that a driver's family and its temporary files go away in time."""
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while left := self._left(mark):
            self.that(time.monotonic() < deadline_s, f"left by a driver that ended: {left}")
            time.sleep(0.02)
        self.count += 1

    def _left(self, mark: str) -> list[str]:
        files = [str(path) for path in (self.folder / "tmp").iterdir()]
        return [*(f"process {pid}" for pid in processes_with(mark)), *files]

    # ------------------------------------------------------------------ at the end
    def check_end(self, last_step: int) -> None:
        """Compare the run with one that nobody disturbed."""
        self.check()
        record, committed, rows = self.record(), self.committed(), self.rows()
        self.that(record["status"] == "finished", f"run.json says {record['status']}")
        self.that(
            record["checkpoints"] == sorted(committed) and len(committed) == NUM_TO_KEEP,
            f"run.json names {record['checkpoints']}, there are {sorted(committed)}",
        )
        by_name = {row["checkpoint_dir_name"]: row for row in rows}
        for name, manifest in committed.items():
            row = {key: value for key, value in by_name.get(name, {}).items() if key != "config"}
            self.that(manifest["report"] == row, f"{name} and its row differ")
        newest = self.run / record["checkpoints"][-1]
        for rank in range(NUM_WORKERS):
            wrong = problem(newest, rank)
            self.that(not wrong, f"{newest.name}: {wrong}")
            self.that(step_of(newest, rank) == last_step, f"rank {rank} is not at {last_step}")
        with (self.run / "progress.csv").open(newline="") as file:
            table = [(int(row["step"]), row["life"]) for row in csv.DictReader(file)]
        same = table == [(row["step"], row["life"]) for row in rows]
        self.that(same, "progress.csv and result.json differ")
        command = [sys.executable, "-m", "minitrain.verify", str(self.run)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.that(done.returncode == 0, f"minitrain.verify: {done.stdout}{done.stderr}")


def processes_with(mark: str) -> list[int]:
    """Return the processes that run and have a text in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes() and is_alive(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def _read_life(path: Path) -> Life | None:
    """Return what a journal says; None before its first whole line."""
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    if not lines:
        return None
    first, *notes = map(json.loads, lines)
    syncs = [(note["sync"], note["step"]) for note in notes if note["sync"]]
    return Life(
        resumed=first["resumed"],
        start=first["step"],
        acknowledged=notes[-1]["step"] if notes else first["step"],
        sync=syncs[-1] if syncs else None,
        num_reports=len(notes),
    )


def _around_the_break(numbers: list[int]) -> str:
    """Return the part of a list of numbers where they do not increase by one."""
    for index, (one, other) in enumerate(pairwise(numbers)):
        if other != one + 1:
            return f"... {numbers[max(0, index - 2) : index + 4]} ..."
    return f"{numbers[:3]} ... {numbers[-3:]}"
