"""Before anything is made: who is there, what they see, and where they are."""

from __future__ import annotations

import queue

import pytest

from minitrain import ScalingConfig
from minitrain._launched import surroundings
from minitrain._launched.letters import Farewell, Look, Present, Refused
from minitrain._launched.meeting import answer, gather, refuse
from minitrain._launched.surroundings import completed, own_gpus
from minitrain._os.gpus import Gpu
from minitrain._os.launchers import Launched
from minitrain.exceptions import CollectiveTimeoutError, ConfigurationError


class Wires:
    """A post that ends in this process: every rank's box is a queue."""

    def __init__(self, world_size):
        self.boxes = [queue.SimpleQueue() for _ in range(world_size)]
        self.rank = 0

    def send(self, to, letter):
        self.boxes[to].put((self.rank, letter))

    def flush(self):
        pass


def present(hostname, rank=0, *, sees=True):
    return Present(hostname, f"10.0.0.{rank + 1}", 100 + rank, 1, sees)


def launched(rank, world_size, **given):
    values = dict.fromkeys(("local_rank", "local_world_size", "node_rank")) | given
    return Launched("test", rank, world_size, **values, master_addr="127.0.0.1", master_port=1)


def test_a_directory_that_a_host_does_not_see_is_refused_by_its_name(tmp_path):
    wires = Wires(3)
    wires.boxes[0].put((2, present("b", 2, sees=False)))
    wires.boxes[0].put((1, present("a", 1)))
    with pytest.raises(ConfigurationError, match=r"rank 2 on b does not see .*share, or a URI"):
        gather(wires, wires.boxes[0], launched(0, 3), str(tmp_path / "runs"))
    assert list((tmp_path / "runs").iterdir()) == [], "the token is removed"


def test_ranks_that_see_it_are_returned_in_order(tmp_path):
    wires = Wires(3)
    for rank in (2, 1):
        wires.boxes[0].put((rank, present("b", rank)))
    assert [peer.pid for peer in gather(wires, wires.boxes[0], launched(0, 3), str(tmp_path))][
        1:
    ] == [101, 102]
    assert wires.boxes[1].get()[1].path.startswith(str(tmp_path))


def test_a_rank_looks_for_the_token(tmp_path):
    for path, sees in ((tmp_path / "no", False), (tmp_path, True), (None, True)):
        wires = Wires(2)
        wires.rank = 1
        wires.boxes[1].put((0, Look(path and str(path))))
        wires.boxes[1].put((0, Refused(ConfigurationError("no"))))
        with pytest.raises(ConfigurationError, match="no"):
            answer(wires, wires.boxes[1], launched(1, 2))
        assert wires.boxes[0].get()[1].sees is sees
        assert isinstance(wires.boxes[0].get()[1], Farewell)


def test_a_rank_that_does_not_come_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRAIN_COLLECTIVE_TIMEOUT_S", "0.05")
    wires = Wires(3)
    wires.boxes[0].put((1, present("b", 1)))
    with pytest.raises(CollectiveTimeoutError) as caught:
        gather(wires, wires.boxes[0], launched(0, 3), str(tmp_path))
    assert caught.value.missing_ranks == (2,)


def test_a_refusal_waits_for_those_who_hear_it():
    wires = Wires(2)
    wires.boxes[0].put((1, Farewell()))
    refuse(wires, wires.boxes[0], 2, ConfigurationError("no"))
    assert str(wires.boxes[1].get()[1].error) == "no"
    assert wires.boxes[0].empty()


HOSTS = [present(host, rank) for rank, host in enumerate("aabbb")]


def test_what_a_launcher_does_not_say_is_found_from_the_hosts():
    found = completed(launched(3, 5), HOSTS)
    assert (found.local_rank, found.local_world_size, found.node_rank) == (1, 3, 1)
    said = completed(launched(3, 5, local_rank=7, local_world_size=8), HOSTS)
    assert (said.local_rank, said.local_world_size, said.node_rank) == (7, 8, 1)
    said = completed(launched(3, 5, local_rank=7, local_world_size=8, node_rank=4), HOSTS)
    assert said.node_rank == 4


@pytest.mark.parametrize(
    ("num_visible", "resources", "local_rank", "expected"),
    [
        (4, None, 1, (1,)),
        (1, None, 1, (0,)),  # srun --gpus-per-task=1
        (4, {"GPU": 2}, 1, (2, 3)),
        (2, {"GPU": 2}, 1, (0, 1)),
        (1, {"GPU": 0.5}, 1, (0,)),
    ],
)
def test_gpus_are_those_of_the_local_rank_or_all_there_are_to_see(
    num_visible, resources, local_rank, expected, monkeypatch
):
    gpus = [Gpu(str(index), "", "") for index in range(num_visible)]
    monkeypatch.setattr(surroundings, "list_gpus", lambda: gpus)
    scaling = ScalingConfig(use_gpu=True, resources_per_worker=resources)
    one = launched(1, 2, local_rank=local_rank, local_world_size=2, node_rank=0)
    assert own_gpus(scaling, one) == expected
    assert own_gpus(ScalingConfig(), one) == ()


def test_without_a_gpu_none_is_promised(monkeypatch):
    monkeypatch.setattr(surroundings, "list_gpus", list)
    one = launched(1, 2, local_rank=1, local_world_size=2, node_rank=0)
    with pytest.raises(ConfigurationError, match="rank 1 needs 1 GPUs and sees 0"):
        own_gpus(ScalingConfig(use_gpu=True), one)
