"""What all preprocessors have in common: fit, transform, and being written down."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from minitrain.data.preprocessors import batches
from minitrain.data.preprocessors.columns import column_of
from minitrain.data.preprocessors.encoding import decode, encode
from minitrain.data.preprocessors.statistics import Collector, ColumnCollector, Statistic
from minitrain.exceptions import ConfigurationError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from minitrain.data.dataset import Dataset

__all__ = [
    "FitStatus",
    "Preprocessor",
    "PreprocessorNotFittedException",
    "checked_names",
]

FORMAT = "minitrain.preprocessor"
VERSION = 1
"""Of what serialize() writes: a reader refuses a higher one."""


class PreprocessorNotFittedException(DataError, RuntimeError):  # noqa: N818 - ray's name
    """A preprocessor must be fitted before it can transform anything."""


class Preprocessor(ABC):
    """Something that is fitted to a dataset once and then transforms datasets and batches.

    A class of its own says in :meth:`_compute` what its columns become, and, if it has to learn
    something first, in :meth:`_statistics` what and in :meth:`_conclude` what follows from it. It
    keeps each argument of its constructor in an attribute of the same name; from these it is
    printed, compared and written down.

    Args:
        columns: The columns it reads.
        output_columns: What to call the results, in the same order; None: they replace the columns.

    Attributes:
        stats_: What :meth:`fit` has learned, by names such as ``mean(age)``.

    Raises:
        ConfigurationError: ``columns`` is no list of names, or ``output_columns`` has another
            length.
    """

    class FitStatus(StrEnum):
        """Whether a preprocessor has learned what it needs."""

        NOT_FITTABLE = "NOT_FITTABLE"
        """It needs nothing: it can be used as it is."""
        NOT_FITTED = "NOT_FITTED"
        PARTIALLY_FITTED = "PARTIALLY_FITTED"
        """Some of a chain's preprocessors are fitted."""
        FITTED = "FITTED"

    _is_fittable: bool = True
    _fills: bool = False  # it puts one value where values are missing, and does nothing else
    _takes_fills: bool = True  # it can learn from a column before that is done
    _classes: ClassVar[dict[str, type[Preprocessor]]] = {}  # by what is written

    def __init__(self, columns: Sequence[str], output_columns: Sequence[str] | None = None) -> None:
        name = type(self).__name__
        self.columns = checked_names(f"{name}: columns", columns)
        self.output_columns = list(self.columns)
        if output_columns is not None:
            self.output_columns = checked_names(f"{name}: output_columns", output_columns)
        if len(self.output_columns) != len(self.columns):
            raise ConfigurationError(
                f"{name}: there are {len(self.columns)} columns, but "
                f"{len(self.output_columns)} output_columns; there must be as many"
            )
        self.stats_: dict[str, Any] = {}
        self._fitted = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make a class known to deserialize()."""
        super().__init_subclass__(**kwargs)
        Preprocessor._classes[_written_name(cls)] = cls

    # What a class of its own defines.

    def _statistics(self) -> dict[str, Statistic]:
        """Return empty statistics of the columns it has to learn from."""
        raise NotImplementedError

    def _conclude(self, statistics: Mapping[str, Any]) -> dict[str, Any]:
        """Return from the statistics of all rows what becomes ``stats_``."""
        raise NotImplementedError

    @abstractmethod
    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        """Return the output columns for some rows, perhaps none."""

    def _fill_value_of(self, output_column: str) -> Any:
        """Return what is put where values are missing, if it does such a thing."""
        raise NotImplementedError

    def _dropped(self) -> Sequence[str]:
        """Return the columns that are not there any more afterwards."""
        return ()

    # What it can do.

    def fit(self, ds: Dataset) -> Self:
        """Learn from a dataset, in one pass over it.

        Raises:
            ColumnError: A column is not there.
            TransformError: A column cannot be learned from; it is named.
            DataError: The dataset has no rows.
        """
        from minitrain.data.preprocessors.fitting import fit_steps

        self._check_is_dataset(ds, "fit")
        if self.fit_status() in {self.FitStatus.FITTED, self.FitStatus.PARTIALLY_FITTED}:
            warnings.warn(
                f"{type(self).__name__} was fitted already; what it had learned is replaced",
                UserWarning,
                stacklevel=2,
            )
        fit_steps(self._steps(), ds)
        return self

    def fit_transform(self, ds: Dataset, **options: Any) -> Dataset:
        """Learn from a dataset and return it transformed.

        Args:
            ds: The dataset.
            **options: As for :meth:`transform`.
        """
        return self.fit(ds).transform(ds, **options)

    def transform(self, ds: Dataset, **options: Any) -> Dataset:
        """Return a dataset whose rows are transformed when they are read.

        Args:
            ds: The dataset.
            **options: For :meth:`Dataset.map_batches <minitrain.data.Dataset.map_batches>`, such
                as ``batch_size`` and ``concurrency``.

        Raises:
            PreprocessorNotFittedException: :meth:`fit` was not called before.
        """
        self._check_is_dataset(ds, "transform")
        self._check_is_fitted("transform")
        return ds.map_batches(
            _Transform(self), batch_format="pyarrow", udf_modifying_row_count=False, **options
        )

    def transform_batch(self, data: Any) -> Any:
        """Return a batch transformed: a dict of arrays, a pandas.DataFrame or a pyarrow.Table.

        The result is of the same kind. The batch itself is not changed; columns that are not
        concerned are handed over as they are.

        Raises:
            PreprocessorNotFittedException: :meth:`fit` was not called before.
            ColumnError: A column is not there.
        """
        self._check_is_fitted("transform_batch")
        return batches.transformed(
            data, self._transform_table, self.get_input_columns(), self.get_output_columns()
        )

    def fit_status(self) -> FitStatus:
        """Return whether it has learned what it needs."""
        if not self._is_fittable:
            return self.FitStatus.NOT_FITTABLE
        return self.FitStatus.FITTED if self._fitted else self.FitStatus.NOT_FITTED

    def has_stats(self) -> bool:
        """Return whether it has learned anything."""
        return bool(self.stats_)

    def get_input_columns(self) -> list[str]:
        """Return the columns it reads."""
        return list(self.columns)

    def get_output_columns(self) -> list[str]:
        """Return the columns it writes."""
        return list(self.output_columns)

    @classmethod
    def preferred_batch_format(cls) -> str:
        """Return the batch format that it takes without converting anything."""
        return "pyarrow"

    def serialize(self) -> str:
        """Return it as readable JSON, for example for the metadata of a trainer's checkpoints.

        A user's own function, and a scikit-learn estimator, are pickled inside of it.

        Example:
            >>> from minitrain.data.preprocessors import Normalizer, Preprocessor
            >>> text = Normalizer(["a", "b"], norm="max").serialize()
            >>> Preprocessor.deserialize(text)
            Normalizer(['a', 'b'], norm='max')
        """
        return json.dumps(self._to_json(), allow_nan=False)

    @staticmethod
    def deserialize(serialized: str) -> Preprocessor:
        """Return the preprocessor that :meth:`serialize` has written.

        Where it holds a user's own function or estimator, that is unpickled, which can run any
        code: do so only with what comes from somebody you trust.

        Raises:
            ConfigurationError: It is something else, or was written by a later version.
        """
        try:
            content = json.loads(serialized)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"not a serialized preprocessor: {error}") from error
        return Preprocessor._from_json(content)

    # How it is done.

    def _steps(self) -> list[Preprocessor]:
        """Return what is to be fitted one after the other: a chain has several."""
        return [self]

    def _collector(self) -> Collector:
        """Return what learns in one pass over a dataset."""
        return ColumnCollector(self._statistics(), type(self).__name__)

    def _learn(self, collector: Collector) -> None:
        """Keep what follows from all rows."""
        assert isinstance(collector, ColumnCollector)
        self.stats_ = self._conclude(collector.statistics)
        self._fitted = True

    def _as_it_is(self) -> Self:
        """Return one that stays as this one is, which may be fitted anew later.

        What the user gave is not copied: not all of it can be, and fitting does not change it.
        """
        made = copy.copy(self)
        made.stats_ = copy.deepcopy(self.stats_)
        return made

    def _check_is_dataset(self, ds: Any, method: str) -> None:
        if not hasattr(ds, "map_batches"):
            raise TypeError(
                f"{type(self).__name__}.{method}() takes a dataset, such as "
                f"minitrain.data.from_pandas(frame), not a {type(ds).__name__}"
            )

    def _check_is_fitted(self, method: str) -> None:
        if self.fit_status() in {self.FitStatus.NOT_FITTED, self.FitStatus.PARTIALLY_FITTED}:
            raise PreprocessorNotFittedException(
                f"{type(self).__name__} was not fitted; call fit() before {method}()"
            )

    def _transform_table(self, table: pa.Table) -> pa.Table:
        computed = self._compute(table)
        return batches.replaced(table, computed, drop=self._dropped())

    def _column(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        return column_of(table, name, type(self).__name__)

    def _what(self, name: str) -> str:
        """Return how a column is named in an error."""
        return f"{type(self).__name__}: column {name!r}"

    def _pairs(self) -> list[tuple[str, str]]:
        """Return each column with the name of its result."""
        return list(zip(self.columns, self.output_columns, strict=True))

    # How it is written down.

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of the constructor that are not the default."""
        arguments = {}
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name)
            empty = isinstance(value, dict) and not value  # given as None
            same = name == "output_columns" and value == self.columns
            if not (empty or same) and encode(value) != encode(parameter.default):
                arguments[name] = value
        return arguments

    def _to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "type": _written_name(type(self)),
            "arguments": encode(self._arguments()),
            "fitted": self._fitted,
            "stats": encode(self.stats_),
        }

    @staticmethod
    def _from_json(content: Any) -> Preprocessor:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConfigurationError(
                "not a serialized preprocessor: it does not say that it is one"
            )
        if content.get("version", 0) > VERSION:
            raise ConfigurationError(
                f"a later version of minitrain has written this {content['type']} "
                f"(format {content['version']}; this one reads up to {VERSION}): upgrade minitrain"
            )
        cls = _class_written_as(content["type"], Preprocessor._classes)
        if cls is None:
            raise ConfigurationError(
                f"there is no preprocessor {content['type']!r}; import the module that defines it"
            )
        preprocessor = cls._from_arguments(content["arguments"])
        preprocessor.stats_ = decode(content["stats"])
        preprocessor._fitted = content["fitted"]
        return preprocessor

    @classmethod
    def _from_arguments(cls, arguments: dict[str, Any]) -> Preprocessor:
        return cls(**decode(arguments))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(self._to_json() == other._to_json())

    __hash__ = None  # type: ignore[assignment]  # fit() changes it

    def __repr__(self) -> str:
        written: list[str] = []
        for name, value in self._arguments().items():
            shown = getattr(value, "__name__", None) or repr(value)
            written.append(f"{name}={shown}" if written else shown)
        return f"{type(self).__name__}({', '.join(written)})"


class _Transform:
    """What a preprocessor does, as it was when this was made: it may be fitted anew later."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        self._preprocessor = preprocessor._as_it_is()
        self.__name__ = type(preprocessor).__name__  # how a dataset's plan shows it

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._preprocessor._transform_table(table)


def _written_name(cls: type[Preprocessor]) -> str:
    """Return how a class is named where it is written down; another one may have the same name."""
    ours = cls.__module__.startswith("minitrain.")
    return cls.__name__ if ours else f"{cls.__module__}.{cls.__name__}"


def _class_written_as(
    written: str, classes: dict[str, type[Preprocessor]]
) -> type[Preprocessor] | None:
    """Return a class by its name.

    If there is none, a user's own in any module: a script is ``__main__`` only while it runs, and
    earlier versions have not written the module.
    """
    if written in classes:
        return classes[written]
    end = "." + written.rpartition(".")[2]
    return next((cls for name, cls in reversed(classes.items()) if name.endswith(end)), None)


def checked_names(what: str, names: Iterable[str]) -> list[str]:
    """Return names of columns as a list.

    Raises:
        ConfigurationError: They are something else, or none.
    """
    try:
        found = [] if isinstance(names, str) else list(names)
    except TypeError:
        found = []
    if not found or not all(isinstance(name, str) for name in found):
        raise ConfigurationError(f"{what} must be a list of names of columns, not {names!r}")
    return [str(name) for name in found]  # numpy has strings of its own


FitStatus = Preprocessor.FitStatus
