"""Whatever ends a worker, and whenever: one failure, counted once, and the next attempt goes on."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

import minitrain
from minitrain import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from minitrain.exceptions import WorkerDiedError, WorkerGroupError
from minitrain.torch import TorchTrainer
from minitrain.trainer import DataParallelTrainer


def raise_an_exception():
    raise ValueError("no")


def interrupt_itself():
    raise KeyboardInterrupt


def exit_with_an_exception():
    sys.exit(3)


def exit_at_once():
    os._exit(3)


def exit_without_an_error():
    os._exit(0)


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def be_terminated():
    os.kill(os.getpid(), signal.SIGTERM)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def abort():
    os.abort()


def lose_its_group():
    os.killpg(0, signal.SIGKILL)


ENDS = [
    raise_an_exception,
    interrupt_itself,
    exit_with_an_exception,
    exit_at_once,
    exit_without_an_error,
    be_killed,
    be_terminated,
    crash,
    abort,
    lose_its_group,
]


def once(path: Path) -> bool:
    """Return whether this is the first time that anybody asks."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class EndsWhenUnpickled:
    """Ends the worker at the first instruction of the user's in it."""

    def __init__(self, end, path):
        self.end, self.path = end, path

    def __reduce__(self):
        return _rebuilt, (self.end, self.path)


def _rebuilt(end, path):
    is_worker = "RANK" in os.environ
    if is_worker and os.environ["RANK"] == "1" and once(path):
        end()
    return EndsWhenUnpickled(end, path)


def run(function, tmp_path, *, config=None, failures=1, trainer=DataParallelTrainer):
    return trainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run",
            storage_path=tmp_path,
            failure_config=FailureConfig(max_failures=failures),
        ),
    ).fit()


def num_attempts(tmp_path):
    return len(json.loads((tmp_path / "run" / "run.json").read_text())["attempts"])


@pytest.mark.parametrize(
    "end",
    [
        *ENDS[:1],
        *(pytest.param(end, marks=pytest.mark.campaign) for end in ENDS[1:3]),
        *ENDS[3:6],
        *(pytest.param(end, marks=pytest.mark.campaign) for end in ENDS[6:]),
    ],
)
def test_in_the_train_function(end, tmp_path):
    def train():
        first = minitrain.get_checkpoint() is None
        folder = tmp_path / f"source_{minitrain.get_context().get_world_rank()}_{first}"
        folder.mkdir()
        minitrain.report({"first": first}, Checkpoint.from_directory(folder))
        if first and minitrain.get_context().get_world_rank() == 1:
            end()
        minitrain.collective.barrier()
        return "done"

    result = run(train, tmp_path)
    assert result.return_value == "done"
    assert list(result.metrics_dataframe["first"]) == [True, False]
    assert list(result.metrics_dataframe["training_iteration"]) == [1, 2]
    assert num_attempts(tmp_path) == 2


@pytest.mark.campaign
@pytest.mark.parametrize("end", ENDS)
def test_at_the_first_instruction(end, tmp_path):
    result = run(
        lambda config: "done",
        tmp_path,
        config={"trap": EndsWhenUnpickled(end, tmp_path / "mark")},
    )
    assert result.return_value == "done"
    assert num_attempts(tmp_path) == 2


@pytest.mark.campaign
@pytest.mark.parametrize("end", [exit_at_once, be_killed, crash], ids=lambda end: end.__name__)
def test_at_the_last_instruction(end, tmp_path):
    """While rank 0 still trains, the other one dies after it has returned: nothing is lost."""

    def train():
        import threading
        import time

        if minitrain.get_context().get_world_rank() == 1:
            if once(tmp_path / "mark"):
                threading.Thread(target=_soon, args=(end, tmp_path), daemon=True).start()
            return
        (tmp_path / "go").touch()
        time.sleep(0.3)

    assert run(train, tmp_path).error is None


def _soon(end, tmp_path):
    while not (tmp_path / "go").exists():
        pass
    end()


@pytest.mark.parametrize(
    "end",
    [
        raise_an_exception,
        pytest.param(exit_at_once, marks=pytest.mark.campaign),
        pytest.param(be_killed, marks=pytest.mark.campaign),
    ],
)
def test_budgets_are_exact_whatever_the_end(end, tmp_path):
    def train():
        minitrain.report({"x": 1})
        end()

    with pytest.raises(WorkerGroupError):
        run(train, tmp_path, failures=2)
    assert num_attempts(tmp_path) == 3


def test_failures_of_both_ranks_at_once_count_once(tmp_path):
    def train():
        if once(tmp_path / f"mark_{minitrain.get_context().get_world_rank()}"):
            be_killed()
        return "done"

    assert run(train, tmp_path).return_value == "done"
    assert num_attempts(tmp_path) == 2


def test_what_was_queued_is_there_before_the_decision(tmp_path):
    """The newest report and checkpoint of a worker that dies at once are not lost."""

    def train():
        start = minitrain.get_checkpoint()
        rank = minitrain.get_context().get_world_rank()
        if start is not None:
            return Path(start.path).name
        for step in range(50):
            minitrain.report({"step": step})
        folder = tmp_path / f"source_{rank}"
        folder.mkdir()
        minitrain.report({"step": 50}, Checkpoint.from_directory(folder))
        be_killed()
        return None

    result = run(train, tmp_path)
    assert result.return_value == "checkpoint_000000"
    assert list(result.metrics_dataframe["step"]) == list(range(51))


def test_a_restart_uses_the_agent_that_is_there_and_the_process_group_works(tmp_path):
    def train():
        import torch

        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            (tmp_path / "agent").write_text(str(os.getppid()))
            be_killed()
        return total.item(), os.getppid() == int((tmp_path / "agent").read_text())

    assert run(train, tmp_path, trainer=TorchTrainer).return_value == (2.0, True)


def test_the_signal_and_the_peak_memory_are_said(tmp_path):
    with pytest.raises(WorkerGroupError) as caught:
        run(crash, tmp_path, failures=0)
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerDiedError)
    assert cause.exitcode == -signal.SIGSEGV
    assert "SIGSEGV (a crash in native code)" in str(caught.value)
    assert "peak memory was" in str(caught.value)
    assert "in crash" in str(caught.value), "the Python stack at the crash"
