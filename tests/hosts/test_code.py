"""The user's code arrives as it is, without what git ignores, and nowhere else."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from minitrain._hosts import code
from minitrain._hosts.code import pack, unpack
from minitrain.exceptions import ConfigurationError


def git(folder: Path, *arguments: str) -> None:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    subprocess.run(command, check=True, capture_output=True)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def arrived(data: bytes, folder: Path) -> dict[str, str]:
    folder.mkdir()
    unpack(data, folder)
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def project(tmp_path) -> Path:
    folder = write(tmp_path / "project", train_py="1", pkg__model_py="2", data__big="3")
    (folder / ".gitignore").write_text("data/\n*.log\n")
    (folder / "run.log").write_text("4")
    return folder


def no_git(monkeypatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))


def test_in_a_repository_it_is_what_git_tracks_or_would(project, tmp_path):
    git(project, "init")
    git(project, "add", "train.py")
    git(project, "commit", "-m", "one")
    write(project, new_py="5", train_py="changed")
    (project / "pkg" / "été.py").write_text("6")
    files = arrived(pack(project), tmp_path / "there")
    assert files == {
        ".gitignore": "data/\n*.log\n",
        "train.py": "changed",
        "new.py": "5",
        "pkg/model.py": "2",
        "pkg/été.py": "6",
    }


def test_a_folder_that_is_no_repository_is_treated_as_one(project, tmp_path):
    files = arrived(pack(project), tmp_path / "there")
    assert files.keys() == {".gitignore", "train.py", "pkg/model.py"}
    assert not (project / ".git").exists()


def test_a_part_of_a_repository_goes_without_the_rest(project, tmp_path):
    git(project, "init")
    assert arrived(pack(project / "pkg"), tmp_path / "there") == {"model.py": "2"}


def test_a_folder_that_a_repository_ignores_is_the_users_code_all_the_same(project, tmp_path):
    git(project, "init")
    assert arrived(pack(project / "data"), tmp_path / "there") == {"big": "3"}


def test_a_repository_inside_goes_along(project, tmp_path):
    git(project, "init")
    inner = write(project / "inner", lib_py="7")
    git(inner, "init")
    git(inner, "add", "lib.py")
    assert arrived(pack(project), tmp_path / "there")["inner/lib.py"] == "7"


def test_what_was_deleted_is_not_missed(project, tmp_path):
    git(project, "init")
    git(project, "add", ".")
    (project / "train.py").unlink()
    assert "train.py" not in arrived(pack(project), tmp_path / "there")


def test_the_variables_of_a_git_hook_are_about_another_folder(project, tmp_path, monkeypatch):
    git(project, "init")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert arrived(pack(project), tmp_path / "there").keys() >= {"train.py", "pkg/model.py"}


def test_without_git_it_is_everything_but_what_is_surely_no_code(project, tmp_path, monkeypatch):
    write(project, venv__pyvenv="x", venv__lib_py="x", _cache__x="x")
    (project / "venv" / "pyvenv").rename(project / "venv" / "pyvenv.cfg")
    (project / ".hidden").mkdir()
    (project / ".hidden" / "x").touch()
    (project / "pkg" / "__pycache__").mkdir()
    (project / "pkg" / "__pycache__" / "model.pyc").touch()
    (project / "old.pyc").touch()
    no_git(monkeypatch, tmp_path)
    files = arrived(pack(project), tmp_path / "there")
    assert files.keys() == {
        *(".gitignore", "train.py", "pkg/model.py", "data/big", "run.log", "_cache/x"),
    }


@pytest.mark.parametrize("with_git", [True, False])
def test_links_are_kept_if_they_stay_inside(project, tmp_path, monkeypatch, with_git):
    (project / "link.py").symlink_to("train.py")
    (project / "folder").symlink_to("pkg")
    (project / "outside").symlink_to("../elsewhere")
    (project / "absolute").symlink_to(project / "train.py")
    (project / "pkg" / "up").symlink_to("../train.py")
    if not with_git:
        no_git(monkeypatch, tmp_path)
    there = tmp_path / "there"
    arrived(pack(project), there)
    links = {path.name: os.readlink(path) for path in there.rglob("*") if path.is_symlink()}
    assert links == {"link.py": "train.py", "folder": "pkg", "up": "../train.py"}


def test_pipes_and_sockets_are_no_code(project, tmp_path, monkeypatch):
    os.mkfifo(project / "pipe")
    no_git(monkeypatch, tmp_path)
    assert "pipe" not in arrived(pack(project), tmp_path / "there")


def test_equal_files_give_equal_bytes(project, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(project, again)
    for path in again.rglob("*"):
        os.utime(path, (1, 1))
    assert pack(project) == pack(again)


def test_programs_stay_programs(project, tmp_path):
    (project / "train.py").chmod(0o755)
    there = tmp_path / "there"
    arrived(pack(project), there)
    assert os.access(there / "train.py", os.X_OK)
    assert not os.access(there / "pkg" / "model.py", os.X_OK)


def test_data_is_not_taken_for_code(project, tmp_path, monkeypatch):
    monkeypatch.setattr(code, "_MAX_BYTES", 3 << 20)
    for number in range(7):
        (project / f"weights_{number}.pt").write_bytes(b"x" * (number << 20))
    with pytest.raises(ConfigurationError) as caught:
        pack(project)
    assert str(caught.value) == (
        f"sync_code: {project} holds 21 MB, more than 3 MB of code: weights_6.pt (6 MB), "
        "weights_5.pt (5 MB), weights_4.pt (4 MB), weights_3.pt (3 MB), weights_2.pt (2 MB). "
        "Name what is no code in a .gitignore, or start in another folder"
    )


@pytest.mark.parametrize("name", ["../evil", "/tmp/minitrain-evil", "link/evil"])
def test_an_archive_writes_nowhere_else(name, tmp_path):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, ".."
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "there").mkdir()
    with pytest.raises(tarfile.FilterError):
        unpack(data.getvalue(), tmp_path / "there")
    assert not (tmp_path / "evil").exists()
