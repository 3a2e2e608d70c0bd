"""Messages arrive as they were sent; what comes from the store makes nothing but these."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._launched.codec import decode, encode
from minitrain._launched.letters import Ended, Look, Present, Refused, RunTold
from minitrain._storage.disk import FileEntry
from minitrain._wire.messages import (
    Answer,
    CheckpointLost,
    CollectiveEntered,
    NameAsked,
    Raised,
    Reported,
    Uploaded,
)
from minitrain.exceptions import (
    CheckpointError,
    CollectiveTimeoutError,
    ConfigurationError,
    OutOfSpaceError,
    RemoteError,
)

PRESENT = Present("a", "10.0.0.1", 7, 12, sees=True)
FILES = (FileEntry("x/y", 3, 7), FileEntry("z", 0, None))
LAYOUTS = {"train": "00ff"}
POSITIONS = {"train": {"epoch": 1, "remaining": [[0, 2**62], [[[2, 4]], "ff", 1, 2]], "tail": []}}
MESSAGES = [
    Look("/x"),
    PRESENT,
    RunTold(
        "n", "id", "/r", "/r", True, False, 2, None, 3, 1.5, (PRESENT, PRESENT), POSITIONS, LAYOUTS
    ),
    Ended("failed", "why", {"loss": 1.0, "nested": {"!": "Ended"}}),
    NameAsked(1, 0, "name", in_place=True),
    Reported(3, {"loss": 0.5, "!": [1, None]}, {"a": 1}, "c", FILES, question=4),
    Reported(4, {}, positions=POSITIONS),
    Uploaded(1, FILES),
    CollectiveEntered(4, "barrier", b"\x00\xff"),
    Answer(1, [("checkpoint_000000", {"loss": 1})]),
    Answer(2, b"{}"),
    Raised("ValueError", "text", "Traceback", None, 1, "a", 2.0),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_arrive_as_they_were_sent(message):
    data = encode((3, message))
    json.loads(data)
    assert decode(data) == (3, message)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.campaign
@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(), plain))
def test_metrics_arrive_as_they_were_reported(metrics):
    assert decode(encode(Reported(0, metrics))).metrics == metrics


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("no"),
        OutOfSpaceError("/x", 7, None),
        CollectiveTimeoutError("report", (1, 2), 3.0),
        ConfigurationError("no"),
        RuntimeError("no"),
        ValueError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_arrive_with_their_class_and_text(error):
    for message in (Answer(1, None, error), CheckpointLost(1, error), Refused(error)):
        arrived = decode(encode(message)).error
        assert type(arrived) is type(error)
        assert str(arrived) == str(error)


def test_a_strangers_error_arrives_described():
    class OwnError(Exception):
        pass

    arrived = decode(encode(Answer(1, None, OwnError("why"))))
    assert isinstance(arrived.error, RemoteError)
    assert str(arrived.error).endswith("OwnError: why")


@pytest.mark.parametrize(
    "data",
    [b'{"!":"Popen","args":["true"]}', b'{"!":"error"}', b"{}", b"x", b'{"!":"Look","nope":1}'],
)
def test_nothing_else_is_made(data):
    with pytest.raises(ValueError):  # noqa: PT011 - json's, too
        decode(data)


def test_only_messages_travel():
    with pytest.raises(AssertionError, match="object does not travel"):
        encode(Answer(1, object()))
