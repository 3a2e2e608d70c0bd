"""``fit()`` in the tasks of a real step of Slurm, on several nodes."""

from __future__ import annotations

import json
import os
import sys
import textwrap

import pytest

from tests.hosts.slurm import Job

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(180)]

TRAIN = """
    import os, sys, tempfile, time
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, FailureConfig, RunConfig, ScalingConfig
    from minitrain.torch import TorchTrainer

    folder = Path(__file__).parent

    def train(config):
        import torch

        context = minitrain.get_context()
        rank, local = context.get_world_rank(), context.get_local_rank()
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        where = f"{context.get_node_rank()}.{local}/{context.get_local_world_size()}"
        interface = os.environ["GLOO_SOCKET_IFNAME"]
        first = 0
        if minitrain.get_checkpoint() is not None:
            with minitrain.get_checkpoint().as_directory() as path:
                first = 1 + int(Path(path, "step").read_text())
        print(f"rank {rank} {where} {interface} {total.item():g} from {first}", flush=True)
        for step in range(first, first + 3 if first else config["steps"]):
            preempted = minitrain.get_preemption_info() is not None
            with tempfile.TemporaryDirectory(dir=folder) as path:
                Path(path, "step").write_text(str(step))
                saved = Checkpoint.from_directory(path) if rank == 0 else None
                minitrain.report({"step": step}, saved)
            if preempted:
                print("told", flush=True)
                return
            time.sleep(0.05)

    result = TorchTrainer(
        train,
        train_loop_config={"steps": int(sys.argv[1])},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=folder / "runs", failure_config=FailureConfig(preemption_grace_s=15)
        ),
    ).fit()
    print(f"result {os.environ['RANK']} {result.metrics['step']}", flush=True)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(TRAIN))
    return path


def test_every_task_of_a_step_is_its_rank(cluster, script, tmp_path):
    command = ["srun", "-N2", "-n3", sys.executable, str(script), "3"]
    env = {"SLURM_CONF": cluster.slurm_conf, **_own()}
    answer = cluster.run(command, env=env, timeout_s=120, check=True)
    lines = sorted(line for line in answer.stdout.splitlines() if line.startswith("rank"))
    places = [line.split()[2] for line in lines]
    assert places == ["0.0/2", "0.1/2", "1.0/1"]
    assert {line.split()[3] for line in lines} != {"lo"}
    assert {line.split()[4] for line in lines} == {"3"}
    for rank in range(3):
        assert f"result {rank} 2" in answer.stdout
    (run,) = (tmp_path / "runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    hosts = [worker["hostname"] for worker in record["attempts"][0]["workers"]]
    assert hosts[0] == hosts[1] != hosts[2]  # which of the three are free, Slurm decides


def test_a_job_that_is_told_to_go_saves_and_goes_on_when_it_is_requeued(cluster, script, tmp_path):
    """Without a name for the run: it is found by the job's id."""
    batch = f"""
    srun --unbuffered {sys.executable} {script} 100000
    status=$?
    echo "status $status"
    [ $status -eq 75 ] && scontrol requeue $SLURM_JOB_ID
    exit $status
    """
    environ = ",".join(f"{name}={value}" for name, value in _own().items())
    job = Job(
        cluster, tmp_path, batch, "--nodes=2", "--ntasks-per-node=1", "--requeue",
        f"--export=ALL,{environ},SLURM_CONF={cluster.slurm_conf}",
    )  # fmt: skip
    job.wait_for("rank 0 0.0/1", 90)
    job.cancel("--signal=TERM")  # the tasks of its steps, as --signal=TERM@... of sbatch
    job.wait_for("status 75", 60)
    assert job.output.splitlines().count("told") == 2
    job.wait_for("result 0", 90)
    assert job.wait() == "COMPLETED"
    (run,) = (tmp_path / "runs").iterdir()
    rows = [json.loads(line) for line in (run / "result.json").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == list(range(len(steps)))
    assert len(json.loads((run / "run.json").read_text())["attempts"]) == 2


def _own():
    return {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PATH": os.environ["PATH"]}
