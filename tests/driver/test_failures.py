"""From what happened to workers to one error that a person can act on."""

from __future__ import annotations

import pickle
import threading

import pytest

from minitrain._driver.failures import advice, end_of_log, exception_of, group_error, in_order
from minitrain._wire.failure import describe
from minitrain.exceptions import (
    AgentDiedError,
    OomEvidence,
    RemoteError,
    RendezvousTimeoutError,
    ReportMismatchError,
    WorkerDiedError,
    WorkerFailure,
    WorkerGroupError,
)


class NeedsTwo(Exception):
    """Pickles, but cannot be rebuilt: its arguments are not its constructor's."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Plain(ValueError):
    pass


def failure(rank, cause, *, time_s=0.0, traceback="", hostname="node-a", pid=None):
    return WorkerFailure(
        rank=rank,
        hostname=hostname,
        pid=100 + rank if pid is None else pid,
        cause=cause,
        traceback=traceback,
        log_path=f"/run/logs/attempt_0/rank_{rank}.log",
        time_s=time_s,
    )


def message(*failures, attempt=0, limit=0):
    return str(group_error(failures, attempt=attempt, limit=limit))


# ------------------------------------------------------------------ the exception itself
@pytest.mark.parametrize(
    "error", [ValueError("no", 3), Plain("own class"), KeyError("key"), SystemExit(3)]
)
def test_a_workers_exception_keeps_its_type_and_arguments(error):
    restored = exception_of(describe(error))
    assert type(restored) is type(error)
    assert restored.args == error.args


def test_a_class_from_a_script_without_a_module_arrives_by_value():
    class Local(RuntimeError):
        pass

    restored = exception_of(describe(Local("from here")))
    assert type(restored).__name__ == "Local"
    assert str(restored) == "from here"


@pytest.mark.parametrize(
    ("error", "type_name", "text"),
    [
        (NeedsTwo(1, 2), "NeedsTwo", "1 and 2"),
        (ValueError(threading.Lock()), "ValueError", "lock"),
    ],
    ids=["cannot be unpickled", "cannot be pickled"],
)
def test_what_cannot_travel_is_replaced_by_its_description(error, type_name, text):
    stand_in = exception_of(describe(error))
    assert isinstance(stand_in, RemoteError)
    assert stand_in.type_name.endswith(type_name)
    assert text in str(stand_in)


def test_bytes_that_are_no_exception_are_replaced_by_the_description():
    raised = describe(ValueError("no"))
    forged = type(raised)(**{**fields(raised), "exception": pickle.dumps("not an exception")})
    assert isinstance(exception_of(forged), RemoteError)


def fields(raised):
    return {name: getattr(raised, name) for name in raised.__dataclass_fields__}


# ------------------------------------------------------------------ which failure leads
def test_failures_stand_in_order_of_time():
    late, early = failure(0, ValueError("late"), time_s=2), failure(1, ValueError("1st"), time_s=1)
    assert in_order([late, early]) == [early, late]


def test_a_process_that_a_signal_ended_comes_before_peers_that_noticed_first():
    noticed = failure(0, RuntimeError("connection closed by peer"), time_s=1)
    killed = failure(1, WorkerDiedError(-9), time_s=2)
    assert in_order([noticed, killed]) == [killed, noticed]


@pytest.mark.parametrize("exitcode", [0, 3])
def test_a_process_that_left_by_itself_stands_where_its_time_puts_it(exitcode):
    raised = failure(0, RuntimeError("no"), time_s=1)
    left = failure(1, WorkerDiedError(exitcode), time_s=2)
    assert in_order([left, raised]) == [raised, left]


def test_the_likely_cause_leads_the_message_and_is_the_cause():
    killed = failure(1, WorkerDiedError(-9), time_s=2)
    error = group_error(
        [failure(0, RuntimeError("connection closed"), time_s=1), killed], attempt=0, limit=0
    )
    assert isinstance(error, WorkerGroupError)
    assert error.__cause__ is killed.cause
    first, *rest = str(error).splitlines()
    assert first.startswith("Training failed: rank 1 on node-a, pid 101: the process was killed")
    assert any("afterwards, rank 0" in line and "connection closed" in line for line in rest)


def test_every_failed_rank_is_in_worker_failures():
    causes = {0: ValueError("a"), 3: KeyError("b")}
    error = group_error([failure(rank, one) for rank, one in causes.items()], attempt=0, limit=0)
    assert error.worker_failures == causes


# ------------------------------------------------------------------ what the message says
def test_the_message_names_rank_host_pid_log_and_the_users_frames():
    frames = 'Traceback (most recent call last):\n  File "train.py", line 3\nValueError: no'
    text = message(failure(3, ValueError("no"), traceback=frames, hostname="node-b", pid=42))
    assert text.startswith("Training failed: rank 3 on node-b, pid 42: ValueError: no\n")
    assert "/run/logs/attempt_0/rank_3.log" in text
    assert frames in text


def test_an_exception_without_a_message_is_named_by_its_type():
    assert message(failure(0, AssertionError())).splitlines()[0].endswith("pid 100: AssertionError")


def test_the_same_error_on_several_ranks_is_shown_once_with_the_ranks():
    frames = "Traceback ...\nValueError: shape mismatch"
    text = message(
        *(failure(rank, ValueError("shape mismatch"), traceback=frames) for rank in (0, 2, 3))
    )
    assert text.count(frames) == 1
    assert "the same error on ranks 2, 3" in text


def test_ranks_with_the_same_error_are_named_in_order():
    failures = [
        failure(rank, ValueError("no"), time_s=time_s) for time_s, rank in enumerate([3, 1, 2, 0])
    ]
    assert "the same error on ranks 0, 1, 2" in message(*failures)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("rank 0 of 4 timed out after 1800 s", "rank 3 of 4 timed out after 1799 s"),
        ("<Model object at 0x7f00aa10>", "<Model object at 0x7f11bb20>"),
        ("address 0xDEADBEEF", "address 0x1"),
    ],
)
def test_errors_that_differ_in_numbers_and_addresses_are_the_same(first, second):
    text = message(failure(0, ValueError(first)), failure(1, ValueError(second)))
    assert first in text
    assert second not in text
    assert "the same error on rank 1" in text


@pytest.mark.parametrize(
    "other",
    [
        failure(1, ValueError("another")),
        failure(1, KeyError("no")),
        failure(1, ValueError(), pid=7),
    ],
    ids=["text", "type", "no text"],
)
def test_errors_that_differ_otherwise_are_both_shown(other):
    text = message(failure(0, ValueError("no")), other)
    assert "the same error" not in text
    assert "afterwards, rank 1" in text


def test_later_errors_that_are_alike_share_a_line():
    text = message(
        failure(0, WorkerDiedError(-9)),
        *(failure(rank, RuntimeError(f"peer 0 left {rank}"), time_s=rank) for rank in (1, 2, 3)),
    )
    (line,) = [line for line in text.splitlines() if "afterwards" in line]
    assert "rank 1" in line
    assert "(also rank 2, 3)" in line


def test_a_long_traceback_is_cut_in_the_middle():
    text = message(failure(0, ValueError("no"), traceback="head " + "x" * 50_000 + " tail"))
    assert len(text) < 12_000
    assert "head " in text
    assert " tail" in text
    assert "cut here" in text


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [
        (-9, "was killed by SIGKILL (often the out-of-memory killer)"),
        (-11, "was killed by SIGSEGV (a crash in native code)"),
        (-6, "was killed by SIGABRT"),
        (-7, "was killed by SIGBUS"),
        (-15, "was killed by SIGTERM"),
        (-64 - 1, "was killed by signal 65"),
        (3, "exited with code 3"),
        (0, "exited with code 0 before the train function returned"),
    ],
)
def test_exit_codes_and_signals_are_told_in_words(exitcode, words):
    assert words in message(failure(0, WorkerDiedError(exitcode)))


def test_the_peak_memory_of_a_process_that_died_is_told_where_it_is_known():
    assert "peak memory was 2,048 MiB" in message(failure(0, WorkerDiedError(-9, 2 << 30)))
    assert "peak memory" not in message(failure(0, WorkerDiedError(-9)))


def test_the_end_of_an_agent_is_told_as_such():
    assert "the agent it ran under was killed by SIGKILL" in message(failure(0, AgentDiedError(-9)))


# ------------------------------------------------------------------ what to do
@pytest.mark.parametrize(
    ("cause", "attempt", "limit", "expected"),
    [
        (WorkerDiedError(-9), 0, 0, ["memory", "FailureConfig(max_failures=...)"]),
        (WorkerDiedError(-9, None, OomEvidence("x", 1)), 0, 0, ["Memory ran out", "FailureConfig"]),
        (WorkerDiedError(-9, None, OomEvidence("x", 0)), 0, 0, ["Somebody sent", "FailureConfig"]),
        (ValueError("no"), 0, 0, ["ScalingConfig(num_workers=0)", "FailureConfig"]),
        (ValueError("no"), 2, 2, ["attempt 3", "max_failures=2"]),
        (WorkerDiedError(-11), 1, 1, ["attempt 2", "max_failures=1"]),
    ],
)
def test_the_advice_fits_the_failure(cause, attempt, limit, expected):
    text = advice(cause, attempt=attempt, limit=limit)
    for part in expected:
        assert part in text


@pytest.mark.parametrize(
    "cause", [ReportMismatchError("report()", {0: 1, 1: 2}), RendezvousTimeoutError(["x"], 1, "Y")]
)
def test_errors_that_say_what_to_do_get_no_more_advice(cause):
    assert advice(cause, attempt=0, limit=0) == ""


def test_a_crash_in_native_code_is_not_sent_to_the_debugger():
    assert "num_workers=0" not in advice(WorkerDiedError(-11), attempt=0, limit=0)


# ------------------------------------------------------------------ the end of its output
def test_the_end_of_a_log_is_its_last_lines(tmp_path):
    log = tmp_path / "rank_0.log"
    log.write_text("".join(f"line {number}\n" for number in range(10_000)))
    lines = end_of_log(log).splitlines()
    assert lines[-1] == "  line 9999"
    assert 2 < len(lines) < 100


def test_a_log_may_hold_any_bytes(tmp_path):
    log = tmp_path / "rank_0.log"
    log.write_bytes(b"\xff\xfe broken \x80\nlast words")
    assert end_of_log(log).endswith("last words")


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_a_log_with_nothing_in_it_adds_nothing(tmp_path, content):
    log = tmp_path / "rank_0.log"
    if content is not None:
        log.write_bytes(content)
    assert end_of_log(log) == ""
