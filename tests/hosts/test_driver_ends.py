"""The driver ends, in whatever way: every host is clean soon after."""

from __future__ import annotations

import signal

import pytest

from minitrain.exceptions import PreemptionError
from tests.hosts.conftest import wait_until_empty
from tests.hosts.drivers import Steps, reported, run_record
from tests.hosts.namespaces import wait

LONG = pytest.mark.campaign
HOSTS = ["h1", "h2"]


@LONG
@pytest.mark.parametrize("hosts", [HOSTS, ["localhost", "h2"]])
def test_a_driver_that_is_killed_leaves_nothing_on_any_host(make_driver, world, tmp_path, hosts):
    driver = make_driver()
    driver.begin_fit("steps", tmp_path, hosts, 3)
    Steps(driver, tmp_path).wait(3)
    driver.process.kill()

    assert driver.process.wait() == -signal.SIGKILL
    assert wait_until_empty(world) == {}


@LONG
def test_a_driver_that_is_killed_behind_a_cut_link_leaves_nothing(make_driver, world, tmp_path):
    silence_s = 3.0
    driver = make_driver()
    failure = {"heartbeat_timeout_s": silence_s}
    driver.begin_fit("steps", tmp_path, HOSTS, 2, failure=failure)
    Steps(driver, tmp_path).wait(2)
    world.cut("h2")
    driver.process.kill()

    def orphans() -> list[str]:
        return [one for one in world.processes("h2").values() if not one.startswith("sshd")]

    assert orphans()
    wait(lambda: not orphans(), "the end of the orphans", timeout_s=2 * silence_s)


@LONG
def test_a_driver_that_is_taken_away_ends_with_a_last_checkpoint(make_driver, world, tmp_path):
    driver = make_driver()
    driver.begin_fit("steps", tmp_path, HOSTS, 2)
    steps = Steps(driver, tmp_path)
    steps.wait(2)
    driver.process.terminate()

    assert driver.process.wait(20) == PreemptionError.EXIT_STATUS, driver.said
    assert wait_until_empty(world) == {}
    assert 'told of {"driver": [0, 1]}' in driver.said
    assert "Traceback" not in driver.said
    assert run_record(tmp_path)["status"] == "preempted"
    assert reported(tmp_path)[-1]["checkpoint_dir_name"] == run_record(tmp_path)["checkpoints"][-1]


@LONG
def test_ctrl_c_ends_workers_everywhere_and_keeps_the_agents(make_driver, world, tmp_path):
    driver = make_driver()
    driver.begin_fit("steps", tmp_path, HOSTS, 2)
    before = Steps(driver, tmp_path).wait(2)
    driver.process.send_signal(signal.SIGINT)

    assert driver.answer() == {"error": "KeyboardInterrupt"}
    assert driver.wait_until_idle(3.0) == {}
    assert run_record(tmp_path)["status"] == "interrupted"
    again = driver.fit("three", tmp_path, ["h1"], 1, run={"name": "again"})
    assert again["value"] == before[0]["agent"]
    assert driver.end() == 0
    assert wait_until_empty(world) == {}
