"""The files of a saved state, by ``torch.distributed.checkpoint``: a rank writes only its part.

Rank ``r`` writes ``__r_0.distcp``; rank 0 adds ``.metadata``, which says what lies where. Since the
names differ, ranks may write to one folder or to one each. Saving, ranks talk twice, planning and
at the end; reading, they need not: each finds what it needs in ``.metadata``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pickle
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from minitrain.exceptions import CheckpointError

__all__ = ["Ranks", "SavedFiles", "Writing", "safe_types"]

METADATA = ".metadata"

# Taking dicts apart would turn their keys into strings.
_AS_GIVEN = {"flatten_state_dict": False, "flatten_sharded_tensors": False}

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Failed:
    """Stands for what a rank could not compute."""

    reason: str


class Ranks:
    """The processes that save a state together.

    Args:
        group: Their process group, used by nobody else at the same time; None if there is only
            this process.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self._size = 1 if group is None else dist.get_world_size(group)

    def agree(self, compute: Callable[[], T], decide: Callable[[list[T]], list[R]]) -> R:
        """Compute something on every rank, decide with all of it on rank 0, return this rank's.

        Raises:
            CheckpointError: It failed on a rank, and so on all; or some did not take part.
        """
        problem: Exception | None = None
        computed: T | _Failed
        try:
            computed = compute()
        except Exception as error:  # noqa: BLE001 - the others wait: they have to be told
            problem, computed = error, self._failed(error)
        decided: list[R | _Failed] | None = None
        try:
            everything = self._gather(computed)
            if everything is not None:
                decided = self._decided(everything, decide)
            result = self._scatter(decided)
        except RuntimeError as error:  # what torch raises for a lost peer or a timeout
            raise CheckpointError(
                f"save_state(): the ranks could not agree: {error}. Every rank must call it "
                "equally often."
            ) from error
        if isinstance(result, _Failed):
            raise CheckpointError(f"save_state(): {result.reason}") from problem
        return result

    def _failed(self, error: Exception) -> _Failed:
        text = str(error) if isinstance(error, CheckpointError) else repr(error)
        return _Failed(f"rank {self.rank}: {text}" if self._size > 1 else text)

    def _decided(
        self, everything: list[T | _Failed], decide: Callable[[list[T]], list[R]]
    ) -> list[R | _Failed]:
        computed = [one for one in everything if not isinstance(one, _Failed)]
        failed = [one for one in everything if isinstance(one, _Failed)]
        try:
            if not failed:
                return [*decide(computed)]
        except Exception as error:  # noqa: BLE001 - as above
            failed.append(self._failed(error))
        reasons = dict.fromkeys(one.reason for one in failed)
        return [_Failed("; ".join(reasons))] * self._size

    def _gather(self, value: T) -> list[T] | None:
        if self._group is None:
            return [value]
        gathered: list[Any] | None = [None] * self._size if self.rank == 0 else None
        dist.gather_object(value, gathered, group=self._group)
        return gathered

    def _scatter(self, values: list[T] | None) -> T:
        if self._group is None:
            assert values is not None
            return values[0]
        mine: list[Any] = [None]
        dist.scatter_object_list(mine, values, group=self._group)
        result: T = mine[0]
        return result


class _SavePlanner(DefaultSavePlanner):
    """Divides what every rank has among the ranks, and can write from a copy.

    Args:
        same_everywhere: What any rank may write, by name; else only rank 0 writes what is not
            sharded, since ranks may differ.
    """

    def __init__(self, same_everywhere: AbstractSet[str]) -> None:
        super().__init__(**_AS_GIVEN)
        self._same_everywhere = same_everywhere
        self._copies: dict[MetadataIndex, torch.Tensor | io.BytesIO] | None = None

    def create_local_plan(self) -> SavePlan:
        """Return what this rank could write."""
        plan = super().create_local_plan()
        items = [item for item in plan.items if self._may_write(item)]
        return dataclasses.replace(plan, items=items)

    def _may_write(self, item: WriteItem) -> bool:
        sharded = item.type == WriteItemType.SHARD
        return self.is_coordinator or sharded or item.index.fqn in self._same_everywhere

    def copy_to_memory(self) -> None:
        """Write from here on what the state is now, whatever becomes of it."""
        self._copies = {item.index: _copied(self.resolve_data(item)) for item in self.plan.items}
        self.state_dict = {}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return what is written for an item."""
        if self._copies is not None:
            return self._copies[write_item.index]
        return super().resolve_data(write_item)


def _copied(data: torch.Tensor | io.BytesIO) -> torch.Tensor | io.BytesIO:
    return data.detach().to("cpu", copy=True) if isinstance(data, torch.Tensor) else data


class Writing:
    """A state on its way into files: planned with the other ranks when this is made.

    The files are written, not synced: ``report()`` makes a checkpoint durable.

    Args:
        values: Tensors by name, and other data.
        same_everywhere: The names of those that any rank may write.
        folder: Where this rank writes, made if it is missing.
        ranks: Who saves.

    Raises:
        CheckpointError: The folder holds a state already, or the ranks' states do not fit
            together.
    """

    def __init__(
        self, values: dict[str, Any], same_everywhere: AbstractSet[str], folder: Path, ranks: Ranks
    ) -> None:
        self._ranks = ranks
        self._planner = _SavePlanner(same_everywhere)
        self._writer = FileSystemWriter(folder, sync_files=False)
        self._metadata: Metadata | None = None

        def plan_mine() -> SavePlan:
            if Path(folder, METADATA).exists():
                raise CheckpointError(
                    f"{folder} holds a saved state already; give every save a folder of its own"
                )
            first = ranks.rank == 0
            self._planner.set_up_planner(values, is_coordinator=first)
            self._writer.set_up_storage_writer(first)
            return self._writer.prepare_local_plan(self._planner.create_local_plan())

        def plan_all(plans: list[SavePlan]) -> list[SavePlan]:
            plans, self._metadata = self._planner.create_global_plan(plans)
            return self._writer.prepare_global_plan(plans)

        self._planner.finish_plan(ranks.agree(plan_mine, plan_all))

    def copy_to_memory(self) -> None:
        """Copy what this rank will write, so that training may go on."""
        self._planner.copy_to_memory()
        # Nothing is left to copy from a GPU, and another thread would take the first one's.
        self._writer.per_thread_copy_ahead = 0

    def write(self) -> None:
        """Write this rank's files and wait for those of the others.

        Raises:
            CheckpointError: A rank could not write.
        """

        def write_mine() -> list[WriteResult]:
            written = self._writer.write_data(self._planner.plan, self._planner)
            return written.wait()

        def finish(results: list[list[WriteResult]]) -> list[None]:
            assert self._metadata is not None
            self._writer.finish(self._metadata, results)
            return [None] * len(results)

        self._ranks.agree(write_mine, finish)


class SavedFiles:
    """The files of a saved state, to read from.

    Args:
        folder: Where those of all ranks lie.

    Raises:
        CheckpointError: There is no saved state, or nothing one wants to unpickle.
    """

    def __init__(self, folder: str) -> None:
        self._reader = FileSystemReader(folder)
        try:
            with Path(folder, METADATA).open("rb") as file:
                self.metadata: Metadata = _MetadataUnpickler(file).load()
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} was not written by save_state(): it has no file {METADATA}"
            ) from None
        except (pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{folder}/{METADATA} cannot be read: {error}") from error

    def read(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Read into the tensors that are given by name; what is no tensor is returned anew.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        planner = _LoadPlanner(**_AS_GIVEN)
        planner.set_up_planner(wanted, self.metadata, is_coordinator=True)
        self._reader.set_up_storage_reader(self.metadata, is_coordinator=True)
        plan = self._reader.prepare_local_plan(planner.create_local_plan())
        try:
            self._reader.read_data(planner.finish_plan(plan), planner).wait()
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self._reader.path} cannot be read: {error}") from error
        return planner.state_dict


class _LoadPlanner(DefaultLoadPlanner):
    """Unpickles only data, no code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take what is no tensor."""
        with safe_types():
            self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


_METADATA_TYPES = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles what ``torch.distributed.checkpoint`` says of its files, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_TYPES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def safe_types() -> contextlib.AbstractContextManager[Any]:
    """Have ``torch.load(weights_only=True)`` take numpy's arrays and numbers, as torch's own."""
    import numpy as np

    codes = np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"
    kinds = {type(np.dtype(code)) for code in codes}
    makers: Any = [np.zeros(0).__reduce__()[0], np.float64().__reduce__()[0]]
    return torch.serialization.safe_globals([np.ndarray, np.dtype, *kinds, *makers])
