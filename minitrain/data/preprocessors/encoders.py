"""Categories as numbers: their place among all that were seen, or a vector with a 1 there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.plans.functions import check_count
from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.preprocessors.columns import codes, is_list, lists, tensor
from minitrain.data.preprocessors.statistics import Counts, Statistic
from minitrain.exceptions import ConfigurationError, TransformError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MultiHotEncoder", "OneHotEncoder", "OrdinalEncoder", "ranked_categories"]


def ranked_categories(counts: Counts, what: str, at_most: int | None = None) -> dict[Any, int]:
    """Return the most frequent values, sorted, with their places.

    Raises:
        TransformError: There are none, or they have no order.
    """
    if not counts.counts:
        raise TransformError(f"{what} has no values, so there are no categories")
    try:
        return {value: place for place, value in enumerate(sorted(_chosen(counts, at_most)))}
    except TypeError as error:
        raise TransformError(f"{what} has values that cannot be sorted: {error}") from error


def _chosen(counts: Counts, at_most: int | None) -> list[Any]:
    if at_most is None:
        return list(counts.counts)
    return [value for value, _ in counts.most_common(at_most)]


class _Encoder(Preprocessor):
    """What they share: sorted categories of each column, in ``stats_["unique_values(column)"]``."""

    _explode = True

    def _statistics(self) -> dict[str, Statistic]:
        return {name: Counts(explode=self._explode) for name in self.columns}

    def _conclude(self, statistics: Mapping[str, Counts]) -> dict[str, Any]:
        return {
            f"unique_values({name})": ranked_categories(counts, self._what(name), self._most(name))
            for name, counts in statistics.items()
        }

    def _most(self, name: str) -> int | None:
        """Return how many categories of a column are kept; None: all."""
        limits: Mapping[str, int] = getattr(self, "max_categories", None) or {}
        return limits.get(name)

    def _categories(self, name: str) -> dict[Any, int]:
        categories: dict[Any, int] = self.stats_[f"unique_values({name})"]
        return categories

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        return {
            output: self._encoded(self._column(table, name), name) for name, output in self._pairs()
        }

    @abstractmethod
    def _encoded(self, column: pa.ChunkedArray, name: str) -> pa.Array: ...


def _checked_limits(
    name: str, columns: Sequence[str], limits: Mapping[str, int] | None
) -> dict[str, int]:
    if limits is None:
        return {}
    if not isinstance(limits, Mapping) or not set(limits).issubset(columns):
        raise ConfigurationError(
            f"{name}: max_categories={limits!r} must give numbers for some of the columns "
            f"{list(columns)}"
        )
    return {
        column: check_count(f"{name}: max_categories[{column!r}]", limit)
        for column, limit in limits.items()
    }


class OrdinalEncoder(_Encoder):
    """Replace each category by its place in the sorted list of all categories of its column.

    Missing values, and categories that were not there when it was fitted, become missing values:
    NaN in numpy, as with scikit-learn's of that name.

    Args:
        columns: Columns of strings, numbers, dates..., or of lists of them.
        encode_lists: Encode each element of a list; otherwise a whole list is one category.
        output_columns: What to call the results; None: they replace the columns.

    Example:
        >>> from minitrain.data import from_items
        >>> from minitrain.data.preprocessors import OrdinalEncoder
        >>> ds = from_items([{"size": "small"}, {"size": "large"}])
        >>> OrdinalEncoder(["size"]).fit(ds).stats_
        {'unique_values(size)': {'large': 0, 'small': 1}}
    """

    def __init__(
        self,
        columns: Sequence[str],
        *,
        encode_lists: bool = True,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        self.encode_lists = encode_lists

    @property
    def _explode(self) -> bool:  # type: ignore[override]
        return self.encode_lists

    def _encoded(self, column: pa.ChunkedArray, name: str) -> pa.Array:
        categories, what = self._categories(name), self._what(name)
        if not (self.encode_lists and is_list(column.type)):
            return pc.cast(codes(column, categories, what), pa.int64())
        rows = lists(column)
        flat = codes(pa.chunked_array([pc.list_flatten(rows)]), categories, what)
        lengths = pc.fill_null(pc.list_value_length(rows), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        encoded = pa.ListArray.from_arrays(pa.array(offsets), pc.cast(flat, pa.int64()))
        return pc.if_else(pc.is_valid(rows), encoded, pa.scalar(None, encoded.type))


class OneHotEncoder(_Encoder):
    """Replace each category by a vector with a 1 at its place in the sorted list of categories.

    There is one column of vectors for each column. Missing values, and categories that were not
    there when it was fitted or are not among the most frequent ones, become vectors of zeros.

    Args:
        columns: Columns of strings, numbers, dates..., or of lists, which are one category each.
        max_categories: For some columns, how many categories to keep: the most frequent ones, and
            of equally frequent ones the first in order.
        output_columns: What to call the results; None: they replace the columns.
    """

    _explode = False

    def __init__(
        self,
        columns: Sequence[str],
        *,
        max_categories: Mapping[str, int] | None = None,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        self.max_categories = _checked_limits("OneHotEncoder", self.columns, max_categories)

    def _encoded(self, column: pa.ChunkedArray, name: str) -> pa.Array:
        categories = self._categories(name)
        places = codes(column, categories, self._what(name))
        return _vectors(np.arange(len(column)), places, len(column), len(categories))


class MultiHotEncoder(_Encoder):
    """Replace each list of categories by a vector with a 1 for each category that is in it.

    The same as scikit-learn's MultiLabelBinarizer. A value that is no list counts as a list of one.
    A missing list, and categories that were not there when it was fitted, leave zeros.

    Args:
        columns: Columns of lists.
        max_categories: For some columns, how many categories to keep: the most frequent ones, and
            of equally frequent ones the first in order.
        output_columns: What to call the results; None: they replace the columns.
    """

    def __init__(
        self,
        columns: Sequence[str],
        *,
        max_categories: Mapping[str, int] | None = None,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        self.max_categories = _checked_limits("MultiHotEncoder", self.columns, max_categories)

    def _encoded(self, column: pa.ChunkedArray, name: str) -> pa.Array:
        categories, rows = self._categories(name), np.arange(len(column))
        if is_list(column.type):
            array = lists(column)
            rows = pc.list_parent_indices(array).to_numpy()
            column = pa.chunked_array([pc.list_flatten(array)])
            length = len(array)
        else:
            length = len(column)
        return _vectors(rows, codes(column, categories, self._what(name)), length, len(categories))


def _vectors(rows: np.ndarray, places: pa.Array, length: int, width: int) -> pa.Array:
    """Return vectors of zeros, but for ones at some places of some rows; a null place is none."""
    vectors = np.zeros((length, width), dtype=np.uint8)
    known = pc.is_valid(places).to_numpy(zero_copy_only=False)
    vectors[rows[known], pc.drop_null(places).to_numpy()] = 1
    return tensor(vectors)
