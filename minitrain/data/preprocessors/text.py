"""Texts as tokens, and tokens as counts."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.plans.functions import check_count
from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.preprocessors.columns import combined, decoded, floats, tensor
from minitrain.data.preprocessors.statistics import Counts, Statistic
from minitrain.exceptions import TransformError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CountVectorizer", "FeatureHasher", "HashingVectorizer", "Tokenizer"]

TokenFunction = Callable[[str], Iterable[Any]]
TEXTS = pa.list_(pa.string())


def _tokens(
    column: pa.ChunkedArray,
    function: TokenFunction | None,
    what: str,
    kind: pa.DataType | None = TEXTS,
) -> pa.Array:
    """Return a list of tokens for each text; null for a missing one.

    Args:
        column: The texts.
        function: What returns the tokens of a text; None: it is split at each space.
        what: Names the column in an error.
        kind: The type of the result; None: what the tokens are.
    """
    texts = decoded(column)
    types = pa.types
    if types.is_null(texts.type):
        return pa.nulls(len(texts), TEXTS)
    if not (types.is_string(texts.type) or types.is_large_string(texts.type)):
        raise TransformError(f"{what} is of type {texts.type}; it must be text")
    if function is None:
        return combined(pc.split_pattern(pc.cast(texts, pa.string()), " "))
    found = [
        None if text is None else _tokens_of(text, function, what) for text in texts.to_pylist()
    ]
    # Where there are no tokens, nothing tells their type: mostly they are texts.
    return _column_of_lists(found, kind if any(found) else TEXTS, what)


def _tokens_of(text: str, function: TokenFunction, what: str) -> list[Any]:
    try:
        returned = function(text)
        if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
            return list(returned)
    except Exception as error:
        raise TransformError(
            f"{what}: tokenization_fn raised {error!r} for {text[:80]!r}"
        ) from error
    raise TransformError(
        f"{what}: tokenization_fn returned a {type(returned).__name__} for {text[:80]!r}; it must "
        "return a list of tokens"
    )


def _column_of_lists(
    tokens: list[list[Any] | None], kind: pa.DataType | None, what: str
) -> pa.Array:
    try:
        return pa.array(tokens, type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        column = "one column" if kind is None else f"a column of type {kind}"
        raise TransformError(
            f"{what}: tokenization_fn returned tokens that do not fit in {column}: {error}"
        ) from error


def _hash(token: str, number: int) -> int:
    """Return a place for a token: the same in each process, and the same as ray.data's."""
    return int(hashlib.sha256(token.encode()).hexdigest(), 16) % number


class Tokenizer(Preprocessor):
    """Replace each text by the list of its tokens.

    Args:
        columns: Columns of text.
        tokenization_fn: What returns the tokens of a text, or their numbers; None: it is split at
            each space.
        output_columns: What to call the results; None: they replace the columns.
    """

    _is_fittable = False

    def __init__(
        self,
        columns: Sequence[str],
        tokenization_fn: TokenFunction | None = None,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        self.tokenization_fn = tokenization_fn

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        return {
            output: _tokens(self._column(table, name), self.tokenization_fn, self._what(name), None)
            for name, output in self._pairs()
        }


class _Vectorizer(Preprocessor):
    """What they share: each text becomes a vector that says how often which token occurs in it."""

    tokenization_fn: TokenFunction | None

    @abstractmethod
    def _width(self, name: str) -> int:
        """Return how long the vectors of a column are."""

    @abstractmethod
    def _places(self, tokens: pa.Array, name: str) -> pa.Array:
        """Return where in the vector each token is counted; null: nowhere."""

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        return {output: self._counted(table, name) for name, output in self._pairs()}

    def _counted(self, table: pa.Table, name: str) -> pa.Array:
        tokens = _tokens(self._column(table, name), self.tokenization_fn, self._what(name))
        # Each different token is looked up once.
        encoded = pc.list_flatten(tokens).dictionary_encode()
        places = pc.take(self._places(encoded.dictionary, name), encoded.indices)
        known = pc.is_valid(places).to_numpy(zero_copy_only=False)
        rows = pc.list_parent_indices(tokens).to_numpy()[known]
        width = self._width(name)
        cells = rows * width + pc.drop_null(places).to_numpy()
        counts = np.bincount(cells, minlength=len(tokens) * width)
        return tensor(counts.astype(np.int64, copy=False).reshape(len(tokens), width))


class HashingVectorizer(_Vectorizer):
    """Replace each text by a vector that counts its tokens, each at a place that its hash gives.

    Different tokens may share a place; nothing has to be learned. The hash is the same in each
    process and the same as ray.data's. A missing text becomes a vector of zeros. The vectors are
    not sparse: they take ``8 * num_features`` bytes each.

    Args:
        columns: Columns of text.
        num_features: How long the vectors are.
        tokenization_fn: What returns the tokens of a text; None: it is split at each space.
        output_columns: What to call the results; None: they replace the columns.

    Raises:
        ConfigurationError: ``num_features`` is less than 1.
    """

    _is_fittable = False

    def __init__(
        self,
        columns: Sequence[str],
        num_features: int,
        tokenization_fn: TokenFunction | None = None,
        *,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        self.num_features = check_count("HashingVectorizer: num_features", num_features)
        self.tokenization_fn = tokenization_fn

    def _width(self, name: str) -> int:  # noqa: ARG002
        return self.num_features

    def _places(self, tokens: pa.Array, name: str) -> pa.Array:  # noqa: ARG002
        found = [_hash(token, self.num_features) for token in tokens.to_pylist()]
        return pa.array(found, type=pa.int64())


class CountVectorizer(_Vectorizer):
    """Replace each text by a vector that counts its tokens: the most frequent token comes first.

    A missing text, like one without a known token, becomes a vector of zeros. The vectors are not
    sparse: they take 8 bytes for each token that is known.

    Args:
        columns: Columns of text.
        tokenization_fn: What returns the tokens of a text; None: it is split at each space.
        max_features: Count only so many tokens, the most frequent ones, and of equally frequent
            ones the first in order; None: all.
        output_columns: What to call the results; None: they replace the columns.

    Raises:
        ConfigurationError: ``max_features`` is less than 1.
    """

    _takes_fills = False

    def __init__(
        self,
        columns: Sequence[str],
        tokenization_fn: TokenFunction | None = None,
        max_features: int | None = None,
        *,
        output_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(columns, output_columns)
        self.tokenization_fn = tokenization_fn
        if max_features is not None:
            check_count("CountVectorizer: max_features", max_features)
        self.max_features = max_features

    def _statistics(self) -> dict[str, Statistic]:
        return {name: _TokenCounts(self.tokenization_fn) for name in self.columns}

    def _conclude(self, statistics: Mapping[str, Counts]) -> dict[str, Any]:
        for name, counts in statistics.items():
            if not counts.counts:
                raise TransformError(f"{self._what(name)} has no texts to learn tokens from")
        return {
            f"token_counts({name})": dict(counts.most_common(self.max_features))
            for name, counts in statistics.items()
        }

    def _width(self, name: str) -> int:
        return len(self.stats_[f"token_counts({name})"])

    def _places(self, tokens: pa.Array, name: str) -> pa.Array:
        known = pa.array(list(self.stats_[f"token_counts({name})"]), type=pa.string())
        return pc.cast(pc.index_in(tokens, value_set=known), pa.int64())


class _TokenCounts(Counts):
    """How often each token occurs."""

    def __init__(self, function: TokenFunction | None) -> None:
        super().__init__()
        self._function = function

    def update(self, column: pa.ChunkedArray, what: str) -> None:
        super().update(pa.chunked_array([_tokens(column, self._function, what)]), what)

    def fill(self, value: Any, times: int) -> None:
        raise NotImplementedError


class FeatureHasher(Preprocessor):
    """Add up columns that count tokens into one vector, each at a place that its name's hash gives.

    Args:
        columns: Columns of numbers, each named like what it counts.
        num_features: How long the vectors are.
        output_column: What to call the result; the columns stay.

    Raises:
        ConfigurationError: ``num_features`` is less than 1.
    """

    _is_fittable = False

    def __init__(self, columns: Sequence[str], num_features: int, output_column: str) -> None:
        super().__init__(columns)
        self.output_columns = [output_column]
        self.num_features = check_count("FeatureHasher: num_features", num_features)
        self.output_column = output_column

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        sums = np.zeros((table.num_rows, self.num_features))
        for name in self.columns:
            values = floats(self._column(table, name), self._what(name))
            sums[:, _hash(name, self.num_features)] += values
        whole = all(pa.types.is_integer(table.schema.field(name).type) for name in self.columns)
        return {self.output_column: tensor(sums.astype(np.int64) if whole else sums)}
