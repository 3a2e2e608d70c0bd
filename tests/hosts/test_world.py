"""The hosts that the tests run on are what they claim to be."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minitrain._os.processes import is_alive
from tests.hosts import conftest
from tests.hosts.namespaces import DRIVER, state
from tests.hosts.world import World, why_not

pytestmark = pytest.mark.campaign  # of the hosts that other tests use

ECHO = """
import socket, sys
server = socket.create_server(("", 7000))
print("ready", flush=True)
connection, _ = server.accept()
while data := connection.recv(1000):
    connection.sendall(data)
"""

# A connection that answers lines of its standard input by what came back, or by what went wrong.
CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7000), timeout=10)
for line in sys.stdin:
    try:
        connection.sendall(line.encode())
        print(connection.recv(1000).decode().strip() or "closed", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


def ssh(world: World, host: str, command: str, *options: str):
    return world.run(["ssh", "-F", world.ssh_config, *options, host, command])


def start(place, source: str, *args: str):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return place.popen([sys.executable, "-c", source, *args], text=True, **pipes)


def end(*processes) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def ask(client, line: str) -> str:
    client.stdin.write(f"{line}\n")
    client.stdin.flush()
    return client.stdout.readline().strip()


def connect(world: World, host: str):
    server = start(world.on(host), ECHO)
    assert server.stdout.readline() == "ready\n"
    client = start(world.on(DRIVER), CLIENT, world.addresses[host])
    assert ask(client, "hello") == "hello"
    return server, client


def connection_state(world: World, host: str) -> str:
    """Return the driver's end of its connection to a host: 01 is established, 08 ended there."""
    address = "".join(f"{int(part):02X}" for part in reversed(world.addresses[host].split(".")))
    table = world.run(["cat", "/proc/net/tcp"]).stdout
    return re.search(rf"{address}:{7000:04X} (..)", table)[1]


@pytest.mark.campaign
def test_each_host_is_reached_by_ssh_under_its_own_name(world):
    names = [ssh(world, host, "hostname").stdout.strip() for host in world.hosts]

    assert names == world.hosts == ["h1", "h2", "h3", "h4"]
    assert world.run(["hostname"]).stdout == "driver\n"
    assert os.uname().nodename not in {*names, "driver"}


def test_a_host_with_an_unknown_key_is_refused(world):
    answer = ssh(world, "h1", "hostname", "-o", "UserKnownHostsFile=/dev/null")

    assert answer.returncode == 255
    assert "Host key verification failed" in answer.stderr


def test_shared_memory_is_a_hosts_own_and_other_files_are_everyones(world, tmp_path):
    world.on("h1").run(["touch", "/dev/shm/mine", f"{tmp_path}/everyones"], check=True)

    for host in (DRIVER, "h2"):
        assert "mine" not in world.on(host).run(["ls", "/dev/shm"]).stdout
        assert world.on(host).run(["ls", str(tmp_path)]).stdout == "everyones\n"
    assert not Path("/dev/shm/mine").exists()


@pytest.mark.parametrize("resolvable", [False, True])
def test_a_host_resolves_its_own_name_only_if_it_should(make_world, resolvable):
    world = make_world(1, resolvable=resolvable)
    lookup = "import socket; print(socket.gethostbyname(socket.gethostname()))"

    answer = world.on("h1").run([sys.executable, "-c", lookup])

    assert (answer.stdout == "10.77.0.11\n") == resolvable
    assert ("gaierror" in answer.stderr) != resolvable


@pytest.mark.campaign
def test_a_connection_survives_a_cut_that_is_mended(world):
    server, client = connect(world, "h1")

    world.cut("h1")
    refused = ssh(world, "h1", "true", "-o", "ConnectTimeout=1")
    client.stdin.write("lost?\n")
    client.stdin.flush()
    world.mend("h1")

    assert refused.returncode == 255
    assert client.stdout.readline() == "lost?\n"
    end(client, server)


def test_nobody_is_told_when_a_host_loses_its_power(make_world):
    world = make_world(2)
    silent, client = connect(world, "h1")
    killed, informed = connect(world, "h2")

    world.power_off("h1")
    end(killed)
    assert ask(informed, "anybody?") in {"closed", "ConnectionResetError"}

    assert connection_state(world, "h1") == "01"
    assert silent.wait(10) == -signal.SIGKILL
    assert world.on("h1").processes() == {}
    end(client, informed, silent)


def test_a_host_that_gets_its_power_back_is_the_same_to_ssh(make_world):
    world = make_world(1)
    world.on("h1").run(["touch", "/dev/shm/forgotten"], check=True)
    world.power_off("h1")
    world.power_on("h1")
    world.tidy()

    assert ssh(world, "h1", "hostname; ls /dev/shm").stdout == "h1\n"
    assert conftest.wait_until_empty(world) == {}


def test_a_host_that_hangs_answers_when_it_wakes(world):
    server, client = connect(world, "h1")

    world.hang("h1")
    client.stdin.write("asleep?\n")
    client.stdin.flush()
    assert {state(pid) for pid in world.processes("h1")} == {"T"}
    world.wake("h1")

    assert client.stdout.readline() == "asleep?\n"
    end(client, server)


def test_a_folder_is_hidden_from_one_host_until_the_test_ends(world, tmp_path):
    (tmp_path / "file").touch()
    world.hide("h1", tmp_path)

    assert world.on("h1").run(["ls", str(tmp_path)]).stdout == ""
    assert world.on("h2").run(["ls", str(tmp_path)]).stdout == "file\n"
    world.tidy()
    assert world.on("h1").run(["ls", str(tmp_path)]).stdout == "file\n"


def test_a_disk_is_full_on_one_host(world, tmp_path):
    world.fill_disk("h1", tmp_path)
    write = ["tee", f"{tmp_path}/more"]

    assert "No space left" in world.on("h1").run(write, stdin="more").stderr
    assert world.on("h2").run(write, stdin="more").returncode == 0


@pytest.mark.skipif(why_not("sshfs") is not None, reason="no sshfs: apt-get install sshfs fuse3")
def test_a_folder_is_shared_by_sshfs(world, tmp_path):
    home, mounted = tmp_path / "home", tmp_path / "mounted"
    home.mkdir()
    mounted.mkdir()
    world.hide("h1", home)  # so that h1 alone has it
    world.sshfs("h1", home, "h2", mounted)

    world.on("h2").run(["sh", "-c", f"echo from h2 >{mounted}/file"], check=True)
    assert world.on("h1").run(["cat", f"{home}/file"]).stdout == "from h2\n"
    world.on("h1").run(["mv", f"{home}/file", f"{home}/renamed"], check=True)
    assert world.on("h2").run(["cat", f"{mounted}/renamed"]).stdout == "from h2\n"
    assert not any(home.iterdir())
    assert not any(mounted.iterdir())


def test_what_is_left_on_a_host_is_seen(world):
    ssh(world, "h3", "setsid sleep 1000 </dev/null >/dev/null 2>&1 &")

    left = conftest.wait_until_empty(world, within_s=0.2)
    assert [(host, *found.values()) for host, found in left.items()] == [("h3", "sleep 1000")]
    for pid in left["h3"]:
        os.kill(pid, signal.SIGKILL)


def test_signals_reach_the_program_and_its_exit_code_comes_back(world):
    trap = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print(); signal.pause()"
    process = start(world.on("h1"), trap)
    process.stdout.readline()
    process.terminate()

    assert process.wait(10) == 7
    end(process)


def test_a_program_that_takes_too_long_is_killed(world):
    with pytest.raises(subprocess.TimeoutExpired):
        world.on("h1").run(["sleep", "1000"], timeout_s=0.1)


OWNER = """
import time
from tests.hosts.namespaces import wait
from tests.hosts.world import World
world = World(2)
world.start()
world.on("h1").run(["sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 &"])
world.on("h2").popen(["sleep", "1000"]).inner_pid
def lasting():
    found = [world.on(place).processes() for place in world.hosts]
    return [pid for some in found for pid in some if some[pid].startswith(("sleep", "sshd: "))]
wait(lambda: len(lasting()) == 6, "two that sleep and an sshd on each host")
print(*world.on("driver").processes(), *lasting(), flush=True)
time.sleep(1000)
"""


def test_a_world_ends_with_the_process_that_made_it(hosts_can_be, all_gone):
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    alive = [pid for pid in pids if is_alive(pid)]
    owner.kill()
    owner.communicate()

    assert alive == pids
    assert len(pids) == 7
    all_gone(pids)


def test_a_world_that_ended_leaves_nothing(hosts_can_be):
    links = os.listdir("/sys/class/net")
    with World(1) as world:
        pids = [*world.on(DRIVER).processes(), *world.on("h1").processes()]
        assert world.outside(world.ssh_config).exists()

    assert not any(is_alive(pid) for pid in pids)
    assert os.listdir("/sys/class/net") == links
    assert not Path(world.ssh_config).exists()
