"""Datasets where another launcher has started the processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integrations import reading
from tests.integrations.reading import attempts, check

SCRIPT = Path(reading.__file__).read_text()


@pytest.mark.campaign
def test_a_rank_that_was_killed_is_started_again_and_each_row_still_comes_once(torchrun, tmp_path):
    options = {"launched": True, "victim": 1, "at_report": 2, "kills": "worker"}
    script = torchrun(SCRIPT, json.dumps(options), options=["--max-restarts=1"])
    assert script.wait(90) == 0, script.output
    assert len(attempts(tmp_path)) == 2
    check(tmp_path)


@pytest.mark.campaign
def test_what_is_wrong_with_a_dataset_is_said_by_every_rank(start_ranks, by_hand, tmp_path):
    text = """
        import sys
        from pathlib import Path

        from minitrain import RunConfig, data
        from minitrain.exceptions import DataError
        from minitrain.trainer import DataParallelTrainer

        folder = Path(__file__).parent
        datasets = {"train": data.read_parquet(str(folder / "missing"))}
        run_config = RunConfig(storage_path=folder / "runs")
        trainer = DataParallelTrainer(print, run_config=run_config, datasets=datasets)
        try:
            trainer.fit()
        except DataError as error:
            print("refused:", error)
    """
    for rank in start_ranks(text, environ_of=by_hand):
        assert rank.wait(60) == 0, rank.output
        assert "refused: " in rank.output
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.campaign
def test_ranks_that_find_other_rows_are_refused_before_they_wait_for_each_other(
    start_ranks, by_hand, tmp_path
):
    text = """
        import os
        from pathlib import Path

        from minitrain import RunConfig, data
        from minitrain.trainer import DataParallelTrainer

        datasets = {"train": data.range(10 + int(os.environ["RANK"]))}
        run_config = RunConfig(storage_path=Path(__file__).parent / "runs")
        trainer = DataParallelTrainer(print, run_config=run_config, datasets=datasets)
        try:
            trainer.fit()
        except Exception as error:
            print("refused:", error)
    """
    ranks = start_ranks(text, environ_of=by_hand)
    for rank in ranks:
        assert rank.wait(60) == 0, rank.output
    assert any("has other rows here than on rank 0 (11 here)" in rank.output for rank in ranks)
