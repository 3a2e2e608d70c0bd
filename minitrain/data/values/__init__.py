"""What batches are made of: Arrow to numpy, pandas, Python and torch, and back.

The rows of a step are a table of Arrow. What a user's function gets is a copy: the memory of a
table may be mapped or shared with other processes, and nobody writes to it. What a user's function
returns becomes a table again, without a copy where that is possible.

Importing this package registers the Arrow types of :mod:`minitrain.data.values.types`. A process
that reads Arrow IPC with such columns imports it first; unpickling a table imports it by itself.
"""

from minitrain.data.values.batches import (
    batch_from_table,
    check_format,
    concat_numpy,
    slice_numpy,
    table_from_batch,
    table_from_rows,
)
from minitrain.data.values.from_arrow import (
    numpy_from_column,
    numpy_from_table,
    pandas_from_table,
    rows_from_table,
)
from minitrain.data.values.joining import (
    common_schema,
    concat_tables,
    converted,
    converted_column,
)
from minitrain.data.values.tensors import torch_from_numpy, torch_from_table
from minitrain.data.values.to_arrow import array_from_list, array_from_numpy
from minitrain.data.values.types import ObjectType, RaggedTensorType
from minitrain.data.values.views import plain_type, without_views

__all__ = [
    "ObjectType",
    "RaggedTensorType",
    "array_from_list",
    "array_from_numpy",
    "batch_from_table",
    "check_format",
    "common_schema",
    "concat_numpy",
    "concat_tables",
    "converted",
    "converted_column",
    "numpy_from_column",
    "numpy_from_table",
    "pandas_from_table",
    "plain_type",
    "rows_from_table",
    "slice_numpy",
    "table_from_batch",
    "table_from_rows",
    "torch_from_numpy",
    "torch_from_table",
    "without_views",
]
