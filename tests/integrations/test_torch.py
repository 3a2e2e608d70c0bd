"""minitrain.torch in real workers: process groups, models, loaders, devices, precision."""

from __future__ import annotations

import collections
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minitrain
from minitrain import RunConfig, ScalingConfig
from minitrain.exceptions import ConfigurationError, WorkerGroupError
from minitrain.torch import TorchCheckpoint, TorchConfig, TorchTrainer
from minitrain.torch.loader import move


def run(function, num_workers=2, *, config=None, torch_config=None, **run_config):
    return TorchTrainer(
        function,
        train_loop_config=config,
        torch_config=torch_config,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(**run_config),
    ).fit()


def every_rank(function, num_workers=2):
    """Return what a function returns on each rank."""

    def train():
        gathered = [None] * num_workers
        torch.distributed.all_gather_object(gathered, function())
        return gathered

    return run(train, num_workers).return_value


# ------------------------------------------------------------------ process group
@pytest.mark.parametrize("init_method", ["env", "tcp"])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_process_group_works(init_method, num_workers):
    def train():
        import torch.distributed as dist

        total = torch.ones(1) * (dist.get_rank() + 1)
        dist.all_reduce(total)
        return total.item(), dist.get_world_size(), dist.get_backend()

    result = run(train, num_workers, torch_config=TorchConfig(init_method=init_method))
    assert result.return_value == (num_workers * (num_workers + 1) / 2, num_workers, "gloo")


@pytest.mark.campaign
def test_a_collective_times_out_as_configured():
    def train():
        if minitrain.get_context().get_world_rank() == 0:
            torch.distributed.all_reduce(torch.ones(1))
        else:
            import signal

            signal.pause()

    with pytest.raises(WorkerGroupError, match="Timed out waiting 500ms"):
        run(train, 2, torch_config=TorchConfig(timeout_s=0.5))


def test_a_backend_that_does_not_exist_fails_the_run_with_torchs_words():
    with pytest.raises(minitrain.TrainingFailedError, match=r"(?i)nosuch"):
        run(lambda: None, 1, torch_config=TorchConfig(backend="nosuch"))


def test_libraries_that_know_torchrun_work_unchanged():
    def train():
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        total = accelerator.reduce(torch.tensor(float(accelerator.process_index + 1)))
        return accelerator.num_processes, total.item()

    assert run(train, 2).return_value == (2, 3.0)


# ------------------------------------------------------------------ models
def test_ddp_gives_the_gradients_of_the_whole_batch():
    data = torch.arange(8.0).reshape(8, 1)

    def gradients():
        rank = minitrain.get_context().get_world_rank()
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        model = minitrain.torch.prepare_model(model)
        assert type(model).__name__ == "DistributedDataParallel"
        (model(data[rank::2]) ** 2).mean().backward()
        return model.module.weight.grad.item()

    expected = (2 * data**2).mean().item()
    assert every_rank(gradients) == pytest.approx([expected, expected])


def test_fsdp_divides_the_parameters_and_trains_as_one_process_does():
    def build():
        torch.manual_seed(0)
        layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        model = nn.Module()
        model.layers = layers

        def forward(x):
            for layer in layers:
                x = torch.tanh(layer(x))
            return x

        model.forward = forward
        return model

    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def sharded():
        from torch.distributed.tensor import DTensor

        rank = minitrain.get_context().get_world_rank()
        model = minitrain.torch.prepare_model(build(), parallel_strategy="fsdp")
        local = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss = (model(data[rank::2]) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        whole = torch.cat([p.full_tensor().flatten() for p in model.parameters()])
        return local, whole.tolist()

    alone = build()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for _ in range(3):
        (alone(data) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.cat([p.detach().flatten() for p in alone.parameters()]).tolist()
    for local, whole in every_rank(sharded):
        assert local == 20, "half of the 40 parameters"
        assert whole == pytest.approx(expected, abs=1e-5)


def test_one_worker_needs_no_wrapper_and_a_wrong_strategy_is_refused():
    def train():
        model = nn.Linear(1, 1)
        assert minitrain.torch.prepare_model(model) is model
        with pytest.raises(ValueError, match=r"parallel_strategy='dpp'.*'ddp', 'fsdp' or None"):
            minitrain.torch.prepare_model(model, parallel_strategy="dpp")

    run(train, 1)


def test_none_moves_only():
    def kind():
        return type(minitrain.torch.prepare_model(nn.Linear(1, 1), parallel_strategy=None)).__name__

    assert every_rank(kind) == ["Linear", "Linear"]


# ------------------------------------------------------------------ data loaders
def test_each_rank_gets_its_part_and_all_of_it_together():
    data = TensorDataset(torch.arange(10))

    def rows():
        loader = minitrain.torch.prepare_data_loader(DataLoader(data, batch_size=3))
        return [batch[0].tolist() for batch in loader]

    assert every_rank(rows) == [[[0, 2, 4], [6, 8]], [[1, 3, 5], [7, 9]]]


def test_a_shuffled_loader_shuffles_alike_on_all_ranks_and_anew_in_each_epoch():
    data = TensorDataset(torch.arange(20))

    def epochs():
        loader = minitrain.torch.prepare_data_loader(DataLoader(data, batch_size=4, shuffle=True))
        seen = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            seen.append([row for batch in loader for row in batch[0].tolist()])
        return seen

    first, second = every_rank(epochs)
    for epoch in range(2):
        assert sorted(first[epoch] + second[epoch]) == list(range(20))
    assert first[0] != first[1]
    assert first[0] != sorted(first[0])


def seeded_start(worker):
    """Stand for a user's worker_init_fn."""


def test_everything_the_user_set_stays():
    def settings():
        generator = torch.Generator().manual_seed(7)
        loader = minitrain.torch.prepare_data_loader(
            DataLoader(
                TensorDataset(torch.arange(20)),
                batch_size=3,
                drop_last=True,
                num_workers=1,
                persistent_workers=True,
                prefetch_factor=5,
                multiprocessing_context="fork",
                generator=generator,
                worker_init_fn=seeded_start,
                timeout=7,
                collate_fn=len,
            )
        )
        kept = {
            "batch_size": loader.batch_size == 3,
            "drop_last": loader.drop_last is True,
            "num_workers": loader.num_workers == 1,
            "persistent_workers": loader.persistent_workers is True,
            "prefetch_factor": loader.prefetch_factor == 5,
            "context": loader.multiprocessing_context.get_start_method() == "fork",
            "generator": loader.generator is generator,
            "worker_init_fn": loader.worker_init_fn.__name__ == "seeded_start",
            "timeout": loader.timeout == 7,
            "collate_fn": loader.collate_fn is len,
            "batches": list(loader) == [3, 3, 3],
        }
        return [name for name, stayed in kept.items() if not stayed]

    assert every_rank(settings) == [[], []]


def test_a_batch_sampler_of_the_users_own_is_divided_not_lost():
    data = TensorDataset(torch.arange(100))

    class ByHand:
        def __iter__(self):
            for first in range(5):
                yield [first * 10, first * 10 + 1]

        def __len__(self):
            return 5

    def batches():
        loader = DataLoader(data, batch_sampler=ByHand())
        prepared = minitrain.torch.prepare_data_loader(loader)
        return len(prepared), [batch[0].tolist() for batch in prepared]

    first, second = every_rank(batches)
    assert first == (3, [[0, 1], [20, 21], [40, 41]])
    assert second == (3, [[10, 11], [30, 31], [0, 1]]), "the last repeats the first: equal counts"


def test_a_plain_batch_sampler_keeps_its_batches():
    from torch.utils.data import BatchSampler, SequentialSampler

    data = TensorDataset(torch.arange(8))

    def batches():
        sampler = BatchSampler(SequentialSampler(data), batch_size=2, drop_last=False)
        loader = minitrain.torch.prepare_data_loader(DataLoader(data, batch_sampler=sampler))
        return [batch[0].tolist() for batch in loader]

    assert every_rank(batches) == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


def test_a_weighted_sampler_stays_weighted_and_ranks_take_turns():
    from torch.utils.data import WeightedRandomSampler

    data = TensorDataset(torch.arange(4))

    def rows():
        sampler = WeightedRandomSampler([0.0, 1.0, 1.0, 0.0], 40)
        loader = minitrain.torch.prepare_data_loader(DataLoader(data, sampler=sampler))
        return [batch[0].item() for batch in loader]

    first, second = every_rank(rows)
    assert len(first) == len(second) == 20
    assert set(first) | set(second) == {1, 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        everything = list(WeightedRandomSampler([0.0, 1.0, 1.0, 0.0], 40))
    assert first == everything[0::2]
    assert second == everything[1::2]


def test_what_is_divided_already_or_cannot_be_is_left_alone():
    from torch.utils.data import IterableDataset
    from torch.utils.data.distributed import DistributedSampler

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    def loaders():
        prepare = minitrain.torch.prepare_data_loader
        data = TensorDataset(torch.arange(4))
        divided = DataLoader(data, sampler=DistributedSampler(data))
        stream = DataLoader(Stream())
        whole = DataLoader(data)
        return (
            prepare(divided) is divided,
            prepare(stream) is stream,
            prepare(whole, add_dist_sampler=False) is whole,
        )

    assert every_rank(loaders) == [(True, True, True)] * 2


class Pair(NamedTuple):
    """A batch with names."""

    left: Any
    right: Any


class Own:
    """Somebody's batch class."""

    def to(self, device):
        self.device = device
        return self


def test_moving_keeps_the_structure_and_its_types():
    meta = torch.device("meta")
    tensor = torch.ones(2)
    batch = {
        "pair": Pair(tensor, [tensor, "text"]),
        "ordered": collections.OrderedDict(a=tensor),
        "user": collections.UserDict(a=tensor),
        "own": Own(),
        "tuple": (tensor, 1),
    }
    moved = move(batch, meta)
    assert type(moved["pair"]) is Pair
    assert moved["pair"].left.device == moved["pair"].right[0].device == meta
    assert moved["pair"].right[1] == "text"
    assert type(moved["ordered"]) is collections.OrderedDict
    assert type(moved["user"]) is collections.UserDict
    assert moved["user"]["a"].device == meta
    assert moved["own"].device == meta
    assert moved["tuple"][0].device == meta
    assert batch["user"]["a"].device == tensor.device, "the caller's batch is left alone"


# ------------------------------------------------------------------ numbers and precision
def test_enable_reproducibility_gives_the_same_numbers_again():
    def numbers():
        import random

        import numpy as np

        minitrain.torch.enable_reproducibility(3)
        loader = minitrain.torch.prepare_data_loader(
            DataLoader(Noise(), batch_size=2, num_workers=1, shuffle=True)
        )
        drawn = [value for batch in loader for value in batch.tolist()]
        return random.random(), np.random.rand(), torch.rand(1).item(), drawn

    first, second = every_rank(numbers), every_rank(numbers)
    assert first == second
    assert torch.are_deterministic_algorithms_enabled() is False, "only the workers"


class Noise(torch.utils.data.Dataset):
    """Rows that depend on the random numbers of the loader's process."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        import numpy as np

        return np.random.rand()


def test_mixed_precision_computes_in_half_and_keeps_the_weights():
    def train():
        minitrain.torch.accelerate(amp=True)
        with pytest.raises(RuntimeError, match="called before"):
            minitrain.torch.accelerate()
        model = minitrain.torch.prepare_model(nn.Linear(4, 1))
        optimizer = minitrain.torch.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        before = model.weight.detach().clone()
        out = model(torch.ones(2, 4))
        minitrain.torch.backward(out.float().sum())
        optimizer.step()
        return str(out.dtype), str(model.weight.dtype), bool((model.weight != before).all())

    assert run(train, 1).return_value == ("torch.bfloat16", "torch.float32", True)


def test_torch_checkpoints_hold_models():
    model = nn.Linear(2, 1)
    by_state = TorchCheckpoint.from_state_dict(
        {f"module.{name}": value for name, value in model.state_dict().items()}
    )
    whole = TorchCheckpoint.from_model(model)
    try:
        for loaded in (by_state.get_model(nn.Linear(2, 1)), whole.get_model()):
            assert torch.equal(loaded.weight, model.weight)
        with pytest.raises(ValueError, match=r"get_model\(model\)"):
            by_state.get_model()
    finally:
        shutil.rmtree(by_state.path)
        shutil.rmtree(whole.path)


# ------------------------------------------------------------------ GPUs, with a driver of our own
NVML = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 4; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1); return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    strcpy(name, "NVIDIA A100-SXM4-80GB"); return 0;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    strcpy(uuid, "GPU-0000"); uuid[4] += (unsigned long)device; return 0;
}
"""

GPU_SCRIPT = """
import json, os, sys
import minitrain
from minitrain import RunConfig, ScalingConfig, UserCallback
from minitrain.torch import TorchConfig, TorchTrainer, get_device, get_devices

def train():
    minitrain.report({
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "device": str(get_device()),
        "devices": [str(device) for device in get_devices()],
    })

class Show(UserCallback):
    def after_report(self, run_context, metrics, checkpoint):
        print(json.dumps(metrics))

num_workers, scaling = json.loads(sys.argv[1])
try:
    TorchTrainer(
        train,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=True, **scaling),
        run_config=RunConfig(callbacks=[Show()], verbose=0),
    ).fit()
except ValueError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory):
    """A management library that says there are four GPUs."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a GPU driver's library with")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"],
        check=True,
    )
    return folder


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("num_workers", "scaling", "variable", "visible", "devices"),
    [
        pytest.param(2, {}, None, "0,1", [["cuda:0"], ["cuda:1"]], marks=pytest.mark.campaign),
        (2, {"resources_per_worker": {"GPU": 2}}, None, "0,1,2,3",
         [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"]]),
        pytest.param(2, {"resources_per_worker": {"GPU": 0.5}}, None, "0",
                     [["cuda:0"], ["cuda:0"]], marks=pytest.mark.campaign),
        pytest.param(2, {"accelerator_type": "A100"}, "3,1", "3,1", [["cuda:0"], ["cuda:1"]],
                     marks=pytest.mark.campaign),
    ],
)  # fmt: skip
def test_workers_see_all_gpus_of_the_run_and_get_their_own(
    nvml, start_script, num_workers, scaling, variable, visible, devices
):
    output = _with_gpus(start_script, nvml, num_workers, scaling, variable)
    (line,) = [line for line in output.splitlines() if line.startswith("[{")]
    import json

    metrics = json.loads(line)
    assert [one["visible"] for one in metrics] == [visible] * num_workers
    assert [one["devices"] for one in metrics] == devices
    assert [one["device"] for one in metrics] == [names[0] for names in devices]


@pytest.mark.parametrize(
    ("num_workers", "scaling", "variable", "message"),
    [
        (5, {}, None, "asks for 5 GPUs (5 workers with 1 each), but this machine has 4"),
        pytest.param(
            2,
            {},
            "1",
            "asks for 2 GPUs (2 workers with 1 each), but this machine has 1",
            marks=pytest.mark.campaign,
        ),
        pytest.param(
            1,
            {"accelerator_type": "H100"},
            None,
            "this machine has NVIDIA A100-SXM4-80GB",
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_gpus_that_are_not_there_are_refused(
    nvml, start_script, storage, num_workers, scaling, variable, message
):
    assert message in _with_gpus(start_script, nvml, num_workers, scaling, variable)
    assert not storage.exists(), "nothing was begun"


def _with_gpus(start_script, nvml, num_workers, scaling, variable) -> str:
    import json

    env = {"LD_LIBRARY_PATH": str(nvml)}
    if variable:
        env["CUDA_VISIBLE_DEVICES"] = variable
    script = start_script(GPU_SCRIPT, json.dumps([num_workers, scaling]), env=env)
    assert script.wait() == 0, script.output
    return script.output


def test_a_machine_without_gpus_says_so():
    if sys.platform != "linux" or Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine may have GPUs")
    with pytest.raises(ConfigurationError, match=r"asks for 1 GPU .*this machine has 0"):
        TorchTrainer(lambda: None, scaling_config=ScalingConfig(use_gpu=True)).fit()


@pytest.mark.gpu
def test_nccl_and_the_copying_loader_on_real_gpus():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def train():
        device = minitrain.torch.get_device()
        loader = DataLoader(TensorDataset(torch.arange(100.0)), batch_size=7, pin_memory=True)
        total = torch.zeros(1, device=device)
        for (batch,) in minitrain.torch.prepare_data_loader(loader):
            assert batch.device == device
            total += batch.sum()
        torch.distributed.all_reduce(total)
        return total.item(), torch.distributed.get_backend()

    trainer = TorchTrainer(train, scaling_config=ScalingConfig(num_workers=1, use_gpu=True))
    assert trainer.fit().return_value == (4950.0, "nccl")
