"""``docs/hosts.md`` taken at its word: its script and its commands, on hosts of those names.

Only ``/shared/results`` is replaced, by a folder of the test's: all hosts see that, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts.namespaces import DRIVER
from tests.hosts.world import World

PAGE = Path(__file__).parents[2] / "docs/hosts.md"
WITHIN_S = 90.0

# Where each rank is, and nothing that takes long to import.
WHERE = """
    import os, socket, sys

    import minitrain
    from minitrain import RunConfig, ScalingConfig
    from minitrain.trainer import DataParallelTrainer

    def train(config):
        context = minitrain.get_context()
        place = f"{context.get_node_rank()}.{context.get_local_rank()}"
        print(f"rank {context.get_world_rank()} is {place}", flush=True)
        minitrain.report({"size": context.get_world_size()})

    if __name__ == "__main__":
        workers, *hosts = sys.argv[1:]
        result = DataParallelTrainer(
            train,
            scaling_config=ScalingConfig(num_workers=int(workers), hosts=hosts or None),
            run_config=RunConfig(log_ranks="all"),
        ).fit()
        print("size", result.metrics["size"])
"""


def blocks(language: str) -> list[str]:
    """Return the page's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


Run = Callable[[str], subprocess.CompletedProcess]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return where a newcomer has ``train.py``."""
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def results(tmp_path) -> Path:
    """Return what stands for ``/shared/results``; it is not there yet."""
    return tmp_path / "shared/results"


@pytest.fixture
def run(world: World, folder: Path, results: Path, tmp_path: Path) -> Run:
    """Return a function that runs commands as a newcomer types them."""
    home = tmp_path / "home"
    home.mkdir()
    world.log_in(DRIVER, home)
    for host in world.hosts:
        world.log_in(host, home)
    (script,) = blocks("python")
    (folder / "train.py").write_text(script)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def type_in(commands: str) -> subprocess.CompletedProcess:
        commands = commands.replace("/shared/results", str(results))
        env = {"HOME": str(home), "PATH": path, "RESULTS": str(results)}
        said = world.run(
            ["bash", "-euc", commands], cwd=folder, env=env, timeout_s=WITHIN_S, check=True
        )
        assert "Traceback" not in said.stderr
        return said

    return type_in


def assert_trained(said: subprocess.CompletedProcess, results: Path) -> None:
    """Assert that the page's script has said what it prints."""
    lines = said.stdout.splitlines()
    assert "[rank 0] rank 0 is on h1" in lines
    assert "[rank 1] rank 1 is on h2" in lines
    total, path = lines[-1].split(" ", 1)
    assert total == "1.0"
    assert Path(path).parent == results
    assert sorted(log.name for log in Path(path, "logs/attempt_0").glob("rank_*.log")) == [
        *("rank_0.log", "rank_1.log")
    ]


def test_the_page_has_the_commands_that_are_tried_here():
    first, collect, sync = blocks("bash")
    assert "--check" in first
    assert "--collect train.py" in collect
    assert "--sync-code train.py" in sync
    assert len(blocks("python")) == 1


@pytest.mark.campaign
def test_the_first_commands(run, results):
    said = run(blocks("bash")[0])
    head, node1, node2 = said.stdout.splitlines()[:3]
    assert head.split()[:3] == ["host", "reachable", "Python"]
    for name, line in (("node1", node1), ("node2", node2)):
        assert line.split()[:2] == [name, "yes"]
        assert line.split()[-1] == "shared"
    assert_trained(said, results)


@pytest.mark.campaign
@pytest.mark.timeout(180)
def test_without_a_directory_that_all_see(run, results, world):
    results.mkdir(parents=True)
    for host in world.hosts:
        world.hide(host, results)
    assert_trained(run(blocks("bash")[1]), results)


@pytest.mark.campaign
@pytest.mark.timeout(180)
def test_with_a_copy_of_the_directory(run, results, world, folder):
    (folder / "helper.py").write_text("import socket\n\nhostname = socket.gethostname\n")
    script = (folder / "train.py").read_text().replace("import socket", "import helper")
    (folder / "train.py").write_text(script.replace("socket.gethostname()", "helper.hostname()"))
    for host in world.hosts:
        world.hide(host, folder)
    assert_trained(run(blocks("bash")[2]), results)


def test_a_dry_run_prints_what_would_go_there_and_no_secret(run):
    command = "python -m minitrain.launch --hosts node1,node2:2 --dry-run"
    said = run(f"export WANDB_API_KEY=hush; {command} --env WANDB_API_KEY train.py").stdout
    for host in ("node1:", "node2, at most 2 workers:"):
        assert host in said.splitlines()
    assert " -- node2 " in said
    assert "WANDB_API_KEY=(4 characters, not shown)" in said
    assert "WANDB_API_KEY" not in run(f"export WANDB_API_KEY=hush; {command} train.py").stdout


@pytest.mark.campaign
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("options", "arguments", "size", "places"),
    [
        ("--hosts node1,node2", "3", 3, ["0.0", "0.1", "1.0"]),
        ("--hosts node1:1,node2:2", "7", 3, ["0.0", "1.0", "1.1"]),
        ("--hosts node1,node2 --workers-per-host 2", "7", 4, ["0.0", "0.1", "1.0", "1.1"]),
        ("--hostfile hosts", "7", 3, ["0.0", "0.1", "1.0"]),
        ("", "3 node1:2 node2:4", 3, ["0.0", "0.1", "1.0"]),
        ("--hosts localhost,node2", "2", 2, ["0.0", "1.0"]),
    ],
)
def test_which_hosts_and_how_many_workers(run, folder, options, arguments, size, places):
    (folder / "where.py").write_text(textwrap.dedent(WHERE))
    (folder / "hosts").write_text("node1 slots=2  # the big one\n\nnode2:1\n")
    lines = run(f"python -m minitrain.launch {options} where.py {arguments}").stdout.splitlines()
    assert lines[-1] == f"size {size}"
    assert sorted(lines[:-1]) == [f"[rank {n}] rank {n} is {p}" for n, p in enumerate(places)]


@pytest.mark.campaign
@pytest.mark.timeout(180)
def test_a_template_for_a_transport(run, folder, world):
    template = "ip netns exec {host}"
    assert f"--transport 'sudo {template}'" in PAGE.read_text()
    (folder / "where.py").write_text(textwrap.dedent(WHERE))
    for name, host in (("n1", "h1"), ("n2", "h2")):
        pid = world.outside(f"/run/world/sshd.{host}.pid").read_text().strip()
        world.run(["ip", "netns", "attach", name, pid], check=True)
    said = run(f"python -m minitrain.launch --transport '{template}' --hosts n1,n2 where.py 2")
    assert said.stdout.splitlines()[-1] == "size 2"
