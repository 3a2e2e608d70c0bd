"""Looking at hosts: what is wrong with each, all at once, leaving nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minitrain._hosts.check import check_hosts
from minitrain._hosts.plan import Plan
from minitrain._hosts.spec import Host, parse_hosts
from tests.hosts.contacts import HERE, fake_python, into


@pytest.fixture
def plan(world):
    return Plan(hosts=parse_hosts(world.hosts), transport=into(world))


@pytest.mark.campaign
def test_hosts_that_share_a_folder(plan, tmp_path):
    checked = check_hosts(plan, 20, tmp_path / "not" / "yet" / "there")
    assert [one.facts.hostname for one in checked] == ["h1", "h2", "h3", "h4"]
    assert [one.error for one in checked] == [None] * 4
    assert [one.shares_storage for one in checked] == [True] * 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.campaign
def test_without_a_folder_nothing_is_said_of_it(plan):
    assert [one.shares_storage for one in check_hosts(plan, 20)] == [None] * 4


@pytest.mark.campaign
def test_each_host_has_its_own_trouble(plan, world, tmp_path):
    world.hide("h1", tmp_path)
    world.on("h2").run(["mount", "--bind", str(tmp_path), str(tmp_path)], check=True)
    world.on("h2").run(["mount", "-o", "remount,bind,ro", str(tmp_path)], check=True)
    world.power_off("h4")
    options = ["-o", "ConnectTimeout=1"]
    try:
        checked = check_hosts(replace(plan, transport=into(world, *options)), 20, tmp_path)
    finally:
        world.on("h2").run(["umount", str(tmp_path)], check=True)
    problems = [one.error and (one.error.host, one.error.problem) for one in checked]
    assert problems == [
        ("h1", f"does not share {tmp_path}"),
        ("h2", f"does not share {tmp_path}"),
        None,
        ("h4", "cannot be reached"),
    ]
    assert "No such file or directory" in checked[0].error.words
    assert "Read-only file system" in checked[1].error.words
    assert "--collect" in checked[1].error.advice
    assert [one.shares_storage for one in checked] == [False, False, True, None]
    assert checked[3].facts is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_only_looks_shared_is_seen_through(plan, world, tmp_path):
    """A copy has the question in it, but the answer does not come back."""
    overlay = tmp_path / "shared"
    overlay.mkdir()
    script = f"mount -t tmpfs tmpfs /mnt && mkdir /mnt/up /mnt/work && mount -t overlay overlay \
        -o lowerdir={overlay},upperdir=/mnt/up,workdir=/mnt/work {overlay}"
    if world.on("h1").run(["sh", "-c", script]).returncode:
        pytest.skip("no overlay filesystem here")
    try:
        (first, *_) = check_hosts(replace(plan, hosts=(Host("h1"),)), 20, overlay)
    finally:
        world.on("h1").run(["umount", str(overlay), "/mnt"], check=True)
    assert first.shares_storage is False
    assert "was written there and is not seen here" in first.error.words


@pytest.mark.campaign
def test_one_that_does_not_answer_does_not_keep_the_others_waiting(tmp_path):
    silent = fake_python(tmp_path, before="cat >/dev/null")
    hosts = parse_hosts(["localhost", "silent"])
    here, late = check_hosts(Plan(hosts=hosts, transport=HERE, python=str(silent)), 3)
    assert here.error is None
    assert str(late.error).startswith("silent did not answer within 3 s. ")


def test_one_that_is_not_fit_still_says_what_it_is(tmp_path):
    python = fake_python(tmp_path, minitrain="99.0", after="cat >/dev/null")
    (one,) = check_hosts(Plan(hosts=(Host("far"),), transport=HERE, python=str(python)), 20)
    assert one.facts.versions.minitrain == "99.0"
    assert one.error.problem.startswith("has minitrain 99.0")


def test_one_that_ends_before_it_has_looked_is_told(tmp_path):
    python = fake_python(tmp_path, after="echo oh >&2; exit 3")
    plan = Plan(hosts=(Host("far"),), transport=HERE, python=str(python))
    (one,) = check_hosts(plan, 20, tmp_path)
    assert "oh" in str(one.error)


def test_a_transport_that_is_not_here_fails_every_host():
    transport = replace(HERE, template=("/no/such/program", "{host}"))
    checked = check_hosts(Plan(hosts=parse_hosts("a,b"), transport=transport), 20)
    assert ["cannot be started here" in one.error.problem for one in checked] == [True, True]


def test_a_folder_that_cannot_be_written_to_here_is_no_hosts_fault():
    with pytest.raises(OSError, match="minitrain"):
        check_hosts(Plan(hosts=(Host("a"),), transport=HERE), 20, "/proc/self")


def test_an_answer_that_comes_with_the_greeting_at_the_end_is_one(world, tmp_path):
    said = tmp_path / "said"
    python = fake_python(
        tmp_path,
        before=f"exec 3>&1 1>{said}",
        after=f"echo '<minitrain>{{}}'; cat {said} >&3",
    )
    (one,) = check_hosts(Plan(hosts=(Host("h1"),), transport=into(world), python=str(python)), 20)
    assert one.error is None
    assert one.facts.hostname == "fake"


def test_nothing_of_the_environment_is_on_a_command_line(world, monkeypatch, tmp_path):
    monkeypatch.setenv("NCCL_DEBUG", "a-value-to-look-for")
    seen = tmp_path / "seen"
    python = fake_python(
        tmp_path, after=f"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' >{seen}; echo '<minitrain>{{}}'"
    )
    (one,) = check_hosts(Plan(hosts=(Host("h1"),), transport=into(world), python=str(python)), 20)
    assert one.error is None
    assert str(python) in seen.read_text()
    assert "a-value-to-look-for" not in seen.read_text()
