"""What columns a plan has, as far as it can be known without calling a function of the user."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from minitrain.data.plans.functions import FilterRows
from minitrain.data.plans.mapped import TableBlock
from minitrain.data.plans.plan import (
    Apply,
    Listed,
    Node,
    Read,
    Repartition,
    ShuffleBlocks,
    ShuffleRows,
    Sliced,
    Whole,
)
from minitrain.data.plans.sorting import Sorted
from minitrain.data.plans.steps import Sample, TableStep, WithColumn, check_columns

__all__ = ["check_plan_columns", "check_steps", "known_schema"]


def known_schema(node: Node, *, cheaply: bool = False) -> pa.Schema | None:
    """Return the columns and their types; None if only rows could tell them.

    Args:
        node: The plan.
        cheaply: None also if something would have to be read, or imported, for it alone.

    Raises:
        ColumnError: A step needs a column that is not there.
    """
    match node:
        case Read(source=source) if cheaply and not source.lists_columns:
            return None
        case Apply(step=WithColumn()) if cheaply:  # computes with pandas loaded
            return None
        case Read(source=source):
            schema = source.schema()
            names = source.columns
            return schema if names is None else pa.schema([schema.field(name) for name in names])
        case Listed(listed=(TableBlock(shared=shared), *_)):
            return shared.table().schema
        case Apply(child=child, step=TableStep() as step):
            before = known_schema(child, cheaply=cheaply)
            if before is None:
                return None
            return step.on_table(before.empty_table(), "no rows", 0).schema
        case (
            Apply(child=child, step=FilterRows() | Sample())
            | Sliced(child=child)
            | Repartition(child=child)
            | ShuffleBlocks(child=child)
            | ShuffleRows(child=child)
            | Whole(child=child, function=Sorted())
        ):
            return known_schema(child, cheaply=cheaply)
        case _:
            return None


def check_steps(node: Node) -> None:
    """Raise a ColumnError if a step is known to need a column that is not there.

    Who only counts rows does not come by such a step.
    """
    if known_schema(node, cheaply=True) is None:
        for child in node.children:
            check_steps(child)


def check_plan_columns(names: Sequence[str], node: Node, what: str) -> None:
    """Raise a ColumnError if a column is known not to be there."""
    schema = known_schema(node)
    if schema is not None:
        check_columns(names, schema.names, what)
