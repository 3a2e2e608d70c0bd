"""The training that ``chaos.py`` breaks, and its driver: started again, it goes on where it was.

Every rank has a hash chain, so that the state after any number of steps is known without training.
A checkpoint holds a rank's step, its state, and ballast that follows from the state. Rank 0 keeps a
journal beside the run, one file for each life of the training: what it resumed from, and every
report that has returned.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import minitrain
from minitrain import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
)
from minitrain.trainer import DataParallelTrainer

__all__ = [
    "NUM_TO_KEEP",
    "NUM_WORKERS",
    "RUN",
    "SYNC_EVERY",
    "next_state",
    "problem",
    "save",
    "state_after",
    "step_of",
]

RUN = "run"
NUM_WORKERS = 4
NUM_TO_KEEP = 2
CHECKPOINT_EVERY = 5
SYNC_EVERY = 10
"""Every other checkpoint is waited for."""
STEP_S = 0.01
BALLAST_BYTES = 64 << 10
HANG_TIMEOUT_S = 3.0
PREEMPTION_GRACE_S = 5.0


# ---------------------------------------------------------------------- the state, pure
def state_after(rank: int, steps: int) -> bytes:
    """Return a rank's state after so many steps."""
    state = hashlib.sha256(f"rank {rank}".encode()).digest()
    for step in range(1, steps + 1):
        state = next_state(state, step)
    return state


def next_state(state: bytes, step: int) -> bytes:
    """Return the state after one more step."""
    return hashlib.sha256(state + step.to_bytes(8)).digest()


def save(folder: Path, rank: int, step: int, state: bytes) -> None:
    """Write what a rank adds to a checkpoint."""
    text = json.dumps({"step": step, "state": state.hex()})
    (folder / f"rank_{rank}.json").write_text(text, encoding="utf-8")
    (folder / f"rank_{rank}.bin").write_bytes(_ballast(state))


def step_of(folder: Path, rank: int) -> int:
    """Return the step a rank's part of a checkpoint was made in."""
    return int(json.loads((folder / f"rank_{rank}.json").read_bytes())["step"])


def problem(folder: Path, rank: int) -> str:
    """Return what is wrong with a rank's part of a checkpoint; nothing if it is as it was made."""
    try:
        kept = json.loads((folder / f"rank_{rank}.json").read_bytes())
        state = state_after(rank, kept["step"])
        if kept["state"] != state.hex():
            return f"rank {rank}: not the state after {kept['step']} steps"
        if (folder / f"rank_{rank}.bin").read_bytes() != _ballast(state):
            return f"rank {rank}: not the ballast of step {kept['step']}"
    except (OSError, ValueError, KeyError) as error:
        return f"rank {rank}: {error!r}"
    return ""


def _ballast(state: bytes) -> bytes:
    return hashlib.shake_256(state).digest(BALLAST_BYTES)


# ---------------------------------------------------------------------- the train function
class Journal:
    """What rank 0 writes down outside the run: a line is the kernel's when a call returns.

    Args:
        folder: Of the campaign.
    """

    def __init__(self, folder: Path) -> None:
        self.life = str(time.time_ns())
        path = folder / "lives" / self.life
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def note(self, **facts: Any) -> None:
        """Add a line."""
        os.write(self._descriptor, json.dumps(facts).encode() + b"\n")


def train(config: Mapping[str, str]) -> None:
    """Take steps until there is a last one, report each, and make a checkpoint of every fifth."""
    folder, storage = Path(config["folder"]), Path(config["storage"])
    rank = minitrain.get_context().get_world_rank()
    step, state = resume(folder, rank)
    journal = Journal(folder) if rank == 0 else None
    if journal is not None:
        checkpoint = minitrain.get_checkpoint()
        journal.note(resumed=checkpoint and Path(checkpoint.path).name, step=step)
    # What is given away can be renamed into the storage; what is copied comes from elsewhere.
    places = _Places(folder, storage, rank)
    while step < _last_step(folder):
        time.sleep(STEP_S)
        step += 1
        state = next_state(state, step)
        facts = {"step": step, "life": journal.life if journal else ""}
        if step % CHECKPOINT_EVERY:
            minitrain.report(facts)
        else:
            report_with_checkpoint(facts, places, state)
        if journal is not None:
            journal.note(step=step, sync=_newest_name() if step % SYNC_EVERY == 0 else None)
        if step % SYNC_EVERY == 0 and minitrain.get_preemption_info() is not None:
            return


def resume(folder: Path, rank: int) -> tuple[int, bytes]:
    """Return where the run has got to, after a look at every byte of this rank's."""
    checkpoint = minitrain.get_checkpoint()
    if checkpoint is None:
        return 0, state_after(rank, 0)
    with checkpoint.as_directory() as path:
        wrong = problem(Path(path), rank)
        if not Path(checkpoint.path, ".manifest.json").exists():
            wrong = wrong or "it was never committed"
        if wrong:
            note = f"resumed from {checkpoint.path}, which is damaged: {wrong}\n"
            with (folder / "violations").open("a", encoding="utf-8") as file:
                file.write(note)
            raise AssertionError(note)
        step = step_of(Path(path), rank)
    return step, state_after(rank, step)


class _Places:
    """Where a rank prepares its checkpoints, emptied of what an earlier life left."""

    def __init__(self, folder: Path, storage: Path, rank: int) -> None:
        self.rank = rank
        self.flag = folder / "fail_upload"
        self.near, self.far = storage / f"prepared_{rank}", folder / f"prepared_{rank}"
        for place in (self.near, self.far):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()


def report_with_checkpoint(facts: Mapping[str, Any], places: _Places, state: bytes) -> None:
    """Report a checkpoint, every other one asynchronously; fail where the flag says so."""
    waits = facts["step"] % SYNC_EVERY == 0
    made = Path(tempfile.mkdtemp(dir=places.far if waits else places.near))
    save(made, places.rank, facts["step"], state)
    minitrain.report(
        facts,
        Checkpoint.from_directory(made),
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if waits else CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=_refuse if _taken(places.flag) else None,
    )
    if waits:
        shutil.rmtree(made)


def _refuse(_checkpoint: Checkpoint, name: str) -> Checkpoint:
    raise OSError(f"{name}: the campaign wants this upload to fail")


def _taken(flag: Path) -> bool:
    """Return whether there was a flag, and this rank is the one that took it away."""
    try:
        flag.unlink()
    except FileNotFoundError:
        return False
    return True


def _newest_name() -> str | None:
    checkpoint = minitrain.get_checkpoint()
    return checkpoint and Path(checkpoint.path).name


def _last_step(folder: Path) -> float:
    """Return the last step, which is made known when all ranks are still far from it."""
    try:
        return float((folder / "last_step").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return float("inf")


# ---------------------------------------------------------------------- the driver
def main() -> None:
    """Go on with the run, or begin it."""
    folder, storage = sys.argv[1:]
    if DataParallelTrainer.can_restore(f"{storage}/{RUN}"):
        trainer = DataParallelTrainer.restore(f"{storage}/{RUN}")
    else:
        trainer = DataParallelTrainer(
            train,
            train_loop_config={"folder": folder, "storage": storage},
            scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
            run_config=RunConfig(
                name=RUN,
                storage_path=storage,
                checkpoint_config=CheckpointConfig(num_to_keep=NUM_TO_KEEP),
                failure_config=FailureConfig(
                    max_failures=-1,
                    hang_timeout_s=HANG_TIMEOUT_S,
                    preemption_grace_s=PREEMPTION_GRACE_S,
                ),
            ),
        )
    trainer.fit()


if __name__ == "__main__":
    main()
