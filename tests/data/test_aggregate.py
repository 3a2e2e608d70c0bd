"""Aggregations of all rows, against pandas and numpy."""

import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.data import aggregate as aggregate_module
from minitrain.data.aggregate import (
    AbsMax,
    Count,
    Max,
    Mean,
    Min,
    Quantile,
    Std,
    Sum,
    Unique,
    aggregated,
)
from minitrain.data.plans.groups import Groups
from minitrain.exceptions import ColumnError, ConfigurationError, DataError
from tests.data.slices import dataset_of, dataset_of_slices

floats = st.one_of(st.none(), st.floats(-1e9, 1e9))
tables_of_floats = st.lists(st.lists(floats, max_size=6), min_size=1, max_size=5)


def close(ours: float | None, theirs: float) -> bool:
    if ours is None or math.isnan(ours):
        return bool(pd.isna(theirs))
    return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)


@settings(deadline=None, max_examples=60)
@given(tables_of_floats)
def test_any_division_into_tables_gives_what_pandas_gives_for_all(parts):
    tables = [pa.table({"x": pa.array(part, pa.float64())}) for part in parts if part]
    series = pd.Series([value for part in parts for value in part], dtype="float64")
    functions = (Count("x"), Sum("x"), Min("x"), Max("x"), Mean("x"), Std("x"), AbsMax("x"))
    functions += (Quantile("x", q=0.25), Count("x", ignore_nulls=True, alias_name="valid"))
    made = aggregated(iter(tables), (), functions)
    if made is None:
        assert series.empty
        return
    (row,) = made.to_pylist()
    assert row["count(x)"] == len(series)
    assert row["valid"] == series.count()
    assert close(row["sum(x)"], series.sum(min_count=1))
    assert close(row["min(x)"], series.min())
    assert close(row["max(x)"], series.max())
    assert close(row["mean(x)"], series.mean())
    assert close(row["abs_max(x)"], series.abs().max())
    assert close(row["quantile(x)"], series.quantile(0.25))
    deviation = series.std()
    assert close(row["std(x)"], deviation) or abs(row["std(x)"] - deviation) < 1e-6


def test_a_deviation_far_from_zero_loses_no_digits():
    values = 1e9 + np.random.default_rng(0).normal(size=3000)
    result = dataset_of(pa.table({"x": values}), 7).std("x")
    assert result == pytest.approx(values.std(ddof=1), rel=1e-7)


def test_one_column_gives_a_value_and_several_a_dict():
    dataset = dataset_of(pa.table({"a": [1, 2, 3, 4], "b": [0.5, None, 1.5, 1.0]}))
    assert dataset.sum("a") == 10
    assert dataset.mean(["a", "b"]) == {"mean(a)": 2.5, "mean(b)": 1.0}
    assert dataset.max() == {"max(a)": 4, "max(b)": 1.5}
    assert dataset.std("a", ddof=0) == pytest.approx(np.std([1, 2, 3, 4]))
    assert dataset.select_columns("a").min() == 1


@pytest.mark.parametrize("method", ["sum", "min", "max", "mean", "std"])
def test_a_null_counts_if_it_is_not_ignored(method):
    tables = [[1.0, 2.0], [None, None], [3.0, None], [4.0]]
    dataset = dataset_of_slices([pa.table({"x": pa.array(t, pa.float64())}) for t in tables])
    assert getattr(dataset, method)("x", ignore_nulls=False) is None
    expected = getattr(pd.Series([1.0, 2.0, 3.0, 4.0]), method)()
    assert getattr(dataset, method)("x") == pytest.approx(expected)


def test_all_nulls_and_no_rows_give_none():
    nulls = dataset_of(pa.table({"x": pa.nulls(4, pa.int64())}))
    assert [nulls.sum("x"), nulls.mean("x"), nulls.std("x"), nulls.min("x")] == [None] * 4
    untyped = dataset_of(pa.table({"x": pa.nulls(4)}))
    kinds = (Sum, Min, Max, Mean, Std, AbsMax, Quantile)
    assert list(untyped.aggregate(*(kind("x") for kind in kinds)).values()) == [None] * 7
    nothing = dataset_of(pa.table({"x": pa.array([], pa.int64())}))
    assert nothing.sum("x") is None
    assert nothing.unique("x") == []
    assert nothing.aggregate(Count(), Unique("x")) == {"count()": 0, "unique(x)": []}


def test_types_stay_exact():
    big = 2**62 - 1
    dataset = dataset_of(
        pa.table(
            {
                "i": [big, 2, -5, None],
                "d": [Decimal("0.10"), Decimal("0.20"), None, Decimal("0.30")],
                "t": pa.array([5, 1, None, 9], pa.timestamp("s")),
                "s": ["b", None, "a", "ab"],
                "f": [True, False, None, True],
            }
        )
    )
    assert dataset.sum("i") == big - 3
    assert dataset.sum("d") == Decimal("0.60")
    assert dataset.min("t") == pd.Timestamp(1, unit="s")
    assert dataset.max("s") == "b"
    assert dataset.sum("f") == 2
    assert dataset.mean("f") == pytest.approx(2 / 3)


FULL = Decimal("9" * 38)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(
    ("values", "mean", "total"),
    [
        ([1_700_000_000_000_000_000] * 10, 1.7e18, Decimal(17 * 10**18)),
        ([2**62] * 4, 2.0**62, Decimal(2**64)),
        ([2**62] * 2, 2.0**62, 2**63),
        ([2**62] * 4 + [-(2**62)] * 3, 2**62 / 7, 2**62),
        ([-(2**63)] * 3, -(2.0**63), Decimal(-3 * 2**63)),
        ([-(2**63), 2**63 - 1, None], -0.5, -1),
        (pa.array([2**63] * 4, pa.uint64()), 2.0**63, Decimal(2**65)),
        (pa.array([127, 127, 127], pa.int8()), 127.0, 381),
        ([FULL] * 3, 1e38, Decimal("2" + "9" * 37 + "7")),
        ([Decimal("0.1")] * 10, 0.1, Decimal("1.0")),
        ([Decimal("1.5"), Decimal("2.25"), None], 1.875, Decimal("3.75")),
    ],
)
def test_sums_do_not_wrap_around(values, mean, total, pieces):
    table = pa.table({"x": values, "k": [1] * len(values)})
    dataset = dataset_of(table, pieces)
    assert dataset.mean("x") == mean
    assert dataset.sum("x") == total
    assert dataset.summary()["x"]["mean"] == mean
    (row,) = dataset.groupby("k").aggregate(Mean("x"), Sum("x")).take_all()
    assert row == {"k": 1, "mean(x)": mean, "sum(x)": total}


def test_unique_keeps_the_order_of_appearance_and_null():
    table = pa.table({"s": ["b", "a", "b", None, "c", "a", None]})
    assert dataset_of(table, 4).unique("s") == ["b", "a", None, "c"]
    assert dataset_of(table, 4).aggregate(Unique("s")) == {"unique(s)": ["b", "a", "c"]}
    coded = table.set_column(0, "s", table.column(0).dictionary_encode())
    assert dataset_of(coded, 2).unique("s") == ["b", "a", None, "c"]


def test_types_of_sums_stay():
    columns = {"a": pa.array([1, 2], pa.int8()), "b": pa.array([1, 2], pa.uint8())}
    columns |= {"c": [True, False], "d": [Decimal("0.10"), Decimal("0.20")], "e": [0.5, 1.5]}
    table = pa.table({**columns, "k": [1, 1]})
    types = dataset_of(table, 2).groupby("k").sum().to_arrow().schema.types[1:]
    assert types == [pa.int64(), pa.uint64(), pa.uint64(), pa.decimal128(38, 2), pa.float64()]


def test_blocks_of_several_types_have_one_sum_and_mean():
    parts = [
        pa.array([2**62] * 4),
        pa.array([2**63], pa.uint64()),
        pa.nulls(2),
        pa.array([Decimal("0.5")]),
        pa.array([Decimal("0.25")]),
    ]
    exact = dataset_of_slices([pa.table({"x": part}) for part in parts])
    assert exact.sum("x") == 2**64 + 2**63 + Decimal("0.75")
    assert exact.mean("x") == (2**64 + 2**63) / 7
    parts.append(pa.array([1.0]))
    assert dataset_of_slices([pa.table({"x": part}) for part in parts]).mean("x") == 3 * 2**60


def test_a_deviation_of_decimals_is_that_of_their_values():
    values = [Decimal(text) for text in ("1.00", "1.01", "1.04", "1.02", "1.03")]
    expected = np.std([float(value) for value in values], ddof=1)
    for pieces in (1, 3):
        result = dataset_of(pa.table({"x": values}), pieces).std("x")
        assert result == pytest.approx(expected, rel=1e-9)


def test_columns_and_blocks_of_nulls_have_a_place_in_a_deviation():
    assert dataset_of(pa.table({"x": pa.nulls(4)}), 2).std("x", ignore_nulls=False) is None
    parts = [pa.nulls(2), pa.array([1.0, 2.0, 4.0]), pa.nulls(1)]
    dataset = dataset_of_slices([pa.table({"x": part}) for part in parts])
    assert dataset.std("x") == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert dataset.std("x", ignore_nulls=False) is None


def test_the_absolute_of_the_smallest_integer_is_positive():
    values = pa.array([-128, 5, None], pa.int8())
    assert dataset_of(pa.table({"x": values})).aggregate(AbsMax("x")) == {"abs_max(x)": 128}
    smallest = dataset_of(pa.table({"x": [-(2**63)]}))
    with pytest.raises(DataError, match=r"abs_max\(x\) cannot be computed: column 'x' is int64"):
        smallest.aggregate(AbsMax("x"))


@pytest.mark.campaign
def test_partial_results_are_merged_before_they_are_many(monkeypatch):
    monkeypatch.setattr(aggregate_module, "_MERGED_ROWS", 10)
    merges = []
    merged = aggregate_module._merged

    def counted(held, keys, functions):
        made = merged(held, keys, functions)
        merges.append(made.num_rows)
        return made

    monkeypatch.setattr(aggregate_module, "_merged", counted)
    keys = np.arange(1000) % 3
    values = np.arange(1000.0)
    tables = [pa.table({"k": keys[i : i + 5], "x": values[i : i + 5]}) for i in range(0, 1000, 5)]
    functions = (Mean("x"), Std("x"), Quantile("x"), Unique("k"), Count())
    made = aggregated(iter(tables), ("k",), functions).to_pandas()
    assert len(merges) > 20
    assert max(merges) == 3
    grouped = pd.DataFrame({"k": keys, "x": values}).groupby("k")["x"]
    np.testing.assert_allclose(made["mean(x)"], grouped.mean())
    np.testing.assert_allclose(made["std(x)"], grouped.std())
    np.testing.assert_allclose(made["quantile(x)"], grouped.median())
    assert [list(u) for u in made["unique(k)"]] == [[0], [1], [2]]


def test_summary_describes_numbers_only():
    table = pa.table({"a": [1, 2, None, 4], "s": list("abcd"), "b": [0.5, 1.5, 2.5, 3.5]})
    summary = dataset_of(table).summary()
    described = table.select(["a", "b"]).to_pandas().describe()
    assert list(summary.columns) == ["a", "b"]
    pd.testing.assert_frame_equal(summary.astype(float), described.loc[summary.index])


def test_everything_at_once():
    table = pa.table({"a": range(250), "s": [str(i) for i in range(250)]})
    dataset = dataset_of(table)
    assert dataset.to_arrow().equals(table)
    pd.testing.assert_frame_equal(dataset.to_pandas(), table.to_pandas())
    assert dataset.to_pandas(limit=250).shape == (250, 2)
    with pytest.raises(ValueError, match="more than 249 rows"):
        dataset.to_pandas(limit=249)
    assert dataset.size_bytes() == pytest.approx(table.nbytes, rel=0.1)
    empty = dataset_of(table.slice(0, 0)).to_pandas()
    assert list(empty.columns) == ["a", "s"]
    assert empty.empty


def test_what_cannot_be_computed_is_said():
    dataset = dataset_of(pa.table({"age": [1, 2, 3], "name": ["a", "b", "c"]}))
    with pytest.raises(ColumnError, match=r"^mean\(agee\): there is no column .*mean 'age'"):
        dataset_of(pa.table({"age": [1]})).mean("agee")
    with pytest.raises(ColumnError, match="no column 'agee'; did you mean 'age'"):
        dataset.sum("agee")
    with pytest.raises(DataError, match=r"sum\(name\) cannot be computed: column 'name' is string"):
        dataset.sum("name")
    with pytest.raises(ConfigurationError, match="two results are called 'sum"):
        dataset.aggregate(Sum("age"), Sum("age", ignore_nulls=False))
    with pytest.raises(ConfigurationError, match="at least one"):
        dataset.aggregate()
    with pytest.raises(TypeError, match="is no AggregateFn"):
        dataset.aggregate("sum")
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        Quantile("age", q=2)
    with pytest.raises(ConfigurationError, match=r"sum\(\): name a column"):
        dataset.aggregate(Sum(None))


@pytest.mark.parametrize(
    "values", [["a", "b"], [True, False], pa.array([1, 2], pa.timestamp("s"))], ids=str
)
def test_quantiles_of_what_are_no_numbers_are_refused(values):
    with pytest.raises(DataError, match=r"quantile\(x\) cannot be computed: column 'x' is"):
        dataset_of(pa.table({"x": values})).aggregate(Quantile("x"))


def test_values_that_do_not_fit_together_are_said():
    parts = [pa.table({"x": ["a"]}), pa.table({"x": [1]})]
    with pytest.raises(DataError, match=r"min\(x\) cannot be computed: column 'x' is .*object"):
        dataset_of_slices(parts).min("x")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(0, 2)),
            st.one_of(st.none(), st.sampled_from(["", "a"])),
        ),
        max_size=12,
    )
)
def test_groups_are_numbered_in_order_of_appearance(rows):
    keys, texts = zip(*rows, strict=True) if rows else ((), ())
    table = pa.table({"k": pa.array(keys, pa.int64()), "s": pa.array(texts, pa.string())})
    groups = Groups.of(table, ["k", "s"])
    known = list(dict.fromkeys(rows))
    assert [(row["k"], row["s"]) for row in groups.keys.to_pylist()] == known
    assert groups.ids.tolist() == [known.index(row) for row in rows]
