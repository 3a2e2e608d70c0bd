"""The first thing that runs on a host runs on what is there."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

from minitrain._hosts import greeting
from minitrain._hosts.contact import BOOTSTRAP, _first_line
from minitrain._hosts.facts import read_facts

SOURCE = Path(greeting.__file__).read_text()
OLD = ("3.6", "3.7", "3.8", "3.9", "3.10")


def test_python_3_6_understands_it():
    ast.parse(SOURCE, feature_version=(3, 6))


def test_it_imports_nothing_that_may_be_missing():
    imported = {
        name
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    assert imported == {
        *("json", "os", "socket", "sys", "time", "typing", "tty"),
        *("importlib.metadata", "importlib.util"),
    }


def test_it_is_sent_as_one_line_of_any_python():
    line = _first_line("/a 'b'")
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    ast.parse(line, feature_version=(3, 6))


@pytest.mark.parametrize("version", OLD)
def test_old_pythons_greet(version):
    python = shutil.which(f"python{version}")
    settings = {"capture_output": True, "timeout": 30}
    if python is None or subprocess.run([python, "-V"], check=False, **settings).returncode:
        pytest.skip(f"no python{version} on this machine")
    said = subprocess.run([python, *BOOTSTRAP], check=False, input=_first_line(""), **settings)
    assert said.stderr == b""
    facts = read_facts(said.stdout.removeprefix(greeting.MARKER.encode()), 0)
    assert facts.versions.python.startswith(f"{version}.")


@pytest.mark.parametrize("line", [b"", b"{}", b"3", b"null", b'{"hostname": "x"}', b"{"])
def test_what_is_no_greeting_is_refused(line):
    with pytest.raises(ValueError, match=r"."):
        read_facts(line, 0)


def test_the_gpus_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    for number in range(2):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 3\n")
    monkeypatch.setattr(greeting, "_GPUS", str(tmp_path))
    assert greeting._gpus() == ["NVIDIA H200", "NVIDIA H200"]
    monkeypatch.setattr(greeting, "_GPUS", str(tmp_path / "none"))
    assert greeting._gpus() == []
