"""How often a dataset is read to fit a chain, and that how it is read makes no difference."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.data.preprocessors import (
    Chain,
    Concatenator,
    CountVectorizer,
    LabelEncoder,
    MaxAbsScaler,
    MinMaxScaler,
    MultiHotEncoder,
    Normalizer,
    OneHotEncoder,
    PowerTransformer,
    RobustScaler,
    SimpleImputer,
    SklearnPreprocessor,
    StandardScaler,
    Tokenizer,
    UniformKBinsDiscretizer,
)
from minitrain.data.preprocessors.columns import numbers
from minitrain.data.preprocessors.fitting import Apply, Collect, Outline, Skip, plan_pass
from minitrain.data.preprocessors.statistics import Counts, Extremes, Moments, Values
from minitrain.exceptions import ColumnError, ConfigurationError, DataError
from tests.data.tables import dataset, in_parts

TABLE = pa.table(
    {
        "a": [1.0, None, 3.0, 8.0, 2.5, float("nan")],
        "b": [4, 5, 6, 7, 8, 9],
        "c": ["x", None, "y", "x", "z", "z"],
        "t": ["one two", "two", "", "one one", None, "three"],
        "y": ["no", "yes", "no", "no", "yes", "no"],
        "l": [["p", "q"], None, ["q"], ["p", "q"], [], None],
        "unused": range(6),
    }
)


def fitted_one_by_one(*steps):
    """Fit each step to what the ones before it made of the table."""
    table, done = TABLE, []
    for step in steps:
        done.append(step.fit(dataset(table)))
        table = step.transform_batch(table)
    return done


CASES = {
    "independent columns": (
        1,
        lambda: [
            StandardScaler(["a"]),
            MinMaxScaler(["b"]),
            OneHotEncoder(["c"]),
            LabelEncoder("y"),
        ],
    ),
    "new columns": (
        1,
        lambda: [StandardScaler(["b"], ["b2"]), MinMaxScaler(["b"]), Concatenator(["b", "b2"])],
    ),
    "stateless steps before": (
        1,
        lambda: [
            SimpleImputer(["a"], "constant", 0.5),
            PowerTransformer(["a", "b"], 0.5),
            Normalizer(["a", "b"]),
            StandardScaler(["a", "b"]),
            Tokenizer(["t"]),
            Concatenator(["a", "b"]),
        ],
    ),
    "mean, then a scaler": (1, lambda: [SimpleImputer(["a", "b"]), StandardScaler(["a", "b"])]),
    "mean, then least and greatest": (1, lambda: [SimpleImputer(["a"]), MinMaxScaler(["a"])]),
    "mean, then the absolute maximum": (1, lambda: [SimpleImputer(["a"]), MaxAbsScaler(["a"])]),
    "mean, then quantiles": (1, lambda: [SimpleImputer(["a"]), RobustScaler(["a"])]),
    "most frequent, then categories": (
        1,
        lambda: [
            SimpleImputer(["c"], "most_frequent"),
            OneHotEncoder(["c"], max_categories={"c": 2}),
        ],
    ),
    "an imputer to a new column that is then overwritten": (
        1,
        lambda: [
            SimpleImputer(["a"], output_columns=["a2"]),
            PowerTransformer(["a"], 2),
            StandardScaler(["a2", "a"]),
        ],
    ),
    "labels filled in": (
        1,
        lambda: [SimpleImputer(["c"], "most_frequent"), LabelEncoder("c")],
    ),
    "lists filled in": (
        1,
        lambda: [SimpleImputer(["l"], "most_frequent"), MultiHotEncoder(["l"])],
    ),
    "two steps after an imputer": (
        1,
        lambda: [
            SimpleImputer(["a"]),
            StandardScaler(["a"], ["s"]),
            MinMaxScaler(["a"], ["m"]),
        ],
    ),
    "a scaler of a scaler": (2, lambda: [StandardScaler(["a"]), MinMaxScaler(["a"])]),
    "three in a row": (
        3,
        lambda: [
            StandardScaler(["a"]),
            UniformKBinsDiscretizer(["a"], 3),
            OneHotEncoder(["a"]),
            StandardScaler(["b"]),
        ],
    ),
    "a stateless step between": (
        2,
        lambda: [SimpleImputer(["a"]), PowerTransformer(["a"], 0.5), StandardScaler(["a"])],
    ),
    "an imputer of an imputer": (
        1,
        lambda: [SimpleImputer(["c"], "most_frequent"), SimpleImputer(["c"], "most_frequent")],
    ),
    "what waits hides what it will overwrite": (
        2,
        lambda: [
            StandardScaler(["a"], ["n"]),
            Normalizer(["n", "b"]),
            MinMaxScaler(["n", "b"]),
            StandardScaler(["a"]),
        ],
    ),
    "tokens of texts filled in": (
        2,
        lambda: [SimpleImputer(["t"], "most_frequent"), CountVectorizer(["t"])],
    ),
}


@pytest.mark.parametrize(("passes", "steps"), CASES.values(), ids=CASES)
def test_a_chain_is_fitted_in_few_passes_to_the_same_as_step_by_step(passes, steps):
    reads = []
    chain = Chain(*steps()).fit(dataset(TABLE.slice(0, 2), TABLE.slice(2), reads=reads))
    assert len(reads) == passes
    for ours, expected in zip(chain.preprocessors, fitted_one_by_one(*steps()), strict=True):
        assert ours.stats_.keys() == expected.stats_.keys()
        for name, value in expected.stats_.items():
            same = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            assert ours.stats_[name] == same


NUMERIC = pa.table(
    {
        "a": [1.0, None, 3.0, 8.0, 2.5, float("nan")],
        "b": [4, 5, 6, None, 8, 9],
        "c": [0.5, -1.0, None, 7.0, 1.0, 3.0],
    }
)
STEPS = st.builds(
    lambda make, inputs, outputs: make(inputs, outputs[: len(inputs)]),
    st.sampled_from(
        [
            StandardScaler,
            MinMaxScaler,
            MaxAbsScaler,
            lambda i, o: RobustScaler(i, output_columns=o),
            lambda i, o: SimpleImputer(i, output_columns=o),
            lambda i, o: SimpleImputer(i, "most_frequent", output_columns=o),
            lambda i, o: SimpleImputer(i, "constant", 2.5, output_columns=o),
            lambda i, o: PowerTransformer(i, 0.5, output_columns=o),
        ]
    ),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True),
    st.lists(st.sampled_from("abc"), min_size=2, max_size=2, unique=True),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(STEPS, min_size=1, max_size=6))
def test_any_chain_is_fitted_to_the_same_as_step_by_step(steps):
    table, expected = NUMERIC, [copy.deepcopy(step) for step in steps]
    for step in expected:
        table = step.fit(dataset(table)).transform_batch(table)
    Chain(*steps).fit(in_parts(NUMERIC, 1, 4))
    for ours, theirs in zip(steps, expected, strict=True):
        assert ours.stats_.keys() == theirs.stats_.keys()
        for name, value in theirs.stats_.items():
            assert ours.stats_[name] == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_an_estimator_of_scikit_learn_waits_for_an_imputer():
    from sklearn.preprocessing import StandardScaler as Theirs

    reads = []
    chain = Chain(SimpleImputer(["a"]), SklearnPreprocessor(Theirs(), ["a"]))
    chain.fit(dataset(TABLE, reads=reads))
    assert len(reads) == 2
    result = chain.transform_batch(TABLE)["a"].to_numpy()
    expected = Chain(SimpleImputer(["a"]), StandardScaler(["a"])).fit(dataset(TABLE))
    np.testing.assert_allclose(result, expected.transform_batch(TABLE)["a"].to_numpy())


def test_only_the_columns_that_are_needed_are_read():
    reads = []
    chain = Chain(
        Tokenizer(["t"]),  # nobody learns from it
        SimpleImputer(["a"], output_columns=["filled"]),
        StandardScaler(["filled"]),
        UniformKBinsDiscretizer(["filled"], 2),
        LabelEncoder("y"),
    )
    chain.fit(dataset(TABLE, reads=reads))
    assert reads == [("a", "y"), ("a",)]


def test_chains_in_chains_are_fitted_as_one():
    reads = []
    chain = Chain(Chain(SimpleImputer(["a"])), Chain(StandardScaler(["a"]), MinMaxScaler(["b"])))
    chain.fit(dataset(TABLE, reads=reads))
    assert len(reads) == 1
    assert chain.fit_status() == "FITTED"


def test_fitting_does_not_use_up_an_epoch_of_the_dataset():
    ds = dataset(TABLE)
    StandardScaler(["a"]).fit(ds)
    assert ds._next_epoch == 0


def test_the_plan_of_a_pass_names_who_learns_and_what_is_read():
    steps = [
        Outline(("a",), ("f",), fills=True, takes_fills=True),
        Outline(("f",), ("s",), takes_fills=True),
        Outline(("s",), ("s",), takes_fills=True),
        Outline(("b",), ("b",), ready=True),
        Outline(("b",), ("c",), takes_fills=True),
        Outline(("c",), ("d",), ready=True),
    ]
    actions, needed = plan_pass(steps)
    assert actions == [Collect({}), Collect({"f": 0}), Skip(), Apply(), Collect({}), Skip()]
    assert needed == ["a", "b"]


COLUMNS = st.sampled_from(["a", "b", "c"])
OUTLINES = st.lists(
    st.builds(
        lambda inputs, outputs, ready, fills, takes: Outline(
            tuple(inputs), tuple(outputs[: len(inputs)]), ready, fills, takes
        ),
        st.lists(COLUMNS, min_size=1, max_size=2, unique=True),
        st.lists(COLUMNS, min_size=2, max_size=2, unique=True),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=200)
@given(OUTLINES)
def test_each_pass_fits_somebody_and_nobody_reads_what_is_not_known(steps):
    if all(step.ready for step in steps):
        return
    actions, needed = plan_pass(steps)
    assert any(isinstance(action, Collect) for action in actions)
    known = dict.fromkeys("abc", "raw")  # what the table of this pass holds
    for place, (step, action) in enumerate(zip(steps, actions, strict=True)):
        if isinstance(action, Collect):
            for name in step.inputs:
                assert known[name] == (action.filled.get(name, "raw"))
        if isinstance(action, Apply):
            assert {known[name] for name in step.inputs} <= {"raw"}
        unfilled = {
            output
            for name, output in zip(step.inputs, step.outputs, strict=True)
            if isinstance(action, Collect) and step.fills and name not in action.filled
        }
        for output in step.outputs:
            applied = isinstance(action, Apply)
            known[output] = place if output in unfilled else "raw" if applied else "unknown"
    assert set(needed) <= set("abc")


def partitions(rows):
    return st.lists(st.integers(0, rows), max_size=6)


VALUES = st.lists(
    st.one_of(st.none(), st.just(math.nan), st.floats(-1e6, 1e6), st.integers(-50, 50).map(float)),
    min_size=1,
    max_size=60,
)


def close(value, scale):
    return pytest.approx(value, rel=1e-9, abs=1e-9 * scale)


@settings(deadline=None, max_examples=50)
@given(st.data(), VALUES)
def test_numbers_in_any_parts_have_the_statistics_of_the_whole(data, values):
    table = pa.table({"x": pa.array(values, pa.float64())})
    parts = in_parts(table, *data.draw(partitions(len(values))))
    present = np.array([v for v in values if v is not None and not math.isnan(v)])
    scale = float(np.abs(present).max()) if len(present) else 0.0
    for make in (StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler):
        whole, cut = make(["x"]).fit(dataset(table)), make(["x"]).fit(parts)
        for name, value in whole.stats_.items():
            # A deviation that is all rounding is 0 in some parts and nearly so in others.
            rounding = name == "std(x)" and value is not None and value < 1e-7 * scale
            wide = scale * 1e3 if rounding else scale
            assert cut.stats_[name] == (None if value is None else close(value, wide))
    if len(present):
        stats = StandardScaler(["x"]).fit(parts).stats_
        assert stats["mean(x)"] == close(present.mean(), scale)
        assert stats["std(x)"] == pytest.approx(present.std(), rel=1e-7, abs=1e-7 * scale)
        quantiles = list(RobustScaler(["x"], (0.1, 0.7)).fit(parts).stats_.values())
        assert quantiles == close(np.quantile(present, [0.1, 0.5, 0.7]).tolist(), scale)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.lists(st.one_of(st.none(), st.sampled_from("abcdef")), max_size=60))
def test_categories_in_any_parts_are_those_of_the_whole(data, values):
    table = pa.table({"x": pa.array([*values, "a"], pa.string())})
    parts = in_parts(table, *data.draw(partitions(len(values))))
    for make in (
        lambda: OneHotEncoder(["x"], max_categories={"x": 3}),
        lambda: SimpleImputer(["x"], "most_frequent"),
        lambda: CountVectorizer(["x"], max_features=2),
    ):
        assert make().fit(parts) == make().fit(dataset(table))


@settings(deadline=None)
@given(VALUES, VALUES)
def test_each_statistic_takes_many_equal_values_as_if_they_had_come_one_by_one(values, more):
    column = pa.chunked_array([pa.array(values, pa.float64())])
    present = numbers(column, "x")
    value, times = 2.5, len(more)
    full = np.concatenate([present, np.full(times, value)])
    moments, extremes, all_values, counts = Moments(), Extremes(), Values(64), Counts()
    try:
        for statistic in (moments, extremes, all_values, counts):
            statistic.update(column, "x")
            statistic.fill(value, times)
            assert statistic.count == len(full)
        assert moments.mean == pytest.approx(full.mean(), rel=1e-9, abs=1e-3)
        assert moments.variance == pytest.approx(full.var(), rel=1e-9, abs=1e-3)
        assert (extremes.least, extremes.greatest) == (full.min(), full.max())
        assert all_values.quantiles([0.25]) == pytest.approx([np.quantile(full, 0.25)])
        assert counts.counts[value] == (full == value).sum()
    finally:
        all_values.close()


def test_values_that_are_kept_do_not_keep_the_table_they_come_from():
    values = Values(1000)
    values.update(pa.chunked_array([pa.array([1.0, 2.0])]), "x")
    assert values.parts[0].base is None


def test_large_means_do_not_swallow_small_deviations():
    values = 1e9 + np.random.default_rng(0).normal(size=10_000)
    scaler = StandardScaler(["x"]).fit(in_parts(pa.table({"x": values}), *range(100, 9_000, 700)))
    assert scaler.stats_["std(x)"] == pytest.approx(values.std(), rel=1e-7)


def test_a_dataset_without_rows_is_refused():
    with pytest.raises(DataError, match=r"StandardScaler cannot be fitted: the dataset has no"):
        StandardScaler(["a"]).fit(dataset(TABLE.slice(0, 0)))


def test_a_column_that_is_not_there_is_named_with_who_needs_it():
    with pytest.raises(
        ColumnError, match=r"MinMaxScaler\.fit: there is no column 'unuse'.*'unused'"
    ):
        Chain(StandardScaler(["a"]), MinMaxScaler(["unuse"])).fit(dataset(TABLE))


@pytest.mark.parametrize("others", [[], ["b"]])
def test_a_column_that_an_imputer_makes_need_not_be_there(others):
    chain = Chain(SimpleImputer(["p"], "constant", 2.0), StandardScaler(["p", *others]))
    chain.fit(dataset(TABLE))
    assert chain.preprocessors[1].stats_["mean(p)"] == 2.0
    with pytest.raises(ColumnError, match=r"StandardScaler\.fit: there is no column 'p'"):
        Chain(StandardScaler(["p"], ["q"]), *chain.preprocessors[:1], MinMaxScaler(["p"])).fit(
            dataset(TABLE)
        )


@pytest.mark.parametrize(
    "steps",
    [
        [Concatenator(["a", "b"], "x"), StandardScaler(["b"])],
        [Chain(Concatenator(["a", "b"], "x")), Chain(StandardScaler(["b"]))],
    ],
)
def test_a_column_that_a_step_drops_cannot_be_read_later(steps):
    with pytest.raises(ConfigurationError, match="StandardScaler reads column 'b', which Concaten"):
        Chain(*steps)
    again = Chain(Concatenator(["a", "b"], "b"), Concatenator(["b"], flatten=True))
    assert again.get_output_columns() == ["concat_out"]
    Chain(Concatenator(["a", "b"]), SimpleImputer(["b"], "constant", 0), StandardScaler(["b"]))


def test_files_with_values_are_closed_when_fitting_fails(monkeypatch):
    closed = []
    monkeypatch.setattr(Values, "close", lambda self: closed.append(self))
    with pytest.raises(DataError):
        Chain(RobustScaler(["b"]), StandardScaler(["c"])).fit(dataset(TABLE))
    assert len(closed) == 1
