"""Datasets of a run: looked at before it begins, divided in every worker, gone on with later.

Every worker divides them itself, by a pure function: nobody is asked, and nobody waits. How far
each rank has come travels with its reports; the driver makes one position of all of them, which is
kept in the checkpoint and is where the next attempt's ranks begin, however many there are.

Nothing of :mod:`minitrain.data` is imported unless there is a dataset of it.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from minitrain._logging import logger
from minitrain.config import DataConfig
from minitrain.context import TrainContext
from minitrain.exceptions import ConfigurationError, DataError

__all__ = ["Datasets", "Positions", "Shards", "pickled_for"]

_SLOW_S = 1.0
"""Who waits longer than this is told for what."""


@dataclass(frozen=True)
class Datasets:
    """What a trainer was given to read, as it travels to workers.

    Attributes:
        given: By name: datasets, functions that make one in the worker that asks, anything else.
        config: Which of them are divided, and how.
        settings: The driver's :class:`minitrain.data.DataContext`, if it has one.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    config: DataConfig = field(default_factory=DataConfig)
    settings: Any = None

    def resolved(self, *, shared: bool) -> Datasets:
        """Return the same with every dataset listed and counted.

        Args:
            shared: Whether other processes will map what lies in this one's memory.

        Raises:
            ConfigurationError: The configuration names a dataset that there is not.
            DataError: A dataset cannot be read, or a step of it fails.
        """
        self._check_names()
        given = dict(self.given)
        known: dict[int, Any] = {}  # one may be given under two names
        for name, dataset in self.given.items():
            if _is_dataset(dataset):
                if id(dataset) not in known:
                    known[id(dataset)] = _resolved(name, dataset, shared=shared)
                given[name] = known[id(dataset)]
        return replace(self, given=given, settings=_settings())

    def layouts(self) -> dict[str, str]:
        """Return by name what stands for the order of the rows of each dataset."""
        given = self.given.items()
        return {name: one.counted().fingerprint() for name, one in given if _is_dataset(one)}

    def check_layouts(self, layouts: Mapping[str, str]) -> None:
        """Raise an error if rank 0, which resolved them for itself, has found other rows.

        Args:
            layouts: Those of rank 0.

        Raises:
            DataError: Ranks would get different numbers of batches, and wait for one another.
        """
        for name, layout in self.layouts().items():
            if layouts.get(name) != layout:
                raise DataError(
                    f"the dataset {name!r} has other rows here than on rank 0 ({self._rows(name)} "
                    "here): every rank must find the same files, and read them with the same code"
                )

    def _rows(self, name: str) -> str:
        return f"{self.given[name].count():,}"

    def say_what_is_dropped(self, num_workers: int) -> None:
        """Say of which datasets some rows come to nobody.

        A class of the user's may divide them otherwise.
        """
        config = self.config
        if type(config).configure is not DataConfig.configure or config.remainder != "drop":
            return
        for name, dataset in self.given.items():
            if not _is_dataset(dataset) or not config.divides(name):
                continue
            rows = dataset.count()
            if rows < num_workers:
                logger.warning(
                    "%r has %d rows for %d workers: nobody gets any", name, rows, num_workers
                )
                continue
            dropped = rows % num_workers
            if not dropped:
                continue
            logger.info(
                "%r has %s rows: with %d workers, the last %d of each epoch come to nobody "
                "(DataConfig(remainder='pad') gives some rows twice instead)",
                name,
                f"{rows:,}",
                num_workers,
                dropped,
            )

    def check_functions(self) -> None:
        """Say which function of a dataset cannot be pickled, if it is one of these.

        Raises:
            TransformError: It cannot.
        """
        for dataset in self.given.values():
            if _is_dataset(dataset):
                dataset.check_functions()

    def _check_names(self) -> None:
        names = self.config.datasets_to_split
        unknown = [] if names == "all" else sorted(set(names) - self.given.keys())
        if unknown:
            raise ConfigurationError(
                f"DataConfig(datasets_to_split={names!r}): there is no dataset "
                f"{', '.join(map(repr, unknown))}: the trainer was given {sorted(self.given)}"
            )

    def settle(self, folder: str) -> None:
        """Take over the driver's settings in this worker.

        Args:
            folder: Where the workers of this host meet: what lies in the memory of the driver's
                host is made once on each other host that needs it.
        """
        if self.settings is None:
            return
        from minitrain.data.context import DataContext
        from minitrain.data.plans.mapped import meet_in

        meet_in(Path(folder))
        own = DataContext.get_current()
        for one in fields(own):
            setattr(own, one.name, getattr(self.settings, one.name))


def pickled_for(*, one_host: bool) -> AbstractContextManager[None]:
    """Pickle datasets meanwhile so that workers can have them.

    Args:
        one_host: Whether all are on this one: they map what lies in its memory.
    """
    module = sys.modules.get("minitrain.data.plans.mapped")
    return module.for_this_host_alone() if module is not None and one_host else nullcontext()


def _settings() -> Any:
    module = sys.modules.get("minitrain.data.context")
    return module.DataContext.get_current() if module is not None else None


def _is_dataset(value: Any) -> bool:
    module = sys.modules.get("minitrain.data.dataset")
    return module is not None and isinstance(value, module.Dataset)


def _is_iterator(value: Any) -> bool:
    module = sys.modules.get("minitrain.data.iterator")
    return module is not None and isinstance(value, module.DataIterator)


def _resolved(name: str, dataset: Any, *, shared: bool = False) -> Any:
    began_s = time.monotonic()
    resolved = dataset.resolved(shared=shared)
    took_s = time.monotonic() - began_s
    if took_s > _SLOW_S:
        logger.info("counted the rows of %r: %s in %.1f s", name, f"{resolved.count():,}", took_s)
    return resolved


class Shards:
    """This rank's part of every dataset, made when it is first asked for.

    Args:
        datasets: The trainer's.
        context: Which rank this is.
        positions: Where to begin those that had been begun before, by name.
    """

    def __init__(
        self, datasets: Datasets, context: TrainContext, positions: Mapping[str, Any]
    ) -> None:
        self._given = dict(datasets.given)
        self._config = datasets.config
        self._rank = context.get_world_rank()
        self._world_size = context.get_world_size()
        self._sharers = context.get_local_world_size()
        self._from = dict(positions)
        self._own: dict[str, Any] = {}
        self._divided: dict[str, Any] = {}
        self._is_configured = False

    def get(self, name: str | None) -> Any:
        """Return this rank's part of a dataset, the same each time.

        Raises:
            KeyError: There is no such dataset.
        """
        if name is None and len(self._given) == 1:
            (name,) = self._given
        self._configure()
        if name in self._given and name not in self._own and not _is_dataset(self._given[name]):
            self._make(name)
        if name not in self._own:
            raise KeyError(
                f"there is no dataset {name!r}: the trainer was given {sorted(self._given)}; "
                "pass it as Trainer(datasets={...})"
            )
        return self._own[name]

    def _make(self, name: str) -> None:
        """Take what is no dataset as it is, and what a function makes as if it had been given."""
        made = self._given[name]
        if callable(made):
            made = made()
        if _is_dataset(made):
            # A configure() of the user's counts on the other datasets too, and got them before.
            self._take({name: _resolved(name, made)}, partial(DataConfig.configure, self._config))
        else:
            self._own[name] = made

    def positions(self) -> dict[str, Any]:
        """Return how far this rank has read the datasets that are divided, by name.

        Also of those that it has not asked for: it has delivered nothing of its part, which is not
        lost. A dataset that a function makes is known only after it was asked for.
        """
        self._configure()
        return {name: iterator.position() for name, iterator in self._divided.items()}

    def _configure(self) -> None:
        """Divide all datasets that need not be made first."""
        if not self._is_configured:
            datasets = {name: one for name, one in self._given.items() if _is_dataset(one)}
            if datasets:
                self._take(datasets, self._config.configure)
            self._is_configured = True

    def _take(self, datasets: Mapping[str, Any], configure: Callable[..., Any]) -> None:
        by_rank = configure(
            dict(datasets), self._world_size, worker_handles=None, worker_node_ids=None
        )
        are_dicts = isinstance(by_rank, list) and all(isinstance(one, Mapping) for one in by_rank)
        if not are_dicts or len(by_rank) != self._world_size:
            raise TypeError(
                f"{type(self._config).__name__}.configure() returned {by_rank!r}: must be a list "
                f"of {self._world_size} dicts of names and iterators, one for each rank"
            )
        for name, iterator in by_rank[self._rank].items():
            self._own[name] = iterator
            if _is_iterator(iterator):
                self._bind(name, iterator)

    def _bind(self, name: str, iterator: Any) -> None:
        """Tell an iterator where it is, and let it go on where all ranks were."""
        iterator.bind(device=_device, sharers=self._sharers)
        if iterator.divided_among != self._world_size:
            return  # it is no part of one that all ranks read
        self._divided[name] = iterator
        if name not in self._from:
            return
        try:
            iterator.resume(self._from[name])
        except DataError as error:
            say = logger.warning if self._rank == 0 else logger.debug  # all ranks find the same
            say("the dataset %r is read from the beginning of an epoch: %s", name, error)


def _device() -> Any:
    """Return this worker's device; torch stands above, and is imported by who asks."""
    return importlib.import_module("minitrain.torch").get_device()


class Positions:
    """Where all ranks together stand in every dataset, from checkpoint to checkpoint.

    Attributes:
        now: By name; what a checkpoint keeps.
    """

    def __init__(self) -> None:
        self.now: dict[str, Any] = {}
        self._warned: set[str] = set()

    def take(self, by_rank: Sequence[Mapping[str, Any]]) -> None:
        """Take where each rank stood when it made the same report.

        A dataset that some rank has not asked for stands where it did: that is one which a
        function makes.
        """
        for name in by_rank[0]:
            if all(name in positions for positions in by_rank):
                self._merge(name, [positions[name] for positions in by_rank])

    def _merge(self, name: str, positions: list[Any]) -> None:
        from minitrain.data.iterator import merged_positions

        try:
            self.now[name] = merged_positions(positions)
        except DataError as error:
            self.now.pop(name, None)
            if name not in self._warned:
                self._warned.add(name)
                logger.warning("no position of the dataset %r is kept: %s", name, error)
