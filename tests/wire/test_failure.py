"""A worker's exception as data: the user's frames, and nothing that cannot travel."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from pathlib import Path

import pytest

import minitrain
from minitrain._driver.traffic import should_stop
from minitrain._wire.failure import describe, user_traceback

LIBRARY = str(Path(minitrain.__file__).parent)


class Custom(Exception):
    class Nested(Exception):
        pass


def caught(function, *args):
    """Return what a function raises."""
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def through_the_library(function):
    """Call a function from within this library, as a worker calls the user's."""
    return should_stop(lambda trial_id, row: function(), "run", {})


def fails():
    raise ValueError("no")


# ------------------------------------------------------------------ the frames
def test_frames_of_the_library_are_left_out_and_the_users_kept():
    text = user_traceback(caught(through_the_library, fails))
    assert LIBRARY not in text
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("ValueError: no\n")
    assert 'raise ValueError("no")' in text
    assert "in through_the_library" in text
    assert text.index("in through_the_library") < text.index("in fails")


def test_an_error_of_the_library_alone_shows_its_frames():
    error = caught(should_stop, {"loss": 1}, "run", {})
    error = error.with_traceback(error.__traceback__.tb_next)
    text = user_traceback(error)
    assert f'File "{LIBRARY}' in text
    assert "the metric 'loss' was not reported" in text


def test_a_users_folder_whose_name_begins_like_the_librarys_is_the_users():
    namespace = {}
    exec(compile("def train():\n    1 / 0\n", f"{LIBRARY}_examples/train.py", "exec"), namespace)
    text = user_traceback(caught(through_the_library, namespace["train"]))
    assert f'File "{LIBRARY}_examples/train.py", line 2, in train' in text


def test_the_cause_is_shown_without_the_librarys_frames():
    def wraps():
        try:
            through_the_library(fails)
        except ValueError as error:
            raise RuntimeError("training failed") from error

    text = user_traceback(caught(through_the_library, wraps))
    assert LIBRARY not in text
    assert text.index("ValueError: no") < text.index("RuntimeError: training failed")
    assert "direct cause" in text


def test_an_error_while_handling_another_shows_both():
    def cleans_up():
        try:
            through_the_library(fails)
        finally:
            raise KeyError("while cleaning up")

    text = user_traceback(caught(through_the_library, cleans_up))
    assert LIBRARY not in text
    assert "During handling" in text
    assert "ValueError: no" in text
    assert text.endswith("KeyError: 'while cleaning up'\n")


def test_a_context_that_the_user_suppressed_stays_so():
    def hides():
        try:
            fails()
        except ValueError:
            raise RuntimeError("instead") from None

    assert "ValueError" not in user_traceback(caught(hides))


def test_every_error_of_a_group_is_shown_without_the_librarys_frames():
    def group():
        errors = [caught(through_the_library, fails), caught(through_the_library, lambda: 1 / 0)]
        raise ExceptionGroup("several", [errors[0], ExceptionGroup("inner", [errors[1]])])

    text = user_traceback(caught(through_the_library, group))
    assert LIBRARY not in text
    assert "ValueError: no" in text
    assert "ZeroDivisionError" in text
    assert "inner (1 sub-exception)" in text


def test_notes_are_shown():
    error = caught(fails)
    error.add_note("in batch 17")
    assert "in batch 17" in user_traceback(error)


def test_an_error_that_was_never_raised_has_no_frames():
    assert user_traceback(ValueError("no")) == "ValueError: no\n"


def test_a_recursion_is_shortened():
    def recurse():
        recurse()

    text = user_traceback(caught(recurse))
    assert "Previous line repeated" in text
    assert len(text.splitlines()) < 50


# ------------------------------------------------------------------ the message
def test_who_when_and_where_are_told():
    before_s = time.monotonic()
    raised = describe(caught(fails))
    assert raised.pid == os.getpid()
    assert raised.hostname == socket.gethostname()
    assert before_s <= raised.time_s <= time.monotonic()
    assert raised.message == "no"
    assert raised.traceback == user_traceback(caught(fails))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError(), "ValueError"),
        (SystemExit(3), "SystemExit"),
        (Custom(), f"{__name__}.Custom"),
        (Custom.Nested(), f"{__name__}.Custom.Nested"),
        (socket.gaierror(), "socket.gaierror"),
    ],
)
def test_the_class_is_named_in_full_but_for_builtin_ones(error, name):
    assert describe(error).type_name == name


def test_the_exception_travels_with_its_type():
    assert repr(pickle.loads(describe(ValueError("no", 3)).exception)) == "ValueError('no', 3)"


def test_what_cannot_be_pickled_arrives_as_text():
    raised = describe(ValueError(threading.Lock()))
    assert raised.exception is None
    assert "lock" in raised.message
    assert pickle.loads(pickle.dumps(raised)) == raised


class Unspeakable(Exception):
    def __str__(self):
        raise TypeError("no text")


def test_an_error_that_cannot_be_told_arrives_all_the_same():
    raised = describe(caught(lambda: (_ for _ in ()).throw(Unspeakable())))
    assert raised.type_name == f"{__name__}.Unspeakable"
    assert "Unspeakable" in raised.traceback


def test_the_message_itself_survives_pickling():
    raised = describe(caught(fails))
    assert pickle.loads(pickle.dumps(raised)) == raised
