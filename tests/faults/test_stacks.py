"""``python -m minitrain.stacks`` against live runs: stuck, slow, and training on undisturbed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minitrain
from minitrain._os.stacks import innermost_frames, stacks_of, waits_in_collective
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import Attempt, RunRecord, now

pytestmark = pytest.mark.campaign

SCRIPT = """
    import ctypes, os, time
    from pathlib import Path

    import minitrain
    from minitrain import RunConfig, ScalingConfig
    from minitrain.torch import TorchTrainer

    folder = Path(__file__).parent

    def wait_for_the_test():
        while not (folder / "go").exists():
            time.sleep(0.001)

    def train():
        import torch
        import torch.distributed as dist

        rank = minitrain.get_context().get_world_rank()
        {train}

    result = TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="run", storage_path=folder),
    ).fit()
    print("returned", result.return_value)
"""


@pytest.fixture
def start_run(start_script):
    """Return a function that starts a run whose train function is these lines."""

    def start(train):
        indented = train.strip().replace("\n", "\n" + " " * 8)
        return start_script(SCRIPT.format(train=indented))

    return start


def command(run_dir: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "minitrain.stacks", str(run_dir)],
        capture_output=True,
        text=True,
        check=False,
    )


def main_functions(text: str) -> list[str]:
    return [frame.function for frame in innermost_frames(text)]


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


# ------------------------------------------------------------------ a live run
def test_the_command_tells_a_stuck_rank_from_those_that_wait_for_it(start_run, tmp_path):
    script = start_run(
        """
def lock_twice():
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.PyDLL(None).pthread_mutex_lock  # a PyDLL keeps the interpreter's lock
    lock(mutex)
    (folder / "locked").touch()
    lock(mutex)

if rank == 1:
    lock_twice()
print("reduces", flush=True)
dist.all_reduce(torch.ones(1))
"""
    )
    script.wait_for("reduces")
    run_dir = tmp_path / "run"
    wait_until((tmp_path / "locked").exists)
    wait_until(lambda: waits_in_collective(minitrain.stacks(run_dir)[0]))
    done = command(run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    waiting, stuck = done.stdout.split("=== rank ")[1:]
    assert waiting.startswith("0, pid ")
    assert "in all_reduce\n" in waiting
    assert stuck.startswith("1, pid ")
    assert stuck.rstrip().splitlines()[-1].endswith("in lock_twice")
    assert "_agent" not in done.stdout  # what led to the worker says nothing
    layout = RunLayout(run_dir)
    for rank, text in enumerate([waiting, stuck]):
        assert layout.stacks(0, rank).read_text().splitlines()[2:] == text.rstrip().splitlines()[2:]
    assert not waits_in_collective(layout.stacks(0, 1).read_text())


def test_training_goes_on_undisturbed(start_run, tmp_path):
    script = start_run(
        """
total, steps = torch.zeros(()), 0
while True:
    part = torch.full((), float(rank + 1))
    dist.all_reduce(part)
    total += part
    steps += 1
    stop = torch.tensor(float((folder / "go").exists()))
    dist.broadcast(stop, 0)
    if steps == 10:
        print("steps", flush=True)
    if stop:
        break
return steps, total.item()
"""
    )
    script.wait_for("steps")
    for _ in range(50):
        texts = minitrain.stacks(tmp_path / "run")
        assert all("train" in main_functions(text) for text in texts.values())
    (tmp_path / "go").touch()
    assert script.wait() == 0, script.output
    (line,) = [line for line in script.output.splitlines() if line.startswith("returned")]
    steps, total = json.loads(line.removeprefix("returned ").replace("(", "[").replace(")", "]"))
    assert total == 3.0 * steps


def test_a_collective_that_waits_for_a_late_rank_survives_being_asked(start_run, tmp_path):
    script = start_run(
        """
print("there", flush=True)
if rank == 1:
    wait_for_the_test()
part = torch.ones(())
dist.all_reduce(part)
return part.item()
"""
    )
    script.wait_for("there")
    run_dir = tmp_path / "run"
    wait_until(lambda: waits_in_collective(minitrain.stacks(run_dir)[0]))
    for _ in range(20):
        texts = minitrain.stacks(run_dir)
        assert [waits_in_collective(texts[rank]) for rank in (0, 1)] == [True, False]
    assert "wait_for_the_test" in main_functions(texts[1])
    (tmp_path / "go").touch()
    assert script.wait() == 0, script.output
    assert "returned 2.0" in script.output


def test_the_backward_pass_waits_for_other_ranks_gradients(start_run, tmp_path):
    script = start_run(
        """
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
loss = model(torch.ones(2, 3)).sum()
print("there", flush=True)
if rank == 1:
    wait_for_the_test()
loss.backward()
"""
    )
    script.wait_for("there")
    wait_until(lambda: waits_in_collective(minitrain.stacks(tmp_path / "run")[0]))
    texts = minitrain.stacks(tmp_path / "run")
    assert "_engine_run_backward" in main_functions(texts[0])
    assert not waits_in_collective(texts[1])
    (tmp_path / "go").touch()
    assert script.wait() == 0, script.output


def test_a_data_loaders_process_answers_for_itself(start_run, tmp_path):
    script = start_run(
        """
from torch.utils.data import DataLoader

class Slow(list):
    def __getitem__(self, index):
        (folder / f"loader_{rank}").write_text(str(os.getpid()))
        print("loads", flush=True)
        wait_for_the_test()
        return index

next(iter(DataLoader(Slow([0]), num_workers=1)))
"""
    )
    script.wait_for("loads")
    wait_until((tmp_path / "loader_0").exists)
    loader = int((tmp_path / "loader_0").read_text())
    text = stacks_of([loader], 20)[loader]
    assert "__getitem__" in main_functions(text)
    worker = minitrain.stacks(tmp_path / "run")[0]
    assert "_try_get_data" in main_functions(worker)
    (tmp_path / "go").touch()
    assert script.wait() == 0, script.output


def test_a_stopped_rank_and_one_that_has_ended_are_told(start_run, tmp_path):
    script = start_run("print('there', flush=True)\nwait_for_the_test()")
    script.wait_for("there")
    workers = RunRecord.load(RunLayout(tmp_path / "run")).attempts[-1].workers
    assert [worker["rank"] for worker in workers] == [0, 1]
    os.kill(workers[1]["pid"], signal.SIGSTOP)
    wait_until(lambda: "cannot answer" in minitrain.stacks(tmp_path / "run")[1])
    assert "wait_for_the_test" in main_functions(minitrain.stacks(tmp_path / "run")[0])
    os.kill(workers[1]["pid"], signal.SIGCONT)
    (tmp_path / "go").touch()
    assert script.wait() == 0, script.output
    done = command(tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr == "minitrain: run is not running: it has finished\n"


# ------------------------------------------------------------------ nothing to see
def record(folder: Path, *, status="running", ended=None, driver=None, workers=(), attempts=1):
    run = RunRecord("run", "id", "TorchTrainer", "0", {}, {}, None, None, "max", status=status)
    run.attempts = [Attempt(2, ended=ended, workers=list(workers))] * attempts
    run.driver = driver or run.driver
    run.save(RunLayout(folder))


HERE = socket.gethostname()
ELSEWHERE = [
    {"rank": 0, "pid": 1, "hostname": "node-b"},
    {"rank": 1, "pid": 1, "hostname": "node-b"},
]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"status": "failed"}, "is not running: it has failed"),
        ({"driver": {"pid": 2**22 + 1, "hostname": HERE}}, "its driver (pid 4194305) was killed"),
        ({"attempts": 0}, "has no workers at the moment"),
        ({}, "has no workers at the moment"),
        ({"ended": now(), "workers": ELSEWHERE}, "has no workers at the moment"),
        ({"workers": ELSEWHERE}, f"workers run on node-b, and this is {HERE}: run it there"),
    ],
)
def test_why_there_is_nothing_to_see_is_said_in_words(tmp_path, settings, words):
    record(tmp_path, **settings)
    with pytest.raises(RuntimeError) as caught:
        minitrain.stacks(tmp_path)
    assert words in str(caught.value)


def test_a_folder_without_a_run_is_said_to_be_one(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"minitrain: {tmp_path} is not the folder of a run: it has no run.json\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_run_may_not_be_looked_at(tmp_path, monkeypatch):
    record(tmp_path, workers=[{"rank": 0, "pid": os.getpid(), "hostname": HERE}])
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(RuntimeError, match=r"not permitted: rank 0 .* belongs to root"):
        minitrain.stacks(tmp_path)


def test_the_function_and_the_command_share_a_name_in_any_order():
    for first in ("import minitrain.stacks", "from minitrain.stacks import stacks", ""):
        code = f"{first}\nimport minitrain\nassert callable(minitrain.stacks)"
        subprocess.run([sys.executable, "-c", code], check=True)
