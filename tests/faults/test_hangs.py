"""Ranks that go silent are found, named, and shown with their stacks; then the run goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import minitrain
from minitrain import FailureConfig, RunConfig, ScalingConfig
from minitrain.exceptions import HangError, WorkerGroupError
from minitrain.torch import TorchTrainer
from minitrain.trainer import DataParallelTrainer

HANG_S = 2.0


def run(function, num_workers=3, *, trainer=DataParallelTrainer, failures=0, config=None, **where):
    return trainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            failure_config=FailureConfig(max_failures=failures, hang_timeout_s=HANG_S), **where
        ),
    ).fit()


def hang_of(function, num_workers=3, **how):
    with pytest.raises(WorkerGroupError) as caught:
        run(function, num_workers, **how)
    return caught.value


def stop_itself():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSTOP)


def deadlock():
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def hold_the_interpreter():
    import re

    re.match(r"(a+)+$", "a" * 64 + "b")  # backtracks for years and never lets another thread run


@pytest.mark.parametrize(
    "hang",
    [
        deadlock,
        pytest.param(stop_itself, marks=pytest.mark.campaign),
        pytest.param(hold_the_interpreter, marks=pytest.mark.campaign),
    ],
)
def test_the_rank_that_hangs_is_named_with_its_stack_and_those_that_wait(hang, tmp_path):
    def train():
        rank = minitrain.get_context().get_world_rank()
        minitrain.report({"x": 1})
        if rank == 1:
            hang()
        minitrain.collective.barrier()

    error = hang_of(train, storage_path=tmp_path, name="run")
    (failure,) = error.failures
    assert failure.rank == 1
    assert isinstance(failure.cause, HangError)
    assert failure.cause.waiting == (0, 2)
    assert hang.__name__ in str(error), "the user's own frames"
    assert "rank 0, 2 wait for it" in str(error)
    assert ("stopped" in str(failure.cause)) == (hang is stop_itself)
    stacks = sorted((tmp_path / "run" / "logs" / "attempt_0").glob("stacks_rank_*.txt"))
    assert [path.name for path in stacks] == [f"stacks_rank_{rank}.txt" for rank in range(3)]
    assert hang.__name__ in stacks[1].read_text()
    assert "barrier" in stacks[0].read_text()


@pytest.mark.campaign
def test_a_collective_of_torch_that_a_rank_never_joins_names_that_rank(tmp_path):
    def train():
        import time

        import torch

        rank = minitrain.get_context().get_world_rank()
        minitrain.report({"x": 1})
        if rank == 2:
            time.sleep(600)
        torch.distributed.all_reduce(torch.ones(1))

    error = hang_of(train, trainer=TorchTrainer, storage_path=tmp_path, name="run")
    assert [failure.rank for failure in error.failures] == [2]
    assert error.failures[0].cause.waiting == (0, 1)
    assert "all_reduce" in (tmp_path / "run/logs/attempt_0/stacks_rank_0.txt").read_text()


@pytest.mark.campaign
def test_a_hang_is_a_failure_that_the_next_attempt_gets_over():
    def train():
        import os

        restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        for step in range(3):
            minitrain.report({"step": step, "restarts": restarts})
            if restarts == 0 and minitrain.get_context().get_world_rank() == 1:
                stop_itself()

    result = run(train, 2, failures=1)
    assert result.metrics["restarts"] == 1
    assert result.metrics["step"] == 2


@pytest.mark.campaign
def test_slow_ranks_that_report_are_left_alone():
    def train():
        import time

        for step in range(3):
            time.sleep(HANG_S / 2)
            minitrain.report({"step": step})

    assert run(train, 2).metrics["step"] == 2


@pytest.mark.campaign
def test_a_rank_that_waits_longer_than_the_timeout_for_another_is_not_blamed():
    """Ranks may be at different reports; only one that is silent itself has hung."""

    def train():
        import time

        if minitrain.get_context().get_world_rank() == 0:
            minitrain.collective.barrier()  # waits for twice the timeout
            minitrain.report({"step": 4})
            return
        for _ in range(4):
            time.sleep(HANG_S / 2)
            minitrain.get_all_reported_checkpoints()  # says that it is alive
        minitrain.collective.barrier()
        minitrain.report({"step": 4})

    assert run(train, 2).metrics["step"] == 4


@pytest.mark.campaign
def test_writing_a_large_checkpoint_is_no_silence(tmp_path):
    def train():
        import time

        from minitrain import Checkpoint

        class Slow(Checkpoint):
            def wait(self):
                time.sleep(1.5 * HANG_S)

        folder = tmp_path / f"source_{minitrain.get_context().get_world_rank()}"
        folder.mkdir()
        minitrain.report({"x": 1}, Slow(folder))

    assert run(train, 2).checkpoint is not None


@pytest.mark.campaign
def test_an_agent_that_was_stopped_is_replaced(start_script):
    script = start_script(
        f"""
        import os, signal, time
        import minitrain
        from minitrain import FailureConfig, RunConfig, ScalingConfig
        from minitrain.trainer import DataParallelTrainer

        def train():
            first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
            for step in range(3):
                minitrain.report({{"step": step}})
            if first and minitrain.get_context().get_world_rank() == 0:
                os.kill(os.getppid(), signal.SIGSTOP)
                time.sleep(600)
            return "done"

        result = DataParallelTrainer(
            train,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                storage_path=os.path.dirname(__file__),
                failure_config=FailureConfig(max_failures=1, hang_timeout_s={HANG_S}),
            ),
        ).fit()
        print(result.return_value, list(result.metrics_dataframe["step"]))
        """
    )
    assert script.wait(60) == 0, script.output
    assert "does not answer" in script.output
    assert "done [0, 1, 2, 0, 1, 2]" in script.output


@pytest.mark.campaign
def test_the_error_reads_well(tmp_path):
    def train():
        minitrain.report({"x": 1})
        if minitrain.get_context().get_world_rank() == 1:
            deadlock()
        minitrain.collective.barrier()

    text = str(hang_of(train, 2, storage_path=tmp_path, name="run"))
    first = text.splitlines()[0]
    assert re.match(
        r"Training failed: rank 1 on \S+, pid \d+: HangError: has not reported for 2 s "
        r"\(hang_timeout_s\); rank 0 waits for it$",
        first,
    )
    assert str(Path(tmp_path, "run", "logs", "attempt_0", "rank_1.log")) in text
