"""Starting a program on a host, and every way in which that fails."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import subprocess
import sys
import time

import pytest

from minitrain._hosts.facts import own_versions
from minitrain._hosts.transport import Transport, transport_of
from minitrain._wire.channel import Channel
from minitrain._wire.messages import AgentReady, Exit
from minitrain.exceptions import HostError
from tests.hosts.contacts import HERE, advance, contact, fake_python, into

OWN = own_versions()
UNTIL_ENDED = "cat >/dev/null"


@pytest.fixture
def contacts():
    """Return a function that starts a contact, which the test need not close."""
    made = []

    def start(*args, **settings):
        made.append(contact(*args, **settings))
        return made[-1]

    yield start
    for one in made:
        one.close()


def failure(one) -> HostError:
    with pytest.raises(HostError) as caught:
        advance(one)
    return caught.value


def test_a_host_says_what_it_is(world, contacts):
    facts = advance(contacts("h1", into(world), probe={})).facts

    assert facts.hostname == "h1"
    assert facts.address == world.addresses["h1"]
    assert facts.executable == sys.executable
    assert facts.versions == OWN
    assert facts.num_cpus == len(os.sched_getaffinity(0))
    assert 0 < facts.free_bytes < facts.total_bytes
    assert abs(facts.time_offset_s) < 60


def test_this_machine_needs_no_transport(contacts):
    nowhere = Transport(("/no/such/program", "{host}"))
    assert advance(contacts("localhost", nowhere, probe={})).facts.versions == OWN


@pytest.mark.campaign
def test_an_agent_starts_in_the_environment_it_is_sent(world, contacts, tmp_path):
    environ = {"MINITRAIN_AGENT": "/mark", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    one = contacts("h2", into(world), arguments=["--name", "a"], environ=environ)
    advance(one)
    assert "mark" not in " ".join(world.processes("h2").values())  # on no command line
    channel = Channel(*one.hand_over())
    ready, _, _ = select.select([channel.read_fd], [], [], 20)
    assert ready, one.words()
    (message,) = channel.receive()
    assert isinstance(message, AgentReady)
    assert message.hostname == "h2"
    channel.send(Exit())
    assert one.process.wait(20) == 0
    channel.close()


def test_an_order_of_a_megabyte_arrives_whole_and_nothing_of_what_follows_is_lost(
    contacts, tmp_path
):
    received = tmp_path / "received"
    python = fake_python(tmp_path, after=f"exec cat >{received}")
    environ = {f"NAME_{number}": "x" * 1000 for number in range(1000)}
    one = contacts("far", python=python, environ=environ)
    advance(one)
    read_fd, write_fd = one.hand_over()
    os.set_blocking(write_fd, True)
    os.write(write_fd, b"first frame")
    os.close(write_fd)
    assert one.process.wait(20) == 0
    os.close(read_fd)
    length, _, rest = received.read_bytes().partition(b" ")
    assert len(rest) == int(length) + len(b"first frame")
    assert rest.endswith(b"}first frame")
    assert int(length) > 1_000_000


def test_a_contact_never_waits(contacts, tmp_path):
    python = fake_python(tmp_path, before=UNTIL_ENDED)  # it reads, and says nothing
    one = contacts("far", python=python, environ={"X": "x" * 1_000_000})
    began_s = time.monotonic()
    for _ in range(100):
        assert one.advance() is False
    assert time.monotonic() - began_s < 5  # it would be for ever
    assert str(one.error(waited_s=3)).startswith("far did not answer within 3 s. Does ")


@pytest.mark.parametrize(
    "noise",
    [
        "echo Welcome to the cluster",
        "printf 'no newline'",
        "head -c 300000 /dev/zero",
        "printf '<minitrain>'",
        "echo '<minitrain>{}'",
        "printf '\\377\\376<mini'",
    ],
)
def test_what_a_login_shell_prints_is_passed_over(noise, contacts, tmp_path):
    python = fake_python(tmp_path, before=noise, after=f"printf more; {UNTIL_ENDED}")
    assert advance(contacts("far", python=python)).facts.hostname == "fake"


def test_what_follows_the_greeting_is_kept(contacts, tmp_path):
    python = fake_python(tmp_path, after=UNTIL_ENDED)
    python.write_text(python.read_text().replace("echo '<", r"printf '%s\nframes' '<"))
    assert advance(contacts("far", python=python)).leftover == b"frames"


def test_modules_are_found_where_the_drivers_are(contacts, tmp_path):
    (tmp_path / "torch-9.dist-info").mkdir()
    (tmp_path / "torch-9.dist-info" / "METADATA").write_text("Name: torch\nVersion: 9.0\n")
    error = failure(contacts("far", environ={"PYTHONPATH": str(tmp_path)}))
    assert error.problem == f"has torch 9.0 in {sys.executable}, this is {OWN.torch}"


def test_a_file_of_the_users_does_not_take_a_modules_place(contacts, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    advance(contacts("far", probe={}))


# ------------------------------------------------------------------ the order
def test_the_agent_runs_in_the_drivers_folder_where_that_exists(contacts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = advance(contacts("far", arguments=["--help"]))
    assert one.process.wait(20) == 0
    assert b"--name" in os.read(one.read_fd, 10_000)


def test_a_folder_that_was_asked_for_must_exist(contacts):
    one = advance(contacts("far", working_dir="/no/folder"))
    assert one.process.wait(20) == 1
    assert str(one.error()) == (
        "far cannot start: working directory: [Errno 2] No such file or directory: '/no/folder'. "
        "Name one that exists there with --workdir (LaunchConfig(working_dir=...))."
    )


def test_an_agent_that_does_not_start_is_told_in_its_words(contacts):
    one = advance(contacts("far", arguments=["--nonsense"]))
    assert one.process.wait(20) == 2
    error = one.error()
    assert error.problem == "could not start the agent"
    assert "the following arguments are required: --name" in error.words


def test_the_program_there_ends_with_the_contact(world, contacts, tmp_path):
    python = fake_python(tmp_path, after=UNTIL_ENDED)
    advance(contacts("h3", into(world), python=python)).close()  # the world is empty then


def test_closing_twice_is_closing_once(contacts):
    contacts("far").close()


def test_a_contact_that_is_closed_can_still_say_why(contacts):
    one = contacts("far", python="/no/python")
    error = failure(one)
    one.close()
    assert str(one.error()) == str(error)


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"python": "3.6.15"}, "has too old a Python: 3.6.15 (/fake/python). minitrain needs"),
        ({"python": "3.99.1"}, f"has Python 3.99.1 (/fake/python), this is {OWN.python}. Func"),
        ({"minitrain": None}, "has no minitrain in /fake/python. Try there: /fake/python -m pip"),
        (
            {"minitrain": "99.1"},
            f"has minitrain 99.1 in /fake/python, this is {OWN.minitrain}. Make them equal.",
        ),
        ({"torch": None}, "has no torch in /fake/python. Try there: /fake/python -m pip install"),
        ({"torch": "1.0+cu99"}, f"has torch 1.0+cu99 in /fake/python, this is {OWN.torch}."),
    ],
)
def test_a_host_that_is_not_fit_is_refused_with_both_versions(facts, words, contacts, tmp_path):
    sent = tmp_path / "sent"
    python = fake_python(tmp_path, after=f"cat >{sent}", **facts)
    one = contacts("far", python=python)
    error = failure(one)
    assert str(error).startswith(f"far {words}")
    assert one.facts is not None  # for a table
    assert one.error() is error
    one.close()
    assert not sent.exists() or sent.read_bytes() == b""  # it was told nothing


def test_another_build_of_the_same_torch_is_fine(contacts, tmp_path):
    release = OWN.torch.partition("+")[0]
    python = fake_python(tmp_path, torch=f"{release}+cu999", after=UNTIL_ENDED)
    advance(contacts("far", python=python))


# ------------------------------------------------------------------ ssh's own words
@pytest.mark.campaign
@pytest.mark.parametrize(
    ("options", "problem", "words"),
    [
        (["-p", "9"], "cannot be reached", r"port 9: Connection refused"),
        (["-o", "HostName=nowhere"], "cannot be reached", r"Could not resolve hostname nowhere"),
        (["-o", "HostName=203.0.113.1"], "cannot be reached", r"Network is unreachable"),
        (
            ["-o", "HostName=10.77.0.99", "-o", "ConnectTimeout=1"],
            "cannot be reached",
            r"10.77.0.99 port 22: (Connection timed out|No route to host)",
        ),
        (
            ["-o", "PubkeyAuthentication=no"],
            "does not let you in",
            r"Permission denied \(publickey",
        ),
        (
            ["-o", "UserKnownHostsFile=/dev/null"],
            "is not a host that ssh knows",
            r"^Host key verification failed\.$",
        ),
        (["-o", "Nonsense=1"], "cannot be reached", r"[Bb]ad configuration option"),
        (["-o", "ProxyCommand=false"], "was lost", r"closed by|reset by"),
    ],
)
def test_ssh_is_quoted_and_there_is_something_to_try(world, contacts, options, problem, words):
    error = failure(contacts("h1", into(world, *options)))
    assert error.host == "h1"
    assert error.problem == problem
    assert re.search(words, error.words), error.words
    assert f"Try: ssh {options[0]}" in error.advice


def test_a_host_that_has_another_key_now_is_not_known(world, contacts):
    key = world.outside("/run/world/key.h2.pub").read_text()
    known = world.outside("/run/world/forged")
    known.write_text(f"{world.addresses['h1']} {key}")
    options = ["-o", "UserKnownHostsFile=/run/world/forged"]
    error = failure(contacts("h1", into(world, *options)))
    assert error.problem == "is not a host that ssh knows"


@pytest.fixture
def network():
    """The name of a namespace for `ip netns`."""
    subprocess.run(["ip", "netns", "add", "minitrain-test"], check=True)
    yield "minitrain-test"
    subprocess.run(["ip", "netns", "del", "minitrain-test"], check=True)


def test_a_python_that_is_not_there_is_named(world, contacts, network):
    nsenter = transport_of("nsenter --uts=/proc/self/ns/uts env HOST={host}")
    ways = [
        ("h1", into(world)),
        ("far", HERE),
        ("far", nsenter),
        (network, transport_of("ip netns exec {host}")),
    ]
    for host, transport in ways:
        error = failure(contacts(host, transport, python="/no/python"))
        assert error.problem == "has no Python at /no/python"
        assert "/no/python" in error.words
        assert "--python" in error.advice


def test_python_2_is_too_old(contacts, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho \"AttributeError: 'file' object has no attribute 'buffer'\" >&2; exit 1\n"
    )
    python.chmod(0o755)
    assert failure(contacts("far", python=python)).problem == "has too old a Python"


def test_a_transport_that_is_not_here_is_named():
    with pytest.raises(HostError) as caught:
        contact("far", transport_of("/no/such/program {host}"))
    assert str(caught.value) == (
        "far cannot be reached: /no/such/program cannot be started here: No such file or "
        "directory. Install /no/such/program, or name another way with --transport."
    )


def test_a_transport_that_was_killed_says_so(contacts, tmp_path):
    one = contacts("far", python=fake_python(tmp_path, before=UNTIL_ENDED))
    one.process.send_signal(signal.SIGKILL)
    assert "was lost: the command that led there was killed by SIGKILL" in str(failure(one))


def test_a_program_that_closes_its_output_and_runs_on_is_told(contacts, tmp_path, monkeypatch):
    monkeypatch.setattr("minitrain._hosts.contact._END_S", 0.1)
    python = fake_python(tmp_path, before=f"exec >&-; {UNTIL_ENDED}")
    assert failure(contacts("far", python=python)).problem == "closed its output, but has not ended"


def test_a_transport_that_keeps_the_input_to_itself_is_suspected(contacts):
    error = failure(contacts("far", transport_of("true {host}")))
    assert error.problem == "ended without a word (exited with code 0)"
    assert "exec -i" in error.advice


@pytest.mark.campaign
def test_a_connection_that_breaks_is_told_in_sshs_words(world, contacts, tmp_path):
    options = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"]
    python = fake_python(tmp_path, after=UNTIL_ENDED)
    one = advance(contacts("h4", into(world, *options), python=python))
    world.cut("h4")
    assert one.process.wait(20) == 255
    error = one.error()
    assert error.problem == "was lost"
    assert "not responding" in error.words
    # Over there it runs on: nobody has told it. The agent has a deadline of its own for that.
    world.on("h4").signal_all(signal.SIGKILL)
    world.power_off("h4")


@pytest.mark.parametrize("room", range(1, 7))
def test_too_many_open_files_are_named_and_none_is_left(room):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    filling = []
    try:
        while True:
            try:
                filling.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for _ in range(room):
            os.close(filling.pop())
        with pytest.raises(HostError) as caught:
            contact("far")
        filling += [os.open(os.devnull, os.O_RDONLY) for _ in range(room)]  # as many as before
    finally:
        for descriptor in filling:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in str(caught.value)
    assert "ulimit -Hn" in caught.value.advice
