"""A user's process: it does what lines of its input ask for, and answers each with a line.

Between two runs its agents stay warm, which is what makes many tests with many hosts affordable.
"""

import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import minitrain
from minitrain import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LaunchConfig,
    RunConfig,
    ScalingConfig,
)
from minitrain.collective import broadcast_from_rank_zero
from minitrain.trainer import DataParallelTrainer


# ------------------------------------------------------------------ what workers do
def facts(config):
    """Say where each rank stands; rank 0 reports it for all."""
    context = minitrain.get_context()
    own = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "own": [
            *(context.get_world_rank(), context.get_local_rank(), context.get_node_rank()),
            *(context.get_world_size(), context.get_local_world_size()),
        ],
        "environ": {name: os.environ.get(name) for name in config["variables"]},
        "executable": sys.executable,
    }
    print(f"I am {own['own'][0]} on {own['host']}", flush=True)
    Path(config["folder"], f"facts_{own['own'][0]}").write_text(json.dumps(own))
    if config.get("torch"):
        import torch
        import torch.distributed as dist

        model = minitrain.torch.prepare_model(torch.nn.Linear(1, 1))
        model(torch.ones(1, 1) * (own["own"][0] + 1)).sum().backward()
        own["grad"] = next(iter(model.parameters())).grad.item()
        total = torch.ones(1) * own["own"][0]
        dist.all_reduce(total)
        own["sum"] = total.item()
    minitrain.report({"sum": own.get("sum"), "grad": own.get("grad"), "host": own["host"]})
    return own["host"]


def three(config):
    """Report three times."""
    for step in range(3):
        minitrain.report({"step": step})
    return os.getppid()


def steps(config):
    """Train until the test says that it is enough, with a checkpoint per step."""
    context = minitrain.get_context()
    rank, folder = context.get_world_rank(), Path(config["folder"])
    first, checkpoint = 0, minitrain.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as path:
            first = int(Path(path, "step_0").read_text()) + 1
    host, step = socket.gethostname(), first
    while True:
        is_last = broadcast_from_rank_zero((folder / "enough").exists())
        with tempfile.TemporaryDirectory() as path:
            Path(path, f"step_{rank}").write_text(str(step))
            metrics = {"step": step, "host": host, "world": context.get_world_size()}
            info = minitrain.get_preemption_info()
            if info is not None:
                print("told of", json.dumps(info.preempted_node_to_ranks), flush=True)
            minitrain.report(metrics, Checkpoint.from_directory(path))
        note = {"first": first, "step": step, "host": host, "pid": os.getpid()}
        note |= {"agent": os.getppid(), "world": context.get_world_size()}
        partial = folder / f".at_{rank}"
        partial.write_text(json.dumps(note))
        partial.rename(folder / f"at_{rank}")
        if is_last or info is not None:
            return [first, step]
        while config.get("waits") and (folder / "stay").exists():
            time.sleep(0.005)
        time.sleep(config.get("pause_s", 0.01))
        step += 1


def rows(config):
    """Report without end; note what was acknowledged."""
    rank, folder = minitrain.get_context().get_world_rank(), Path(config["folder"])
    acknowledged = os.open(folder / f"ack_{rank}", os.O_WRONLY | os.O_CREAT)
    (folder / f"pid_{rank}").write_text(str(os.getpid()))
    for step in range(1_000_000):
        minitrain.report({"step": step})
        os.pwrite(acknowledged, str(step + 1).encode(), 0)


def hang(config):
    """Have the last rank hang, in a function whose name will be seen."""

    def stuck_here():
        (Path(config["folder"]) / "hangs").touch()
        while True:
            time.sleep(0.1)

    minitrain.report({"step": 0})
    if minitrain.get_context().get_world_rank() == minitrain.get_context().get_world_size() - 1:
        stuck_here()
    minitrain.report({"step": 1})


def greet(config):
    """Use a module that lies beside the script."""
    import beside

    minitrain.report({"word": beside.WORD, "file": beside.__file__})


# ------------------------------------------------------------------ what the process does
class Noted(minitrain.UserCallback):
    """Writes down what it is told, in this process."""

    def __init__(self, takes_s):
        self.told = []
        self._takes_s = takes_s

    def after_report(self, run_context, metrics, checkpoint):
        time.sleep(self._takes_s)
        self.told.append([one.get("step") for one in metrics])

    def after_exception(self, run_context, worker_exceptions):
        self.told.append(sorted(worker_exceptions))


def fit(
    train,
    folder,
    *,
    scaling,
    config=None,
    failure=None,
    launch=None,
    run=None,
    torch=False,
    callback_takes_s=0.0,
):
    """Run a train function and say how that went."""
    kind = DataParallelTrainer
    if torch:
        from minitrain.torch import TorchTrainer as kind  # noqa: N813
    callback = Noted(callback_takes_s)
    if isinstance(scaling.get("num_workers"), list):
        scaling["num_workers"] = tuple(scaling["num_workers"])
    trainer = kind(
        globals()[train],
        train_loop_config={"folder": str(folder), **(config or {})},
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            **{"name": "run", "storage_path": f"{folder}/runs", "callbacks": [callback]}
            | (run or {}),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(**(failure or {})),
            launch_config=LaunchConfig(**(launch or {})),
        ),
    )
    started_s = time.monotonic()
    try:
        result = trainer.fit()
    except Exception as error:
        if isinstance(error, SystemExit):
            raise  # as where nobody catches it
        return {
            "error": type(error).__name__,
            "text": "\n".join([str(error), *getattr(error, "__notes__", ())]),
            "hosts": {one.rank: one.hostname for one in getattr(error, "failures", ())},
            "causes": {
                one.rank: type(one.cause).__name__ for one in getattr(error, "failures", ())
            },
            "took_s": time.monotonic() - started_s,
            "told": callback.told,
        }
    return {
        "metrics": result.metrics,
        "value": result.return_value,
        "told": callback.told,
        "took_s": time.monotonic() - started_s,
    }


def setenv(variables):
    """Change this process's environment; return what there was."""
    before = {name: os.environ.get(name) for name in variables}
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    return before


def move_to(folder):
    """Work in another folder, and find modules there, as a script that lies in it would."""
    before = os.getcwd()
    os.chdir(folder)
    sys.path[0] = folder
    return before


def main():
    for line in sys.stdin:
        name, settings = json.loads(line)
        try:
            answer = globals()[name](**settings)
        except KeyboardInterrupt:
            answer = {"error": "KeyboardInterrupt"}
        print(f"\nanswer: {json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()
