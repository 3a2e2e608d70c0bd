"""Slurm on the hosts does what minitrain relies on, and what it must not rely on."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest

from minitrain._os.processes import is_alive
from tests.hosts.namespaces import wait
from tests.hosts.slurm import Job

# What a node runs so that two can talk through it: see the two tests that use it.
SRUN = "srun --overlap --unbuffered --nodes=1 --ntasks=1 --nodelist=h2"


def srun(cluster, *argv: str):
    return cluster.run(["srun", *argv], env={"SLURM_CONF": cluster.slurm_conf}, check=True)


def test_a_step_runs_on_every_node(cluster):
    assert sorted(srun(cluster, "-N3", "hostname").stdout.split()) == ["h1", "h2", "h3"]


@pytest.mark.campaign
def test_a_batch_script_is_told_from_a_step_by_its_variables(cluster, tmp_path):
    """SLURM_PROCID is in both; what has no step's id starts steps itself."""
    script = """
    echo batch $SLURM_JOB_ID $SLURM_PROCID $SLURM_NTASKS step=$SLURM_STEP_ID $(hostname)
    srun bash -c 'echo task $SLURM_JOB_ID $SLURM_PROCID $SLURM_NTASKS step=$SLURM_STEP_ID'
    """
    job = Job(cluster, tmp_path, script, "--nodes=3", "--ntasks-per-node=2")

    assert job.wait() == "COMPLETED"
    batch, *tasks = job.output.splitlines()
    assert batch == f"batch {job.id} 0 6 step= h1"
    assert sorted(tasks) == [f"task {job.id} {rank} 6 step=0" for rank in range(6)]


@pytest.mark.parametrize(
    ("argv", "script"), [(["salloc", "-N2", "-Q"], ""), (["srun", "-N1"], "0")], ids=str
)
def test_an_allocation_without_a_script_has_no_step_either(cluster, argv, script):
    show = ["sh", "-c", 'echo "$SLURM_JOB_NUM_NODES ${SLURM_PROCID-none} ${SLURM_STEP_ID-none}"']
    answer = cluster.run([*argv, *show], env={"SLURM_CONF": cluster.slurm_conf}, check=True)

    assert answer.stdout == ("1 0 0\n" if script else "2 none none\n")


PIPE = """
import os, subprocess, sys, threading
step = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
for byte in (b"x", b"\\0", b"\\r", b"\\x04", b"\\n", b"\\xff"):
    step.stdin.write(byte)
    assert step.stdout.read(1) == byte, byte
sent = os.urandom(10_000_000)
def send():
    rest = memoryview(sent)
    while rest:
        rest = rest[step.stdin.write(rest):]
    step.stdin.close()
threading.Thread(target=send).start()
received = b"".join(iter(lambda: step.stdout.read(1 << 20), b""))
print("same" if received == sent else "different", step.wait())
"""


@pytest.mark.campaign
def test_a_steps_pipes_carry_bytes_at_once_and_unchanged(cluster, tmp_path):
    """Without --unbuffered, Slurm keeps the last bytes back until a line ends."""
    (tmp_path / "pipe.py").write_text(PIPE)
    command = f"{sys.executable} {tmp_path}/pipe.py {SRUN} cat"
    job = Job(cluster, tmp_path, command, "--nodes=3")

    assert job.wait() == "COMPLETED"
    assert job.output == "same 0\n"


@pytest.mark.campaign
def test_a_step_ends_with_its_srun(cluster, tmp_path):
    """Killed without a word, and on another node: Slurm ends all that the step started.

    A second srun does that, the child of the first: where both are killed, nothing is ended, and
    what reads from its standard input does not come to an end either.
    """
    inner = 'setsid sleep 1001 & sleep 1002 & echo up; trap "" TERM; sleep 1003'
    job = Job(cluster, tmp_path, f"{SRUN} bash -c '{inner}'; sleep 1004", "--nodes=3")
    job.wait_for("up")
    clients = [pid for pid, name in cluster.processes("h1").items() if name.startswith("srun")]
    sleeping = [pid for pid, name in cluster.processes("h2").items() if name.startswith("sleep")]
    assert len(sleeping) == 3

    os.kill(min(clients), signal.SIGKILL)

    wait(lambda: not any(map(is_alive, (*clients, *sleeping))), "the end of what srun started")
    assert job.state == "RUNNING"
    job.cancel()
    job.wait()


LOGGING = r"""
import signal, sys
def log(signum, frame):
    line = f"{sys.argv[1]} {signal.Signals(signum).name}\n"
    with open(sys.argv[0] + ".log", "a") as log_file:  # srun may end before it has passed it on
        log_file.write(line)
    sys.stdout.write(line)
    sys.stdout.flush()
    if signum == signal.SIGTERM:
        sys.exit()
signal.signal(signal.SIGTERM, log)
signal.signal(signal.SIGUSR1, log)
print(sys.argv[1], "up", flush=True)
while True:
    signal.pause()
"""

# A shell handles a signal when its child has ended or while it waits.
EVERYBODY = """
trap 'echo shell SIGTERM; exit' TERM
trap 'echo shell SIGUSR1' USR1
{python} {file} child &
{srun} {python} {file} step &
echo shell up $SLURM_RESTART_COUNT
while true; do wait; done
"""


@pytest.fixture
def everybody(cluster, tmp_path):
    """Return a function that submits a job of a shell, its child and a step, all up."""
    (tmp_path / "logging.py").write_text(LOGGING)
    text = EVERYBODY.format(python=sys.executable, file=tmp_path / "logging.py", srun=SRUN)

    def submit(*options: str) -> Job:
        job = Job(cluster, tmp_path, text, "--nodes=2", *options)
        for who in ("shell", "child", "step"):
            job.wait_for(f"{who} up")
        return job

    return submit


def heard(job: Job, name: str) -> set[str]:
    return set(re.findall(f"^(.*) {name}$", job.output, re.MULTILINE))


@pytest.mark.campaign
def test_scancel_asks_every_process_of_a_job_to_end_and_then_kills_it(everybody, tmp_path):
    job = everybody()
    job.cancel()

    assert job.wait() == "CANCELLED"
    assert heard(job, "SIGTERM") >= {"shell", "child"}
    assert "step SIGTERM" in (tmp_path / "logging.py.log").read_text()


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("option", "who"),
    [("--batch", {"shell"}), ("--full", {"shell", "child", "step"}), ("--quiet", {"step"})],
)
def test_whom_scancel_signals(everybody, option, who):
    job = everybody()
    job.cancel("--signal=USR1", option)
    for name in who:
        job.wait_for(f"{name} SIGUSR1")
    job.cancel()

    assert job.wait() == "CANCELLED"
    assert heard(job, "SIGUSR1") == who


@pytest.mark.campaign
def test_a_requeued_job_starts_again_and_knows_it(everybody, tmp_path):
    job = everybody("--requeue")
    job.requeue()

    job.wait_for("shell up 1")
    assert heard(job, "SIGTERM") >= {"shell", "child"}
    assert "step SIGTERM" in (tmp_path / "logging.py.log").read_text()


@pytest.mark.campaign
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("option", "who"), [("B:USR1@60", {"shell"}), ("USR1@60", {"step"})])
def test_a_job_is_warned_before_its_time_is_up(everybody, option, who):
    job = everybody("--time=1", f"--signal={option}")
    for name in who:
        job.wait_for(f"{name} SIGUSR1", timeout_s=90)

    job.cancel()
    assert job.wait() == "CANCELLED"
    assert heard(job, "SIGUSR1") == who
