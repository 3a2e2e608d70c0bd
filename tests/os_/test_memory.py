"""The kernel's counters of out-of-memory kills, as machines and containers show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from minitrain._os import memory
from minitrain._os.memory import Cgroup, OomCounter, lowest_limit, memory_cgroup, oom_kills

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V2_UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
V1_PART = "9 5 0:32 /docker/ab /sys/fs/cgroup/memory ro,relatime master:9 - cgroup c rw,memory\n"


def version_1(name):
    return Cgroup(
        Path("/sys/fs/cgroup/memory"), name, "memory.oom_control", "memory.limit_in_bytes"
    )


def version_2(name):
    return Cgroup(Path("/sys/fs/cgroup"), name, "memory.events", "memory.max")


@pytest.mark.parametrize(
    ("cgroups", "mounts", "expected"),
    [
        ("0::/user.slice/a.scope\n", V2, version_2("/user.slice/a.scope")),
        ("0::/\n", V2, version_2("/")),
        ("5:cpu:/\n4:memory:/job/1\n0::/\n", V1 + V2_UNIFIED, version_1("/job/1")),
        ("4:hugetlb,memory:/job\n0::/\n", V2_UNIFIED + V1, version_1("/job")),
        ("4:memory:/docker/ab\n", V1_PART, version_1("/")),
        ("4:memory:/docker/ab/inner\n", V1_PART, version_1("/inner")),
        ("4:memory:/docker/abc\n", V1_PART, version_1("/")),
        ("4:memory:/a:b\n", V1, version_1("/a:b")),
        ("4:memory:/job\n", V2, None),
        ("0::/job\n", V1, None),
        ("1:cpu:/\n", V1, None),
        ("", "", None),
    ],
)
def test_the_memory_cgroup_is_found_where_it_is_mounted(cgroups, mounts, expected):
    assert memory_cgroup(cgroups, mounts) == expected


def test_the_limits_above_a_cgroup_hold_too():
    assert version_2("/a/b").lineage == [
        Path("/sys/fs/cgroup/a/b"),
        Path("/sys/fs/cgroup/a"),
        Path("/sys/fs/cgroup"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n", 2),
        ("oom_kill_disable 1\nunder_oom 1\noom_kill 7\n", 7),
        ("nr_free_pages 1\noom_kill 0\nnuma_hit 5\n", 0),
        ("oom_kill_disable 0\nunder_oom 0\n", None),
        ("", None),
    ],
    ids=["version 2", "version 1", "vmstat", "an old kernel's", "unreadable"],
)
def test_kills_are_read_from_any_of_the_kernels_files(text, expected):
    assert oom_kills(text) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["max\n", "1048576\n", "max\n"], 1 << 20),
        (["9223372036854771712\n", "4096\n", "2048\n"], 2048),
        (["9223372036854771712\n"], None),
        (["max\n", ""], None),
        ([], None),
    ],
)
def test_the_lowest_limit_counts(texts, expected):
    assert lowest_limit(texts) == expected


# ------------------------------------------------------------------ counting
@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "memory.events").write_text("oom_kill 3\n")
    (folder / "memory.max").write_text("max\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    own = Cgroup(tmp_path, "/job", "memory.events", "memory.max")
    monkeypatch.setattr(memory, "memory_cgroup", lambda *_: own)
    return folder


def test_only_kills_since_it_was_made_are_counted(cgroup):
    counter = OomCounter()
    assert str(counter.evidence()) == (
        "memory.events of /job counted no kills since the attempt began, limit 1 MiB"
    )
    (cgroup / "memory.events").write_text("oom_kill 4\n")
    evidence = counter.evidence()
    assert (evidence.kills, evidence.limit_bytes, evidence.whole_machine) == (1, 1 << 20, False)


def test_a_cgroup_that_has_vanished_proves_nothing(cgroup):
    counter = OomCounter()
    (cgroup / "memory.events").unlink()
    assert counter.evidence() is None


def test_without_a_cgroups_counter_the_whole_machines_is_read(cgroup, monkeypatch, tmp_path):
    (cgroup / "memory.events").unlink()  # as in the root of version 2
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_kill 3\n")
    monkeypatch.setattr(memory, "_VMSTAT", vmstat)
    counter = OomCounter()
    vmstat.write_text("oom_kill 5\n")
    assert str(counter.evidence()) == (
        f"{vmstat} counted 2 kills on the whole machine since the attempt began"
    )


def test_this_machine_has_a_counter():
    assert OomCounter().evidence().kills == 0
