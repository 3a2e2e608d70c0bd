"""The names of everything in a run's directory, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunLayout"]

_CHECKPOINT = re.compile(r"checkpoint_(\d{6,})")


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Where things are in the directory of one run.

    Attributes:
        root: The directory itself.
    """

    root: Path

    @property
    def record(self) -> Path:
        """What was asked, every attempt, how it ended."""
        return self.root / "run.json"

    @property
    def rows(self) -> Path:
        """One JSON line per report."""
        return self.root / "result.json"

    @property
    def table(self) -> Path:
        """The same as a table."""
        return self.root / "progress.csv"

    @property
    def error_text(self) -> Path:
        """How the run failed, for people."""
        return self.root / "error.txt"

    @property
    def error_pickle(self) -> Path:
        """How the run failed, for programs."""
        return self.root / "error.pkl"

    @property
    def artifacts(self) -> Path:
        """The workers' working directory."""
        return self.root / "artifacts"

    def logs(self, attempt: int) -> Path:
        """Return the directory with the output of one attempt's workers."""
        return self.root / "logs" / f"attempt_{attempt}"

    def log(self, attempt: int, rank: int) -> Path:
        """Return the file with everything one worker printed."""
        return self.logs(attempt) / f"rank_{rank}.log"

    def checkpoint(self, name: str) -> Path:
        """Return a checkpoint's directory."""
        return self.root / name

    def next_checkpoint_index(self) -> int:
        """Return a number that no checkpoint directory here has or had a higher one than."""
        names = (_CHECKPOINT.fullmatch(path.name) for path in self.root.iterdir())
        return max((int(match[1]) for match in names if match), default=-1) + 1

    @staticmethod
    def checkpoint_name(index: int) -> str:
        """Return the name of the ``index``-th checkpoint."""
        return f"checkpoint_{index:06d}"
