"""Saves and loads the state of a training on all ranks at once, each its own part.

Nothing is gathered: where parameters are sharded, each rank writes its shards; where every rank
has everything, they share the work. What was saved on 4 ranks with ``fully_shard`` can be loaded
on 2 with DDP, or on one.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitrain.checkpoint import Checkpoint
from minitrain.exceptions import CheckpointError
from minitrain.torch.config import collective_timeout
from minitrain.torch.state_folder import PrivateFolder

if TYPE_CHECKING:
    import torch
    from torch import distributed as dist

__all__ = ["END_S", "finish_saving", "load_state", "save_state"]

_STRUCTURE = "minitrain.structure"
END_S = 5.0
"""How long the end of a training waits for a save that nobody has waited for."""


class SavedState(Checkpoint):
    """A checkpoint with the files of this rank, which may still be being written.

    A temporary folder is deleted with this object.
    """

    _written: Future[None] | None = None

    def wait(self) -> None:
        """Wait until the files of all ranks are written.

        Raises:
            CheckpointError: They could not be.
        """
        if self._written is not None:
            self._written.result()

    @contextmanager
    def as_directory(self) -> Generator[str]:
        """Give the files, once they are written, as a local directory."""
        self.wait()
        with super().as_directory() as path:
            yield path

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Copy the files, once they are written, to a local directory and return its path."""
        self.wait()
        return super().to_directory(path)

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[str]]:
        self.wait()
        return Checkpoint, (self.path,)


def save_state(
    state: Mapping[str, Any],
    folder: str | os.PathLike[str] | None = None,
    *,
    wait: bool = True,
) -> Checkpoint:
    """Write the state of a training; every rank calls it and reports what it returns.

    Each rank writes only its own part: the shards it has, and of parameters and optimizer states
    that all ranks have, a share. All other data are rank 0's.

    Args:
        state: What to save, by name: modules (plain, DDP, ``fully_shard``), optimizers, anything
            else with ``state_dict`` and ``load_state_dict``, tensors and DTensors, and plain
            data: numbers, strings, bytes, numpy arrays, and dicts, lists, tuples and sets of
            them. The module an optimizer trains must be among them.
        folder: Where this rank writes; ranks may share it. It must not hold a saved state yet. By
            default a temporary folder of this rank's own, which is deleted when the checkpoint
            that is returned is: hand that to ``report()``, and keep nothing.
        wait: Whether to return when everything is written, or as soon as training may go on: when
            this rank's part has been copied to memory. ``report()`` waits for the rest. The next
            ``save_state`` waits for the one before.

    Returns:
        The checkpoint to report.

    Raises:
        TypeError: The state has something that cannot be saved; the message names its key.
        CheckpointError: A rank could not write; or not all ranks called this, and the time that
            collectives may take, ``TorchConfig(timeout_s=...)``, is over.

    Example:
        >>> import minitrain
        >>> from minitrain.torch import load_state, save_state
        >>> def train():
        ...     model = make_model()
        ...     optimizer = make_optimizer(model)
        ...     state = {"model": model, "optimizer": optimizer}
        ...     first_epoch = 0
        ...     checkpoint = minitrain.get_checkpoint()
        ...     if checkpoint:
        ...         first_epoch = load_state({**state, "epochs": 0}, checkpoint)["epochs"]
        ...     for epoch in range(first_epoch, 10):
        ...         train_epoch(model, optimizer)
        ...         checkpoint = save_state({**state, "epochs": epoch + 1}, wait=False)
        ...         minitrain.report({"epoch": epoch}, checkpoint=checkpoint)
    """
    from minitrain.torch.state_files import Writing
    from minitrain.torch.state_values import capture, parts_of

    captured = capture(parts_of(state, "save_state"))
    finish_saving()  # two saves at once would mix up their collectives
    if folder is None:
        private = PrivateFolder()
        saved = SavedState.from_directory(private.path)
        private.delete_with(saved)
    else:
        saved = SavedState.from_directory(folder)
    values = {_STRUCTURE: captured.structure, **captured.tensors}
    writing = Writing(values, captured.same_everywhere, Path(saved.path), _ranks())
    if wait:
        writing.write()
        return saved
    writing.copy_to_memory()
    saved._written = _in_background(writing.write, saved)  # noqa: SLF001 - its own maker
    return saved


def load_state(state: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Load what :func:`save_state` wrote, on any number of ranks, wrapped in any way.

    Modules, optimizers, tensors and whatever has ``load_state_dict`` are loaded in place, each
    rank reading the parts it needs; ranks do not wait for each other. Nothing in the checkpoint
    can run code.

    Args:
        state: What to load, by the names it was saved under; what else the checkpoint holds is
            left out. What is given for plain data has no meaning.
        checkpoint: The checkpoint.

    Returns:
        The plain data, by name.

    Raises:
        CheckpointError: ``save_state`` did not write the checkpoint, it cannot be read, or it
            does not fit: the message names the key.
        TypeError: The state is not a dict of names, or an optimizer's module is not in it.
    """
    from minitrain.torch.state_files import SavedFiles
    from minitrain.torch.state_values import name_of, parts_of, with_tensors

    parts = parts_of(state, "load_state")
    with checkpoint.as_directory() as folder:
        files = SavedFiles(folder)
        structure = _structure(files, checkpoint)
        wanted: dict[str, torch.Tensor] = {}
        filled = {}
        for part in parts:
            part.refuse_unless(
                part.key in structure, f"the checkpoint has only {', '.join(sorted(structure))}"
            )
            part.check(structure[part.key])

            def place(path: Any, saved: torch.Tensor, part: Any = part) -> torch.Tensor:
                name = name_of(path)
                tensor = wanted[name] = part.place(path, saved)
                part.refuse_unless(
                    tensor.shape == saved.shape,
                    f"{name} is of shape {tuple(tensor.shape)}, and of shape "
                    f"{tuple(saved.shape)} in the checkpoint",
                )
                return tensor

            filled[part.key] = with_tensors(structure[part.key], (part.key,), place)
        files.read(wanted)
    for part in parts:
        part.restore(filled[part.key])
    return {part.key: filled[part.key] for part in parts if part.is_plain}


def _structure(files: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    if _STRUCTURE not in files.metadata.state_dict_metadata:
        raise CheckpointError(
            f"load_state(): {checkpoint!r} was not written by save_state(), but by another use of "
            "torch.distributed.checkpoint"
        )
    structure: dict[str, Any] = files.read({_STRUCTURE: None})[_STRUCTURE]
    return structure


# ------------------------------------------------------------------ the processes that save
_group: Callable[[], dist.ProcessGroup | None] = lambda: None  # noqa: E731
_last: Future[None] | None = None


def _ranks() -> Any:
    """Return who saves: all ranks, on a process group that training does not use.

    Collectives of several threads on one group would be taken for each other's.
    """
    global _group  # noqa: PLW0603 - made once: making one is a collective
    import torch.distributed as dist

    from minitrain.torch.state_files import Ranks

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks(None)
    group = _group()
    if group is None:
        group = dist.new_group(backend="gloo", timeout=collective_timeout())
        _group = weakref.ref(group)  # torch ends it with the others
    return Ranks(group)


def finish_saving(timeout_s: float | None = None) -> None:
    """Wait until the last save has ended, well or not: that is for its ``wait()`` to say."""
    if _last is not None:
        wait_for([_last], timeout_s)


def _in_background(write: Callable[[], None], saved: SavedState) -> Future[None]:
    global _last  # noqa: PLW0603 - the saves of a process wait for each other
    done = _last = Future[None]()

    def run(keep: SavedState | None) -> None:
        try:
            write()
        except BaseException as error:  # noqa: BLE001 - wait() raises it
            done.set_exception(error)
        else:
            done.set_result(None)
        del keep  # its folder had to stay

    atexit.unregister(finish_saving)
    atexit.register(finish_saving, END_S)  # once, and before any folder is deleted
    threading.Thread(target=run, args=(saved,), name="save_state", daemon=True).start()
    return done
