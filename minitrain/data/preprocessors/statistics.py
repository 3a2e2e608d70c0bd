"""What is learned of columns: statistics of parts, which merge into those of the whole."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.context import DataContext
from minitrain.data.preprocessors.columns import decoded, is_list, lists, missing, numbers, present
from minitrain.exceptions import TransformError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Collector", "ColumnCollector", "Counts", "Extremes", "Moments", "Statistic", "Values"]


class Statistic(ABC):
    """Something learned of one column, from its values that are not missing.

    Attributes:
        count: How many values it was learned from.
    """

    count: int

    @abstractmethod
    def update(self, column: pa.ChunkedArray, what: str) -> None:
        """Take in more rows of the column; ``what`` names it in an error."""

    @abstractmethod
    def fill(self, value: Any, times: int) -> None:
        """Take in one value many times: what an imputer will put where values are missing."""

    def close(self) -> None:  # noqa: B027 - most hold nothing but memory
        """Let go of what it holds besides memory."""


@dataclass
class Moments(Statistic):
    """Count, mean and sum of squared deviations, merged as by Chan, Golub and LeVeque (1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Return those of some numbers, none of them NaN."""
        if not len(values):
            return cls()
        mean = float(values.mean())
        deviations = values - mean
        # The correction is for the rounding of the mean. It is no dot product because BLAS would
        # start threads for a few rows.
        correction = float(deviations.sum()) ** 2 / len(values)
        squares = float(np.square(deviations, out=deviations).sum()) - correction
        return cls(len(values), mean, max(squares, 0.0))

    def merge(self, other: Moments) -> None:
        """Become those of both."""
        count = self.count + other.count
        if not other.count:
            return
        delta = other.mean - self.mean
        self.squares += other.squares + delta**2 * self.count * other.count / count
        self.mean += delta * other.count / count
        self.count = count

    def update(self, column: pa.ChunkedArray, what: str) -> None:
        """Take in more rows of the column."""
        self.merge(self.of(numbers(column, what)))

    def fill(self, value: Any, times: int) -> None:
        """Take in one value many times."""
        self.merge(Moments(times, float(value), 0.0))

    @property
    def variance(self) -> float:
        """Of the values themselves: divided by their number, not by one less."""
        return self.squares / self.count


@dataclass
class Extremes(Statistic):
    """The least and the greatest value; None if there are none."""

    count: int = 0
    least: float | None = None
    greatest: float | None = None

    def merge(self, other: Extremes) -> None:
        """Become those of both."""
        self.count += other.count
        if other.least is not None and other.greatest is not None:
            self.least = min(other.least, other.least if self.least is None else self.least)
            greatest = other.greatest if self.greatest is None else self.greatest
            self.greatest = max(other.greatest, greatest)

    def update(self, column: pa.ChunkedArray, what: str) -> None:
        """Take in more rows of the column."""
        values = numbers(column, what)
        if len(values):
            self.merge(Extremes(len(values), float(values.min()), float(values.max())))

    def fill(self, value: Any, times: int) -> None:
        """Take in one value many times."""
        if times:
            self.merge(Extremes(times, float(value), float(value)))


@dataclass
class Counts(Statistic):
    """How often each value occurs.

    Attributes:
        explode: Count the elements of lists; otherwise a list is one value, a tuple here.
        counts: Their numbers. It takes memory for each different value.
    """

    explode: bool = True
    counts: Counter[Any] = field(default_factory=Counter)

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many values there were."""
        return self.counts.total()

    def update(self, column: pa.ChunkedArray, what: str) -> None:
        """Take in more rows of the column."""
        column = decoded(column)
        if is_list(column.type):
            rows = lists(column)
            if not self.explode:
                self.counts.update(tuple(row) for row in rows.to_pylist() if row is not None)
                return
            column = pa.chunked_array([pc.list_flatten(rows)])
        try:
            found = pc.value_counts(present(column))
        except pa.ArrowNotImplementedError as error:
            raise TransformError(
                f"{what} is of type {column.type}, whose values cannot be categories"
            ) from error
        values, counts = found.field("values").to_pylist(), found.field("counts").to_pylist()
        self.counts.update(dict(zip(values, counts, strict=True)))

    def fill(self, value: Any, times: int) -> None:
        """Take in one value many times."""
        for each in value if self.explode and isinstance(value, tuple) else [value]:
            if times:
                self.counts[each] += times

    def most_common(self, number: int | None = None) -> list[tuple[Any, int]]:
        """Return the most frequent values with their counts; of equally frequent ones the least."""
        ranked = sorted(self.counts.items(), key=lambda item: item[0])
        ranked.sort(key=lambda item: -item[1])
        return ranked[:number]


@dataclass
class Values(Statistic):
    """All the values, for exact quantiles: 8 bytes each.

    Attributes:
        memory_bytes: So much of them is kept in memory; more go to a file without a name in the
            spill folder, and quantiles are selected in it.
    """

    memory_bytes: int
    count: int = 0
    parts: list[np.ndarray] = field(default_factory=list)
    spilled: IO[bytes] | None = None

    def add(self, values: np.ndarray) -> None:
        """Take in some numbers, none of them NaN."""
        self.count += len(values)
        self.parts.append(np.array(values))  # a view would keep the whole table
        if self.spilled is None and self.count * 8 > self.memory_bytes:
            folder = DataContext.get_current().spill_folder
            self.spilled = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - see close()
        if self.spilled is not None:
            for part in self.parts:
                self.spilled.write(np.ascontiguousarray(part).data)
            self.parts.clear()

    def update(self, column: pa.ChunkedArray, what: str) -> None:
        """Take in more rows of the column."""
        self.add(numbers(column, what))

    def fill(self, value: Any, times: int) -> None:
        """Take in one value many times."""
        self.add(np.full(times, float(value)))

    def quantiles(self, fractions: Sequence[float]) -> list[float]:
        """Return values such that these fractions of all are below, between two of them if need be.

        As ``numpy.quantile`` does by default.
        """
        places = [fraction * (self.count - 1) for fraction in fractions]
        lower = [min(int(place), self.count - 1) for place in places]
        upper = [min(low + 1, self.count - 1) for low in lower]
        values = self._all()
        values.partition(sorted({*lower, *upper}))
        return [
            float(values[low] + (values[high] - values[low]) * (place - low))
            for place, low, high in zip(places, lower, upper, strict=True)
        ]

    def _all(self) -> np.ndarray:
        if self.spilled is None:
            return np.concatenate(self.parts)
        self.spilled.flush()
        return np.memmap(self.spilled, dtype=np.float64, mode="r+")

    def close(self) -> None:
        """Close the file; it has no name and is gone then."""
        if self.spilled is not None:
            self.spilled.close()


class Collector(ABC):
    """What one preprocessor learns in one pass over a dataset."""

    @abstractmethod
    def update(self, columns: Mapping[str, pa.ChunkedArray]) -> None:
        """Take in more rows of the preprocessor's input columns."""

    @abstractmethod
    def fill(self, column: str, value: Any) -> None:
        """Take in a value for each missing one of a column."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""


class ColumnCollector(Collector):
    """A statistic for each column, independent of each other.

    Args:
        statistics: Empty ones, by column.
        name: The preprocessor's, for errors.
    """

    def __init__(self, statistics: Mapping[str, Statistic], name: str) -> None:
        self.statistics = statistics
        self._name = name
        self._missing = dict.fromkeys(statistics, 0)

    def update(self, columns: Mapping[str, pa.ChunkedArray]) -> None:
        """Take in more rows."""
        for name, statistic in self.statistics.items():
            column = columns[name]
            statistic.update(column, f"{self._name}: column {name!r}")
            self._missing[name] += missing(column)

    def fill(self, column: str, value: Any) -> None:
        """Take in a value for each missing one of a column."""
        self.statistics[column].fill(value, self._missing[column])

    def close(self) -> None:
        """Close each statistic."""
        for statistic in self.statistics.values():
            statistic.close()
