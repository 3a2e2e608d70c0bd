"""Several hosts without a network: agents started through a command of the user's.

``env -i HOST=name`` starts them on this machine, and everything else is as it is with ssh: the
greeting, what crosses, the survey, rows and logs at the driver, heartbeats.
tests/hosts has real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import minitrain
from minitrain import (
    Checkpoint,
    FailureConfig,
    LaunchConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from minitrain._driver import agents
from minitrain.exceptions import HostLostError
from minitrain.trainer import DataParallelTrainer

TRANSPORT = "env -i HOST={host}"


@pytest.fixture(autouse=True)
def no_agents_stay():
    yield
    agents.shutdown()


def fit(train, tmp_path, hosts, *, num_workers=2, config=None, failures=None, **launch):
    return DataParallelTrainer(
        train,
        train_loop_config=config or {},
        scaling_config=ScalingConfig(num_workers=num_workers, hosts=hosts),
        run_config=RunConfig(
            storage_path=str(tmp_path),
            failure_config=failures,
            launch_config=LaunchConfig(transport=TRANSPORT, **launch),
        ),
    ).fit()


@pytest.mark.campaign
def test_rows_logs_and_variables_of_other_hosts(tmp_path, monkeypatch):
    monkeypatch.setenv("WANTED", "yes")
    monkeypatch.setenv("NOT_WANTED", "yes")
    monkeypatch.setenv("MY_TOKEN", "secret")

    def train(config):
        context = minitrain.get_context()
        print("rank", context.get_world_rank(), "on", os.environ["HOST"])
        for step in range(3):
            minitrain.report(
                {
                    "step": step,
                    "host": os.environ["HOST"],
                    "place": [context.get_node_rank(), context.get_local_world_size()],
                    "nodes": os.environ["GROUP_WORLD_SIZE"],
                    "crossed": sorted({"WANTED", "NOT_WANTED", "MY_TOKEN"} & os.environ.keys()),
                }
            )
        return os.environ["HOST"]

    result = fit(train, tmp_path, ["one:1", "two:2"], num_workers=3, env=("WANTED", "MY_*"))
    assert result.return_value == "one"
    assert list(result.metrics_dataframe["step"]) == [0, 1, 2]
    assert result.metrics["place"] == [0, 1]
    assert result.metrics["nodes"] == "2"
    assert result.metrics["crossed"] == ["WANTED"]
    logs = Path(result.path, "logs", "attempt_0")
    assert "rank 0 on one" in (logs / "rank_0.log").read_text()
    assert "rank 2 on two" in (logs / "rank_2.log").read_text()


@pytest.mark.campaign
def test_a_host_that_stops_answering_is_lost_and_done_without(tmp_path):
    def train(config):
        start = minitrain.get_checkpoint()
        if start is None and os.environ["HOST"] == "two":
            os.kill(os.getppid(), signal.SIGSTOP)  # its agent
        world_size = minitrain.get_context().get_world_size()
        folder = Path(config["folder"], str(minitrain.get_context().get_world_rank()))
        folder.mkdir(exist_ok=True)
        while True:
            minitrain.report({"workers": world_size}, Checkpoint.from_directory(folder))
            if world_size == 1:
                return
            minitrain.collective.barrier()  # rank 1's news stay with its agent

    failures = FailureConfig(heartbeat_timeout_s=1.5)
    config = {"folder": str(tmp_path)}
    result = fit(
        train, tmp_path, ["one", "two"], num_workers=(1, 2), config=config, failures=failures
    )
    assert result.metrics["workers"] == 1
    with pytest.raises(TrainingFailedError) as caught:
        fit(train, tmp_path, ["one:1", "two:1"], config=config, failures=failures)
    assert isinstance(caught.value.__cause__, HostLostError)
    assert "two is lost: it has said nothing for 1.5 s" in str(caught.value)


class TakeAway(minitrain.UserCallback):
    """Sends SIGTERM to the agent of a host at the first report."""

    def __init__(self, host):
        self._host = host

    def after_report(self, run_context, metrics, checkpoint):
        if metrics[0]["step"] == 0:
            (pid,) = (a.facts.pid for a in agents._pool.leased if a.host.name == self._host)
            os.kill(pid, signal.SIGTERM)


@pytest.mark.campaign
def test_a_host_without_workers_is_taken_away_and_nobody_minds(tmp_path):
    def train(config):
        for step in range(5):
            told = minitrain.get_preemption_info()
            minitrain.report({"step": step, "told": told is not None}, None)
            minitrain.collective.barrier()

    result = DataParallelTrainer(
        train,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1, hosts=["one:1", "two:1"]),
        run_config=RunConfig(
            storage_path=str(tmp_path),
            callbacks=[TakeAway("two")],
            launch_config=LaunchConfig(transport=TRANSPORT),
        ),
    ).fit()
    assert list(result.metrics_dataframe["step"]) == [0, 1, 2, 3, 4]
    assert not result.metrics_dataframe["told"].any()


LONELY = """
import os, sys, time
import minitrain
from minitrain import LaunchConfig, RunConfig, ScalingConfig
from minitrain.trainer import DataParallelTrainer

def train(config):
    print(os.getpid(), os.getppid(), flush=True)
    time.sleep(600)

DataParallelTrainer(
    train,
    train_loop_config={},
    scaling_config=ScalingConfig(num_workers=1, hosts=["one"]),
    run_config=RunConfig(
        storage_path=sys.argv[1], launch_config=LaunchConfig(transport="env -i HOST={host}")
    ),
).fit()
"""


@pytest.mark.campaign
def test_agents_elsewhere_end_with_their_driver(tmp_path):
    driver = subprocess.Popen(
        [sys.executable, "-c", LONELY, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with driver:
        pids = [int(word) for word in driver.stdout.readline().split() if word.isdigit()]
        fds = [os.pidfd_open(pid) for pid in pids]
        driver.kill()
    import select

    for fd in fds:
        assert select.select([fd], [], [], 10)[0], "it outlived its driver"
        os.close(fd)
