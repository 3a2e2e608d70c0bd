"""save_state and load_state in real workers: every wrapping into every other, on any number."""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import minitrain
from minitrain import Checkpoint, RunConfig, ScalingConfig
from minitrain.exceptions import CheckpointError, WorkerGroupError
from minitrain.torch import TorchConfig, TorchTrainer, load_state, prepare_model, save_state
from minitrain.trainer import DataParallelTrainer


def run(function, num_workers, *, resume=None, torch_config=None, **config):
    return TorchTrainer(
        function,
        train_loop_config=config,
        torch_config=torch_config,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(),
        resume_from_checkpoint=resume,
    ).fit()


class Network(nn.Module):
    """Sizes that no number of workers divides, one smaller than that number, and a buffer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 2)])
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        return self.layers[1](torch.tanh(self.norm(self.layers[0](x))))


def make(strategy):
    """Return a model, an optimizer and a schedule that nobody has trained yet."""
    torch.manual_seed(os.getpid())
    model = Network()
    if strategy == "ddp":  # its ranks begin alike
        torch.manual_seed(0)
    model = prepare_model(model, parallel_strategy=strategy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 30])
    return model, optimizer, schedule


def train_a_bit(model, optimizer, schedule, steps=3):
    rank = minitrain.get_context().get_world_rank()
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        model(torch.randn(4, 5, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    schedule.step()


def whole(tensor):
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def everything(model, optimizer, schedule):
    """Return all there is to know of a training, gathered, under names that no wrapping changes."""
    parameters = dict(model.named_parameters())
    facts = {name: whole(value) for name, value in parameters.items()}
    facts |= {name: whole(value) for name, value in model.named_buffers()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            facts[f"{name} {key}"] = whole(value)
    facts = {name.removeprefix("module."): value for name, value in facts.items()}
    return {**facts, "schedule": schedule.state_dict(), "lr": optimizer.param_groups[0]["lr"]}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


PLAIN = {
    "epoch": 3,
    7: (1, "two", None),
    "seen": np.arange(3),
    "random": np.random.RandomState(3).get_state(),
}


def save_loop(config):
    model, optimizer, schedule = make(config["strategy"])
    train_a_bit(model, optimizer, schedule)
    with torch.no_grad():
        model(torch.zeros(4, 5))  # leaves the parameters whole, as no backward follows
    # The optimizer comes first: what is true of the model must not depend on the order.
    state = {"optimizer": optimizer, "model": model, "schedule": schedule, "plain": PLAIN}
    checkpoint = save_state(state)
    facts = everything(model, optimizer, schedule)
    minitrain.report({}, checkpoint=checkpoint)
    return facts


def load_loop(config):
    model, optimizer, schedule = make(config["strategy"])
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "plain": None}
    plain = load_state(state, minitrain.get_checkpoint())
    facts = everything(model, optimizer, schedule)
    del state["plain"]
    minitrain.report({}, checkpoint=save_state({**state, **plain}))
    train_a_bit(model, optimizer, schedule)
    return facts, plain["plain"]


# ------------------------------------------------------------------ there and back
@pytest.mark.campaign
def test_a_state_goes_from_4_workers_to_2_to_3_to_1_whatever_wraps_it():
    saved = run(save_loop, 4, strategy="fsdp")
    before, checkpoint = saved.return_value, saved.checkpoint
    assert before["layers.0.weight exp_avg_sq"].abs().sum() > 0
    assert before["lr"] == pytest.approx(0.001)
    for num_workers, strategy in [(2, "ddp"), (3, "fsdp"), (1, None), (2, None)]:
        loaded = run(load_loop, num_workers, resume=checkpoint, strategy=strategy)
        after, plain = loaded.return_value
        assert_same(before, after)
        assert plain[7] == PLAIN[7]
        assert (plain["seen"] == PLAIN["seen"]).all()
        assert (plain["random"][1] == PLAIN["random"][1]).all()
        checkpoint = loaded.checkpoint


@pytest.mark.campaign
def test_ddp_saved_while_training_goes_on_is_what_it_was():
    def train():
        model, optimizer, schedule = make("ddp")
        train_a_bit(model, optimizer, schedule)
        state = {"model": model, "optimizer": optimizer, "schedule": schedule, "plain": PLAIN}
        let_go = hold_writes_back()
        checkpoint = save_state(state, wait=False)
        facts = everything(model, optimizer, schedule)
        train_a_bit(model, optimizer, schedule, steps=20)  # collectives of its own meanwhile
        assert not any(Path(checkpoint.path).iterdir()), "it was written too early to tell"
        let_go.set()
        second = save_state(state, wait=False)  # waits for the first
        rank = minitrain.get_context().get_world_rank()
        assert Path(checkpoint.path, f"__{rank}_0.distcp").exists()
        minitrain.report({}, checkpoint=checkpoint)
        minitrain.report({}, checkpoint=second)
        return facts, everything(model, optimizer, schedule)

    saved = run(train, 2)
    for checkpoint, before in zip(
        [one for one, _ in saved.best_checkpoints], saved.return_value, strict=True
    ):
        loaded = run(load_loop, 3, resume=checkpoint, strategy="fsdp")
        assert_same(before, loaded.return_value[0])


def hold_writes_back():
    """Have this process write its files only after the event that is returned is set."""
    from torch.distributed.checkpoint import FileSystemWriter

    let_go, write = threading.Event(), FileSystemWriter.write_data

    def later(*arguments):
        assert let_go.wait(30)
        return write(*arguments)

    FileSystemWriter.write_data = later
    return let_go


@pytest.mark.campaign
@pytest.mark.parametrize("shared", [True, False])
def test_ranks_share_the_work_in_one_folder_or_several(tmp_path, shared):
    def train():
        rank = minitrain.get_context().get_world_rank()
        model = prepare_model(nn.Sequential(*(nn.Linear(64, 64) for _ in range(12))))
        folder = tmp_path / ("shared" if shared else str(rank))
        checkpoint = save_state({"model": model, "rank": rank}, folder)
        assert Path(checkpoint.path) == folder
        minitrain.report({}, checkpoint=checkpoint)

    with run(train, 3).checkpoint.as_directory() as folder:
        names = {path.name for path in Path(folder).iterdir()}
        assert names == {
            *(f"__{rank}_0.distcp" for rank in range(3)), ".metadata", ".manifest.json"
        }  # fmt: skip
        sizes = [Path(folder, f"__{rank}_0.distcp").stat().st_size for rank in range(3)]
    state_bytes = 12 * (64 * 64 + 64) * 4
    assert state_bytes < sum(sizes) < 1.6 * state_bytes, "once, with the wrapping of each tensor"
    assert max(sizes) < 1.5 * min(sizes)
    loaded = load_state({"model": None, "rank": None}, Checkpoint(folder))
    assert loaded["rank"] == 0
    assert sum(tensor.numel() for tensor in loaded["model"].values()) * 4 == state_bytes


@pytest.mark.campaign
def test_without_a_process_group_or_a_trainer(tmp_path):
    model = nn.Linear(2, 2)
    checkpoint = save_state({"model": model, "tensor": torch.arange(3), "n": 5}, wait=False)
    folder = Path(checkpoint.path)
    other, tensor = nn.Linear(2, 2), torch.zeros(3)
    assert load_state({"model": other, "tensor": tensor, "n": 0}, checkpoint) == {"n": 5}
    assert torch.equal(model.weight, other.weight)
    assert tensor.tolist() == [0, 1, 2]

    copy = pickle.loads(pickle.dumps(checkpoint))
    assert copy == checkpoint
    del checkpoint
    deadline_s = time.monotonic() + 10
    while folder.exists():  # the thread that wrote it may hold it for a moment more
        assert time.monotonic() < deadline_s, "a folder of its own goes with the checkpoint"
        gc.collect()


@pytest.mark.campaign
@pytest.mark.parametrize("case", ["returns", "keeps it", "never waits"])
def test_no_worker_leaves_a_temporary_folder(tmp_path, case):
    def train():
        checkpoint = save_state({"weight": torch.ones(10_000_000)}, wait=case != "never waits")
        rank = minitrain.get_context().get_world_rank()
        Path(tmp_path, f"path_{rank}").write_text(checkpoint.path)
        if case == "keeps it":
            kept.append(checkpoint)  # for as long as the process lives
        if case != "never waits":
            minitrain.report({}, checkpoint=checkpoint)

    kept = []
    run(train, 2)
    folders = {Path(tmp_path, f"path_{rank}").read_text() for rank in range(2)}
    assert len(folders) == 2
    assert [folder for folder in folders if Path(folder).exists()] == []


def test_what_a_killed_worker_left_goes_with_its_attempt(tmp_path):
    def train():
        checkpoint = save_state({"weight": torch.ones(1)})
        assert Path(checkpoint.path, ".metadata").exists()
        Path(tmp_path, "path").write_text(checkpoint.path)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerGroupError, match="SIGKILL"):
        run(train, 1)
    assert not Path(Path(tmp_path, "path").read_text()).exists()


def test_num_workers_0_and_a_trainer_without_torch():
    def train():
        minitrain.report({}, checkpoint=save_state({"weight": torch.ones(2)}))

    result = DataParallelTrainer(train, scaling_config=ScalingConfig(num_workers=0)).fit()
    loaded = load_state({"weight": 0}, result.checkpoint)
    assert torch.equal(loaded["weight"], torch.ones(2))


@pytest.mark.campaign
def test_an_optimizer_that_never_stepped_stays_untouched():
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = save_state({"model": model, "optimizer": optimizer})
    assert not optimizer.state
    optimizer.param_groups[0]["lr"] = 7.0
    load_state({"model": model, "optimizer": optimizer}, checkpoint)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not optimizer.state
    assert_same(before, model.state_dict())


# ------------------------------------------------------------------ what is refused
class Own:
    """A class of the user's own."""


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ([1], r"save_state\(state=\[1\]\): must be a dict"),
        ({1: 2}, r"must be a dict of names"),
        ({"own": {"deep": Own()}}, r"state\['own'\] cannot be saved: only tensors, numbers"),
        ({"f": lambda: 1}, r"state\['f'\] cannot be saved"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())},
            r"state\['optimizer'\] is an optimizer, but no module",
        ),
    ],
)
def test_what_could_not_be_loaded_is_refused_when_saving(state, problem):
    with pytest.raises(TypeError, match=problem):
        save_state(state)


@pytest.mark.campaign
def test_what_belongs_to_one_shard_only_is_refused():
    def train():
        model, optimizer, _ = make("fsdp")
        parameter = model.layers[0].weight
        optimizer.state[parameter]["own"] = torch.ones(parameter.to_local().shape)
        with pytest.raises(TypeError, match=r"has a 'own' for layers.0.weight that is a plain"):
            save_state({"model": model, "optimizer": optimizer})
        flat = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
        with pytest.raises(TypeError, match=r"state\['flat'\] is wrapped by FullySharded"):
            save_state({"flat": flat})

    run(train, 2)


@pytest.mark.campaign
def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"called 'a\.b'"):
        save_state({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)})


@pytest.mark.campaign
def test_a_folder_is_used_once(tmp_path):
    save_state({"n": 1}, tmp_path)
    with pytest.raises(CheckpointError, match="holds a saved state already"):
        save_state({"n": 2}, tmp_path)
    assert load_state({"n": 0}, Checkpoint(tmp_path)) == {"n": 1}


@pytest.mark.campaign
def test_what_does_not_fit_is_named_and_nothing_is_touched(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters())
    checkpoint = save_state({"model": model, "optimizer": optimizer, "n": 1}, tmp_path)

    def check(state, problem):
        with pytest.raises(CheckpointError, match=problem):
            load_state(state, checkpoint)

    check({"epoch": 0}, r"state\['epoch'\]: the checkpoint has only model, n, optimizer")
    check({"model": nn.Sequential(nn.Linear(2, 2))}, r"only in the checkpoint: 1.bias, 1.weight")
    larger = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    check({"model": larger}, r"missing in the checkpoint: 2.bias, 2.weight")
    wider = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = wider[0].weight.clone()
    check({"model": wider}, r"model.1.weight is of shape \(3, 2\), and of shape \(2, 2\) in")
    assert torch.equal(wider[0].weight, before)
    check({"n": torch.ones(1)}, r"state\['n'\]: the checkpoint has no tensor there")
    check({"n": nn.Linear(1, 1)}, r"state\['n'\]: the checkpoint has no module there")
    check(
        {"model": model, "n": torch.optim.Adam(model.parameters())},
        r"state\['n'\]: the checkpoint has no optimizer there",
    )
    half = torch.optim.Adam(model[0].parameters())
    check({"model": model, "optimizer": half}, "only in the checkpoint: 1.bias, 1.weight")
    groups = torch.optim.Adam([{"params": list(part.parameters())} for part in model])
    check({"model": model, "optimizer": groups}, "2 groups of parameters, and the checkpoint 1")
    with torch.device("meta"):
        nowhere = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check({"model": nowhere}, r"0.weight is on meta; use to_empty\(\)")


@pytest.mark.campaign
def test_a_checkpoint_from_elsewhere_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="was not written by save_state"):
        load_state({"model": None}, Checkpoint(tmp_path))
    with pytest.warns(UserWarning, match="single process"):
        torch.distributed.checkpoint.save({"a": torch.ones(1)}, checkpoint_id=tmp_path / "dcp")
    with pytest.raises(CheckpointError, match="by another use of torch"):
        load_state({"a": None}, Checkpoint(tmp_path / "dcp"))


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.campaign
def test_nothing_in_a_checkpoint_can_run_code(tmp_path):
    sprung = tmp_path / "sprung"
    checkpoint = save_state({"n": 1}, tmp_path / "one")
    Path(checkpoint.path, ".metadata").write_bytes(pickle.dumps(Trap(str(sprung))))
    with pytest.raises(CheckpointError, match="mkdir has no place in it"):
        load_state({"n": 0}, checkpoint)

    checkpoint = save_state({"n": 1}, tmp_path / "two")
    data = Path(checkpoint.path, "__0_0.distcp")
    buffer = io.BytesIO()
    torch.save({"n": Trap(str(sprung))}, buffer)
    metadata = Path(checkpoint.path, ".metadata")
    with metadata.open("rb") as file:
        facts = pickle.load(file)
    for info in facts.storage_data.values():
        info.length = len(buffer.getvalue())
    metadata.write_bytes(pickle.dumps(facts))
    data.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"(?s)cannot be read: .*mkdir"):
        load_state({"n": 0}, checkpoint)
    assert not sprung.exists()


@pytest.mark.campaign
def test_a_damaged_file_is_an_error_that_names_the_folder(tmp_path):
    checkpoint = save_state({"weight": torch.ones(100)}, tmp_path)
    data = tmp_path / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be read"):
        load_state({"weight": None}, checkpoint)
    data.unlink()
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be read"):
        load_state({"weight": None}, checkpoint)


@pytest.mark.campaign
def test_a_rank_that_cannot_write_fails_all_of_them_and_the_next_save_works(tmp_path):
    def train():
        rank = minitrain.get_context().get_world_rank()
        model = prepare_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        folder = tmp_path / f"first{rank}"
        if rank == 1:
            (folder / "__1_0.distcp").mkdir(parents=True)
        failing = save_state({"model": model}, folder, wait=False)
        after = save_state({"model": model}, wait=False)
        with pytest.raises(CheckpointError, match=r"save_state\(\): rank 1: IsADirectoryError"):
            failing.wait()
        assert not (tmp_path / "first0" / ".metadata").exists()
        minitrain.report({}, checkpoint=after)

    loaded = load_state({"model": None}, run(train, 2).checkpoint)["model"]
    assert loaded["0.weight"].shape == (4, 4)


@pytest.mark.campaign
def test_a_rank_that_does_not_save_is_waited_for_as_long_as_for_any_collective():
    def train():
        model = prepare_model(nn.Linear(4, 4))
        save_state({"model": model})
        if minitrain.get_context().get_world_rank() == 0:
            save_state({"model": model})
        else:
            import signal

            signal.pause()

    with pytest.raises(WorkerGroupError, match=r"(?s)could not agree.*must call it equally often"):
        run(train, 2, torch_config=TorchConfig(timeout_s=2))
