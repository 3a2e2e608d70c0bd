"""Which hosts: lines, files, Slurm's nodes, and what the environment adds."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain import _env
from minitrain._hosts.plan import Plan, plan_of
from minitrain._hosts.spec import Host, parse_hosts, read_hostfile, slurm_hosts
from minitrain._hosts.transport import srun, ssh, transport_of
from minitrain.config import LaunchConfig, RunConfig, ScalingConfig
from minitrain.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ("a", [Host("a")]),
        ("a,b:2,c", [Host("a"), Host("b", 2), Host("c")]),
        (" a , b:2 ", [Host("a"), Host("b", 2)]),
        (["a", Host("b", 3)], [Host("a"), Host("b", 3)]),
        ("me@node1.example:4", [Host("me@node1.example", 4)]),
        ("10.0.0.7:8", [Host("10.0.0.7", 8)]),
        ("[fe80::7]:4,[::1]", [Host("fe80::7", 4), Host("::1")]),
        ("me@[fe80::7%eth0]:2", [Host("me@fe80::7%eth0", 2)]),
        ("space/pod-0", [Host("space/pod-0")]),
    ],
)
def test_hosts_are_read(given, hosts):
    assert parse_hosts(given) == tuple(hosts)
    assert parse_hosts(",".join(map(str, hosts))) == tuple(hosts)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "hosts: '': a name is missing"),
        ([], "hosts=[]: must name a host"),
        ("a,,b", "hosts: '': a name is missing; they stand with commas and no spaces"),
        ("a;b", "hosts: 'a;b': must be like 'node1'"),
        ("a,b:1,a:2", "hosts: 'a' is named twice; a:2 gives a host two workers"),
        ("a:0", "hosts: 'a:0': the number of workers must be an integer >= 1"),
        ("a:-1", "must be an integer >= 1"),
        ("a:two", "must be an integer >= 1"),
        ("a:", "must be an integer >= 1"),
        ("a:²", "must be an integer >= 1"),
        ("fe80::7", "an IPv6 address stands in brackets, as in '[fe80::7]:4'"),
        ("two words", "must be like"),
        ("-oProxyCommand=id", "must be like"),
        ("me@-oProxyCommand=id", "must be like"),
        ("a\nb", "must be like"),
        ("@a", "must be like"),
    ],
)
def test_what_is_no_host_is_refused_in_a_sentence(given, words):
    with pytest.raises(ConfigurationError) as caught:
        parse_hosts(given)
    assert words in str(caught.value)


@given(st.text(max_size=20))
def test_a_text_is_hosts_or_is_refused(text):
    try:
        hosts = parse_hosts(text)
    except ConfigurationError:
        return
    assert parse_hosts(",".join(map(str, hosts))) == hosts
    assert not any(host.name.startswith("-") or set(" \t\n,") & set(host.name) for host in hosts)


def test_which_host_is_this_machine():
    own = socket.gethostname()
    here = ["localhost", "127.0.0.1", "::1", own, own.partition(".")[0]]
    assert all(Host(name).is_here for name in here)
    assert not any(Host(name).is_here for name in ("127.0.0.2", f"me@{own}", "elsewhere"))


# ------------------------------------------------------------------ files
def test_a_hostfile_has_a_host_on_each_line(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nnode1 slots=4\n\n  node2:2  # slow\nnode3\n")
    assert read_hostfile(path) == (Host("node1", 4), Host("node2", 2), Host("node3"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node1 4\n", "line 1: 'node1 4': must be like 'node1', 'node1:4' or 'node1 slots=4'"),
        ("a\nb:2 slots=3\n", "line 2: 'b:2 slots=3': must be like"),
        ("a slots=x\n", "must be an integer >= 1"),
        ("# none\n", "names no host"),
        ("a\na\n", "named twice"),
        (b"\xff\xfe", "cannot be read"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_hostfile_is_refused(text, words, tmp_path):
    path = tmp_path / "hosts"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigurationError) as caught:
        read_hostfile(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value) or "named twice" in words or ">= 1" in words


# ------------------------------------------------------------------ Slurm
def scontrol(folder, script):
    path = folder / "scontrol"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "SLURM_JOB_NODELIST": "n[1-2]"}


def test_outside_an_allocation_there_are_no_nodes():
    assert slurm_hosts({"PATH": os.environ["PATH"]}) is None


def test_slurm_names_its_nodes(tmp_path):
    environ = scontrol(tmp_path, '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"')
    assert slurm_hosts(environ) == (Host("n1"), Host("n2"))


def test_slurms_own_words_are_told(tmp_path):
    environ = scontrol(tmp_path, "echo 'Invalid hostlist' >&2; exit 1")
    with pytest.raises(ConfigurationError, match="failed: Invalid hostlist; name the hosts with"):
        slurm_hosts(environ)


def test_an_allocation_without_slurm_is_told(tmp_path):
    environ = {"SLURM_JOB_NODELIST": "n[1-2]", "PATH": str(tmp_path)}
    with pytest.raises(ConfigurationError, match=r"SLURM_JOB_NODELIST='n\[1-2\]'.*No such file"):
        slurm_hosts(environ)


# ------------------------------------------------------------------ plans
def plan(hosts=None, environ=(), **launch) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        for name in _env.VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in dict(environ).items():
            patch.setenv(f"MINITRAIN_{name}", value)
        return plan_of(ScalingConfig(hosts=hosts), LaunchConfig(**launch))


def test_without_a_word_it_is_this_machine_only():
    assert plan() == Plan()
    assert plan().hosts == ()
    assert plan().transport == ssh()
    assert plan().python == sys.executable
    assert plan().num_workers is None


@pytest.mark.parametrize(
    ("launch", "environ", "field", "value"),
    [
        ({"transport": "srun"}, {"TRANSPORT": "ssh"}, "transport", srun()),
        ({}, {"TRANSPORT": "x {host}"}, "transport", transport_of("x {host}")),
        ({"ssh_options": ["-4"]}, {"SSH_OPTIONS": "-6"}, "transport", ssh(["-4"])),
        ({}, {"SSH_OPTIONS": "-i 'my key'"}, "transport", ssh(["-i", "my key"])),
        ({"python": "/a"}, {"REMOTE_PYTHON": "/b"}, "python", "/a"),
        ({}, {"REMOTE_PYTHON": "/b"}, "python", "/b"),
        ({"env": ["A*"]}, {"REMOTE_ENV": "B*, C"}, "env", ("A*", "B*", "C")),
        ({"working_dir": "/a"}, {"REMOTE_WORKDIR": "/b"}, "working_dir", "/a"),
        ({}, {"REMOTE_WORKDIR": "/b"}, "working_dir", "/b"),
        ({"sync_code": False}, {"SYNC_CODE": "1"}, "sync_code", False),
        ({}, {"SYNC_CODE": "1"}, "sync_code", True),
        ({"collect": True}, {"COLLECT": "0"}, "collect", True),
        ({}, {"COLLECT": "yes"}, "collect", True),
    ],
)
def test_what_is_configured_comes_before_the_environment(launch, environ, field, value):
    assert getattr(plan(environ=environ, **launch), field) == value


@pytest.mark.parametrize(
    ("hosts", "environ", "counts", "number"),
    [
        (None, {"HOSTS": "a:2,b:3"}, [2, 3], 5),
        (None, {"HOSTS": "a:2,b"}, [2, None], None),
        (None, {"HOSTS": "a:2,b", "WORKERS_PER_HOST": "4"}, [2, 4], 6),
        (["a:2", "b:2"], {}, [2, 2], None),  # the script says how many it wants
        (["c", "d:1"], {"HOSTS": "a:2", "WORKERS_PER_HOST": "3"}, [3, 1], None),
    ],
)
def test_the_number_of_workers_may_be_given_outside_the_script(hosts, environ, counts, number):
    made = plan(hosts, environ)
    assert [host.workers for host in made.hosts] == counts
    assert made.num_workers == number


def test_a_plan_says_what_to_run_here_for_a_host():
    made = plan(["localhost", "b"], transport="x {host}", python="/there/python")
    here, there = made.hosts
    assert made.command(here, ["-V"]) == [sys.executable, "-V"]
    assert made.command(there, ["-V"]) == ["x", "b", "/there/python", "-V"]
    assert (made.python_on(here), made.python_on(there)) == (sys.executable, "/there/python")


def test_ssh_waits_as_long_as_the_heartbeat_does():
    made = plan_of(ScalingConfig(), LaunchConfig(), keepalive_s=60)
    assert made.transport == ssh(keepalive_s=60)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORKERS_PER_HOST": "two"}, "MINITRAIN_WORKERS_PER_HOST='two': must be an integer >= 1"),
        ({"WORKERS_PER_HOST": "0"}, "must be an integer >= 1"),
        ({"SSH_OPTIONS": "'"}, 'MINITRAIN_SSH_OPTIONS="\'": No closing quotation'),
        ({"HOSTS": "a,a"}, "named twice"),
        ({"TRANSPORT": "rsh"}, "transport='rsh'"),
    ],
)
def test_what_the_environment_says_is_checked(environ, words):
    with pytest.raises(ConfigurationError) as caught:
        plan(environ={"HOSTS": "a", **environ})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ScalingConfig(hosts="a,b"), "ScalingConfig(hosts)='a,b': must be a list of names"),
        (lambda: ScalingConfig(hosts=[]), "must name a host; None trains on this machine"),
        (lambda: ScalingConfig(hosts=[1]), "must be a list of names"),
        (lambda: LaunchConfig(transport=""), "LaunchConfig(transport)='': must be None or"),
        (lambda: LaunchConfig(python=3), "LaunchConfig(python)=3"),
        (lambda: LaunchConfig(env="A"), "LaunchConfig(env)='A': must be a list of names"),
        (lambda: LaunchConfig(ssh_options="-p 2"), "must be a list of options of ssh"),
        (lambda: LaunchConfig(sync_code="yes"), "LaunchConfig(sync_code)='yes': must be True or"),
        (lambda: LaunchConfig(collect=1), "must be True or False"),
        (lambda: RunConfig(launch_config={}), "must be a minitrain.LaunchConfig, not dict"),
    ],
)
def test_configurations_are_checked_when_they_are_made(make, words):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert words in str(caught.value)
