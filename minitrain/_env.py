"""Every environment variable this library reads, typed, in one table.

``docs/environment.md`` lists the same names; a test compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from minitrain.exceptions import ConfigurationError

__all__ = [
    "AGENT_VARIABLES",
    "CROSSED_VARIABLE",
    "THREADS_VARIABLE",
    "VARIABLES",
    "Variable",
    "check",
    "flag",
    "override",
    "seconds",
    "text",
]


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    Attributes:
        name: Its name.
        default: What holds where it is not set.
        meaning: One sentence for the documentation.
    """

    name: str
    default: str
    meaning: str


AGENT_VARIABLES = {
    # Two libraries would start threads when they are imported, and the agent must have none:
    # numpy's BLAS (workers are given theirs by call) and the allocator of pyarrow.
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # A library that asks at import whether there is a GPU must not start CUDA in the agent:
    # it could not be used in any fork. This way torch asks NVML.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""What an agent has in its environment for itself; none of its workers' business."""

CROSSED_VARIABLE = "MINITRAIN_CROSSED"
"""Names, for an agent elsewhere, the variables that came from its driver when it started."""

THREADS_VARIABLE = "MINITRAIN_THREADS"
"""A worker's ``OMP_NUM_THREADS``, where the user set none: its processes need not go by it."""

VARIABLES = {
    variable.name: variable
    for variable in [
        Variable(
            "MINITRAIN_STORAGE", "~/minitrain_results", "where runs without a storage_path go"
        ),
        Variable(
            "MINITRAIN_CACHE",
            "~/.cache/minitrain",
            "where logs and tables of a run lie until they are brought to storage elsewhere",
        ),
        Variable("MINITRAIN_CHDIR", "1", "0: workers keep the driver's working directory"),
        Variable("MINITRAIN_PRESTART", "1", "0: no agent is started before the first fit()"),
        Variable(
            "MINITRAIN_PRELOAD",
            "",
            "more modules that the agent imports before it forks, with commas; `off`: only torch",
        ),
        Variable("MINITRAIN_START_TIMEOUT_S", "120", "how long agents and workers have to start"),
        Variable(
            "MINITRAIN_COLLECTIVE_TIMEOUT_S",
            "1800",
            "how long ranks wait in report(), barrier() and broadcast_from_rank_zero()",
        ),
        Variable(
            "MINITRAIN_COLLECTIVE_WARN_S",
            "60",
            "after how long a warning names the ranks that others wait for",
        ),
        Variable("MINITRAIN_RETRY_S", "60", "how long a remote storage that fails is tried again"),
        Variable("MINITRAIN_STOP_GRACE_S", "5", "the time between SIGTERM and SIGKILL"),
        Variable(
            "MINITRAIN_HOSTS",
            "",
            "the hosts to train on, with commas, as `a,b:2`; a number says how many workers",
        ),
        Variable(
            "MINITRAIN_WORKERS_PER_HOST", "", "how many workers a host takes that has no number"
        ),
        Variable(
            "MINITRAIN_TRANSPORT",
            "ssh",
            "what starts a program on another host: `ssh`, `srun`, or a command with `{host}`",
        ),
        Variable(
            "MINITRAIN_REMOTE_PYTHON",
            "",
            "the Python of other hosts, where it is not at the path of the driver's",
        ),
        Variable(
            "MINITRAIN_REMOTE_ENV",
            "",
            "more variables that go to other hosts, with commas, as `WANDB_*,MY_TOKEN`",
        ),
        Variable(
            "MINITRAIN_REMOTE_WORKDIR",
            "",
            "the working directory on other hosts, where it is not at the path of the driver's",
        ),
        Variable("MINITRAIN_SSH_OPTIONS", "", "more options for ssh, as in a shell"),
        Variable("MINITRAIN_SYNC_CODE", "0", "1: other hosts get a copy of the working directory"),
        Variable(
            "MINITRAIN_COLLECT", "0", "1: workers read and write checkpoints through the driver"
        ),
    ]
}


def text(name: str) -> str:
    """Return the value of a variable, or its default."""
    return os.environ.get(name, VARIABLES[name].default)


def flag(name: str) -> bool:
    """Return a variable as a switch: ``0``, ``false``, ``no``, ``off`` and nothing turn it off."""
    return text(name).strip().lower() not in {"", "0", "false", "no", "off"}


def check() -> None:
    """Look at every variable that is a number before anything depends on it.

    Raises:
        ConfigurationError: One of them is none.
    """
    for name in VARIABLES:
        if name.endswith("_S"):
            seconds(name)


def seconds(name: str) -> float:
    """Return a variable as a number of seconds.

    Raises:
        ConfigurationError: It is not a positive number.
    """
    value = text(name)
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not number > 0:
        raise ConfigurationError(f"{name}={value!r}: must be a positive number of seconds")
    return number


@contextmanager
def override(name: str, value: str | None) -> Generator[None]:
    """Set a variable, or remove it with None, and put it back afterwards; for tests."""
    assert name in VARIABLES, name
    before = os.environ.get(name)
    _put(name, value)
    try:
        yield
    finally:
        _put(name, before)


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
