"""A worker's result queue: whole messages, in order, whatever becomes of the writer."""

from __future__ import annotations

import copy
import multiprocessing
import os
import select
import signal
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._wire.ring import Ring

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

WAIT_S = 20.0
forking = multiprocessing.get_context("fork")


def message(number: int, size: int) -> bytes:
    """A message that tells its number and its size, and has no two places alike."""
    head = struct.pack("<II", number, size)
    return (head + bytes((number + place) % 251 for place in range(256)) * (size // 256 + 1))[
        : max(size, 8)
    ]


def take(ring: Ring, count: int) -> list[bytes]:
    """Wait for so many messages."""
    messages: list[bytes] = []
    while len(messages) < count:
        assert select.select([ring], [], [], WAIT_S)[0], f"only {len(messages)} of {count} came"
        messages += ring.take()
    return messages


@pytest.fixture
def make_ring():
    rings = []

    def make(size_bytes):
        rings.append(Ring(size_bytes))
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()


# ------------------------------------------------------------------ messages
@settings(deadline=None, max_examples=150)
@given(
    size_bytes=st.integers(min_value=16, max_value=400),
    messages=st.lists(st.binary(max_size=1500), max_size=30),
)
def test_messages_of_any_size_arrive_whole_and_in_order(size_bytes, messages):
    reader = Ring(size_bytes)
    writer = copy.copy(reader)  # the same memory, a position of its own, as across a fork
    thread = threading.Thread(target=lambda: [writer.put(one) for one in messages])
    thread.start()
    try:
        assert take(reader, len(messages)) == messages
        thread.join(WAIT_S)
        assert reader.take() == []
    finally:
        reader.close()


@settings(deadline=None, max_examples=150)
@given(
    size_bytes=st.integers(min_value=64, max_value=300),
    steps=st.lists(st.one_of(st.just("take"), st.integers(min_value=0, max_value=15)), max_size=80),
)
def test_positions_wrap_around_wherever_writer_and_reader_stand(size_bytes, steps):
    reader = Ring(size_bytes)
    writer = copy.copy(reader)
    waiting: list[bytes] = []
    room = size_bytes
    try:
        for number, step in enumerate(steps):
            needed = 0 if step == "take" else step + 4
            if step == "take" or needed > room:
                assert reader.take() == waiting
                waiting, room = [], size_bytes
            if step != "take":
                waiting.append(bytes([number % 256]) * step)
                writer.put(waiting[-1])
                room -= needed
        assert reader.take() == waiting
    finally:
        reader.close()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1023, 1024, 1025, 5 * 1024])
def test_sizes_around_those_of_parts_and_of_the_ring(make_ring, size):
    ring = make_ring(1024)
    sent = [message(number, size)[:size] for number in range(5)]
    child = forking.Process(target=lambda: [ring.put(one) for one in sent])
    child.start()
    assert take(ring, 5) == sent
    child.join(WAIT_S)


def test_a_message_larger_than_the_ring_passes_through(make_ring):
    ring = make_ring(4096)
    sent = os.urandom(1 << 20)
    child = forking.Process(target=lambda: ring.put(sent))
    child.start()
    assert take(ring, 1) == [sent]
    child.join(WAIT_S)


def test_messages_of_several_threads_do_not_mix(make_ring):
    ring = make_ring(512)
    numbers = range(0, 400, 100)

    def write():
        threads = [
            threading.Thread(
                target=lambda first=first: [
                    ring.put(message(first + n, 700)) for n in range(first, first + 50)
                ]
            )
            for first in numbers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    child = forking.Process(target=write)
    child.start()
    came = take(ring, 200)
    child.join(WAIT_S)
    assert sorted(came) == sorted(message(f + n, 700) for f in numbers for n in range(f, f + 50))


def test_an_empty_ring_gives_nothing_and_does_not_wait(make_ring):
    ring = make_ring(64)
    assert ring.take() == []
    assert select.select([ring], [], [], 0)[0] == []


def test_the_descriptor_is_readable_exactly_while_messages_wait(make_ring):
    ring = make_ring(256)
    child = forking.Process(target=lambda: ring.put(b"x"))
    child.start()
    assert select.select([ring], [], [], WAIT_S)[0] == [ring]
    assert ring.take() == [b"x"]
    assert select.select([ring], [], [], 0)[0] == []
    child.join(WAIT_S)


# ------------------------------------------------------------------ a real writer
def start_writer(ring, messages):
    """Fork a writer; the pipe says how many messages it has put so far."""
    read_fd, write_fd = os.pipe()

    def write():
        os.close(read_fd)
        for one in messages:
            ring.put(one)
            os.write(write_fd, b".")

    child = forking.Process(target=write)
    child.start()
    os.close(write_fd)
    return child, read_fd


def test_a_full_ring_makes_the_writer_wait_until_the_reader_takes(make_ring):
    ring = make_ring(1000)
    sent = [message(number, 96) for number in range(50)]  # 100 bytes each: ten fit
    child, put = start_writer(ring, sent)
    count = 0
    while count < 10:
        count += len(os.read(put, 1))
    assert select.select([put], [], [], 0.2)[0] == [], "the eleventh did not wait"
    assert ring.take() == sent[:10]
    assert take(ring, 40) == sent[10:]
    child.join(WAIT_S)
    assert child.exitcode == 0
    os.close(put)


def test_taking_gives_back_exactly_the_room_that_was_taken(make_ring):
    ring = make_ring(200)
    sent = [message(number, size) for number, size in enumerate([8, 46, 30, 9, 44] * 60)]
    child, put = start_writer(ring, sent)
    assert take(ring, len(sent)) == sent
    child.join(WAIT_S)
    assert child.exitcode == 0
    os.close(put)


@pytest.mark.parametrize("size", [40, 3000], ids=["in one part", "in several parts"])
@pytest.mark.parametrize(
    "kill_after",
    [0, 5, *(pytest.param(puts, marks=pytest.mark.campaign) for puts in (1, 2, 9, 17))],
)
def test_what_a_killed_writer_had_put_is_readable_and_nothing_is_torn(make_ring, size, kill_after):
    ring = make_ring(1 << 16)
    sent = [message(number, size) for number in range(10_000)]
    child, put = start_writer(ring, sent)
    acknowledged = 0
    while acknowledged < kill_after:
        acknowledged += len(os.read(put, 1))
    os.kill(child.pid, signal.SIGKILL)
    child.join(WAIT_S)
    acknowledged += len(os.read(put, 1 << 20)) if select.select([put], [], [], 0)[0] else 0
    os.close(put)
    came = ring.take()
    assert len(came) >= acknowledged
    assert came == sent[: len(came)]
    assert ring.take() == []


def test_a_writer_killed_while_it_waits_leaves_the_whole_messages(make_ring):
    ring = make_ring(1024)
    child, put = start_writer(ring, [message(0, 300), message(1, 5000)])
    assert os.read(put, 1) == b"."
    assert select.select([put], [], [], 0.1)[0] == [], "the second waits for room"
    os.kill(child.pid, signal.SIGKILL)
    child.join(WAIT_S)
    os.close(put)
    assert ring.take() == [message(0, 300)]


def test_closing_gives_back_every_descriptor():
    before = set(os.listdir("/proc/self/fd"))
    ring = Ring(1024)
    assert set(os.listdir("/proc/self/fd")) > before
    ring.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_of_a_ring_has_a_name():
    before = os.listdir("/dev/shm")
    ring = Ring(1024)
    assert os.listdir("/dev/shm") == before
    ring.close()
