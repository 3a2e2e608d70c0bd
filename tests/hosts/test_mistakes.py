"""What everybody gets wrong once: each time a sentence that names the host and what to do."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from minitrain import LaunchConfig, ScalingConfig
from minitrain._driver.failures import advice
from minitrain._hosts.plan import plan_of
from minitrain.exceptions import ConfigurationError
from tests.hosts.namespaces import DRIVER, wait

LAUNCH = [sys.executable, "-m", "minitrain.launch"]
WITHIN_S = 60.0

TRAIN = """
    import os

    import minitrain
    from minitrain import RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    def train(config):
        minitrain.report({"rank": minitrain.get_context().get_world_rank()})

    if __name__ == "__main__":
        gpu = "GPU" in os.environ
        DataParallelTrainer(
            train, scaling_config=ScalingConfig(num_workers=2, use_gpu=gpu)
        ).fit()
        print("trained")
"""

# sshd in the world tells bash not to read .bashrc; this is how it is elsewhere.
SHELL = """#!/bin/sh
unset SHLVL
exec bash "$@"
"""


@pytest.fixture
def home(world, tmp_path) -> Path:
    """Return the home that root has at the driver."""
    folder = tmp_path / "home"
    folder.mkdir()
    world.log_in(DRIVER, folder)
    return folder


@pytest.fixture
def launch(world, home, tmp_path):
    """Return a function that launches with some options and returns what was said."""
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAIN))

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
        command = [*LAUNCH, *arguments]
        return world.run(command, cwd=tmp_path, env=env, timeout_s=WITHIN_S)

    return run


def check(launch, *arguments: str, **env: str) -> list[str]:
    """Return the sentences below the table of ``--check``."""
    said = launch(*arguments, "--check", **env)
    assert said.stderr == ""
    table, _, sentences = said.stdout.partition("\n\n")
    assert table.startswith("host ")
    assert said.returncode == (1 if sentences else 0)
    return sentences.splitlines()


# ------------------------------------------------------------------ the way there
def test_a_name_that_nobody_knows(launch):
    (sentence,) = check(launch, "--hosts", "node1,nodeX")
    assert sentence.startswith("nodeX cannot be reached: ssh: Could not resolve hostname nodex")
    assert "Is the name spelled right?" in sentence
    assert sentence.endswith("Try: ssh nodeX true")


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("setting", "value", "problem", "advice"),
    [
        ("UserKnownHostsFile", "/dev/null", "is not a host that ssh knows", "Connect once by hand"),
        ("IdentityFile", "/no/key", "does not let you in", "~/.ssh/authorized_keys"),
        ("Port", "2222", "cannot be reached", "is its ssh server running?"),
    ],
)
def test_a_host_that_ssh_is_not_set_up_for(launch, home, setting, value, problem, advice):
    config = home / ".ssh/config"
    text = config.read_text()
    text, _, second = text.partition("Host node2\n")  # ssh takes the first word on a thing
    config.write_text(f"{text}Host node2\n  {setting} {value}\n{_without(setting, second)}")
    (sentence,) = check(launch, "--hosts", "node1,node2")
    assert sentence.startswith(f"node2 {problem}: ")
    assert advice in sentence
    assert sentence.endswith("Try: ssh node2 true")


def _without(setting: str, config: str) -> str:
    return re.sub(rf"^ *{setting} .*\n", "", config, flags=re.MULTILINE)


@pytest.mark.campaign
def test_a_key_with_a_passphrase_and_no_agent(launch, home, world):
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(home / "key")]
    world.run([*make], check=True)
    config = home / ".ssh/config"
    config.write_text(re.sub("IdentityFile .*", f"IdentityFile {home}/key", config.read_text()))
    (sentence,) = check(launch, "--hosts", "node1", SSH_AUTH_SOCK="")
    assert "does not let you in" in sentence
    assert "the private one in your agent?" in sentence


@pytest.mark.campaign
def test_a_firewall_that_answers(launch, world):
    route = ["unreachable", world.addresses["h2"]]
    world.run(["ip", "route", "add", *route], check=True)
    try:
        (sentence,) = check(launch, "--hosts", "node1,node2")
    finally:
        world.run(["ip", "route", "del", *route], check=True)
    assert sentence.startswith("node2 cannot be reached: ssh: connect to host")
    assert "does a firewall let you through?" in sentence


@pytest.mark.campaign
def test_a_firewall_between_the_hosts(launch, world):
    route = ["blackhole", world.addresses["h1"]]
    world.on("h2").run(["ip", "route", "add", *route], check=True)
    try:
        said = launch("--hosts", "node1,node2", "train.py")
    finally:
        world.on("h2").run(["ip", "route", "del", *route], check=True)
    assert said.returncode == 1
    assert "node2 cannot reach node1, where rank 0 is, at any of its addresses: " in said.stderr
    assert "Does a firewall between them" in said.stderr.splitlines()[-1]


@pytest.mark.campaign
@pytest.mark.parametrize(
    "settings",
    [
        "ControlMaster auto\n  ControlPath /run/%C\n  ControlPersist 5",
        "RequestTTY force\n  RemoteCommand tmux",
        "LogLevel VERBOSE\n  ForwardX11 yes\n  ForwardAgent yes",
    ],
    ids=["shared", "tmux", "chatty"],
)
def test_what_people_have_in_their_configuration_does_no_harm(launch, home, world, settings):
    with (home / ".ssh/config").open("a") as config:
        config.write(f"Host *\n  {settings.format(home=home)}\n")
    for _ in range(2):
        assert check(launch, "--hosts", "node1,node2") == []
    if "ControlMaster" in settings:
        for name in ("node1", "node2"):
            world.run(["ssh", "-O", "exit", name], check=True)


# ------------------------------------------------------------------ what greets one there
@pytest.mark.campaign
@pytest.mark.parametrize(
    ("bashrc", "words"),
    [
        ("echo welcome; echo to you >&2; printf 'no newline'", None),
        ("exit 3", "ended without a word (exited with code 3). "),
        ("exec sh", "did not start Python: sh: 1: Syntax error"),
        ("exec no-such-shell", "cannot be reached: {home}/.bashrc: line 1: exec: no-such-shell: "),
        pytest.param(
            "read answer",
            "did not answer within 4 s. Does its login shell (~/.bashrc) wait ",
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_a_login_shell_with_ideas_of_its_own(launch, home, world, bashrc, words):
    (home / ".bashrc").write_text(bashrc)
    shell = home / "shell"
    shell.write_text(SHELL)
    shell.chmod(0o755)
    world.log_in("h2", home, shell)
    found = check(launch, "--hosts", "node1,node2", MINITRAIN_START_TIMEOUT_S="4")
    if words is None:
        assert found == []
        return
    (sentence,) = found
    assert sentence.startswith(f"node2 {words.format(home=home)}")
    assert sentence.endswith("Try: ssh node2 true")


def test_an_account_that_nobody_may_use(launch):
    (sentence,) = check(launch, "--hosts", "nobody@node1,node2")
    assert sentence.startswith("nobody@node1 cannot be reached: This account is currently not ")


# ------------------------------------------------------------------ what fit() says
def test_a_run_on_a_wrong_host_ends_with_the_sentence_and_none_of_our_frames_before(launch):
    said = launch("--hosts", "nodeY,nodeX", "train.py")
    assert said.returncode == 1
    *before, first, second = said.stderr.splitlines()
    assert before[-1].endswith("the workers could not be started: 2 hosts cannot be used:")
    assert first.startswith("  nodeY cannot be reached: ssh: Could not resolve hostname nodey")
    assert second.startswith("  nodeX cannot be reached: ssh: Could not resolve hostname nodex")
    assert said.stderr.count("Traceback") == 1
    assert said.stderr.count("nodeX cannot be reached") == 2  # once as the cause of the other


@pytest.mark.campaign
def test_gpus_that_no_host_has(launch):
    said = launch("--hosts", "node1,node2", "train.py", GPU="1")
    assert said.returncode == 1
    assert (
        "asks for 2 GPUs (2 workers with 1 each), but node1, node2 together have 0" in said.stderr
    )
    assert said.stderr.count("Traceback") == 1


@pytest.mark.campaign
@pytest.mark.parametrize("read_only", [False, True])
def test_storage_that_one_host_does_not_have(launch, world, tmp_path, storage, read_only):
    storage.mkdir()
    if read_only:
        world.on("h2").run(["mount", "--bind", str(storage), str(storage)], check=True)
        world.on("h2").run(["mount", "-o", "remount,ro,bind", str(storage)], check=True)
    else:
        world.hide("h2", storage)
    try:
        (sentence,) = check(launch, "--hosts", "node1,node2", "--storage", str(storage))
        said = launch("--hosts", "node1,node2", "train.py")
    finally:
        if read_only:
            world.on("h2").run(["umount", str(storage)], check=True)
    why = "it cannot be written to: Read-only" if read_only else "there is no such directory"
    assert sentence.startswith(f"node2 does not share {storage}")
    assert "--collect" in sentence
    assert said.returncode == 1
    assert f"is not one directory for all hosts: node2 ({why}" in said.stderr
    assert "--collect" in said.stderr.splitlines()[-1]


@pytest.mark.campaign
def test_a_module_that_is_only_here(launch, world, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "helper.py").write_text("VALUE = 1\n")
    script = textwrap.dedent(TRAIN).replace("import minitrain\n", "import helper, minitrain\n", 1)
    (folder / "train.py").write_text(script.replace('"rank":', '"value": helper.VALUE, "rank":'))
    for host in ("h1", "h2"):
        world.hide(host, folder)
    said = launch("--hosts", "node1,node2", str(folder / "train.py"))
    assert said.returncode == 1
    assert "ModuleNotFoundError: No module named 'helper'" in said.stderr
    assert f"It is here: {folder}/helper.py. " in said.stderr
    assert "--sync-code" in said.stderr


def test_advice_about_a_module_is_given_only_if_it_is_here():
    said = advice(ModuleNotFoundError(name="textwrap"), attempt=0, limit=0)
    assert said.startswith(f"It is here: {textwrap.__file__}. ")
    assert "--sync-code (LaunchConfig(sync_code=True))" in said
    for name in (None, "no_such_module", "textwrap.part"):
        assert "It is here" not in advice(ModuleNotFoundError(name=name), attempt=0, limit=0)


@pytest.mark.campaign
def test_a_check_asks_for_no_shared_storage_where_files_are_collected(launch, world, storage):
    storage.mkdir()
    world.hide("h2", storage)
    (sentence,) = check(launch, "--hosts", "node1,node2", "--storage", str(storage))
    assert sentence.startswith(f"node2 does not share {storage}")
    assert check(launch, "--hosts", "node1,node2", "--collect", "--storage", str(storage)) == []


# ------------------------------------------------------------------ before anything is tried
@pytest.mark.parametrize("value", ["no de", "a;b", "a,,b", "a:0", "a,a"])
def test_hosts_from_the_environment_that_are_none_are_named_with_the_variable(monkeypatch, value):
    monkeypatch.setenv("MINITRAIN_HOSTS", value)
    with pytest.raises(ConfigurationError, match=r"^MINITRAIN_HOSTS="):
        plan_of(ScalingConfig(), LaunchConfig())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_such_script.py"], "there is no file 'no_such_script.py' here"),
        (["-m", "no_such_module"], "No module named no_such_module"),
    ],
)
def test_a_script_that_is_not_there(arguments, words, tmp_path):
    command = [*LAUNCH, "--hosts", "node1,node2", *arguments]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode != 0
    assert words in said.stderr
    assert "Traceback" not in said.stderr


def test_ctrl_c_while_hosts_are_looked_at(tmp_path):
    way = f"sh -c 'touch {tmp_path}/started; exec sleep 1000' {{host}}"
    command = [*LAUNCH, "--hosts", "a", "--transport", way, "--check"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait((tmp_path / "started").exists, "the transport")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 128 + signal.SIGINT
