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
        (RUN.checkpoint("mine"), "mine"),
    ],
)
def test_everything_has_its_place(path, expected):
    assert path == Path("/results/run", expected)


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "checkpoint_000000"),
        (41, "checkpoint_000041"),
        (999_999, "checkpoint_999999"),
        (1_000_000, "checkpoint_1000000"),
    ],
)
def test_checkpoints_have_six_digits_or_more(index, name):
    assert RunLayout.checkpoint_name(index) == name


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], 0),
        (["checkpoint_000000"], 1),
        (["checkpoint_000007", "checkpoint_000003"], 8),
        (["checkpoint_1000000", "checkpoint_999999"], 1_000_001),
        (["mine", "checkpoint_best", "checkpoint_0009", "checkpoint_000009.bak", "logs"], 0),
    ],
)
def test_the_next_index_is_higher_than_any_there(tmp_path, there, expected):
    for name in there:
        (tmp_path / name).mkdir()
    assert RunLayout(tmp_path).next_checkpoint_index() == expected


def test_an_unfinished_checkpoint_has_used_its_index(tmp_path):
    (tmp_path / "checkpoint_000004").mkdir()
    (tmp_path / "checkpoint_000004" / ".unfinished").touch()
    assert RunLayout(tmp_path).next_checkpoint_index() == 5


def test_names_and_indices_fit_together(tmp_path):
    layout = RunLayout(tmp_path)
    for expected in range(3):
        index = layout.next_checkpoint_index()
        assert index == expected
        layout.checkpoint(layout.checkpoint_name(index)).mkdir()
