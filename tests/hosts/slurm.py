"""Slurm in a world: its controller where the driver is, and each host a node."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hosts.namespaces import DRIVER, WITHIN_S, wait

if TYPE_CHECKING:
    from tests.hosts.world import World

PROGRAMS = ("slurmctld", "slurmd", "munged")

# No cgroups, no accounting: they need more of a machine than Slurm's own behaviour does. Without
# config_overrides a node with fewer CPUs than it claims is not used.
_CONFIG = """\
ClusterName=world
SlurmctldHost={driver}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmctldParameters=preempt_send_user_signal
PartitionName=debug Nodes=ALL GraceTime=60 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
_NODE = "NodeName={name} NodeAddr={address} CPUs=4 RealMemory=4000 State=UNKNOWN\n"

_START_CONTROLLER = """
mkdir -p -m 755 $ROOT/munge $ROOT/state
head -c 1024 /dev/urandom >$ROOT/munge/key
chmod 400 $ROOT/munge/key
cd $ROOT/munge
munged --force --key-file=$PWD/key --socket=$PWD/socket --pid-file=$PWD/pid --log-file=$PWD/log \\
  --seed-file=$PWD/seed
slurmctld -f $ROOT/slurm.conf
"""
_START_NODE = 'mkdir -p "$ROOT/spool.$NAME" && slurmd -N "$NAME" -f "$ROOT/slurm.conf"'


def start(world: World, root: str) -> str:
    """Start Slurm with every host as a node and return the path of its configuration.

    Args:
        world: The hosts.
        root: The folder, in the world, for all that Slurm keeps.
    """
    conf = f"{root}/slurm.conf"
    text = _CONFIG.format(driver=DRIVER, address=world.addresses[DRIVER], root=root)
    for name in world.hosts:
        text += _NODE.format(name=name, address=world.addresses[name])
    world.outside(root).mkdir()
    world.outside(conf).write_text(text)
    world.run(["sh", "-euc", _START_CONTROLLER], env={"ROOT": root}, check=True)
    for name in world.hosts:
        start_node(world, name, root)

    def idle() -> bool:
        command = ["sinfo", "--noheader", "--partition=debug", "--states=idle", "--format=%D"]
        number = world.run(command, env={"SLURM_CONF": conf}).stdout.split()
        return number == [str(len(world.hosts))]

    log = world.outside(f"{root}/slurmctld.log")
    wait(idle, "Slurm's nodes", lambda: log.read_text(errors="replace")[-2000:])
    return conf


def start_node(world: World, host: str, root: str) -> None:
    """Start Slurm's daemon on a host, at first or after a loss of power."""
    env = {"ROOT": root, "NAME": host}
    world.on(host).run(["sh", "-euc", _START_NODE], env=env, check=True)


class Job:
    """A batch job, submitted where the driver is.

    Args:
        world: The hosts, with Slurm.
        folder: Where its script and its output are.
        script: What it runs, from the line after ``#!/bin/bash``, or the file that it is.
        options: More for ``sbatch``.
        arguments: For the script.
    """

    def __init__(
        self,
        world: World,
        folder: Path,
        script: str | Path,
        *options: str,
        arguments: Sequence[str] = (),
    ) -> None:
        self._world = world
        self._output = folder / "job.out"
        if isinstance(script, str):
            path = folder / "job.sh"
            path.write_text("#!/bin/bash\n" + textwrap.dedent(script))
        else:
            path = script
        output = (f"--output={self._output}", "--open-mode=append")
        command = ("sbatch", "--parsable", *output, *options, str(path), *arguments)
        self.id = self._run(*command, cwd=folder).strip()

    @property
    def output(self) -> str:
        """What it has printed so far; a second run of it adds to it."""
        return self._output.read_text() if self._output.exists() else ""

    @property
    def state(self) -> str:
        """Slurm's word for it: PENDING, RUNNING, COMPLETED, ..."""
        return self._shown("JobState")

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return int(self._shown("Restarts"))

    def wait_for(self, text: str, timeout_s: float = WITHIN_S) -> str:
        """Wait until it has printed a text and return all it printed."""
        what = f"{text!r} of job {self.id}"
        wait(lambda: text in self.output, what, lambda: self.output, timeout_s=timeout_s)
        return self.output

    def wait(self) -> str:
        """Wait for its end and return its state."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        wait(lambda: self.state in ended, f"the end of job {self.id}", lambda: self.output)
        return self.state

    def cancel(self, *options: str) -> None:
        """Cancel or signal it with ``scancel``."""
        self._run("scancel", *options, self.id)

    def requeue(self) -> None:
        """Stop it and have it start again."""
        self._run("scontrol", "requeue", self.id)

    def _shown(self, name: str) -> str:
        lines = self._run("scontrol", "--oneliner", "show", "job", self.id)
        return lines.partition(f"{name}=")[2].split()[0]

    def _run(self, *argv: str, cwd: str | Path = "/") -> str:
        env = {"SLURM_CONF": self._world.slurm_conf}
        return self._world.run(argv, env=env, cwd=cwd, check=True).stdout
