"""SIGKILL for the driver, the agent and workers at any moment: nothing stays, nothing is lost."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from minitrain._os.processes import is_alive

LONG = pytest.mark.campaign
VICTIMS = [
    *("driver", "agent", "rank 0"),
    *(pytest.param(one, marks=LONG) for one in ("worker", "driver and agent")),
]

TRAIN = """
    import os, subprocess, sys, time
    from pathlib import Path

    import minitrain
    from minitrain import FailureConfig, RunConfig, ScalingConfig
    from minitrain.torch import TorchTrainer

    folder = Path(__file__).parent

    def train():
        import torch
        from torch.utils.data import DataLoader

        rank = minitrain.get_context().get_world_rank()
        # Tensors travel through shared memory; see the test for when they do not.
        collate = None if "tensors" in sys.argv else list
        loader = DataLoader(torch.arange(10_000), batch_size=1, num_workers=1, collate_fn=collate)
        # Children of all kinds: a loader's, one in the group, and one that left it.
        subprocess.Popen(["sleep", "600"])
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        acknowledged = os.open(folder / f"ack_{rank}", os.O_WRONLY | os.O_CREAT)
        for step, batch in enumerate(loader):
            minitrain.report({"step": step})
            os.pwrite(acknowledged, str(step + 1).encode(), 0)
            time.sleep(0.001)

    print("starting", flush=True)
    trainer = TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="killed", storage_path=folder, log_ranks=[]),
    )
    trainer.fit()
"""


def acknowledged(folder: Path, rank: int = 0) -> int:
    """Return how many reports have returned in a worker."""
    try:
        return int((folder / f"ack_{rank}").read_text() or 0)
    except FileNotFoundError:
        return 0


def wait_for_steps(folder: Path, script, steps: int) -> None:
    deadline_s = time.monotonic() + 40
    while min(acknowledged(folder, rank) for rank in range(2)) < steps:
        assert time.monotonic() < deadline_s, script.output
        assert script.process.poll() is None, script.output
        time.sleep(0.002)


def rows(folder: Path) -> list[dict]:
    lines = (folder / "killed" / "result.json").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def family(script) -> dict[str, list[int]]:
    """Return the ids of the processes below a driver, by their part in the run."""
    (agent,) = psutil.Process(script.process.pid).children()
    workers = [child.pid for child in agent.children() if child.children()]
    assert len(workers) == 2
    return {"agent": [agent.pid], "worker": workers[1:], "rank 0": workers[:1]}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.campaign)])
@pytest.mark.parametrize(
    "victim",
    [
        "driver",
        *(
            pytest.param(one, marks=LONG)
            for one in ("agent", "rank 0", "worker", "driver and agent")
        ),
    ],
)
def test_whatever_is_killed_nothing_stays_and_nothing_reported_is_lost(
    victim, seed, start_script, all_gone, tmp_path
):
    # torch makes shared memory under a name and takes the name back at once. A process killed in
    # between leaves it, and only the agent knows whose it was: not if it is killed as well.
    kind = "lists" if "agent" in victim else "tensors"
    script = start_script(TRAIN, kind)
    wait_for_steps(tmp_path, script, 1 + random.Random(f"{victim} {seed}").randrange(300))
    everybody = script.descendants()
    assert len(everybody) >= 1 + 1 + 2 * 4, "agent, store, workers with three children each"
    parts = {**family(script), "driver": [script.process.pid]}
    victims = [pid for part in victim.split(" and ") for pid in parts[part]]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    if victim.startswith("driver"):
        script.wait()
        all_gone(everybody)
    else:
        all_gone([pid for pid in everybody if pid not in parts["agent"]])
        assert script.wait() == 1
        expected = "the agent it ran under was killed" if victim == "agent" else "killed by SIGKILL"
        assert expected in script.output
        all_gone(everybody)
    assert time.monotonic() - killed_s < 20
    steps = [row["step"] for row in rows(tmp_path)]
    assert len(steps) >= acknowledged(tmp_path)
    assert steps == list(range(len(steps)))
    if not victim.startswith("driver"):
        with (tmp_path / "killed" / "progress.csv").open() as file:
            assert [int(row["step"]) for row in csv.DictReader(file)] == steps


@pytest.mark.parametrize(
    "delay_s",
    [
        0.0,
        pytest.param(0.3, marks=LONG),
        pytest.param(0.6, marks=LONG),
        pytest.param(0.9, marks=LONG),
    ],
)
def test_a_driver_killed_while_its_agent_starts_takes_it_along(
    delay_s, start_script, all_gone, tmp_path
):
    script = start_script(TRAIN)
    script.wait_for("starting")
    end_s = time.monotonic() + delay_s
    while time.monotonic() < end_s:
        time.sleep(0.001)
    everybody = script.descendants()
    script.process.kill()
    script.wait()
    all_gone(everybody)


@pytest.mark.campaign
def test_an_agent_that_was_killed_is_replaced_and_the_run_goes_on(start_script, tmp_path):
    script = start_script(
        """
        import os, signal, tempfile
        from pathlib import Path

        import minitrain
        from minitrain import Checkpoint, FailureConfig, RunConfig, ScalingConfig
        from minitrain.trainer import DataParallelTrainer

        def train():
            start = minitrain.get_checkpoint()
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "state").write_text("x")
                minitrain.report({"again": start is not None}, Checkpoint.from_directory(folder))
            if start is None:
                os.kill(os.getppid(), signal.SIGKILL)
                signal.pause()
            return "done"

        result = DataParallelTrainer(
            train,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                storage_path=Path(__file__).parent, failure_config=FailureConfig(max_failures=1)
            ),
        ).fit()
        print(result.return_value, list(result.metrics_dataframe["again"]))
        """
    )
    assert script.wait() == 0, script.output
    assert "done [False, True]" in script.output


@pytest.mark.campaign
def test_an_idle_agent_that_was_killed_is_replaced(start_script):
    script = start_script(
        """
        import os, signal, time
        from minitrain.trainer import DataParallelTrainer

        first = DataParallelTrainer(os.getppid).fit().return_value
        os.kill(first, signal.SIGKILL)
        second = DataParallelTrainer(os.getppid).fit().return_value
        print("replaced", first != second)
        """
    )
    assert script.wait() == 0, script.output
    assert "replaced True" in script.output


@pytest.mark.campaign
def test_an_agent_ends_with_its_driver_without_being_asked(start_script, all_gone):
    script = start_script(
        """
        import os
        from minitrain.trainer import DataParallelTrainer
        print("agent", DataParallelTrainer(os.getppid).fit().return_value, flush=True)
        os._exit(0)
        """
    )
    assert script.wait() == 0
    (line,) = [line for line in script.output.splitlines() if line.startswith("agent")]
    all_gone([int(line.split()[1])])


@pytest.mark.campaign
def test_a_child_that_holds_the_drivers_pipes_does_not_keep_the_agent(start_script, all_gone):
    script = start_script(
        """
        import os, signal
        from minitrain.trainer import DataParallelTrainer
        agent = DataParallelTrainer(os.getppid).fit().return_value
        child = os.fork()
        if child == 0:
            signal.pause()
        print("pids", agent, child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    script.wait()
    (line,) = [line for line in script.output.splitlines() if line.startswith("pids")]
    agent, child = map(int, line.split()[1:])
    assert is_alive(child)
    try:
        all_gone([agent])
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.campaign
def test_an_agent_that_was_stopped_does_not_outlive_its_driver(start_script, all_gone, tmp_path):
    script = start_script(TRAIN, "lists")
    wait_for_steps(tmp_path, script, 1)
    everybody = script.descendants()
    (agent,) = family(script)["agent"]
    os.kill(agent, signal.SIGSTOP)
    script.process.kill()
    script.wait()
    all_gone(everybody)


@pytest.mark.campaign
def test_a_worker_that_is_stopped_while_it_starts_is_a_failure_like_any_other(start_script):
    script = start_script(
        """
        import os, signal
        from pathlib import Path

        import minitrain
        from minitrain import FailureConfig, RunConfig, ScalingConfig
        from minitrain.trainer import DataParallelTrainer

        folder = Path(__file__).parent

        class StopsOnce:
            def __reduce__(self):
                return stop, (str(folder / "stopped"),)

        def stop(mark):
            if os.environ.get("RANK") == "1" and not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGSTOP)

        result = DataParallelTrainer(
            lambda config: "done",
            train_loop_config={"trap": StopsOnce()},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                storage_path=folder, failure_config=FailureConfig(max_failures=1)
            ),
        ).fit()
        print(result.return_value)
        """,
        env={"MINITRAIN_START_TIMEOUT_S": "6"},
    )
    assert script.wait() == 0, script.output
    assert "still waiting for rank 1 after 6 s" in script.output
    assert "done" in script.output
