"""Any transformer of scikit-learn."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from minitrain.data.preprocessors.base import Preprocessor, checked_names
from minitrain.data.preprocessors.columns import tensor
from minitrain.data.preprocessors.statistics import Collector
from minitrain.exceptions import ConfigurationError, TransformError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = ["SklearnPreprocessor"]

ROWS_PER_PARTIAL_FIT = 65_536
"""The same however the rows come, so that the result is the same."""


class SklearnPreprocessor(Preprocessor):
    """Use a transformer of scikit-learn, or anything with its interface, on some columns.

    It is given the columns as a pandas.DataFrame, all at once when it is fitted, which takes memory
    for all of these columns; one that has ``partial_fit`` is given 65,536 rows at a time. A copy is
    fitted; ``stats_["estimator"]`` is that copy.

    If it returns as many columns as it is given, they replace them. Otherwise ``output_columns``
    names them, or gives one name for a single column of vectors; the columns it was given stay.

    Args:
        estimator: The transformer; it needs no labels.
        columns: The columns it is given, in this order.
        output_columns: What to call what it returns.

    Raises:
        ConfigurationError: ``estimator`` has no ``fit`` or no ``transform``, a column is named
            twice, or ``output_columns`` is no list of names.

    Example:
        >>> from sklearn.decomposition import PCA
        >>> from minitrain.data.preprocessors import SklearnPreprocessor
        >>> SklearnPreprocessor(PCA(2), ["a", "b", "c"], output_columns=["v"])
        SklearnPreprocessor(PCA(n_components=2), columns=['a', 'b', 'c'], output_columns=['v'])
    """

    _takes_fills = False

    def __init__(
        self, estimator: Any, columns: Sequence[str], output_columns: Sequence[str] | None = None
    ) -> None:
        super().__init__(columns)
        twice = sorted(name for name, times in Counter(self.columns).items() if times > 1)
        if twice:
            raise ConfigurationError(f"SklearnPreprocessor: columns names {twice} twice")
        for method in ("fit", "transform"):
            if not callable(getattr(estimator, method, None)):
                raise ConfigurationError(
                    f"SklearnPreprocessor: {estimator!r} has no {method}(); it must be a "
                    "transformer of scikit-learn"
                )
        self.estimator = estimator
        if output_columns is not None:  # there may be more of them, or fewer
            what = "SklearnPreprocessor: output_columns"
            self.output_columns = checked_names(what, output_columns)

    def _collector(self) -> Collector:
        from sklearn.base import clone

        return _Rows(clone(self.estimator))

    def _learn(self, collector: Collector) -> None:
        assert isinstance(collector, _Rows)
        estimator = collector.fitted()
        assert collector.example is not None
        self._transformed(estimator, collector.example)  # complains now, not while training
        self.stats_ = {"estimator": estimator, "example": collector.example.to_dict("list")}
        self._fitted = True

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        import pandas as pd

        columns = {name: self._column(table, name) for name in self.columns}
        estimator = self.stats_["estimator"]
        if not table.num_rows:  # it refuses to transform nothing, but there are types to be known
            example = self._transformed(estimator, pd.DataFrame(self.stats_["example"]))
            return {name: column.slice(0, 0) for name, column in example.items()}
        return self._transformed(estimator, pa.table(columns).to_pandas())

    def _transformed(self, estimator: Any, rows: pd.DataFrame) -> dict[str, pa.Array]:
        """Return what the estimator makes of some rows as columns."""
        result = _called(estimator, "transform", rows)
        if hasattr(result, "toarray"):
            result = result.toarray()  # sparse
        matrix = np.asarray(result)
        matrix = matrix.reshape(len(matrix), -1)
        width, names = matrix.shape[1], self.output_columns
        if width == len(names):
            frame = hasattr(result, "iloc")  # each column has a type of its own
            parts = [result.iloc[:, i] if frame else matrix[:, i] for i in range(width)]
            return {
                name: pa.array(np.ascontiguousarray(part), from_pandas=True)
                for name, part in zip(names, parts, strict=True)
            }
        if len(names) == 1:
            return {names[0]: tensor(matrix)}
        raise TransformError(
            f"SklearnPreprocessor: {type(self.estimator).__name__} returns {width} columns; "
            f"there are {len(names)} to write: {names}; name {width} output_columns, or one for a "
            "column of vectors"
        )


def _called(estimator: Any, method: str, frame: pd.DataFrame) -> Any:
    """Return what an estimator does with some rows, or say which columns it may not take."""
    try:
        return getattr(estimator, method)(frame)
    except Exception as error:
        others = ", ".join(
            f"{name!r} ({type(frame[name].iloc[0]).__name__})"
            for name in frame.select_dtypes(exclude=["number", "bool"])
        )
        raise TransformError(
            f"SklearnPreprocessor: {type(estimator).__name__}.{method}() raised "
            f"{type(error).__name__}: {error}"
            + (f"; columns that are not of numbers: {others}" if others else "")
        ) from error


class _Rows(Collector):
    """Rows for an estimator: all of them, or enough for a call of partial_fit."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self._partly = hasattr(estimator, "partial_fit")
        self._tables: list[pa.Table] = []
        self._rows = 0
        self.example: Any = None

    def update(self, columns: Mapping[str, pa.ChunkedArray]) -> None:
        table = pa.table(dict(columns))
        if self.example is None and table.num_rows:
            self.example = table.slice(0, 1).to_pandas()
        self._tables.append(table)
        self._rows += table.num_rows
        # Twice as many: what is left for the last call is then never only a few.
        while self._partly and self._rows >= 2 * ROWS_PER_PARTIAL_FIT:
            rows = pa.concat_tables(self._tables)
            first = rows.slice(0, ROWS_PER_PARTIAL_FIT).to_pandas()
            _called(self._estimator, "partial_fit", first)
            self._tables = [rows.slice(ROWS_PER_PARTIAL_FIT)]
            self._rows -= ROWS_PER_PARTIAL_FIT

    def fitted(self) -> Any:
        """Return the estimator, fitted to all rows."""
        rows = pa.concat_tables(self._tables).to_pandas()
        _called(self._estimator, "partial_fit" if self._partly else "fit", rows)
        return self._estimator

    def fill(self, column: str, value: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._tables.clear()
