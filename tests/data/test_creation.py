"""Datasets of what is in memory, and of other libraries' own, by the real libraries."""

from __future__ import annotations

import pickle

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import tqdm

from minitrain.data import creation, read_parquet
from minitrain.data.plans.sources import RangeSource, TableSource, ranges
from minitrain.exceptions import ColumnError, ConfigurationError, SchemaMismatchError


def values(dataset) -> list:
    return [tuple(row.values()) for row in dataset.take_all()]


def test_numbers():
    assert creation.range(3).take_all() == [{"id": 0}, {"id": 1}, {"id": 2}]
    assert creation.range(0).count() == 0
    assert [block.rows for block in RangeSource(n=10, number=3).blocks()] == [3, 3, 4]
    assert [block.rows for block in RangeSource(n=2, number=5).blocks()] == [1, 1]
    with pytest.raises(ConfigurationError, match="negative"):
        creation.range(-1)
    with pytest.raises(TypeError, match="must be an int"):
        creation.range(2.5)
    for number in (0, "2", 2.5):
        with pytest.raises(ConfigurationError, match=f"override_num_blocks={number!r}"):
            creation.range(3, override_num_blocks=number)


def test_items():
    assert creation.from_items([1, 2]).take_all() == [{"item": 1}, {"item": 2}]
    rows = creation.from_items([{"a": 1}, {"b": "x"}]).take_all()
    assert rows == [{"a": 1, "b": None}, {"a": None, "b": "x"}]
    assert creation.from_items([]).count() == 0


def test_arrays():
    assert values(creation.from_numpy(np.arange(3))) == [(0,), (1,), (2,)]
    two = creation.from_numpy([np.ones((2, 2)), np.zeros((1, 2))])
    assert [row["data"].tolist() for row in two.take_all()] == [[1, 1], [1, 1], [0, 0]]
    assert values(creation.from_numpy({"a": np.arange(2), "b": np.array(["x", "y"])})) == [
        (0, "x"),
        (1, "y"),
    ]
    with pytest.raises(SchemaMismatchError, match="table 1 and the first have different columns"):
        creation.from_numpy([np.ones((2, 2)), np.zeros((1, 3))])


def test_pandas():
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    assert values(creation.from_pandas(frame)) == [(1, "x"), (2, None)]
    assert creation.from_pandas([frame, frame]).count() == 4
    with pytest.raises(SchemaMismatchError, match="'b' is missing"):
        creation.from_pandas([frame, frame[["a"]]])


TABLE = pa.table({"a": [1, 2], "b": ["x", "y"]})


@pytest.mark.parametrize(
    "given",
    [
        TABLE,
        TABLE.to_batches()[0],
        [TABLE.slice(0, 1), TABLE.slice(1)],
        TABLE.to_reader(),
        pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
    ],
    ids=lambda given: type(given).__module__.partition(".")[0] + "." + type(given).__name__,
)
def test_what_speaks_arrow(given):
    assert values(creation.from_arrow(given)) == [(1, "x"), (2, "y")]


def test_a_relation_of_duckdb():
    with duckdb.connect() as connection:
        relation = connection.sql("SELECT * FROM (VALUES (1, 'x'), (2, 'y')) AS t(a, b)")
        assert values(creation.from_arrow(relation)) == [(1, "x"), (2, "y")]


TEXTS = ["a", None, "longer than what a view holds itself"]
BLOBS = [b"a", None, b"longer than what a view holds itself"]
INT_128 = pl.Series([1]).cast(pl.Int128)
OF_POLARS = {
    "string": pl.Series(TEXTS),
    "binary": pl.Series(BLOBS),
    "categorical": pl.Series(TEXTS, dtype=pl.Categorical),
    "enum": pl.Series(TEXTS, dtype=pl.Enum([TEXTS[0], TEXTS[2]])),
    "list": pl.Series([[text] for text in TEXTS]),
    "list of binary": pl.Series([[blob] for blob in BLOBS]),
    "list of lists": pl.Series([[[text], []] for text in TEXTS]),
    "list of categorical": pl.Series([[text] for text in TEXTS], dtype=pl.List(pl.Categorical)),
    "array": pl.Series([[text] for text in TEXTS], dtype=pl.Array(pl.String, 1)),
    "struct": pl.Series([{"s": text, "n": 1} for text in TEXTS]),
    "struct of lists": pl.Series([{"s": [text]} for text in TEXTS]),
    "list of structs": pl.Series([[{"s": text}] for text in TEXTS]),
}


def checks_rows(dataset, expected, path):
    """What needs a kernel of pyarrow for the type of each column, against the rows themselves."""
    by_row = {row["row"]: row for row in expected}
    last = expected[1:]
    assert dataset.take_all() == expected
    assert len(dataset.take_batch(3)["c"]) == 3
    assert dataset.map_batches(lambda batch: batch, batch_format="pyarrow").take_all() == expected
    assert dataset.map_batches(lambda batch: batch).count() == 3
    assert dataset.filter(pc.field("row") > 0).take_all() == last
    assert dataset.filter(lambda row: row["row"] > 0).take_all() == last
    assert dataset.sort("row", descending=True).take_all() == expected[::-1]
    assert [by_row[row["row"]] == row for row in dataset.random_shuffle().take_all()] == [True] * 3
    dataset.write_parquet(path)
    assert read_parquet(path).take_all() == expected


@pytest.mark.parametrize("kind", OF_POLARS)
def test_every_column_of_polars_goes_through_every_step(kind, tmp_path):
    frame = pl.DataFrame({"c": OF_POLARS[kind], "row": range(3)})
    checks_rows(creation.from_arrow(frame), frame.to_dicts(), tmp_path)


@pytest.mark.parametrize("views", [False, True])
def test_every_column_of_duckdb_goes_through_every_step(views, tmp_path):
    values = {
        "c": "r",
        "blob": "r::blob",
        "enum": "r::kind",
        "list": "[r]",
        "array": "[r]::varchar[1]",
        "struct": "{'s': r}",
        "map": "map {'k': r}",
    }
    columns = ", ".join(f'{value} as "{name}"' for name, value in values.items())
    query = f"select {columns}, i as row from (select i, i::varchar as r from range(3) t(i))"
    with duckdb.connect() as connection:
        connection.sql("create type kind as enum ('0', '1', '2')")
        connection.sql(f"set produce_arrow_string_view={views}")
        connection.sql("set arrow_output_version='1.4'")
        expected = pa.table(connection.sql(query)).to_pylist()
        checks_rows(creation.from_arrow(connection.sql(query)), expected, tmp_path)


def test_views_keep_what_their_fields_say():
    view = pa.field("s", pa.string_view(), nullable=False, metadata={"a": "b"})
    table = pa.table([pa.array(["x"], view.type)], schema=pa.schema([view], metadata={"c": "d"}))
    schema = creation.from_arrow(table).schema()
    assert schema.field("s").equals(view.with_type(pa.large_string()), check_metadata=True)
    assert schema.metadata == {b"c": b"d"}


WRONG = {
    "a number of items": (creation.from_items, 5, "from_items: int is no list of items"),
    "a text of items": (creation.from_items, "abc", "str is no list"),
    "a dict of items": (creation.from_items, {"a": [1]}, "dict is no list"),
    "a frame of items": (creation.from_items, pd.DataFrame({"a": [1]}), "from_pandas a frame"),
    "a table of items": (creation.from_items, TABLE, "from_arrow a table"),
    "a dataset of items": (creation.from_items, creation.range(1), "Dataset is no list"),
    "a series": (creation.from_pandas, pd.Series([1]), "from_pandas: Series is no pandas.Data"),
    "a list of series": (creation.from_pandas, [pd.Series([1])], "Series is no pandas.DataFrame"),
    "a number": (creation.from_numpy, 5, "from_numpy: int is no array"),
    "a text": (creation.from_numpy, "abc", "from_numpy: str is no array"),
    "numbers": (creation.from_numpy, [1, 2], "from_numpy: list is no array"),
    "an array without rows": (creation.from_numpy, np.array(5), "ndarray is no array with rows"),
    "a dict": (creation.from_arrow, {"a": [1]}, "from_arrow: dict is no Arrow table"),
    "an array of Arrow": (creation.from_arrow, pa.array([1]), "no table of this Int64Array"),
    "a series of polars": (creation.from_arrow, pl.Series([1]), "no table of this Series"),
    "128 bits": (creation.from_arrow, pl.DataFrame({"a": INT_128}), "no table of this DataFrame"),
    "a name twice": (
        creation.from_arrow,
        pa.table([[1], [2]], names=["a", "a"]),
        "several columns named 'a'",
    ),
    "no torch": (creation.from_torch, 5, "from_torch: int is no torch.utils.data.Dataset"),
    "a dict for torch": (creation.from_torch, {"a": 1}, "from_torch: dict is no torch"),
    "no tensorflow": (creation.from_tf, 5, "from_tf: int is no tf.data.Dataset"),
}


@pytest.mark.parametrize(("function", "given", "message"), WRONG.values(), ids=WRONG)
def test_what_no_dataset_can_be_made_of(function, given, message):
    with pytest.raises((TypeError, ConfigurationError), match=message):
        function(given)


@pytest.fixture
def huggingface(tmp_path, monkeypatch):
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # a thread that stays
    whole = datasets.Dataset.from_dict({"a": list(range(100)), "b": [f"x{n}" for n in range(100)]})
    whole.save_to_disk(tmp_path / "dataset")
    return datasets.load_from_disk(tmp_path / "dataset")


def test_a_hugging_face_dataset_in_its_order(huggingface):
    chosen = huggingface.shuffle(seed=1).select(range(10))
    expected = [(row["a"], row["b"]) for row in chosen]
    dataset = creation.from_huggingface(chosen)
    assert values(dataset) == expected
    assert dataset.count() == 10
    assert len(pickle.dumps(chosen.with_format("arrow"))) < 20_000  # its files, not its rows


def test_a_hugging_face_stream_starts_anew_each_time(huggingface):
    dataset = creation.from_huggingface(huggingface.to_iterable_dataset())
    assert values(dataset) == values(dataset) == [(n, f"x{n}") for n in range(100)]


def test_no_hugging_face_dataset(huggingface):
    with pytest.raises(TypeError, match=r"give one: \['train'\]"):
        creation.from_huggingface(datasets.DatasetDict(train=huggingface))
    with pytest.raises(TypeError, match="list is no"):
        creation.from_huggingface([1])


class Squares(torch.utils.data.Dataset):
    def __init__(self):
        self.asked = []

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        self.asked.append(index)
        return index**2


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from ({"x": 1}, {"x": 2})


def test_a_torch_dataset_is_read_where_it_is_needed():
    squares = Squares()
    dataset = creation.from_torch(squares)
    assert not squares.asked
    assert dataset.take(2) == [{"item": 0}, {"item": 1}]
    assert 9_999 not in squares.asked
    assert values(dataset) == [(n**2,) for n in range(10_000)]


class Counted(Stream):
    def __len__(self):
        return 2


@pytest.mark.parametrize("stream", [Stream(), Counted()])
def test_a_torch_stream_is_read_at_once(stream):
    assert values(creation.from_torch(stream)) == [({"x": 1},), ({"x": 2},)]


class NumpyElements:
    """What of a tf.data.Dataset is used."""

    def __init__(self, *elements):
        self.elements = elements

    def as_numpy_iterator(self):
        return iter(self.elements)


def test_a_tensorflow_dataset():
    assert values(creation.from_tf(NumpyElements({"a": np.int64(1)}, {"a": np.int64(2)}))) == [
        (1,),
        (2,),
    ]
    assert values(creation.from_tf(NumpyElements(np.float32(0.5)))) == [(0.5,)]


def test_a_large_table_is_cut_and_its_blocks_travel_alone():
    table = pa.table({"a": np.arange(100_000), "b": np.zeros(100_000)})
    blocks = list(TableSource(kind="from_arrow", table=table, columns=("a",)).blocks())
    assert len(blocks) == 8
    size = len(pickle.dumps(blocks[0]))
    assert size < 1.1 * blocks[0].rows * 8
    again = pickle.loads(pickle.dumps(blocks[3]))
    assert next(again.read(0, 1)).to_pylist() == [{"a": 37_500}]
    with pytest.raises(ColumnError, match="no column 'c'"):
        TableSource(kind="from_arrow", table=table, columns=("c",)).schema()


def test_few_rows_are_not_cut_unless_it_is_asked_for():
    assert list(ranges(10, 80, None)) == [(0, 10)]
    assert list(ranges(10, 80, 2)) == [(0, 5), (5, 10)]
    assert not list(ranges(0, 0, 3))
