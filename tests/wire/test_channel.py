"""Messages over descriptors: whole, in order, and never a deadlock."""

from __future__ import annotations

import itertools
import os
import pickle
import selectors
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._wire.channel import Channel, ChannelClosed

MIB = 1 << 20


def over_a_socketpair():
    ours, theirs = socket.socketpair()
    return tuple(Channel(one, one) for one in (ours.detach(), theirs.detach()))


def over_two_pipes():
    down_read, down_write = os.pipe()
    up_read, up_write = os.pipe()
    return Channel(up_read, down_write), Channel(down_read, up_write)


@pytest.fixture(params=[over_a_socketpair, over_two_pipes], ids=["socketpair", "pipes"])
def ends(request):
    ends = request.param()
    yield ends
    for end in ends:
        close(end)


def close(end):
    """Close an end, unless a test has done so already."""
    if end.read_fd >= 0:
        end.close()
        end.read_fd = -1


def frame(message) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return struct.pack("<QI", len(data), 0) + data


def receive_all(end):
    """Receive until the end of the stream."""
    received = []
    while True:
        try:
            received += end.receive()
        except ChannelClosed:
            return received


# ------------------------------------------------------------------ messages
def test_messages_arrive_in_order_in_both_directions(ends):
    one, other = ends
    for number in range(100):
        one.send(number)
        other.send(-number)
    assert other.receive() == list(range(100))
    assert one.receive() == [-number for number in range(100)]


def test_receiving_does_not_wait(ends):
    assert ends[0].receive() == []


@settings(deadline=None, max_examples=100)
@given(
    messages=st.lists(st.one_of(st.binary(max_size=300), st.text(), st.none()), max_size=8),
    data=st.data(),
)
def test_frames_may_be_cut_anywhere(messages, data):
    stream = b"".join(frame(message) for message in messages)
    cuts = data.draw(st.lists(st.integers(min_value=0, max_value=len(stream)), max_size=12))
    places = [0, *sorted(cuts), len(stream)]
    read_fd, write_fd = os.pipe()
    channel = Channel(read_fd, os.dup(write_fd))
    received, ends_of_frames = [], []
    for message in messages:
        ends_of_frames.append((ends_of_frames or [0])[-1] + len(frame(message)))
    try:
        for start, stop in itertools.pairwise(places):
            os.write(write_fd, stream[start:stop])
            received += channel.receive()
            assert len(received) == sum(end <= stop for end in ends_of_frames)
    finally:
        os.close(write_fd)
        channel.close()
    assert received == messages


def test_every_byte_on_its_own(ends):
    one, other = ends
    received = []
    for byte in frame({"loss": 0.5}) + frame("next"):
        os.write(one.write_fd, bytes([byte]))
        received += other.receive()
    assert received == [{"loss": 0.5}, "next"]


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1])
def test_a_message_of_any_size(ends, size):
    one, other = ends
    sent = os.urandom(size)
    one.send(sent)
    received = []
    while not received:
        one.flush()
        received = other.receive()
    assert received == [sent]
    assert one.unsent_bytes == 0


def test_sending_never_waits_and_tells_what_is_left(ends):
    one, other = ends
    one.send(bytes(8 * MIB))
    assert 0 < one.unsent_bytes <= 8 * MIB + 100
    one.send("after")
    received = []
    while len(received) < 2:
        before = one.unsent_bytes
        one.flush()
        assert one.unsent_bytes <= before
        received += other.receive()
    assert received == [bytes(8 * MIB), "after"]
    assert one.unsent_bytes == 0


def test_two_ends_with_much_to_say_do_not_lock_each_other_up(ends):
    sent = [os.urandom(12 * MIB), os.urandom(12 * MIB)]
    for end, data in zip(ends, sent, strict=True):
        end.send(data)
    received = [[], []]
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end.read_fd, selectors.EVENT_READ)
        while not all(received):
            assert selector.select(10) or any(end.unsent_bytes for end in ends)
            for place, end in enumerate(ends):
                end.flush()
                received[place] += end.receive()
    assert received == [[sent[1]], [sent[0]]]


# ------------------------------------------------------------------ the other end
def test_all_that_was_sent_arrives_before_the_end_of_the_stream(ends):
    one, other = ends
    for number in range(3):
        one.send(number)
    close(one)
    assert other.receive() == [0, 1, 2]
    with pytest.raises(ChannelClosed):
        other.receive()


def test_the_end_of_the_stream_stays_the_end(ends):
    one, other = ends
    close(one)
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            other.receive()


@pytest.mark.parametrize("cut", [1, 7, 8, 9, -1])
def test_half_a_message_of_a_closed_end_is_dropped(ends, cut):
    one, other = ends
    os.write(one.write_fd, frame("whole") + frame("half")[:cut])
    close(one)
    assert receive_all(other) == ["whole"]


def test_sending_to_a_closed_end_says_so(ends):
    one, other = ends
    close(other)
    with pytest.raises(ChannelClosed):
        one.send("anybody there?")


def test_flushing_to_an_end_that_closed_meanwhile_says_so(ends):
    one, other = ends
    one.send(bytes(8 * MIB))
    close(other)
    with pytest.raises(ChannelClosed):
        one.flush()


def test_closing_gives_back_the_descriptors():
    before = set(os.listdir("/proc/self/fd"))
    for make in (over_a_socketpair, over_two_pipes):
        for end in make():
            end.close()
    assert set(os.listdir("/proc/self/fd")) == before
