"""A world of hosts on one machine: real ssh, real links to cut, real power to switch off.

Everything lives in one ``unshare`` with its own processes, mounts, network and hostname. Each host
is a network namespace on a bridge, with a hostname, a ``/dev/shm`` and an sshd of its own; the
rest of the filesystem is everyone's, as with a shared home, until :meth:`World.hide` hides a part
of it. The driver runs in the namespaces of the world itself. When the process that made the world
ends, however that happens, the kernel ends the world with it: nothing has to be cleaned up.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.hosts import slurm
from tests.hosts.namespaces import (
    DRIVER,
    NAMESPACES,
    WITHIN_S,
    Inside,
    Place,
    state,
    wait,
    waiting_for,
)

ROOT = "/run/world"
"""The world's own files; its ``/run`` is in memory and seen only inside."""

_NEEDED = ("unshare", "nsenter", "setpriv", "ip", "ssh", "ssh-keygen", "/usr/sbin/sshd")
_PACKAGES = {
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "sshfs": "sshfs fuse3",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
}
_UNSHARE = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child"]

_INIT = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are not kept as zombies
sys.stdout.write("up")
sys.stdout.flush()
sys.stdin.read()  # ends when whoever made the world does
"""

_BUILD_WORLD = """
hostname $DRIVER
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p $ROOT /run/sshd
cd $ROOT
printf '%s\\n' "$ETC_HOSTS" >hosts
mount --bind hosts /etc/hosts
: >resolv.conf  # no server to ask: an unknown name is unknown at once
[ ! -e /etc/resolv.conf ] || mount --bind resolv.conf /etc/resolv.conf
ip link set lo up
ip link add name bridge type bridge
ip addr add $ADDRESS/24 dev bridge
ip link set bridge up
ssh-keygen -q -t ed25519 -N '' -f id
cp id.pub authorized_keys
"""

# The namespaces last as long as the process that sleeps in them. A host that gets its power back
# has the same key and the same hardware address. docker0 is what many hosts have: an interface
# with the same address on each of them, which leads nowhere.
_BUILD_HOST = """
cd $ROOT
[ -f key.$NAME ] || ssh-keygen -q -t ed25519 -N '' -C $NAME -f key.$NAME
rm -f sshd.$NAME.pid
keeper=$(unshare --net --uts --mount sh -ec '
  hostname $NAME
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  ip link set lo up
  ip link add name docker0 type bridge
  ip addr add 172.17.0.1/16 dev docker0
  ip link set docker0 up
  sleep infinity </dev/null >/dev/null 2>&1 &
  echo $!
')
ip link add name to-$NAME type veth peer name eth0 address $MAC netns $keeper
ip link set to-$NAME master bridge up
nsenter --target $keeper --net --uts --mount sh -ec '
  ip addr add $ADDRESS/24 dev eth0
  ip link set eth0 up
  exec /usr/sbin/sshd -f $ROOT/sshd.$NAME.conf -E $ROOT/sshd.$NAME.log
'
echo $keeper
"""

# SHLVL keeps bash from reading whatever ~/.bashrc this machine has.
_SSHD_CONFIG = """
Port 22
ListenAddress {address}
HostKey {root}/key.{name}
AuthorizedKeysFile {root}/authorized_keys
PidFile {root}/sshd.{name}.pid
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
SetEnv SHLVL=1
Subsystem sftp internal-sftp
"""

_SSH_CONFIG = """
Host {name}
  HostName {address}
  User root
  IdentityFile {root}/id
  IdentitiesOnly yes
  UserKnownHostsFile {root}/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  BatchMode yes
"""


@functools.cache
def why_not(*programs: str) -> str | None:
    """Say why there can be no world here, or nothing.

    Args:
        programs: What is needed besides, by name.
    """
    if os.geteuid() != 0:
        return "hosts: only root can make network namespaces"
    for program in (*_NEEDED, *programs):
        if not shutil.which(program):
            return f"hosts: no {program}: apt-get install {_PACKAGES.get(program, 'util-linux')}"
    attempt = subprocess.run(
        [*_UNSHARE, "ip", "link", "add", "name", "b", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"hosts: no namespaces: {attempt.stderr.strip()}" if attempt.returncode else None


_running: set[int] = set()


def world_pids() -> frozenset[int]:
    """Return the processes of all worlds that are now: one may outlive a test."""
    return frozenset(_running)


@contextmanager
def outliving_tests(pid: int) -> Generator[None]:
    """Count a process that is started in a world as a part of it."""
    _running.add(pid)
    try:
        yield
    finally:
        _running.discard(pid)


class World:
    """Hosts ``h1``, ``h2`` ... that only this process and what it starts in the world can reach.

    Args:
        hosts: How many.
        resolvable: Whether everyone can resolve the hosts' names. If not, a host cannot even
            resolve its own; ssh finds them by its configuration.

    Attributes:
        hosts: The names of the hosts.
        ssh_config: The path, in the world, of the configuration with which ssh finds them.
        slurm_conf: What ``SLURM_CONF`` must be in the world, once :meth:`slurm` was called.
        addresses: The address of each host and of the driver.
    """

    def __init__(self, hosts: int, *, resolvable: bool = False) -> None:
        self.hosts = [f"h{number}" for number in range(1, hosts + 1)]
        self.addresses = {DRIVER: "10.77.0.1"}
        self.addresses |= {name: f"10.77.0.{10 + int(name[1:])}" for name in self.hosts}
        self.ssh_config = f"{ROOT}/ssh_config"
        self.slurm_conf = ""
        self._resolvable = resolvable
        self._places: dict[str, Place] = {}
        self._own: dict[str, set[int]] = {}
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._init: subprocess.Popen | None = None
        self._init_pid = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        """Make the world and wait until every host answers."""
        self._init = subprocess.Popen(
            [*_UNSHARE, sys.executable, "-ISc", _INIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt from the keyboard is for the tests
        )
        _running.add(self._init.pid)
        assert self._init.stdout is not None
        if self._init.stdout.read(2) != b"up":
            raise RuntimeError("unshare failed; see its words above")
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        self._init_pid = int(children.read_text())
        self._places[DRIVER] = Place(DRIVER, self._init_pid)
        self._build()

    def end(self) -> None:
        """End the world and everything in it."""
        if self._init is not None:
            for pipe in (self._init.stdin, self._init.stdout):
                assert pipe is not None
                pipe.close()
            self._init.wait(WITHIN_S)
            _running.discard(self._init.pid)
            self._init = None

    def run(self, argv: Sequence[str], **settings) -> subprocess.CompletedProcess:
        """Run a program where the driver runs; see :meth:`Place.run`."""
        return self.on(DRIVER).run(argv, **settings)

    def popen(self, argv: Sequence[str], **settings) -> Inside:
        """Start a program where the driver runs; see :meth:`Place.popen`."""
        return self.on(DRIVER).popen(argv, **settings)

    def on(self, host: str) -> Place:
        """Return a host (or ``"driver"``) to run programs on it without ssh."""
        return self._places[host]

    def outside(self, path: str | Path) -> Path:
        """Return the path by which this process finds a file of the driver's."""
        return Path(f"/proc/{self._init_pid}/root{path}")

    def processes(self, host: str) -> dict[int, str]:
        """Return the ids and command lines of what runs on a host besides what it is made of.

        The ids are those of the world outside.
        """
        found = self.on(host).processes()
        return {pid: found[pid] for pid in found.keys() - self._own.get(host, set())}

    def cut(self, host: str) -> None:
        """Cut the link of a host: what is sent to or from it is lost, without a word."""
        self._ip("set", f"to-{host}", "down")
        self._undo.append((host, lambda: self.mend(host)))

    def mend(self, host: str) -> None:
        """Mend the link of a host."""
        self._ip("set", f"to-{host}", "up")

    def hang(self, host: str) -> None:
        """Stop every process of a host; its kernel goes on answering."""
        stopped = self.on(host).signal_all(signal.SIGSTOP)
        stopped += filter(None, map(waiting_for, stopped))  # each stops with what it waits for
        wait(lambda: {state(pid) for pid in stopped} <= {"T", "Z", ""}, f"{host} to hang")
        self._undo.append((host, lambda: self.wake(host)))

    def wake(self, host: str) -> None:
        """Have the processes of a host go on."""
        for pid in self.on(host).signal_all(signal.SIGCONT):
            if waiting := waiting_for(pid):
                os.kill(waiting, signal.SIGCONT)

    def power_off(self, host: str) -> None:
        """Take the power from a host: all of it is gone at once, and nobody is told."""
        place = self.on(host)
        self._ip("set", f"to-{host}", "down")  # first: dying processes close their connections
        wait(lambda: not place.signal_all(signal.SIGKILL), f"the end of {host}'s processes")
        self._ip("del", f"to-{host}")
        self._own.pop(host, None)
        self._forget(host)
        self._undo.append((host, lambda: self.power_on(host)))

    def power_on(self, host: str) -> None:
        """Give a host its power back: it starts with the same name, address and key."""
        self._forget(host)
        self._build_host(host)
        for place in self._places.values():
            # Who has just looked for it in vain would still find no route to it for a second.
            place.run(["ip", "neigh", "flush", "to", self.addresses[host]], check=True)
        self._wait_for_sshd(host)

    def hide(self, host: str, path: str | Path, size: str = "1g") -> None:
        """Give a host an empty folder of its own at a path that the others share."""
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        self.on(host).run(["mount", *options], check=True)
        self._undo.append((host, lambda: self._unmount(host, path)))

    def fill_disk(self, host: str, path: str | Path) -> None:
        """Give a host a full disk of its own at a path: writing there fails."""
        self.hide(host, path, size="64k")
        fill = f"head -c 1m /dev/zero >{path}/full"
        assert "No space left" in self.on(host).run(["sh", "-c", fill]).stderr

    def sshfs(self, server: str, path: str | Path, host: str, mountpoint: str | Path) -> None:
        """Mount a server's folder on a host, over ssh: the filesystem that both share."""
        command = ["sshfs", "-F", self.ssh_config, f"{server}:{path}", str(mountpoint)]
        before = {name: set(self.on(name).processes()) for name in (server, host)}
        self.on(host).run(command, check=True)
        for name, pids in before.items():
            self._own[name] |= self.on(name).processes().keys() - pids
        self._undo.append((host, lambda: self._unmount(host, mountpoint)))

    def log_in(self, host: str, home: str | Path, shell: str | Path = "/bin/bash") -> None:
        """Give root another home and login shell on a host, as ssh and sshd look them up.

        In the driver's home they find hosts ``node1``, ``node2`` ... by the user's own
        configuration; shells there read the ``.bashrc`` of the home.
        """
        place = self.on(host)
        line = f"root:x:0:0:root:{home}:{shell}"
        script = f"""
        sed 's#^root:.*#{line}#' /etc/passwd >{ROOT}/passwd.{host}
        mount --bind {ROOT}/passwd.{host} /etc/passwd
        """
        place.run(["sh", "-euc", script], check=True)
        self._undo.append((host, lambda: self._unmount(host, "/etc/passwd")))
        if host == DRIVER:
            config = self.outside(self.ssh_config).read_text()
            folder = Path(home, ".ssh")
            folder.mkdir(mode=0o700)
            (folder / "config").write_text(config.replace("Host h", "Host node"))

    def slurm(self) -> None:
        """Start Slurm, with each host as a node, and set ``slurm_conf``."""
        self.slurm_conf = slurm.start(self, f"{ROOT}/slurm")
        for name in (DRIVER, *self.hosts):
            self.own(name)

    def tidy(self) -> None:
        """Undo what was done to the hosts, the latest first."""
        while self._undo:
            self._undo.pop()[1]()

    def own(self, host: str) -> None:
        """Count what runs on a host now as a part of it."""
        self._own[host] = set(self.on(host).processes())

    def _forget(self, host: str) -> None:
        self._undo = [(where, undo) for where, undo in self._undo if where != host]

    def _build(self) -> None:
        names = "".join(f"\n{self.addresses[name]} {name}" for name in self.addresses)
        etc_hosts = "127.0.0.1 localhost" + (names if self._resolvable else "")
        self._script(_BUILD_WORLD, DRIVER, ETC_HOSTS=etc_hosts)
        for name in self.hosts:
            places = {"name": name, "address": self.addresses[name], "root": ROOT}
            config = self.outside(f"{ROOT}/sshd.{name}.conf")
            config.write_text(_SSHD_CONFIG.format(**places))
            with self.outside(self.ssh_config).open("a") as file:
                file.write(_SSH_CONFIG.format(**places))
            self._build_host(name)
            key = self.outside(f"{ROOT}/key.{name}.pub").read_text()
            with self.outside(f"{ROOT}/known_hosts").open("a") as file:
                file.write(f"{self.addresses[name]} {key}")
        for name in self.hosts:
            self._wait_for_sshd(name)
        self.own(DRIVER)

    def _build_host(self, name: str) -> None:
        mac = f"02:00:00:00:00:{int(name[1:]):02x}"
        keeper = self._seen_from_outside(int(self._script(_BUILD_HOST, name, MAC=mac)))
        self._places[name] = Place(name, keeper)

    def _seen_from_outside(self, pid: int) -> int:
        """Return the id, out here, of a process of the world."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, StopIteration):  # it ends just now
                lines = (process / "status").read_text().splitlines()
                ids = next(line.split() for line in lines if line.startswith("NSpid:"))
                if ids[-1] == str(pid) and os.path.samefile(
                    process / "ns/pid", f"/proc/{self._init_pid}/ns/pid"
                ):
                    return int(process.name)
        raise RuntimeError(f"the world has no process {pid}")

    def _wait_for_sshd(self, name: str) -> None:
        pid_file = self.outside(f"{ROOT}/sshd.{name}.pid")  # written when it listens
        log = self.outside(f"{ROOT}/sshd.{name}.log")
        wait(pid_file.exists, f"the sshd of {name}", lambda: log.read_text(errors="replace"))
        self.own(name)

    def _script(self, text: str, name: str, **env: str) -> str:
        env |= {"NAME": name, "ADDRESS": self.addresses[name], "ROOT": ROOT, "DRIVER": DRIVER}
        return self.run(["sh", "-euc", text], env=env, check=True).stdout

    def _ip(self, *args: str) -> None:
        self.run(["ip", "link", *args], check=True)

    def _unmount(self, host: str, path: str | Path) -> None:
        self.on(host).run(["umount", "--lazy", str(path)], check=True)
