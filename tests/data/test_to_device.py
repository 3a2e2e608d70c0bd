"""Batches on their way to a device."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import pytest

from minitrain import data
from minitrain.data.feeding.to_device import Moves, to_device

torch = pytest.importorskip("torch")


class Pair(NamedTuple):
    x: Any
    y: Any


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


def test_what_a_collate_fn_returns_is_moved():
    finish, _ = to_device(lambda batch: torch.as_tensor(batch["x"]), "meta", pin_memory=False)
    assert finish({"x": np.zeros(3)}).device.type == "meta"


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
