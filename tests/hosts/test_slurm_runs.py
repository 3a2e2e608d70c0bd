"""Training in allocations of a real Slurm: one driver, and an agent on every node by ``srun``."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.conftest import wait_until_empty
from tests.hosts.namespaces import wait
from tests.hosts.slurm import Job
from tests.hosts.world import World

EXAMPLES = Path(__file__).parents[2] / "examples"
WITHIN_S = 90.0
"""How long workers may take to start, where several agents import torch on one machine."""

TRAIN = """
    import os, socket, sys, tempfile, time
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, FailureConfig, RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    def train(config):
        rank = minitrain.get_context().get_world_rank()
        first = 0
        if minitrain.get_checkpoint() is not None:
            with minitrain.get_checkpoint().as_directory() as path:
                first = 1 + int(Path(path, "step").read_text())
        print(f"rank {rank} on {socket.gethostname()} from {first}", flush=True)
        for step in range(first, first + 2 if first else config["steps"]):
            with tempfile.TemporaryDirectory() as path:
                Path(path, "step").write_text(str(step))
                saved = Checkpoint.from_directory(path) if rank == 0 else None
                minitrain.report({"step": step}, saved)
            time.sleep(0.02)

    if __name__ == "__main__":
        result = DataParallelTrainer(
            train,
            train_loop_config={"steps": int(sys.argv[2])},
            scaling_config=ScalingConfig(num_workers=int(sys.argv[1])),
            run_config=RunConfig(
                log_ranks="all",
                failure_config=FailureConfig(max_failures=1, heartbeat_timeout_s=5),
            ),
        ).fit()
        print("result", result.metrics["step"], flush=True)
"""


@pytest.fixture
def script(tmp_path, monkeypatch) -> Path:
    """Return a train script; ``python`` is this one in what is started from here on."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(TRAIN))
    return path


def the_run(storage: Path) -> dict:
    (run,) = storage.iterdir()
    return json.loads((run / "run.json").read_text())


def temporary_folders() -> Iterator[Path]:
    """Return the folders of all agents: the hosts share this one's disk."""
    return Path(tempfile.gettempdir()).glob("minitrain-????????????")


def hosts_of(attempt: dict) -> list[str]:
    return [worker["hostname"] for worker in attempt["workers"]]


@pytest.mark.campaign
def test_an_allocation_is_all_that_a_run_needs_to_know(cluster, script, storage):
    command = ["salloc", "-N3", "-Q", "python", "-m", "minitrain.launch", str(script), "3", "2"]
    said = cluster.run(command, env={"SLURM_CONF": cluster.slurm_conf}, timeout_s=WITHIN_S)

    assert said.returncode == 0, said.stdout + said.stderr
    *lines, last = said.stdout.splitlines()
    assert sorted(lines) == [f"[rank {n}] rank {n} on h{n + 1} from 0" for n in range(3)]
    assert last == "result 1"
    assert "3 workers on h1, h2, h3" in said.stderr
    assert hosts_of(the_run(storage)["attempts"][0]) == ["h1", "h2", "h3"]


def warn(cluster: World, job: Job, folder: Path) -> None:
    """Send what comes before the time limit."""
    job.cancel("--signal=USR1", "--batch")


def preempt(cluster: World, job: Job, folder: Path) -> None:
    """Want the nodes for a job of higher priority."""
    folder.mkdir()
    Job(cluster, folder, "sleep 1", "--partition=urgent", "--nodes=3", "--exclusive")


@pytest.mark.campaign
@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", [warn, preempt])
def test_the_batch_script_of_the_examples_saves_and_is_queued_again(
    cluster, script, storage, tmp_path, end
):
    """With the examples as they are."""
    arguments = [str(EXAMPLES / "preemptible.py"), "--seconds", "10"]
    job = Job(cluster, tmp_path, EXAMPLES / "slurm.sbatch", arguments=arguments)
    job.wait_for("training from step 1\n", WITHIN_S)
    end(cluster, job, tmp_path / "other")
    job.wait_for("preemptible: preempted", WITHIN_S)
    job.wait_for("done at step", 2 * WITHIN_S)

    assert job.wait() == "COMPLETED"
    assert job.restarts == 1
    before, _, after = job.output.partition("preemptible: preempted")
    saved = [int(step) for step in re.findall(r"step (\d+): loss", before)]
    assert f"training from step {saved[-1] + 1}\n" in after
    first, second = the_run(storage)["attempts"]
    assert second["outcome"] == "returned"
    assert hosts_of(first) == hosts_of(second) == ["h1", "h2"]


@pytest.mark.campaign
@pytest.mark.timeout(240)
def test_a_run_goes_on_without_a_node_that_is_lost(make_world, script, storage, tmp_path):
    world = make_world(3)
    world.slurm()
    batch = f"python -m minitrain.launch {script} 2 100000; echo status $?"
    job = Job(world, tmp_path, batch, "--nodes=3", "--no-kill")
    job.wait_for("rank 1 on h2 from 0", WITHIN_S)
    saved = "*/checkpoint_*/.manifest.json"
    wait(lambda: any(storage.glob(saved)), "a checkpoint", lambda: job.output)
    before = set(temporary_folders())
    world.power_off("h2")

    job.wait_for("status 0", WITHIN_S)  # Slurm itself waits for the node for longer
    assert re.search(r"rank 1 on h3 from [1-9]", job.output)
    first, second = the_run(storage)["attempts"]
    assert (hosts_of(first), hosts_of(second)) == (["h1", "h2"], ["h1", "h3"])
    assert "h2" in first["outcome"]
    for folder in before:
        shutil.rmtree(folder, ignore_errors=True)  # on a disk of its own, it would be h2's


@pytest.mark.campaign
@pytest.mark.timeout(240)
def test_nothing_is_left_on_any_node_of_a_job_that_is_cancelled(cluster, script, tmp_path):
    batch = f"python -m minitrain.launch {script} 6 100000"
    job = Job(cluster, tmp_path, batch, "--nodes=3")
    for rank in range(6):
        job.wait_for(f"rank {rank} on h{rank // 2 + 1}", WITHIN_S)
    job.cancel()

    assert job.wait() == "CANCELLED"
    assert wait_until_empty(cluster, WITHIN_S) == {}
