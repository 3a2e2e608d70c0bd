"""Slow work is done in order, beside the one wait, and told in the driver's thread."""

from __future__ import annotations

import select
import threading
from contextlib import closing

import pytest

from minitrain._driver.clerk import Clerk


def test_on_a_local_disk_work_is_done_on_the_spot():
    told = []
    with closing(Clerk(waits=False)) as clerk:
        clerk.do(threading.current_thread, told.append)
        assert told == [threading.main_thread()]


def test_work_may_ask_for_more_work():
    told = []
    with closing(Clerk(waits=False)) as clerk:
        clerk.do(lambda: 1, lambda one: clerk.do(lambda: one + 1, told.append))
    assert told == [2]


def test_elsewhere_the_caller_does_not_wait_and_is_told_in_its_own_thread():
    told = []
    gate = threading.Event()
    with closing(Clerk(waits=True)) as clerk:
        clerk.do(gate.wait, lambda _: told.append(threading.current_thread()))
        clerk.deliver()
        assert told == []
        gate.set()
        assert select.select([clerk], [], [], 20)[0]
        clerk.deliver()
        assert told == [threading.main_thread()]
        assert not select.select([clerk], [], [], 0)[0]


def test_work_is_done_and_told_in_order():
    told = []
    with closing(Clerk(waits=True)) as clerk:
        for number in range(100):
            clerk.do(lambda number=number: number, told.append)
        assert clerk.finish(20)
    assert told == list(range(100))


@pytest.mark.parametrize("waits", [True, False])
def test_an_exception_is_an_outcome(waits):
    told = []
    with closing(Clerk(waits=waits)) as clerk:
        clerk.do(lambda: 1 / 0, told.append)
        assert clerk.finish(20)
    assert isinstance(told[0], ZeroDivisionError)


def test_finishing_waits_no_longer_than_it_may():
    gate = threading.Event()
    with closing(Clerk(waits=True)) as clerk:
        clerk.do(gate.wait, print)
        assert not clerk.finish(0.05)
        gate.set()


def test_finishing_includes_what_is_asked_for_meanwhile():
    told = []
    with closing(Clerk(waits=True)) as clerk:
        clerk.do(lambda: 1, lambda _: clerk.do(lambda: 2, told.append))
        assert clerk.finish(20)
    assert told == [2]
