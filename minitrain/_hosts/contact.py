"""A program being started on a host: its process here, its greeting, and its order.

Nothing here waits: whoever has many contacts waits for all their descriptors at once.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from minitrain._hosts.facts import HostFacts, own_versions, read_facts
from minitrain._hosts.greeting import MARKER
from minitrain._hosts.plan import Plan
from minitrain._hosts.reasons import Ending, reason, refusal
from minitrain._hosts.spec import Host
from minitrain._os.processes import allow_open_files
from minitrain.exceptions import HostError

__all__ = ["BOOTSTRAP", "Contact", "make_room_for"]

BOOTSTRAP = ("-c", "import sys; exec(sys.stdin.buffer.raw.readline())")
"""What Python is started with there: it runs one line, so that no shell must understand more.

The line is read byte by byte, so that what follows is left to be read by others.
"""

_MARKER = MARKER.encode()
_READ_BYTES = 1 << 16
_MAX_WORDS_BYTES = 1 << 14
_FILES = 3
"""How many a contact has open."""
_FILES_OF_OTHERS = 256
_END_S = 2.0
"""How long a process whose output has ended may take to end, too."""


class Contact:
    """A program that is being started on a host.

    ::

        contacting --facts, order sent--> handed over
             +------ended, refused------> HostError

    Args:
        host: The host.
        plan: How it is reached.
        arguments: Of the agent that is to run there.
        environ: The variables it gets, besides those it has there.
        probe: Instead of becoming an agent it is to look for a file and write another, or, with
            an empty one, to do nothing.

    Attributes:
        host: The host.
        process: The transport's process here.
        read_fd: What arrives, non-blocking; :meth:`hand_over` gives it away.
        write_fd: Likewise what is sent.
        facts: What the host said of itself; None before.
        leftover: What arrived after the greeting.

    Raises:
        HostError: The transport cannot be started here.
    """

    def __init__(
        self,
        host: Host,
        plan: Plan,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        probe: Mapping[str, str] | None = None,
    ) -> None:
        self.host = host
        self.facts: HostFacts | None = None
        self.leftover = b""
        self._plan = plan
        self._order = _order(plan, arguments, environ, probe)
        self._unsent = memoryview(_first_line(environ.get("PYTHONPATH", "")))
        self._received = bytearray()
        self._gone = False
        self._handed_over = False
        self._refusal: HostError | None = None
        self._last_words = ""
        self.read_fd = self.write_fd = self._words_fd = -1
        theirs: list[int] = []
        try:
            self._words_fd = os.memfd_create("minitrain-stderr")
            self.read_fd, theirs_out = os.pipe()
            theirs.append(theirs_out)
            theirs_in, self.write_fd = os.pipe()
            theirs.append(theirs_in)
            self.process = subprocess.Popen(
                plan.command(host, BOOTSTRAP),
                stdin=theirs_in,
                stdout=theirs_out,
                stderr=self._words_fd,
                start_new_session=True,  # a terminal's Ctrl-C is the driver's to act on
            )
        except OSError as error:
            self._close_descriptors()
            raise _not_here(host, plan, error) from error
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)

    @property
    def wants_to_write(self) -> bool:
        """Whether something is unsent: :meth:`advance` goes on when ``write_fd`` is writable."""
        return bool(self._unsent)

    def advance(self) -> bool:
        """Read what has arrived and send what is due, as far as that goes without waiting.

        Returns:
            Whether the host has greeted, is fit, and has been sent its order.

        Raises:
            HostError: It ended, or is not fit.
        """
        self._send()
        if self.facts is None:
            self._receive()
        if self._refusal is not None:
            raise self._refusal
        if self.facts is None and self._gone:
            raise self.error()
        return self.facts is not None and not self._unsent

    def _send(self) -> None:
        while self._unsent:
            try:
                sent = os.write(self.write_fd, self._unsent)
            except BlockingIOError:
                return
            except OSError:  # its end is read, too, with the reason
                self._unsent = memoryview(b"")
                return
            self._unsent = self._unsent[sent:]

    def _receive(self) -> None:
        while self.facts is None and not self._gone:
            try:
                data = os.read(self.read_fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._gone = not data
            self._received += data
            self._look_for_greeting()

    def _look_for_greeting(self) -> None:
        """Pass over what a login shell prints, and take the greeting once it is whole."""
        before, marker, rest = bytes(self._received).partition(_MARKER)
        line, newline, rest = rest.partition(b"\n")
        if not marker:
            del self._received[:-_MAX_WORDS_BYTES]
        if not newline:
            return
        try:
            self.facts = read_facts(line.split(_MARKER)[-1], time.time())
        except ValueError:  # the marker stood in something else
            self._received = bytearray(rest)
            self._look_for_greeting()
            return
        self.leftover = rest
        self._received = bytearray(before)
        self._refusal = refusal(self.host.name, self.facts, own_versions())
        if self._refusal is None:
            self._unsent = memoryview(self._unsent.tobytes() + self._order)
            self._send()

    def hand_over(self) -> tuple[int, int]:
        """Give the descriptors away: return (read_fd, write_fd), the caller's to close."""
        self._handed_over = True
        return self.read_fd, self.write_fd

    def words(self) -> str:
        """Return the end of what the transport, and the program there, wrote to stderr."""
        if self._words_fd < 0:
            return self._last_words
        size = os.fstat(self._words_fd).st_size
        data = os.pread(self._words_fd, _MAX_WORDS_BYTES, max(0, size - _MAX_WORDS_BYTES))
        return data.decode(errors="replace")

    def error(self, waited_s: float | None = None) -> HostError:
        """Return why it ended or was refused; one that runs is said to have taken too long.

        Args:
            waited_s: How long it was waited for, if that was too long.
        """
        if self._refusal is not None:
            return self._refusal
        said = self.words()
        if self.facts is None:  # a login shell may say it there: "This account is not available."
            said = bytes(self._received).decode(errors="replace") + "\n" + said
        return reason(
            Ending(
                host=self.host.name,
                trial=self._plan.transport.trial(self.host.name),
                python=self._plan.python_on(self.host),
                exitcode=self._exitcode(waited_s),
                said=said,
                has_greeted=self.facts is not None,
                waited_s=waited_s,
            )
        )

    def _exitcode(self, waited_s: float | None) -> int | None:
        if waited_s is not None:
            return self.process.poll()
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End the process here, for certain; the one there reads the end of its input."""
        self._close_descriptors()
        kill_for_certain(self.process)

    def _close_descriptors(self) -> None:
        if not self._handed_over:
            self._handed_over = True
            for descriptor in (self.read_fd, self.write_fd):
                if descriptor >= 0:
                    os.close(descriptor)
        if self._words_fd >= 0:
            self._last_words = self.words()
            os.close(self._words_fd)
            self._words_fd = -1


def kill_for_certain(process: subprocess.Popen[bytes]) -> None:
    """Kill a transport's process, as far as that is permitted: sudo ends with its pipes.

    Not its group: a child of srun's sees to it that nothing of the step is left.
    """
    with suppress(PermissionError):
        process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)


def make_room_for(num_contacts: int) -> None:
    """Have this process allowed to open the files of many contacts."""
    allow_open_files(_FILES * num_contacts + _FILES_OF_OTHERS)


@cache
def _greeting() -> str:
    return Path(__file__).with_name("greeting.py").read_text(encoding="utf-8")


def _first_line(search: str) -> bytes:
    """Return the greeting's source as one line of Python that runs it."""
    # Without the current folder, which may hold a json.py of the user's.
    source = f"import sys\nsys.path[:] = filter(None, sys.path)\n{_greeting()}\nmain({search!r})\n"
    return f"exec({json.dumps(source)})\n".encode()


def _order(
    plan: Plan,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    probe: Mapping[str, str] | None,
) -> bytes:
    order: dict[str, Any] = {
        "environ": dict(environ),
        "working_dir": plan.working_dir or str(Path.cwd()),
        "working_dir_is_asked_for": plan.working_dir is not None,
        "arguments": list(arguments),
    }
    if probe is not None:
        order["probe"] = dict(probe)
    line = json.dumps(order).encode()
    return b"%d %s" % (len(line), line)


def _not_here(host: Host, plan: Plan, error: OSError) -> HostError:
    program = plan.command(host, ())[0]
    problem = f"cannot be reached: {program} cannot be started here"
    advice = f"Install {program}, or name another way with --transport."
    if error.errno == errno.EMFILE:
        advice = "Raise the hard limit of open files here (ulimit -Hn): each host takes three."
    return HostError(host.name, problem, error.strerror or str(error), advice)
