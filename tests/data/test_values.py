"""Values come back as they were: from numpy, pandas, Python and torch to Arrow, and back."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import itertools
import math
import pickle
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minitrain.data.values import (
    ObjectType,
    RaggedTensorType,
    array_from_list,
    array_from_numpy,
    batch_from_table,
    check_format,
    concat_numpy,
    concat_tables,
    numpy_from_table,
    pandas_from_table,
    rows_from_table,
    slice_numpy,
    table_from_batch,
    table_from_rows,
    torch_from_numpy,
    torch_from_table,
)
from minitrain.exceptions import ColumnError, ConfigurationError, SchemaMismatchError

NAN = float("nan")
DATES = ["2020-02-29T12:30:01", "NaT", "1969-12-31T23:59:59"]


def table_of(values) -> pa.Table:
    return table_from_batch({"x": values}, "f")


def numpy_of(values) -> np.ndarray:
    """Take values through Arrow to numpy."""
    table = table_of(values)
    table.validate(full=True)
    return numpy_from_table(table)["x"]


def objects(*values) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def is_nan(value) -> bool:
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, float) and math.isnan(value)


def assert_same(found, expected):
    """Compare values of any kind and depth, with their types."""
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if expected.dtype != object:
            np.testing.assert_array_equal(found, expected)
            return
        found, expected = found.ravel().tolist(), expected.ravel().tolist()
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_same(list(found.values()), list(expected.values()))
    else:
        assert type(found) is type(expected)
        assert found == expected or (is_nan(found) and is_nan(expected))


# ------------------------------------------------------------------ numpy, through Arrow, to numpy
NUMBERS = [*"bBhHiIlLqQefd?", ">i4", ">f8"]
SAME = {
    **{f"numbers {code}": np.arange(6).astype(code) for code in NUMBERS},
    **{f"tensors {code}": np.arange(24).reshape(2, 3, 4).astype(code) for code in NUMBERS},
    **{f"times {unit}": np.array(DATES, f"M8[{unit}]") for unit in ("s", "ms", "us", "ns", "D")},
    **{f"durations {unit}": np.array([1, -5], f"m8[{unit}]") for unit in ("s", "ms", "us", "ns")},
    "tensors of times": np.array([DATES, DATES], "M8[us]"),
    "NaN is not null": np.array([1.5, NAN, np.inf, -0.0]),
    "one row": np.array([[[7]]]),
    "no rows": np.zeros(0, "f4"),
    "no rows of tensors": np.zeros((0, 3, 2), "f4"),
    "tensors of nothing": np.zeros((3, 0)),
    "tensors of nothing, twice": np.zeros((2, 0, 2), "i2"),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "every second": np.arange(10)[::2],
    "every second, inside": np.arange(12).reshape(3, 4)[:, ::2],
    "backwards": np.arange(10)[::-1],
    "backwards, inside": np.arange(12).reshape(3, 4)[:, ::-1],
    "Fortran's order": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "texts": objects("a", "", "täxt", None),
    "bytes": objects(b"a\0", b"", None),
    "tensors of texts": objects("a", "b", "c", "d").reshape(2, 2),
    "lists of numbers": objects(np.array([1, 2]), None, np.array([], "i8")),
    "ragged": objects(np.zeros((2, 2)), np.ones((3, 1)), None, np.zeros((0, 5))),
    "ragged, and of several dimensions": objects(np.zeros(3), np.ones((2, 2, 2))),
    "one shape, and nulls": objects(np.arange(4).reshape(2, 2), None),
    "only nulls": objects(None, None),
    "dicts": objects({"a": 1, "b": "x"}, {"a": 2, "b": None}, None),
    "decimals": objects(decimal.Decimal("1.50"), None),
    "times of the day": objects(dt.time(1, 2, 3), None),
    "complex": objects(np.complex64(1 + 2j), None),
    "complex tensors": objects(np.array([[1j]]), np.array([2.0 + 0j])),
    "what does not fit together": objects(1, "a", None, 2.5),
    "true and one": objects(True, 1),
    "a time and a number": objects(dt.datetime.fromisoformat("2020-01-01"), 1),
    "a time and a date": objects(
        dt.date(2020, 1, 1), dt.datetime.fromisoformat("2020-01-01T05:00:00"), None
    ),
    "times and numbers of numpy": objects(np.datetime64("2020-01-01T05"), np.float32(1)),
    "texts and bytes": objects("a", b"b"),
    "numbers and booleans": objects(2.5, True),
    "large integers": objects(2**70, 1),
    "an exception of Python": objects(range(3), {1: 2}, frozenset({1}), None),
    "dicts of tensors": objects({"a": np.zeros((2, 2))}, {"a": np.ones((2, 2))}),
}


def native(array):
    return array.astype(array.dtype.newbyteorder("="))


@pytest.mark.parametrize("array", SAME.values(), ids=SAME)
def test_arrays_come_back_as_they_were(array):
    given_before = array.copy()
    back = numpy_of(array)
    if array.dtype == object and any(isinstance(item, np.ndarray) for item in array.flat):
        assert_same(back.tolist(), array.tolist())
    else:
        assert_same(back, native(array))
    assert_same(array, given_before)
    assert back.flags.c_contiguous
    assert back.flags.writeable


@pytest.mark.parametrize("array", SAME.values(), ids=SAME)
def test_slices_and_chunks_are_the_same_rows(array):
    whole = table_of(array)
    back = numpy_from_table(whole)["x"]
    for start, stop in ((1, len(array)), (0, len(array) - 1), (1, 1)):
        part = whole.slice(start, max(stop - start, 0))
        found = numpy_from_table(part)["x"]
        assert_same(list(found), list(back[start : max(stop, start)]))
        rows = [row["x"] for row in rows_from_table(part)]
        assert_same(rows, [row["x"] for row in rows_from_table(whole)][start : max(stop, start)])
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 0), whole.slice(1)])
    assert pieces.column("x").num_chunks >= min(len(array), 2)
    assert_same(list(numpy_from_table(pieces)["x"]), list(back))


@pytest.mark.parametrize("array", SAME.values(), ids=SAME)
def test_pickles_ipc_and_parquet_keep_the_values(array, tmp_path):
    table = table_of(array)
    expected = numpy_from_table(table)["x"]
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    for back in (
        pickle.loads(pickle.dumps(table)),
        pickle.loads(pickle.dumps(table.slice(1))),
        pa.ipc.open_stream(sink.getvalue()).read_all(),
    ):
        assert back.schema == table.schema
        skipped = len(array) - back.num_rows
        assert_same(list(numpy_from_table(back)["x"]), list(expected[skipped:]))
    if 0 in array.shape[1:]:
        return  # Parquet has no empty lists of a fixed size
    pq.write_table(table, tmp_path / "x.parquet")
    stored = numpy_from_table(pq.read_table(tmp_path / "x.parquet"))["x"]
    if array.dtype.kind in "Mm":
        stored = stored.astype(expected.dtype)  # Parquet has no seconds
    assert_same(list(stored), list(expected))


@pytest.mark.parametrize("array", SAME.values(), ids=SAME)
def test_pandas_and_back(array):
    table = table_of(array)
    frame = pandas_from_table(table)
    assert len(frame) == table.num_rows
    back = table_from_batch(frame, "f")
    expected = [row["x"] for row in rows_from_table(table)]
    found = [row["x"] for row in rows_from_table(back)]
    if array.dtype.kind in "fe":  # pandas has one word for null and NaN
        expected = [None if is_nan(value) else value for value in expected]
    assert_same(found, expected)


CHANGED = {
    "texts of numpy": (np.array(["a", "bc"]), objects("a", "bc")),
    "bytes of numpy": (np.array([b"a", b"bc"]), objects(b"a", b"bc")),
    "hours": (np.array(DATES, "M8[h]"), np.array(DATES, "M8[h]").astype("M8[s]")),
    "weeks": (np.array(["2020-02-27"], "M8[W]"), np.array(["2020-02-27"], "M8[D]")),
    "years": (np.array(["2020"], "M8[Y]"), np.array(["2020-01-01"], "M8[D]")),
    "days": (np.array([1, 2], "m8[D]"), np.array([86400, 172800], "m8[s]")),
    "tens of seconds": (np.array([1, 2], "m8[10s]"), np.array([10, 20], "m8[s]")),
    "integers and null": ([1, None, 3], np.array([1, NAN, 3])),
    "small integers and null": (pa.array([1, None], pa.int8()), np.array([1, NAN])),
    "booleans and null": ([True, None, False], np.array([1, NAN, 0])),
    "floats and null": ([1.5, None], np.array([1.5, NAN])),
    "float32 and null": ([np.float32(1.5), None], np.array([1.5, NAN], "f4")),
    "times and null": (
        [dt.datetime.fromisoformat("2020-01-01"), None],
        np.array(["2020-01-01", "NaT"], "M8[us]"),
    ),
    "texts and NaN": (["a", NAN], objects("a", None)),
    "numbers and pandas' NA": ([1, pd.NA], np.array([1, NAN])),
    "texts and pandas' NA": (["a", pd.NA, NAN], objects("a", None, None)),
    "decimals and integers": (
        [decimal.Decimal("1.5"), 1],
        objects(decimal.Decimal("1.5"), decimal.Decimal("1.0")),
    ),
    "scalars of numpy": ([np.float32(1), np.float32(2)], np.array([1, 2], "f4")),
    "scalars of several dtypes": ([np.float32(1), np.float64(2)], np.array([1.0, 2.0])),
    "bytes of numpy, one by one": ([np.bytes_(b"a\0")], objects(b"a\0")),
    "arrays without dimensions": ([np.array(1), np.array(2)], np.array([1, 2])),
    "arrays of one shape": ([np.zeros(2), np.ones(2)], np.array([[0.0, 0.0], [1.0, 1.0]])),
    "arrays of two dtypes": (
        [np.zeros(2, "f4"), np.ones(2, "i2")],
        np.array([[0, 0], [1, 1]], "f4"),
    ),
    "unsigned": ([1, 2**63], np.array([1, 2**63], "u8")),
    "arrays of texts": (
        [np.array(["a"]), np.array(["b", "c"])],
        objects(objects("a"), objects("b", "c")),
    ),
    "lists": ([[1, 2], [], None], objects(np.array([1, 2]), np.array([], "i8"), None)),
    "lists with nulls": ([[1, None], [2]], objects(np.array([1, NAN]), np.array([2.0]))),
    "lists of one length": ([[1, 2], [3, 4]], objects(np.array([1, 2]), np.array([3, 4]))),
    "lists and arrays": ([[1, 2], np.array([3])], objects(np.array([1, 2]), np.array([3]))),
    "lists of lists": (
        [[[1], [2, 3]], [[4]]],
        objects(objects(np.array([1]), np.array([2, 3])), objects(np.array([4]))),
    ),
    "tuples": ([(1, 2)], objects(np.array([1, 2]))),
    "records": (
        np.array([(1, [2, 3])], [("a", "i4"), ("b", "f4", (2,))]),
        objects({"a": 1, "b": np.array([2, 3], "f4")}),
    ),
    "fixed-size lists": (
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2)),
        np.array([[1, 2], [3, 4]], "i2"),
    ),
    "fixed-size lists and null": (
        pa.array([[1, 2], None], pa.list_(pa.int16(), 2)),
        objects(np.array([1, 2], "i2"), None),
    ),
    "large lists": (
        pa.array([[1], None], pa.large_list(pa.int8())),
        objects(np.array([1], "i1"), None),
    ),
    "a dictionary": (
        pa.array(["b", "a", None, "b"]).dictionary_encode(),
        objects("b", "a", None, "b"),
    ),
    "a dictionary of numbers": (pa.array([5, 7, 5]).dictionary_encode(), np.array([5, 7, 5])),
    "dates": (pa.array([dt.date(2020, 1, 1), None]), np.array(["2020-01-01", "NaT"], "M8[D]")),
    "times with a zone": (
        pa.array([0], pa.timestamp("ns", "Europe/Rome")),
        np.array(["1970-01-01"], "M8[ns]"),
    ),
    "large texts": (pa.array(["a", None], pa.large_string()), objects("a", None)),
    "nulls": (pa.nulls(2), objects(None, None)),
    "a map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())), objects([("a", 1)])),
    "masked": (np.ma.masked_array([1.5, 2.5], [True, False]), np.array([NAN, 2.5])),
    "torch": (torch.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3)),
    "torch, transposed": (torch.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T),
    "torch, with a gradient": (torch.ones(2, requires_grad=True), np.ones(2, "f4")),
    "torch's float16": (torch.ones(2, dtype=torch.float16), np.ones(2, "f2")),
    "torch's bfloat16": (torch.full((2,), 1.5, dtype=torch.bfloat16), np.full(2, 1.5, "f4")),
    "torch's negative": (torch.conj(torch.tensor([1 + 1j])).imag, np.array([-1], "f4")),
    "tensors of torch": ([torch.zeros(2), torch.ones(2)], np.array([[0, 0], [1, 1]], "f4")),
    "ragged tensors of torch": (
        [torch.zeros(2, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)],
        objects(np.zeros(2, "f4"), np.ones(1, "f4")),
    ),
    "numbers of torch": ([torch.tensor(1.5), torch.tensor(2.5)], np.array([1.5, 2.5], "f4")),
    "a category": (pd.Series(["b", "a", None], dtype="category"), objects("b", "a", None)),
    "nullable integers": (pd.Series([1, None], dtype="Int64"), np.array([1, NAN])),
    "a series of objects": (pd.Series([np.zeros(2), np.ones(3)]), objects(np.zeros(2), np.ones(3))),
    "no values": ([], objects()),
}


@pytest.mark.parametrize(("values", "expected"), CHANGED.values(), ids=CHANGED)
def test_values_become_what_numpy_has_for_them(values, expected):
    assert_same(numpy_of(values), expected)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_is_an_array():
    assert_same(numpy_of(np.asmatrix(np.eye(2))), np.eye(2))


def test_tensors_are_arrows_own_type_and_ragged_ones_ours():
    assert table_of(np.zeros((2, 3, 4), "f4")).schema.field("x").type == pa.fixed_shape_tensor(
        pa.float32(), [3, 4]
    )
    assert table_of([np.zeros(2), np.zeros(3)]).schema.field("x").type == RaggedTensorType(
        pa.float64()
    )
    assert table_of([object]).schema.field("x").type == ObjectType()
    assert table_of([[1.0, 2.0]]).schema.field("x").type == pa.list_(pa.float64())


def test_a_tensor_whose_dimensions_lie_in_another_order_is_read_as_it_is_meant():
    type_ = pa.fixed_shape_tensor(pa.int32(), [1, 2, 3], permutation=[2, 0, 1])
    storage = pa.array([range(6), range(6, 12)], pa.list_(pa.int32(), 6))
    tensors = pa.table({"x": pa.ExtensionArray.from_storage(type_, storage)})
    expected = np.arange(12, dtype="i4").reshape(2, 1, 2, 3).transpose(0, 3, 1, 2)
    found = numpy_from_table(tensors)["x"]
    assert_same(found, np.ascontiguousarray(expected))
    assert found.flags.c_contiguous


def test_read_only_arrays_are_taken_and_what_is_given_back_is_the_callers_own():
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    table = table_from_batch({"x": array, "y": np.arange(2)}, "f")
    back = numpy_from_table(table)
    back["x"] += 1
    back["y"] += 1
    frame = pandas_from_table(table)
    frame.loc[0, "y"] = 99
    frame["x"][0][:] = 99
    tensors = torch_from_table(table)
    tensors["x"] += 1
    tensors["y"] += 1
    assert_same(numpy_from_table(table)["x"], np.arange(6.0).reshape(2, 3))
    assert_same(numpy_from_table(table)["y"], np.arange(2))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(3),
        np.zeros((3, 2)),
        [np.zeros(2), None],
        [[1, 2], [3]],
        [np.zeros(2), np.zeros(3)],
        pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
        np.array(["2020"], "M8[s]"),
        np.array([True]),
        pa.array([1, 2]).dictionary_encode(),
    ],
    ids=[
        "numbers",
        "tensors",
        "tensors and null",
        "lists",
        "ragged",
        "fixed lists",
        "times",
        "booleans",
        "dictionary",
    ],
)
def test_memory_that_may_only_be_read_is_not_handed_out(values):
    table = table_of(values)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as stream:
        stream.write_table(table)
    buffer = sink.getvalue()
    mapped = pa.ipc.open_file(buffer).read_all()
    first, size = buffer.address, buffer.size

    def check(array):
        if array.dtype == object:
            for item in array:
                if item is not None:
                    check(item)
        else:
            assert not first <= array.ctypes.data < first + size

    check(numpy_from_table(mapped)["x"])
    if (
        not (isinstance(values, np.ndarray) and values.dtype.kind == "M")
        and not mapped["x"].null_count
    ):
        tensors = torch_from_table(mapped)["x"]
        for tensor in tensors if isinstance(tensors, list) else [tensors]:
            assert not first <= tensor.data_ptr() < first + size
    check(pandas_from_table(mapped)["x"].to_numpy(copy=False))


# ------------------------------------------------------------------ hypothesis
DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.datetime64_dtypes(min_period="ns", max_period="s"),
    hnp.timedelta64_dtypes(min_period="ns", max_period="s"),
)


@settings(deadline=None, max_examples=150)
@given(
    array=hnp.arrays(DTYPES, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)),
    cuts=st.lists(st.integers(0, 5), max_size=3),
)
def test_any_array_survives_any_chunks(array, cuts):
    table = table_of(array)
    edges = [0, *sorted(min(cut, len(array)) for cut in cuts), len(array)]
    pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    back = numpy_from_table(pa.concat_tables(pieces))["x"]
    assert_same(back, native(array))
    assert back.flags.writeable
    parts = [numpy_from_table(piece) for piece in pieces]
    assert_same(concat_numpy(parts)["x"], native(array))
    start, stop = edges[1], edges[-2]
    assert_same(slice_numpy({"x": back}, start, stop)["x"], native(array)[start:stop])


@settings(deadline=None, max_examples=100)
@given(
    tensors=st.lists(
        st.none()
        | hnp.arrays("f4", hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)),
        max_size=5,
    ),
    start=st.integers(0, 5),
)
def test_any_tensors_survive_any_slice(tensors, start):
    table = table_of(objects(*tensors)).slice(start)
    for one, other in zip(numpy_from_table(table)["x"], tensors[start:], strict=True):
        assert_same(one, other)
    for row, other in zip(rows_from_table(table), tensors[start:], strict=True):
        assert_same(row["x"], other)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(min_value=dt.datetime.fromisoformat("1900-01-01")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=200)
@given(values=st.lists(VALUES, max_size=4))
@example(values=[["", b"\x80"]])  # pyarrow makes a text of the bytes
def test_any_values_of_python_survive_or_are_told_apart_only_by_what_arrow_has_one_word_for(values):
    table = table_from_rows([{"x": value} for value in values], "f")
    found = [row["x"] for row in rows_from_table(table)]
    assert len(found) == len(values)
    for one, other in zip(found, values, strict=True):
        assert_alike(one, other)


def assert_alike(found, expected):
    """Compare as Arrow does: a number is a number, a missing key of a dict is null."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in found.keys() | expected.keys():
            assert_alike(found.get(key), expected.get(key))
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, int | float) and not isinstance(found, int | float | None):
        assert isinstance(found, dt.datetime)  # pa.array, inside lists and dicts
    elif {type(expected), type(found)} == {str, bytes}:  # in one column they are of one kind
        texts = [one.encode() if isinstance(one, str) else one for one in (expected, found)]
        assert texts[0] == texts[1]
    elif is_nan(expected):
        assert found is None or is_nan(found)
    else:
        assert found == expected


# ------------------------------------------------------------------ rows
def test_rows_have_values_of_python_and_tensors():
    table = table_from_batch(
        {
            "number": np.array([1, 2], "i2"),
            "half": np.array([1, 2], "f2"),
            "flag": np.array([True, False]),
            "text": ["a", None],
            "list": [[1, 2], []],
            "tensor": np.zeros((2, 3), "f4"),
            "ragged": [np.zeros(1), np.zeros((2, 2))],
            "dict": [{"a": 1}, {"a": None}],
            "object": [range(3), 1j],
            "missing": [1, None],
        },
        "f",
    )
    first, second = rows_from_table(table)
    assert_same(
        first,
        {
            "number": 1,
            "half": 1.0,
            "flag": True,
            "text": "a",
            "list": [1, 2],
            "tensor": np.zeros(3, "f4"),
            "ragged": np.zeros(1),
            "dict": {"a": 1},
            "object": range(3),
            "missing": 1,
        },
    )
    assert second["missing"] is None
    assert second["ragged"].shape == (2, 2)


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ns"), pa.timestamp("ns", "Europe/Rome"), pa.duration("ns")], ids=str
)
def test_rows_keep_nanoseconds(kind):
    table = pa.table({"t": pa.array([1_700_000_000_123_456_789, None, 5], kind)})
    again = table_from_rows(list(rows_from_table(table)), "f")
    assert again.equals(table)


def test_times_of_python_beside_those_of_pandas_keep_what_they_can():
    near, far = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2020, 1))
    exact = pd.Timestamp(123_456_789, tz="UTC")
    for times, unit in [([exact, near], "ns"), ([near, near], "us"), ([exact, far], "us")]:
        table = table_from_rows([{"t": time} for time in times], "f")
        assert table.schema.field("t").type == pa.timestamp(unit, "UTC")


def test_rows_come_in_order_however_many_there_are():
    table = pa.table({"x": range(10_000)})
    assert [row["x"] for row in rows_from_table(table)] == list(range(10_000))


def test_rows_make_a_table_and_what_some_lack_is_null():
    rows = [{"a": 1}, {"b": np.float32(2), "a": 3}, {"c": np.zeros(2)}]
    table = table_from_rows(rows, "f")
    assert table.column_names == ["a", "b", "c"]
    assert [list(row.values())[:2] for row in rows_from_table(table)] == [
        [1, None],
        [3, 2.0],
        [None, None],
    ]
    assert table.schema.field("b").type == pa.float32()
    assert table_from_rows([], "f").num_rows == 0


def test_rows_without_columns_are_still_counted():
    table = table_from_rows([{}, {}], "f")
    assert (table.num_rows, table.num_columns) == (2, 0)
    assert list(rows_from_table(table)) == [{}, {}]
    assert len(pandas_from_table(table)) == 2
    assert table_from_batch(pandas_from_table(table), "f").num_rows == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1]], r"map\(f\) returned a list, not a row: a dict of column names to values"),
        ([None], r"map\(f\) returned None, not a row"),
        ([{1: 2}], r"map\(f\) returned a column named 1: names are strings"),
        ([{"x": threading.Lock()}], r"map\(f\) returned a column 'x' .*a lock.*cannot be pickled"),
    ],
)
def test_what_is_no_row_is_refused_in_words(rows, message):
    with pytest.raises(TypeError, match=message):
        table_from_rows(rows, "map(f)")


# ------------------------------------------------------------------ batches
def test_tables_record_batches_frames_and_dicts_are_batches():
    table = pa.table({"x": [1, 2], "y": ["a", "b"]})
    frame = pd.DataFrame({"x": [1, 2], "y": ["a", "b"]}, index=[7, 9])
    for batch in (table, table.to_batches()[0], frame, {"x": np.array([1, 2]), "y": ["a", "b"]}):
        assert table_from_batch(batch, "f").to_pydict() == table.to_pydict()
    assert table_from_batch(table, "f") is table
    assert table_from_batch(pd.DataFrame(np.zeros((2, 2))), "f").column_names == ["0", "1"]


def test_no_batch_has_views_which_most_functions_of_pyarrow_do_not_know():
    array = pa.array(["a", "b"], pa.string_view())
    table = pa.table({"x": array})
    for batch in (table, table.to_batches()[0], {"x": array}):
        made = table_from_batch(batch, "f")
        assert made.schema.field("x").type == pa.large_string()
        assert made.to_pydict() == {"x": ["a", "b"]}


NOT_OF_ARROW = {
    "complex": (pd.Series([1j, 2.0]), ObjectType(), [1j, 2 + 0j]),
    "categories of complex": (pd.Series(pd.Categorical([1j])), ObjectType(), [1j]),
    "categories of two kinds": (pd.Series(pd.Categorical(["a", 1])), ObjectType(), ["a", 1]),
    "sparse": (pd.Series(pd.arrays.SparseArray([0, 0, 1])), pa.int64(), [0, 0, 1]),
    "sparse with NaN": (
        pd.Series(pd.arrays.SparseArray([np.nan, 1.5])),
        pa.float64(),
        [None, 1.5],
    ),
    "sparse texts": (pd.Series(pd.arrays.SparseArray(["a", ""])), pa.string(), ["a", ""]),
}


@pytest.mark.parametrize(("series", "type_", "expected"), NOT_OF_ARROW.values(), ids=NOT_OF_ARROW)
def test_columns_of_pandas_that_pyarrow_does_not_take(series, type_, expected):
    table = table_from_batch(pd.DataFrame({"x": series}), "f")
    assert table.schema.field("x").type == type_
    assert [row["x"] for row in rows_from_table(table)] == expected


def test_a_category_stays_one():
    frame = pd.DataFrame({"x": pd.Categorical(["b", "a", "b"], categories=["a", "b", "c"])})
    back = pandas_from_table(table_from_batch(frame, "f"))
    pd.testing.assert_frame_equal(back, frame)


def test_texts_and_times_are_pandas_own():
    zoned = pd.Series(pd.to_datetime(["2020-01-01"]).tz_localize("Europe/Rome"))
    frame = pd.DataFrame({"text": ["a"], "time": zoned, "number": [1.5]})
    back = pandas_from_table(table_from_batch(frame, "f"))
    assert back.dtypes.astype(str).to_dict() == frame.dtypes.astype(str).to_dict()
    assert back.equals(frame)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            [1],
            TypeError,
            r"g\(\) returned a list, not a batch: a dict of arrays, a pandas.DataFrame or",
        ),
        (None, TypeError, r"g\(\) returned None, not a batch"),
        (np.zeros(3), TypeError, "an? ndarray, not a batch"),
        ({"a": np.zeros(3), "b": [1, 2]}, ValueError, "lengths: 'a' has 3 rows, 'b' has 2 rows"),
        ({"a": 1.5}, TypeError, "column 'a' that cannot be one: it is a float, not an array"),
        ({"a": "text"}, TypeError, "column 'a' that cannot be one: it is a str, not an array"),
        ({"a": np.array(1)}, ValueError, "column 'a' that cannot be one: a single value"),
        ({"a": torch.tensor(1)}, ValueError, "column 'a' that cannot be one: a single value"),
        ({1: [1]}, TypeError, "column named 1"),
        ({"a": [threading.Lock()]}, TypeError, "column 'a' .*cannot be pickled"),
        (pa.table([[1], [2]], names=["a", "a"]), ValueError, "returned two columns named 'a'"),
        (
            pd.DataFrame([[1, 2]], columns=["a", "a"]),
            ValueError,
            r"g\(\) returned two columns named 'a'",
        ),
    ],
)
def test_what_is_no_batch_is_refused_in_words(batch, error, message):
    with pytest.raises(error, match=message):
        table_from_batch(batch, "g()")


def test_batches_come_in_the_format_asked_for():
    table = pa.table({"x": [1, 2]})
    assert batch_from_table(table, "pyarrow") is table
    assert batch_from_table(table, None) is table
    assert isinstance(batch_from_table(table, "pandas"), pd.DataFrame)
    for name in ("default", "numpy"):
        assert_same(batch_from_table(table, name), {"x": np.array([1, 2])})


@pytest.mark.parametrize(
    ("name", "hint"),
    [("panda", "did you mean 'pandas'"), ("xyz", "give one of"), (3, "give one of")],
)
def test_a_format_that_there_is_not_is_refused(name, hint):
    with pytest.raises(ConfigurationError, match=hint):
        check_format(name)


# ------------------------------------------------------------------ numpy batches
@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ([np.array([1]), np.array([2.5])], np.array([1, 2.5])),
        ([np.zeros(0), np.array([2])], np.array([2])),
        ([np.zeros(0), np.zeros(0)], np.zeros(0)),
        ([np.zeros((1, 2)), np.ones((2, 2))], np.array([[0.0, 0], [1, 1], [1, 1]])),
        ([np.zeros((1, 2)), np.ones((1, 1))], objects(np.zeros(2), np.ones(1))),
        ([np.zeros((1, 2)), objects(np.ones(2), None)], objects(np.zeros(2), np.ones(2), None)),
        ([objects("a"), objects(None)], objects("a", None)),
    ],
)
def test_batches_are_joined(arrays, expected):
    assert_same(concat_numpy([{"x": array} for array in arrays])["x"], expected)


JOINED = {
    "one type": ([[1], [2]], pa.int64(), [1, 2]),
    "nulls": ([[None], [2]], pa.int64(), [None, 2]),
    "integers and floats": ([[1], [2.5]], pa.float64(), [1.0, 2.5]),
    "tensors of one shape": (
        [np.zeros((1, 2)), np.ones((1, 2))],
        pa.fixed_shape_tensor(pa.float64(), [2]),
        [np.zeros(2), np.ones(2)],
    ),
    "tensors of two shapes": (
        [np.zeros((1, 2)), [np.ones((1, 1)), None], [None]],
        RaggedTensorType(pa.float64()),
        [np.zeros(2), np.ones((1, 1)), None, None],
    ),
    "tensors of two dtypes": (
        [np.zeros((1, 2), "f4"), np.ones((1, 2), "i2")],
        RaggedTensorType(pa.float32()),
        [np.zeros(2, "f4"), np.ones(2, "f4")],
    ),
    "ragged": (
        [[np.zeros(1), np.zeros(2)], np.ones((1, 1))],
        RaggedTensorType(pa.float64()),
        [np.zeros(1), np.zeros(2), np.ones(1)],
    ),
    "tensors of no rows": (
        [np.zeros((0, 2)), np.ones((1, 1))],
        RaggedTensorType(pa.float64()),
        [np.ones(1)],
    ),
    "empty lists": ([[[]], [[1]]], pa.list_(pa.int64()), [[], [1]]),
    "dicts": (
        [[{"a": 1}], [{"b": 2}]],
        pa.struct([("a", pa.int64()), ("b", pa.int64())]),
        [{"a": 1, "b": None}, {"a": None, "b": 2}],
    ),
    "a dictionary and texts": (
        [pa.array(["a"]).dictionary_encode(), ["b"]],
        pa.string(),
        ["a", "b"],
    ),
    "what does not fit together": ([[1], ["a"], [None]], ObjectType(), [1, "a", None]),
    "tensors and numbers": ([np.zeros((1, 2)), [1]], ObjectType(), [np.zeros(2), 1]),
    "objects and numbers": ([[1j], [1]], ObjectType(), [1j, 1]),
}


@pytest.mark.parametrize(("batches", "type_", "expected"), JOINED.values(), ids=JOINED)
def test_tables_are_joined_though_their_types_differ(batches, type_, expected):
    table = concat_tables([table_of(batch) for batch in batches])
    table.validate(full=True)
    assert table.schema.field("x").type == type_
    assert_same([row["x"] for row in rows_from_table(table)], expected)


def test_joined_tables_share_memory_and_what_some_lack_is_null():
    first, second = pa.table({"x": [1], "y": ["a"]}), pa.table({"x": [2]})
    joined = concat_tables([first, second])
    assert joined.to_pylist() == [{"x": 1, "y": "a"}, {"x": 2, "y": None}]
    address = first.column("x").chunk(0).buffers()[1].address
    assert joined.column("x").chunk(0).buffers()[1].address == address


def test_a_value_that_does_not_fit_the_common_type_is_refused():
    with pytest.raises(SchemaMismatchError, match="do not fit together"):
        concat_tables([pa.table({"x": [-1]}), pa.table({"x": pa.array([2**63], pa.uint64())})])


def test_batches_with_other_columns_are_not_joined():
    assert concat_numpy([]) == {}
    with pytest.raises(ValueError, match=r"\['x'\], another \['y'\]"):
        concat_numpy([{"x": np.zeros(1)}, {"y": np.zeros(1)}])


# ------------------------------------------------------------------ torch
@pytest.mark.parametrize("code", "bBhHiIlLefd?")
def test_tensors_have_the_dtype_of_their_column(code):
    array = np.arange(4).astype(code).reshape(2, 2)
    tensor = torch_from_table(table_of(array))["x"]
    assert torch.equal(tensor, torch.from_numpy(array.copy()))
    assert tensor.dtype == torch.from_numpy(array.copy()).dtype


def test_dtypes_are_for_all_columns_or_for_some():
    table = table_from_batch({"a": [1], "b": [2.5], "c": [np.zeros(2)], "d": [[1, 2]]}, "f")
    every = torch_from_table(table, torch.bfloat16)
    assert {tensor.dtype for tensor in every.values()} == {torch.bfloat16}
    some = torch_from_table(table, {"b": torch.float16})
    assert [tensor.dtype for tensor in some.values()] == [
        torch.int64,
        torch.float16,
        torch.float64,
        torch.int64,
    ]
    with pytest.raises(ColumnError, match="dtypes: there is no column 'bb'; did you mean 'b'"):
        torch_from_table(table, {"bb": torch.float16})


def test_lists_are_the_same_tensors_however_they_are_sliced_and_chunked():
    even, uneven = [[1, 2], [3, 4], [5, 6], [7, 8]], [[1], [3, 4], [5, 6], []]
    nested, empty = [[[1], [2]], [[3], [4]], [[5], [6]], [[7], [8]]], [[], [], [], []]
    for type_ in (pa.list_, pa.large_list):
        table = pa.table(
            {
                "even": pa.array(even, type_(pa.int64())),
                "uneven": pa.array(uneven, type_(pa.int64())),
                "nested": pa.array(nested, type_(type_(pa.int64()))),
                "fixed": pa.array(nested, type_(pa.list_(pa.int64(), 1))),
                "empty": pa.array(empty, type_(pa.int64())),
            }
        )
        for part in (table.slice(1, 2), pa.concat_tables([table.slice(1, 1), table.slice(2, 1)])):
            tensors = torch_from_table(part)
            assert tensors["even"].tolist() == even[1:3]
            assert tensors["uneven"].tolist() == uneven[1:3]
            assert tensors["nested"].tolist() == nested[1:3]
            assert tensors["fixed"].tolist() == nested[1:3]
            assert tensors["empty"].tolist() == empty[1:3]
            for tensor in tensors.values():
                tensor.add_(1)
        assert table.column("even").to_pylist() == even
        assert [one.tolist() for one in torch_from_table(table)["uneven"]] == uneven


def test_nulls_do_not_become_some_integer():
    table = table_of([1, None])
    assert torch_from_table(table, torch.float32)["x"].dtype == torch.float32
    with pytest.raises(TypeError, match=r"'x' \(nulls or NaN, which torch.int64 has not\)"):
        torch_from_table(table, {"x": torch.int64})


def test_ragged_columns_are_lists_of_tensors_and_lists_of_one_length_are_one():
    table = table_from_batch(
        {
            "ragged": [np.zeros((2, 2)), np.ones(3)],
            "lists": [[1], [2, 3]],
            "even": [[1, 2], [3, 4]],
            "nested": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        },
        "f",
    )
    tensors = torch_from_table(table, {"ragged": torch.float32})
    assert [tensor.shape for tensor in tensors["ragged"]] == [(2, 2), (3,)]
    assert {tensor.dtype for tensor in tensors["ragged"]} == {torch.float32}
    assert [tensor.tolist() for tensor in tensors["lists"]] == [[1], [2, 3]]
    assert tensors["even"].tolist() == [[1, 2], [3, 4]]
    assert tensors["nested"].shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (["a", "b"], "values of type str"),
        (np.array(["a", "b"]), "values of type str"),
        (np.array(DATES, "M8[s]"), "times"),
        ([np.zeros(2), None], "nulls"),
        ([{"a": 1}], "values of type dict"),
        ([["a"], ["b"]], "values of type str"),
        ([[[1], [2, 3]]], "lists of lists of different lengths"),
    ],
)
def test_what_no_tensor_can_hold_is_refused_by_name_with_a_way_out(values, why):
    table = table_of(values).append_column("y", pa.nulls(len(values)))
    with pytest.raises(TypeError) as caught:
        torch_from_table(table)
    assert f"columns 'x' ({why}), 'y' (nulls)" in str(caught.value)
    assert "drop_columns(['x', 'y'])" in str(caught.value)
    assert "collate_fn" in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [np.arange(4)[::-1], np.arange(4).astype(">i4"), np.arange(6).reshape(2, 3).T],
    ids=["backwards", "another byte order", "transposed"],
)
def test_users_own_arrays_become_tensors(array):
    array.flags.writeable = False
    assert torch_from_numpy({"x": array})["x"].tolist() == array.tolist()


def test_tensors_of_no_rows():
    empty = table_from_batch({"a": np.zeros((1, 2)), "b": [[1]], "c": [1]}, "f").slice(1)
    tensors = torch_from_table(empty)
    assert tensors["a"].shape == (0, 2)
    assert len(tensors["b"]) == 0
    assert tensors["c"].shape == (0,)


# ------------------------------------------------------------------ other processes
def python(code: str, data: bytes) -> str:
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode()


def test_a_process_that_only_unpickles_knows_the_types():
    table = table_from_batch({"x": [np.zeros((2, 2)), np.zeros(3)], "y": [1j, range(3)]}, "f")
    code = """
import pickle, sys
rows = pickle.loads(sys.stdin.buffer.read()).to_pylist()
print([row["x"].shape for row in rows], [row["y"] for row in rows])
"""
    assert python(code, pickle.dumps(table)) == "[(2, 2), (3,)] [1j, range(0, 3)]\n"


def test_a_process_that_reads_ipc_knows_the_types_once_it_has_imported_the_package():
    table = table_from_batch({"x": [np.zeros((2, 2)), np.zeros(3)], "y": [1j, range(3)]}, "f")
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    code = """
import sys
import minitrain.data.values
import pyarrow as pa
rows = pa.ipc.open_stream(sys.stdin.buffer.read()).read_all().to_pylist()
print([row["x"].shape for row in rows], [row["y"] for row in rows])
"""
    assert python(code, sink.getvalue()) == "[(2, 2), (3,)] [1j, range(0, 3)]\n"


def test_importing_it_imports_no_framework():
    code = "import sys, minitrain.data.values; print({'torch', 'pandas'} & sys.modules.keys())"
    assert python(code, b"") == "set()\n"


def test_classes_of_a_script_travel_with_their_objects():
    code = """
import pickle, sys
from minitrain.data.values import table_from_batch
class Point:
    x = 3
sys.stdout.buffer.write(pickle.dumps(table_from_batch({"p": [Point()]}, "f")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    point = pickle.loads(done.stdout).to_pylist()[0]["p"]
    assert point.x == 3


def test_arrays_and_lists_make_the_same_columns():
    assert array_from_list([np.zeros(2), np.zeros(2)]).equals(array_from_numpy(np.zeros((2, 2))))
    with pytest.raises(ValueError, match="single value"):
        array_from_numpy(np.array(1))


def test_numbers_and_bytes_are_converted_without_importing_pandas() -> None:
    """Pandas takes longer to import than everything else that a process of a pool needs."""
    code = """
import sys
import numpy as np
from minitrain.data import values
table = values.table_from_batch({"x": np.arange(6.0).reshape(3, 2), "y": np.arange(3)}, "it")
assert values.numpy_from_table(table.slice(1))["y"].tolist() == [1, 2]
assert values.numpy_from_table(table)["x"].shape == (3, 2)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
