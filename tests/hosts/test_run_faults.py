"""Hosts, links and processes elsewhere that fail: each is named, and training goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from minitrain._os.processes import is_alive
from tests.hosts.drivers import (
    WITHIN_S,
    Steps,
    reported,
    run_record,
    seen_from_outside,
    signal_inside,
)
from tests.hosts.namespaces import state, wait

LONG = pytest.mark.campaign
HOSTS = ["h1", "h2"]
SILENCE_S = 3.0
"""A short heartbeat_timeout_s: what a test that cuts or stops something waits for at least."""
PROJECT = str(Path(__file__).parents[2])
SLOW_TORCH = f"""
import importlib.abc, os, pathlib, socket, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch" and socket.gethostname() == "h4":
            time.sleep({SILENCE_S})
            pathlib.Path(__file__).with_name("h4").touch()
sys.meta_path.insert(0, Slow())
"""


@pytest.fixture
def steps(driver, tmp_path):
    return Steps(driver, tmp_path)


def sshd_of(world, agent: int) -> str:
    return world.run(["ps", "-o", "ppid=", "-p", str(agent)], check=True).stdout.strip()


def attempts(folder: Path) -> list[list[str]]:
    return [
        [worker["hostname"] for worker in attempt["workers"]]
        for attempt in run_record(folder)["attempts"]
    ]


def test_what_is_killed_on_another_host_is_named_and_training_goes_on(driver, steps, tmp_path):
    """A worker, an agent; then there are no more attempts."""
    hosts = ["h1", "h2"]
    driver.begin_fit("steps", tmp_path, hosts, 2, failure={"max_failures": 2})
    world = driver.world

    worker = steps.wait(2, on=hosts)[1]
    signal_inside(world, worker["pid"], "KILL")
    again = steps.wait(2, first=worker["step"], on=hosts)
    assert [one["agent"] for one in again][1] == worker["agent"]
    assert f"rank 1 on h2, pid {worker['pid']}: the process was killed by SIGKILL" in driver.said

    signal_inside(world, again[1]["agent"], "KILL")
    lost = "rank 1 on h2, pid {}: HostLostError: h2 is lost: the agent there ended"
    driver.wait_for(lost.format(again[1]["pid"]))
    last = steps.wait(2, first=again[1]["step"], on=hosts)
    assert last[0]["agent"] == again[0]["agent"]
    assert last[1]["agent"] != again[1]["agent"]

    signal_inside(world, last[0]["pid"], "KILL")
    answer = driver.answer()
    assert answer["error"] == "WorkerGroupError"
    assert (
        f"rank 0 on h1, pid {last[0]['pid']}: the process was killed by SIGKILL" in answer["text"]
    )
    assert answer["hosts"]["0"] == "h1"
    assert "This was attempt 3 (max_failures=2)" in answer["text"]
    found = [row["step"] for row in reported(tmp_path)]
    assert found == list(range(len(found)))
    assert attempts(tmp_path) == [hosts] * 3


@pytest.mark.parametrize("victim", ["worker", "agent", pytest.param("connection", marks=LONG)])
def test_without_another_attempt_the_error_names_host_and_rank(driver, steps, tmp_path, victim):
    driver.begin_fit("steps", tmp_path, ["h1", "h2"], 2)
    (_, at) = steps.wait(2)
    pids = {"worker": at["pid"], "agent": at["agent"]}
    if victim == "connection":
        pids[victim] = sshd_of(driver.world, at["agent"])
    signal_inside(driver.world, pids[victim], "KILL")
    answer = driver.answer()

    assert answer["error"] == "WorkerGroupError"
    assert f"rank 1 on h2, pid {at['pid']}: " in answer["text"].splitlines()[0]
    assert answer["causes"]["1"] == ("WorkerDiedError" if victim == "worker" else "HostLostError")
    assert "FailureConfig(max_failures=...)" in answer["text"]
    assert run_record(tmp_path)["status"] == "failed"


@LONG
def test_a_link_that_is_cut_for_seconds_costs_nothing(driver, steps, tmp_path):
    driver.begin_fit("steps", tmp_path, ["h1", "h2"], 2)
    before = steps.wait(2)
    driver.world.cut("h2")
    cut_until_s = time.monotonic() + 4
    wait(lambda: time.monotonic() > cut_until_s, "four seconds")
    assert steps.at(0)["step"] <= before[0]["step"] + 100
    driver.world.mend("h2")
    driver.wait_until(lambda: steps.at(1)["step"] > before[1]["step"] + 3, "more steps")
    answer = steps.enough()

    assert answer["value"][0] == 0, answer
    assert len(attempts(tmp_path)) == 1


@LONG
def test_a_link_that_stays_cut_is_noticed_on_both_sides(driver, steps, tmp_path):
    """Also by an agent that was started when it might have been silent for longer."""
    launch = {"transport": f"ssh -F {driver.world.ssh_config} {{host}}"}
    with driver.environment(MINITRAIN_SSH_OPTIONS=None):
        driver.fit("three", tmp_path, HOSTS, 2, launch=launch, run={"name": "before"})
        failure = {"heartbeat_timeout_s": SILENCE_S}
        driver.begin_fit("steps", tmp_path, HOSTS, 2, failure=failure, launch=launch)
        at = steps.wait(2)[1]
        orphans = [seen_from_outside(driver.world, "h2", at[who]) for who in ("agent", "pid")]
        driver.world.cut("h2")
        answer = driver.answer()

        assert answer["causes"] == {"1": "HostLostError"}
        silent = f"h2 is lost: it has said nothing for {SILENCE_S:g} s (heartbeat_timeout_s)"
        assert silent in answer["text"]
        wait(
            lambda: not any(map(is_alive, orphans)),
            "the end of the orphans, behind a link that is still cut",
            timeout_s=2 * SILENCE_S,
        )


@pytest.mark.parametrize(
    ("hosts", "then"),
    [
        pytest.param(["h1:1", "h2:1", "h3:1"], ["h1", "h3"], marks=LONG),
        pytest.param(["h1:2", "h2:1"], ["h1", "h1"], marks=LONG),
        pytest.param(["h2:1", "h1:1", "h3:1"], ["h1", "h3"], marks=LONG),
    ],
)
def test_training_goes_on_where_there_is_room_when_a_host_loses_its_power(
    driver, steps, tmp_path, hosts, then
):
    """Nobody waits for ssh to give the lost host up."""
    failure = {"heartbeat_timeout_s": SILENCE_S, "max_failures": 1}
    scaling = {"placement_strategy": "SPREAD" if len(hosts) == 2 else "PACK"}
    options = ["-F", driver.world.ssh_config, "-o", f"ConnectTimeout={2 * WITHIN_S:g}"]
    launch = {"ssh_options": options}
    driver.begin_fit("steps", tmp_path, hosts, 2, failure=failure, scaling=scaling, launch=launch)
    before = steps.wait(2)
    lost = "h2"
    driver.world.power_off(lost)
    steps.wait(2, first=before[0]["step"], on=then)
    answer = steps.enough()

    assert answer["value"][0] >= before[0]["step"], answer
    assert f"{lost} is lost: it has said nothing for {SILENCE_S:g} s" in driver.said
    assert attempts(tmp_path)[1:] == [then]


@LONG
def test_an_elastic_run_shrinks_with_its_hosts_and_grows_again(driver, steps, tmp_path):
    scaling = {"elastic_resize_monitor_interval_s": 0.5}
    failure = {"heartbeat_timeout_s": SILENCE_S}
    driver.begin_fit("steps", tmp_path, ["h1:1", "h2:1"], [1, 2], failure=failure, scaling=scaling)
    world = driver.world
    two = steps.wait(2)
    world.power_off("h2")
    one = steps.wait(1, first=two[0]["step"])
    world.power_on("h2")
    steps.wait(2, first=one[0]["step"], on=["h1", "h2"])
    answer = steps.enough()

    assert answer["metrics"]["world"] == 2, answer
    assert [len(hosts) for hosts in attempts(tmp_path)] == [2, 1, 2]


@LONG
def test_too_few_hosts_are_told_in_a_sentence(driver, steps, tmp_path):
    failure = {"heartbeat_timeout_s": SILENCE_S, "max_failures": 3}
    with driver.environment(MINITRAIN_START_TIMEOUT_S="12"):  # so long it is tried again
        driver.begin_fit("steps", tmp_path, ["h1:1", "h2:1"], 2, failure=failure)
        steps.wait(2)
        driver.world.power_off("h2")
        answer = driver.answer()

    assert "h2 cannot be reached" in answer["text"], answer
    assert len(attempts(tmp_path)) == 2


@pytest.mark.campaign
def test_a_host_that_is_taken_away_is_left_with_a_last_checkpoint(driver, steps, tmp_path):
    driver.begin_fit("steps", tmp_path, ["h1:1", "h2:1", "h3:1"], 2)
    before = steps.wait(2)
    signal_inside(driver.world, before[1]["agent"], "TERM")
    after = steps.wait(2, first=before[0]["step"], on=["h1", "h3"])
    answer = steps.enough()

    assert 'told of {"h2": [1]}' in driver.said
    assert answer["value"][0] == after[0]["first"], answer
    outcome = run_record(tmp_path)["attempts"][0]["outcome"]
    assert outcome.startswith("the run was preempted: SIGTERM came on h2. ")


@LONG
def test_an_agent_that_is_stopped_is_replaced_and_leaves_nothing(driver, steps, tmp_path):
    failure = {"heartbeat_timeout_s": SILENCE_S, "max_failures": 1}
    driver.begin_fit("steps", tmp_path, ["h1:1", "h2:1"], 2, failure=failure)
    before = steps.wait(2)
    agent = seen_from_outside(driver.world, "h2", before[1]["agent"])
    signal_inside(driver.world, before[1]["agent"], "STOP")
    wait(lambda: state(agent) == "T", "the agent to stop")
    after = steps.wait(2, first=before[1]["step"], on=["h1", "h2"])
    steps.enough()

    assert after[1]["agent"] != before[1]["agent"]
    assert f"h2 is lost: it has said nothing for {SILENCE_S:g} s" in driver.said
    assert not is_alive(agent)


@pytest.mark.campaign
def test_a_rank_that_hangs_elsewhere_is_shown_with_its_stack(driver, tmp_path):
    failure = {"hang_timeout_s": 1.0}
    answer = driver.fit("hang", tmp_path, ["h1", "h2"], 2, failure=failure)

    assert answer["causes"] == {"1": "HangError"}, answer
    assert "rank 1 on h2" in answer["text"]
    assert "stuck_here" in answer["text"]
    (stacks,) = (tmp_path / "runs/run/logs").rglob("*stacks*1*")
    assert "stuck_here" in stacks.read_text()


@LONG
def test_a_connection_that_is_killed_costs_an_attempt(driver, steps, tmp_path):
    hosts = ["h1", "h2"]
    driver.begin_fit("steps", tmp_path, hosts, 2, failure={"max_failures": 1})
    before = steps.wait(2)
    signal_inside(driver.world, sshd_of(driver.world, before[1]["agent"]), "KILL")
    after = steps.wait(2, first=before[1]["step"], on=hosts)
    answer = steps.enough()

    assert answer["value"][0] > 0, answer
    assert f"rank 1 on h2, pid {before[1]['pid']}: HostLostError: h2 is lost" in driver.said
    assert after[1]["agent"] != before[1]["agent"]


@LONG
def test_agents_outlive_a_driver_that_is_busy_with_something_else(driver, tmp_path):
    """In a callback, or between two runs, for longer than anybody may be silent."""
    failure = {"heartbeat_timeout_s": SILENCE_S / 3}
    agents = []
    for name in ("first", "second"):
        run = {"name": name}
        answer = driver.fit(
            "three", tmp_path, HOSTS, 2, failure=failure, run=run, callback_takes_s=SILENCE_S / 2
        )
        assert answer["told"] == [[0, 0], [1, 1], [2, 2]], answer
        agents.append(answer["value"])
        since_s = time.monotonic()
        wait(lambda since_s=since_s: time.monotonic() > since_s + SILENCE_S, "a long silence")

    assert agents[0] == agents[1]


@LONG
def test_a_host_that_lost_its_power_between_two_runs_is_started_again(driver, tmp_path):
    failure = {"heartbeat_timeout_s": SILENCE_S}
    answers = []
    for name in ("before", "after"):
        run = {"name": name}
        answers.append(driver.fit("three", tmp_path, HOSTS, 2, failure=failure, run=run))
        driver.world.power_off("h2")
        driver.world.power_on("h2")

    assert [answer["told"] for answer in answers] == [[[0, 0], [1, 1], [2, 2]]] * 2, answers


@LONG
def test_a_host_that_imports_torch_slowly_is_waited_for(driver, tmp_path):
    """For longer than it may be silent later; it is not even asked meanwhile."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_TORCH)
    failure = {"heartbeat_timeout_s": SILENCE_S / 2}
    with driver.environment(PYTHONPATH=f"{slow}:{PROJECT}"):
        answer = driver.fit("three", tmp_path, ["h1", "h4"], 2, failure=failure)

    assert (slow / "h4").exists(), answer
    assert answer["told"] == [[0, 0], [1, 1], [2, 2]], answer


@pytest.mark.campaign
def test_rows_that_were_acknowledged_elsewhere_survive_their_worker(driver, tmp_path):
    driver.begin_fit("rows", tmp_path, ["h2", "h1"], 2)
    acknowledged = tmp_path / "ack_0"
    driver.wait_until(
        lambda: acknowledged.exists() and int(acknowledged.read_text() or 0) > 50, "fifty reports"
    )
    signal_inside(driver.world, int((tmp_path / "pid_0").read_text()), "KILL")
    answer = driver.answer()

    assert "rank 0 on h2" in answer["text"].splitlines()[0]
    found = [row["step"] for row in reported(tmp_path)]
    assert len(found) >= int(acknowledged.read_text())
    assert found == list(range(len(found)))
