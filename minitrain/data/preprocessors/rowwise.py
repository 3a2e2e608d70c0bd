"""Numbers that are changed without having learned anything: by their row, or one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.preprocessors.columns import as_type_of, floats
from minitrain.exceptions import ConfigurationError, TransformError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

__all__ = ["Normalizer", "PowerTransformer"]

NOTHING = 10 * float(np.finfo(np.float64).eps)
"""What scikit-learn takes for a norm of 0."""

_NORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "l1": lambda columns: np.abs(columns).sum(axis=0),
    "l2": lambda columns: np.sqrt(np.square(columns).sum(axis=0)),
    "max": lambda columns: np.abs(columns).max(axis=0),
}


class Normalizer(Preprocessor):
    """Scale each row, that is its values in some columns taken together, to norm 1.

    The same numbers as scikit-learn's of that name. A row of zeros, or with a norm below
    2.2e-15, stays as it is; a row with a missing value has none in its results.

    Args:
        columns: Columns of numbers.
        norm: ``"l1"``: the sum of absolute values; ``"l2"``: the root of the sum of squares;
            ``"max"``: the greatest absolute value.
        output_columns: What to call the results; None: they replace the columns.

    Raises:
        ConfigurationError: There is no such norm.
    """

    _is_fittable = False

    def __init__(
        self,
        columns: Sequence[str],
        norm: str = "l2",
        *,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        if norm not in _NORMS:
            raise ConfigurationError(f"Normalizer: norm={norm!r} must be one of {list(_NORMS)}")
        self.norm = norm

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        inputs = [self._column(table, name) for name in self.columns]
        values = np.stack(
            [floats(c, self._what(n)) for n, c in zip(self.columns, inputs, strict=True)]
        )
        norms = _NORMS[self.norm](values)
        values /= np.where(norms < NOTHING, 1.0, norms)
        return {
            output: as_type_of(row, column)
            for output, row, column in zip(self.output_columns, values, inputs, strict=True)
        }


class PowerTransformer(Preprocessor):
    """Make a column more like normally distributed, by a power of it.

    The power is given, not learned: scikit-learn's of that name learns it (``lambdas_``), and with
    the same power gives the same numbers before it standardizes them.

    Args:
        columns: Columns of numbers.
        power: The power, usually between -2.5 and 2.5; 0 with ``"box-cox"`` means the logarithm.
        method: ``"yeo-johnson"``, or ``"box-cox"`` for columns of positive numbers.
        output_columns: What to call the results; None: they replace the columns.

    Raises:
        ConfigurationError: There is no such method.
    """

    _is_fittable = False

    def __init__(
        self,
        columns: Sequence[str],
        power: float,
        method: str = "yeo-johnson",
        *,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        if method not in {"yeo-johnson", "box-cox"}:
            raise ConfigurationError(
                f"PowerTransformer: method={method!r} must be 'yeo-johnson' or 'box-cox'"
            )
        self.power = power
        self.method = method

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        return {
            output: as_type_of(self._raised(table, name), self._column(table, name))
            for name, output in self._pairs()
        }

    def _raised(self, table: pa.Table, name: str) -> np.ndarray:
        values = floats(self._column(table, name), self._what(name))
        if self.method == "yeo-johnson":
            return _yeo_johnson(values, self.power)
        if (values <= 0).any():
            raise TransformError(
                f"{self._what(name)} holds {values[values <= 0][0]:g}; the method 'box-cox' is for "
                "positive numbers only, 'yeo-johnson' for any"
            )
        return _box_cox(np.log(values), self.power)


def _box_cox(logarithms: np.ndarray, power: float) -> np.ndarray:
    """Return ``(x**power - 1) / power``, without losing digits where the power is near 0."""
    result: np.ndarray = np.expm1(logarithms * power) / power if power else logarithms
    return result


def _yeo_johnson(values: np.ndarray, power: float) -> np.ndarray:
    negative = values < 0
    result = _box_cox(np.log1p(np.where(negative, 0.0, values)), power)
    result[negative] = -_box_cox(np.log1p(-values[negative]), 2 - power)
    return result
