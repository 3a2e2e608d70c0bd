"""Fitting steps that follow each other, in as few passes over a dataset as possible.

A step that reads what an earlier one writes can be fitted only when the earlier one is: that takes
another pass. There are two exceptions, and they are the usual ones: an earlier step that needs no
fitting is applied while the rows go by, and what an imputer fills in is added to the statistics
afterwards, since it is one value, as often as values are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minitrain.data.preprocessors.columns import column_of
from minitrain.exceptions import ColumnError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from minitrain.data.dataset import Dataset
    from minitrain.data.preprocessors.base import Preprocessor
    from minitrain.data.preprocessors.statistics import Collector

__all__ = ["Apply", "Collect", "Outline", "Skip", "fit_steps", "plan_pass"]


@dataclass(frozen=True, slots=True)
class Outline:
    """What must be known of a step to plan with it.

    Attributes:
        inputs: The columns it reads.
        outputs: The columns it writes.
        ready: It is fitted, or needs no fitting.
        fills: It replaces missing values of each input by one value, and does nothing else.
        takes_fills: It can learn from a column before missing values are filled in.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ready: bool = False
    fills: bool = False
    takes_fills: bool = False


@dataclass(frozen=True, slots=True)
class Apply:
    """Transform the rows: a later step learns from the result."""


@dataclass(frozen=True, slots=True)
class Collect:
    """Learn from the rows.

    Attributes:
        filled: Columns whose missing values are not filled in yet, each with the step that will.
    """

    filled: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skip:
    """Do nothing in this pass."""


Action = Apply | Collect | Skip


def plan_pass(steps: Sequence[Outline]) -> tuple[list[Action], list[str]]:
    """Decide what each step does in the next pass, and return which columns that pass reads.

    At least one step that is not ready learns in it, if there is any.
    """
    actions = _forward(steps)
    needed: set[str] = set()
    for place in reversed(range(len(steps))):
        step = steps[place]
        match actions[place]:
            case Apply() if not needed & set(step.outputs):
                actions[place] = Skip()
            case Apply() | Collect():
                needed = (needed - set(step.outputs)) | set(step.inputs)
            case Skip():
                pass
    return actions, sorted(needed)


def _forward(steps: Sequence[Outline]) -> list[Action]:
    """Decide who can go on, from the first step to the last."""
    actions: list[Action] = []
    unknown: set[str] = set()  # columns that a step which waits, or only learns, will write
    filled: dict[str, int] = {}  # columns of which only the missing values are not known
    for place, step in enumerate(steps):
        to_fill = {name: filled[name] for name in step.inputs if name in filled}
        waits = bool(unknown & set(step.inputs)) or bool(to_fill and not step.takes_fills)
        if waits or (step.ready and to_fill):
            actions.append(Skip())
        else:
            actions.append(Apply() if step.ready else Collect(to_fill))
        for name, output in zip(step.inputs, step.outputs, strict=False):
            if isinstance(actions[-1], Collect) and step.fills and name not in to_fill:
                filled[output] = place
        known = isinstance(actions[-1], Apply)
        for output in step.outputs:
            if filled.get(output) == place:
                unknown.discard(output)
                continue
            filled.pop(output, None)
            (unknown.discard if known else unknown.add)(output)
    return actions


def fit_steps(steps: Sequence[Preprocessor], ds: Dataset) -> None:
    """Fit each step to what the steps before it make of a dataset.

    Raises:
        DataError: The dataset has no rows.
    """
    fitted: set[int] = set()
    absent: set[str] = set()
    while True:
        outlines = [_outline(step, fitted=place in fitted) for place, step in enumerate(steps)]
        if all(outline.ready for outline in outlines):
            return
        actions, needed = plan_pass(outlines)
        there = [name for name in needed if name not in absent]
        try:
            fitted |= _run_pass(steps, actions, ds.select_columns(there) if there else ds)
        except ColumnError as error:
            name = error.args[0]
            if name in absent or not _is_made(name, steps, outlines):
                raise _of_a_step(error, steps) from None
            absent.add(name)


def _is_made(name: str, steps: Sequence[Preprocessor], outlines: Sequence[Outline]) -> bool:
    """Return whether an imputer can make a column that is not there."""
    return any(
        step._fills and outline.ready and name in outline.inputs
        for step, outline in zip(steps, outlines, strict=True)
    )


def _of_a_step(error: ColumnError, steps: Sequence[Preprocessor]) -> ColumnError:
    """Return an error that names the step that needs the column, not how it is read."""
    name, columns, where = error.args
    for step in steps:
        if name in step.get_input_columns():
            return ColumnError(name, columns, f"{type(step).__name__}.fit")
    return ColumnError(name, columns, where)


def _outline(step: Preprocessor, *, fitted: bool) -> Outline:
    return Outline(
        tuple(step.get_input_columns()),
        tuple(step.get_output_columns()),
        ready=fitted or not step._is_fittable,
        fills=step._fills,
        takes_fills=step._takes_fills,
    )


def _run_pass(steps: Sequence[Preprocessor], actions: Sequence[Action], ds: Dataset) -> set[int]:
    """Go once through the rows; return the steps that are fitted then."""
    collectors = {
        place: steps[place]._collector()
        for place, action in enumerate(actions)
        if isinstance(action, Collect)
    }
    try:
        rows = 0
        for table in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows += table.num_rows
            _see(table, steps, actions, collectors)
        if not rows:
            names = " and ".join(type(steps[place]).__name__ for place in collectors)
            raise DataError(f"{names} cannot be fitted: the dataset has no rows")
        for place, collector in collectors.items():
            _conclude(steps, place, actions[place], collector)
    finally:
        for collector in collectors.values():
            collector.close()
    return set(collectors)


def _see(
    table: pa.Table,
    steps: Sequence[Preprocessor],
    actions: Sequence[Action],
    collectors: Mapping[int, Collector],
) -> None:
    """Let each step learn from a table, or transform it for those after it."""
    unfilled: dict[str, pa.ChunkedArray] = {}  # as they are before an imputer's value is known
    for place, (step, action) in enumerate(zip(steps, actions, strict=True)):
        match action:
            case Apply():
                table = step._transform_table(table)
            case Collect(filled):
                where = f"{type(step).__name__}.fit"
                columns = {
                    name: unfilled[name] if name in filled else column_of(table, name, where)
                    for name in step.get_input_columns()
                }
                collectors[place].update(columns)
                if step._fills:
                    unfilled.update({output: columns[name] for name, output in step._pairs()})
            case Skip():
                pass


def _conclude(
    steps: Sequence[Preprocessor], place: int, action: Action, collector: Collector
) -> None:
    """Let a step learn from what was collected, in the order of the steps."""
    assert isinstance(action, Collect)
    for column, imputer in action.filled.items():
        collector.fill(column, steps[imputer]._fill_value_of(column))
    steps[place]._learn(collector)
