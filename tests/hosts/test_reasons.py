"""Why a host did not come to work: a table of what OpenSSH and others really say.

``test_contact`` has them say it.
"""

from __future__ import annotations

import pytest

from minitrain._hosts.reasons import Ending, reason

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key for 10.77.0.11 has changed and you have requested strict checking.\r
Host key verification failed.\r
"""
UNKNOWN_KEY = """\
No ED25519 host key is known for b and you have requested strict checking.\r
Host key verification failed.\r
"""
SLURM = """\
slurmstepd: error: execve(): /py: No such file or directory
srun: error: h1: task 0: Exited with exit code 2
"""
UNREACHED = "cannot be reached"
UNKNOWN = "is not a host that ssh knows"
NO_PYTHON = "has no Python at /py"
LOST = "was lost"


@pytest.mark.parametrize(
    ("exitcode", "stderr", "problem", "words"),
    [
        (255, "ssh: connect to host b port 22: Connection refused\r\n", UNREACHED, "ssh: connect"),
        (255, "ssh: connect to host b port 22: Connection timed out\r\n", UNREACHED, "ssh: conn"),
        (255, "ssh: connect to host b port 22: No route to host\r\n", UNREACHED, "ssh: connect"),
        (255, "ssh: connect to host b port 22: Network is unreachable\n", UNREACHED, "ssh: conn"),
        (
            255,
            "ssh: Could not resolve hostname b: Name or service not known\r\n",
            UNREACHED,
            "ssh: Could not resolve",
        ),
        (
            255,
            "ssh: Could not resolve hostname b: Temporary failure in name resolution\r\n",
            UNREACHED,
            "ssh: Could not resolve",
        ),
        (255, "me@b: Permission denied (publickey).\r\n", "does not let you in", "me@b: Permiss"),
        (
            255,
            "Received disconnect from 10.0.0.2 port 22:2: Too many authentication failures\r\n",
            "does not let you in",
            "Received disconnect",
        ),
        (
            255,
            UNKNOWN_KEY,
            UNKNOWN,
            "Host key verification failed.",
        ),
        (255, CHANGED, UNKNOWN, "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!"),
        (255, "Connection closed by 10.0.0.2 port 22\r\n", LOST, "Connection closed by 10.0.0.2"),
        (
            255,
            "kex_exchange_identification: read: Connection reset by peer\r\n",
            LOST,
            "kex_exchange_identification",
        ),
        (255, "Timeout, server b not responding.\r\n", LOST, "Timeout, server b not responding."),
        (255, "client_loop: send disconnect: Broken pipe\r\n", LOST, "client_loop"),
        (127, "bash: line 1: /py: No such file or directory\n", NO_PYTHON, "bash: line 1: /py"),
        (127, "sh: 1: /py: not found\n", NO_PYTHON, "sh: 1: /py: not found"),
        (126, "bash: line 1: /py: Permission denied\n", NO_PYTHON, "bash: line 1: /py: Permission"),
        (126, "bash: line 1: /py: Is a directory\n", NO_PYTHON, "bash: line 1: /py: Is a dir"),
        (255, 'exec of "/py" failed: No such file or directory\n', NO_PYTHON, 'exec of "/py"'),
        (
            2,
            SLURM,
            NO_PYTHON,
            "slurmstepd: error",
        ),
        (1, 'Cannot open network namespace "b": No such file\n', UNREACHED, "Cannot open network"),
        (1, "srun: error: Invalid node name specified\n", UNREACHED, "srun: e"),
        (-9, "", "was lost: the command that led there was killed by SIGKILL", ""),
        (0, "", "ended without a word (exited with code 0)", ""),
        (None, "debug1: still at it\n", "did not answer within 7 s", "debug1: still at it"),
    ],
)  # fmt: skip
def test_each_end_has_its_reason(exitcode, stderr, problem, words):
    stderr = "Warning: Permanently added 'b' to the list of known hosts.\r\n" + stderr
    if problem.startswith("ended"):
        stderr = ""
    error = reason(Ending("b", "ssh b true", "/py", exitcode, stderr, waited_s=7))
    assert error.host == "b"
    assert error.problem.startswith(problem)
    assert words in error.words
    assert error.advice
    assert "\r" not in str(error)
    assert "\n" not in str(error)


def test_the_message_is_what_happened_what_was_said_and_what_to_do():
    stderr = "ssh: connect to host node2 port 22: Connection refused\r\n"
    error = reason(Ending("node2", "ssh node2 true", "/py", 255, stderr))
    assert str(error) == (
        "node2 cannot be reached: ssh: connect to host node2 port 22: Connection refused. "
        "Nothing listens on that port; is its ssh server running? Try: ssh node2 true"
    )


def test_only_the_end_of_a_long_story_is_told():
    story = "".join(f"line {number}\n" for number in range(1000))
    error = reason(Ending("b", "t", "/py", 3, story))
    assert error.words == "line 997; line 998; line 999"
    assert len(reason(Ending("b", "t", "/py", 3, "x" * 10_000)).words) < 1000


@pytest.mark.parametrize("words", ["", "minitrain: working directory: no", "Traceback\nBoom"])
def test_what_fails_after_the_greeting_is_not_the_transport(words):
    error = reason(Ending("b", "t", "/py", 127, words, has_greeted=True))
    assert error.problem in {"could not start the agent", "cannot start"}
