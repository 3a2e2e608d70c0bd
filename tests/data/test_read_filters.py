"""Filters that a Parquet reader evaluates: the rows are those of the same filter behind it."""

from __future__ import annotations

import itertools
import math
import operator
import uuid

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.data.files.filters import provable
from minitrain.data.files.parquet import EXTENSIONS, ParquetSource
from minitrain.exceptions import DataError
from tests.data.reading import counts_of, rows_of, where

NAN = math.nan
N, S = pc.field("n"), pc.field("s")
FALSE = pa.scalar(False)


def source(path, **options) -> ParquetSource:
    return ParquetSource(where=where(path, extensions=EXTENSIONS), **options)


def groups_of(filtered) -> list[int]:
    return [number for block in filtered.blocks() for number, _ in block.groups]


@pytest.mark.parametrize(
    ("values", "made"),
    [
        ([0.0] * 4 + [1.0] * 4, lambda x: x.isin([0.0, 1.0])),
        ([-0.0, -0.0, 0.0, 0.0], lambda x: x.isin([0.0])),
        ([-0.0, 0.0], lambda x: pc.divide(pc.scalar(1.0), x) > 0),
        ([NAN, 2.0, 3.0, 4.0] * 2, lambda x: ~(x > 0)),
        ([NAN, 2.0], lambda x: (x > 0) == FALSE),
        ([NAN, 1.0, 1.0, 1.0], lambda x: x != 1.0),
        ([NAN, 1.0, 1.0, 1.0], pc.is_nan),
        ([NAN, 1.0, 1.0, 1.0], lambda x: x.is_null(nan_is_null=True)),
        ([NAN, 1.0, 1.0, 1.0], lambda x: (x > 5) | pc.is_nan(x)),
        ([NAN, 1.0, 1.0, 1.0], lambda x: (x < 5) | (x != 1.0)),
        ([NAN, 1.0, 1.0, 1.0], lambda x: (N == 0) & ~(x > 0)),
        ([1.0, 1.0], lambda x: ~(N < NAN)),
        ([1.0, 1.0], lambda x: (N >= 0) & ~(N <= NAN)),
    ],
)
@pytest.mark.parametrize("kind", ["double", "float", "struct"])
def test_nan_and_the_sign_of_zero_are_not_decided_by_statistics(tmp_path, values, made, kind):
    floats = pa.array(values, pa.float32() if kind == "float" else pa.float64())
    nested = pa.StructArray.from_arrays([floats], ["y"])
    table = pa.table({"x": nested if kind == "struct" else floats, "n": range(len(values))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    predicate = made(pc.field("x", "y") if kind == "struct" else pc.field("x"))
    expected = table.filter(predicate).column("n").to_pylist()
    filtered = source(tmp_path, columns=("n",), predicate=predicate)
    assert expected
    assert [row["n"] for row in rows_of(filtered)] == expected
    assert counts_of(filtered) == len(expected)


def test_no_integer_is_less_than_nan(tmp_path):
    pq.write_table(pa.table({"n": [-1, 0]}), tmp_path / "a.parquet")
    assert counts_of(source(tmp_path, predicate=N < NAN)) == 0


@pytest.mark.parametrize(
    ("predicate", "read"),
    [
        (pc.field("x") > 5, [3, 4, 5]),
        ((pc.field("x") > 5) & (pc.field("x") <= 7), [3]),
        ((pc.field("x") < 2) | (pc.field("x") >= 10), [0, 5]),
        ((pc.field("x") > 5) & S.isin(["s7", "s8"]), [3, 4]),
        (~pc.is_nan(pc.field("x")) & (N >= 8), [4, 5]),
        ((pc.field("x") != 0) & ~(N < 10), [5]),
        (pc.is_nan(pc.field("x")) | (N >= 8), [0, 1, 2, 3, 4, 5]),
        (~(pc.field("x") > 5), [0, 1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_comparisons_of_floating_columns_still_leave_row_groups_out(tmp_path, predicate, read):
    numbers = range(12)
    columns = {"x": list(map(float, numbers)), "n": numbers, "s": [f"s{i}" for i in numbers]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    assert groups_of(source(tmp_path, predicate=predicate)) == read


def test_a_folder_leaves_out_its_files_whatever_else_a_filter_asks(tmp_path):
    for year in (2023, 2024):
        (tmp_path / f"year={year}").mkdir()
        pq.write_table(pa.table({"x": [NAN, 1.0]}), tmp_path / f"year={year}" / "a.parquet")
    filtered = source(tmp_path, predicate=(pc.field("year") == 2024) & pc.is_nan(pc.field("x")))
    (block,) = filtered.blocks()
    assert "year=2024" in block.name
    assert counts_of(filtered) == 1


@pytest.mark.parametrize(
    ("predicate", "left"),
    [
        (pc.field("f") > 0, "(f > 0)"),
        (pc.field("f") != 0, "None"),
        ((pc.field("f") > 0) == FALSE, "None"),
        (pc.add(pc.field("f"), 1) > 0, "None"),
        (N != 0, "(n != 0)"),
        (S.isin(["a"]) & (pc.field("f") != 0) & (N == 1), str(S.isin(["a"]) & (N == 1))),
        (S.isin(["a"]) | (pc.field("f") != 0), "None"),
        (pc.field("f", "x") < 1, str(pc.field("f", "x") < 1)),
        (~(pc.field("f", "x") < 1), "None"),
        ((S == "end: 'and'\n\"(") & ~(N > 3), str((S == "end: 'and'\n\"(") & ~(N > 3))),
        ((pc.field("f") != 0) & (pc.field("n\nend: 'equal'") == 1), "None"),
    ],
    ids=str,
)
def test_what_statistics_can_be_asked_of_a_filter(predicate, left):
    assert str(provable(predicate, {"f"})) == left


def test_a_column_whose_statistics_arrow_cannot_compare_is_filtered_all_the_same(tmp_path):
    table = pa.table({"u": pa.array([uuid.UUID(int=i).bytes for i in range(3)], pa.uuid())})
    pq.write_table(table, tmp_path / "a.parquet")
    number = pc.field("u").cast(pa.binary(16)) == uuid.UUID(int=1).bytes
    for predicate, rows in [(number, 1), (pc.field("u").is_null(), 0)]:
        assert counts_of(source(tmp_path, predicate=predicate)) == rows


# Random filters of random tables.

FLOATS = st.sampled_from([None, NAN, -0.0, 0.0, 1.0, 1.5, -2.0, math.inf, -math.inf])
INTEGERS = st.sampled_from([None, -1, 0, 1, 2])
OPERATORS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]
COLUMNS = st.sampled_from(["f", "g", "n", "nested"])


def field_of(name):
    return pc.field("nested", "x") if name == "nested" else pc.field(name)


@st.composite
def tables(draw):
    rows = draw(st.integers(1, 8))

    def values(of):
        return draw(st.lists(of, min_size=rows, max_size=rows))

    nested = pa.array([None if x is None else {"x": x} for x in values(FLOATS)], NESTED)
    columns = [range(rows), values(FLOATS), values(FLOATS), values(INTEGERS), nested]
    arrays = [pa.array(one, kind) for one, kind in zip(columns, TYPES.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=TYPES)


NESTED = pa.struct([("x", pa.float64())])
TYPES = pa.schema(
    [
        ("id", pa.int64()),
        ("f", pa.float64()),
        ("g", pa.float32()),
        ("n", pa.int64()),
        ("nested", NESTED),
    ]
)

VALUES = FLOATS.filter(lambda value: value is not None)
FIELDS = COLUMNS.map(field_of)
ATOMS = st.one_of(
    st.builds(lambda op, x, value: op(x, value), st.sampled_from(OPERATORS), FIELDS, VALUES),
    st.builds(lambda op, x, y: op(x, y), st.sampled_from(OPERATORS), FIELDS, FIELDS),
    st.builds(lambda x, some: x.isin(some), FIELDS, st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(lambda x, nan: x.is_null(nan_is_null=nan), FIELDS, st.booleans()),
    st.builds(lambda x: x.is_valid(), FIELDS),
    st.builds(pc.is_nan, FIELDS),
    st.builds(lambda x: pc.divide(pc.scalar(1.0), x.cast(pa.float64())) > 0, FIELDS),
)
PREDICATES = st.recursive(
    ATOMS,
    lambda some: st.one_of(
        st.builds(operator.inv, some),
        st.builds(operator.and_, some, some),
        st.builds(operator.or_, some, some),
        st.builds(operator.eq, some, st.booleans().map(pa.scalar)),
    ),
    max_leaves=4,
)
NUMBER = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("random")


def check_same_rows(folder, table, predicate, size):
    path = folder / f"{next(NUMBER)}.parquet"
    pq.write_table(table, path, row_group_size=size)
    expected = table.filter(predicate).column("id").to_pylist()
    filtered = source(path, columns=("id",), predicate=predicate)
    assert [row["id"] for row in rows_of(filtered)] == expected
    assert counts_of(filtered) == len(expected)
    path.unlink()


@settings(max_examples=20, deadline=None)
@given(table=tables(), predicate=PREDICATES, size=st.integers(1, 4))
def test_any_filter_keeps_the_same_rows_in_the_reader(folder, table, predicate, size):
    check_same_rows(folder, table, predicate, size)


@pytest.mark.campaign
@settings(max_examples=1000, deadline=None)
@given(table=tables(), predicate=PREDICATES, size=st.integers(1, 4))
def test_any_filter_keeps_the_same_rows_in_the_reader_at_length(folder, table, predicate, size):
    check_same_rows(folder, table, predicate, size)


# Filters that fail.


@pytest.mark.parametrize(
    ("predicate", "reason"),
    [
        (pc.divide(N, pc.field("zero")) > 1, "divide by zero"),
        (S.cast(pa.int64()) > 1, "Failed to parse string"),
        (pc.field("year").cast(pa.int32()) > 1, "Failed to parse string"),
    ],
    ids=str,
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_filter_that_fails_is_named_and_no_file_is_blamed(tmp_path, predicate, reason, on_error):
    for year in ("1", "x"):
        (tmp_path / f"year={year}").mkdir()
        table = pa.table({"n": [1, 2], "zero": [0, 0], "s": ["1", "abc"]})
        pq.write_table(table, tmp_path / f"year={year}" / "a.parquet")
    filtered = source(tmp_path, predicate=predicate, on_error=on_error)
    for use in (rows_of, counts_of):
        with pytest.raises(DataError) as caught:
            use(filtered)
        assert type(caught.value) is DataError
        assert str(caught.value).startswith(f"the filter {predicate} fails: {reason}")
        assert str(tmp_path / "year=") in str(caught.value)
    assert filtered.skips.count == 0
