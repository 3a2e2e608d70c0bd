"""Looks at hosts without starting anything on them that stays."""

from __future__ import annotations

import json
import os
import selectors
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from minitrain._hosts.contact import Contact, make_room_for
from minitrain._hosts.crossing import crossing
from minitrain._hosts.facts import HostFacts
from minitrain._hosts.greeting import MARKER
from minitrain._hosts.plan import Plan
from minitrain._hosts.spec import Host
from minitrain.exceptions import HostError

__all__ = ["Checked", "check_hosts"]

_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Checked:
    """What was seen of a host.

    Attributes:
        host: The host.
        facts: What it said of itself; None: it did not.
        error: Why it cannot train; None: it can.
        shares_storage: Whether what is written there is seen here, and the other way round;
            None: that was not asked.
    """

    host: Host
    facts: HostFacts | None
    error: HostError | None
    shares_storage: bool | None = None


def check_hosts(
    plan: Plan, deadline_s: float, probe_path: str | Path | None = None
) -> list[Checked]:
    """Contact all hosts at once and return what was seen of each, in their order.

    Args:
        plan: The hosts and how they are reached.
        deadline_s: How long they may take.
        probe_path: A folder that all of them should share; it need not exist.

    Raises:
        OSError: That folder cannot be written to here.
    """
    make_room_for(len(plan.hosts))
    with ExitStack() as ends:
        checks = []
        for host in plan.hosts:
            probe = None if probe_path is None else _Probe(Path(probe_path), ends)
            checks.append(_Check(host, plan, probe, ends))
        _wait_for_all(checks, deadline_s)
        return [check.outcome(deadline_s) for check in checks]


def _wait_for_all(checks: list[_Check], deadline_s: float) -> None:
    end_s = time.monotonic() + deadline_s
    while waiting := [check for check in checks if not check.is_over]:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return
        with selectors.DefaultSelector() as selector:
            for check in waiting:
                check.watch(selector)
            for key, _ in selector.select(left_s):
                key.data.advance()


class _Probe:
    """A question in a folder: a file with a token, to be answered by another one."""

    def __init__(self, path: Path, ends: ExitStack) -> None:
        above = (path.absolute(), *path.absolute().parents)
        folder = next(folder for folder in above if folder.is_dir())
        token = uuid.uuid4().hex
        question = folder / f".minitrain-{token[:8]}"
        self._answer = question.with_suffix(".answer")
        for file in (question, self._answer):
            ends.callback(file.unlink, missing_ok=True)
        question.write_text(token, encoding="utf-8")
        self.order = {"question": str(question), "answer": str(self._answer), "token": token}

    def problem(self, said: str | None) -> str | None:
        """Return what is wrong, or None.

        Args:
            said: What the host says is wrong.
        """
        if said is not None:
            return said
        with suppress(OSError):
            if self._answer.read_text(encoding="utf-8") == self.order["token"]:
                return None
        return f"{self._answer} was written there and is not seen here"


class _Check:
    """One host being looked at."""

    def __init__(self, host: Host, plan: Plan, probe: _Probe | None, ends: ExitStack) -> None:
        self.is_over = False
        self._host = host
        self._probe = probe
        self._contact: Contact | None = None
        self._error: HostError | None = None
        self._answer: bytes | None = None
        self._shares: bool | None = None
        order = {} if probe is None else probe.order
        try:
            self._contact = Contact(host, plan, (), crossing(os.environ, plan.env), order)
        except HostError as error:
            self._fail(error)
        else:
            ends.callback(self._contact.close)

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have a selector watch what it waits for."""
        assert self._contact is not None
        selector.register(self._contact.read_fd, selectors.EVENT_READ, self)
        if self._contact.wants_to_write:
            selector.register(self._contact.write_fd, selectors.EVENT_WRITE, self)

    def advance(self) -> None:
        """Go as far as that goes without waiting."""
        assert self._contact is not None
        try:
            if self._answer is not None:
                self._read_answer(self._contact, self._answer)
            elif self._contact.advance():
                self._take(self._contact.leftover)
        except HostError as error:
            self._fail(error)

    def _read_answer(self, contact: Contact, before: bytes) -> None:
        try:
            data = os.read(contact.read_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise contact.error()
        self._take(before + data)

    def _take(self, answer: bytes) -> None:
        """Take what has come so far, which may be all, though the host has just greeted."""
        self._answer = answer
        if answer.endswith(b"\n"):
            self.is_over = True
            self._judge(json.loads(answer.removeprefix(MARKER.encode())))

    def _judge(self, said: dict[str, str | None]) -> None:
        if self._probe is None:
            return
        problem = self._probe.problem(said["problem"])
        self._shares = problem is None
        if problem is not None:
            folder = Path(self._probe.order["question"]).parent
            advice = (
                "Name a folder that all hosts share as storage_path, or have their files brought "
                "here with --collect (LaunchConfig(collect=True))."
            )
            self._fail(HostError(self._host.name, f"does not share {folder}", problem, advice))

    def _fail(self, error: HostError) -> None:
        self._error = error
        self.is_over = True

    def outcome(self, deadline_s: float) -> Checked:
        """Return what was seen; if it is not over, that it took too long."""
        contact = self._contact
        if not self.is_over and contact is not None:
            self._error = contact.error(waited_s=deadline_s)
        facts = None if contact is None else contact.facts
        return Checked(self._host, facts, self._error, self._shares)
