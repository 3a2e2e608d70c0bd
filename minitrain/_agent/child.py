"""One worker as its agent sees it: a process, the pipes to it, and how it ends."""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from minitrain._os.processes import signal_group
from minitrain._wire.channel import Channel, ChannelClosed
from minitrain._wire.messages import ForkedWorker, Place, StartWorkers
from minitrain._wire.ring import Ring

__all__ = ["Child", "fork_worker"]

_ENTRY = ("minitrain._worker.main", "run")
_OUTPUT_BYTES = 1 << 16
_PIPE_BYTES = 1 << 20


@dataclass(slots=True)
class Child:
    """A worker's process and the agent's ends of everything that leads to it.

    Attributes:
        rank: World rank.
        attempt: The attempt it belongs to.
        process: The process.
        pidfd: Readable when the process has ended.
        ring: Its result queue.
        orders: Where its orders go.
        output_fd: Where its output arrives.
        log_fd: Its log file.
        on_console: Whether its output also goes to the driver.
        files: Where it asks for the run's files, if the driver serves them.
    """

    rank: int
    attempt: int
    process: Any
    pidfd: int
    ring: Ring
    orders: Channel
    output_fd: int
    log_fd: int
    on_console: bool
    files: Channel | None = None

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return int(self.process.pid)

    def read_output(self) -> bytes:
        """Return what it printed since the last call, and write it to its log."""
        data = b""
        with suppress(BlockingIOError):
            while chunk := os.read(self.output_fd, _OUTPUT_BYTES):
                data += chunk
                if len(data) >= _OUTPUT_BYTES:
                    break
        if data:
            with suppress(OSError):  # a full disk must not end the training
                os.write(self.log_fd, data)
        return data

    def order(self, order: Any) -> None:
        """Pass an order on; nothing happens if it is gone."""
        with suppress(ChannelClosed):
            self.orders.send(order)

    def signal(self, signum: signal.Signals) -> None:
        """Signal its whole group: data loaders and compilers end with their worker."""
        signal_group(self.pid, signum)

    def reap(self) -> tuple[int, int]:
        """Take leave of a process that has ended: its exit code and its peak memory in bytes.

        Whatever is left of its group is killed while the zombie still holds the group's number,
        so that no stranger can have got it.
        """
        self.signal(signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        exitcode = os.waitstatus_to_exitcode(status)
        self.process._popen.returncode = exitcode  # noqa: SLF001 - it was reaped here, for the usage
        return exitcode, usage.ru_maxrss * 1024

    def close(self) -> None:
        """Close the agent's ends."""
        self.orders.close()
        self.ring.close()
        if self.files is not None:
            self.files.close()
        for descriptor in (self.pidfd, self.output_fd, self.log_fd):
            os.close(descriptor)
        self.process.close()


def fork_worker(
    start: StartWorkers,
    place: Place,
    close_fds: tuple[int, ...],
    *,
    interface: str | None,
    num_cpus: int,
) -> Child:
    """Fork one worker of an attempt.

    Args:
        start: The order to start it.
        place: Which of its places.
        close_fds: The agent's descriptors, which the worker must not hold.
        interface: The network interface that reaches the store.
        num_cpus: This host's processors.
    """
    ring = Ring()
    orders, worker_orders = socket.socketpair()
    output_fd, worker_output_fd = os.pipe()
    os.set_blocking(output_fd, False)
    files, worker_files = _file_pipes() if start.files else (None, ())
    own_files = (files.read_fd, files.write_fd) if files is not None else ()
    log_path = Path(start.log_dir, f"rank_{place.rank}.log") if start.log_dir else os.devnull
    log_fd = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    forked = ForkedWorker(
        start,
        place,
        ring,
        orders_fd=worker_orders.fileno(),
        output_fd=worker_output_fd,
        close_fds=(*close_fds, orders.fileno(), output_fd, log_fd, *own_files),
        interface=interface,
        num_cpus=num_cpus,
        file_fds=worker_files or None,
    )
    module, function = _ENTRY
    entry = getattr(importlib.import_module(module), function)
    process: Any = mp.get_context("fork").Process(
        target=entry, args=(forked,), name=f"rank-{place.rank}"
    )
    process.start()
    worker_orders.close()
    for descriptor in (worker_output_fd, *worker_files):
        os.close(descriptor)
    orders_fd = orders.detach()
    return Child(
        place.rank,
        start.attempt,
        process,
        os.pidfd_open(process.pid),
        ring,
        Channel(orders_fd, orders_fd),
        output_fd,
        log_fd,
        place.rank in start.console_ranks,
        files,
    )


def _file_pipes() -> tuple[Channel, tuple[int, int] | tuple[()]]:
    """Return the agent's and the worker's end of the way to the run's files."""
    questions_read, questions_write = os.pipe()
    answers_read, answers_write = os.pipe()
    for descriptor in (questions_write, answers_write):
        with suppress(OSError):  # who has very many pipes gets no larger ones
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return Channel(questions_read, answers_write), (answers_read, questions_write)
