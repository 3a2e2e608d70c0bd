"""A host that a run cannot have is named by fit(), in a sentence, before anything trains."""

from __future__ import annotations

import sys

import pytest

from tests.hosts.contacts import fake_python
from tests.hosts.drivers import Steps, reported, signal_inside
from tests.hosts.world import why_not

HOSTS = ["h1", "h2"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "9"], "h2 cannot be reached: ssh: connect to host 10.77.0.12 port 9: Connection"),
        (["-o", "UserKnownHostsFile=/dev/null"], "h2 is not a host that ssh knows"),
        (["-o", "PubkeyAuthentication=no"], "h2 does not let you in"),
    ],
)
def test_what_ssh_says_is_said(driver, tmp_path, options, words):
    launch = {"ssh_options": [*options, "-F", driver.world.ssh_config]}
    answer = driver.fit("three", tmp_path, ["h2"], 1, launch=launch)

    assert words in answer["text"], answer
    assert "Traceback" not in answer["text"]
    assert reported(tmp_path) == []


def test_a_host_without_that_python_is_named(driver, tmp_path):
    launch = {"python": "/no/python"}
    answer = driver.fit("three", tmp_path, ["h1"], 1, launch=launch)
    assert "h1 has no Python at /no/python" in answer["text"]
    assert "--python" in answer["text"]


def test_a_host_with_another_python_or_without_minitrain_is_named(driver, tmp_path):
    for facts, words in (
        ({"python": "3.8.1"}, "h1 has too old a Python: 3.8.1"),
        ({"minitrain": None}, "h1 has no minitrain in /fake/python"),
        ({"minitrain": "0.0.1"}, "h1 has minitrain 0.0.1 in /fake/python, this is"),
    ):
        fake = fake_python(tmp_path, after="cat >/dev/null", **facts)
        answer = driver.fit("three", tmp_path, ["h1"], 1, launch={"python": str(fake)})
        assert words in answer["text"], answer


def test_a_python_without_minitrain_is_told_from_one_with(driver, tmp_path):
    """The interpreter is real; only what it finds is not what it was promised."""
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with driver.environment(PYTHONPATH=None):
        answer = driver.fit("three", tmp_path, ["h1"], 1, launch={"python": str(bare)})

    assert "h1 has no minitrain in" in answer["text"], answer
    assert "pip install minitrain" in answer["text"]


def test_all_hosts_are_tried_at_once_and_all_bad_ones_named(driver, tmp_path):
    """Each waits for all others to be asked: one after the other would never end."""
    folder = tmp_path / "asked"
    folder.mkdir()
    everyone = " && ".join(f"[ -e {folder}/{host} ]" for host in ("h1", "h2", "h3"))
    before = f"touch {folder}/$(hostname); until {everyone}; do sleep 0.01; done"
    fake = fake_python(tmp_path, before=before, after="cat >/dev/null", torch="0.0.1")
    launch = {"python": str(fake)}
    hosts = ["h1", "h2", "nowhere", "h3"]
    answer = driver.fit("three", tmp_path, hosts, 4, launch=launch)

    assert "4 hosts cannot be used:" in answer["text"], answer
    for host in ("h1", "h2", "h3"):
        assert f"\n  {host} has torch 0.0.1 in /fake/python" in answer["text"]
    assert "\n  nowhere cannot be reached: ssh: Could not resolve" in answer["text"]


@pytest.mark.campaign
def test_a_host_without_room_for_temporary_files_is_named(driver, tmp_path):
    """The disk was not full when its agent started, or Python would have chosen another one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    driver.world.hide("h2", disk, size="64k")
    own = {"launch": {"env": ["TMPDIR"], "working_dir": "/"}}
    with driver.environment(TMPDIR=str(disk)):
        before = driver.fit("three", tmp_path, HOSTS, 2, **own)
        driver.world.on("h2").run(["sh", "-c", f"head -c 1m /dev/zero >{disk}/full"])
        after = driver.fit("three", tmp_path, HOSTS, 2, **own, run={"name": "full"})

    assert "value" in before, before
    assert "h2 could not start its workers" in after["text"], after
    assert "No space left on device" in after["text"]


# ------------------------------------------------------------------ storage
@pytest.mark.campaign
def test_a_directory_that_is_not_everyones_is_refused(driver, tmp_path):
    (tmp_path / "runs").mkdir()
    driver.world.hide("h2", tmp_path / "runs")
    answer = driver.fit("three", tmp_path, HOSTS, 2)

    assert "could not be started: RunConfig(storage_path): " in answer["text"], answer
    for words in ("h2 (there is no such directory)", "NFS", "s3://", "--collect"):
        assert words in answer["text"]
    assert "h1" not in answer["text"].replace(str(tmp_path), "")
    assert reported(tmp_path) == []


@pytest.mark.campaign
@pytest.mark.skipif(why_not("sshfs") is not None, reason="no sshfs: apt-get install sshfs fuse3")
def test_a_directory_that_is_shared_by_sshfs_is_one(driver, tmp_path):
    steps = Steps(driver, tmp_path)
    runs = tmp_path / "runs"
    runs.mkdir()
    driver.world.hide("h2", runs)
    driver.world.sshfs("h1", runs, "h2", runs)
    driver.begin_fit("steps", tmp_path, HOSTS, 2, failure={"max_failures": 1})
    before = steps.wait(2)
    signal_inside(driver.world, before[1]["pid"], "KILL")
    steps.wait(2, first=before[1]["step"])
    answer = steps.enough()

    name = answer["metrics"]["checkpoint_dir_name"]
    assert {path.name for path in (runs / "run" / name).glob("step_*")} == {"step_0", "step_1"}
