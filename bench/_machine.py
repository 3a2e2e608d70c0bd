"""What a benchmark ran on: every script here prints it above its figures."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["describe", "print_machine"]

_PACKAGES = ("minitrain", "torch", "numpy", "tensorboard")


def describe() -> dict[str, str]:
    """Return the machine, the versions and how busy it was, as names and words."""
    packages = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "cpu": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores usable",
        "memory": f"{_memory_bytes() / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": packages,
        "load": f"{load} (1, 5, 15 minutes, before the run)",
    }


def print_machine(title: str) -> None:
    """Print a title and what it was measured on."""
    print(title)
    for name, words in describe().items():
        print(f"  {name:9} {words}")
    print(flush=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    print_machine("machine")
