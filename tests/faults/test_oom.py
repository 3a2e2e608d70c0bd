"""The kernel's out-of-memory killer at work, for real: in a memory cgroup with a limit."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

LIMIT_MIB = 1024
LIMITS = {  # what limits memory alone and, where there is swap, memory and swap together
    "/sys/fs/cgroup/memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    "/sys/fs/cgroup": ("memory.max", "memory.swap.max"),
}
SCRIPT = """
    import os
    from pathlib import Path

    Path(os.environ["CGROUP"], "cgroup.procs").write_text(str(os.getpid()))

    import minitrain
    from minitrain import RunConfig, ScalingConfig
    from minitrain.torch import TorchTrainer

    def eat():
        eaten = []
        while True:
            eaten.append(b"x" * (32 << 20))

    def train():
        {train}

    TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="oom", storage_path=Path(__file__).parent),
    ).fit()
"""


@pytest.fixture
def cgroup():
    """A memory cgroup with a limit; only root may make one."""
    mount = next((Path(one) for one in LIMITS if Path(one, "cgroup.procs").exists()), None)
    if mount is None:
        pytest.skip("no memory cgroups here")
    memory, both = LIMITS[str(mount)]
    folder = mount / f"minitrain-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        if not (folder / memory).exists():
            pytest.skip("the memory controller is not enabled here")
        (folder / memory).write_text(str(LIMIT_MIB << 20))
        if (folder / both).exists():
            (folder / both).write_text("0" if "swap" in both else str(LIMIT_MIB << 20))
        yield folder
    finally:
        deadline_s = time.monotonic() + 10
        while folder.exists():  # it goes when its last process is gone
            try:
                folder.rmdir()
            except OSError:
                assert time.monotonic() < deadline_s, (folder / "cgroup.procs").read_text()
                time.sleep(0.01)


def last_words(start_script, cgroup, train: str) -> str:
    """Run a script whose train function is these lines, and return what it printed."""
    indented = train.strip().replace("\n", "\n" + " " * 8)
    script = start_script(SCRIPT.format(train=indented), env={"CGROUP": str(cgroup)})
    assert script.wait() == 1, script.output
    return script.output


@pytest.mark.campaign
def test_an_out_of_memory_kill_is_told_with_its_evidence(start_script, cgroup):
    text = last_words(
        start_script,
        cgroup,
        "if minitrain.get_context().get_world_rank() == 1: eat()\nminitrain.collective.barrier()",
    )
    (line,) = [line for line in text.splitlines() if "Training failed: rank 1" in line]
    assert "was killed by the out-of-memory killer: memory." in line
    assert f"of /{cgroup.name} counted 1 kill since the attempt began" in line
    assert f"limit {LIMIT_MIB:,} MiB; its peak memory was " in line
    assert "Memory ran out: use fewer workers" in text


@pytest.mark.campaign
def test_a_kill_by_somebody_else_is_not_blamed_on_memory(start_script, cgroup):
    text = last_words(start_script, cgroup, "os.kill(os.getpid(), 9)")
    assert "was killed by SIGKILL, but not by the out-of-memory killer: memory." in text
    assert f"of /{cgroup.name} counted no kills since the attempt began" in text
    assert "Somebody sent the signal" in text
    assert "use fewer workers" not in text


@pytest.mark.campaign
def test_a_data_loaders_process_that_was_killed_is_evidence_in_the_workers_error(
    start_script, cgroup
):
    text = last_words(
        start_script,
        cgroup,
        """
from torch.utils.data import DataLoader

class Hungry(list):
    def __getitem__(self, index):
        eat()

next(iter(DataLoader(Hungry([0]), num_workers=1)))
""",
    )
    assert "DataLoader worker" in text
    assert "The out-of-memory killer was at work: memory." in text
    assert f"of /{cgroup.name} counted " in text
