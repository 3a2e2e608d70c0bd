"""What an iteration has running: pools of processes; and where its time went."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minitrain._os.forks import unlock_in_forks

if TYPE_CHECKING:
    from minitrain.data.plans.functions import FunctionStep, UserFunction
    from minitrain.data.processes.pool import Pool

__all__ = ["Meter", "Runtime", "current_runtime"]


@dataclass
class Spent:
    """What one part of a plan took.

    Attributes:
        seconds: Time in it, over all threads.
        rows: Rows that came out of it.
        size_bytes: Their size.
    """

    seconds: float = 0.0
    rows: int = 0
    size_bytes: int = 0


@dataclass(eq=False)
class Meter:
    """Adds up what each part of a plan took; several threads may add at a time."""

    parts: dict[str, Spent] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        unlock_in_forks(self)

    def add(self, part: str, seconds: float, rows: int = 0, size_bytes: int = 0) -> None:
        """Count something that was done."""
        with self._lock:
            spent = self.parts.setdefault(part, Spent())
            spent.seconds += seconds
            spent.rows += rows
            spent.size_bytes += size_bytes

    @contextmanager
    def time(self, part: str, rows: int = 0) -> Iterator[None]:
        """Count the time of a ``with`` block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - start, rows)

    def describe(self) -> str:
        """Return a table: what took how long."""
        if not self.parts:
            return "nothing was read yet"
        width = max(len(part) for part in self.parts)
        lines = [f"{'':{width}} {'seconds':>9} {'rows':>12} {'MiB':>9}"]
        for part, spent in self.parts.items():
            mib = f"{spent.size_bytes / 2**20:.1f}" if spent.size_bytes else ""
            rows = f"{spent.rows:,}" if spent.rows else ""
            lines.append(f"{part:{width}} {spent.seconds:9.3f} {rows:>12} {mib:>9}".rstrip())
        return "\n".join(lines)


class Runtime:
    """The processes that run functions with ``concurrency=``, for as long as an iterator lives.

    Args:
        sharers: So many processes of this host run the same plan, and divide ``concurrency``.
    """

    def __init__(self, sharers: int = 1) -> None:
        self.meter = Meter()
        self.sharers = sharers
        self._pools: dict[tuple[UserFunction, bool, bool], Pool] = {}
        self._lock = threading.Lock()
        unlock_in_forks(self)

    def pool(self, step: FunctionStep, *, reads: bool) -> Pool:
        """Return the processes for a step; they are started when they are first needed.

        Each part of a union has a step of its own for the same function: they share them.

        Args:
            step: The step.
            reads: Whether they read what they work on.
        """
        from minitrain.data.processes.pool import Pool

        key = (step.function, step.keeps_rows, reads)
        with self._lock:
            found = self._pools.get(key)
            if found is None:
                processes = -(-step.function.concurrency // self.sharers)
                found = Pool(step.pickled(reads=reads), processes, step.describe())
                self._pools[key] = found
            return found

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """Be the runtime of what this thread reads."""
        before = getattr(_here, "runtime", None)
        _here.runtime = self
        try:
            yield
        finally:
            _here.runtime = before

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()


_here = threading.local()


def current_runtime() -> Runtime:
    """Return the runtime of what this thread reads."""
    runtime: Runtime | None = getattr(_here, "runtime", None)
    assert runtime is not None, "blocks with functions are read inside Runtime.in_this_thread()"
    return runtime
