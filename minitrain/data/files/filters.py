"""What can be known of a filter expression without reading rows."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial, reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from minitrain.exceptions import ColumnError, DataError

__all__ = ["columns_of", "may_meet_nan", "provable"]

Token = tuple[str, str]
Tokens = Sequence[Token]

_TOKEN = re.compile(r"(call|end|field_ref|nested_field_ref|literal|options): '(.*)'")
_COMPARISONS = {"less", "less_equal", "greater", "greater_equal", "equal"}


def columns_of(predicate: pc.Expression, schema: pa.Schema, where: str) -> tuple[str, ...]:
    """Return the columns that a filter looks at.

    pyarrow does not tell, so the ones without which it cannot be evaluated are found out.

    Raises:
        ColumnError: It looks at one that is not there.
        DataError: It is no filter for such columns.
    """
    problem = _problem(predicate, schema)
    if problem is not None:
        missing = re.search(r"FieldRef\.Name\((.*?)\) in", problem)
        if missing and missing[1] not in schema.names:
            raise ColumnError(missing[1], schema.names, f"{where}: the filter")
        raise DataError(f"{where}: the filter {predicate} cannot be applied: {problem}")
    text = str(predicate)
    named = [one for one in schema if one.name in text]
    return tuple(
        one.name
        for one in named
        if _problem(predicate, pa.schema([other for other in named if other is not one]))
    )


def _problem(predicate: pc.Expression, schema: pa.Schema) -> str | None:
    try:
        schema.empty_table().filter(predicate)
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


# What statistics can say of a filter.


def may_meet_nan(predicate: pc.Expression, floating: Collection[str]) -> bool:
    """Whether a filter looks at floating columns, or may compare something with NaN."""
    return bool(floating or re.search(r"\bnan\b", str(predicate), re.IGNORECASE))


def provable(predicate: pc.Expression, floating: Collection[str]) -> pc.Expression | None:
    """Return a filter that keeps at least the same rows, and that statistics can be asked for.

    The smallest and the largest value of a floating column say nothing of NaN, nor of the sign of a
    zero. Where neither of the two fulfils a comparison, NaN and the other zero do not either; that
    is so only while it is not negated. Anything else that looks at such a column, or at NaN itself,
    is taken to hold.

    Args:
        predicate: The filter.
        floating: The columns that may have NaN.

    Returns:
        None if nothing of the filter is left.
    """
    try:
        make, (buffer,) = predicate.__reduce__()
        written = pa.ipc.open_file(buffer).get_batch(0)
        tokens = _tokens(written)
        build = partial(_built, make, written)
        if build(tokens).equals(predicate):  # no name looked like something else
            unsure = {("field_ref", name) for name in floating} | _nan_literals(written)
            return _weaker(tokens, unsure, build)
    except (pa.ArrowException, ValueError):
        pass  # it cannot be pickled, or otherwise than by the pyarrow this was written for
    return None


def _nan_literals(written: pa.RecordBatch) -> set[Token]:
    kinds = enumerate(written.columns)
    numbers = [(index, one) for index, one in kinds if pat.is_floating(one.type)]
    return {("literal", str(index)) for index, one in numbers if math.isnan(one[0].as_py() or 0)}


def _tokens(written: pa.RecordBatch) -> Tokens:
    """Return a pickled expression as calls, which end, and their arguments.

    They are the metadata of a table of literals. As a dict that would lose what comes twice.
    """
    text = written.select([]).schema.to_string(truncate_metadata=False)
    found = [_TOKEN.fullmatch(line) for line in text.strip("\n").split("\n")[1:]]
    if not found or not all(found):
        raise ValueError(f"not an expression: {text}")
    return [(one[1], one[2]) for one in found if one]


def _built(make: Callable[[Any], Any], written: pa.RecordBatch, tokens: Tokens) -> pc.Expression:
    part = written.replace_schema_metadata(pa.KeyValueMetadata(list(tokens)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, part.schema) as writer:
        writer.write_batch(part)
    return make(sink.getvalue())


def _weaker(
    tokens: Tokens, unsure: set[Token], build: Callable[[Tokens], pc.Expression]
) -> pc.Expression | None:
    if tokens[0] in {("call", "and_kleene"), ("call", "or_kleene")}:
        parts = [_weaker(one, unsure, build) for one in _arguments(tokens)]
        known = [one for one in parts if one is not None]
        if tokens[0][1] == "or_kleene":
            return reduce(operator.or_, known) if len(known) == len(parts) else None
        return reduce(operator.and_, known) if known else None
    is_sure = unsure.isdisjoint(tokens) or _compares(tokens)
    return build(tokens) if is_sure else None


def _compares(tokens: Tokens) -> bool:
    """Whether it is a comparison of columns and values as they are."""
    calls = [name for kind, name in tokens if kind == "call"]
    return len(calls) == 1 and calls[0] in _COMPARISONS


def _arguments(tokens: Tokens) -> list[Tokens]:
    """Return those of the call that the tokens are."""
    found, begin = [], 1
    while tokens[begin][0] != "end":
        end = _end(tokens, begin)
        found.append(tokens[begin:end])
        begin = end
    return found


def _end(tokens: Tokens, begin: int) -> int:
    """Return where the argument ends that begins somewhere."""
    (kind, value), end = tokens[begin], begin + 1
    if kind == "call":
        while tokens[end][0] != "end":
            end = _end(tokens, end)
        return end + 1
    return end + int(value) if kind == "nested_field_ref" else end
