"""Categories as numbers, vectors and pandas' categories."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from minitrain.data.preprocessors import (
    Categorizer,
    LabelEncoder,
    MultiHotEncoder,
    OneHotEncoder,
    OrdinalEncoder,
    Preprocessor,
    PreprocessorNotFittedException,
)
from minitrain.exceptions import TransformError
from tests.data.tables import columns_of, dataset

GENRES = [["comedy", "action", "sports"], ["animation", "comedy", "action"], ["documentary"]]


def rows(column):
    return column.to_pylist()


def test_places_are_those_in_the_sorted_list():
    table = pa.table({"sex": ["male", "female", "male"], "level": ["L4", "L5", "L3"]})
    encoder = OrdinalEncoder(["sex", "level"]).fit(dataset(table))
    assert columns_of(encoder.transform(dataset(table))) == {"sex": [1, 0, 1], "level": [1, 2, 0]}
    assert encoder.stats_ == {
        "unique_values(sex)": {"female": 0, "male": 1},
        "unique_values(level)": {"L3": 0, "L4": 1, "L5": 2},
    }


def test_unknown_and_missing_categories_are_missing_and_nan_in_numpy():
    encoder = OrdinalEncoder(["c"]).fit(dataset({"c": ["a", None, "b"]}))
    table = pa.table({"c": ["b", "new", None]})
    assert rows(encoder.transform_batch(table)["c"]) == [1, None, None]
    result = encoder.transform_batch({"c": np.array(["b", "new", None], dtype=object)})["c"]
    np.testing.assert_array_equal(result, [1, math.nan, math.nan])


def test_elements_of_lists_are_encoded_or_whole_lists():
    table = pa.table({"genre": [*GENRES, None, [], ["new", "comedy", None]]})
    ds = dataset({"genre": GENRES})
    elements = OrdinalEncoder(["genre"]).fit(ds).transform_batch(table)["genre"]
    assert rows(elements) == [[2, 0, 4], [1, 2, 0], [3], None, [], [None, 2, None]]
    whole = OrdinalEncoder(["genre"], encode_lists=False).fit(ds).transform_batch(table)["genre"]
    assert rows(whole) == [1, 0, 2, None, None, None]


def test_lists_in_slices_and_chunks_are_encoded():
    table = pa.concat_tables([pa.table({"g": GENRES * 3}).slice(1, 4), pa.table({"g": GENRES})])
    encoder = OrdinalEncoder(["g"]).fit(dataset({"g": GENRES}))
    places = encoder.stats_["unique_values(g)"]
    expected = [[places[genre] for genre in row] for row in rows(table["g"])]
    assert rows(encoder.transform_batch(table)["g"]) == expected


@pytest.mark.parametrize(
    ("fitted", "later"),
    [
        (pa.array([1, 2, 3]), pa.array([3, 1], pa.int8())),
        (pa.array([1, 2, 300]), pa.array([3, 1], pa.int8())),
        (pa.array([1, 2, 3]), pa.array([3.0, 1.0, math.nan, 1.5])),
        (pa.array([0.5, 1.0, 2.0]), pa.array([1, 2, 7])),
        (pa.array(["a", "b"]), pa.array(["b", "c"], pa.large_string())),
        (pa.array(["a", "b"]), pa.array(["b", "c", None]).dictionary_encode()),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "c"])),
        (pa.array([True, False]), pa.array([True])),
        (
            pa.array([datetime.date(2020, 1, 2), datetime.date(2021, 1, 2)]),
            pa.array([datetime.date(2021, 1, 2), None]).cast(pa.timestamp("ns")),
        ),
        (pa.array([b"a", b"b"]), pa.array([b"b"])),
        (pa.array([1, 2]), pa.nulls(3)),
    ],
)
def test_a_column_may_be_of_another_type_later(fitted, later):
    encoder = OrdinalEncoder(["c"]).fit(dataset({"c": fitted}))
    again = Preprocessor.deserialize(encoder.serialize())
    known = sorted(set(fitted.to_pylist()))
    plain = [
        value.date() if isinstance(value, datetime.datetime) else value
        for value in later.to_pylist()
    ]
    expected = [known.index(value) if value in known else None for value in plain]
    assert rows(again.transform_batch(pa.table({"c": later}))["c"]) == expected


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1_000_000_002, None, 1_000_000_001], pa.timestamp("ns")),
        pa.array([10**18, 1], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([1_001, 2], pa.duration("ns")),
        pa.array([2**63 + 1, 3, None], pa.uint64()),
    ],
    ids=lambda column: str(column.type),
)
def test_values_that_python_has_no_type_of_its_own_for_are_categories(column):
    table = pa.table({"c": column})
    known = sorted(column.drop_null().to_pylist())
    places = [None if value is None else known.index(value) for value in column.to_pylist()]
    present = table.filter(pa.compute.is_valid(column))
    for make in (OrdinalEncoder, Categorizer, OneHotEncoder):
        fitted = make(["c"]).fit(dataset(table))
        again = Preprocessor.deserialize(fitted.serialize())
        assert again == fitted
        result = again.transform_batch(table)["c"]
        if make is OrdinalEncoder:
            assert rows(result) == places
        elif make is Categorizer:
            assert rows(result) == rows(column)
        else:
            assert [1 in row for row in rows(result)] == rows(column.is_valid())
    labels = LabelEncoder("c").fit(dataset(present))
    labels = Preprocessor.deserialize(labels.serialize())
    back = labels.inverse_transform(dataset(labels.transform_batch(present)))
    assert columns_of(back)["c"] == rows(present["c"])


def test_a_column_that_cannot_be_compared_is_refused():
    encoder = OrdinalEncoder(["c"]).fit(dataset({"c": [1, 2]}))
    with pytest.raises(TransformError, match=r"'c' is of type string, but was of type int64"):
        encoder.transform_batch({"c": np.array(["x"], dtype=object)})


def test_vectors_have_a_one_or_only_zeros():
    encoder = OneHotEncoder(["color"]).fit(dataset({"color": ["red", "green", "red", "blue"]}))
    result = encoder.transform_batch(pa.table({"color": ["red", "yellow", None, "blue"]}))["color"]
    assert rows(result) == [[0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert result.type == pa.fixed_shape_tensor(pa.uint8(), [3])


def test_only_the_most_frequent_categories_are_kept_and_ties_are_not_left_to_chance():
    colors = ["red", "green", "red", "red", "blue", "green", "cyan"]
    for seen in (colors, colors[::-1]):
        encoder = OneHotEncoder(["c"], max_categories={"c": 3}).fit(dataset({"c": seen}))
        assert list(encoder.stats_["unique_values(c)"]) == ["blue", "green", "red"]
    result = encoder.transform_batch(pa.table({"c": ["cyan", "red"]}))
    assert rows(result["c"]) == [[0, 0, 0], [0, 0, 1]]


def test_a_category_frequent_in_all_parts_counts_more_than_one_frequent_in_one():
    parts = [{"c": ["a"] * 5 + ["b"] * 3}, {"c": ["b"] * 3 + ["d"] * 4}]
    encoder = OneHotEncoder(["c"], max_categories={"c": 1}).fit(dataset(*parts))
    assert list(encoder.stats_["unique_values(c)"]) == ["b"]


def test_a_list_is_one_category_of_a_one_hot_encoder():
    encoder = OneHotEncoder(["c"]).fit(dataset({"c": [[1, 2], [2], [1, 2]]}))
    again = Preprocessor.deserialize(encoder.serialize())
    result = again.transform_batch(pa.table({"c": [[2], [1, 2], [1], None]}))["c"]
    assert rows(result) == [[0, 1], [1, 0], [0, 0], [0, 0]]


def test_multi_hot_vectors_mark_what_is_in_a_list():
    encoder = MultiHotEncoder(["g"]).fit(dataset({"g": GENRES}))
    lists = [*GENRES, ["action", "action", "new", None], None, []]
    result = encoder.transform_batch(pa.table({"g": lists}))["g"]
    assert rows(result) == [
        [1, 0, 1, 0, 1],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    limited = MultiHotEncoder(["g"], max_categories={"g": 2}).fit(dataset({"g": GENRES}))
    assert list(limited.stats_["unique_values(g)"]) == ["action", "comedy"]


def test_a_value_is_a_list_of_one_to_a_multi_hot_encoder():
    encoder = MultiHotEncoder(["c"]).fit(dataset({"c": ["b", "a", None]}))
    result = encoder.transform_batch(pa.table({"c": ["a", None, "b"]}))["c"]
    assert rows(result) == [[1, 0], [0, 0], [0, 1]]


def test_lists_of_numbers_in_numpy_are_multi_hot_encoded_whatever_their_lengths():
    encoder = MultiHotEncoder(["v"]).fit(dataset({"v": [[1, 2], [3]]}))
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.array([1, 3]), np.array([2])]
    for batch in (ragged, [[1, 3], [2]]):
        result = encoder.transform_batch({"v": batch})["v"]
        np.testing.assert_array_equal(result, [[1, 0, 1], [0, 1, 0]])
    even = encoder.transform_batch({"v": np.array([[1, 3], [2, 2]])})["v"]
    np.testing.assert_array_equal(even, [[1, 0, 1], [0, 1, 0]])


def test_a_column_without_values_has_no_categories():
    with pytest.raises(TransformError, match="'c' has no values, so there are no categories"):
        OneHotEncoder(["c"]).fit(dataset({"c": pa.array([None, None], pa.string())}))


def test_structs_cannot_be_categories():
    with pytest.raises(TransformError, match="'c' is of type struct"):
        OneHotEncoder(["c"]).fit(dataset({"c": [{"a": 1}]}))


def test_labels_go_to_numbers_and_back():
    ds = dataset({"species": ["setosa", "virginica", "setosa"], "x": [1, 2, 3]})
    encoder = LabelEncoder("species")
    with pytest.raises(PreprocessorNotFittedException, match=r"before inverse_transform\(\)"):
        encoder.inverse_transform(ds)
    encoded = encoder.fit_transform(ds)
    assert columns_of(encoded) == {"species": [0, 1, 0], "x": [1, 2, 3]}
    back = columns_of(encoder.inverse_transform(encoded))
    assert back == {"species": ["setosa", "virginica", "setosa"], "x": [1, 2, 3]}


def test_labels_in_a_column_of_their_own_go_back_to_the_first():
    encoder = LabelEncoder("y", output_column="n").fit(dataset({"y": ["a", "b"]}))
    assert encoder.get_input_columns() == ["y"]
    assert encoder.get_output_columns() == ["n"]
    predicted = dataset({"y": ["a", "a", "a"], "n": [1.0, 5.0, None]})
    assert columns_of(encoder.inverse_transform(predicted))["y"] == ["b", None, None]


def test_an_unknown_label_that_numpy_made_nan_goes_back_to_none():
    encoder = LabelEncoder("y").fit(dataset({"y": ["a", "b"]}))
    encoded = encoder.transform_batch({"y": np.array(["b", "new"], dtype=object)})
    np.testing.assert_array_equal(encoded["y"], [1, math.nan])
    assert columns_of(encoder.inverse_transform(dataset(encoded)))["y"] == ["b", None]


def test_an_unknown_label_is_missing_and_a_missing_one_an_error():
    encoder = LabelEncoder("y").fit(dataset({"y": ["a", "b"]}))
    assert rows(encoder.transform_batch(pa.table({"y": ["b", "new"]}))["y"]) == [1, None]
    with pytest.raises(TransformError, match="column 'y' lacks 1 of 2 labels"):
        encoder.transform_batch({"y": np.array(["a", None], dtype=object)})
    with pytest.raises(TransformError, match="lacks 2 of 3 labels; filter these rows out"):
        LabelEncoder("y").fit(dataset({"y": ["a", None, None]}))


def test_columns_become_pandas_categories():
    ds = dataset({"sex": ["male", "female", None], "level": ["L4", "L5", "L3"]})
    levels = pd.CategoricalDtype(["L3", "L4", "L6"], ordered=True)
    categorizer = Categorizer(["sex", "level"], dtypes={"level": levels}).fit(ds)
    frame = pd.DataFrame({"sex": ["female", "other"], "level": ["L6", "L5"]})
    result = categorizer.transform_batch(frame)
    sexes = pd.CategoricalDtype(["female", "male"])
    expected = pd.DataFrame(
        {
            "sex": pd.Series(["female", None], dtype=sexes),
            "level": pd.Series(["L6", None], dtype=levels),
        }
    )
    for name in expected:
        assert result[name].dtype.ordered == expected[name].dtype.ordered
        assert list(result[name].cat.categories) == list(expected[name].cat.categories)
        assert list(result[name].cat.codes) == list(expected[name].cat.codes)
    assert categorizer.stats_["level"] == levels
