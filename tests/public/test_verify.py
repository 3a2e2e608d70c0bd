"""``python -m minitrain.verify``: what it prints, and how it exits."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from minitrain._storage.disk import LocalDisk
from minitrain._storage.run_storage import RunStorage
from minitrain.verify import main


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    (folder / "logs" / "attempt_0").mkdir(parents=True)
    (folder / "logs" / "attempt_0" / "rank_0.log").write_text("hello")
    (folder / "run.json").write_text("{}")
    return folder


def add(run: Path, name: str, sizes: dict[str, int]) -> Path:
    source = run.parent / f"source of {name}"
    source.mkdir()
    for file, size in sizes.items():
        (source / file).write_bytes(b"x" * size)
    storage = RunStorage(LocalDisk(str(run)))
    storage.begin(name)
    storage.commit(name, [storage.put(source, name)], 0, {}, {})
    return run / name


def test_a_run_with_everything_in_it(run, capsys):
    add(run, "checkpoint_000000", {"weights": 3 << 20, "state": 10})
    damaged = add(run, "checkpoint_000001", {"weights": 2048, "state": 10})
    (damaged / "weights").write_bytes(b"x" * 2047 + b"y")
    before, now = zlib.crc32(b"x" * 2048), zlib.crc32(b"x" * 2047 + b"y")
    (damaged / "state").unlink()
    add(run, "best", {"weights": 700})
    RunStorage(LocalDisk(str(run))).begin("checkpoint_000002")
    assert main([str(run)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "best                1 file  700 bytes  whole",
        "checkpoint_000000  2 files    3.0 MiB  whole",
        "checkpoint_000001  2 files    2.0 KiB  DAMAGED",
        "    state: missing (10 bytes)",
        f"    weights: checksum {now:08x} instead of {before:08x} (2048 bytes)",
        "checkpoint_000002                      unfinished: not a checkpoint",
        "1 of 3 checkpoints damaged, 1 unfinished",
    ]


def test_all_whole(run, capsys):
    for index in range(2):
        add(run, f"checkpoint_00000{index}", {"weights": 5})
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 checkpoints, all whole"


def test_what_was_never_finished_is_no_damage(run, capsys):
    RunStorage(LocalDisk(str(run))).begin("mine")
    (run / ".unfinished-12ab").mkdir()
    (run / ".unfinished-12ab" / "file").touch()
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        ".unfinished-12ab      unfinished: not a checkpoint",
        "mine                  unfinished: not a checkpoint",
        "no checkpoints, 2 unfinished",
    ]


def test_a_run_without_checkpoints(run, capsys):
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == "no checkpoints\n"


def test_sizes_alone_do_not_show_a_flipped_bit(run, capsys):
    path = add(run, "checkpoint_000000", {"weights": 5})
    (path / "weights").write_bytes(b"xxxxy")
    assert main([str(run), "--sizes"]) == 0
    assert capsys.readouterr().out.endswith("1 checkpoint, all whole by their sizes\n")
    (path / "weights").write_bytes(b"xxxx")
    assert main([str(run), "--sizes"]) == 1


def test_a_manifest_that_cannot_be_read_is_damage(run, capsys):
    path = add(run, "checkpoint_000000", {"weights": 5})
    (path / ".manifest.json").write_bytes(b'{"version": 1, "fi')
    assert main([str(run)]) == 1
    assert "    .manifest.json: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "run_dir", ["nowhere", "a file", "empty", "nonsense://bucket/run"], ids=lambda it: it
)
def test_where_no_run_is_the_exit_status_is_two(tmp_path, monkeypatch, capsys, run_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    (tmp_path / "empty").mkdir()
    assert main([run_dir]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{run_dir}: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "status"), [(["--no-such-option"], 2), ([], 2), (["--help"], 0), (["."], 2)]
)
def test_it_runs_as_a_program(tmp_path, args, status):
    command = [sys.executable, "-m", "minitrain.verify", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
