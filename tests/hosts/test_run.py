"""One run over several hosts: where ranks are, what they get, and what is found afterwards."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.hosts.drivers import reported, run_record
from tests.hosts.namespaces import DRIVER

HOSTS = ["h1", "h2"]
TORCHRUNS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"),
    *("GROUP_WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"),
)


def facts(folder: Path, ranks: int) -> list[dict]:
    return [json.loads((folder / f"facts_{rank}").read_text()) for rank in range(ranks)]


def variables(*names: str) -> dict:
    return {"variables": names}


@pytest.fixture
def hush(driver):
    """Give the driver secrets, and return what must not be seen of them."""
    secrets = {name: f"hush-{name}" for name in ("HF_TOKEN", "MY_PASSWORD", "WANDB_API_KEY")}
    with driver.environment(**secrets):
        yield "hush-"


# ------------------------------------------------------------------ places
@pytest.mark.parametrize(
    ("hosts", "num_workers", "strategy", "placed"),
    [
        (["h1:2", "h2:2"], 3, "PACK", ["h1", "h1", "h2"]),
        (["h1:2", "h2:2"], 2, "PACK", ["h1", "h1"]),
        (["h1:2", "h2:2"], 2, "SPREAD", ["h1", "h2"]),
        (["h2", "h1:2"], 3, "PACK", ["h2", "h2", "h1"]),
        pytest.param(
            ["h1", "localhost"], 2, "STRICT_SPREAD", ["h1", DRIVER], marks=pytest.mark.campaign
        ),
        pytest.param(["localhost", "h1"], 2, "PACK", [DRIVER, "h1"], marks=pytest.mark.campaign),
    ],
)
def test_ranks_are_contiguous_and_the_first_host_has_rank_0(
    driver, tmp_path, hosts, num_workers, strategy, placed
):
    scaling = {"placement_strategy": strategy}
    config = variables(*TORCHRUNS)
    answer = driver.fit("facts", tmp_path, hosts, num_workers, scaling=scaling, config=config)
    found = facts(tmp_path, num_workers)

    assert answer["value"] == placed[0], answer
    assert [one["host"] for one in found] == placed
    nodes = list(dict.fromkeys(placed))
    for rank, one in enumerate(found):
        local, size = placed[:rank].count(placed[rank]), placed.count(placed[rank])
        node = nodes.index(placed[rank])
        assert one["own"] == [rank, local, node, num_workers, size]
        environ = one["environ"]
        numbers = [rank, num_workers, local, size, node, node, len(nodes)]
        assert [environ[name] for name in TORCHRUNS[:7]] == list(map(str, numbers))
        if len(nodes) > 1:  # docker0 has the same address everywhere, and leads nowhere
            on_driver = "bridge" if one["host"] == DRIVER else "eth0"
            assert environ["MASTER_ADDR"] == driver.world.addresses[placed[0]]
            assert environ["GLOO_SOCKET_IFNAME"] == environ["NCCL_SOCKET_IFNAME"] == on_driver


@pytest.mark.campaign
def test_gradients_are_averaged_over_hosts_that_cannot_resolve_their_names(driver, tmp_path):
    config = {"torch": True, **variables()}
    answer = driver.fit("facts", tmp_path, HOSTS, 4, torch=True, config=config)

    assert answer["metrics"]["sum"] == 0 + 1 + 2 + 3, answer
    assert answer["metrics"]["grad"] == (1 + 2 + 3 + 4) / 4


# ------------------------------------------------------------------ what is left
def test_everything_is_found_where_the_driver_is(driver, tmp_path):
    run = {"log_ranks": "all"}
    answer = driver.fit("facts", tmp_path, ["h1:1", "h2:2"], 3, config=variables(), run=run)
    folder = tmp_path / "runs/run"

    assert answer["told"] == [[None] * 3]
    (row,) = reported(tmp_path)
    assert row["hostname"] == "h1"
    with (folder / "progress.csv").open() as table:
        assert [one["host"] for one in csv.DictReader(table)] == ["h1"]
    placed = ["h1", "h2", "h2"]
    (attempt,) = run_record(tmp_path)["attempts"]
    assert [one["hostname"] for one in attempt["workers"]] == placed
    for rank, host in enumerate(placed):
        log = (folder / f"logs/attempt_0/rank_{rank}.log").read_text()
        assert log == f"I am {rank} on {host}\n"
        assert f"[rank {rank}] I am {rank} on {host}\n" in driver.said


def test_a_stop_condition_and_callbacks_hear_of_reports_from_elsewhere(driver, tmp_path):
    run = {"stop": {"training_iteration": 2}}
    answer = driver.fit("three", tmp_path, HOSTS, 2, run=run)

    assert answer["told"] == [[0, 0], [1, 1]], answer
    assert [row["step"] for row in reported(tmp_path)] == [0, 1]
    assert run_record(tmp_path)["status"] == "stopped"


def test_the_next_run_has_the_same_agents(driver, tmp_path):
    answers = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        answers.append(driver.fit("three", tmp_path / str(number), ["h2", "h1"], 2))

    assert [answer["told"] for answer in answers] == [[[0, 0], [1, 1], [2, 2]]] * 2
    assert answers[0]["value"] == answers[1]["value"] > 1


# ------------------------------------------------------------------ what crosses
@pytest.mark.campaign
def test_what_is_usual_crosses_and_secrets_only_if_they_are_named(driver, hush, tmp_path):
    names = ("HF_HOME", "EDITOR", "CUDA_VISIBLE_DEVICES", "HF_TOKEN", "WANDB_API_KEY", "MINE")
    settings = {
        "config": variables(*names),
        "run": {"worker_runtime_env": {"env_vars": {"MINE": "yes"}}},
    }
    there = tmp_path / "named"
    there.mkdir()

    with driver.environment(HF_HOME="/models", EDITOR="vi", CUDA_VISIBLE_DEVICES="7"):
        driver.fit("facts", tmp_path, ["h1"], 1, **settings)
        driver.fit("facts", there, ["h1"], 1, **settings, launch={"env": ["WANDB_*", "HF_TOKEN"]})
    (usual,), (named,) = facts(tmp_path, 1), facts(there, 1)

    assert usual["environ"] == {**dict.fromkeys(names), "HF_HOME": "/models", "MINE": "yes"}
    assert named["environ"] == {**usual["environ"], "HF_TOKEN": f"{hush}HF_TOKEN"}


@pytest.mark.campaign
def test_no_secret_is_seen_by_ps(driver, hush, tmp_path):
    (tmp_path / "stay").touch()
    launch = {"env": ["HF_TOKEN"]}
    driver.begin_fit("steps", tmp_path, ["h1"], 1, config={"waits": True}, launch=launch)
    driver.wait_until((tmp_path / "at_0").exists, "the first step")
    listed = driver.world.run(["ps", "axo", "args"], check=True).stdout
    (tmp_path / "enough").touch()
    (tmp_path / "stay").unlink()

    assert "value" in driver.answer()
    assert "minitrain._agent" in listed
    assert hush not in listed


@pytest.mark.campaign
def test_a_folder_that_is_missing_there_is_named(driver, tmp_path):
    work = tmp_path / "mine/work"
    work.mkdir(parents=True)
    config, moved = variables(), {"working_dir": "/tmp"}
    with driver.working_in(work), driver.environment(MINITRAIN_CHDIR="0"):
        here = driver.fit("facts", tmp_path, ["h1"], 1, config=config)
        assert facts(tmp_path, 1)[0]["cwd"] == str(work), here

        driver.world.hide("h1", work.parent)
        run = {"name": "missing"}
        missing = driver.fit("facts", tmp_path, ["h1"], 1, config=config, run=run)
        assert f"h1 could not start its workers: the workers' directory {work}" in missing["text"]
        assert "--workdir" in missing["text"]

        run = {"name": "moved"}
        driver.fit("facts", tmp_path, ["h1"], 1, config=config, run=run, launch=moved)
        assert facts(tmp_path, 1)[0]["cwd"] == "/tmp"


def test_code_that_is_only_here_is_brought_there_and_removed(driver, tmp_path):
    code = tmp_path / "code/here"
    code.mkdir(parents=True)
    (code / "beside.py").write_text("WORD = 'found'\n")
    for host in HOSTS:
        driver.world.hide(host, code.parent)
    with driver.working_in(code):
        without = driver.fit("greet", tmp_path, HOSTS, 2)
        run = {"name": "synced"}
        synced = driver.fit("greet", tmp_path, HOSTS, 2, launch={"sync_code": True}, run=run)

    assert "No module named 'beside'" in without["text"]
    assert synced["metrics"]["word"] == "found", synced
    assert not Path(synced["metrics"]["file"]).is_relative_to(tmp_path)
    assert not Path(synced["metrics"]["file"]).exists()
