"""A range of workers: fewer when GPUs are lost, more when there are more, and neither is a failure.

The GPUs are those of a library in place of NVIDIA's, which counts what a file says.
"""

from __future__ import annotations

import json

import pytest

TRAIN = """
    import json, os, sys, tempfile
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, FailureConfig, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    folder = Path(__file__).parent
    plan = json.loads(sys.argv[1])  # what happens at which step
    at_most, max_failures = int(sys.argv[2]), int(sys.argv[3])

    def gpus(number):
        (folder / "new").write_text(str(number))
        (folder / "new").rename(folder / "gpus")

    def train():
        context = minitrain.get_context()
        start = minitrain.get_checkpoint()
        first = 0
        if start is not None:
            with start.as_directory() as path:
                first = int(Path(path, "step").read_text()) + 1
        for step in range(first, 8):
            minitrain.collective.barrier()
            what = plan.get(str(step))
            if what is not None and not (folder / f"done_{step}").exists():
                minitrain.collective.barrier()
                if context.get_world_rank() == 0:
                    (folder / f"done_{step}").touch()
                    gpus(what["gpus"])
                    if what.get("dies"):
                        os._exit(1)
            with tempfile.TemporaryDirectory() as path:
                Path(path, "step").write_text(str(step))
                minitrain.report(
                    {"step": step, "world_size": context.get_world_size()},
                    Checkpoint.from_directory(path),
                )

    gpus(3)
    result = DataParallelTrainer(
        train,
        scaling_config=ScalingConfig(
            num_workers=(2, at_most), use_gpu=True, elastic_resize_monitor_interval_s=0
        ),
        run_config=RunConfig(
            name="run",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    ).fit()
    frame = result.metrics_dataframe
    print("sizes", json.dumps([list(frame["step"]), list(frame["world_size"])]))
"""


@pytest.fixture
def train(start_script, library, tmp_path):
    def start(plan, at_most=4, max_failures=0):
        env = {"LD_LIBRARY_PATH": str(library), "FAKE_GPUS_FILE": str(tmp_path / "gpus")}
        script = start_script(TRAIN, json.dumps(plan), str(at_most), str(max_failures), env=env)
        return script, script.wait()

    return start


def sizes(script):
    line = next(line for line in script.output.splitlines() if line.startswith("sizes "))
    return json.loads(line.removeprefix("sizes "))


def outcomes(tmp_path):
    return [
        one["outcome"] for one in json.loads((tmp_path / "run/run.json").read_text())["attempts"]
    ]


@pytest.mark.campaign
def test_it_takes_as_many_as_there_are_and_grows_at_a_checkpoint(train, tmp_path):
    script, code = train({"3": {"gpus": 4}})
    assert code == 0, script.output
    steps, world = sizes(script)
    assert steps == list(range(8)), "nothing was done twice: it grew after a checkpoint"
    assert world == [3] * 4 + [4] * 4
    assert outcomes(tmp_path) == ["ended for another with 4 workers", "returned"]


@pytest.mark.campaign
def test_it_grows_no_further_than_it_may(train):
    script, code = train({"3": {"gpus": 9}}, at_most=3)
    assert code == 0, script.output
    assert sizes(script) == [list(range(8)), [3] * 8]


@pytest.mark.campaign
def test_a_failure_that_took_a_gpu_away_is_followed_by_an_attempt_with_what_is_left(train):
    script, code = train({"3": {"gpus": 2, "dies": True}})
    assert code == 0, script.output
    steps, world = sizes(script)
    assert steps == list(range(8))
    assert world == [3] * 3 + [2] * 5


@pytest.mark.campaign
def test_a_failure_that_took_nothing_away_is_one(train):
    script, code = train({"3": {"gpus": 3, "dies": True}})
    assert code == 1
    assert "max_failures" in script.output


@pytest.mark.campaign
def test_with_fewer_left_than_the_least_the_run_ends(train):
    script, code = train({"3": {"gpus": 1, "dies": True}}, max_failures=-1)
    assert code == 1
    assert "there is room for fewer than 2 workers" in script.output


@pytest.mark.campaign
def test_shrinking_and_growing_again(train):
    script, code = train({"2": {"gpus": 2, "dies": True}, "5": {"gpus": 4}})
    assert code == 0, script.output
    steps, world = sizes(script)
    assert steps == list(range(8))
    assert world == [3, 3, 2, 2, 2, 2, 4, 4]
