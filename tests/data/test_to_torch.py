"""Datasets of torch, in a loader's processes and without any."""

import contextlib
import pickle
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import minitrain.data
from minitrain.data.values import table_from_batch
from minitrain.exceptions import ColumnError, ConfigurationError
from minitrain.torch import loader as loaders
from tests.data.slices import dataset_of


def numbers(rows, **options):
    return dataset_of(pa.table({"id": range(rows), "x": np.arange(rows) / 2}), 5, **options)


def ids(batches):
    return [batch["id"].tolist() for batch in batches]


def test_batches_are_dicts_features_or_features_and_label():
    dataset = dataset_of(
        pa.table({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [9, 8, 7], "y": [0, 1, 0]})
    )
    whole = next(iter(dataset.to_torch(batch_size=2)))
    assert {name: tensor.tolist() for name, tensor in whole.items()} == {
        "a": [1, 2],
        "b": [0.5, 1.5],
        "c": [9, 8],
        "y": [0, 1],
    }
    features, label = next(iter(dataset.to_torch(label_column="y", batch_size=3)))
    assert features.tolist() == [[1, 0.5, 9], [2, 1.5, 8], [3, 2.5, 7]]
    assert label.tolist() == [[0], [1], [0]]
    features, label = next(
        iter(
            dataset.to_torch(
                label_column="y",
                feature_columns=["b"],
                label_column_dtype=torch.float32,
                feature_column_dtypes=torch.float16,
                unsqueeze_label_tensor=False,
                unsqueeze_feature_tensors=False,
            )
        )
    )
    assert (features.tolist(), label.tolist()) == ([0.5], [0])
    assert (features.dtype, label.dtype) == (torch.float16, torch.float32)
    groups, label = next(iter(dataset.to_torch(feature_columns=[["a", "c"], ["b"]], batch_size=2)))
    assert ([group.tolist() for group in groups], label) == (
        [[[1, 9], [2, 8]], [[0.5], [1.5]]],
        None,
    )
    named, _ = next(
        iter(
            dataset.to_torch(
                feature_columns={"n": ["a", "b"], "m": ["c"]},
                feature_column_dtypes={"n": torch.float32, "m": torch.int32},
                label_column="y",
            )
        )
    )
    assert {key: (one.dtype, one.tolist()) for key, one in named.items()} == {
        "n": (torch.float32, [[1, 0.5]]),
        "m": (torch.int32, [[9]]),
    }
    cast = next(iter(dataset.to_torch(feature_column_dtypes={"a": torch.float32})))
    assert (cast["a"].dtype, cast["c"].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_processes_of_a_loader_divide_the_batches(processes, drop_last):
    batches = numbers(103).to_torch(batch_size=10, drop_last=drop_last)
    loader = DataLoader(batches, batch_size=None, num_workers=processes)
    got = ids(loader)
    assert len(got) == len(loader) == (10 if drop_last else 11)
    assert sorted(i for batch in got for i in batch) == list(range(100 if drop_last else 103))
    assert sorted(map(len, got), reverse=True)[:10] == [10] * 10


def test_each_epoch_of_a_loader_is_the_next_one():
    dataset = numbers(60).random_shuffle(seed=1)
    plain = [[i for batch in ids(dataset.to_torch(batch_size=7)) for i in batch] for _ in range(1)]
    batches = dataset.to_torch(batch_size=7)
    epochs = [[i for batch in ids(DataLoader(batches, batch_size=None)) for i in batch]]
    assert epochs == plain
    for persistent in (False, True):
        loader = DataLoader(
            dataset.to_torch(batch_size=7),
            batch_size=None,
            num_workers=2,
            persistent_workers=persistent,
        )
        seen = [ids(loader) for _ in range(3)]
        assert seen[0] != seen[1] != seen[2]
        for epoch in seen:
            assert sorted(i for batch in epoch for i in batch) == list(range(60))
        del loader
        again = DataLoader(dataset.to_torch(batch_size=7), batch_size=None, num_workers=2)
        assert [ids(again) for _ in range(2)] == seen[:2]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_parts_of_shares_have_each_row_once_and_equal_batches(rows, size, parts, world, pad):
    shares = numbers(rows).streaming_split(world, equal=True, remainder="pad" if pad else "drop")
    lengths = set()
    for rank, share in enumerate(shares):
        own = [i for batch in share.iter_batches(batch_size=size) for i in batch["id"].tolist()]
        pieces = [
            [b["id"].tolist() for b in share.part(p, parts, size, 0).iter_batches(batch_size=size)]
            for p in range(parts)
        ]
        assert [i for piece in pieces for batch in piece for i in batch] == own, rank
        lengths.add(sum(map(len, pieces)))
        assert len(share.to_torch(batch_size=size)) == sum(map(len, pieces))
    assert len(lengths) == 1


def test_the_parts_of_an_epoch_are_of_the_rows_it_has():
    dataset = numbers(100).randomize_block_order(seed=3).limit(50).filter(lambda r: r["id"] < 50)
    share = dataset.streaming_split(2, equal=True)[1]
    lengths = set()
    for epoch in range(4):
        own = [i for batch in share.iter_batches(batch_size=4) for i in batch["id"].tolist()]
        parts = [share.part(p, 2, 4, epoch).iter_batches(batch_size=4) for p in range(2)]
        assert [i for part in parts for batch in part for i in batch["id"].tolist()] == own
        lengths.add(len(own))
    assert len(lengths) > 1


def test_a_share_in_a_loader_reads_its_rows():
    left, right = numbers(101, counted=False).streaming_split(2, equal=True)
    for share, expected in [(left, range(50)), (right, range(50, 100))]:
        loader = DataLoader(share.to_torch(batch_size=8), batch_size=None, num_workers=2)
        assert sorted(i for batch in ids(loader) for i in batch) == list(expected)


def test_it_can_be_pickled_for_processes_that_are_spawned():
    batches = pickle.loads(pickle.dumps(numbers(10).to_torch(batch_size=4)))
    assert ids(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_loader_that_moves_batches_to_a_gpu_takes_none_before_the_loop_does(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(loaders, "move", lambda batch, _: batch)
    iterator = numbers(10).iterator()
    loader = DataLoader(iterator.to_torch(batch_size=4), batch_size=None)
    moving = loaders._on_device(loader, torch.device("cuda"), ahead=True)
    found = [(one["id"].tolist(), iterator.position()["remaining"]) for one in moving]
    assert found == [([0, 1, 2, 3], [[4, 10]]), ([4, 5, 6, 7], [[8, 10]]), ([8, 9], [])]


def test_what_makes_no_tensor_is_said():
    ragged = dataset_of(table_from_batch({"r": [np.ones(1), np.ones(2)], "y": [1, 2]}, "a test"))
    with pytest.raises(ConfigurationError, match="'r' have different shapes"):
        list(ragged.to_torch(label_column="y", batch_size=2))
    with pytest.raises(ColumnError, match=r"to_torch: .*did you mean 'id'"):
        list(numbers(3).to_torch(label_column="idd"))
    with pytest.raises(ConfigurationError, match="batch_size=None"):
        numbers(3).to_torch(batch_size=None)
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        numbers(3).to_torch(batch_size=0)


@pytest.mark.parametrize("of", [lambda d: d, lambda d: d.streaming_split(1)[0]])
@pytest.mark.parametrize(
    "names", [["a", "b"], np.array(["a", "b"]), [["a"], "b"], {"n": ["a", "b"]}]
)
def test_columns_that_were_not_asked_for_become_no_tensors(of, names):
    table = pa.table({"a": [1, 2], "b": [3, 4], "s": ["x", "y"], "y": [0, 1]})
    batches = of(dataset_of(table)).to_torch(feature_columns=names, label_column="y", batch_size=2)
    features, label = next(iter(batches))
    if isinstance(names, dict):
        features = features["n"]
    if isinstance(features, list):
        features = torch.cat(features, dim=1)
    assert (features.tolist(), label.tolist()) == ([[1, 3], [2, 4]], [[0], [1]])
    with pytest.raises(ColumnError, match=r"to_torch: there is no column 'bb'; did you mean 'b'"):
        next(iter(of(dataset_of(table)).to_torch(feature_columns=["a", "bb"])))
    with pytest.raises(ColumnError, match=r"to_torch: there is no column 'yy'; did you mean 'y'"):
        next(iter(of(dataset_of(table)).to_torch(label_column="yy")))
    with pytest.raises(TypeError, match=r"column 's' .* iter_torch_batches\(collate_fn"):
        next(iter(of(dataset_of(table)).to_torch(label_column="y")))


def test_columns_that_were_not_asked_for_are_not_read(tmp_path):
    table = pa.table({"a": [1, 2], "s": ["x", "y"], "y": [0, 1]})
    dataset_of(table).write_parquet(tmp_path)
    batches = minitrain.data.read_parquet(tmp_path).to_torch(
        feature_columns=["a"], label_column="y"
    )
    (tables,) = {tuple(t.column_names) for t in batches._iterator.iter_batches(batch_format=None)}
    assert tables == ("a", "y")


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"feature_columns": []}, ConfigurationError, "at least one column"),
        ({"feature_columns": 5}, TypeError, "5 is no name of a column"),
        ({"label_column": ["x"]}, TypeError, r"\['x'\] is no name of a column"),
        ({"feature_columns": [5]}, TypeError, "5 is no name of a column"),
        ({"feature_columns": [[5]]}, TypeError, "5 is no name of a column"),
        ({"feature_columns": [["id"], []]}, ConfigurationError, "at least one column"),
        ({"feature_columns": ["id"], "feature_column_dtypes": "float32"}, TypeError, "'float32'"),
        (
            {"feature_columns": ["id"], "feature_column_dtypes": {"id": torch.int8}},
            TypeError,
            "the dtype {'id'",
        ),
        (
            {"feature_columns": {"n": ["id"]}, "feature_column_dtypes": {"m": torch.int8}},
            ConfigurationError,
            r"'m' is none of \['n'\]",
        ),
        (
            {"feature_columns": ["id", "x"], "feature_column_dtypes": [torch.int8]},
            ConfigurationError,
            "1 dtypes for 2",
        ),
        ({"label_column": "x", "label_column_dtype": np.float32}, TypeError, "float32"),
        ({"batch_size": 0}, ConfigurationError, "batch_size"),
        ({"batch_size": "3"}, ConfigurationError, "batch_size"),
        ({"prefetch_batches": -1}, ConfigurationError, "prefetch_batches"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(options, error, named):
    with pytest.raises(error, match=named):
        numbers(3).to_torch(**options)


def test_a_name_is_a_list_of_one():
    features, _ = next(iter(numbers(3).to_torch(feature_columns="id")))
    assert features.tolist() == [[0]]
