"""A column of labels as numbers and back, and columns as pandas' categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.preprocessors import batches
from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.preprocessors.columns import (
    array_of,
    codes,
    column_of,
    decoded,
    missing,
    without_nan,
)
from minitrain.data.preprocessors.encoders import ranked_categories
from minitrain.data.preprocessors.statistics import Counts, Statistic
from minitrain.exceptions import TransformError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from minitrain.data.dataset import Dataset

__all__ = ["Categorizer", "LabelEncoder"]


class LabelEncoder(Preprocessor):
    """Replace each label by its place in the sorted list of all labels.

    A label that was not there when it was fitted becomes a missing value: NaN in numpy. A missing
    label is an error.

    Args:
        label_column: The column.
        output_column: What to call the result; None: it replaces the column.

    Example:
        >>> from minitrain.data import from_items
        >>> from minitrain.data.preprocessors import LabelEncoder
        >>> ds = from_items([{"species": "setosa"}, {"species": "virginica"}])
        >>> encoder = LabelEncoder("species")
        >>> encoded = encoder.fit_transform(ds)
        >>> encoded.take_all()
        [{'species': 0}, {'species': 1}]
        >>> encoder.inverse_transform(encoded).take_all()
        [{'species': 'setosa'}, {'species': 'virginica'}]
    """

    def __init__(self, label_column: str, *, output_column: str | None = None) -> None:
        super().__init__([label_column], [output_column or label_column])
        self.label_column = label_column
        self.output_column = output_column

    def _statistics(self) -> dict[str, Statistic]:
        return {self.label_column: _Labels()}

    def _conclude(self, statistics: Mapping[str, _Labels]) -> dict[str, Any]:
        name = self.label_column
        labels, what = statistics[name], self._what(name)
        _refuse_missing(labels.missing, labels.count + labels.missing, what)
        return {f"unique_values({name})": ranked_categories(labels, what)}

    def _labels(self) -> dict[Any, int]:
        labels: dict[Any, int] = self.stats_[f"unique_values({self.label_column})"]
        return labels

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        column, what = self._column(table, self.label_column), self._what(self.label_column)
        _refuse_missing(missing(column), len(column), what)
        return {self.output_columns[0]: pc.cast(codes(column, self._labels(), what), pa.int64())}

    def inverse_transform(self, ds: Dataset) -> Dataset:
        """Return a dataset with labels in the place of their numbers.

        Raises:
            PreprocessorNotFittedException: :meth:`fit` was not called before.
        """
        self._check_is_fitted("inverse_transform")
        return ds.map_batches(
            self._inverse_table, batch_format="pyarrow", udf_modifying_row_count=False
        )

    def _inverse_table(self, table: pa.Table) -> pa.Table:
        column = column_of(table, self.output_columns[0], "LabelEncoder.inverse_transform")
        places = pc.cast(without_nan(column), pa.int64())
        labels = array_of(list(self._labels()))
        known = pc.and_(pc.greater_equal(places, 0), pc.less(places, len(labels)))
        found = pc.take(labels, pc.if_else(known, places, pa.scalar(None, pa.int64())))
        return batches.replaced(table, {self.label_column: found})


@dataclass
class _Labels(Counts):
    """Counts of labels, and how many are missing, unless an imputer fills them in."""

    missing: int = 0

    def update(self, column: pa.ChunkedArray, what: str) -> None:
        super().update(column, what)
        self.missing += missing(column)

    def fill(self, value: Any, times: int) -> None:
        super().fill(value, times)
        self.missing = 0


def _refuse_missing(number: int, rows: int, what: str) -> None:
    if number:
        raise TransformError(
            f"{what} lacks {number} of {rows} labels; filter these rows out, or fill the labels "
            "in with a SimpleImputer"
        )


class Categorizer(Preprocessor):
    """Make columns categorical: pandas.CategoricalDtype in pandas, a dictionary type in Arrow.

    For libraries that know such columns, like LightGBM. Values that are no category become missing
    values. Without ``dtypes``, fit it before the dataset is split, so that all parts have the same
    categories.

    Args:
        columns: The columns.
        dtypes: For some columns, their categories; those of the others are learned, and sorted.
        output_columns: What to call the results; None: they replace the columns.
    """

    def __init__(
        self,
        columns: Sequence[str],
        dtypes: Mapping[str, pd.CategoricalDtype] | None = None,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        self.dtypes = dict(dtypes or {})

    def _statistics(self) -> dict[str, Statistic]:
        return {name: Counts() for name in self.columns if name not in self.dtypes}

    def _conclude(self, statistics: Mapping[str, Counts]) -> dict[str, Any]:
        import pandas as pd

        learned = {
            name: pd.CategoricalDtype(list(ranked_categories(counts, self._what(name))))
            for name, counts in statistics.items()
        }
        return {name: self.dtypes.get(name) or learned[name] for name in self.columns}

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        return {
            output: self._categorical(decoded(self._column(table, name)), name)
            for name, output in self._pairs()
        }

    def _categorical(self, column: pa.ChunkedArray, name: str) -> pa.Array:
        dtype = self.stats_[name]
        categories = list(dtype.categories)
        places = {category: place for place, category in enumerate(categories)}
        return pa.DictionaryArray.from_arrays(
            codes(column, places, self._what(name)), array_of(categories), ordered=dtype.ordered
        )
