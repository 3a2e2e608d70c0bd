"""``python -m minitrain.launch``: its options, its reports, and the script it becomes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import pytest

from minitrain import _env
from minitrain.launch.__main__ import _parser, variables
from tests.hosts.contacts import fake_python, into
from tests.hosts.test_spec import scontrol

SCRIPT = """
import os, sys
print(os.getpid(), sys.argv[1:])
print({name: os.environ[name] for name in sorted(os.environ) if name.startswith("MINITRAIN_")})
sys.exit(int(os.environ.get("CODE", "0")))
"""


def clean(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _env.VARIABLES} | more


def launch(*arguments: str, environ=(), **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "minitrain.launch", *arguments]
    return subprocess.run(
        command,
        env=clean(**dict(environ)),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        **settings,
    )


def chosen(*arguments: str, **environ: str) -> dict[str, str]:
    found = variables(_parser().parse_args([*arguments, "train.py"]), environ)
    return {name.removeprefix("MINITRAIN_"): value for name, value in found.items()}


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


# ------------------------------------------------------------------ options
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], {}),
        (["--hosts", "a, b:2"], {"HOSTS": "a,b:2"}),
        (["--hosts", "[fe80::7]:2"], {"HOSTS": "[fe80::7]:2"}),
        (["--workers-per-host", "4"], {"HOSTS": "localhost", "WORKERS_PER_HOST": "4"}),
        (["--transport", "x {host}"], {"TRANSPORT": "x {host}"}),
        (["--python", "/py"], {"REMOTE_PYTHON": "/py"}),
        (["--env", "A*", "--env", "B"], {"REMOTE_ENV": "A*,B"}),
        (["--workdir", "/w"], {"REMOTE_WORKDIR": "/w"}),
        (["--ssh-options=-p 2222"], {"SSH_OPTIONS": "-p 2222"}),
        (["--ssh-options", "-p 2222"], {"SSH_OPTIONS": "-p 2222"}),
        (["--sync-code", "--collect"], {"SYNC_CODE": "1", "COLLECT": "1"}),
    ],
)
def test_options_become_variables(arguments, found):
    assert chosen(*arguments) == found


def test_every_variable_of_the_launcher_has_an_option():
    everything = chosen(
        *("--hosts", "a", "--workers-per-host", "1", "--transport", "ssh", "--python", "/p"),
        *("--env", "A", "--workdir", "/w", "--ssh-options=-4", "--sync-code", "--collect"),
    )
    names = list(_env.VARIABLES)
    launchers = names[names.index("MINITRAIN_HOSTS") :]
    assert {f"MINITRAIN_{name}" for name in everything} == set(launchers)


def test_a_hostfile_is_read(tmp_path):
    (tmp_path / "hosts").write_text("a slots=2\nb\n")
    assert chosen("--hostfile", str(tmp_path / "hosts")) == {"HOSTS": "a:2,b"}


def test_in_an_allocation_its_nodes_are_used_unless_others_are_named(tmp_path):
    slurm = scontrol(tmp_path, "printf 'n1\\nn2\\n'")
    srun = {"HOSTS": "n1,n2", "TRANSPORT": "srun"}
    assert chosen(**slurm) == srun
    assert chosen("--slurm", **slurm) == srun
    assert chosen("--transport", "ssh", **slurm) == {**srun, "TRANSPORT": "ssh"}
    assert chosen("--hosts", "a", **slurm) == {"HOSTS": "a"}
    assert chosen(MINITRAIN_HOSTS="a", **slurm) == {}


def test_the_scripts_own_options_are_the_scripts(script):
    said = launch("--hosts", "a", str(script), "--hosts", "b", "-m", "--check", "--", "x y")
    assert "['--hosts', 'b', '-m', '--check', '--', 'x y']" in said.stdout
    assert "{'MINITRAIN_HOSTS': 'a'}" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a script, or --check"),
        (["--hosts", "a,a", "x.py"], "error: hosts: 'a' is named twice"),
        (["--hosts", "", "x.py"], "hosts: '': a name is missing"),
        (["--hostfile", "/no/file", "x.py"], "hostfile /no/file cannot be read"),
        (["--slurm", "x.py"], "--slurm: this is no Slurm allocation; salloc makes one"),
        (["--workers-per-host", "many", "x.py"], "must be an integer >= 1"),
        (["--hosts", "a", "--transport", "rsh", "x.py"], "transport='rsh': must be"),
        (["--hosts", "a", "--slurm", "x.py"], "not allowed with"),
        (["--nonsense", "x.py"], "--nonsense"),
        (["x.py"], "SCRIPT: there is no file 'x.py' here"),
        (["--hosts", "a", "b", "x.py"], "are written with commas: --hosts a,b"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(arguments, words):
    said = launch(*arguments)
    assert said.returncode == 2
    assert said.stdout == ""
    assert words in said.stderr
    assert "Traceback" not in said.stderr


# ------------------------------------------------------------------ the script
def test_the_launcher_becomes_the_script(script, start_script):
    command = [sys.executable, "-m", "minitrain.launch", str(script), "a b"]
    with subprocess.Popen(command, env=clean(CODE="7"), stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout.readline() == f"{one.pid} ['a b']\n"
    assert one.returncode == 7


def test_signals_are_the_scripts(tmp_path):
    path = tmp_path / "wait.py"
    path.write_text("print('up', flush=True); import signal; signal.pause()")
    command = [sys.executable, "-m", "minitrain.launch", str(path)]
    with subprocess.Popen(command, env=clean(), stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout.readline() == "up\n"
        one.send_signal(signal.SIGTERM)
    assert one.returncode == -signal.SIGTERM


def test_a_module_is_run_as_python_does(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "train.py").write_text(SCRIPT)
    said = launch("--hosts", "a:2", "-m", "package.train", "--lr", "1", cwd=tmp_path)
    assert "['--lr', '1']" in said.stdout, said.stderr
    assert "{'MINITRAIN_HOSTS': 'a:2'}" in said.stdout


# ------------------------------------------------------------------ --dry-run
def test_a_dry_run_says_what_would_be_run_where_and_starts_nothing(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("ssh", "script.py"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tools / name).chmod(0o755)
    environ = {"PATH": f"{tools}:{os.environ['PATH']}", "MY_TOKEN": "hush", "NCCL_DEBUG": "WARN X"}
    said = launch(
        *("--hosts", "localhost,me@b:2", "--env", "MY_TOKEN", "--python", "/there/python"),
        *("--sync-code", "--dry-run", "script.py", "--lr", "1"),
        environ=environ,
        cwd=tools,
    )
    assert said.returncode == 0, said.stderr
    assert not (tmp_path / "started").exists()
    lines = said.stdout.splitlines()
    assert lines[:3] == ["here:", f"  {sys.executable} script.py --lr 1", "localhost:"]
    there = lines[lines.index("me@b, at most 2 workers:") + 1]
    ssh = shlex.split(there)
    assert ssh[0] == "ssh"
    assert ssh[-2:-1] == ["me@b"]
    assert shlex.split(ssh[-1])[:2] == ["/there/python", "-c"]
    assert "  NCCL_DEBUG='WARN X'" in lines
    assert "  MY_TOKEN=(4 characters, not shown)" in lines
    assert "hush" not in said.stdout
    assert f"  the code in {tools}: " in said.stdout
    assert "bytes, compressed" in lines[-1]


# ------------------------------------------------------------------ --check
def test_a_check_prints_a_table_and_what_is_wrong_below(world, tmp_path):
    arguments = ["--hosts", "h1,h2,nowhere", "--transport", shlex.join(into(world).template)]
    said = launch(*arguments, "--check", environ={"MINITRAIN_STORAGE": str(tmp_path)})
    lines = said.stdout.splitlines()
    assert said.returncode == 1
    head = lines[0]
    assert head.split() == [
        *("host", "reachable", "Python", "minitrain", "torch", "GPUs", "CPUs", "free", "memory"),
        *("clock", "storage"),
    ]
    for column in ("reachable", "Python", "torch", "CPUs", "clock", "storage"):
        starts = {line[head.index(column) - 1] for line in lines[1:4]}
        assert starts == {" "}, column
    assert lines[1].split()[:2] == ["h1", "yes"]
    assert lines[1].endswith("shared")
    assert lines[3].split()[:2] == ["nowhere", "no"]
    assert lines[4] == ""
    assert lines[5].startswith("nowhere cannot be reached: ssh: Could not resolve hostname nowhere")
    assert len(lines) == 6


@pytest.mark.campaign
def test_in_a_real_allocation_its_nodes_are_reached_by_srun(cluster, tmp_path):
    check = [sys.executable, "-m", "minitrain.launch", "--check", "--storage", str(tmp_path)]
    environ = {"SLURM_CONF": cluster.slurm_conf}
    said = cluster.run(["salloc", "-N3", "-Q", *check], env=environ)
    assert said.returncode == 0, said.stdout + said.stderr
    rows = [line.split() for line in said.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [[host, "yes"] for host in ("h1", "h2", "h3")]
    assert [row[-1] for row in rows] == ["shared"] * 3


def test_a_check_of_hosts_that_are_all_well_succeeds(tmp_path):
    said = launch("--check", "--storage", str(tmp_path))
    assert said.returncode == 0, said.stdout
    assert said.stdout.splitlines()[1].startswith("localhost")
    assert len(said.stdout.splitlines()) == 2


def test_a_check_shows_what_does_not_fit(tmp_path):
    python = fake_python(
        tmp_path, torch=None, gpus=["H200"] * 2, time_s=0.0, after="cat >/dev/null"
    )
    arguments = ["--hosts", "far", "--transport", "env H={host}", "--python", str(python)]
    said = launch(*arguments, "--check", "--storage", "s3://bucket/x")
    row = said.stdout.splitlines()[1]
    assert "none" in row
    assert "2 x H200" in row
    assert "1.0 of 2.0 GiB" in row
    assert said.returncode == 1


def test_storage_that_cannot_be_written_to_here_is_told(tmp_path):
    said = launch("--check", "--storage", "/proc/self/x")
    assert said.returncode == 2
    assert "storage /proc/self/x: cannot be written to here" in said.stderr
