"""Missing values filled in, columns joined, numbers put into bins, images changed."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.data.preprocessors import (
    Chain,
    Concatenator,
    CustomKBinsDiscretizer,
    Normalizer,
    PowerTransformer,
    Preprocessor,
    SimpleImputer,
    SklearnPreprocessor,
    StandardScaler,
    TorchVisionPreprocessor,
    UniformKBinsDiscretizer,
)
from minitrain.exceptions import TransformError
from tests.data.tables import columns_of, dataset, in_parts

CODED = pa.array([1, None, 4]).dictionary_encode()
NARROW = pa.dictionary(pa.int32(), pa.float32())
LARGE = pa.array([2**63 + 1, None], pa.uint64())
NANOSECONDS = pa.array([1, None], pa.timestamp("ns"))


def rows(column):
    return column.to_pylist()


def test_missing_values_are_filled_in_whatever_they_are():
    ds = dataset({"x": [0.0, None, math.nan, 3.0], "y": [None, "b", "c", "c"]})
    chain = Chain(SimpleImputer(["x"]), SimpleImputer(["y"], "most_frequent"))
    result = columns_of(chain.fit_transform(ds))
    assert result == {"x": [0.0, 1.5, 1.5, 3.0], "y": ["c", "b", "c", "c"]}


@pytest.mark.parametrize(
    ("column", "strategy", "value", "expected"),
    [
        (pa.array([1, None, 4]), "mean", None, pa.array([1.0, 2.5, 4.0])),
        (pa.array([1, None, 4], pa.float32()), "mean", None, pa.array([1, 2.5, 4], pa.float32())),
        (pa.array([True, None, False]), "mean", None, pa.array([1.0, 0.5, 0.0])),
        (pa.array([4, None, 4]), "most_frequent", None, pa.array([4, 4, 4])),
        (pa.array([9, None, 4]), "most_frequent", None, pa.array([9, 4, 4])),
        (pa.array([1, None]), "constant", 7, pa.array([1, 7])),
        (pa.array([1, None], pa.int8()), "constant", 7.0, pa.array([1, 7], pa.int8())),
        (pa.array([1, None]), "constant", 0.5, pa.array([1, 0.5])),
        (pa.array([1, 2]), "constant", 0.5, pa.array([1.0, 2.0])),
        (pa.array([1.0, math.nan], pa.float32()), "constant", 7, pa.array([1, 7], pa.float32())),
        (pa.array(["a", None]), "constant", "?", pa.array(["a", "?"])),
        (pa.nulls(2), "constant", "?", pa.array(["?", "?"])),
        (CODED, "mean", None, pa.array([1.0, 2.5, 4.0])),
        (CODED.cast(NARROW), "mean", None, pa.array([1, 2.5, 4], pa.float32())),
        (CODED, "most_frequent", None, pa.array([1, 1, 4]).dictionary_encode()),
        (CODED, "constant", 0.5, pa.array([1, 0.5, 4]).dictionary_encode()),
        (pa.array([1, None]), "constant", np.float32(0.5), pa.array([1, 0.5])),
        (pa.array([1, None]), "constant", np.float32(7), pa.array([1, 7])),
        (LARGE, "most_frequent", None, LARGE.fill_null(2**63 + 1)),
        (NANOSECONDS, "most_frequent", None, NANOSECONDS.fill_null(1)),
    ],
)
def test_the_type_after_filling_in_depends_on_the_type_before_alone(
    column, strategy, value, expected
):
    imputer = SimpleImputer(["x"], strategy, value).fit(dataset({"x": column}))
    result = imputer.transform_batch(pa.table({"x": column}))["x"]
    assert result.combine_chunks().equals(expected)
    if not pa.types.is_null(column.type):
        without = imputer.transform_batch(pa.table({"x": column.drop_null()}))["x"]
        assert without.type == expected.type


def test_categories_of_pandas_are_filled_in():
    frame = pd.DataFrame({"c": pd.Categorical(["a", None, "b"])})
    result = SimpleImputer(["c"], "constant", "?").transform_batch(frame)["c"]
    assert list(result) == ["a", "?", "b"]


def test_a_column_can_be_filled_in_twice():
    imputer = SimpleImputer(["x", "x"], output_columns=["a", "b"])
    result = columns_of(imputer.fit_transform(dataset({"x": [1.0, None]})))
    assert result == {"x": [1.0, None], "a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_a_column_that_is_not_there_is_made():
    imputer = SimpleImputer(["x"], "constant", 3, output_columns=["z"])
    assert imputer.transform_batch(pa.table({"y": [1, 2]})).to_pydict() == {
        "y": [1, 2],
        "z": [3, 3],
    }
    arrays = imputer.transform_batch({"y": np.array([1, 2])})
    assert {name: list(array) for name, array in arrays.items()} == {"y": [1, 2], "z": [3, 3]}


def test_there_must_be_something_to_learn_and_it_must_fit():
    with pytest.raises(TransformError, match="'x' has no values at all"):
        SimpleImputer(["x"]).fit(dataset({"x": pa.array([None], pa.float64())}))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.int64(), "?"),
        (pa.int64(), 1e20),
        (pa.int64(), 2**70),
        (pa.int8(), 300),
        (pa.int8(), np.int64(300)),
        (pa.uint8(), -1),
        (pa.uint8(), -1.0),
        (pa.float64(), ["a", 1]),
        (pa.dictionary(pa.int32(), pa.int64()), "?"),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_refused(kind, value):
    table = pa.table({"x": pa.array([1, None], kind)})
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    with pytest.raises(TransformError) as info:
        SimpleImputer(["x"], "constant", value).transform_batch(table)
    assert str(info.value) == (
        f"SimpleImputer: column 'x' is of type {plain}, which {value!r} is not"
    )


def test_columns_are_joined_in_the_order_given_and_dropped():
    table = pa.table({"b": [0.5, 0.25], "k": ["x", "y"], "a": [1, 2]})
    result = Concatenator(["a", "b"]).transform_batch(table)
    assert result.column_names == ["k", "concat_out"]
    assert result["concat_out"].type == pa.fixed_shape_tensor(pa.float64(), [2])
    assert rows(result["concat_out"]) == [[1, 0.5], [2, 0.25]]


@pytest.mark.parametrize(
    ("columns", "dtype", "expected"),
    [
        ([pa.array([1], pa.int8()), pa.array([2], pa.int32())], None, np.int32),
        ([pa.array([1], pa.float32()), pa.array([2], pa.int16())], None, np.float32),
        ([pa.array([1]), pa.array([True])], None, np.float64),
        ([pa.array([1]), pa.array([2.7])], np.int16, np.int16),
        ([pa.array([1]), pa.array([None], pa.int64())], "float32", np.float32),
    ],
)
def test_the_type_of_vectors_is_what_all_can_be_or_what_was_asked_for(columns, dtype, expected):
    names = [f"x{place}" for place in range(len(columns))]
    join = Concatenator(names, dtype=dtype)
    result = join.transform_batch(pa.table(columns, names))["concat_out"]
    assert result.type.value_type == pa.from_numpy_dtype(expected)
    empty = join.transform_batch(pa.table(columns, names).slice(0, 0))["concat_out"]
    assert empty.type == result.type


@pytest.mark.parametrize(
    ("column", "dtype"),
    [([1, None], None), ([0.5, math.nan], np.int64), ([[1], [None]], None)],
)
def test_vectors_of_integers_cannot_have_missing_values(column, dtype):
    join = Concatenator(["a"], dtype=dtype, flatten=True)
    with pytest.raises(TransformError, match="'a' has missing values, which int64 cannot hold"):
        join.transform_batch(pa.table({"a": column}))
    assert join.transform_batch(pa.table({"a": column[:1]}))["concat_out"].type.shape == [1]


def test_a_column_can_be_joined_with_itself():
    assert rows(Concatenator(["a", "a"]).transform_batch(pa.table({"a": [1]}))["concat_out"]) == [
        [1, 1]
    ]


def test_vectors_and_lists_are_joined_only_if_asked_for():
    batch = {"v": np.array([[1, 2], [3, 4]]), "l": [[5], [6]], "x": np.array([0.5, 0.25])}
    with pytest.raises(TransformError, match=r"'v' is of type.*flatten=True"):
        Concatenator(["x", "v"]).transform_batch(batch)
    result = Concatenator(["x", "v", "l"], flatten=True).transform_batch(batch)["concat_out"]
    np.testing.assert_array_equal(result, [[0.5, 1, 2, 5], [0.25, 3, 4, 6]])


def test_lists_of_different_lengths_are_not_joined():
    for lists in ([[1], [1, 2]], [[1], None]):
        with pytest.raises(TransformError, match="'l' has lists of different lengths"):
            Concatenator(["l"], flatten=True).transform_batch(pa.table({"l": lists}))


def test_joined_columns_are_a_matrix_in_numpy():
    ds = dataset({"a": [1.0, 2.0], "b": [3.0, 4.0]}, {"a": [5.0], "b": [6.0]})
    chain = Chain(StandardScaler(["a", "b"]), Concatenator(["a", "b"], "x", dtype=np.float32))
    (batch,) = chain.fit_transform(ds).iter_batches(batch_size=3, batch_format="numpy")
    assert batch["x"].dtype == np.float32
    assert batch["x"].shape == (3, 2)


EDGES = st.lists(st.integers(-20, 20), min_size=2, max_size=6, unique=True).map(sorted)
NUMBERS = st.lists(
    st.one_of(st.integers(-25, 25).map(float), st.floats(-25, 25), st.just(math.nan)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(EDGES, NUMBERS, st.booleans(), st.booleans())
def test_bins_with_given_edges_are_those_of_pandas(edges, values, right, include_lowest):
    cut = CustomKBinsDiscretizer(["x"], edges, right=right, include_lowest=include_lowest)
    result = rows(cut.transform_batch(pa.table({"x": values}))["x"])
    expected = pd.cut(values, edges, right=right, include_lowest=include_lowest, labels=False)
    assert result == [None if math.isnan(place) else place for place in expected]


@settings(deadline=None, max_examples=50)
@given(st.data(), NUMBERS, st.integers(1, 7), st.booleans())
def test_bins_of_equal_width_are_those_of_pandas(data, values, number, right):
    values.append(1.0)
    table = pa.table({"x": values})
    parts = in_parts(table, *data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    cut = UniformKBinsDiscretizer(["x"], number, right=right).fit(parts)
    expected, edges = pd.cut(values, number, right=right, labels=False, retbins=True)
    assert cut.stats_["x"] == pytest.approx(edges, rel=1e-12)
    result = rows(cut.transform_batch(table)["x"])
    assert result == [None if math.isnan(place) else place for place in expected]


def test_numbers_of_bins_may_be_numpys():
    cut = UniformKBinsDiscretizer(["x"], np.int64(2)).fit(dataset({"x": [0, 4]}))
    assert Preprocessor.deserialize(cut.serialize()) == cut
    assert rows(cut.transform_batch(pa.table({"x": [1, 3]}))["x"]) == [0, 1]


def test_bins_may_differ_by_column_and_have_labels_or_a_type():
    labels = pd.CategoricalDtype(["low", "high"], ordered=True)
    cut = CustomKBinsDiscretizer(
        ["a", "b"], {"a": [0, 1, 4], "b": [0, 18, 35, 70]}, dtypes={"a": labels, "b": np.int8}
    )
    result = cut.transform_batch(pa.table({"a": [0.5, 4.0, 9.0, None], "b": [10, 20, 70, 71]}))
    assert rows(result["a"]) == ["low", "high", None, None]
    assert result["a"].type.ordered
    assert rows(result["b"]) == [0, 1, 2, None]
    assert result["b"].type == pa.int8()


def test_intervals_are_edges_too():
    intervals = pd.IntervalIndex.from_tuples([(0, 1), (2, 3)])
    cut = CustomKBinsDiscretizer(["x"], intervals)
    result = cut.transform_batch({"x": np.array([0.5, 1.5, 2.5])})["x"]
    np.testing.assert_array_equal(result, [0, math.nan, 1])


def test_equal_edges_can_be_dropped():
    cut = CustomKBinsDiscretizer(["x"], [0, 1, 1, 2], duplicates="drop")
    assert rows(cut.transform_batch(pa.table({"x": [0.5, 1.5]}))["x"]) == [0, 1]


def test_nothing_cannot_be_divided_into_bins():
    with pytest.raises(TransformError, match="'x' has no values to divide into bins"):
        UniformKBinsDiscretizer(["x"], 2).fit(dataset({"x": pa.array([None], pa.float64())}))


def test_a_row_with_a_missing_value_has_no_norm():
    result = Normalizer(["a", "b"]).transform_batch(pa.table({"a": [3, None], "b": [4, 1]}))
    assert rows(result["a"]) == [0.6, None]
    assert math.isnan(rows(result["b"])[1])


def test_box_cox_is_for_positive_numbers():
    with pytest.raises(TransformError, match="'x' holds -2; the method 'box-cox' is for positive"):
        PowerTransformer(["x"], 0.5, "box-cox").transform_batch({"x": np.array([1, -2])})
    missing = PowerTransformer(["x"], 1, "box-cox").transform_batch(pa.table({"x": [3.0, None]}))
    assert rows(missing["x"]) == [pytest.approx(2.0), None]


def test_an_estimator_that_returns_other_columns_is_refused_in_fit():
    from sklearn.preprocessing import OneHotEncoder as Theirs

    preprocessor = SklearnPreprocessor(Theirs(), ["a", "b"])
    with pytest.raises(TransformError, match=r"OneHotEncoder returns 5 columns.*there are 2"):
        preprocessor.fit(dataset({"a": ["x", "y", "z"], "b": ["p", "q", "p"]}))


@pytest.mark.parametrize("partly", [False, True])
def test_what_an_estimator_does_not_take_is_named(partly):
    from sklearn.decomposition import PCA, IncrementalPCA

    name, method = ("IncrementalPCA", "partial_fit") if partly else ("PCA", "fit")
    make = IncrementalPCA if partly else PCA
    for column, kind in ((["x y", "z"], "str"), ([[1.0, 3.0], [2.0, 5.0]], "ndarray")):
        with pytest.raises(TransformError) as info:
            SklearnPreprocessor(make(1), ["a", "s"]).fit(dataset({"a": [1, 2], "s": column}))
        assert str(info.value).startswith(f"SklearnPreprocessor: {name}.{method}() raised ValueErr")
        assert str(info.value).endswith(f"; columns that are not of numbers: 's' ({kind})")
        assert isinstance(info.value.__cause__, ValueError)
    fitted = SklearnPreprocessor(make(1), ["a", "s"], ["p"])
    fitted.fit(dataset({"a": [1, 2], "s": [3.0, 4.0]}))
    with pytest.raises(TransformError, match=rf"{name}\.transform\(\) raised ValueErr.*'s' \(str"):
        fitted.transform_batch(pa.table({"a": [1], "s": ["x y"]}))
    with pytest.raises(TransformError, match=rf"{name}\.transform\(\) raised ValueError.*NaN"):
        fitted.transform_batch(pa.table({"a": [1], "s": [math.nan]}))


def test_an_estimator_is_copied_and_named_columns_reach_it():
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import MinMaxScaler, OrdinalEncoder

    theirs = ColumnTransformer([("n", MinMaxScaler(), ["n"]), ("c", OrdinalEncoder(), ["c"])])
    preprocessor = SklearnPreprocessor(theirs, ["c", "n"], ["m", "k"])
    preprocessor.fit(dataset({"c": ["y", "x"], "n": [1, 3]}))
    assert not hasattr(theirs, "transformers_")
    result = preprocessor.transform_batch(pa.table({"c": ["x", "y"], "n": [2, 1]}))
    assert result.to_pydict() == {"c": ["x", "y"], "n": [2, 1], "m": [0.5, 0.0], "k": [0.0, 1.0]}


def test_images_are_changed_one_by_one_or_many_at_once():
    import torch

    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)

    def one(image):
        assert image.shape == (2, 2, 3)
        return image.permute(2, 0, 1).float() / 255

    def many(batch):
        return batch.permute(0, 3, 1, 2).float() / 255

    expected = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    for transform, batched in ((one, False), (many, True)):
        preprocessor = TorchVisionPreprocessor(["i"], transform, batched=batched)
        result = preprocessor.transform_batch({"i": images})["i"]
        np.testing.assert_allclose(result, expected)
        assert result.dtype == np.float32
    assert torch.is_tensor(one(torch.ones(2, 2, 3)))


def test_a_function_of_arrays_gets_arrays_and_may_return_images_of_any_shape():
    def crop(image):
        if not isinstance(image, np.ndarray):
            raise TypeError("an array, please")
        return image[: image[0, 0]]

    images = np.array([[[1, 2], [3, 4]], [[2, 2], [3, 4]]])
    result = TorchVisionPreprocessor(["i"], crop, ["o"]).transform_batch({"i": images})["o"]
    assert [image.tolist() for image in result] == [[[1, 2]], [[2, 2], [3, 4]]]
    with pytest.raises(TransformError, match="returned a str; it must return"):
        TorchVisionPreprocessor(["i"], lambda image: "x").transform_batch({"i": images})
