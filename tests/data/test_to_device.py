"""Batches on their way to a device."""

from __future__ import annotations

import threading
from collections import OrderedDict, UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from minitrain import data
from minitrain._batches import on_gpu
from minitrain.data.feeding.to_device import Moves, to_device

torch = pytest.importorskip("torch")


class Pair(NamedTuple):
    x: Any
    y: Any


class Own:
    """Somebody's batch class."""

    def __init__(self, x: Any) -> None:
        self.x = x
        self.whole = self

    def to(self, device: Any) -> Own:
        return Own(self.x.to(device))


def test_on_the_cpu_nothing_is_to_be_done():
    assert to_device(None, "cpu", pin_memory=False) == (None, None)


def test_tensors_are_moved_wherever_they_are_in_a_batch():
    finish, taken = to_device(None, "meta", pin_memory=False)
    assert taken is None
    one = torch.zeros(2)
    moved = finish({"pair": Pair(one, [one, "text"]), "tuple": (one, 3), "one": one})
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].y[1] == "text"
    assert moved["tuple"][1] == 3
    found = [moved["pair"].x, moved["pair"].y[0], moved["tuple"][0], moved["one"]]
    assert {tensor.device.type for tensor in found} == {"meta"}


def packed(x: Any) -> Any:
    return torch.nn.utils.rnn.pack_sequence([x, x[1:]])


@pytest.mark.parametrize(
    ("make", "tensor_of"),
    [
        pytest.param(lambda x: x, lambda batch: batch, id="tensor"),
        pytest.param(OrderedDict, lambda batch: batch["x"], id="ordered"),
        pytest.param(UserDict, lambda batch: batch["x"], id="mapping"),
        pytest.param(Own, lambda batch: batch.x, id="own class"),
        pytest.param(packed, lambda batch: batch.data, id="packed sequence"),
    ],
)
def test_what_a_collate_fn_returns_is_moved(make, tensor_of):
    def collate(batch: dict[str, Any]) -> Any:
        x = torch.as_tensor(batch["x"])
        return make({"x": x} if isinstance(make, type) and make is not Own else x)

    finish, _ = to_device(collate, "meta", pin_memory=False)
    moved = finish({"x": np.zeros(3)})
    assert tensor_of(moved).device.type == "meta"
    if isinstance(make, type):
        assert type(moved) is make


def test_what_lies_on_a_gpu_is_found_wherever_it_is_in_a_batch():
    def tensor(name: str, is_cuda: bool = True) -> Any:
        return SimpleNamespace(name=name, is_cuda=is_cuda, record_stream=None, to=None)

    batch = {
        "list": [tensor("a"), "text", 1],
        "pair": Pair(tensor("b"), tensor("not there", is_cuda=False)),
        "mapping": UserDict(x=tensor("c")),
        "own": Own([tensor("d")]),
    }
    assert sorted(one.name for one in on_gpu(batch)) == ["a", "b", "c", "d"]


def test_the_thread_that_takes_a_batch_is_the_one_that_keeps_it_for_its_stream(monkeypatch):
    taken_in = []

    def keep(batch):
        taken_in.append(threading.current_thread())
        assert set(batch) == {"id"}

    def on_gpu(collate_fn, device, *, pin_memory):
        return Moves(None, keep)

    monkeypatch.setattr("minitrain.data.feeding.to_device.to_device", on_gpu)
    assert len(list(data.range(10).iter_torch_batches(batch_size=5))) == 2
    assert taken_in == [threading.current_thread()] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("own_stream", [False, True])
def test_batches_arrive_whole_while_the_gpu_is_busy(pin_memory, own_stream):
    batches = data.range(1 << 20).iter_torch_batches(
        batch_size=1 << 16, device="cuda", pin_memory=pin_memory, prefetch_batches=3
    )
    with torch.cuda.stream(torch.cuda.Stream() if own_stream else None):
        busy = torch.rand(2000, 2000, device="cuda")
        total = torch.zeros((), dtype=torch.int64, device="cuda")
        for batch in batches:
            busy = busy @ busy
            total += batch["id"].sum()
        assert total.item() == (1 << 20) * ((1 << 20) - 1) // 2
