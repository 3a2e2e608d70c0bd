"""Every exception crosses a process boundary and says what happened, where, and what to do."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import cloudpickle
import pytest

from minitrain import exceptions as exc

FAILURE = exc.WorkerFailure(3, "node-a", 42, ValueError("no"), "Traceback ...", "/logs/3.log")
SAMPLES = {
    "AgentDiedError": exc.AgentDiedError(-9),
    "ColumnError": exc.ColumnError("labl", ["label", "id"], "select_columns"),
    "CollectiveTimeoutError": exc.CollectiveTimeoutError("barrier()", [1, 2], 3.0),
    "HangError": exc.HangError(3.0, [0, 2], "it was stopped (SIGSTOP)"),
    "HostError": exc.HostError("node2", "cannot be reached", "ssh: no", "Try: ssh node2 true"),
    "HostLostError": exc.HostLostError("node2", "it has said nothing for 20 s"),
    "PreemptionError": exc.PreemptionError(None, True, "/runs/a"),
    "OutOfSpaceError": exc.OutOfSpaceError("/run/checkpoint_000003", 4096, 1024),
    "RemoteError": exc.RemoteError("pkg.Error", "no"),
    "RendezvousTimeoutError": exc.RendezvousTimeoutError(["rank 1"], 3.0, "MINITRAIN_X"),
    "ReportMismatchError": exc.ReportMismatchError("report()", {0: 1, 1: 2}),
    "WorkerDiedError": exc.WorkerDiedError(-9, 1 << 30, exc.OomEvidence("memory.events", 1)),
    "WorkerGroupError": exc.WorkerGroupError([FAILURE], "Try again."),
}
CLASSES = [cls for _, cls in inspect.getmembers(exc, inspect.isclass) if issubclass(cls, Exception)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_crosses_a_process_boundary_intact(cls):
    error = copy.copy(SAMPLES.get(cls.__name__) or cls("boom"))
    error.add_note("rank 3")
    for again in (pickle.loads(pickle.dumps(error)), cloudpickle.loads(cloudpickle.dumps(error))):
        assert type(again) is cls
        assert str(again) == str(error)
        assert repr(again) == repr(error)
        assert vars(again).keys() == vars(error).keys()
        assert again.__notes__ == ["rank 3"]


def tree():
    """Return the tree that the module's docstring draws: every class with its parent."""
    parents, drawn = [], {}
    for line in exc.__doc__.splitlines():
        match = re.match(r"( *)[*+-] (\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 2
            drawn[match[2]] = parents[depth - 1] if depth else "Exception"
            parents[depth:] = [match[2]]
    return drawn


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    assert tree() == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (exc.ConfigurationError, ValueError),
        (exc.NotInTrainingError, RuntimeError),
    ],
)
def test_what_callers_may_catch_besides(cls, base):
    assert issubclass(cls, base)


def test_every_public_class_is_exported():
    public = {
        name
        for name, value in vars(exc).items()
        if inspect.isclass(value) and value.__module__ == exc.__name__
    }
    assert public == set(exc.__all__)


def test_the_first_failure_leads_the_message():
    late = exc.WorkerFailure(0, "node-b", 7, exc.WorkerDiedError(-6), "", "/logs/0.log")
    lines = str(exc.WorkerGroupError([FAILURE, late], "Try again.")).splitlines()
    assert lines[0] == "Training failed: rank 3 on node-a, pid 42: ValueError: no"
    assert lines[1] == "  full output: /logs/3.log"
    assert "Traceback ..." in lines
    assert lines[-2].startswith("  afterwards, rank 0 on node-b, pid 7: the process was killed by")
    assert lines[-1] == "Try again."


def test_worker_failures_are_by_rank():
    assert exc.WorkerGroupError([FAILURE]).worker_failures == {3: FAILURE.cause}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            exc.CollectiveTimeoutError("barrier()", [1, 3], 30),
            "barrier(): rank 1, 3 did not arrive within 30 s",
        ),
        (
            exc.CollectiveTimeoutError("report()", [1], 0.5),
            "MINITRAIN_COLLECTIVE_TIMEOUT_S sets the wait",
        ),
        (
            exc.RendezvousTimeoutError(["rank 1", "rank 2"], 120, "MINITRAIN_START_TIMEOUT_S"),
            "still waiting for rank 1, rank 2 after 120 s (MINITRAIN_START_TIMEOUT_S sets it)",
        ),
        (
            exc.ReportMismatchError("report()", {0: 3, 1: 2, 2: 2}),
            "called by rank 0 3 times and by rank 1, 2 2 times",
        ),
        (exc.ReportMismatchError("report()", {0: 1, 1: 0}), "rank 0 1 time and by rank 1 0 times"),
        (exc.ReportMismatchError("report()", {0: 1, 1: 0}), "outside `if rank == 0:`"),
        (exc.RemoteError("pkg.Error", "no"), "pkg.Error: no"),
        (exc.AgentDiedError(-9), "the agent it ran under was killed by SIGKILL"),
        (exc.WorkerDiedError(3), "the process exited with code 3"),
    ],
)
def test_the_message_says_what_happened_and_what_to_do(error, expected):
    assert expected in str(error)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (None, "was killed by SIGKILL (often the out-of-memory killer); its peak"),
        (
            exc.OomEvidence("memory.oom_control of /x", 1, 200 << 20),
            (
                "was killed by the out-of-memory killer: memory.oom_control of /x counted 1 kill "
                "since the attempt began, limit 200 MiB; its peak memory was 190 MiB"
            ),
        ),
        (
            exc.OomEvidence("memory.events of /x", 0),
            (
                "was killed by SIGKILL, but not by the out-of-memory killer: memory.events of /x "
                "counted no kills since the attempt began; its peak"
            ),
        ),
        (
            exc.OomEvidence("/proc/vmstat", 2, whole_machine=True),
            (
                "was probably killed by the out-of-memory killer: /proc/vmstat counted 2 kills "
                "on the whole machine since the attempt began; its peak"
            ),
        ),
    ],
    ids=["unknown", "was it", "was not", "of the machine"],
)
def test_the_out_of_memory_killer_is_blamed_as_far_as_it_is_proved(evidence, expected):
    assert expected in str(exc.WorkerDiedError(-9, 190 << 20, evidence))


def test_who_did_not_arrive_is_left_out_where_nobody_knows():
    assert "rank  did not" not in str(exc.CollectiveTimeoutError("report", (), 30))


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-9, "was killed by SIGKILL (often the out-of-memory killer)"),
        (-11, "was killed by SIGSEGV (a crash in native code)"),
        (-6, "was killed by SIGABRT (native code gave up; see the end of its log)"),
        (-7, "was killed by SIGBUS (often /dev/shm or the disk is full)"),
        (-2, "was killed by SIGINT"),
        (-99, "was killed by signal 99"),
    ],
)
def test_an_end_in_words(exitcode, words):
    assert exc.describe_exit(exitcode) == words
