"""One process of a pool: ``python -m minitrain.data.processes.process DESCRIPTOR OWNER_PID``."""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import io
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pyarrow as pa

from minitrain._os.processes import die_with_parent, let_forked_children_die_too
from minitrain.data.processes.channel import (
    END,
    RAISED,
    TABLE,
    Channel,
    HungUpError,
    Raised,
    Setup,
    describe,
)
from minitrain.exceptions import DataError

_LEAVE_S = 1.0
_TYPES = "minitrain.data.values"
"""Arrow knows the types of columns that are defined there only after it was imported."""

_Function = Callable[[pa.Table], Iterator[pa.Table]]


def main(descriptor: int, owner_pid: int) -> None:
    """Serve until the owner hangs up.

    Args:
        descriptor: This end of the socket.
        owner_pid: Whose it is.
    """
    die_with_parent(owner_pid)
    channel = Channel(socket.socket(fileno=descriptor))
    _leave_signals_to_the_owner()
    let_forked_children_die_too()
    os.register_at_fork(after_in_child=channel.close)  # the owner must see when this process ends
    threading.Thread(target=_end_with_owner, args=(channel,), daemon=True).start()
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # of what is printed nothing must be lost
    try:
        _serve(channel)
    except HungUpError:
        return


def _leave_signals_to_the_owner() -> None:
    """Go on when a launcher or a terminal signals every process: the owner may need this one."""
    signals = {signal.SIGINT, signal.SIGTERM}
    # Functions, as opposed to SIG_IGN, are not inherited by programs that are started.
    for signum in signals:
        signal.signal(signum, lambda *_: None)

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    # Blocked in between: a child that is told to end at once must not lose that.
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signals),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals),
        after_in_child=in_child,
    )


def _end_with_owner(channel: Channel) -> None:
    """End with the owner, whatever the main thread does."""
    channel.wait_for_end()
    time.sleep(_LEAVE_S)  # a main thread that waits for work sees it too, and ends in good order
    os._exit(1)


def _serve(channel: Channel) -> None:
    _, setup = channel.receive()
    function = _load(setup)
    while True:
        _answer(channel, function, *channel.receive())


def _answer(channel: Channel, function: _Function | Raised, _: bytes, table: pa.Table) -> None:
    """Answer a call. Nothing of it stays in memory: variables go with this function."""
    if isinstance(function, Raised):
        channel.send(RAISED, function)
        return
    try:
        for result in function(table):
            channel.send(TABLE, result)
    except HungUpError:
        raise
    except BaseException as error:  # noqa: BLE001 - also of sys.exit() the owner must know
        channel.send(RAISED, describe(error))
    else:
        channel.send(END)


def _load(setup: Setup) -> _Function | Raised:
    sys.path[:] = setup.sys_path
    if setup.python_path is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = setup.python_path
    try:
        if importlib.util.find_spec(_TYPES) is not None:
            importlib.import_module(_TYPES)
        function: _Function = pickle.loads(setup.function)
    except BaseException as error:  # noqa: BLE001 - a user's module; the owner must know
        text = f"{setup.name}: its function cannot be loaded in another process: {error}"
        loading = DataError(text)
        loading.__cause__ = error
        return describe(loading)
    return function


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
