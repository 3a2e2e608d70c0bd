"""Calls and answers about files as bytes: whole, in order, however the bytes arrive."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain._storage.file_calls import Frames, answer, call, failure, value_of

ARGUMENTS = st.lists(st.one_of(st.text(), st.integers(), st.booleans(), st.lists(st.text())))
CALLS = st.lists(st.tuples(st.text(), ARGUMENTS, st.binary(max_size=40)), max_size=6)


@given(calls=CALLS, cuts=st.lists(st.integers(0, 400)))
def test_calls_arrive_as_they_were_sent_wherever_the_bytes_are_cut(calls, cuts):
    sent = b"".join(call(name, *rest, body=body) + body for name, rest, body in calls)
    edges = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    frames = Frames()
    found, body = [], b""
    for begin, end in itertools.pairwise(edges):
        for part in frames.feed(sent[begin:end]):
            body += part.body
            if part.is_last:
                found.append((part.head[0], part.head[1:], body))
                body = b""
    assert found == calls
    assert body == b""


@pytest.mark.parametrize(
    ("error", "number", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, "No space left"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/run/a"), errno.ENOENT, "'/run/a'"),
        (ValueError("embedded null byte"), errno.EIO, "ValueError: embedded null byte"),
        (OSError("without a number"), errno.EIO, "OSError: without a number"),
    ],
)
def test_an_error_keeps_its_number_and_its_text(error, number, text):
    (part,) = Frames().feed(failure(error))
    with pytest.raises(OSError, match=text) as caught:
        value_of(part.head)
    assert caught.value.errno == number
    if isinstance(error, OSError):
        assert type(caught.value) is type(error)


def test_a_value_is_the_value():
    (part,) = Frames().feed(answer([1, "two", None]))
    assert value_of(part.head) == [1, "two", None]
