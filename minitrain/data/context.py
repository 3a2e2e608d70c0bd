"""Settings of every dataset in this process."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, ClassVar

from minitrain.exceptions import ConfigurationError

__all__ = ["DataContext"]

MIB = 1 << 20


@dataclass
class DataContext:
    """Settings of datasets: one object per process, to be changed in place.

    A trainer hands the driver's settings to its workers.

    Attributes:
        memory_budget_bytes: So much memory one iteration may have in rows that were read and not
            taken yet. A batch, a window of a local shuffle and one table being read need theirs in
            any case.
        shared_memory_bytes: So much of a materialized dataset, or of a global shuffle, is kept in
            the host's shared memory; a larger one goes to ``spill_folder``.
        spill_folder: Where such files lie; None: the temporary folder. They have no names there
            and vanish with their process.
        target_block_bytes: Text files are cut into blocks of about this size, and small row
            groups of Parquet files are joined up to it.
        target_table_bytes: Blocks are read in tables of about this size.
        read_threads: So many blocks are read at a time; None: 2 from a local disk, 16 from an
            object storage.

    Example:
        >>> from minitrain.data import DataContext
        >>> DataContext.get_current().memory_budget_bytes = 256 * 2**20
    """

    memory_budget_bytes: int = 512 * MIB
    shared_memory_bytes: int = 2048 * MIB
    spill_folder: str | os.PathLike[str] | None = None
    target_block_bytes: int = 64 * MIB
    target_table_bytes: int = 8 * MIB
    read_threads: int | None = None

    _current: ClassVar[DataContext | None] = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {field.name for field in fields(self)}:
            names = [field.name for field in fields(self)]
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            raise AttributeError(f"DataContext has no setting {name!r}; {hint}")
        problem = _problem(name, value)
        if problem:
            raise ConfigurationError(f"DataContext.{name}={value!r}: {problem}")
        super().__setattr__(name, value)

    @classmethod
    def get_current(cls) -> DataContext:
        """Return the settings of this process."""
        if DataContext._current is None:
            DataContext._current = cls()
        return DataContext._current


def _problem(name: str, value: Any) -> str:
    if name == "spill_folder":
        fits = value is None or isinstance(value, str | os.PathLike)
        return "" if fits else "must be a path, or None"
    if name == "read_threads" and value is None:
        return ""
    lowest = 0 if name in {"memory_budget_bytes", "shared_memory_bytes"} else 1
    fits = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= lowest
    return "" if fits else f"must be an integer of at least {lowest}"
