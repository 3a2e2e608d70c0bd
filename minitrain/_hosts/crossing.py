"""Which environment variables go to other hosts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import translate
from functools import cache

__all__ = ["crossing", "is_secret"]

_USUAL = (
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "CUDA*",
    "NCCL*",
    "GLOO*",
    "TORCH*",
    "HF_*",
    "OMP_*",
    "MKL_*",
    "MINITRAIN_*",
)
_NEVER = (
    # Of this process's place in another launcher's job.
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_*",
    "ROLE_*",
    "MASTER_*",
    "TORCHELASTIC_*",
    # What only the driver is to read: an agent must not start others.
    "MINITRAIN_AGENT",
    "MINITRAIN_COLLECT",
    "MINITRAIN_HOSTS",
    "MINITRAIN_REMOTE_*",
    "MINITRAIN_SSH_OPTIONS",
    "MINITRAIN_SYNC_CODE",
    "MINITRAIN_TRANSPORT",
    "MINITRAIN_WORKERS_PER_HOST",
)
_OF_THIS_MACHINE = ("CUDA_VISIBLE_DEVICES",)
"""Say something about this machine that may be wrong on another: only if they are named."""
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")


def crossing(environ: Mapping[str, str], patterns: Collection[str] = ()) -> dict[str, str]:
    """Return the variables that go to other hosts.

    Args:
        environ: The variables here.
        patterns: Names of more than the usual ones; ``*`` stands for anything.

    >>> crossing({"PATH": "/bin", "HF_HOME": "/hf", "HF_TOKEN": "hf_1", "EDITOR": "vi"})
    {'PATH': '/bin', 'HF_HOME': '/hf'}
    >>> crossing({"HF_TOKEN": "hf_1", "EDITOR": "vi"}, ["HF_TOKEN", "ED*"])
    {'HF_TOKEN': 'hf_1', 'EDITOR': 'vi'}
    """
    return {name: value for name, value in environ.items() if _crosses(name, patterns)}


def is_secret(name: str) -> bool:
    """Return whether a variable's name looks like that of a secret."""
    return any(word in name.upper() for word in _SECRETS)


def _crosses(name: str, patterns: Collection[str]) -> bool:
    if _fits(name, _NEVER):
        return False
    if name in patterns:
        return True
    if is_secret(name) or name in _OF_THIS_MACHINE:
        return False
    return _fits(name, _USUAL) or _fits(name, tuple(patterns))


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return bool(patterns) and _matcher(patterns).match(name) is not None


@cache
def _matcher(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return one pattern for them all: variables are looked at again for every host."""
    return re.compile("|".join(map(translate, patterns)))
