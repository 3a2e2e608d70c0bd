"""Processes that call a user's function on tables.

A thread of the owner stands beside each process: it starts it, hands it one table at a time, takes
the results and reaps it. Tables are mapped on both sides (:mod:`minitrain.data.processes.channel`).

A process ends with its owner, however that one ends: the kernel kills it when the thread beside it
is gone, and it ends itself when it sees the end of the socket. Neither alone would do: a process
in native code sees nothing, and a fork of the owner keeps the socket open.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from minitrain._env import THREADS_VARIABLE
from minitrain._os.processes import signal_group
from minitrain.data.processes.channel import (
    RAISED,
    SETUP,
    TABLE,
    Channel,
    HungUpError,
    Setup,
    revive,
)
from minitrain.exceptions import DataError, describe_exit

__all__ = ["Pool"]

_LEAVE_S = 2.0
"""How long an idle process has to end in good order; users' objects may have something to do."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Many processes with many threads each only get in each other's way; the user may know better."""

_no_fork = threading.Lock()
"""Held while a process is started. A fork in between, such as those of torch's data loader, would
keep open what is to tell of the new process's start and end, and be waited for instead of it."""
os.register_at_fork(
    before=_no_fork.acquire,
    after_in_parent=_no_fork.release,
    after_in_child=_no_fork.release,
)


class Pool:
    """Processes that call a function, one call at a time each.

    A process that dies is replaced when there is work for it. Printed lines go where the owner's
    go, to the same descriptors; SIGINT and SIGTERM are the owner's business.

    Args:
        function: What to call, pickled by cloudpickle: it takes a table and returns an iterator
            of tables. Each process loads it once, so that it may keep state.
        processes: How many.
        name: What the function is called, for messages.
    """

    def __init__(self, function: bytes, processes: int, name: str) -> None:
        self._processes = processes
        self._name = name
        self._function = function
        self._lock = threading.Lock()
        self._start()

    def map(
        self,
        tables: Iterable[pa.Table],
        block: str = "",
        finished: Callable[[], object] = lambda: None,
        rows_of: Callable[[pa.Table], int] = lambda table: int(table.num_rows),
    ) -> Iterator[pa.Table]:
        """Yield what the function yields for each table, in order.

        One table more than there are processes is taken in advance. Several threads may do this
        at once. What one call yields is kept until it is taken, however much it is: a call that
        had to wait for its results to be taken would keep a process from other threads.

        Args:
            tables: What to call it with.
            block: Where they are from, for messages.
            finished: Called when all that one table gave was taken: who is told of an error then
                knows which table it is about.
            rows_of: Returns how many rows the table that was just taken stands for.

        Raises:
            DataError: A process has died, the function cannot be loaded in one, or the pool is
                closed.
            Exception: What the function has raised, with the frames in its process as a note.
        """
        staff = self._own_staff()
        pending: deque[_Call] = deque()
        index = row = 0
        try:
            for table in tables:
                stop = row + rows_of(table)
                where = f"table {index} (rows {row:,} to {stop:,})"
                index, row = index + 1, stop
                pending.append(staff.submit(table, f"{where} of {block}" if block else where))
                del table  # from here on the call's
                if len(pending) > self._processes:
                    yield from pending[0].results()
                    pending.popleft()
                    finished()
            while pending:
                yield from pending[0].results()
                pending.popleft()
                finished()
        finally:
            for call in pending:
                call.is_cancelled = True

    def close(self) -> None:
        """End the processes: at once where one works, in good order where it waits.

        Who still iterates is told so by a :class:`~minitrain.exceptions.DataError`.
        """
        self._finalizer()
        self._staff.join()

    def _start(self) -> None:
        self._staff = _Staff(self._function, self._processes, self._name)
        self._finalizer = weakref.finalize(self, self._staff.dismiss)

    def _own_staff(self) -> _Staff:
        """Return those of this process: a fork has none of the threads of its parent."""
        with self._lock:
            if self._staff.owner_pid != os.getpid():
                self._start()
            return self._staff


class _Call:
    """One call of the function.

    Attributes:
        table: What with; None once it was handed over.
        where: What that is.
        is_cancelled: Whether nobody wants to know any more.
    """

    def __init__(self, table: pa.Table, where: str) -> None:
        self.table: pa.Table | None = table
        self.where = where
        self.is_cancelled = False
        self._results: queue.SimpleQueue[pa.Table | Exception | None] = queue.SimpleQueue()

    def add(self, result: pa.Table | Exception | None) -> None:
        """Add a table, or at last an error, or None."""
        if not self.is_cancelled:
            self._results.put(result)

    def results(self) -> Iterator[pa.Table]:
        """Yield the tables as they come."""
        while (result := self._results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
            del result


class _Staff:
    """The threads, and what they share. It does not know the pool, which may go before them."""

    def __init__(self, function: bytes, processes: int, name: str) -> None:
        self.owner_pid = os.getpid()
        self._function = function
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_dismissed = False
        self._busy: set[_Child] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"minitrain-pool-{index}", daemon=True)
            for index in range(processes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, table: pa.Table, where: str) -> _Call:
        """Have the function called as soon as a process is free."""
        call = _Call(table, where)
        with self._lock:
            if self._is_dismissed:
                raise self._closed()
            self._calls.put(call)
        return call

    def dismiss(self) -> None:
        """Have everything end; a copy in a fork leaves the original alone."""
        if self.owner_pid != os.getpid():
            return
        with self._lock:
            self._is_dismissed = True
            for child in self._busy:
                child.interrupt()
        for _ in self._threads:
            self._calls.put(None)

    def join(self) -> None:
        """Wait for the end of what was dismissed."""
        if self.owner_pid == os.getpid():
            for thread in self._threads:
                thread.join()

    def _closed(self) -> DataError:
        return DataError(f"{self._name}: its pool of processes was closed while rows were read")

    def _work(self) -> None:
        child = self._try_to_start()
        while (call := self._calls.get()) is not None:
            try:
                if self._is_dismissed:
                    raise self._closed()
                if not call.is_cancelled:
                    if child is None or child.has_ended():
                        self._end(child)
                        child = self._start()
                    self._run(child, call)
            except Exception as error:  # noqa: BLE001 - it is raised where results are awaited
                # In the middle of a call the process has more to say, which belongs to no other.
                self._end(child, at_once=True)
                child = None
                call.add(self._closed() if self._is_dismissed else error)
            del call
        self._end(child)

    def _try_to_start(self) -> _Child | None:
        try:
            return self._start()
        except Exception:  # noqa: BLE001 - it is tried again, and said, when there is work
            return None

    def _start(self) -> _Child:
        child = _Child(self._name)
        try:
            child.set_up(self._function)
        except BaseException:
            child.end(at_once=True)
            raise
        return child

    def _run(self, child: _Child, call: _Call) -> None:
        with self._lock:
            if self._is_dismissed:
                raise self._closed()
            self._busy.add(child)
        try:
            child.run(call)
        finally:
            with self._lock:  # nobody must interrupt it when its socket is closed
                self._busy.discard(child)

    @staticmethod
    def _end(child: _Child | None, *, at_once: bool = False) -> None:
        if child is not None:
            child.end(at_once=at_once)


class _Child:
    """A process, as the thread beside it sees it."""

    def __init__(self, name: str) -> None:
        self._name = name
        try:
            with _no_fork:
                self._process, self._channel = self._start()
        except OSError as error:
            raise DataError(f"{name}: no process could be started for it: {error}") from error

    @staticmethod
    def _start() -> tuple[subprocess.Popen[bytes], Channel]:
        command = [sys.executable, "-P", "-m", "minitrain.data.processes.process"]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                    process_group=0,  # what the function starts is killed with it
                )
        except BaseException:
            ours.close()
            raise
        return process, Channel(ours)

    def set_up(self, function: bytes) -> None:
        """Send the function; nobody waits until it is loaded."""
        setup = Setup(_search_path(), os.environ.get("PYTHONPATH"), function, self._name)
        with self._deaths("started"):
            self._channel.send(SETUP, setup)

    def run(self, call: _Call) -> None:
        """Have a call made and take its results.

        Raises:
            DataError: The process has died.
        """
        table, call.table = call.table, None
        with self._deaths(f"worked on {call.where}"):
            self._channel.send(TABLE, table)
            del table
            while True:
                match self._channel.receive():
                    case (kind, result) if kind == TABLE:
                        call.add(result)
                        del result
                    case (kind, raised) if kind == RAISED:
                        call.add(revive(raised))
                        return
                    case _:
                        call.add(None)
                        return

    def has_ended(self) -> bool:
        """Return whether it is gone."""
        return self._channel.wait_for_end(0)

    def interrupt(self) -> None:
        """Have the thread that awaits its results see the end of them."""
        self._channel.hang_up(both_ways=True)

    def end(self, *, at_once: bool) -> None:
        """End it, and what it has started."""
        if not at_once:
            self._channel.hang_up(both_ways=False)
            self._channel.wait_for_end(_LEAVE_S)
        self._kill()
        self._channel.close()

    def _kill(self) -> int:
        # Not yet waited for, it keeps its number, which is its group's.
        if self._process.returncode is None:
            signal_group(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    @contextmanager
    def _deaths(self, doing: str) -> Generator[None]:
        try:
            yield
        except HungUpError:
            # Only an ending process closes its socket: the signal comes too late to be its end.
            ended = describe_exit(self._kill())
            raise DataError(
                f"{self._name}: process {self._process.pid} of its pool {ended} while it {doing}"
            ) from None


def _search_path() -> list[str]:
    """Return where this process finds modules; an empty entry is its working directory."""
    return [str(Path(entry).absolute()) if entry else str(Path.cwd()) for entry in sys.path]


def _environment() -> dict[str, str]:
    """Return this process's environment, one thread, and where the new one finds this package."""
    home = str(Path(__file__).parents[2])
    path = os.environ.get("PYTHONPATH")
    path = f"{home}{os.pathsep}{path}" if path else home
    own = dict(os.environ)
    if own.get("OMP_NUM_THREADS") == own.get(THREADS_VARIABLE):
        own.pop("OMP_NUM_THREADS", None)  # it is the worker's share of the cores, not the user's
    # Libraries that are told nothing else go by the user's OMP_NUM_THREADS.
    threads = {} if "OMP_NUM_THREADS" in own else _ONE_THREAD
    return {**threads, **own, "PYTHONPATH": path}
