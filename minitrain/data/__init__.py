"""Streaming datasets on Arrow: read, transformed and handed over batch by batch.

Useful alone; a trainer divides them among its workers. What is here is imported when it is first
used: a process of a pool needs little of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitrain.data.aggregate import (
        AbsMax,
        AggregateFn,
        Count,
        Max,
        Mean,
        Min,
        Quantile,
        Std,
        Sum,
        Unique,
    )
    from minitrain.data.context import DataContext
    from minitrain.data.creation import (
        from_arrow,
        from_huggingface,
        from_items,
        from_numpy,
        from_pandas,
        from_tf,
        from_torch,
        range,  # noqa: A004 - as in ray.data
    )
    from minitrain.data.dataset import Dataset, MaterializedDataset
    from minitrain.data.files.source import FileShuffleConfig
    from minitrain.data.grouped import GroupedData
    from minitrain.data.iterator import DataIterator
    from minitrain.data.read import (
        read_binary_files,
        read_csv,
        read_images,
        read_json,
        read_numpy,
        read_parquet,
        read_text,
    )
    from minitrain.data.writing.output import SaveMode

_HOMES = {
    "aggregate": [
        "AbsMax",
        "AggregateFn",
        "Count",
        "Max",
        "Mean",
        "Min",
        "Quantile",
        "Std",
        "Sum",
        "Unique",
    ],
    "context": ["DataContext"],
    "creation": [
        "from_arrow",
        "from_huggingface",
        "from_items",
        "from_numpy",
        "from_pandas",
        "from_tf",
        "from_torch",
        "range",
    ],
    "dataset": ["Dataset", "MaterializedDataset"],
    "files.source": ["FileShuffleConfig"],
    "grouped": ["GroupedData"],
    "iterator": ["DataIterator"],
    "writing.output": ["SaveMode"],
    "read": [
        "read_binary_files",
        "read_csv",
        "read_images",
        "read_json",
        "read_numpy",
        "read_parquet",
        "read_text",
    ],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AbsMax",
    "AggregateFn",
    "Count",
    "DataContext",
    "DataIterator",
    "Dataset",
    "FileShuffleConfig",
    "GroupedData",
    "MaterializedDataset",
    "Max",
    "Mean",
    "Min",
    "Quantile",
    "SaveMode",
    "Std",
    "Sum",
    "Unique",
    "from_arrow",
    "from_huggingface",
    "from_items",
    "from_numpy",
    "from_pandas",
    "from_tf",
    "from_torch",
    "range",
    "read_binary_files",
    "read_csv",
    "read_images",
    "read_json",
    "read_numpy",
    "read_parquet",
    "read_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'minitrain.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"minitrain.data.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
