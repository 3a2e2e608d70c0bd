"""TensorFlow's tensors and datasets; skipped where TensorFlow is not installed."""

import numpy as np
import pyarrow as pa
import pytest

from minitrain.data.values import table_from_batch
from minitrain.exceptions import ColumnError, ConfigurationError, DataError
from tests.data.slices import dataset_of

tf = pytest.importorskip("tensorflow")

TABLE = table_from_batch(
    {
        "x": np.arange(10, dtype="float32"),
        "image": np.arange(10 * 6).reshape(10, 2, 3),
        "text": [f"row {i}" for i in range(10)],
        "ragged": pa.array([list(range(i % 3)) for i in range(10)], pa.list_(pa.int32())),
        "y": np.arange(10) % 2,
    },
    "a test",
)


def test_batches_are_dicts_of_tensors():
    batches = list(dataset_of(TABLE).iter_tf_batches(batch_size=4, dtypes={"y": tf.float32}))
    assert [int(batch["x"].shape[0]) for batch in batches] == [4, 4, 2]
    assert batches[0]["image"].shape == (4, 2, 3)
    assert batches[2]["text"].numpy().tolist() == [b"row 8", b"row 9"]
    assert batches[0]["ragged"].to_list() == [[], [0], [0, 1], []]
    assert batches[0]["y"].dtype == tf.float32
    again = dataset_of(TABLE).iter_tf_batches(batch_size=4)
    assert [len(list(again)) for _ in range(2)] == [3, 3]


def test_dtypes_and_columns_must_be_there():
    with pytest.raises(ColumnError, match="dtypes: there is no column 'yy'; did you mean 'y'"):
        next(iter(dataset_of(TABLE).iter_tf_batches(dtypes={"yy": tf.float32})))
    spec = tf.TensorSpec(shape=(None,), dtype=tf.int64)
    with pytest.raises(ColumnError, match="to_tf: there is no column 'yy'; did you mean 'y'"):
        dataset_of(TABLE).to_tf("x", "yy", label_type_spec=spec)


def test_tensors_of_several_shapes_are_ragged():
    table = table_from_batch({"r": [np.ones((2, 3)), np.ones((1, 4))]}, "a test")
    (batch,) = dataset_of(table).iter_tf_batches()
    assert batch["r"].shape == (2, None, None)
    assert batch["r"][1].to_list() == [[1, 1, 1, 1]]


def test_a_dataset_has_the_types_of_the_schema():
    made = dataset_of(TABLE).to_tf("x", "y", batch_size=4)
    assert made.element_spec == (
        tf.TensorSpec(shape=(None,), dtype=tf.float32),
        tf.TensorSpec(shape=(None,), dtype=tf.int64),
    )
    for _ in range(2):
        assert [x.numpy().tolist() for x, _ in made] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    made = dataset_of(TABLE).to_tf(
        ["image", "text"], "y", additional_columns=["ragged"], batch_size=5, drop_last=True
    )
    features, labels, more = next(iter(made))
    assert features["image"].shape == (5, 2, 3)
    assert features["text"].numpy()[0] == b"row 0"
    assert labels.numpy().tolist() == [0, 1, 0, 1, 0]
    assert more["ragged"].to_list() == [[], [0], [0, 1], [], [0]]


def test_a_type_that_is_given_is_the_one_that_comes():
    spec = tf.TensorSpec(shape=(None,), dtype=tf.float64)
    made = dataset_of(TABLE).to_tf("x", "y", label_type_spec=spec)
    assert next(iter(made))[1].dtype == tf.float64


def test_a_share_can_be_trained_on():
    left, right = dataset_of(TABLE).streaming_split(2, equal=True)
    rows = [[x.numpy().tolist() for x, _ in share.to_tf("x", "y")] for share in (left, right)]
    assert rows == [[[i] for i in range(5)], [[i] for i in range(5, 10)]]


def test_what_has_no_tensor_is_said():
    dataset = dataset_of(TABLE)
    with pytest.raises(ColumnError, match="did you mean 'ragged'"):
        dataset.to_tf("raged", "y")
    ragged = dataset_of(table_from_batch({"r": [np.ones((2, 3)), np.ones((1, 4))]}, "a test"))
    with pytest.raises(ConfigurationError, match=r"'r' is .*feature_type_spec"):
        ragged.to_tf("r", "r")
    objects = dataset_of(table_from_batch({"o": [1 + 2j, object]}, "a test"))
    with pytest.raises(DataError, match="cannot become a tensor"):
        list(objects.iter_tf_batches())
    with pytest.raises(ConfigurationError, match="no rows"):
        dataset.filter(lambda _: False).to_tf("x", "y")
