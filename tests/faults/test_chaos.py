"""bench/chaos.py: faults that can be repeated, checks that see what is broken, and a campaign."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Return the modules beside the script, which imports them by their bare names."""
    monkeypatch.syspath_prepend(str(BENCH))
    import _chaos_checks
    import _chaos_faults
    import _chaos_training

    yield _chaos_faults, _chaos_training, _chaos_checks
    for name in ("_chaos_checks", "_chaos_faults", "_chaos_training"):
        del sys.modules[name]


def test_the_same_seed_gives_the_same_faults_and_each_kind_once_before_any_twice(bench):
    faults, _, _ = bench
    first, again, other = (
        list(islice(faults.plan(seed, faults.FAULTS, 4), 2 * len(faults.FAULTS)))
        for seed in (1, 1, 2)
    )
    assert first == again != other
    for half in (first[: len(faults.FAULTS)], first[len(faults.FAULTS) :]):
        assert sorted(fault.kind for fault in half) == sorted(faults.FAULTS)
    assert {fault.rank for fault in first} <= set(range(4))


def test_the_state_after_every_step_follows_from_the_one_before(bench):
    _, training, _ = bench
    state = training.state_after(2, 7)
    assert training.next_state(state, 8) == training.state_after(2, 8)
    assert training.state_after(3, 7) != state


@pytest.mark.parametrize("kind", ["truncate committed", "flip committed"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.99])
def test_every_damage_is_seen(bench, kind, where, tmp_path):
    faults, training, _ = bench
    for rank in range(2):
        training.save(tmp_path, rank, 5, training.state_after(rank, 5))
        assert training.problem(tmp_path, rank) == ""
    said = faults.damage(tmp_path, faults.Fault(kind, 0.0, 0, where))
    broken = [rank for rank in range(2) if training.problem(tmp_path, rank)]
    assert [f"rank_{rank}" in said for rank in range(2)] == [rank in broken for rank in range(2)]


def row(iteration, step, life="1", name=None):
    return {
        "training_iteration": iteration,
        "step": step,
        "life": life,
        "checkpoint_dir_name": name,
    }


@pytest.mark.parametrize(
    ("rows", "broken"),
    [
        ([row(1, 1), row(2, 2), row(3, 3)], None),
        ([row(1, 1), row(2, 2)], "3 reports returned, 2 are in result.json"),
        ([row(1, 1), row(2, 2), row(2, 3)], "training_iteration is not 1, 2, 3"),
        ([row(1, 1), row(2, 2), row(3, 2), row(4, 3)], "its rows have the steps"),
        ([row(1, 1, name="c"), row(2, 2), row(3, 3, name="c")], "used twice"),
    ],
    ids=["whole", "lost", "iteration twice", "step twice", "name twice"],
)
def test_a_report_that_is_lost_or_there_twice_is_a_violation(bench, rows, broken, tmp_path):
    checks = bench[2].Checks(tmp_path, tmp_path)
    lives = {"1": bench[2].Life(None, 0, 3, None, 3)}
    if broken is None:
        checks._check_rows(lives, rows)
    else:
        with pytest.raises(bench[2].Violation, match=broken):
            checks._check_rows(lives, rows)


@pytest.mark.parametrize(
    ("resumed", "start", "damaged", "kept"),
    [
        ("checkpoint_000003", 20, set(), True),
        ("checkpoint_000004", 25, set(), True),
        ("checkpoint_000002", 15, set(), False),
        ("checkpoint_000002", 15, {"checkpoint_000003"}, True),
        ("checkpoint_000002", 15, {"checkpoint_000001"}, False),
    ],
    ids=["promised", "newer", "older", "older than damaged", "older, other damaged"],
)
def test_to_start_from_less_than_was_promised_is_a_violation(
    bench, resumed, start, damaged, kept, tmp_path
):
    checks = bench[2].Checks(tmp_path, tmp_path, damaged=damaged)
    before = bench[2].Life(None, 0, 22, ("checkpoint_000003", 20), 22)
    lives = {"1": before, "2": bench[2].Life(resumed, start, start, None, 0)}
    if kept:
        checks._check_starts(lives)
    else:
        with pytest.raises(bench[2].Violation, match="had returned"):
            checks._check_starts(lives)


@pytest.mark.campaign
@pytest.mark.timeout(240)
def test_a_run_survives_a_campaign():
    done = subprocess.run(
        [sys.executable, BENCH / "chaos.py", "--minutes", "0.5", "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"},  # it stays
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults survived" in done.stdout
