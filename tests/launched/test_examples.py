"""The job files of schedulers do what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from minitrain._os.launchers import detect

EXAMPLES = Path(__file__).parents[2] / "examples"

DRIVER = """#!/bin/bash
echo "$@" >$HERE/arguments
trap 'exit $STATUS' TERM
touch $HERE/trains
while true; do sleep 0.01; done
"""
SCONTROL = """#!/bin/bash
echo "$@" >$HERE/queued
"""


@pytest.mark.parametrize(
    ("signum", "status", "requeued"),
    [(signal.SIGUSR1, 75, True), (signal.SIGTERM, 75, True), (signal.SIGUSR1, 1, False)],
    ids=str,
)
def test_the_batch_script_passes_signals_on_and_queues_the_job_again(
    signum, status, requeued, tmp_path
):
    for name, text in (("python", DRIVER), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    facts = {"HERE": str(tmp_path), "STATUS": str(status), "SLURM_JOB_ID": "17", "PATH": path}
    command = ["bash", str(EXAMPLES / "slurm.sbatch"), "train.py", "--seconds", "3"]
    with subprocess.Popen(command, env={**os.environ, **facts}) as job:
        deadline_s = time.monotonic() + 20
        while not (tmp_path / "trains").exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        job.send_signal(signum)
        assert job.wait(20) == status
    assert (tmp_path / "arguments").read_text() == "-m minitrain.launch train.py --seconds 3\n"
    queued = tmp_path / "queued"
    assert (queued.read_text() if queued.exists() else None) == (
        "requeue 17\n" if requeued else None
    )


def test_every_pod_of_the_job_is_a_rank():
    documents = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
    service, claim, job = documents
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = {one["name"]: one for one in container["env"]}
    field = given.pop("RANK")["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    environ = {name: one["value"] for name, one in given.items()}
    for index in range(spec["completions"]):
        found = detect({**environ, "RANK": str(index)})
        assert (found.rank, found.world_size) == (index, spec["parallelism"])
    # The pod with the index 0 has this name as long as all four agree.
    name = job["metadata"]["name"]
    assert environ["MASTER_ADDR"] == f"{name}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"job-name": name},
    }
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = container["volumeMounts"]
    assert environ["MINITRAIN_STORAGE"] == mount["mountPath"]
    assert volume["name"] == mount["name"]
    assert pod["restartPolicy"] == "OnFailure"


@pytest.mark.campaign
@pytest.mark.timeout(120)
def test_the_job_for_preemptible_machines_runs_under_torchrun(start_script, tmp_path, storage):
    options = ("--standalone", "--nproc-per-node=2", str(EXAMPLES / "preemptible.py"))
    script = start_script(
        "from torch.distributed.run import main\nmain()",
        *options,
        "--seconds",
        "1",
        env={"TMPDIR": str(tmp_path)},
    )
    assert script.wait(100) == 0, script.output
    assert script.output.count("done at step") == 2
