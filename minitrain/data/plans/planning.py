"""Makes of a plan one that reads less, and one whose rows are known.

Nothing reads rows but :func:`prepared`, which does what needs all of them at once (a global
shuffle, a sort) into shared memory, and :func:`resolved`, which also lists the blocks and counts
the rows that no metadata tells. What remains depends on the epoch alone, and is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.files.filters import columns_of
from minitrain.data.plans.block import Source
from minitrain.data.plans.functions import RowsChangedError
from minitrain.data.plans.mapped import TableBlock
from minitrain.data.plans.plan import (
    Apply,
    Listed,
    Node,
    Read,
    Shuffle,
    ShuffleBlocks,
    ShuffleRows,
    Union,
    Whole,
    counted,
    host_table,
    tables,
)
from minitrain.data.plans.runtime import Runtime
from minitrain.data.plans.sources import TableSource, ranges
from minitrain.data.plans.steps import Drop, Filter, MappedBlock, Select, Step
from minitrain.data.plans.tables import in_tables
from minitrain.exceptions import DataError

__all__ = [
    "explain",
    "first_table",
    "optimized",
    "order_of",
    "prepared",
    "resolved",
    "steps_of",
]

_WORTH_SHARING_BYTES = 1 << 20
"""A smaller table travels to each process with the plan."""


def optimized(node: Node) -> Node:
    """Return a plan for the same rows that reads less.

    Selections and filters by expressions go into sources that can do them while they read. A
    shuffle of blocks commutes with what is done to each block, and goes behind it. A shuffle of
    rows goes behind the last step that is known to change their number: that is then the same in
    every epoch. What is done to each block of a union is done to those of its parts.
    """
    node = node.with_children(tuple(optimized(child) for child in node.children))
    if not isinstance(node, Apply):
        return node
    node = _pushed(node)
    return _behind(node) if isinstance(node, Apply) else node


def _pushed(node: Apply) -> Node:
    read, step = node.child, node.step
    if isinstance(read, Union):
        return Union(tuple(optimized(Apply(part, step)) for part in read.parts))
    if not isinstance(read, Read):
        return node
    source = read.source
    if isinstance(step, Select) and source.can_select and _has(source, step.columns):
        return Read(replace(source, columns=step.columns))  # type: ignore[type-var]
    if isinstance(step, Drop) and source.can_select and _has(source, step.columns):
        left = tuple(name for name in _columns(source) if name not in step.columns)
        return Read(replace(source, columns=left)) if left else node  # type: ignore[type-var]
    if isinstance(step, Filter) and source.can_filter and _may_see(source, step.expression):
        both = step.expression if source.predicate is None else source.predicate & step.expression
        return Read(replace(source, predicate=both))  # type: ignore[type-var]
    return node


def _has(source: Source, columns: Sequence[str]) -> bool:
    """Tell whether a source yields columns; otherwise the step says at once which it does not."""
    return set(columns) <= set(_columns(source))


def _may_see(source: Source, expression: pc.Expression) -> bool:
    """Tell whether a filter looks at nothing that was not selected; otherwise the step says so."""
    if source.columns is None:
        return True
    try:
        columns_of(expression, source.schema(), "filter")
    except DataError:
        return False
    return True


def _columns(source: Source) -> Sequence[str]:
    return source.schema().names if source.columns is None else source.columns


def _behind(node: Apply) -> Node:
    """Return the plan with a shuffle behind the steps that follow it, as far as that is right."""
    steps, below = _chain(node)
    match below:
        case ShuffleBlocks():
            last = len(steps)
        case ShuffleRows():
            last = _first_that_keep(steps)
        case _:
            last = 0
    if not last:
        return node
    (inner,) = below.children
    moved = below.with_children((optimized(_applied(inner, steps[:last])),))
    return _applied(moved, steps[last:])


def _first_that_keep(steps: Sequence[Step]) -> int:
    """Return where the steps begin that keep rows, or may."""
    changing = (i + 1 for i, one in enumerate(steps) if not (one.keeps_rows or one.may_keep_rows))
    return max(changing, default=0)


def _chain(node: Node) -> tuple[list[Step], Node]:
    """Return the steps on top of a plan, the first one first, and what they are applied to."""
    steps: list[Step] = []
    while isinstance(node, Apply):
        steps.insert(0, node.step)
        node = node.child
    return steps, node


def _applied(node: Node, steps: Iterable[Step]) -> Node:
    for step in steps:
        node = Apply(node, step)
    return node


def prepared(node: Node) -> Node:
    """Do once what needs all rows at once, so that it is not done for each epoch.

    Raises:
        DataError: Something is wrong with the files or in a function of the user.
    """
    match node:
        case ShuffleRows(child=Listed(listed=(TableBlock(is_whole=True),))):
            return node
        case ShuffleRows(child=child):
            text = summary(child)
            table = host_table(prepared(child))
            listed = Listed((TableBlock.all_of(table, text),), text, order_of(child))
            return replace(node, child=listed)
        case Whole(child=child):
            node = replace(node, child=prepared(child))
            return Listed(tuple(node.blocks(0)), summary(node), order_of(node))
        case _:
            return node.with_children(tuple(prepared(child) for child in node.children))


def resolved(node: Node, *, shared: bool = False) -> Node:
    """List and count the blocks, once for all epochs and processes.

    Args:
        node: The plan.
        shared: Put large tables in memory where other processes can map them.

    Raises:
        DataError: Something is wrong with the files or in a function of the user.
    """
    return _resolved(_decided(prepared(_with_shared_tables(node) if shared else node)))


def _decided(node: Node) -> Node:
    """Find out whether functions behind what changes with the epoch keep the number of rows.

    They are called for all rows. Those that keep it need not be called to count the rows of an
    epoch. Behind a shuffle of rows, what others return is shuffled, as it was returned once; behind
    anything else they are said to change the number, and nobody tries again.
    """
    steps, below = _chain(node)
    below = below.with_children(tuple(map(_decided, below.children)))
    is_shuffle = isinstance(below, ShuffleRows)
    if not (is_shuffle or below.changes) or not any(_is_open(step) for step in steps):
        return _applied(below, steps)
    below = _resolved(below)
    keeping = _said(steps, keeps_rows=True)
    try:
        # In which order is no matter: that of a shuffle is not worked out for this.
        for _ in tables(_applied(below.children[0] if is_shuffle else below, keeping)):
            pass
    except RowsChangedError:
        if isinstance(below, ShuffleRows):
            return _shuffled_afterwards(steps, below)
        return _applied(below, _said(steps, may_keep_rows=False))
    return _applied(below, keeping)


def _is_open(step: Step) -> bool:
    """Tell whether a step may keep the number of rows, and nobody has found out."""
    return step.may_keep_rows and not step.keeps_rows


def _said(steps: Sequence[Step], **known: bool) -> list[Step]:
    """Return the steps with what is known now of those of which it was not known."""
    return [replace(one, **known) if _is_open(one) else one for one in steps]  # type: ignore[type-var]


def _shuffled_afterwards(steps: Sequence[Step], shuffle: ShuffleRows) -> Node:
    """Return the plan with the shuffle behind the last step that changes the number of rows."""
    last = max(i + 1 for i, step in enumerate(steps) if not step.keeps_rows)
    shuffled = replace(shuffle, child=_applied(shuffle.child, steps[:last]))
    return prepared(_applied(shuffled, steps[last:]))


def _with_shared_tables(node: Node) -> Node:
    """Put large tables in memory where all processes of this host can map them."""
    match node:
        case Read(source=TableSource(table=table) as source) if table.nbytes > _WORTH_SHARING_BYTES:
            shared = host_table(node)
            slices = ranges(table.num_rows, table.nbytes, source.number)
            blocks = [TableBlock(shared, start, stop, source.kind) for start, stop in slices]
            return Listed(tuple(blocks), node.describe())
        case _:
            return node.with_children(tuple(map(_with_shared_tables, node.children)))


def _resolved(node: Node) -> Node:
    if isinstance(node, Listed | ShuffleRows):
        return node
    if node.changes:
        return node.with_children(tuple(_resolved(child) for child in node.children))
    return Listed(counted(node.blocks(0)), summary(node), order_of(node))


def summary(node: Node) -> str:
    """Return the plan's lines in one."""
    return ", ".join(line.strip() for line in explain(node).splitlines())


def explain(node: Node, depth: int = 0) -> str:
    """Return a plan as text: what is read at the bottom, what is done to it above."""
    lines = [f"{'  ' * depth}{node.describe()}"]
    lines.extend(explain(child, depth + 1) for child in node.children)
    return "\n".join(lines)


def order_of(node: Node) -> tuple[str, ...]:
    """Return the shuffles and sorts of a plan: with the rows of its blocks they fix its order."""
    here: tuple[str, ...] = node.order if isinstance(node, Listed) else ()
    if isinstance(node, Shuffle | Whole):
        here = (node.describe(),)
    return here + tuple(text for child in node.children for text in order_of(child))


def steps_of(node: Node) -> Iterator[Step]:
    """Yield what is done to rows in a plan; of blocks that were listed, to the first one's."""
    for child in node.children:
        yield from steps_of(child)
    if isinstance(node, Apply):
        yield node.step
    if isinstance(node, Listed) and node.listed:
        block = node.listed[0]
        while isinstance(block, MappedBlock):
            yield from block.steps
            block = block.block


def first_table(node: Node, runtime: Runtime) -> pa.Table | None:
    """Return the first few rows, or None if there are none."""
    with runtime.in_this_thread():
        for block in node.blocks(0):
            for table in block.read(0, 1) if block.rows else block.read():
                return next(in_tables(table.slice(0, 1), 1))
    return None
