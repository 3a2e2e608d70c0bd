"""A worker's surroundings: environment variables, threads, descriptors, standard streams."""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing as mp
import os
import signal
import sys
import tempfile
from contextlib import suppress
from types import ModuleType

from minitrain._env import THREADS_VARIABLE
from minitrain._os.machine import threads_per_worker
from minitrain._os.processes import MARK_VARIABLE, die_with_parent, let_forked_children_die_too
from minitrain._os.stacks import answer_stack_requests
from minitrain._wire.messages import ForkedWorker, Place, StartWorkers

_OF_SLURMS_TASK = (
    "PMI_",
    "PMIX_",
    "SLURM_GTIDS",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_STEP",
    "SLURM_TASK_PID",
)

__all__ = ["own_devices", "run_exit_handlers", "settle", "temporary_folder", "variables"]


def settle(forked: ForkedWorker) -> None:
    """Turn a fork of the agent into a process of the driver's kind, in a group of its own."""
    die_with_parent(forked.agent_pid)
    os.setsid()
    for descriptor in forked.close_fds:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # What preloaded modules want done at the agent's end is none of a worker's business.
    atexit._clear()  # noqa: SLF001 - a process made by exec would have none
    # Otherwise children that a worker spawns would import the agent's main module.
    sys.modules["__main__"] = ModuleType("__main__")
    _take_streams(forked.output_fd)
    _take_environment(forked)
    let_forked_children_die_too()
    answer_stack_requests()


def _take_streams(output_fd: int) -> None:
    for standard in (1, 2):
        os.dup2(output_fd, standard)
    os.close(output_fd)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    faulthandler.enable(2)


def _take_environment(forked: ForkedWorker) -> None:
    start, place = forked.start, forked.place
    mark = os.environ[MARK_VARIABLE]
    threads = threads_per_worker(start.cpus_per_worker, place.local_world_size, forked.num_cpus)
    os.environ.clear()
    os.environ.update(variables(start, place, forked.interface, threads))
    os.environ[MARK_VARIABLE] = mark
    _take_temporary_folder(start)
    sys.path[:] = start.sys_path
    sys.argv[:] = start.argv
    os.chdir(start.working_dir)
    _use_threads(os.environ["OMP_NUM_THREADS"], threads)
    _reseed()


def _take_temporary_folder(start: StartWorkers) -> None:
    """Put temporary files where they are removed with the attempt.

    A worker that is killed leaves a checkpoint there that it was about to report, every time.
    """
    tempfile.tempdir = None  # forget what the agent found
    if "TMPDIR" not in start.own_variables:
        os.environ["TMPDIR"] = temporary_folder()


def variables(
    start: StartWorkers, place: Place, interface: str | None, threads: int
) -> dict[str, str]:
    """Return a worker's environment: the driver's, and what torchrun gives its workers.

    Args:
        start: The order the worker belongs to.
        place: Where it stands.
        interface: The network interface that reaches the store.
        threads: How many threads it computes with, unless the user said otherwise.
    """
    attempt = str(start.attempt)
    by_torchrun = {
        "MASTER_ADDR": start.store_address,
        "MASTER_PORT": str(start.store_port),
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "NODE_RANK": str(place.node_rank),
        "GROUP_RANK": str(place.node_rank),
        "GROUP_WORLD_SIZE": str(place.num_nodes),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(place.rank),
        "ROLE_WORLD_SIZE": str(place.world_size),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": attempt,
        "TORCHELASTIC_MAX_RESTARTS": str(start.max_restarts),
        "TORCHELASTIC_RUN_ID": start.run_id,
    }
    by_default = {}
    if "OMP_NUM_THREADS" not in start.environ:
        by_default = {"OMP_NUM_THREADS": str(threads), THREADS_VARIABLE: str(threads)}
    if interface is not None:
        by_default |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    if place.visible_gpus:
        by_torchrun["CUDA_VISIBLE_DEVICES"] = ",".join(place.visible_gpus)
    given = {name: text for name, text in start.environ.items() if not _is_of_a_step(name)}
    return {**by_default, **given, **by_torchrun}


def _is_of_a_step(name: str) -> bool:
    """Return whether a variable says where a process stands among those that Slurm started.

    That was the agent, or the driver; a library that believes it would take every worker for the
    only one.
    """
    return name.startswith(_OF_SLURMS_TASK)


def _use_threads(variable: str, otherwise: int) -> None:
    """Set the threads by call as well: what the agent has loaded has read the variable already."""
    first = variable.split(",", maxsplit=1)[0].strip()
    count = int(first) if first.isdigit() and int(first) else otherwise
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
    if "numpy" in sys.modules:
        import threadpoolctl

        threadpoolctl.threadpool_limits(count)


def _reseed() -> None:
    """Give every worker its own random numbers; the forks of one agent share its generator."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def temporary_folder() -> str:
    """Return the folder of this host's agent, which is removed after the attempt."""
    config = mp.process.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
    return str(config["tempdir"])


def own_devices(place: Place) -> tuple[int, ...]:
    """Return a worker's GPUs as indices into ``CUDA_VISIBLE_DEVICES``.

    >>> own_devices(Place(1, 2, 1, 2, 0, gpus=("5",), visible_gpus=("3", "5")))
    (1,)
    """
    return tuple(place.visible_gpus.index(gpu) for gpu in place.gpus)


def run_exit_handlers() -> None:
    """Run what the train function registered with :mod:`atexit`; a fork would skip it."""
    with suppress(Exception):  # it has been printed; the worker is leaving anyway
        atexit._run_exitfuncs()  # noqa: SLF001 - what the interpreter calls at its end
