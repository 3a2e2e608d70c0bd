"""The names in a run's directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from minitrain._storage.layout import RunLayout

RUN = RunLayout(Path("/results/run"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (RUN.record, "run.json"),
        (RUN.rows, "result.json"),
        (RUN.table, "progress.csv"),
        (RUN.error_text, "error.txt"),
        (RUN.error_pickle, "error.pkl"),
        (RUN.artifacts, "artifacts"),
        (RUN.logs(1), "logs/attempt_1"),
        (RUN.log(1, 3), "logs/attempt_1/rank_3.log"),
        (RUN.stacks(1, 3), "logs/attempt_1/stacks_rank_3.txt"),
        (RUN.trainer, "trainer.pkl"),
    ],
)
def test_everything_has_its_place(path, expected):
    assert path == Path("/results/run", expected)
