"""Reads from the environment whether another launcher has started this process as one of several.

Nothing is asked of the system here. What launchers set:

* torchrun, and what follows it (``accelerate launch``, SageMaker, Kubeflow): ``RANK``,
  ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``.
  https://docs.pytorch.org/docs/stable/elastic/run.html
* Open MPI's mpirun: ``OMPI_COMM_WORLD_RANK``; MPICH's: ``PMI_RANK``.
* Slurm's srun: ``SLURM_PROCID`` with ``SLURM_STEP_ID``. A batch script has no step, and is no rank.
  https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from minitrain._os.processes import MARK_VARIABLE
from minitrain.exceptions import ConfigurationError

__all__ = ["Launched", "detect", "first_host", "is_launched", "torchrun_variables"]

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _NUM_PORTS = 12_000, 20_000  # below what kernels give to clients
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launcher says about one of its processes.

    Attributes:
        kind: Which launcher, for messages.
        rank: World rank.
        world_size: Processes in all.
        local_rank: Rank among those of this host; None where the launcher does not say.
        local_world_size: How many this host has; None where the launcher does not say.
        node_rank: Rank of this host; None where the launcher does not say.
        master_addr: Where rank 0 is, or the store.
        master_port: The store's port there.
        launch_id: What tells this launch from others; empty where there is nothing.
        restart_count: How often the launcher has started it again.
        has_store: Whether the launcher serves the store; otherwise rank 0 does.
        port_is_guessed: Whether the port was made from the launch's id.
    """

    kind: str
    rank: int
    world_size: int
    local_rank: int | None
    local_world_size: int | None
    node_rank: int | None
    master_addr: str
    master_port: int
    launch_id: str = ""
    restart_count: int = 0
    has_store: bool = False
    port_is_guessed: bool = False


def detect(environ: Mapping[str, str]) -> Launched | None:
    """Return what a launcher says of the process with this environment; None if none started it.

    A worker of minitrain's own, or what one has started, is none of another launcher's.

    Raises:
        ConfigurationError: The launcher says too little, or nonsense.
    """
    if environ.get(MARK_VARIABLE):
        return None
    if all(environ.get(name) for name in _TORCHRUN):
        return _checked(_by_torchrun(environ))
    if "OMPI_COMM_WORLD_RANK" in environ:  # before Slurm's: mpirun may use srun
        return _checked(_by_open_mpi(environ))
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        found = _by_slurm(environ)
        # One task trains as everywhere: it may have many GPUs, or be an interactive shell.
        return _checked(found) if found.world_size > 1 else None
    if "PMI_RANK" in environ and "PMI_SIZE" in environ:
        return _checked(_by_mpich(environ))
    return None


def is_launched(environ: Mapping[str, str]) -> bool:
    """Return whether a launcher started the process with this environment, whatever it says."""
    try:
        return detect(environ) is not None
    except ConfigurationError:
        return True


def _by_torchrun(environ: Mapping[str, str]) -> Launched:
    run_id = environ.get("TORCHELASTIC_RUN_ID", "")
    return Launched(
        kind="torchrun" if run_id else "the environment (RANK, WORLD_SIZE)",
        rank=_number(environ, "RANK"),
        world_size=_number(environ, "WORLD_SIZE"),
        local_rank=_optional(environ, "LOCAL_RANK"),
        local_world_size=_optional(environ, "LOCAL_WORLD_SIZE"),
        node_rank=_optional(environ, "GROUP_RANK", "NODE_RANK"),
        master_addr=environ["MASTER_ADDR"],
        master_port=_number(environ, "MASTER_PORT"),
        launch_id="" if run_id == "none" else run_id,
        restart_count=_optional(environ, "TORCHELASTIC_RESTART_COUNT") or 0,
        has_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _by_open_mpi(environ: Mapping[str, str]) -> Launched:
    launch_id = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid", "")
    found = Launched(
        kind="Open MPI",
        rank=_number(environ, "OMPI_COMM_WORLD_RANK"),
        world_size=_number(environ, "OMPI_COMM_WORLD_SIZE"),
        local_rank=_optional(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        local_world_size=_optional(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"),
        node_rank=None,
        master_addr="",
        master_port=0,
        launch_id=launch_id,
    )
    return _with_master(found, environ, "")


def _by_mpich(environ: Mapping[str, str]) -> Launched:
    found = Launched(
        kind="MPICH",
        rank=_number(environ, "PMI_RANK"),
        world_size=_number(environ, "PMI_SIZE"),
        local_rank=_optional(environ, "MPI_LOCALRANKID"),
        local_world_size=_optional(environ, "MPI_LOCALNRANKS"),
        node_rank=None,
        master_addr="",
        master_port=0,
        launch_id=environ.get("PMI_PORT", ""),
    )
    return _with_master(found, environ, "")


def _by_slurm(environ: Mapping[str, str]) -> Launched:
    node_rank = _optional(environ, "SLURM_NODEID")
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST", "")
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    tasks = _tasks_per_node(per_node)
    known = node_rank is not None and node_rank < len(tasks)
    found = Launched(
        kind="Slurm",
        rank=_number(environ, "SLURM_PROCID"),
        world_size=_optional(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or 1,
        local_rank=_optional(environ, "SLURM_LOCALID"),
        local_world_size=tasks[node_rank] if known and node_rank is not None else None,
        node_rank=node_rank,
        master_addr="",
        master_port=0,
        launch_id=f"{environ.get('SLURM_JOB_ID', '')}.{environ['SLURM_STEP_ID']}",
        restart_count=_optional(environ, "SLURM_RESTART_COUNT") or 0,
    )
    return _with_master(found, environ, first_host(nodes))


def _with_master(found: Launched, environ: Mapping[str, str], host: str) -> Launched:
    """Return what was found with a place to meet: ``MASTER_ADDR`` and ``MASTER_PORT`` win."""
    if not host and found.local_world_size == found.world_size:
        host = _LOOPBACK
    address = environ.get("MASTER_ADDR") or host
    if not address:
        raise ConfigurationError(
            f"{found.kind} started {found.world_size} processes and does not say where rank 0 is: "
            "set MASTER_ADDR to the name or address of its host (mpirun -x MASTER_ADDR=...)"
        )
    port = _optional(environ, "MASTER_PORT")
    seed = f"{found.launch_id}/{found.restart_count}".encode()
    return replace(
        found,
        master_addr=address,
        master_port=_FIRST_PORT + zlib.crc32(seed) % _NUM_PORTS if port is None else port,
        port_is_guessed=port is None,
    )


def first_host(nodes: str) -> str:
    """Return the first host of one of Slurm's lists.

    >>> first_host("gpu[007-012,20],login1"), first_host("a-1,a-2"), first_host("rack[2-3]n[4,6]")
    ('gpu007', 'a-1', 'rack2n4')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None, "the pattern matches nothing as well"
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def _tasks_per_node(text: str) -> list[int]:
    """Return what ``SLURM_TASKS_PER_NODE`` says: ``2(x3),1`` is three nodes with 2, one with 1."""
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        tasks += [int(count)] * int(times or 1)
    return tasks


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"{name}={text!r}: must be a number") from None


def _optional(environ: Mapping[str, str], *names: str) -> int | None:
    return next((_number(environ, name) for name in names if environ.get(name)), None)


def _checked(found: Launched) -> Launched:
    if not 0 <= found.rank < found.world_size:
        raise ConfigurationError(
            f"{found.kind} says that this is rank {found.rank} of {found.world_size} processes, "
            "which cannot be"
        )
    return found


def torchrun_variables(found: Launched) -> dict[str, str]:
    """Return what torchrun would have set, for the libraries that look for it.

    Args:
        found: What is known, with nothing left out.
    """
    assert found.local_world_size is not None
    nodes = -(-found.world_size // found.local_world_size)
    return {
        "RANK": str(found.rank),
        "WORLD_SIZE": str(found.world_size),
        "LOCAL_RANK": str(found.local_rank),
        "LOCAL_WORLD_SIZE": str(found.local_world_size),
        "NODE_RANK": str(found.node_rank),
        "GROUP_RANK": str(found.node_rank),
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(found.rank),
        "ROLE_WORLD_SIZE": str(found.world_size),
        "MASTER_ADDR": found.master_addr,
        "MASTER_PORT": str(found.master_port),
    }
