"""Batches on their way to a device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from minitrain import data
from minitrain.data.feeding.to_device import to_device

torch = pytest.importorskip("torch")


class Pair(NamedTuple):
    x: Any
    y: Any


def test_on_the_cpu_nothing_is_to_be_done():
    assert to_device(None, "cpu", pin_memory=False) is None


def test_tensors_are_moved_wherever_they_are_in_a_batch():
    finish = to_device(None, "meta", pin_memory=False)
    one = torch.zeros(2)
    moved = finish({"pair": Pair(one, [one, "text"]), "tuple": (one, 3), "one": one})
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].y[1] == "text"
    assert moved["tuple"][1] == 3
    found = [moved["pair"].x, moved["pair"].y[0], moved["tuple"][0], moved["one"]]
    assert {tensor.device.type for tensor in found} == {"meta"}


def test_what_a_collate_fn_returns_is_moved():
    finish = to_device(lambda batch: torch.as_tensor(batch["x"]), "meta", pin_memory=False)
    assert finish({"x": np.zeros(3)}).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pin_memory", [False, True])
def test_batches_arrive_whole_while_the_gpu_is_busy(pin_memory):
    batches = data.range(1 << 20).iter_torch_batches(
        batch_size=1 << 16, device="cuda", pin_memory=pin_memory, prefetch_batches=3
    )
    busy = torch.rand(2000, 2000, device="cuda")
    total = torch.zeros((), dtype=torch.int64, device="cuda")
    for batch in batches:
        busy = busy @ busy
        total += batch["id"].sum()
    assert total.item() == (1 << 20) * ((1 << 20) - 1) // 2
