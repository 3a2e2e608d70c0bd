"""The names of everything in a run's directory, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ERROR_PICKLE", "ERROR_TEXT", "RECORD", "ROWS", "TABLE", "TRAINER", "RunLayout"]

RECORD = "run.json"
ROWS = "result.json"
TABLE = "progress.csv"
TRAINER = "trainer.pkl"
ERROR_TEXT = "error.txt"
ERROR_PICKLE = "error.pkl"


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
        return self.root / RECORD

    @property
    def trainer(self) -> Path:
        """What ``restore`` needs."""
        return self.root / TRAINER

    @property
    def rows(self) -> Path:
        """One JSON line per report."""
        return self.root / ROWS

    @property
    def table(self) -> Path:
        """The same as a table."""
        return self.root / TABLE

    @property
    def error_text(self) -> Path:
        """How the run failed, for people."""
        return self.root / ERROR_TEXT

    @property
    def error_pickle(self) -> Path:
        """How the run failed, for programs."""
        return self.root / ERROR_PICKLE

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

    def stacks(self, attempt: int, rank: int) -> Path:
        """Return the file with the stacks of one worker, from when somebody last asked."""
        return self.logs(attempt) / f"stacks_rank_{rank}.txt"
