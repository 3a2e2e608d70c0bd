"""Train as a job that may be ended at any time, and that goes on when it is started again.

    python examples/preemptible.py --seconds 30; echo "exit status $?"

While it trains, end it from another terminal, with the process id that it prints; then start it
again with the same command:

    kill -TERM PID

Workers ask every few steps whether the machine is about to be taken away (get_preemption_info). If
it is, they report a last checkpoint and return, and the script ends with exit status 75. Started
again, it finds its run and goes on with the next step. SIGKILL, a crash or a loss of power leave no
time for a last checkpoint: then it goes on from the one before, which is at most 500 steps old.

Schedulers send SIGTERM some time before SIGKILL:

* Slurm: ``sbatch examples/slurm.sbatch examples/preemptible.py`` has its batch script warned before
  the time limit, which sends SIGTERM to this process alone, and queues the job again. Not with
  ``srun``: ``--signal=TERM@60`` would reach the workers as well, and end them at once.
* Kubernetes: a Job with ``restartPolicy: OnFailure`` and the storage on a volume. Python must be
  the container's first process (``exec python ...`` in a shell script), because only that one is
  told. ``terminationGracePeriodSeconds``, by default 30, has to be more than GRACE_S.

It trains a classifier of the digits that come with scikit-learn, for so many seconds of training in
all, however often it is started.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import minitrain
from minitrain import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from minitrain.torch import TorchTrainer, get_device, load_state, prepare_model, save_state

NAME = "preemptible"
NUM_WORKERS = 2
BATCH_SIZE = 64  # of one worker
ASK_EVERY = 10  # steps: asking waits for all ranks
SAVE_EVERY = 500  # steps: as much is lost where nobody warns
GRACE_S = 20.0  # less than whoever sends SIGTERM waits before SIGKILL


def load_images():
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32, device=get_device()) / 16
    return images, torch.tensor(digits.target, device=get_device())


def take_step(model, optimizer, images, labels):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(config):
    rank = minitrain.get_context().get_world_rank()
    images, labels = load_images()
    torch.manual_seed(0)
    model = prepare_model(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    state = {"model": model, "optimizer": optimizer}
    step, trained_s = 0, 0.0
    checkpoint = minitrain.get_checkpoint()
    if checkpoint:
        loaded = load_state({**state, "step": 0, "trained_s": 0.0}, checkpoint)
        step, trained_s = loaded["step"], loaded["trained_s"]
    print(f"training from step {step + 1}", flush=True)

    started = time.monotonic() - trained_s
    is_over = False
    while not is_over:
        step += 1
        random = torch.Generator().manual_seed(NUM_WORKERS * step + rank)
        batch = torch.randint(len(labels), (BATCH_SIZE,), generator=random)
        loss = take_step(model, optimizer, images[batch], labels[batch])
        if step % ASK_EVERY:
            continue
        # All ranks are told the same, and rank 0's clock counts for all: they end together.
        is_preempted = minitrain.get_preemption_info() is not None
        trained_s = minitrain.collective.broadcast_from_rank_zero(time.monotonic() - started)
        is_over = is_preempted or trained_s >= config["seconds"]
        if is_over or step % SAVE_EVERY == 0:
            saved = save_state({**state, "step": step, "trained_s": trained_s})
            minitrain.report({"step": step, "loss": loss}, checkpoint=saved)
            print(f"step {step}: loss {loss:.4f}, saved", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Train digits, and go on after SIGTERM.")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of training in all; the first start decides"
    )
    options = parser.parse_args()

    storage = Path(os.environ.get("MINITRAIN_STORAGE", "~/minitrain_results")).expanduser()
    run = storage / NAME
    if TorchTrainer.can_restore(run):
        trainer = TorchTrainer.restore(run)
    else:
        trainer = TorchTrainer(
            train,
            train_loop_config={"seconds": options.seconds},
            scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
            run_config=RunConfig(
                name=NAME,
                storage_path=storage,
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                failure_config=FailureConfig(preemption_grace_s=GRACE_S, max_failures=3),
            ),
        )
    print(f"process {os.getpid()}, run {run}", flush=True)
    result = trainer.fit()  # SIGTERM: it does not return, and the exit status is 75
    print(f"done at step {result.metrics['step']}, loss {result.metrics['loss']:.4f}")
    print(f"checkpoint: {result.checkpoint.path}")


if __name__ == "__main__":
    main()
