"""What a host finds out before its workers start."""

from __future__ import annotations

import os
import socket

import pytest

from minitrain._agent.survey import survey
from minitrain._os.machine import first_reachable
from minitrain._wire.messages import Survey


@pytest.fixture
def port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def asked(port, folder="", token=""):
    return survey(Survey(3, ("127.0.0.1",), port, str(folder), token, 1.0))


def test_the_first_address_that_answers_counts(port):
    assert first_reachable(["127.0.0.1"], port, 1.0) == "127.0.0.1"
    # 192.0.2.0/24 leads nowhere (RFC 5737); nobody listens at 127.0.0.2
    assert first_reachable(["192.0.2.1", "127.0.0.2", "127.0.0.1"], port, 1.0) == "127.0.0.1"


def test_where_nothing_answers_there_is_no_address(port):
    assert first_reachable(["127.0.0.2"], port, 1.0) is None
    assert first_reachable([], port, 1.0) is None


def test_the_survey_says_where_the_store_is(port):
    found = asked(port)
    assert (found.attempt, found.address, found.folder_problem) == (3, "127.0.0.1", "")


def test_a_directory_with_the_drivers_file_is_the_same(port, tmp_path):
    (tmp_path / ".seen-1").write_bytes(b"")
    assert asked(port, tmp_path, ".seen-1").folder_problem == ""
    assert os.listdir(tmp_path) == [".seen-1"]


def test_another_directory_of_the_same_name_is_told_apart(port, tmp_path):
    assert "it is another one" in asked(port, tmp_path, ".seen-1").folder_problem


def test_a_directory_that_is_not_there_is_said_so(port, tmp_path):
    found = asked(port, tmp_path / "run", ".seen-1")
    assert found.folder_problem == "there is no such directory"


def test_a_directory_that_cannot_be_looked_into_is_said_so(port):
    problem = asked(port, "/" + "x" * 5000, ".seen-1").folder_problem
    assert problem == "it cannot be looked into: File name too long"


@pytest.mark.skipif(not os.path.exists("/proc/sys"), reason="needs a read-only directory")
def test_a_directory_that_cannot_be_written_to_is_said_so(port):
    found = asked(port, "/proc/sys/kernel", "hostname")
    assert found.folder_problem.startswith("it cannot be written to")
