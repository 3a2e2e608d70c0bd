"""Columns of numbers, each shifted and scaled by what was learned of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.context import DataContext
from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.preprocessors.columns import float64, scaled_type
from minitrain.data.preprocessors.statistics import Extremes, Moments, Statistic, Values
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MaxAbsScaler", "MinMaxScaler", "RobustScaler", "StandardScaler"]

EPSILON = float(np.finfo(np.float64).eps)


class _Scaler(Preprocessor):
    """What they share: ``(x - shift) / scale``, in float64; missing values stay missing."""

    @abstractmethod
    def _shift_and_scale(self, column: str) -> tuple[float, float] | None:
        """Return both for a column; None: there were no values to learn them from."""

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        return {
            output: self._scaled(self._column(table, name), name) for name, output in self._pairs()
        }

    def _scaled(self, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
        values, kind = float64(column, self._what(name)), scaled_type(column.type)
        learned = self._shift_and_scale(name)
        if learned is None:
            return pa.nulls(len(column), kind)
        shift, scale = learned
        if shift:
            values = pc.subtract(values, shift)
        return pc.cast(pc.divide(values, scale), kind, safe=False)


def _unless_zero(scale: float) -> float:
    """Return what to divide by: 1 where there is nothing but rounding errors, as scikit-learn."""
    return 1.0 if scale < 10 * EPSILON else scale


class StandardScaler(_Scaler):
    """Shift each column to mean 0 and scale it to standard deviation 1.

    The same numbers as scikit-learn's of that name: the deviation is that of the values themselves
    (divided by their number), a constant column becomes 0, missing values are left out and stay
    missing. Columns of float32 stay float32, all others become float64; computed is in float64.

    Args:
        columns: Columns of numbers.
        output_columns: What to call the results; None: they replace the columns.

    Example:
        >>> import numpy as np
        >>> from minitrain.data import from_items
        >>> from minitrain.data.preprocessors import StandardScaler
        >>> scaler = StandardScaler(["x"]).fit(from_items([{"x": 1.0}, {"x": 3.0}]))
        >>> scaler.stats_
        {'mean(x)': 2.0, 'std(x)': 1.0}
        >>> scaler.transform_batch({"x": np.array([3.0, 4.0])})
        {'x': array([1., 2.])}
    """

    def __init__(self, columns: Sequence[str], output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)

    def _statistics(self) -> dict[str, Statistic]:
        return {name: Moments() for name in self.columns}

    def _conclude(self, statistics: Mapping[str, Moments]) -> dict[str, Any]:
        means = {f"mean({n})": m.mean if m.count else None for n, m in statistics.items()}
        return means | {f"std({name})": _deviation(m) for name, m in statistics.items()}

    def _shift_and_scale(self, column: str) -> tuple[float, float] | None:
        mean, deviation = self.stats_[f"mean({column})"], self.stats_[f"std({column})"]
        return None if mean is None else (mean, deviation or 1.0)


def _deviation(moments: Moments) -> float | None:
    """Return the standard deviation: 0 where it is not more than rounding can make of 0."""
    if not moments.count:
        return None
    rounding = moments.count * EPSILON
    bound = rounding * moments.variance + (rounding * moments.mean) ** 2
    return 0.0 if moments.variance <= bound else float(np.sqrt(moments.variance))


class MinMaxScaler(_Scaler):
    """Shift and scale each column to the range from 0 to 1.

    The same numbers as scikit-learn's of that name. A constant column becomes 0.

    Args:
        columns: Columns of numbers.
        output_columns: What to call the results; None: they replace the columns.
    """

    def __init__(self, columns: Sequence[str], output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)

    def _statistics(self) -> dict[str, Statistic]:
        return {name: Extremes() for name in self.columns}

    def _conclude(self, statistics: Mapping[str, Extremes]) -> dict[str, Any]:
        least = {f"min({name})": extremes.least for name, extremes in statistics.items()}
        return least | {f"max({name})": extremes.greatest for name, extremes in statistics.items()}

    def _shift_and_scale(self, column: str) -> tuple[float, float] | None:
        least, greatest = self.stats_[f"min({column})"], self.stats_[f"max({column})"]
        return None if least is None else (least, _unless_zero(greatest - least))


class MaxAbsScaler(_Scaler):
    """Scale each column to the range from -1 to 1; what is 0 stays 0.

    The same numbers as scikit-learn's of that name.

    Args:
        columns: Columns of numbers.
        output_columns: What to call the results; None: they replace the columns.
    """

    def __init__(self, columns: Sequence[str], output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)

    def _statistics(self) -> dict[str, Statistic]:
        return {name: Extremes() for name in self.columns}

    def _conclude(self, statistics: Mapping[str, Extremes]) -> dict[str, Any]:
        return {f"abs_max({name})": _abs_max(found) for name, found in statistics.items()}

    def _shift_and_scale(self, column: str) -> tuple[float, float] | None:
        greatest = self.stats_[f"abs_max({column})"]
        return None if greatest is None else (0.0, _unless_zero(greatest))


def _abs_max(found: Extremes) -> float | None:
    if found.least is None or found.greatest is None:
        return None
    return max(abs(found.least), abs(found.greatest))


class RobustScaler(_Scaler):
    """Shift each column by its median and scale it by the distance of two of its quantiles.

    The same numbers as scikit-learn's of that name. The quantiles are exact, which needs all
    values at once: 8 bytes per row and column. What does not fit
    :attr:`DataContext.memory_budget_bytes <minitrain.data.DataContext.memory_budget_bytes>` goes to
    files in the spill folder, which vanish afterwards.

    Args:
        columns: Columns of numbers.
        quantile_range: Which quantiles.
        output_columns: What to call the results; None: they replace the columns.
        quantile_precision: Has no effect, since nothing is approximated; ray.data has it.

    Raises:
        ConfigurationError: The quantiles are not two fractions in order.
    """

    def __init__(
        self,
        columns: Sequence[str],
        quantile_range: tuple[float, float] = (0.25, 0.75),
        output_columns: Sequence[str] | None = None,
        quantile_precision: int = 800,
    ) -> None:
        super().__init__(columns, output_columns)
        low, high = quantile_range
        if not 0 <= low < high <= 1:
            raise ConfigurationError(
                f"RobustScaler: quantile_range={quantile_range!r} must be two fractions between "
                "0 and 1, the lower one first"
            )
        self.quantile_range = (low, high)
        self.quantile_precision = quantile_precision

    def _statistics(self) -> dict[str, Statistic]:
        budget = DataContext.get_current().memory_budget_bytes // len(self.columns)
        return {name: Values(budget) for name in self.columns}

    def _conclude(self, statistics: Mapping[str, Values]) -> dict[str, Any]:
        low, high = self.quantile_range
        found = {
            name: values.quantiles([low, 0.5, high]) if values.count else [None] * 3
            for name, values in statistics.items()
        }
        keys = ("low_quantile", "median", "high_quantile")
        return {
            f"{key}({name})": quantiles[place]
            for place, key in enumerate(keys)
            for name, quantiles in found.items()
        }

    def _shift_and_scale(self, column: str) -> tuple[float, float] | None:
        low, high = self.stats_[f"low_quantile({column})"], self.stats_[f"high_quantile({column})"]
        return None if low is None else (self.stats_[f"median({column})"], _unless_zero(high - low))
