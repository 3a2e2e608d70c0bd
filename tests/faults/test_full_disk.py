"""The disk of a run is full while it trains: fit() says so, and the run can be gone on with."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

TRAIN = """
    import json, os, sys, tempfile
    from pathlib import Path

    import minitrain
    from minitrain import Checkpoint, FailureConfig, RunConfig, ScalingConfig
    from minitrain.exceptions import TrainingFailedError
    from minitrain.trainer import DataParallelTrainer

    disk = Path(sys.argv[1])

    def fill():
        with open(disk / "filler", "wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    pass

    def report(step):
        with tempfile.TemporaryDirectory(dir=disk.parent) as folder:
            Path(folder, "step").write_text(str(step))
            minitrain.report({"step": step}, Checkpoint.from_directory(folder))

    def train(config):
        start = minitrain.get_checkpoint()
        first = int(Path(start.path, "step").read_text()) + 1 if start else 0
        for step in range(first, 4):
            if step == 2 and config["fill"] and minitrain.get_context().get_world_rank() == 0:
                fill()
            report(step)

    where = RunConfig(
        name="run", storage_path=disk, failure_config=FailureConfig(max_failures=1), log_ranks=[]
    )
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"fill": True},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=where,
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        print("failed:", type(error).__name__)
    (disk / "filler").unlink()
    trainer = DataParallelTrainer.restore(disk / "run", train_loop_config={"fill": False})
    result = trainer.fit()
    print("steps", list(result.metrics_dataframe["step"]))
"""


@pytest.mark.campaign
def test_a_run_on_a_full_disk_fails_as_runs_do_and_goes_on_when_there_is_room(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAIN))
    disk = tmp_path / "disk"
    disk.mkdir()
    in_namespace = ["unshare", "-m", "bash", "-c"]
    mount = 'mount -t tmpfs -o size=2m tmpfs "$0"'
    if subprocess.run(
        [*in_namespace, mount, str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small filesystem needs root and unshare")
    done = subprocess.run(
        [*in_namespace, f'{mount} && exec "$@" "$0"', disk, sys.executable, tmp_path / "train.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: WorkerGroupError" in done.stdout, done.stdout + done.stderr
    assert "steps [0, 1, 2, 3]" in done.stdout
