"""A folder that several want is filled once, and gone when the last has left."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from minitrain._os.shared_copies import shared_copy


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies" / "copy"


class Filling:
    """Fills a folder, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, target: Path) -> None:
        assert list(target.iterdir()) == [], "it begins with an empty folder"
        self.count += 1
        (target / "file").write_text("whole")


def refuse(target):
    (target / "file").write_text("half")
    raise ZeroDivisionError


def test_it_is_filled_before_and_gone_after(folder):
    with shared_copy(folder, Filling()):
        assert (folder / "file").read_text() == "whole"
    assert list(folder.parent.iterdir()) == []


def test_those_inside_share_it_and_the_last_one_removes_it(folder):
    fill = Filling()
    with shared_copy(folder, fill):
        with shared_copy(folder, fill):
            assert fill.count == 1
        assert (folder / "file").exists()
    assert not folder.exists()
    with shared_copy(folder, fill):
        assert fill.count == 2


def test_nobody_else_can_read_it(folder):
    with shared_copy(folder, Filling()):
        for path in folder.parent.iterdir():
            assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("failing", [refuse, None], ids=["while filling", "inside"])
def test_an_error_passes_and_leaves_nothing(folder, failing):
    with pytest.raises(ZeroDivisionError), shared_copy(folder, failing or Filling()):
        raise ZeroDivisionError
    assert list(folder.parent.iterdir()) == []


def test_it_may_be_gone_already_with_the_folder_around_it(folder):
    with shared_copy(folder, Filling()):
        shutil.rmtree(folder.parent)
    assert not folder.parent.exists()


def test_after_a_failure_somebody_else_may_fill_it(folder):
    with pytest.raises(ZeroDivisionError), shared_copy(folder, refuse):
        pass
    with shared_copy(folder, Filling()):
        assert (folder / "file").read_text() == "whole"


def test_what_a_killed_process_left_half_filled_is_started_again(folder):
    half = folder.with_name(f"{folder.name}.part")
    half.mkdir()
    (half / "other").write_text("half")
    folder.with_name(f"{folder.name}.lock").touch()
    with shared_copy(folder, Filling()):
        assert os.listdir(folder) == ["file"]
    assert list(folder.parent.iterdir()) == []


def test_who_waited_for_a_lock_that_was_removed_takes_the_new_one(folder):
    lock = folder.with_name(f"{folder.name}.lock")
    fill = Filling()
    entered = threading.Event()

    def use():
        with shared_copy(folder, fill):
            entered.set()

    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=use)
        waiting.start()
        wait_until_somebody_waits(lock)
        lock.unlink()  # as the last user does
        with lock.open("w") as newly_held:  # as the next one does
            fcntl.flock(newly_held, fcntl.LOCK_EX)
            held.close()
            wait_until_somebody_waits(lock)
            assert not entered.is_set()
    waiting.join(30)
    assert entered.is_set()
    assert list(folder.parent.iterdir()) == [], "the new lock is removed: it was the one in use"


def test_who_waited_while_it_was_filled_does_not_wait_for_its_users(folder):
    inside, leave = threading.Barrier(4), threading.Event()
    lock = folder.with_name(f"{folder.name}.lock")
    fill = Filling()

    def use():
        with shared_copy(folder, fill):
            inside.wait(30)
            leave.wait(30)

    threads = [threading.Thread(target=use) for _ in range(3)]
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for thread in threads:
            thread.start()
        wait_until_somebody_waits(lock, 3)
    inside.wait(30)  # all three are in at the same time
    leave.set()
    for thread in threads:
        thread.join()
    assert fill.count == 1
    assert list(folder.parent.iterdir()) == []


def wait_until_somebody_waits(lock: Path, number: int = 1) -> None:
    inode = f":{lock.stat().st_ino} "
    deadline_s = time.monotonic() + 30
    while True:
        lines = Path("/proc/locks").read_text().splitlines()
        if sum("->" in line and inode in line for line in lines) >= number:
            return
        assert time.monotonic() < deadline_s, "nobody waits"
        os.sched_yield()


def test_many_that_come_and_go_never_see_half_of_it(folder):
    errors = []

    def come_and_go():
        try:
            for _ in range(50):
                with shared_copy(folder, lambda target: (target / "file").write_text("whole")):
                    assert (folder / "file").read_text() == "whole"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(folder.parent.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("planted", ["lock", "folder"])
def test_what_another_user_has_put_there_is_refused(folder, planted):
    if planted == "lock":
        foreign = folder.with_name(f"{folder.name}.lock")
        foreign.touch()
    else:
        foreign = folder
        foreign.mkdir()
    shutil.chown(foreign, 12345)
    with pytest.raises(PermissionError, match="another user"), shared_copy(folder, Filling()):
        pass
    assert foreign.exists()
