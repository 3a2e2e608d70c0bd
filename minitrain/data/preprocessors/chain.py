"""Several preprocessors, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from minitrain.data.preprocessors.base import FitStatus, Preprocessor
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

__all__ = ["Chain"]


class Chain(Preprocessor):
    """Several preprocessors, each of which is given what the one before it returns.

    It is fitted in one pass over the dataset where that is possible: where no step reads what an
    earlier step writes that has to be fitted itself. After a :class:`SimpleImputer` it is possible
    too: its value is added to what later steps have learned. Each further step in a row that
    depends on another one's result takes another pass: ``Chain(StandardScaler(["a"]),
    UniformKBinsDiscretizer(["a"], 4))`` takes two. A pass reads only the columns it needs.

    Args:
        *preprocessors: The steps.

    Example:
        >>> from minitrain.data.preprocessors import Chain, Concatenator, StandardScaler
        >>> Chain(StandardScaler(["a", "b"]), Concatenator(["a", "b"], dtype="float32"))
        Chain(StandardScaler(['a', 'b']), Concatenator(['a', 'b'], dtype=dtype('float32')))

    Raises:
        ConfigurationError: There is no step, or one that is not a preprocessor, or one that reads
            what an earlier one drops.
    """

    def __init__(self, *preprocessors: Preprocessor) -> None:
        for step in preprocessors:
            if not isinstance(step, Preprocessor):
                raise ConfigurationError(f"Chain: {step!r} is not a preprocessor")
        if not preprocessors:
            raise ConfigurationError("Chain: there must be at least one preprocessor")
        self.preprocessors = preprocessors
        steps = self._steps()
        _refuse_reading_what_is_dropped(steps)
        self.columns = _read_first(steps)
        self.output_columns = _left_at_the_end(steps)
        self.stats_ = {}
        self._fitted = False

    @property
    def _is_fittable(self) -> bool:  # type: ignore[override]
        return any(step._is_fittable for step in self.preprocessors)

    def fit_status(self) -> FitStatus:
        """Return whether all its steps are fitted, some, or none."""
        found = {step.fit_status() for step in self.preprocessors} - {FitStatus.NOT_FITTABLE}
        if not found:
            return FitStatus.NOT_FITTABLE
        return found.pop() if len(found) == 1 else FitStatus.PARTIALLY_FITTED

    def has_stats(self) -> bool:
        """Return whether any of its steps has learned anything."""
        return any(step.has_stats() for step in self.preprocessors)

    def _steps(self) -> list[Preprocessor]:
        return [inner for step in self.preprocessors for inner in step._steps()]

    def _as_it_is(self) -> Self:
        made = super()._as_it_is()
        made.preprocessors = tuple(step._as_it_is() for step in self.preprocessors)
        return made

    def _transform_table(self, table: pa.Table) -> pa.Table:
        for step in self.preprocessors:
            table = step._transform_table(table)
        return table

    def _compute(self, table: pa.Table) -> dict[str, Any]:
        raise NotImplementedError  # each step computes its own

    def _to_json(self) -> dict[str, Any]:
        steps = [step._to_json() for step in self.preprocessors]
        return {**super()._to_json(), "arguments": {"preprocessors": steps}}

    def _arguments(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _from_arguments(cls, arguments: dict[str, Any]) -> Preprocessor:
        return cls(*map(Preprocessor._from_json, arguments["preprocessors"]))

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.preprocessors))})"


def _refuse_reading_what_is_dropped(steps: Sequence[Preprocessor]) -> None:
    dropped: dict[str, str] = {}
    for step in steps:
        name = type(step).__name__
        lost = [column for column in step.get_input_columns() if column in dropped]
        if lost and not step._fills:  # an imputer makes what is not there
            raise ConfigurationError(
                f"Chain: {name} reads column {lost[0]!r}, which {dropped[lost[0]]} drops before"
            )
        dropped.update(dict.fromkeys(step._dropped(), name))
        for column in step.get_output_columns():
            dropped.pop(column, None)


def _read_first(steps: Sequence[Preprocessor]) -> list[str]:
    """Return the columns that are read before any step writes them."""
    written: set[str] = set()
    read: dict[str, None] = {}
    for step in steps:
        read.update(dict.fromkeys(name for name in step.get_input_columns() if name not in written))
        written.update(step.get_output_columns())
    return list(read)


def _left_at_the_end(steps: Sequence[Preprocessor]) -> list[str]:
    """Return the columns that are written and not dropped again."""
    written: dict[str, None] = {}
    for step in steps:
        for name in step._dropped():
            written.pop(name, None)
        written.update(dict.fromkeys(step.get_output_columns()))
    return list(written)
