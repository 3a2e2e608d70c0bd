"""What launchers leave in the environment; the tables are what real ones set."""

from __future__ import annotations

import pytest

from minitrain._os.launchers import Launched, detect, first_host, is_launched, torchrun_variables
from minitrain.exceptions import ConfigurationError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_RANK": "3",
    "ROLE_WORLD_SIZE": "4",
    "ROLE_NAME": "default",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "36617",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "5b6a92fd",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
KUBEFLOW = {  # PyTorchJob: a pod is a process
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "job-master-0",
    "MASTER_PORT": "23456",
    "PET_NNODES": "2",
}
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_RESTART_COUNT": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "PMIX_NAMESPACE": "prterun-vm-4711@1",
    "PMIX_RANK": "1",
}
MPICH = {
    "PMI_RANK": "0",
    "PMI_SIZE": "2",
    "MPI_LOCALRANKID": "0",
    "MPI_LOCALNRANKS": "2",
    "PMI_PORT": "vm:39217",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            TORCHRUN,
            Launched("torchrun", 3, 4, 1, 2, 1, "node1", 36617, "5b6a92fd", 2, has_store=True),
        ),
        (
            TORCHRUN | {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "False"},
            Launched("torchrun", 3, 4, 1, 2, 1, "node1", 36617, "", 2),
        ),
        (
            KUBEFLOW,
            Launched(
                "the environment (RANK, WORLD_SIZE)", 1, 2, None, None, None, "job-master-0", 23456
            ),
        ),
        (TORCHRUN | SLURM, detect(TORCHRUN)),  # srun torchrun
        (OPEN_MPI | SLURM, detect(OPEN_MPI)),  # mpirun that uses srun
    ],
)
def test_what_launchers_set_is_understood(environ, expected):
    assert detect(environ) == expected


def test_a_slurm_step_meets_on_its_first_host_at_a_port_made_from_its_ids():
    found = detect(SLURM)
    assert found.port_is_guessed
    assert 10_000 < found.master_port < 32_768
    expected = ("Slurm", 3, 5, 1, 2, 1, "gpu07", found.master_port, "17.0", 1)
    assert found == Launched(*expected, port_is_guessed=True)
    again = detect(SLURM | {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"})
    assert again.master_port == found.master_port, "all ranks find the same"
    others = [{"SLURM_JOB_ID": "18"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "2"}]
    ports = {detect(SLURM | other).master_port for other in others}
    assert len({found.master_port, *ports}) == 4, "other steps find others"


def test_where_to_meet_can_be_said():
    found = detect(SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4711"})
    assert (found.master_addr, found.master_port, found.port_is_guessed) == (
        "10.0.0.1",
        4711,
        False,
    )


@pytest.mark.parametrize("environ", [OPEN_MPI, MPICH])
def test_mpi_on_one_host_meets_there(environ):
    found = detect(environ)
    assert (found.master_addr, found.world_size, found.local_world_size) == ("127.0.0.1", 2, 2)
    assert found.launch_id


def test_mpi_on_several_hosts_must_be_told_where():
    environ = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(ConfigurationError, match="set MASTER_ADDR"):
        detect(environ)
    assert is_launched(environ), "no agent is started for it"
    assert detect(environ | {"MASTER_ADDR": "a"}).master_addr == "a"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "2"},  # somebody's own
        TORCHRUN | {"MINITRAIN_AGENT": "/12"},  # a worker of ours, which has them as well
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"},  # a batch script
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash
    ],
)
def test_other_processes_are_started_by_nobody(environ):
    assert detect(environ) is None
    assert not is_launched(environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (TORCHRUN | {"RANK": "x"}, "RANK='x': must be a number"),
        (TORCHRUN | {"RANK": "4"}, "rank 4 of 4 processes"),
        (SLURM | {"SLURM_PROCID": "-1"}, "rank -1 of 5"),
    ],
)
def test_nonsense_is_refused(environ, message):
    with pytest.raises(ConfigurationError, match=message):
        detect(environ)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("a", "a"), ("a,b", "a"), ("a[1-3],b", "a1"), ("a[01,03]", "a01"), ("r[2-3]n[4,6]x", "r2n4x")],
)
def test_the_first_host_of_a_list(nodes, host):
    assert first_host(nodes) == host


def test_torchruns_variables_say_the_same_as_torchrun():
    ours = torchrun_variables(detect(TORCHRUN))
    assert ours == {name: TORCHRUN[name] for name in ours if name != "NODE_RANK"} | {
        "NODE_RANK": "1"
    }
