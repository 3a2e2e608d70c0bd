"""Iterating over a dataset, or over one rank's share of it, batch by batch."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from minitrain.data import order
from minitrain.data.context import DataContext
from minitrain.data.feeding.formats import TorchFormat, format_for
from minitrain.data.feeding.stream import Batching, Part, batches, parts_of
from minitrain.data.feeding.to_tf import ToTensorFlow
from minitrain.data.feeding.to_torch import ToTorch
from minitrain.data.plans.block import Block
from minitrain.data.plans.functions import check_count, check_seed
from minitrain.data.plans.mapped import HostTable
from minitrain.data.plans.plan import Node, Sliced, Union, sources_of, written
from minitrain.data.plans.planning import first_table, optimized, order_of, prepared, resolved
from minitrain.data.plans.runtime import Runtime
from minitrain.exceptions import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from minitrain.data.dataset import MaterializedDataset

__all__ = ["DataIterator", "Iterates", "Remainder", "merged_positions"]

Remainder = Literal["drop", "pad"]

_ROWS_PER_BATCH = 8192
"""Of a share that is iterated without a batch size: every rank must get as many batches."""
_ROWS_AT_A_TIME = 1024
"""Are taken from Arrow when a user gets them one by one."""


class _Batches:
    """An iterable: each ``iter()`` begins the next epoch."""

    def __init__(self, begin: Callable[[Batching], Iterator[Any]], batching: Batching) -> None:
        self._begin = begin
        self._batching = batching

    def __iter__(self) -> Iterator[Any]:
        return self._begin(self._batching)


class Iterates(ToTorch, ToTensorFlow):
    """What can be iterated over in batches: a dataset, or a share of one."""

    @abstractmethod
    def _begin(self, batching: Batching) -> Iterator[Any]:
        """Begin an epoch."""

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "iterate over .iter_batches(), .iter_torch_batches() or .iter_rows() of a "
            f"{type(self).__name__}"
        )

    @abstractmethod
    def _device(self) -> Any:
        """Return the device that ``device="auto"`` means."""

    def iter_batches(
        self,
        *,
        prefetch_batches: int = 1,
        batch_size: int | None = 256,
        batch_format: Literal["default", "numpy", "pandas", "pyarrow"] | None = "default",
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
    ) -> _Batches:
        """Iterate over batches; each ``iter()`` of what is returned begins another epoch.

        Args:
            prefetch_batches: So many batches are made ready in a thread while one is used.
            batch_size: Rows per batch; None: as many as are read at a time, and of a share that
                is divided among ranks 8,192.
            batch_format: ``"default"`` and ``"numpy"``: a dict of arrays; ``"pandas"``: a frame;
                ``"pyarrow"`` and None: a table.
            drop_last: Leave a shorter last batch out.
            local_shuffle_buffer_size: Shuffle the rows of so many at a time.
            local_shuffle_seed: Of that shuffle; each epoch has another order.

        Example:
            >>> import minitrain.data
            >>> ds = minitrain.data.range(5)
            >>> [batch["id"].tolist() for batch in ds.iter_batches(batch_size=2)]
            [[0, 1], [2, 3], [4]]
        """
        form = format_for(batch_format)
        return self._iterable(
            Batching(form, batch_size, drop_last, prefetch_batches),
            local_shuffle_buffer_size,
            local_shuffle_seed,
        )

    def iter_rows(self) -> _Batches:
        """Iterate over rows, as dicts of Python values; each ``iter()`` begins another epoch.

        Example:
            >>> import minitrain.data
            >>> next(iter(minitrain.data.range(5).iter_rows()))
            {'id': 0}
        """
        from minitrain.data import values

        batching = Batching(
            format_for("pyarrow"), _ROWS_AT_A_TIME, one_by_one=values.rows_from_table
        )
        return self._iterable(batching, None, None)

    def iter_torch_batches(
        self,
        *,
        prefetch_batches: int = 1,
        batch_size: int | None = 256,
        dtypes: Any = None,
        device: Any = "auto",
        collate_fn: Callable[[dict[str, np.ndarray]], Any] | None = None,
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
        pin_memory: bool = False,
    ) -> _Batches:
        """Iterate over batches of tensors: a dict with one per column.

        Args:
            prefetch_batches: So many batches are made ready in a thread while one is used.
            batch_size: Rows per batch.
            dtypes: A ``torch.dtype``, or one by column.
            device: Where the tensors are; ``"auto"``: the worker's device, elsewhere the CPU. They
                are copied to a GPU on a stream of their own while the last batch is used.
            collate_fn: Makes what you want from a dict of arrays; called in the thread.
            drop_last: Leave a shorter last batch out.
            local_shuffle_buffer_size: Shuffle the rows of so many at a time.
            local_shuffle_seed: Of that shuffle; each epoch has another order.
            pin_memory: Copy from pinned memory to the GPU.

        Raises:
            ValueError: Both ``dtypes`` and ``collate_fn`` are given.
        """
        from minitrain.data.feeding.to_device import to_device

        if collate_fn is not None and dtypes is not None:
            raise ValueError("iter_torch_batches: dtypes has no effect beside collate_fn")
        if collate_fn is not None and not callable(collate_fn):
            raise TypeError(f"iter_torch_batches: collate_fn={collate_fn!r} cannot be called")
        where = self._device() if device == "auto" else device
        form = format_for("numpy") if collate_fn is not None else TorchFormat(dtypes)
        moves = to_device(collate_fn, where, pin_memory=pin_memory)
        return self._iterable(
            Batching(
                form,
                batch_size,
                drop_last,
                prefetch_batches,
                finish=moves.finish,
                taken=moves.taken,
            ),
            local_shuffle_buffer_size,
            local_shuffle_seed,
        )

    def tensors(
        self,
        needed: Callable[[Sequence[str]], Sequence[str]] | None,
        *,
        dtypes: Any,
        batch_size: int,
        prefetch_batches: int,
        drop_last: bool,
        local_shuffle_buffer_size: int | None,
        local_shuffle_seed: int | None,
    ) -> _Batches:
        """Iterate over batches of tensors in the CPU's memory, perhaps of some columns only.

        Args:
            needed: Returns of the columns there are those to make tensors of; None: all.
            dtypes: As in :meth:`iter_torch_batches`, like the others.
            batch_size: Likewise.
            prefetch_batches: Likewise.
            drop_last: Likewise.
            local_shuffle_buffer_size: Likewise.
            local_shuffle_seed: Likewise.
        """
        return self._iterable(
            Batching(TorchFormat(dtypes, needed), batch_size, drop_last, prefetch_batches),
            local_shuffle_buffer_size,
            local_shuffle_seed,
        )

    def _iterable(self, batching: Batching, window: int | None, seed: int | None) -> _Batches:
        size = batching.size
        checked = replace(
            batching,
            size=None if size is None else check_count("batch_size", size),
            prefetch=check_count("prefetch_batches", batching.prefetch, lowest=0),
            window=None if window is None else check_count("local_shuffle_buffer_size", window),
            seed=check_seed("local_shuffle", seed),
        )
        return _Batches(self._begin, checked)


class DataIterator(Iterates):
    """One rank's share of a dataset, or the whole of it.

    Which rows come, and in which order, depends only on the dataset, its seeds, the epoch, the
    rank and the number of ranks. Nothing is agreed with other ranks while data flows.

    Args:
        plan: What is read.
        rank: Of whom it is the share.
        world_size: How many ranks there are; None: it is nobody's share.
        equal: Whether every rank gets as many rows.
        remainder: What becomes of the rows that do not go evenly: ``"drop"``: nobody gets them;
            ``"pad"``: some rows come twice.

    Attributes:
        divided_among: The number of ranks that was given.
    """

    def __init__(
        self,
        plan: Node,
        rank: int = 0,
        world_size: int | None = None,
        *,
        equal: bool = True,
        remainder: Remainder = "drop",
    ) -> None:
        self._plan = plan
        self._rank = rank
        self.divided_among = world_size
        self._world_size = world_size or 1
        self._equal = equal
        self._remainder: Remainder = remainder
        self._resolved = False
        self._sources = sources_of(plan)
        self._layout = ""
        self._listed: _Epoch | None = None
        self._next_epoch = 0
        self._resumed: _Left | None = None
        self._running: _Running | None = None
        self._auto_device: Callable[[], Any] | None = None
        self._sharers = 1
        self._runtime: Runtime | None = None

    def __repr__(self) -> str:
        return f"DataIterator(rank {self._rank} of {self._world_size})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_runtime": None, "_running": None, "_listed": None}
        return state | {"_auto_device": None}

    def bind(self, *, device: Callable[[], Any] | None = None, sharers: int = 1) -> None:
        """Say where the iterator is used.

        Args:
            device: Returns what ``device="auto"`` means.
            sharers: So many processes of this host use shares of the same dataset; they divide
                ``concurrency`` among them.
        """
        self._auto_device = device
        self._sharers = sharers

    # ------------------------------------------------------------------ positions
    def state_dict(self) -> dict[str, Any]:
        """Return where this iterator is: after the rows that were handed out.

        It can be written as JSON.
        """
        now = self._now()
        pad = replace(now.position, remaining=now.pad).to_json()["remaining"]
        whose = {"rank": self._rank, "world_size": self._world_size}
        return now.position.to_json() | {"pad": pad} | whose

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an iterator of the same rank, of as many ranks, was.

        Raises:
            DataError: The state is that of another dataset or another rank, or no state.
        """
        position = self._checked(dict(state))
        self._check_whose(position, state)
        padding = order.Position.from_json({**state, "remaining": state.get("pad", [])})
        self._go_on(_Left(position, padding.remaining or ()))

    def _check_whose(self, position: order.Position, state: Mapping[str, Any]) -> None:
        """Raise an error if a state is not that of this rank; older ones do not say whose."""
        if position.remaining is None or "pad" not in state:
            raise DataError(
                "this is no state of a rank, as state_dict() returns it; a position of all ranks "
                "together is for resume()"
            )
        rank, world_size = state.get("rank", self._rank), state.get("world_size", self._world_size)
        if (rank, world_size) != (self._rank, self._world_size):
            raise DataError(
                f"the state is that of rank {rank} of {world_size}, and this is rank {self._rank} "
                f"of {self._world_size}; among other ranks, resume() divides what all have left"
            )

    def position(self) -> dict[str, Any]:
        """Return which rows of this rank's share of the current epoch are left.

        Those of all ranks together are what :func:`merged_positions` takes.
        """
        return self._now().position.to_json()

    def resume(self, position: Mapping[str, Any]) -> None:
        """Go on where all ranks together were: what they left is divided anew.

        Args:
            position: What :func:`merged_positions` made of those of all ranks, however many.

        Raises:
            DataError: The position is in another dataset.
        """
        merged = self._checked(dict(position))
        self._go_on(self._left(merged.epoch, merged.remaining))

    def _checked(self, state: dict[str, Any]) -> order.Position:
        position = order.Position.from_json(state)
        if position.layout != self.fingerprint():
            raise DataError(
                "the position is one in another dataset: its files, its number of rows or its "
                "shuffle have changed since"
            )
        return position

    def _go_on(self, left: _Left) -> None:
        self._running = None
        self._resumed = left
        self._next_epoch = left.position.epoch

    def _now(self) -> _Left:
        if self._running is not None:
            return self._running.left()
        return self._resumed or self._left(self._next_epoch, None)

    def _left(self, epoch: int, remaining: order.Segments | None) -> _Left:
        """Return this rank's share of what remains of an epoch; None: of all its rows."""
        total = self._epoch(epoch).layout.total
        share = order.share(
            order.whole(total) if remaining is None else remaining,
            total,
            self._rank,
            self._world_size,
            equal=self._equal,
            remainder=self._remainder,
        )
        position = order.Position(epoch, share.own, share.tail, self.fingerprint())
        return _Left(position, share.pad)

    # ------------------------------------------------------------------ parts of a share
    def counted(self, columns: Sequence[str] | None = None) -> DataIterator:  # noqa: ARG002
        """Return this iterator, having counted the rows: it goes on with all columns it has."""
        self.rows()
        return self

    def rows(self) -> int:
        """Return how many rows the first epoch has; others may differ, if a step changes them."""
        return sum(run.rows for run in self._runs(0))

    def part(self, number: int, parts: int, batch_size: int, epoch: int) -> DataIterator:
        """Return an iterator over some of this share's batches.

        Args:
            number: Which part.
            parts: How many there are.
            batch_size: Rows per batch: no batch is divided.
            epoch: The epoch it begins with.
        """
        runs = self._runs(epoch)
        batches = -(-sum(run.rows for run in runs) // batch_size)
        first, last = (batches * edge // parts * batch_size for edge in (number, number + 1))
        share: tuple[Node, ...] = tuple(Sliced(self._plan, run.start, run.stop) for run in runs)
        iterator = DataIterator(Sliced(Union(share), first, last), equal=False)
        iterator.bind(device=self._auto_device, sharers=self._sharers * parts)
        iterator._next_epoch = epoch
        return iterator

    def _runs(self, epoch: int) -> list[order.Run]:
        """Return which rows of an epoch are this rank's."""
        left = self._left(epoch, None)
        segments = (*(left.position.remaining or ()), *left.pad)
        return [run for run in segments if isinstance(run, order.Run)]

    # ------------------------------------------------------------------ epochs
    def _begin(self, batching: Batching) -> Generator[Any, None, None]:
        left = self._resumed or self._left(self._next_epoch, None)
        running = self._running = _Running(left, batching)
        self._resumed = None
        self._next_epoch = left.position.epoch + 1
        if batching.size is None:
            batching = replace(batching, size=_ROWS_PER_BATCH)
        try:
            parts = running.parts(self._epoch(left.position.epoch))
            with closing(batches(parts, batching, self._runtime_here())) as made:
                for batch, rows in made:
                    for part, part_rows in batching.handed_out(batch, rows):
                        running.delivered += part_rows
                        yield part
        except GeneratorExit:  # the loop was left: its epoch is over
            raise
        except BaseException:
            if self._running is running:
                self._go_on(running.left())
            raise
        finally:
            if self._running is running:
                self._running = None

    def _epoch(self, number: int) -> _Epoch:
        if self._listed is None or self._listed.number != number:
            with self._runtime_here().in_this_thread():
                self._resolve()
                self._listed = _Epoch.of(self._plan, number)
        return self._listed

    def _resolve(self) -> None:
        """List and count the blocks, if that was not done."""
        if not self._resolved:
            self._plan, self._resolved = resolved(optimized(self._plan)), True
            for source in self._sources:
                source.warn_of_skips()
            self._sources = []  # lists of files, which need not travel

    def fingerprint(self) -> str:
        """Return what stands for the order of the rows, which does not change with the epoch.

        It is the same for two iterators if they are over as many rows in each block, shuffled and
        sorted in the same way.
        """
        if not self._layout:
            rows = self._epoch(0).layout.rows
            self._layout = order.fingerprint(rows, *order_of(self._plan))
        return self._layout

    def _runtime_here(self) -> Runtime:
        if self._runtime is None:
            self._runtime = Runtime(self._sharers)
            weakref.finalize(self, self._runtime.close)
        return self._runtime

    def _device(self) -> Any:
        return self._auto_device() if self._auto_device is not None else "cpu"

    # ------------------------------------------------------------------ what it is about
    def schema(self) -> pa.Schema | None:
        """Return the columns and their types; None if there are no rows."""
        runtime = self._runtime_here()
        if not self._resolved:
            with runtime.in_this_thread():
                self._plan = prepared(optimized(self._plan))  # an epoch need not do it again
        table = first_table(self._plan, runtime)
        return None if table is None else table.schema

    def materialize(self) -> MaterializedDataset:
        """Read this share of the next epoch once, and return it as a dataset in shared memory."""
        from minitrain.data.dataset import in_memory

        tables = self.iter_batches(batch_size=None, batch_format="pyarrow")
        what = "materialized share"
        return in_memory(HostTable(written(tables, what), None), what)

    def stats(self) -> str:
        """Return where the time of the epochs went so far."""
        return self._runtime_here().meter.describe()

    def get_context(self) -> DataContext:
        """Return the settings of datasets in this process."""
        return DataContext.get_current()


@dataclass(frozen=True)
class _Left:
    """What a rank has not delivered: its own rows, and then those that make shares equal."""

    position: order.Position
    pad: order.Segments


@dataclass(frozen=True)
class _Epoch:
    """The blocks of an epoch, in its order."""

    number: int
    blocks: tuple[Block, ...]
    layout: order.Layout

    @classmethod
    def of(cls, plan: Node, number: int) -> _Epoch:
        blocks = tuple(plan.blocks(number))
        return cls(
            number, blocks, order.Layout(np.array([block.count() for block in blocks], np.int64))
        )


class _Running:
    """An epoch that is being iterated over.

    Attributes:
        delivered: So many rows were handed out.
    """

    def __init__(self, begun: _Left, batching: Batching) -> None:
        self._begun = begun
        self._own = begun.position.remaining or ()
        self._epoch = begun.position.epoch
        self._batching = batching
        self.delivered = 0

    def parts(self, epoch: _Epoch) -> Callable[[], Iterator[Part]]:
        """Return what gives what there is to read."""
        window, seed = self._batching.window, self._batching.seed

        def segments() -> Iterator[order.Segment]:
            yield from order.window(self._own, window, seed, self._epoch)
            yield from self._begun.pad

        return lambda: parts_of(epoch.blocks, epoch.layout, segments())

    def left(self) -> _Left:
        """Return what was not handed out."""
        batching = self._batching
        own = order.after(self._own, batching.window, batching.seed, self._epoch, self.delivered)
        padded = max(0, self.delivered - order.rows_in(self._own))
        pad = order.cut(self._begun.pad, padded, order.rows_in(self._begun.pad))
        return _Left(replace(self._begun.position, remaining=own), pad)


def merged_positions(positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return where all ranks together are, for :meth:`DataIterator.resume`.

    Args:
        positions: What :meth:`DataIterator.position` returned in each rank, in order.

    Raises:
        DataError: They do not belong together.
    """
    return order.merged([order.Position.from_json(dict(one)) for one in positions]).to_json()
