"""Missing values, filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.preprocessors.columns import decoded, float64, scaled_type, without_nan
from minitrain.data.preprocessors.statistics import Counts, Moments, Statistic
from minitrain.exceptions import ConfigurationError, TransformError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["SimpleImputer"]

STRATEGIES = ("mean", "most_frequent", "constant")
_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


class SimpleImputer(Preprocessor):
    """Put one value where values are missing: null, None or NaN.

    The same values as scikit-learn's of that name. A column that is not there at all when something
    is transformed is made, full of that value.

    Args:
        columns: The columns.
        strategy: ``"mean"``: the mean of the others, for numbers, which become float64 unless they
            are float32, also where they are categories; ``"most_frequent"``: the most frequent of
            the others, and of equally frequent ones the least; ``"constant"``: ``fill_value``.
        fill_value: The value for ``"constant"``.
        output_columns: What to call the results; None: they replace the columns.

    Raises:
        ConfigurationError: There is no such strategy, or ``"constant"`` lacks its value.
    """

    def __init__(
        self,
        columns: Sequence[str],
        strategy: str = "mean",
        fill_value: Any = None,
        *,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        if strategy not in STRATEGIES:
            raise ConfigurationError(f"SimpleImputer: strategy={strategy!r} is not in {STRATEGIES}")
        if (strategy == "constant") != (fill_value is not None):
            raise ConfigurationError(
                f"SimpleImputer: strategy={strategy!r} and fill_value={fill_value!r} do not go "
                "together; 'constant' needs a fill_value, and nothing else has one"
            )
        self.strategy = strategy
        self.fill_value = fill_value
        self._fills = True

    @property
    def _is_fittable(self) -> bool:  # type: ignore[override]
        return self.strategy != "constant"

    def _statistics(self) -> dict[str, Statistic]:
        mean = self.strategy == "mean"
        return {name: Moments() if mean else Counts(explode=False) for name in self.columns}

    def _conclude(self, statistics: Mapping[str, Moments | Counts]) -> dict[str, Any]:
        for name, statistic in statistics.items():
            if not statistic.count:
                raise TransformError(
                    f"{self._what(name)} has no values at all, so there is nothing to fill in; "
                    "use strategy='constant'"
                )
        return {
            f"{self.strategy}({name})": (
                found.mean if isinstance(found, Moments) else found.most_common(1)[0][0]
            )
            for name, found in statistics.items()
        }

    def _value(self, name: str) -> Any:
        constant = self.strategy == "constant"
        return self.fill_value if constant else self.stats_[f"{self.strategy}({name})"]

    def _fill_value_of(self, output_column: str) -> Any:
        return self._value(self.columns[self.output_columns.index(output_column)])

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        return {output: self._filled(table, name) for name, output in self._pairs()}

    def _filled(self, table: pa.Table, name: str) -> pa.Array | pa.ChunkedArray:
        value = self._value(name)
        if name not in table.column_names:
            return pa.repeat(value, table.num_rows)
        column = decoded(table.column(name))
        if pa.types.is_null(column.type):
            return pa.repeat(value, len(column))
        if self.strategy == "mean":
            column = pc.cast(float64(column, self._what(name)), scaled_type(column.type))
            return self._filled_with(without_nan(column), value, name)
        if _is_fraction(value) and pa.types.is_integer(column.type):
            column = float64(column, self._what(name))
        filled = self._filled_with(without_nan(column), value, name)
        coded = pa.types.is_dictionary(table.schema.field(name).type)
        return filled.dictionary_encode() if coded else filled

    def _filled_with(self, column: pa.ChunkedArray, value: Any, name: str) -> pa.ChunkedArray:
        try:
            return pc.fill_null(column, _scalar(value, column.type))
        except _MISFITS as error:
            raise TransformError(
                f"{self._what(name)} is of type {column.type}, which {value!r} is not"
            ) from error


def _scalar(value: Any, kind: pa.DataType) -> pa.Scalar:
    """Return a value as one of a type: as it is where that is possible, else converted."""
    try:
        return pa.scalar(value, kind)
    except _MISFITS:
        return pc.cast(pa.scalar(value), kind, safe=pa.types.is_integer(kind))


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float | np.floating) and not value.is_integer()
