"""Groups of rows: aggregations against pandas, and functions that see whole groups."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.data.aggregate import Count, Max, Mean
from minitrain.data.context import DataContext
from minitrain.exceptions import ColumnError, ConfigurationError, DataError, TransformError
from tests.data.slices import dataset_of, dataset_of_slices

rows = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-2, 2)),
        st.one_of(st.none(), st.sampled_from(["", "a", "b"])),
        st.one_of(st.none(), st.floats(-100, 100)),
    ),
    min_size=1,
    max_size=30,
)


def table_of(some):
    keys, names, values = zip(*some, strict=True)
    return pa.table(
        {
            "k": pa.array(keys, pa.int64()),
            "s": pa.array(names, pa.string()),
            "x": pa.array(values, pa.float64()),
        }
    )


@settings(deadline=None, max_examples=40)
@given(rows, st.integers(1, 4))
def test_aggregations_of_groups_are_those_of_pandas(some, pieces):
    table = table_of(some)
    grouped = dataset_of(table, pieces).groupby(["k", "s"])
    made = grouped.aggregate(Mean("x"), Max("x"), Count()).to_arrow()
    groups: dict = {}
    for k, s, x in some:
        groups.setdefault((k, s), []).append(x)

    def place(key):
        return [(value is None, value if value is not None else 0) for value in key]

    keys = sorted(groups, key=place)
    theirs = [pd.Series(groups[key], dtype="float64") for key in keys]
    assert made.column_names == ["k", "s", "mean(x)", "max(x)", "count()"]
    assert [(row["k"], row["s"]) for row in made.to_pylist()] == keys
    assert made.column("count()").to_pylist() == [len(one) for one in theirs]
    for name in ("mean", "max"):
        ours = made.column(f"{name}(x)").to_pandas()
        expected = [getattr(one, name)() for one in theirs]
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_the_usual_ones_have_methods():
    table = pa.table({"k": [1, 2, 1, 2], "x": [1.0, 2.0, 3.0, None], "y": [1, 1, 2, 5]})
    grouped = dataset_of(table).groupby("k")
    assert grouped.count().take_all() == [{"k": 1, "count()": 2}, {"k": 2, "count()": 2}]
    assert grouped.sum("y").take_all() == [{"k": 1, "sum(y)": 3}, {"k": 2, "sum(y)": 6}]
    assert grouped.min().take_all() == [
        {"k": 1, "min(x)": 1.0, "min(y)": 1},
        {"k": 2, "min(x)": 2.0, "min(y)": 1},
    ]
    assert grouped.mean("x", ignore_nulls=False).take_all()[1] == {"k": 2, "mean(x)": None}
    assert grouped.std("y", ddof=0).take_all()[1] == {"k": 2, "std(y)": 2.0}
    assert grouped.max(["x"]).schema().names == ["k", "max(x)"]


def test_nothing_is_read_before_it_is_asked_for():
    calls = []
    dataset = dataset_of(pa.table({"k": [1, 2]})).map_batches(lambda b: calls.append(1) or b)
    grouped = dataset.groupby("k").count()
    mapped = dataset.groupby("k").map_groups(lambda group: group)
    assert not calls
    assert "groupby(k).aggregate(count())" in grouped.explain()
    assert "groupby(k)" in mapped.explain()


def test_zero_and_minus_zero_are_one_group_and_nan_is_one():
    table = pa.table({"k": [0.0, float("nan"), -0.0, 0.0, float("nan"), None, -0.0]})
    counts = dataset_of(table).groupby("k").count().to_arrow().column("count()").to_pylist()
    assert counts == [4, 2, 1]
    groups = dataset_of(table).groupby("k").map_groups(lambda g: {"n": [len(g["k"])]})
    assert [row["n"] for row in groups.take_all()] == [4, 2, 1]


@pytest.mark.parametrize("kind", ["float64", "float32", "float16"])
def test_nan_of_either_sign_is_one(kind):
    values = np.array([np.nan, -np.nan, np.nan, 1.0, -np.nan], kind)
    dataset = dataset_of(pa.table({"k": values, "row": range(5)}), 2)
    assert dataset.groupby("k").count().to_arrow().column("count()").to_pylist() == [1, 4]
    unique = dataset.unique("k")
    assert len(unique) == 2
    assert unique[1] == 1
    groups = dataset.groupby("k").map_groups(lambda g: {"rows": [list(g["row"])]}).take_all()
    assert [list(row["rows"]) for row in groups] == [[3], [0, 1, 2, 4]]


def test_half_floats_can_be_keys():
    table = pa.table({"k": pa.array(np.array([1.5, 0.5, 1.5], "float16"))})
    counts = dataset_of(table).groupby("k").count().take_all()
    assert counts == [{"k": 0.5, "count()": 1}, {"k": 1.5, "count()": 2}]
    assert [row["k"] for row in dataset_of(table).sort("k").take_all()] == [0.5, 1.5, 1.5]


def test_dictionaries_can_be_keys():
    table = pa.table({"k": pa.array(["b", "a", None, "b"]).dictionary_encode()})
    assert dataset_of(table).groupby("k").count().take_all() == [
        {"k": "a", "count()": 1},
        {"k": "b", "count()": 2},
        {"k": None, "count()": 1},
    ]
    sizes = dataset_of(table).groupby("k").map_groups(lambda g: {"n": [len(g["k"])]})
    assert [row["n"] for row in sizes.take_all()] == [1, 2, 1]


def test_zeros_and_nan_in_a_dictionary_are_one_each():
    indices = pa.array([0, 1, 2, 3, 0])
    dictionary = pa.array(np.array([0.0, -0.0, np.nan, -np.nan]))
    table = pa.table({"k": pa.DictionaryArray.from_arrays(indices, dictionary)})
    counts = dataset_of(table).groupby("k").count().to_arrow()
    assert counts.column("count()").to_pylist() == [3, 2]


@pytest.mark.parametrize("name", ["", "_list", "id", "value", ".a", "[0]", "key 1"])
def test_columns_of_any_name_can_be_keys(name):
    dataset = dataset_of(pa.table({name: [2, 1, 2], "x": [1, 2, 3]}), 2)
    expected = [{name: 1, "sum(x)": 2}, {name: 2, "sum(x)": 4}]
    assert dataset.groupby(name).sum("x").take_all() == expected
    assert dataset.groupby([name, "x"]).count().count() == 3
    assert [row[name] for row in dataset.sort(name).take_all()] == [1, 2, 2]
    sizes = dataset.groupby(name).map_groups(lambda g: {"n": [len(g["x"])]})
    assert [row["n"] for row in sizes.take_all()] == [1, 2]
    assert dataset.unique(name) == [2, 1]


def test_nothing_of_unknown_columns_has_no_groups():
    nothing = dataset_of(pa.table({"k": [1, 2]})).map_batches(lambda batch: batch)
    nothing = nothing.filter(lambda row: False)
    assert nothing.groupby("k").sum().take_all() == []
    assert nothing.groupby("k").mean("x").take_all() == []


def test_keys_of_several_types_are_refused():
    dataset = dataset_of_slices([pa.table({"k": ["a"]}), pa.table({"k": [1]})])
    with pytest.raises(DataError, match=r"count\(\): rows cannot be grouped by that: 'k' is "):
        dataset.groupby("k").count().take_all()
    with pytest.raises(DataError, match="k"):
        dataset.groupby("k").map_groups(lambda group: group).take_all()


@settings(deadline=None, max_examples=25)
@given(rows, st.integers(1, 4), st.sampled_from([1, 64, 8 << 20]))
def test_a_function_sees_each_group_once_and_whole(some, pieces, table_bytes):
    context = DataContext.get_current()
    before, context.target_table_bytes = context.target_table_bytes, table_bytes
    try:
        table = table_of(some).append_column("row", pa.array(range(len(some))))

        def listed(group):
            return {"k": group["k"][:1], "rows": [group["row"].to_pylist()]}

        made = dataset_of(table, pieces).groupby("k").map_groups(listed, batch_format="pyarrow")
        got = [(row["k"], list(row["rows"])) for row in made.take_all()]
    finally:
        context.target_table_bytes = before
    keys = table.column("k").to_pylist()
    order = sorted({key for key in keys if key is not None}) + ([None] if None in keys else [])
    assert got == [(key, [i for i, k in enumerate(keys) if k == key]) for key in order]


def test_a_function_may_return_any_batch():
    dataset = dataset_of(pa.table({"k": ["a", "b", "a"], "x": [1, 2, 3]}))

    def scaled(frame, factor, offset=0):
        frame["x"] = frame["x"] * factor + offset
        return frame

    made = dataset.groupby("k").map_groups(
        scaled, batch_format="pandas", fn_args=(2,), fn_kwargs={"offset": 1}
    )
    assert made.take_all() == [{"k": "a", "x": 3}, {"k": "a", "x": 7}, {"k": "b", "x": 5}]

    def one_by_one(group):
        for index in range(len(group["x"])):
            yield {"x": group["x"][index : index + 1]}

    assert [row["x"] for row in dataset.groupby("k").map_groups(one_by_one).take_all()] == [1, 3, 2]
    everything = dataset.groupby(None).map_groups(lambda group: {"n": [len(group["x"])]})
    assert everything.take_all() == [{"n": 3}]
    assert dataset.groupby(None).sum("x").take_all() == [{"sum(x)": 6}]


@pytest.mark.campaign
def test_groups_go_to_a_pool_of_processes():
    dataset = dataset_of(pa.table({"k": [3, 1, 2] * 5, "x": range(15)}))
    made = dataset.groupby("k").map_groups(
        lambda group: {"k": group["k"][:1], "sum": [group["x"].sum()], "pid": [os.getpid()]},
        concurrency=2,
    )
    made_rows = made.take_all()
    assert [(row["k"], row["sum"]) for row in made_rows] == [(1, 35), (2, 40), (3, 30)]
    assert os.getpid() not in {row["pid"] for row in made_rows}


def test_a_group_without_a_result_gives_no_row():
    dataset = dataset_of(pa.table({"k": [1, 2, 3]}))
    made = dataset.groupby("k").map_groups(
        lambda group: {"k": group["k"][:0] if group["k"][0] == 2 else group["k"]}
    )
    assert [row["k"] for row in made.take_all()] == [1, 3]
    nothing = dataset_of(pa.table({"k": pa.array([], pa.int64())}))
    assert nothing.groupby("k").map_groups(lambda group: group).take_all() == []
    assert nothing.groupby("k").count().take_all() == []


def test_what_goes_wrong_names_the_group():
    dataset = dataset_of(pa.table({"k": [1, 2, 2], "x": [1, 0, 0]}))

    def fails(group):
        if not group["x"].any():
            raise ZeroDivisionError("no x")
        return group

    with pytest.raises(TransformError, match=r"map_groups\(fails\) raised ZeroDivisionError") as e:
        dataset.groupby("k").map_groups(fails).take_all()
    assert "in the group {'k': 2}" in e.value.__cause__.__notes__
    with pytest.raises(TransformError, match="returned a list, not a batch"):
        dataset.groupby("k").map_groups(lambda group: [1]).take_all()
    with pytest.raises(ColumnError, match="did you mean 'k'"):
        dataset.groupby("kk")
    with pytest.raises(ColumnError, match=r"groupby\(k\): there is no column 'xx'"):
        dataset.groupby("k").sum("xx")
    with pytest.raises(ConfigurationError, match="'k' is a key and a result; use alias_name"):
        dataset.groupby("k").aggregate(Mean("x", alias_name="k"))
    with pytest.raises(ConfigurationError, match="did you mean 'pandas'"):
        dataset.groupby("k").map_groups(fails, batch_format="panda")
    with pytest.raises(TypeError, match="is no function"):
        dataset.groupby("k").map_groups("fails")
