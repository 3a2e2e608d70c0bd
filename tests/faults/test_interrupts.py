"""Ctrl-C in a terminal and in a program."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import minitrain
from minitrain.trainer import DataParallelTrainer

LOOP = """
    import signal, sys, time
    from pathlib import Path

    import minitrain
    from minitrain import FailureConfig, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    stubborn = "stubborn" in sys.argv

    def train():
        if stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for step in range(100_000):
            minitrain.report({"step": step})
            if step == 20:
                print("twenty", flush=True)
            time.sleep(0.001)

    before = signal.getsignal(signal.SIGINT)
    try:
        DataParallelTrainer(
            train,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                name="run",
                storage_path=Path(__file__).parent,
                failure_config=FailureConfig(max_failures=-1),
            ),
        ).fit()
    except KeyboardInterrupt:
        print("interrupted", signal.getsignal(signal.SIGINT) is before, flush=True)
        again = DataParallelTrainer(lambda: "next", run_config=RunConfig(
            storage_path=Path(__file__).parent)).fit()
        print("the", again.return_value, "run", flush=True)
"""


def test_one_ctrl_c_stops_keeps_everything_and_restores_the_handler(
    start_script, all_gone, tmp_path
):
    script = start_script(LOOP)
    script.wait_for("twenty")
    everybody = script.descendants()
    script.process.send_signal(signal.SIGINT)
    assert script.wait() == 0, script.output
    assert "interrupted True" in script.output
    assert "the next run" in script.output
    lines = (tmp_path / "run" / "result.json").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines)))
    assert len(lines) >= 21
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert len(record["attempts"]) == 1, "an interrupt is not a failure to retry"
    all_gone(everybody)


@pytest.mark.campaign
def test_a_second_ctrl_c_does_not_wait_for_workers_that_ignore_sigterm(start_script, all_gone):
    script = start_script(LOOP, "stubborn", env={"MINITRAIN_STOP_GRACE_S": "300"})
    script.wait_for("twenty")
    everybody = script.descendants()
    script.process.send_signal(signal.SIGINT)
    script.process.send_signal(signal.SIGINT)
    import time

    began_s = time.monotonic()
    while script.process.poll() is None:
        assert time.monotonic() - began_s < 30, script.output
        if time.monotonic() - began_s > 0.5 and "interrupted" not in script.output:
            script.process.send_signal(signal.SIGINT)  # the first two came as one
        time.sleep(0.05)
    assert "interrupted" in script.output
    all_gone(everybody)


@pytest.mark.campaign
def test_workers_that_ignore_sigterm_are_killed_after_the_grace(start_script, all_gone):
    script = start_script(LOOP, "stubborn", env={"MINITRAIN_STOP_GRACE_S": "0.5"})
    script.wait_for("twenty")
    everybody = script.descendants()
    script.process.send_signal(signal.SIGINT)
    assert script.wait() == 0, script.output
    assert "interrupted True" in script.output
    all_gone(everybody)


@pytest.mark.campaign
def test_ctrl_c_while_workers_start(start_script, all_gone):
    script = start_script(
        """
        import os, signal
        from minitrain import RunConfig, ScalingConfig
        from minitrain.backend import Backend, BackendConfig
        from minitrain.trainer import DataParallelTrainer

        class Slow(Backend):
            def on_start(self, worker_group, backend_config):
                print("waiting", flush=True)
                worker_group.execute(signal.pause)

        class SlowConfig(BackendConfig):
            backend_cls = Slow

        try:
            DataParallelTrainer(lambda: None, backend_config=SlowConfig()).fit()
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    script.wait_for("waiting")
    everybody = script.descendants()
    script.process.send_signal(signal.SIGINT)
    assert script.wait() == 0, script.output
    assert "interrupted" in script.output
    all_gone(everybody)


def test_ctrl_c_in_this_process_raises_and_keeps_what_was_reported(storage):
    def train():
        minitrain.report({"x": 1})
        signal.raise_signal(signal.SIGINT)

    trainer = DataParallelTrainer(
        train,
        scaling_config=minitrain.ScalingConfig(num_workers=0),
        run_config=minitrain.RunConfig(name="here"),
    )
    # Where the tests run in the background of a shell, Ctrl-C is ignored from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads(Path(storage, "here", "run.json").read_text())["status"] == "interrupted"
    assert minitrain.Result.from_path(storage / "here").metrics["x"] == 1
