"""What all preprocessors do: being fitted, compared, printed, written down, given batches."""

from __future__ import annotations

import copy
import datetime
import decimal
import json
import math
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitrain.data.preprocessors as package
from minitrain import Checkpoint
from minitrain.data.preprocessors import (
    Categorizer,
    Chain,
    Concatenator,
    CountVectorizer,
    CustomKBinsDiscretizer,
    FeatureHasher,
    HashingVectorizer,
    LabelEncoder,
    MaxAbsScaler,
    MinMaxScaler,
    MultiHotEncoder,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    Preprocessor,
    PreprocessorNotFittedException,
    RobustScaler,
    SimpleImputer,
    SklearnPreprocessor,
    StandardScaler,
    Tokenizer,
    TorchVisionPreprocessor,
    UniformKBinsDiscretizer,
)
from minitrain.data.preprocessors.encoding import decode, encode
from minitrain.exceptions import ColumnError, ConfigurationError, MinitrainError, TransformError
from tests.data.tables import columns_of, dataset

TABLE = pa.table(
    {
        "a": [1.0, 2.0, 4.0],
        "b": [3, -1, 5],
        "c": ["x", "y", "x"],
        "l": [["p", "q"], [], ["q"]],
        "t": ["one two", "two", "three two"],
        "i": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((3, 2, 2), np.float32)),
    }
)


def splits_at_commas(text):
    return text.split(",")


def doubles(tensor):
    return tensor * 2


def estimator():
    from sklearn.preprocessing import StandardScaler as Theirs

    return Theirs()


MAKERS = {
    "Categorizer": lambda: Categorizer(["c"], output_columns=["k"]),
    "Categorizer with dtypes": lambda: Categorizer(
        ["c"], {"c": pd.CategoricalDtype(["y", "x"], ordered=True)}
    ),
    "Chain": lambda: Chain(
        SimpleImputer(["a"]),
        Chain(StandardScaler(["a", "b"]), OrdinalEncoder(["c"])),
        Concatenator(["a", "b", "c"], dtype=np.float32),
    ),
    "Concatenator": lambda: Concatenator(["a", "b"], "v", np.float32),
    "CountVectorizer": lambda: CountVectorizer(["t"], max_features=2),
    "CustomKBinsDiscretizer": lambda: CustomKBinsDiscretizer(["a"], [0, 2.5, 5], dtypes={}),
    "FeatureHasher": lambda: FeatureHasher(["a", "b"], 4, "h"),
    "HashingVectorizer": lambda: HashingVectorizer(["t"], 4, splits_at_commas),
    "LabelEncoder": lambda: LabelEncoder("c", output_column="k"),
    "MaxAbsScaler": lambda: MaxAbsScaler(["a"]),
    "MinMaxScaler": lambda: MinMaxScaler(["a"], ["z"]),
    "MultiHotEncoder": lambda: MultiHotEncoder(["l"], max_categories={"l": 1}),
    "Normalizer": lambda: Normalizer(["a", "b"], "max"),
    "OneHotEncoder": lambda: OneHotEncoder(["c", "b"], output_columns=["d", "e"]),
    "OrdinalEncoder": lambda: OrdinalEncoder(["l"], encode_lists=False),
    "PowerTransformer": lambda: PowerTransformer(["a"], 0.5, "box-cox"),
    "RobustScaler": lambda: RobustScaler(["a", "b"], (0.1, 0.8)),
    "SimpleImputer": lambda: SimpleImputer(["c"], "most_frequent"),
    "SklearnPreprocessor": lambda: SklearnPreprocessor(estimator(), ["a", "b"]),
    "StandardScaler": lambda: StandardScaler(["a", "b"]),
    "Tokenizer": lambda: Tokenizer(["t"]),
    "TorchVisionPreprocessor": lambda: TorchVisionPreprocessor(["i"], doubles),
    "UniformKBinsDiscretizer": lambda: UniformKBinsDiscretizer(["a"], {"a": 2}, right=False),
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request):
    return request.param


def test_each_preprocessor_is_tested_here():
    tested = {type(maker()).__name__ for maker in MAKERS.values()}
    others = {"FitStatus", "Preprocessor", "PreprocessorNotFittedException"}
    assert tested == set(package.__all__) - others


def test_it_must_be_fitted_first_and_then_says_that_it_is(make):
    preprocessor = make()
    if preprocessor.fit_status() == Preprocessor.FitStatus.NOT_FITTABLE:
        assert preprocessor.fit(dataset(TABLE)) is preprocessor
        assert preprocessor.fit_status() == "NOT_FITTABLE"
        assert not preprocessor.has_stats()
        return
    assert preprocessor.fit_status() == Preprocessor.FitStatus.NOT_FITTED
    assert not preprocessor.has_stats()
    for method in (preprocessor.transform, preprocessor.transform_batch):
        with pytest.raises(PreprocessorNotFittedException, match=r"call fit\(\) before transform"):
            method(dataset(TABLE) if method == preprocessor.transform else TABLE)
    assert preprocessor.fit(dataset(TABLE)) is preprocessor
    assert preprocessor.fit_status() == Preprocessor.FitStatus.FITTED
    assert preprocessor.has_stats()


def test_not_being_fitted_is_a_runtime_error_and_one_of_ours():
    assert issubclass(PreprocessorNotFittedException, RuntimeError)
    assert issubclass(PreprocessorNotFittedException, MinitrainError)


def test_what_is_written_down_is_read_back_equal_and_does_the_same(make):
    preprocessor = make()
    assert Preprocessor.deserialize(preprocessor.serialize()) == preprocessor
    preprocessor.fit(dataset(TABLE))
    again = Preprocessor.deserialize(preprocessor.serialize())
    assert type(again) is type(preprocessor)
    assert again == preprocessor
    assert repr(again) == repr(preprocessor)
    assert again.fit_status() == preprocessor.fit_status()
    assert again.transform_batch(TABLE).equals(preprocessor.transform_batch(TABLE))
    json.loads(preprocessor.serialize(), parse_constant=pytest.fail)  # neither NaN nor Infinity


def test_fitted_and_not_fitted_are_not_equal(make):
    fitted = make().fit(dataset(TABLE))
    assert make() == make()
    assert (fitted == make()) == (fitted.fit_status() == "NOT_FITTABLE")
    assert fitted == make().fit(dataset(TABLE))
    assert fitted == pickle.loads(pickle.dumps(fitted)) == copy.deepcopy(fitted)
    assert fitted != "something else"


def test_all_kinds_of_batches_and_datasets_give_the_same_and_stay_what_they_are(make):
    preprocessor = make().fit(dataset(TABLE))
    before = {name: TABLE[name].to_pylist() for name in TABLE.column_names}
    table = preprocessor.transform_batch(TABLE)
    outputs = preprocessor.get_output_columns()
    assert set(outputs) <= set(table.column_names)
    assert before == {name: TABLE[name].to_pylist() for name in TABLE.column_names}

    ds = dataset(TABLE.slice(0, 1), TABLE.slice(1))
    assert columns_of(preprocessor.transform(ds)).keys() == set(table.column_names)
    assert [str(columns_of(preprocessor.transform(ds))[name]) for name in outputs] == [
        str(table[name].to_pylist()) for name in outputs
    ]

    batch = {name: column for name, column in numpy_batch().items() if name in TABLE.column_names}
    arrays = preprocessor.transform_batch(batch)
    assert type(arrays) is dict
    assert arrays.keys() == set(table.column_names)
    for name in set(table.column_names) - set(outputs):
        assert arrays[name] is batch[name]

    frame = pd.DataFrame({n: list(v) for n, v in numpy_batch().items()}, index=[7, 8, 9])
    result = preprocessor.transform_batch(frame)
    assert list(result.index) == [7, 8, 9]
    assert set(result.columns) == set(table.column_names)
    assert set(frame.columns) == set(TABLE.column_names)
    for name in outputs:
        expected = [plain(value) for value in table[name].to_pylist()]
        assert [plain(value) for value in arrays[name]] == expected
        assert [plain(value) for value in result[name]] == expected


def numpy_batch():
    return {
        "a": np.array([1.0, 2.0, 4.0]),
        "b": np.array([3, -1, 5]),
        "c": np.array(["x", "y", "x"], dtype=object),
        "l": np.array([["p", "q"], [], ["q"]], dtype=object),
        "t": np.array(["one two", "two", "three two"], dtype=object),
        "i": np.ones((3, 2, 2), np.float32),
    }


def plain(value):
    """Return a value as numbers, strings and flat lists of them."""
    if isinstance(value, (list, np.ndarray)):
        return [item for part in value for item in _flat(plain(part))]
    return value.item() if isinstance(value, np.generic) else value


def _flat(value):
    return value if isinstance(value, list) else [value]


def test_no_rows_give_the_columns_and_types_of_rows(make):
    preprocessor = make().fit(dataset(TABLE))
    empty = preprocessor.transform_batch(TABLE.slice(0, 0))
    full = preprocessor.transform_batch(TABLE)
    assert empty.num_rows == 0
    assert empty.schema == full.schema


def test_a_column_that_is_not_there_is_named(make):
    preprocessor = make().fit(dataset(TABLE))
    column = preprocessor.get_input_columns()[0]
    if isinstance(preprocessor, (SimpleImputer, Chain)):
        pytest.skip("an imputer makes it")
    with pytest.raises(ColumnError, match=rf"no column '{column}'"):
        preprocessor.transform_batch(TABLE.drop_columns([column]))


@pytest.mark.parametrize(
    "make",
    [
        StandardScaler,
        MinMaxScaler,
        MaxAbsScaler,
        RobustScaler,
        lambda c: UniformKBinsDiscretizer(c, np.int64(3)),
        SimpleImputer,
    ],
)
def test_columns_that_are_no_numbers_are_refused_by_name_and_type_in_fit(make):
    with pytest.raises(TransformError, match=r"column 'c' is of type string; it must be numeric"):
        make(["a", "c"]).fit(dataset(TABLE))


@pytest.mark.parametrize("make", [StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler])
def test_infinite_values_are_refused_in_fit(make):
    with pytest.raises(TransformError, match="column 'x' holds infinite values"):
        make(["x"]).fit(dataset({"x": [1.0, -math.inf]}))


@pytest.mark.parametrize("make", [StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler])
@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, False, None]),
        pa.array([decimal.Decimal("1.50"), None, decimal.Decimal(3)]),
        pa.array([1, None, 2**62]),
        pa.array([1, 2, None], pa.uint8()),
        pa.array([1, 2, None], pa.float16()),
        pa.array([None, None], pa.float64()),
        pa.nulls(2),
    ],
    ids=lambda column: str(column.type),
)
def test_all_kinds_of_numbers_are_scaled_and_missing_ones_stay_missing(make, column):
    table = pa.table({"x": column})
    result = make(["x"]).fit(dataset(table)).transform_batch(table)["x"]
    kind = column.type if column.type == pa.float16() else pa.float64()
    assert result.type == kind
    assert result.is_null().to_pylist() == column.is_null().to_pylist()


def test_fitting_again_warns_and_forgets():
    scaler = StandardScaler(["a"]).fit(dataset(TABLE))
    with pytest.warns(UserWarning, match="StandardScaler was fitted already"):
        scaler.fit(dataset({"a": [5.0]}))
    assert scaler.stats_ == {"mean(a)": 5.0, "std(a)": 0.0}
    chain = Chain(StandardScaler(["a"]), scaler)
    assert chain.fit_status() == "PARTIALLY_FITTED"
    with pytest.raises(PreprocessorNotFittedException):
        chain.transform_batch(TABLE)
    with pytest.warns(UserWarning, match="Chain was fitted already"):
        chain.fit(dataset(TABLE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Normalizer(["a"]).fit(dataset(TABLE)).fit(dataset(TABLE))


def test_a_dataset_is_transformed_as_it_was_asked_for_whatever_is_fitted_later():
    chain = Chain(StandardScaler(["a"]))
    ds = dataset({"a": [1.0, 3.0]})
    transformed = chain.fit_transform(ds)
    with pytest.warns(UserWarning, match="Chain was fitted already"):
        chain.fit(dataset({"a": [100.0, 300.0]}))
    assert columns_of(transformed) == {"a": [-1.0, 1.0]}
    assert columns_of(chain.transform(ds))["a"][0] < -1.9
    assert "map_batches(Chain)" in transformed.explain()


@pytest.mark.campaign
def test_a_dataset_can_be_transformed_in_other_processes():
    scaler = StandardScaler(["a"])
    ds = dataset({"a": [1.0]}, {"a": [3.0, 5.0]})
    transformed = scaler.fit_transform(ds, concurrency=2, batch_size=1)
    expected = scaler.transform_batch(pa.table({"a": [1.0, 3.0, 5.0]}))["a"].to_pylist()
    assert columns_of(transformed)["a"] == expected


def test_what_is_written_down_is_readable_and_has_a_version():
    content = json.loads(StandardScaler(["a"]).fit(dataset(TABLE)).serialize())
    assert content == {
        "format": "minitrain.preprocessor",
        "version": 1,
        "type": "StandardScaler",
        "arguments": {"columns": ["a"]},
        "fitted": True,
        "stats": {"mean(a)": pytest.approx(7 / 3), "std(a)": pytest.approx(np.std([1, 2, 4]))},
    }


def test_only_what_holds_a_users_function_or_estimator_is_pickled(make):
    preprocessor = make().fit(dataset(TABLE))
    users = (HashingVectorizer, SklearnPreprocessor, TorchVisionPreprocessor)
    assert ("$pickle" in preprocessor.serialize()) == isinstance(preprocessor, users)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a serialized preprocessor"),
        (None, "not a serialized preprocessor"),
        ("{}", "does not say that it is one"),
        ('{"format": "minitrain.preprocessor", "version": 2, "type": "X"}', "upgrade minitrain"),
        ('{"format": "minitrain.preprocessor", "version": 1, "type": "X"}', "no preprocessor 'X'"),
    ],
)
def test_anything_else_is_not_read(text, words):
    with pytest.raises(ConfigurationError, match=words):
        Preprocessor.deserialize(text)


def test_a_checkpoint_carries_it(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    chain = MAKERS["Chain"]().fit(dataset(TABLE))
    checkpoint.set_metadata({"preprocessor": chain.serialize()})
    again = Preprocessor.deserialize(Checkpoint(tmp_path).get_metadata()["preprocessor"])
    assert again == chain
    np.testing.assert_array_equal(
        again.transform_batch(numpy_batch())["concat_out"],
        chain.transform_batch(numpy_batch())["concat_out"],
    )


def test_another_process_reads_it_and_gives_the_same_numbers():
    chain = Chain(StandardScaler(["a"]), HashingVectorizer(["t"], 16), OneHotEncoder(["c"]))
    chain.fit(dataset(TABLE))
    code = """
import sys
from minitrain.data.preprocessors import Preprocessor
import numpy as np
p = Preprocessor.deserialize(sys.stdin.read())
batch = {"a": np.array([1.0, 2.0, 4.0]), "c": ["x", "y", "x"], "t": ["one two", "two", "a b c"]}
print({name: array.tolist() for name, array in p.transform_batch(batch).items()})
assert not {"torch", "sklearn"} & set(sys.modules), set(sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=chain.serialize(),
        capture_output=True,
        text=True,
        check=False,
    )
    batch = {"a": np.array([1.0, 2.0, 4.0]), "c": ["x", "y", "x"], "t": ["one two", "two", "a b c"]}
    here = {name: array.tolist() for name, array in chain.transform_batch(batch).items()}
    assert (run.stdout.strip(), run.stderr) == (str(here), "")


def test_importing_them_imports_no_framework():
    code = """
import sys, minitrain.data.preprocessors
assert not {"torch", "pandas", "sklearn", "torchvision"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr == ""


JSONABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.dates(),
        st.datetimes(),
        st.datetimes(timezones=st.just(datetime.UTC)),
        st.times(),
        st.timedeltas(datetime.timedelta(days=-9), datetime.timedelta(days=9)),
        st.decimals(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(
            st.one_of(st.text(), st.integers(), st.sampled_from(["$float", "$tuple"]), st.dates()),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSONABLE)
def test_arguments_and_statistics_survive_json(value):
    again = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert again == value
    assert repr(again) == repr(value).replace(", fold=1", "")  # isoformat() does not know it


def test_what_numpy_and_pandas_have_survives_json():
    def again(value):
        return decode(json.loads(json.dumps(encode(value), allow_nan=False)))

    assert again(np.float32(0.5)) == 0.5
    assert math.isnan(again(math.nan))
    assert again(np.dtype("float32")) == np.float32
    np.testing.assert_array_equal(again(np.array([[1.5, np.nan]])), [[1.5, np.nan]])
    dtype = pd.CategoricalDtype(["b", "a"], ordered=True)
    assert again(dtype) == dtype
    intervals = pd.IntervalIndex.from_breaks([0, 1.5, 2], closed="left")
    assert again(intervals).equals(intervals)
    assert again(range(1, 9, 2)) == range(1, 9, 2)
    assert "$pickle" not in json.dumps(encode([dtype, intervals, range(3), {1, 2}]))


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: StandardScaler(["a"]), "StandardScaler(['a'])"),
        (lambda: StandardScaler(["a"], ["b"]), "StandardScaler(['a'], output_columns=['b'])"),
        (lambda: LabelEncoder("y"), "LabelEncoder('y')"),
        (
            lambda: Chain(RobustScaler(["a"], (0.1, 0.9)), Tokenizer(["t"], splits_at_commas)),
            (
                "Chain(RobustScaler(['a'], quantile_range=(0.1, 0.9)), "
                "Tokenizer(['t'], tokenization_fn=splits_at_commas))"
            ),
        ),
    ],
)
def test_it_shows_what_it_was_made_with(make, shown):
    assert repr(make()) == shown


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StandardScaler("age"), "columns must be a list of names of columns, not 'age'"),
        (lambda: StandardScaler([]), "columns must be a list"),
        (lambda: StandardScaler(name for name in ()), "columns must be a list"),
        (lambda: StandardScaler(None), "columns must be a list of names of columns, not None"),
        (lambda: StandardScaler(np.array([1, 2])), "columns must be a list"),
        (lambda: StandardScaler(["a"], []), r"output_columns must be a list of .*, not \[\]"),
        (lambda: SklearnPreprocessor(estimator(), ["a"], "pca"), "output_columns must be a list"),
        (lambda: StandardScaler(["a", "b"], ["c"]), "there are 2 columns, but 1 output_columns"),
        (lambda: Normalizer(["a"], "l3"), r"norm='l3' must be one of"),
        (lambda: PowerTransformer(["a"], 1, "log"), "method='log'"),
        (lambda: RobustScaler(["a"], (75, 25)), r"quantile_range=\(75, 25\)"),
        (lambda: SimpleImputer(["a"], "median"), "strategy='median' is not in"),
        (lambda: SimpleImputer(["a"], "constant"), "'constant' needs a fill_value"),
        (lambda: SimpleImputer(["a"], "mean", 3), "nothing else has one"),
        (lambda: OneHotEncoder(["a"], max_categories={"b": 3}), "for some of the columns"),
        (
            lambda: OneHotEncoder(["a"], max_categories={"a": 0}),
            r"\['a'\]=0: must be an integer of at",
        ),
        (lambda: HashingVectorizer(["a"], 0), "num_features=0: must be an integer of at least 1"),
        (lambda: HashingVectorizer(["a"], 1.5), "num_features=1.5: must be an integer"),
        (lambda: FeatureHasher(["a"], True, "h"), "num_features=True: must be an integer"),
        (lambda: CountVectorizer(["a"], max_features=-1), "max_features=-1: must be an integer"),
        (lambda: CountVectorizer(["a"], max_features=0), "max_features=0: must be an integer"),
        (lambda: OneHotEncoder(["a"], max_categories=5), "max_categories=5 must give numbers"),
        (
            lambda: MultiHotEncoder(["a"], max_categories={"a": "5"}),
            r"='5': must be an integer",
        ),
        (lambda: CustomKBinsDiscretizer(["a"], 5), "bins=5 must be edges: numbers that increase"),
        (lambda: CustomKBinsDiscretizer(["a"], ["x", "y"]), "must be edges: numbers that increase"),
        (lambda: UniformKBinsDiscretizer(["a"], 0), "bins=0: must be an integer of at least 1"),
        (lambda: UniformKBinsDiscretizer(["a"], {"b": 3}), r"lacks the columns \['a'\]"),
        (lambda: CustomKBinsDiscretizer(["a"], [3, 1]), "must increase"),
        (lambda: CustomKBinsDiscretizer(["a"], [1, 1]), "must increase"),
        (lambda: CustomKBinsDiscretizer(["a"], [1, 2], duplicates="no"), "'raise' or 'drop'"),
        (lambda: SklearnPreprocessor(object(), ["a"]), r"has no fit\(\)"),
        (lambda: SklearnPreprocessor(estimator(), ["a", "b", "a"]), r"names \['a'\] twice"),
        (lambda: Chain(), "at least one preprocessor"),
        (lambda: Chain(StandardScaler), "is not a preprocessor"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()


@pytest.mark.parametrize(
    "names", [pd.Index(["a", "b"]), np.array(["a", "b"]), (name for name in "ab"), ("a", "b")]
)
def test_whatever_gives_names_is_taken_for_a_list_of_them(names):
    expected = "StandardScaler(['a', 'b'], output_columns=['c', 'd'])"
    assert repr(StandardScaler(names, pd.Index(["c", "d"]))) == expected


@pytest.mark.parametrize("method", ["fit", "transform", "fit_transform"])
def test_a_dataset_must_be_a_dataset(method):
    with pytest.raises(TypeError, match=r"MaxAbsScaler\.\w+\(\) takes a dataset.*not a DataFrame"):
        getattr(MaxAbsScaler(["a"]).fit(dataset({"a": [1]})), method)(pd.DataFrame({"a": [1]}))


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, text):
        return [text]


@pytest.mark.parametrize("chained", [False, True])
def test_what_cannot_be_copied_can_be_used(chained):
    step = Tokenizer(["t"], Locked())
    step = Chain(step) if chained else step
    assert step.transform(dataset({"t": ["a"]})).take_all() == [{"t": ["a"]}]


@pytest.mark.parametrize("chained", [False, True])
def test_a_transformed_dataset_stays_as_it_is_when_its_preprocessor_is_fitted_anew(chained):
    rows, others = dataset({"a": [1.0, 2.0]}), dataset({"a": [4.0, 8.0]})
    step = MaxAbsScaler(["a"])
    step = Chain(step) if chained else step
    before = step.fit_transform(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step.fit(others)
    assert [before.take_all()[1], step.transform(rows).take_all()[1]] == [{"a": 1.0}, {"a": 0.25}]


@pytest.mark.parametrize("make", [UniformKBinsDiscretizer, CustomKBinsDiscretizer])
def test_dtypes_are_those_of_columns(make):
    bins = 3 if make is UniformKBinsDiscretizer else [0, 1]
    with pytest.raises(ColumnError, match=r"\(dtypes\): there is no column 'agee'.* mean 'age'"):
        make(["age"], bins, dtypes={"agee": np.int8})


def test_a_batch_must_be_a_batch():
    with pytest.raises(TypeError, match=r"a batch is a dict of arrays.*not a list"):
        Normalizer(["a"]).transform_batch([1, 2])


def test_a_chain_says_what_it_reads_and_writes():
    chain = Chain(
        StandardScaler(["a"], ["s"]), Normalizer(["s", "b"]), Concatenator(["s", "b"], "v")
    )
    assert chain.get_input_columns() == ["a", "b"]
    assert chain.get_output_columns() == ["v"]


def test_a_class_of_ones_own_is_fitted_written_and_read_like_the_others():
    from minitrain.data.preprocessors.statistics import Extremes

    class Clip(Preprocessor):
        def __init__(self, columns, share=1.0, output_columns=None):
            super().__init__(columns, output_columns)
            self.share = share

        def _statistics(self):
            return {name: Extremes() for name in self.columns}

        def _conclude(self, statistics):
            return {name: found.greatest * self.share for name, found in statistics.items()}

        def _compute(self, table):
            import pyarrow.compute as pc

            return {
                output: pc.min_element_wise(table[name], self.stats_[name])
                for name, output in self._pairs()
            }

    clip = Chain(SimpleImputer(["a"]), Clip(["a"], 0.5)).fit(dataset(TABLE))
    again = Preprocessor.deserialize(clip.serialize())
    assert again == clip
    assert again.transform_batch(TABLE)["a"].to_pylist() == [1.0, 2.0, 2.0]
    text = clip.serialize()
    assert f"{__name__}.Clip" in text
    for module in ("", "__main__."):  # of an earlier version, and of a script
        assert Preprocessor.deserialize(text.replace(f"{__name__}.Clip", f"{module}Clip")) == clip
    del Preprocessor._classes[f"{__name__}.Clip"]


def test_a_class_of_ones_own_may_be_called_like_one_of_ours():
    theirs = StandardScaler

    class Normalizer(theirs):
        pass

    ours = MAKERS["Normalizer"]()
    assert type(Preprocessor.deserialize(ours.serialize())) is type(ours)
    assert type(Preprocessor.deserialize(Normalizer(["a"]).serialize())) is Normalizer
    del Preprocessor._classes[f"{__name__}.Normalizer"]


def test_what_is_no_dataset_cannot_be_learned_from():
    with pytest.raises(TypeError, match=r"\.fit\(\) takes a dataset, .*not a DataFrame"):
        StandardScaler(["a"]).fit(pd.DataFrame({"a": [1.0, 2.0]}))
