"""SIGTERM: workers are told, save what they have, and the run ends in a way that goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from minitrain.exceptions import PreemptionError

TRAIN = """
    import os, signal, sys, tempfile, time
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, FailureConfig, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    folder = Path(__file__).parent
    mode, num_workers, grace_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

    def report(step, save):
        rank = minitrain.get_context().get_world_rank()
        # In the driver's own process SIGTERM may come while the directory is made.
        with tempfile.TemporaryDirectory(dir=folder) as path:
            Path(path, f"step_{rank}").write_text(str(step))
            minitrain.report({"step": step}, Checkpoint.from_directory(path) if save else None)

    def train():
        rank = minitrain.get_context().get_world_rank()
        first = 0
        if minitrain.get_checkpoint() is not None:
            with minitrain.get_checkpoint().as_directory() as path:
                first = int(Path(path, f"step_{rank}").read_text()) + 1
        for step in range(first, first + 5 if first else 100_000):
            info = None if mode == "deaf" else minitrain.get_preemption_info()
            report(step, save=info is not None)
            if rank == 0:
                print(f"step {step}", flush=True)
            if info is not None:
                print("told", info.deadline_ms > time.time() * 1000, info.preempted_ranks)
                return "left"
            time.sleep(0.01)
        return "to the end"

    trainer_class = DataParallelTrainer
    if trainer_class.can_restore(folder / "run"):
        trainer = trainer_class.restore(folder / "run")
    else:
        trainer = trainer_class(
            train,
            scaling_config=ScalingConfig(num_workers=num_workers),
            run_config=RunConfig(
                name="run",
                storage_path=folder,
                failure_config=FailureConfig(preemption_grace_s=grace_s),
            ),
        )
    if mode == "caught":
        try:
            trainer.fit()
        except minitrain.PreemptionError as error:
            print("caught", type(error).__name__, error.code)
            sys.exit(3)
    result = trainer.fit()
    print("finished", result.return_value, list(result.metrics_dataframe["training_iteration"]))
"""


def status(folder: Path) -> str:
    return json.loads((folder / "run" / "run.json").read_text())["status"]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.campaign)])
def test_workers_save_a_last_checkpoint_and_the_next_start_goes_on_from_it(
    num_workers, start_script, tmp_path
):
    script = start_script(TRAIN, "listening", str(num_workers), "20")
    script.wait_for("step 3")
    script.process.send_signal(signal.SIGTERM)
    assert script.wait() == PreemptionError.EXIT_STATUS, script.output
    assert "Traceback" not in script.output
    assert f"told True {list(range(max(1, num_workers)))}" in script.output
    assert status(tmp_path) == "preempted"
    again = start_script(TRAIN, "listening", str(num_workers), "20")
    assert again.wait() == 0, again.output
    assert "finished to the end" in again.output
    iterations = json.loads(again.output.rpartition("to the end ")[2].splitlines()[0])
    assert iterations == list(range(1, len(iterations) + 1))
    lines = (tmp_path / "run" / "result.json").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(len(steps))), "not a step was done twice, and none left out"
    assert status(tmp_path) == "finished"


@pytest.mark.campaign
def test_a_signal_for_the_agent_and_the_driver_ends_the_run(start_script, tmp_path):
    """As from systemd, which tells every process of a service."""
    script = start_script(TRAIN, "listening", "2", "20")
    script.wait_for("step 3")
    (agent,) = psutil.Process(script.process.pid).children()
    agent.send_signal(signal.SIGTERM)
    script.wait_for("is about to be taken away")
    script.process.send_signal(signal.SIGTERM)
    assert script.wait() == PreemptionError.EXIT_STATUS, script.output
    assert status(tmp_path) == "preempted"
    assert "told True [0, 1]" in script.output
    assert "workers were still training" not in script.output


@pytest.mark.campaign
def test_a_signal_for_every_process_ends_the_run_and_it_goes_on(start_script, tmp_path, all_gone):
    """Workers end at once then: what they had not saved is done again."""
    script = start_script(TRAIN, "listening", "2", "20")
    script.wait_for("step 3")
    everybody = [*script.descendants(), script.process.pid]
    for pid in everybody:
        os.kill(pid, signal.SIGTERM)
    assert script.wait() == PreemptionError.EXIT_STATUS, script.output
    all_gone(everybody)
    assert status(tmp_path) == "preempted"
    again = start_script(TRAIN, "listening", "2", "20")
    again.wait_for("step 3")
    again.process.send_signal(signal.SIGTERM)
    assert again.wait() == PreemptionError.EXIT_STATUS, again.output
    assert "told True [0, 1]" in again.output


@pytest.mark.campaign
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_train_function_that_does_not_listen_is_ended_when_the_time_is_up(
    num_workers, start_script, tmp_path, all_gone
):
    script = start_script(TRAIN, "deaf", str(num_workers), "0.3")
    script.wait_for("step 3")
    everybody = script.descendants()
    script.process.send_signal(signal.SIGTERM)
    assert script.wait() == PreemptionError.EXIT_STATUS, script.output
    all_gone(everybody)
    assert status(tmp_path) == "preempted"
    assert "workers were still training" in (tmp_path / "run" / "error.txt").read_text()


@pytest.mark.campaign
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_second_sigterm_ends_the_run_at_once(num_workers, start_script, tmp_path):
    script = start_script(TRAIN, "deaf", str(num_workers), "600")
    script.wait_for("step 3")
    script.process.send_signal(signal.SIGTERM)
    shown = len(script.output)
    script.wait_for("step", 10)
    while len(script.output) < shown + 20:  # it goes on in its grace period
        assert script.process.poll() is None
    script.process.send_signal(signal.SIGTERM)
    assert script.wait(20) == PreemptionError.EXIT_STATUS, script.output
    assert status(tmp_path) == "preempted"


@pytest.mark.campaign
def test_the_error_can_be_caught_like_any_other(start_script):
    script = start_script(TRAIN, "caught", "2", "20")
    script.wait_for("step 3")
    script.process.send_signal(signal.SIGTERM)
    assert script.wait() == 3, script.output
    assert "caught PreemptionError 75" in script.output


@pytest.mark.campaign
def test_sigterm_while_workers_start_ends_the_run(start_script):
    script = start_script(
        """
        import os, signal, sys
        import minitrain
        from minitrain.backend import Backend, BackendConfig
        from minitrain.trainer import DataParallelTrainer

        class Slow(Backend):
            def on_start(self, workers, config):
                os.kill(os.getpid(), signal.SIGTERM)
                workers.execute(signal.pause)

        class SlowConfig(BackendConfig):
            backend_cls = Slow

        DataParallelTrainer(print, backend_config=SlowConfig()).fit()
        """
    )
    assert script.wait() == PreemptionError.EXIT_STATUS, script.output


@pytest.mark.campaign
def test_the_handler_of_sigterm_is_put_back(start_script):
    script = start_script(
        """
        import signal
        import minitrain
        from minitrain import ScalingConfig
        from minitrain.trainer import DataParallelTrainer

        def mine(*_):
            print("mine")

        signal.signal(signal.SIGTERM, mine)
        for num_workers in (0, 1):
            DataParallelTrainer(
                lambda: None, scaling_config=ScalingConfig(num_workers=num_workers)
            ).fit()
            assert signal.getsignal(signal.SIGTERM) is mine
        signal.raise_signal(signal.SIGTERM)
        """
    )
    assert script.wait() == 0, script.output
    assert "mine" in script.output


AGENT = """
    import os, signal, sys, time
    from pathlib import Path

    import minitrain
    from minitrain import FailureConfig, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    def train():
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        rank = minitrain.get_context().get_world_rank()
        if attempt < 2 and rank == 0:
            os.kill(os.getppid(), signal.SIGTERM)  # its host is about to be taken away
        while True:
            minitrain.report({"attempt": attempt})
            if minitrain.get_preemption_info() is not None:
                return
            if attempt == 2:
                return "third time"
            time.sleep(0.01)

    result = DataParallelTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=Path(__file__).parent,
            failure_config=FailureConfig(max_preemption_failures=int(sys.argv[1])),
        ),
    ).fit()
    print(result.return_value)
"""


@pytest.mark.campaign
@pytest.mark.parametrize("budget", [2, -1])
def test_preempted_agents_count_for_themselves_and_the_run_goes_on(budget, start_script):
    script = start_script(AGENT, str(budget))
    assert script.wait(60) == 0, script.output
    assert "third time" in script.output


@pytest.mark.campaign
def test_more_preemptions_than_allowed_end_the_run(start_script):
    script = start_script(AGENT, "1")
    assert script.wait(60) == PreemptionError.EXIT_STATUS, script.output
