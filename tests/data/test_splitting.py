"""Parts of a dataset: each row in exactly one, in proportion, in every epoch the same."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split

from minitrain.data.splitting import rows_to_test
from minitrain.exceptions import ColumnError
from tests.data.slices import dataset_of


def numbers(rows, pieces=3, **options):
    return dataset_of(pa.table({"id": range(rows)}), pieces, **options)


def ids(dataset):
    return [row["id"] for row in dataset.iter_rows()]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_parts_have_equal_sizes_and_all_rows(rows, n, pieces, equal):
    parts = [ids(part) for part in numbers(rows, pieces).split(n, equal=equal)]
    assert len(parts) == n
    joined = [i for part in parts for i in part]
    assert joined == list(range(rows - rows % n if equal else rows))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= (0 if equal else 1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 40), st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_parts_begin_at_indices(rows, indices):
    indices = sorted(indices)
    expected = [part.tolist() for part in np.split(np.arange(rows), indices)]
    assert [ids(part) for part in numbers(rows).split_at_indices(indices)] == expected


def test_parts_are_in_proportion_and_never_empty():
    sizes = [part.count() for part in numbers(10).split_proportionately([0.2, 0.5])]
    assert sizes == [2, 5, 3]
    assert [p.count() for p in numbers(10).split_proportionately([0.1] * 9)] == [1] * 10
    assert [part.count() for part in numbers(5).split_proportionately([0.4, 0.1])] == [1, 1, 3]
    assert [part.count() for part in numbers(100).split_proportionately([0.7, 0.1])] == [70, 10, 20]


def test_what_filters_leave_is_divided():
    dataset = numbers(100, counted=False).filter(lambda row: row["id"] % 3 == 0)
    train, test = dataset.train_test_split(0.25)
    assert ids(train) + ids(test) == list(range(0, 100, 3))
    assert len(ids(test)) == 9


def test_a_shuffle_in_every_epoch_carries_no_row_from_train_to_test():
    for shuffled in (
        numbers(200, 20).random_shuffle(seed=3),
        numbers(200, 20).randomize_block_order(seed=3),
        numbers(200, 20).random_shuffle(seed=3).map(lambda row: row),
    ):
        first = ids(shuffled)
        train, test = shuffled.train_test_split(0.2)
        for _ in range(3):
            assert ids(train) == first[:160]
            assert ids(test) == first[160:]


def test_train_and_test_may_be_shuffled_before():
    parts = [numbers(50).train_test_split(10, shuffle=True, seed=seed) for seed in (1, 1, 2)]
    seen = [(ids(train), ids(test)) for train, test in parts]
    assert seen[0] == seen[1] != seen[2]
    for train, test in seen:
        assert len(test) == 10
        assert sorted(train + test) == list(range(50))
        assert train != sorted(train)


def test_sizes_are_those_of_a_proportion_or_a_number():
    proportions = [(0.3, 3), (0.1, 1), (0.9, 9), (4, 4)]
    for size, expected in [*proportions, (np.int64(4), 4), (np.float32(0.5), 5)]:
        train, test = numbers(10).train_test_split(size)
        assert ids(test) == list(range(10 - expected, 10))
        assert train.count() == 10 - expected


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=80), st.data())
def test_each_class_is_tested_in_proportion(labels, data):
    classes = np.unique(labels, return_inverse=True)[1]
    to_test = data.draw(st.integers(1, len(labels) - 1))
    chosen = rows_to_test(classes, to_test)
    assert chosen.sum() == to_test
    for one in set(classes):
        of_class = chosen[classes == one]
        assert abs(of_class.sum() - len(of_class) * to_test / len(labels)) < 1
        assert of_class.tolist() == sorted(of_class)  # the last ones


def test_iris_is_stratified_as_scikit_learn_does_it():
    data = load_iris()
    kept = np.r_[0:50, 50:80, 100:117]  # 50, 30 and 17 of a class
    labels = data.target[kept]
    table = pa.table({"x": data.data[kept, 0], "label": labels, "id": np.arange(len(kept))})
    train, test = dataset_of(table, 4).train_test_split(0.2, stratify="label")
    _, theirs = train_test_split(labels, test_size=20, stratify=labels, random_state=0)
    ours = test.to_pandas()["label"]
    np.testing.assert_array_equal(np.bincount(ours), np.bincount(theirs))
    assert sorted(ids(train) + ids(test)) == list(range(len(kept)))
    assert ids(train) == sorted(ids(train))
    assert [train.count(), test.count()] == [77, 20]
    assert [len(ids(part)) for part in train.split(2)] == [38, 39]  # parts of parts


def test_classes_may_be_text_and_null():
    labels = ["a"] * 40 + [None] * 20 + ["b"] * 20
    dataset = dataset_of(pa.table({"label": labels, "id": range(80)}))
    _, test = dataset.train_test_split(0.25, stratify="label")
    counts = {row["label"]: row["count()"] for row in test.groupby("label").count().take_all()}
    assert counts == {"a": 10, "b": 5, None: 5}


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        ("split", 0, "at least 1"),
        ("split", True, "at least 1"),
        ("streaming_split", True, "at least 1"),
        ("split_at_indices", [], "at least of length 1"),
        ("split_at_indices", [3, 1], "sorted"),
        ("split_at_indices", [-1, 1], "positive"),
        ("split_proportionately", [], "at least of length 1"),
        ("split_proportionately", [0.5, 0.5], "sum to less than 1"),
        ("split_proportionately", [0.5, 0.0], "bigger than 0"),
        ("split_proportionately", [float("nan")], "bigger than 0"),
        ("split_proportionately", [0.3] * 3 + [0.05] * 1 + [0.001] * 20, "too few"),
        ("train_test_split", 0.0, "between 0 and 1"),
        ("train_test_split", 1.0, "between 0 and 1"),
        ("train_test_split", 10, "number of rows, 10"),
        ("train_test_split", 0, "number of rows, 10"),
        ("train_test_split", 0.999, "too few"),
    ],
)
def test_arguments_that_divide_nothing_are_refused(method, argument, message):
    with pytest.raises(ValueError, match=message):
        getattr(numbers(10), method)(argument)


def test_numbers_of_parts_may_be_those_of_numpy():
    assert [part.count() for part in numbers(10).split(np.int64(3))] == [3, 3, 4]
    assert len(numbers(10).streaming_split(np.uint8(2))) == 2


@pytest.mark.parametrize("argument", [5, None, "x", [1, "a"], [None], [2.5]])
def test_indices_must_be_integers(argument):
    with pytest.raises(TypeError, match=r"split_at_indices\(.*must be a list of numbers of rows"):
        numbers(10).split_at_indices(argument)


@pytest.mark.parametrize("argument", [0.5, None, "x", [0.1, "a"], [None]])
def test_proportions_must_be_numbers(argument):
    with pytest.raises(TypeError, match=r"split_proportionately\(.*must be a list of proportions"):
        numbers(10).split_proportionately(argument)


def test_other_wrong_arguments():
    with pytest.raises(TypeError, match="test_size must be an int or a float, not 'half'"):
        numbers(10).train_test_split("half")
    with pytest.raises(ValueError, match="stratify cannot be combined with shuffle"):
        numbers(10).train_test_split(0.5, shuffle=True, stratify="id")
    with pytest.raises(ColumnError, match="did you mean 'id'"):
        numbers(10).train_test_split(0.5, stratify="idd")
    with pytest.raises(ValueError, match="1 locality_hints for 2"):
        numbers(10).split(2, locality_hints=["a"])


def test_a_position_is_that_of_one_split():
    table = pa.table({"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]})

    def layout(**options):
        train, _ = dataset_of(table).train_test_split(0.5, **options)
        return train.iterator().position()["layout"]

    options = (
        {"stratify": "a"},
        {"stratify": "b"},
        {"shuffle": True},
        {"shuffle": True, "seed": 2},
    )
    assert len({layout(**one) for one in options}) == 4
    assert layout(stratify="a") == layout(stratify="a")
