"""Processors, threads and network interfaces."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minitrain._os.machine import interface_towards, num_cpus, threads_per_worker


@pytest.mark.parametrize(
    ("asked", "workers", "cpus", "expected"),
    [
        (None, 1, 8, 8),
        (None, 2, 8, 4),
        (None, 3, 8, 2),
        (None, 8, 8, 1),
        (None, 32, 2, 1),
        (4, 2, 2, 4),
        (1, 1, 64, 1),
        (0.5, 4, 8, 1),
        (2.9, 1, 8, 2),
        (0, 1, 8, 1),
    ],
)
def test_a_workers_threads_are_what_was_asked_or_its_share(asked, workers, cpus, expected):
    assert threads_per_worker(asked, workers, cpus) == expected


def test_the_processors_are_those_this_process_may_run_on():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from minitrain._os.machine import num_cpus; print(num_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert num_cpus() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3"])
def test_this_host_is_reached_through_loopback(host):
    assert interface_towards(host) == "lo"


@pytest.mark.parametrize("host", ["::1", "", "no such host."])
def test_a_host_that_cannot_be_reached_has_no_interface(host):
    assert interface_towards(host) in ({None, "lo"} if host == "" else {None})
