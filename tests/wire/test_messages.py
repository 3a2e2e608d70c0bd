"""Every message survives the way between processes."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import pytest

from minitrain._os.gpus import Gpu
from minitrain._storage.disk import FileEntry, LocalDisk
from minitrain._storage.run_storage import RunStorage
from minitrain._wire import messages as wire
from minitrain.exceptions import CheckpointError, OomEvidence

PLACE = wire.Place(1, 4, 1, 2, 0, gpus=("1",), visible_gpus=("0", "1"))
RAISED = wire.Raised("ValueError", "no", "Traceback ...", b"pickle", 42, "node-a", 1.5)
FACTS = wire.RunFacts(
    name="n",
    run_id="id",
    path="/run",
    storage=RunStorage(LocalDisk("/run")),
    trial_name="t",
    metadata={"a": 1},
    resources={"CPU": 1},
    score_attribute="loss",
    asks_to_go_on=False,
    collective_timeout_s=9.0,
    config={"lr": 1},
)
SAMPLES = [
    wire.Preload(("torch", "numpy")),
    wire.Ping(20.0),
    wire.Pong(),
    wire.RemoveTraces("abc"),
    wire.TakeCode(b"archive"),
    wire.ServeStore(for_others=True),
    wire.Survey(1, ("10.0.0.1",), 1234, "/run", ".seen-abc", 5.0),
    PLACE,
    wire.StartWorkers(
        attempt=1,
        places=(PLACE,),
        payload=b"payload",
        environ={"A": "1"},
        own_variables=frozenset({"A"}),
        sys_path=("/a",),
        argv=("train.py",),
        working_dir="/run",
        code_from="/home/me",
        log_dir="/run/logs",
        console_ranks=frozenset({0}),
        cpus_per_worker=2.0,
        store_address="127.0.0.1",
        store_port=1234,
        run_id="abc",
        max_restarts=3,
        files=True,
    ),
    wire.ToWorker(1, 0, wire.Exit()),
    wire.StopWorkers(1, leave_s=10.0, grace_s=5.0),
    wire.FileAnswer(1, 0, b"part of an answer"),
    wire.FileRequest(1, 0, b"part of a question"),
    wire.WriteStacks(1, 3.0),
    wire.PreemptionSensed(),
    wire.StacksWritten(1, {0: "stacks"}),
    wire.AgentReady(42, "node-a", ("10.0.0.1",), 2, (Gpu("0", "T4", "GPU-0"),), 1.5),
    wire.Surveyed(1, "10.0.0.1", "it is another one"),
    wire.StartFailed(1, "the disk is full"),
    wire.StoreServed(1234),
    wire.WorkerStarted(1, 0, 42),
    wire.FromWorker(1, 0, (b"one", b"two")),
    wire.Output(1, 0, b"epoch 1\n"),
    wire.WorkerExited(1, 0, -9, 1 << 30, 1.5, OomEvidence("memory.events of /a", 1, 1 << 30)),
    wire.AttemptGone(1, (42,)),
    wire.Execute(1, b"function"),
    wire.Train(b"a pickled checkpoint", 10, 60.0, "/run/result.json", {"train": {"epoch": 1}}),
    wire.Answer(3, value={"a": 1}),
    wire.CheckpointCommitted("checkpoint_000000", 3),
    wire.CheckpointLost(3, CheckpointError("full")),
    wire.Exit(),
    wire.Joined(),
    wire.Executed(1, None, RAISED),
    wire.NameAsked(1, 0, "mine"),
    wire.Reported(
        2,
        {"loss": 0.5},
        {"loss": 0.5, "pid": 1},
        "c",
        (FileEntry("w", 1, 2),),
        question=7,
        positions={"train": {"epoch": 1}},
    ),
    wire.Uploaded(2, (FileEntry("w", 1, 2),)),
    wire.CheckpointsAsked(1, 3),
    wire.CollectiveEntered(1, "barrier", b"data"),
    wire.Returned(3, b"value", "problem", ("torch",)),
    RAISED,
    wire.Payload(b"train", FACTS),
    FACTS,
]
NEVER_SENT = {"ForkedWorker"}
CLASSES = {
    name: value
    for name, value in vars(wire).items()
    if inspect.isclass(value) and value.__module__.startswith(wire.__name__)
}


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message):
    arrived = pickle.loads(pickle.dumps(message))
    if isinstance(message, wire.CheckpointLost):  # exceptions are equal only to themselves
        assert (type(arrived.error), str(arrived.error)) == (CheckpointError, "full")
        arrived = dataclasses.replace(arrived, error=message.error)
    assert arrived == message


def test_every_message_is_tried_here():
    assert {type(sample).__name__ for sample in SAMPLES} == CLASSES.keys() - NEVER_SENT


def test_messages_are_frozen_and_have_no_room_for_more():
    for kind in CLASSES.values():
        assert kind.__dataclass_params__.frozen, kind
        assert set(kind.__slots__) == {one.name for one in dataclasses.fields(kind)}, kind


def test_every_message_is_exported():
    assert CLASSES.keys() <= set(wire.__all__)


def test_the_error_in_an_answer_keeps_its_type_and_text():
    answer = pickle.loads(pickle.dumps(wire.Answer(1, error=CheckpointError("taken"))))
    assert type(answer.error) is CheckpointError
    assert str(answer.error) == "taken"
