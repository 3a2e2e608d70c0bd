"""SIGSTOP while checkpoints are being written, which may take long: who is stopped never ends."""

from __future__ import annotations

import pytest

TRAIN = """
    import os, signal, sys, tempfile
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, FailureConfig, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    here = Path(__file__).parent

    class Stopping(Checkpoint):
        def wait(self):
            victim = os.getppid() if sys.argv[1] == "agent" else os.getpid()
            (here / "stopped").touch()
            os.kill(victim, signal.SIGSTOP)

    def train():
        rank = minitrain.get_context().get_world_rank()
        stops = not (here / "stopped").exists()
        minitrain.collective.barrier()
        with tempfile.TemporaryDirectory(dir=here) as folder:
            Path(folder, f"rank_{rank}").write_text("x")
            kind = Stopping if stops and rank == 1 else Checkpoint
            minitrain.report({"stops": stops}, kind(folder))

    result = DataParallelTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=here, failure_config=FailureConfig(max_failures=1, hang_timeout_s=1)
        ),
    ).fit()
    print("stops", list(result.metrics_dataframe["stops"]))
"""


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("victim", "said"), [("agent", "does not answer; ending it"), ("worker", "it was stopped")]
)
def test_who_is_stopped_while_it_writes_a_checkpoint_is_replaced(victim, said, start_script):
    script = start_script(TRAIN, victim, env={"MINITRAIN_STOP_GRACE_S": "1"})
    assert script.wait() == 0, script.output
    assert said in script.output
    assert "stops [False]" in script.output
