"""Numbers as the bins they fall into, by pandas.cut."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from minitrain.data.plans.functions import check_count
from minitrain.data.plans.steps import check_columns
from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.preprocessors.columns import floats
from minitrain.data.preprocessors.statistics import Extremes, Statistic
from minitrain.exceptions import ConfigurationError, TransformError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["CustomKBinsDiscretizer", "UniformKBinsDiscretizer"]


class _Discretizer(Preprocessor):
    """What they share: numbers of bins, missing where a value falls into none."""

    def __init__(
        self,
        columns: Sequence[str],
        output_columns: Sequence[str] | None,
        bins: Any,
        dtypes: Mapping[str, Any] | None,
        duplicates: str,
    ) -> None:
        super().__init__(columns, output_columns)
        name = type(self).__name__
        if isinstance(bins, Mapping) and set(self.columns) - set(bins):
            lacking = sorted(set(self.columns) - set(bins))
            raise ConfigurationError(f"{name}: bins={bins!r} lacks the columns {lacking}")
        if duplicates not in {"raise", "drop"}:
            raise ConfigurationError(f"{name}: duplicates={duplicates!r} must be 'raise' or 'drop'")
        check_columns(dtypes or (), self.columns, f"{name}(dtypes)")
        self.bins = bins
        self.dtypes = dict(dtypes or {})
        self.duplicates = duplicates
        self.right = True
        self.include_lowest = False

    def _bins_of(self, name: str) -> Any:
        return self.bins[name] if isinstance(self.bins, Mapping) else self.bins

    @abstractmethod
    def _edges(self, name: str) -> Any:
        """Return where the bins of a column begin and end."""

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        return {output: self._cut(table, name) for name, output in self._pairs()}

    def _cut(self, table: pa.Table, name: str) -> pa.Array:
        import pandas as pd

        values = floats(self._column(table, name), self._what(name))
        edges, dtype = self._edges(name), self.dtypes.get(name)
        labels = list(dtype.categories) if isinstance(dtype, pd.CategoricalDtype) else None
        cut: Any = pd.cut  # its annotations know less than it
        found = cut(
            values,
            edges if isinstance(edges, pd.IntervalIndex) else list(edges),
            right=self.right,
            labels=labels or False,
            include_lowest=self.include_lowest,
            duplicates=self.duplicates,
        )
        # Intervals as edges, like labels, give a Categorical; other edges numbers, NaN for none.
        places = np.asarray(found.codes if isinstance(found, pd.Categorical) else found)
        none = np.isnan(places) | (places < 0)
        numbers = pa.array(np.where(none, 0, places).astype(np.int64), mask=none)
        if labels is None:
            return numbers if dtype is None else numbers.cast(pa.from_numpy_dtype(dtype))
        assert dtype is not None
        return pa.DictionaryArray.from_arrays(
            numbers.cast(pa.int32()), pa.array(labels), ordered=bool(dtype.ordered)
        )


class CustomKBinsDiscretizer(_Discretizer):
    """Replace each number by the number of the bin it falls into, of bins with given edges.

    The same as :func:`pandas.cut`. A number outside all bins becomes a missing value.

    Args:
        columns: Columns of numbers.
        bins: The edges, in order, a pandas.IntervalIndex, or a dict with either for each column.
        right: A bin includes its right edge, not its left one; False: the other way round.
        include_lowest: The first bin includes its left edge too.
        duplicates: ``"raise"``: edges that are equal are an error; ``"drop"``: they are one edge.
        dtypes: For some columns, an integer type, or a pandas.CategoricalDtype that names the bins.
        output_columns: What to call the results; None: they replace the columns.

    Raises:
        ConfigurationError: Edges are not in order, or lack for a column.
    """

    _is_fittable = False

    def __init__(
        self,
        columns: Sequence[str],
        bins: Sequence[float] | pd.IntervalIndex | Mapping[str, Any],
        *,
        right: bool = True,
        include_lowest: bool = False,
        duplicates: str = "raise",
        dtypes: Mapping[str, Any] | None = None,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns, bins, dtypes, duplicates)
        self.right = right
        self.include_lowest = include_lowest
        for name in self.columns:
            self._check(self._bins_of(name), name)

    def _check(self, edges: Any, name: str) -> None:
        if type(edges).__name__ == "IntervalIndex":
            return
        try:
            steps = np.diff(np.asarray(list(edges), dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{self._what(name)}: bins={edges!r} must be edges: numbers that increase"
            ) from error
        if (steps < 0).any() or (self.duplicates == "raise" and (steps == 0).any()):
            raise ConfigurationError(
                f"{self._what(name)}: the edges {list(edges)} must increase; "
                "duplicates='drop' makes equal ones one"
            )

    def _edges(self, name: str) -> Any:
        return self._bins_of(name)


class UniformKBinsDiscretizer(_Discretizer):
    """Replace each number by the number of the bin it falls into, of bins of equal width.

    The bins are those of :func:`pandas.cut`: they divide the range of the numbers it was fitted to,
    with 0.1 % more at one end. A number outside of it becomes a missing value.

    Args:
        columns: Columns of numbers.
        bins: How many bins, or a dict with that for each column.
        right: A bin includes its right edge, not its left one; False: the other way round.
        include_lowest: The first bin includes its left edge too.
        duplicates: ``"raise"``: edges that are equal are an error; ``"drop"``: they are one edge.
        dtypes: For some columns, an integer type, or a pandas.CategoricalDtype that names the bins.
        output_columns: What to call the results; None: they replace the columns.

    Raises:
        ConfigurationError: ``bins`` is no positive number, or lacks a column.
    """

    def __init__(
        self,
        columns: Sequence[str],
        bins: int | Mapping[str, int],
        *,
        right: bool = True,
        include_lowest: bool = False,
        duplicates: str = "raise",
        dtypes: Mapping[str, Any] | None = None,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns, bins, dtypes, duplicates)
        self.right = right
        self.include_lowest = include_lowest
        for name in self.columns:
            check_count(f"{self._what(name)}: bins", self._bins_of(name))

    def _statistics(self) -> dict[str, Statistic]:
        return {name: Extremes() for name in self.columns}

    def _conclude(self, statistics: Mapping[str, Extremes]) -> dict[str, Any]:
        edges = {}
        for name, found in statistics.items():
            if found.least is None or found.greatest is None:
                raise TransformError(f"{self._what(name)} has no values to divide into bins")
            edges[name] = _uniform(found.least, found.greatest, self._bins_of(name), self.right)
        return edges

    def _edges(self, name: str) -> Any:
        return self.stats_[name]


def _uniform(least: float, greatest: float, number: int, right: bool) -> list[float]:
    """Return the edges that pandas.cut takes for a number of bins."""
    if least == greatest:
        least -= 0.001 * abs(least) or 0.001
        greatest += 0.001 * abs(greatest) or 0.001
        return [float(edge) for edge in np.linspace(least, greatest, number + 1)]
    edges = np.linspace(least, greatest, number + 1)
    margin = (greatest - least) * 0.001
    if right:
        edges[0] -= margin
    else:
        edges[-1] += margin
    return [float(edge) for edge in edges]
