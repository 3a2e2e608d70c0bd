"""What every transport must do, shown on each; a new one is one more entry in ``TRANSPORTS``."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from minitrain._hosts.check import check_hosts
from minitrain._hosts.facts import own_versions
from minitrain._hosts.plan import Plan
from minitrain._hosts.spec import parse_hosts
from minitrain._hosts.transport import Transport, srun, ssh, transport_of
from minitrain.exceptions import ConfigurationError
from tests.hosts import slurm
from tests.hosts.contacts import advance, contact, fake_python, from_outside
from tests.hosts.world import World, why_not

PYTHON = sys.executable
EVERY_BYTE = bytes(range(256))
MANY_BYTES = os.urandom(1 << 20)

# Raw is what the greeting makes a terminal that a transport may put in the way.
ECHO = """
import os, tty
if os.isatty(1):
    tty.setraw(1)
os.write(1, b"ready")
while data := os.read(0, 65536):
    while data:
        data = data[os.write(1, data):]
"""
ARGUMENTS = ["", "two words", "it's", 'a "b"', "$HOME", "*", "a\\b", "`id`", "; exit 3", "é", "!x"]


@dataclass
class Way:
    """A transport and hosts it reaches, in a world."""

    world: World
    transport: Transport
    hosts: list[str]
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def from_outside(self) -> Transport:
        """The same for a test that needs it in its own process."""
        return from_outside(self.world, self.transport, self.environ)

    def start(self, program: list[str], host: int = 0) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = self.transport.command(self.hosts[host], program)
        return self.world.popen(command, env=self.environ, bufsize=0, **pipes)

    def run(self, program: list[str], stdin: bytes = b"", host: int = 0):
        with self.start(program, host) as process:
            output, errors = process.communicate(stdin, timeout=30)
        return process.returncode, output, errors


def by_ssh(world: World) -> Way:
    return Way(world, ssh(["-F", world.ssh_config]), world.hosts)


def by_jump(world: World) -> Way:
    return Way(world, ssh(["-F", world.ssh_config, "-J", world.hosts[0]]), world.hosts[1:])


def by_shared_connection(world: World) -> Way:
    """As many have it in their config: the first ssh stays, and the others go through it."""
    sharing = ["-o", "ControlMaster=auto", "-o", "ControlPath=/run/%C", "-o", "ControlPersist=60"]
    return Way(world, ssh(["-F", world.ssh_config, *sharing]), world.hosts)


def by_ssh_template(world: World) -> Way:
    return Way(world, transport_of(f"ssh -F {world.ssh_config} -T {{host}}"), world.hosts)


def by_namespace(world: World) -> Way:
    for name in ("c1", "c2"):
        world.run(["ip", "netns", "add", name], check=True)
    return Way(world, transport_of("ip netns exec {host}"), ["c1", "c2"])


def by_nsenter(world: World) -> Way:
    pids = [find_sshd(world, name) for name in world.hosts]
    return Way(world, transport_of("nsenter --net --uts --mount --target {host}"), pids)


def by_env(world: World) -> Way:
    return Way(world, transport_of("env HOST={host}"), ["a", "b"])


def by_srun(world: World) -> Way:
    world.slurm()
    environ = {"SLURM_CONF": world.slurm_conf}
    nodes = f"--nodes={len(world.hosts)}"
    said = world.run(["salloc", "--no-shell", nodes], env=environ, check=True).stderr
    job = said.rpartition("job allocation ")[2].split()[0]
    return Way(world, srun(), world.hosts, {**environ, "SLURM_JOB_ID": job})


TRANSPORTS: dict[str, Callable[[World], Way]] = {
    "ssh": by_ssh,
    "ssh-jump": by_jump,
    "ssh-shared": by_shared_connection,
    "ssh-template": by_ssh_template,
    "srun": by_srun,
    "ip-netns": by_namespace,
    "nsenter": by_nsenter,
    "env": by_env,
}


def find_sshd(world: World, host: str) -> str:
    return world.outside(f"/run/world/sshd.{host}.pid").read_text().strip()


@pytest.fixture(scope="module")
def _world_of_module(hosts_can_be) -> Iterator[World]:
    with World(2) as world:
        yield world


FIRST = {"ssh", "srun", "env"}
"""The others are tried in the campaign."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.campaign] * (name not in FIRST))
        for name in TRANSPORTS
    ],
)
def way(request, _world_of_module) -> Way:
    if request.param == "srun" and (reason := why_not(*slurm.PROGRAMS)):
        pytest.skip(reason)
    return TRANSPORTS[request.param](_world_of_module)


def read(process: subprocess.Popen, size: int, timeout_s: float = 20) -> bytes:
    """Read exactly so much, as it comes: nothing may wait for a newline or for the end."""
    data, deadline_s = b"", time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(data) < size:
            assert selector.select(deadline_s - time.monotonic()), f"only {len(data)} bytes came"
            part = os.read(process.stdout.fileno(), size - len(data))
            assert part, f"it ended after {len(data)} bytes: {process.stderr.read()}"
            data += part
    return data


def test_every_byte_arrives_at_once_and_unchanged_both_ways(way):
    with way.start([PYTHON, "-c", ECHO]) as process:
        assert read(process, 5) == b"ready"
        for message in (EVERY_BYTE, b"no newline", b"\x04", b"\n"):
            os.write(process.stdin.fileno(), message)
            assert read(process, len(message)) == message
        output, _ = process.communicate(MANY_BYTES, timeout=30)
        assert output == MANY_BYTES
    assert process.returncode == 0


def test_the_end_of_the_input_ends_the_program(way):
    assert way.run(["cat"])[:2] == (0, b"")


def test_the_arguments_arrive_as_they_are(way):
    code, output, _ = way.run([PYTHON, "-c", "import sys; print(ascii(sys.argv[1:]))", *ARGUMENTS])
    assert (code, output.split(b"\r")[0].strip()) == (0, ascii(ARGUMENTS).encode())


def test_the_exit_code_is_the_programs(way):
    assert way.run(["sh", "-c", "exit 7"])[0] == 7


def test_errors_come_apart_from_output(way):
    _, output, errors = way.run(["sh", "-c", "echo out; echo err >&2"])
    assert output.strip() == b"out"
    assert b"err\n" in errors  # srun may have something to say, too


@pytest.mark.campaign
def test_many_programs_run_at_once(way):
    number = 6
    processes = [
        way.start([PYTHON, "-c", ECHO], host=index % len(way.hosts)) for index in range(number)
    ]
    for process in processes:  # none is waited for before all are there
        assert read(process, 5) == b"ready"
    for index, process in enumerate(processes):
        os.write(process.stdin.fileno(), b"%d" % index)
    assert [read(process, 1) for process in processes] == [b"%d" % i for i in range(number)]
    for process in processes:
        with process:
            process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_host_is_greeted_and_takes_an_order_of_a_megabyte(way, tmp_path, monkeypatch):
    for number in range(10):
        monkeypatch.setenv(f"OMP_{number}", "x" * 100_000)
    hosts = parse_hosts(way.hosts)
    for one in check_hosts(Plan(hosts=hosts, transport=way.from_outside), 30, tmp_path):
        assert one.error is None
        assert one.shares_storage
        assert one.facts.versions == own_versions()


def test_nothing_is_left_of_a_program_whose_contact_is_closed(way, tmp_path, all_gone):
    python = fake_python(tmp_path, after="cat >/dev/null")
    contacts = [contact(host, way.from_outside, python=python) for host in way.hosts]
    for one in contacts:
        advance(one)
    left = [process.pid for process in psutil.process_iter() if runs(process, str(python))]
    assert len(left) >= len(way.hosts)
    for one in contacts:
        one.close()
    all_gone(left)


def runs(process: psutil.Process, program: str) -> bool:
    try:
        return any(program in word for word in process.cmdline())
    except psutil.Error:
        return False


# ------------------------------------------------------------------ commands
def test_a_shell_at_the_far_end_gets_one_quoted_string():
    there = ssh().command("node2", ["/my python", "-c", "a 'b'"])
    assert there[-3:] == ["--", "node2", "'/my python' -c 'a '\"'\"'b'\"'\"''"]
    assert transport_of("docker exec -i {host}").command("c", ["a b", "c"]) == [
        *("docker", "exec", "-i", "c"),
        *("a b", "c"),
    ]


def test_the_users_ssh_options_come_first_for_ssh_takes_the_first():
    command = ssh(["-o", "ConnectTimeout=3"]).command("a", ["x"])
    timeouts = [word for word in command if word.startswith("ConnectTimeout")]
    assert timeouts == ["ConnectTimeout=3", "ConnectTimeout=10"]
    assert ssh(["-p", "2222"]).trial("a") == "ssh -p 2222 a true"


@pytest.mark.parametrize(
    ("keepalive_s", "interval"), [(20, "5"), (60, "15"), (1, "1"), (0.1, "1"), (7, "2")]
)
def test_ssh_ends_when_nothing_is_heard_for_so_long(keepalive_s, interval):
    assert f"ServerAliveInterval={interval}" in ssh(keepalive_s=keepalive_s).template


@pytest.mark.parametrize(
    ("text", "quotes"),
    [
        ("ssh", True),
        ("srun", False),
        ("/usr/bin/ssh -p 3 {host}", True),
        ("sshpass -e ssh {host}", True),
        ("plink {host}", True),
        ("kubectl exec -i {host} --", False),
        ("sudo ip netns exec {host}", False),
        ("docker exec -i 'my {host}'", False),
    ],
)
def test_which_transports_quote(text, quotes):
    assert transport_of(text).quotes is quotes


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("rsh", (), "transport='rsh': must be 'ssh', 'srun' or a command with {host}"),
        ("", (), "must be 'ssh'"),
        ("ssh '{host}", (), "No closing quotation"),
        ("srun", ("-p", "3"), "ssh_options=['-p', '3']: only for transport='ssh'"),
    ],
)
def test_what_is_no_transport(text, options, words):
    with pytest.raises(ConfigurationError) as caught:
        transport_of(text, options)
    assert words in str(caught.value)
