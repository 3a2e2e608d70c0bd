"""Locks in forks."""

from __future__ import annotations

import os
import signal
import threading

import pyarrow as pa
import pytest

from minitrain._os.forks import unlock_in_forks
from minitrain.data.files import source
from minitrain.data.plans.mapped import HostTable, Permutation
from minitrain.data.plans.plan import written
from minitrain.exceptions import DataError


class Owner:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        unlock_in_forks(self)

    def use(self) -> bool:
        with self._lock:
            return True


def shared():
    return written([pa.table({"x": [1]})], "a table")


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (Owner, Owner.use),
        (source.Once, lambda once: once.get(lambda: 1) == 1),
        (source.Skips, lambda skips: skips.note("key", DataError("why")) is None),
        (source.Tested, lambda tested: tested.get("key", lambda: 1) == 1),
        (lambda: Permutation(3, "rows"), lambda one: len(one.indices(0, 3)) == 3),
        (shared, lambda one: one.table().num_rows == 1),
        (lambda: HostTable(shared(), None), lambda one: one.table().num_rows == 1),
    ],
    ids=["any", "once", "skips", "tested", "permutation", "shared table", "host table"],
)
def test_what_a_thread_holds_is_free_in_a_fork(make, use):
    owner = make()
    with owner._lock:
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            os._exit(0 if use(owner) else 1)
    assert os.waitpid(pid, 0)[1] == 0
