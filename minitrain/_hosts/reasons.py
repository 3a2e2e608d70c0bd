"""Why a host did not come to work, in words: pure functions over what was seen of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minitrain._hosts.facts import HostFacts, Versions
from minitrain.exceptions import HostError, describe_exit

__all__ = ["Ending", "reason", "refusal"]

_OLDEST = (3, 11)
_NO_PROGRAM = (126, 127)
"""A shell's exit codes for a program that it cannot run, and for one that is not there."""
_MAX_LINES = 3
_MAX_CHARS = 600

_RULES = [
    (
        r"Connection refused",
        "cannot be reached",
        "Nothing listens on that port; is its ssh server running?",
    ),
    (
        r"timed out|No route to host|Network is unreachable",
        "cannot be reached",
        "Is it switched on and in this network, and does a firewall let you through?",
    ),
    (
        r"Could not resolve|Name or service not known|Temporary failure in name resolution",
        "cannot be reached",
        "Is the name spelled right? An address, or a Host in ~/.ssh/config, would do as well.",
    ),
    (
        r"Host key verification failed|HOST IDENTIFICATION HAS CHANGED",
        "is not a host that ssh knows",
        "Connect once by hand and look at its key, or correct ~/.ssh/known_hosts.",
    ),
    (
        r"Permission denied \(|Too many authentication failures",
        "does not let you in",
        "Is your public key in its ~/.ssh/authorized_keys, and the private one in your agent?",
    ),
    (
        r"'file' object has no attribute 'buffer'",
        "has too old a Python",
        "minitrain needs Python 3.11: name another with --python.",
    ),
    (
        r"[Ss]yntax error|parse error",
        "did not start Python",
        "A shell reads what is meant for Python: does its ~/.bashrc start one?",
    ),
    (
        r"not responding|Broken pipe|closed by|reset by peer",
        "was lost",
        "Did it go down, or the network?",
    ),
]
"""(what ssh says, the problem, what to do); the first that is found holds."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What was seen of a program that was to start on a host.

    Attributes:
        host: The host's name.
        trial: What to type to try whether it can be reached.
        python: The program that was to start there.
        exitcode: As in :mod:`subprocess`; None: it still runs.
        said: What the transport and the program wrote, at the end of it on standard error.
        has_greeted: Whether Python did start there.
        waited_s: For how long it was waited for, where that was too long.
    """

    host: str
    trial: str
    python: str
    exitcode: int | None
    said: str
    has_greeted: bool = False
    waited_s: float | None = None


def reason(ending: Ending) -> HostError:
    """Return why a host did not come to work."""
    words = _last_lines(ending.said)
    trial = f"Try: {ending.trial}"
    if ending.exitcode is None:
        problem = "closed its output, but has not ended"
        if ending.waited_s is not None:
            problem = f"did not answer within {ending.waited_s:g} s"
            trial = f"Does its login shell (~/.bashrc) wait for something? {trial}"
        return HostError(ending.host, problem, words, trial)
    if ending.exitcode < 0:
        killed = f"was lost: the command that led there {describe_exit(ending.exitcode)}"
        return HostError(ending.host, killed, words, trial)
    if _has_no_python(ending):
        advice = "Name the one it has with --python (LaunchConfig(python=...))."
        return HostError(ending.host, f"has no Python at {ending.python}", words, advice)
    for pattern, problem, advice in _RULES:
        match = re.search(rf"^.*(?:{pattern}).*$", ending.said, re.MULTILINE)
        if match:
            return HostError(ending.host, problem, match[0].strip(), f"{advice} {trial}")
    return _other_reason(ending, words, trial)


def _has_no_python(ending: Ending) -> bool:
    if ending.has_greeted:
        return False
    python = re.escape(ending.python)
    if ending.exitcode in _NO_PROGRAM and re.search(rf"{python}|^\s*$", ending.said):
        return True
    # Commands that start a program without a shell say so in their own words.
    named = rf"{python}.*(No such file|not found|Permission denied)"
    return re.search(named, ending.said) is not None


def _other_reason(ending: Ending, words: str, trial: str) -> HostError:
    if words.startswith("minitrain: "):  # the greeting's own
        advice = "Name one that exists there with --workdir (LaunchConfig(working_dir=...))."
        return HostError(ending.host, "cannot start", words.removeprefix("minitrain: "), advice)
    if ending.has_greeted:
        advice = "Look at what Python there says."
        return HostError(ending.host, "could not start the agent", words or "no words", advice)
    if words:
        return HostError(ending.host, "cannot be reached", words, trial)
    silent = f"ended without a word ({describe_exit(ending.exitcode or 0)})"
    advice = (
        "Does the transport pass standard input on? docker and kubectl do with `exec -i`. "
        "Does the login shell there end early, or start something else?"
    )
    return HostError(ending.host, silent, "", f"{advice} {trial}")


def _last_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-_MAX_LINES:])[-_MAX_CHARS:]


def refusal(host: str, facts: HostFacts, own: Versions) -> HostError | None:
    """Return why a host that answered is not fit, or None if it is.

    Args:
        host: Its name.
        facts: What it said.
        own: What is installed here.
    """
    numbers = tuple(map(int, facts.versions.python.split(".")[:2]))
    if numbers < _OLDEST:
        problem = f"has too old a Python: {facts.versions.python} ({facts.executable})"
        advice = "minitrain needs Python 3.11: name another with --python."
        return HostError(host, problem, "", advice)
    if numbers != tuple(map(int, own.python.split(".")[:2])):
        problem = f"has Python {facts.versions.python} ({facts.executable}), this is {own.python}"
        advice = "Functions travel only between equal versions: name another with --python."
        return HostError(host, problem, "", advice)
    for package in ("minitrain", "torch"):
        theirs, ours = getattr(facts.versions, package), getattr(own, package)
        if ours is None:
            continue
        pin = f"{package}=={_release(ours)}" if ours else package
        if theirs is None:
            advice = f"Try there: {facts.executable} -m pip install {pin}"
            return HostError(host, f"has no {package} in {facts.executable}", "", advice)
        if ours and theirs and _release(theirs) != _release(ours):
            problem = f"has {package} {theirs} in {facts.executable}, this is {ours}"
            advice = f"Make them equal. Try there: {facts.executable} -m pip install {pin}"
            return HostError(host, problem, "", advice)
    return None


def _release(version: str) -> str:
    """Return a version without its build, as ``+cpu``: the hosts may well differ in that."""
    return version.partition("+")[0]
