"""Every exception this library raises.

* MinitrainError
  - TrainingFailedError           fit() ended without a result
    + WorkerGroupError            ... because of the workers
    + ControllerError             ... because of the driver
    + PreemptionError             (also a SystemExit) ... because the machine is taken away
  - WorkerDiedError               a worker process ended without a word
    + AgentDiedError              ... because the agent it ran under did
  - HostLostError                 a host, or the way to it, was lost
  - RemoteError                   stands for a worker's exception that could not be unpickled
  - LaunchError                   an agent or a worker could not be started
    + RendezvousTimeoutError      ... or did not join in time
    + HostError                   ... because of one host, in that host's own words
  - CheckpointError               a checkpoint could not be written, found or read
    + CheckpointCorruptError
    + OutOfSpaceError             ... because the storage is full
  - DataError                     a dataset could not be read, or a step of it failed
    + DataPathError               (also a FileNotFoundError) there is nothing at a path
    + DataFileError               a file is not what it should be
    + SchemaMismatchError         two files, or two datasets, have different columns
    + ColumnError                 (also a KeyError) there is no such column
    + TransformError              the user's function raised, or returned something else
  - HangError                     a rank went silent
  - CollectiveTimeoutError        some ranks did not reach a report or a barrier
  - ReportMismatchError           ranks reported different numbers of times
  - ConfigurationError            (also a ValueError) refused before any process starts
  - NotInTrainingError            (also a RuntimeError) report() outside a train function
"""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "AgentDiedError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CollectiveTimeoutError",
    "ColumnError",
    "ConfigurationError",
    "ControllerError",
    "DataError",
    "DataFileError",
    "DataPathError",
    "HangError",
    "HostError",
    "HostLostError",
    "LaunchError",
    "MinitrainError",
    "NotInTrainingError",
    "OomEvidence",
    "OutOfSpaceError",
    "PreemptionError",
    "RemoteError",
    "RendezvousTimeoutError",
    "ReportMismatchError",
    "SchemaMismatchError",
    "TrainingFailedError",
    "TransformError",
    "WorkerDiedError",
    "WorkerFailure",
    "WorkerGroupError",
]

MAX_TRACEBACK_CHARS = 8_000
"""A longer traceback is cut in the middle: its head and its end say most."""


class MinitrainError(Exception):
    """Base class of every error raised by minitrain itself."""


class ConfigurationError(MinitrainError, ValueError):
    """A setting is wrong; raised before any process starts."""


class DataError(MinitrainError):
    """A dataset could not be read, or a step of it failed."""


class DataPathError(DataError, FileNotFoundError):
    """There is no file where a dataset should be."""


class DataFileError(DataError):
    """A file of a dataset is not what it should be; the message names it, and the place in it."""


class SchemaMismatchError(DataError):
    """Files, or datasets, that should have the same columns do not."""


class ColumnError(DataError, KeyError):
    """There is no such column.

    Args:
        name: The column that was asked for.
        columns: Those there are.
        where: What asked for it.
    """

    def __init__(self, name: str, columns: Iterable[str], where: str) -> None:
        super().__init__(name, tuple(columns), where)

    def __str__(self) -> str:
        name, columns, where = self.args
        near = difflib.get_close_matches(str(name), columns, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        return f"{where}: there is no column {name!r}; {hint or f'there are {list(columns)}'}"


class TransformError(DataError):
    """A function given to a dataset raised, or returned something that is no batch or row."""


class NotInTrainingError(MinitrainError, RuntimeError):
    """A function for train functions was called outside one."""


class RemoteError(MinitrainError):
    """Stands for an exception of a worker that could not be pickled or unpickled.

    Attributes:
        type_name: Qualified name of the original exception's class.
        message: What ``str()`` gave for the original.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


def describe_exit(exitcode: int) -> str:
    """Return a process's end in words; a negative code is a signal, as in :mod:`subprocess`."""
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        return f"was killed by signal {-exitcode}"
    hints = {
        "SIGKILL": " (often the out-of-memory killer)",
        "SIGSEGV": " (a crash in native code)",
        "SIGABRT": " (native code gave up; see the end of its log)",
        "SIGBUS": " (often /dev/shm or the disk is full)",
    }
    return f"was killed by {name}{hints.get(name, '')}"


@dataclass(frozen=True, slots=True)
class OomEvidence:
    """What the kernel says of the out-of-memory killer.

    Attributes:
        source: Whose counter it is.
        kills: How many it has counted since the attempt began.
        limit_bytes: What the memory of the cgroup is limited to; None if it is not.
        whole_machine: Whether it also counts kills that are none of the run's business.
    """

    source: str
    kills: int
    limit_bytes: int | None = None
    whole_machine: bool = False

    def __str__(self) -> str:
        count = f"{self.kills or 'no'} kill{'' if self.kills == 1 else 's'}"
        where = " on the whole machine" if self.whole_machine else ""
        text = f"{self.source} counted {count}{where} since the attempt began"
        if self.limit_bytes is not None:
            text += f", limit {_mib(self.limit_bytes)}"
        return text


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"


class WorkerDiedError(MinitrainError):
    """A process ended without returning from the train function and without an exception.

    Attributes:
        exitcode: The exit code, negative for a signal.
        peak_bytes: The most memory it ever used, where the kernel said so.
        oom: What the kernel's counters say, where SIGKILL ended it.
    """

    def __init__(
        self, exitcode: int, peak_bytes: int | None = None, oom: OomEvidence | None = None
    ) -> None:
        super().__init__(exitcode, peak_bytes, oom)
        self.exitcode = exitcode
        self.peak_bytes = peak_bytes
        self.oom = oom

    def __str__(self) -> str:
        text = f"the process {self._describe_end()}"
        if self.exitcode == 0:
            text += " before the train function returned"
        if self.peak_bytes:
            text += f"; its peak memory was {_mib(self.peak_bytes)}"
        return text

    def _describe_end(self) -> str:
        if self.oom is None:
            return describe_exit(self.exitcode)
        if self.oom.kills:
            was = "was probably" if self.oom.whole_machine else "was"
            return f"{was} killed by the out-of-memory killer: {self.oom}"
        return f"was killed by SIGKILL, but not by the out-of-memory killer: {self.oom}"


class AgentDiedError(WorkerDiedError):
    """The agent that workers ran under ended, and they with it."""

    def __str__(self) -> str:
        return f"the agent it ran under {describe_exit(self.exitcode)}, and its workers with it"


class HostLostError(MinitrainError):
    """A host, or the way to it, was lost while workers trained on it.

    Attributes:
        host: Its name, as it was given.
        why: What was seen of that.
    """

    def __init__(self, host: str, why: str) -> None:
        super().__init__(host, why)
        self.host = host
        self.why = why

    def __str__(self) -> str:
        return f"{self.host} is lost: {self.why}"


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """How one worker failed, as data: the exception itself may not survive pickling.

    Attributes:
        rank: World rank.
        hostname: The host it ran on.
        pid: Its process id there.
        cause: The worker's own exception, or what stands for it.
        traceback: Its traceback as text, the user's frames only; without one, the end of its log.
        log_path: The file with everything the worker printed.
        time_s: When it happened, in seconds on the host's monotonic clock.
    """

    rank: int
    hostname: str
    pid: int
    cause: BaseException
    traceback: str
    log_path: str
    time_s: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        where = f"rank {self.rank} on {self.hostname}, pid {self.pid}"
        return f"{where}: {_in_one_line(self.cause)}"


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, WorkerDiedError | RemoteError):
        return str(error)
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class TrainingFailedError(MinitrainError):
    """fit() ended without a result; ``__cause__`` is the exception behind it."""


class WorkerGroupError(TrainingFailedError):
    """One or more workers raised, crashed or went silent.

    The message shows the failure that happened first, with its traceback; ranks that failed in
    the same way are named with it, and others, usually peers that noticed, get one line each.

    Attributes:
        failures: Every failed worker, the likely cause first.
        advice: What the user can do, one sentence.
    """

    def __init__(self, failures: Sequence[WorkerFailure], advice: str = "") -> None:
        super().__init__(tuple(failures), advice)
        self.failures = tuple(failures)
        self.advice = advice

    @property
    def worker_failures(self) -> dict[int, BaseException]:
        """The exception of every failed rank, as ray.train spells it."""
        return {failure.rank: failure.cause for failure in self.failures}

    def __str__(self) -> str:
        (first, *same), *others = _groups(self.failures)
        lines = [f"Training failed: {first}"]
        if same:
            ranks = ", ".join(str(rank) for rank in sorted(failure.rank for failure in same))
            lines.append(f"  the same error on rank{'s' if len(same) > 1 else ''} {ranks}")
        lines.append(f"  full output: {first.log_path}")
        if first.traceback:
            lines += ["", _shortened(first.traceback.rstrip()), ""]
        for leader, *rest in others:
            ranks = ", ".join(str(failure.rank) for failure in rest)
            more = f" (also rank {ranks})" if rest else ""
            lines.append(f"  afterwards, {leader}{more}")
        if self.advice:
            lines.append(self.advice)
        return "\n".join(lines)


def _groups(failures: Sequence[WorkerFailure]) -> list[list[WorkerFailure]]:
    """Group failures that say the same but for numbers and addresses, in order of appearance."""
    groups: dict[str, list[WorkerFailure]] = {}
    for failure in failures:
        text = f"{_in_one_line(failure.cause)}\n{failure.traceback}"
        key = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", text)
        groups.setdefault(key, []).append(failure)
    return list(groups.values())


def _shortened(text: str) -> str:
    if len(text) <= MAX_TRACEBACK_CHARS:
        return text
    half = MAX_TRACEBACK_CHARS // 2
    return f"{text[:half]}\n  ... cut here; the log has it whole ...\n{text[-half:]}"


class ControllerError(TrainingFailedError):
    """The driver's side failed, a callback for one; ``__cause__`` is the original exception."""


class PreemptionError(TrainingFailedError, SystemExit):
    """The machine is being taken away: SIGTERM came, from Slurm, Kubernetes or a spot instance.

    Where nobody catches it, the driver ends with exit status 75, which ``sysexits.h`` calls a
    temporary failure, and without a traceback: start it again to go on from the newest checkpoint.

    Attributes:
        preemption_info: The :class:`minitrain.PreemptionInfo` that workers were given.
        drain_timed_out: Whether workers were still training when the grace period was over.
        path: The run's directory, for ``restore``.
        code: The exit status.
    """

    EXIT_STATUS = 75

    def __init__(
        self,
        preemption_info: object,
        drain_timed_out: bool = False,  # noqa: FBT001, FBT002 - as in ray.train
        path: str = "",
    ) -> None:
        super().__init__(preemption_info, drain_timed_out, path)
        self.preemption_info = preemption_info
        self.drain_timed_out = drain_timed_out
        self.path = path
        self.code = self.EXIT_STATUS

    def __str__(self) -> str:
        hosts = getattr(self.preemption_info, "preempted_node_to_ranks", {})
        text = f"the run was preempted: SIGTERM came on {', '.join(hosts)}"
        text = text if hosts else "the run was preempted"
        if self.drain_timed_out:
            text += "; workers were still training when the grace period was over"
        return f"{text}. To go on: Trainer.restore({self.path!r})" if self.path else text


class LaunchError(MinitrainError):
    """An agent or a worker could not be started."""


class RendezvousTimeoutError(LaunchError):
    """Not every worker joined in time.

    Attributes:
        missing: Those that did not.
        timeout_s: How long they had.
        setting: The name of what sets it.
    """

    def __init__(self, missing: Sequence[str], timeout_s: float, setting: str) -> None:
        super().__init__(tuple(missing), timeout_s, setting)
        self.missing = tuple(missing)
        self.timeout_s = timeout_s
        self.setting = setting

    def __str__(self) -> str:
        names = ", ".join(self.missing)
        return f"still waiting for {names} after {self.timeout_s:g} s ({self.setting} sets it)"


class HostError(LaunchError):
    """A host could not be reached, is not fit to train on, or was lost while it started.

    Attributes:
        host: Its name, as it was given.
        problem: What is the matter with it.
        words: What was said about it: the end of the transport's or the host's own error output.
        advice: What to do.
    """

    def __init__(self, host: str, problem: str, words: str = "", advice: str = "") -> None:
        super().__init__(host, problem, words, advice)
        self.host = host
        self.problem = problem
        self.words = words
        self.advice = advice

    def __str__(self) -> str:
        words = f": {self.words.rstrip('.')}" if self.words else ""
        return f"{self.host} {self.problem}{words}. {self.advice}".rstrip()


class CheckpointError(MinitrainError):
    """A checkpoint could not be written, found or read."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint is incomplete or fails its checksum."""


class HangError(MinitrainError):
    """A rank has said nothing for too long.

    Attributes:
        timeout_s: How long it had (``FailureConfig(hang_timeout_s)``).
        waiting: The ranks that wait for it.
        why: What was seen of it, such as its being stopped.
    """

    def __init__(self, timeout_s: float, waiting: Sequence[int] = (), why: str = "") -> None:
        super().__init__(timeout_s, tuple(waiting), why)
        self.timeout_s = timeout_s
        self.waiting = tuple(waiting)
        self.why = why

    def __str__(self) -> str:
        text = f"has not reported for {self.timeout_s:g} s (hang_timeout_s)"
        if self.why:
            text += f"; {self.why}"
        if self.waiting:
            ranks = ", ".join(map(str, self.waiting))
            text += f"; rank {ranks} wait{'s' if len(self.waiting) == 1 else ''} for it"
        return text


class OutOfSpaceError(CheckpointError):
    """A checkpoint does not fit on the storage; what it had written of it is deleted.

    Attributes:
        path: Where it was to be written.
        needed_bytes: The size of the files that one worker was writing.
        free_bytes: How much was free, where the storage says so.
    """

    def __init__(self, path: str, needed_bytes: int, free_bytes: int | None = None) -> None:
        super().__init__(path, needed_bytes, free_bytes)
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes

    def __str__(self) -> str:
        free = "the storage is full"
        if self.free_bytes is not None:
            free = f"{self.free_bytes:,} bytes are free there"
        return (
            f"{self.path}: the checkpoint's files need {self.needed_bytes:,} bytes, and {free}; "
            "older checkpoints are untouched. Free some space, or keep fewer checkpoints "
            "(CheckpointConfig(num_to_keep=...))"
        )


class CollectiveTimeoutError(MinitrainError):
    """Some ranks did not reach a call that all ranks must make.

    Attributes:
        operation: The call the others wait in.
        missing_ranks: Those that did not arrive.
        timeout_s: How long the others waited.
    """

    def __init__(self, operation: str, missing_ranks: Sequence[int], timeout_s: float) -> None:
        super().__init__(operation, tuple(missing_ranks), timeout_s)
        self.operation = operation
        self.missing_ranks = tuple(missing_ranks)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        ranks = ", ".join(map(str, self.missing_ranks))
        who = f"rank {ranks} did not" if ranks else "not every rank did"
        return (
            f"{self.operation}: {who} arrive within {self.timeout_s:g} s; every "
            "rank must make this call equally often (MINITRAIN_COLLECTIVE_TIMEOUT_S sets the wait)"
        )


class ReportMismatchError(MinitrainError):
    """Some ranks reported, or entered a barrier, more often than others that have returned.

    Attributes:
        operation: The call in question.
        counts: How often each rank made it.
    """

    def __init__(self, operation: str, counts: Mapping[int, int]) -> None:
        super().__init__(operation, dict(counts))
        self.operation = operation
        self.counts = dict(counts)

    def __str__(self) -> str:
        by_count: dict[int, list[int]] = {}
        for rank, count in sorted(self.counts.items()):
            by_count.setdefault(count, []).append(rank)
        parts = [
            f"rank {', '.join(map(str, ranks))} {count} time{'' if count == 1 else 's'}"
            for count, ranks in sorted(by_count.items(), reverse=True)
        ]
        return (
            f"{self.operation} must be called equally often by every rank, but was called by "
            f"{' and by '.join(parts)}; call it outside `if rank == 0:`"
        )
