"""Rows whose types differ from table to table, joined in memory, in shared memory and in files."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitrain.data.context import DataContext
from minitrain.data.creation import from_arrow, from_items, from_pandas
from minitrain.data.processes import shared as shared_module
from minitrain.data.processes.shared import SharedTable
from minitrain.data.read import read_parquet
from minitrain.data.values import (
    ObjectType,
    RaggedTensorType,
    concat_tables,
    rows_from_table,
    table_from_batch,
)
from minitrain.exceptions import ConfigurationError, DataError, SchemaMismatchError, TransformError
from tests.data.slices import dataset_of_slices

MIB = 1 << 20
WORDS = pa.array(["a", "b", "a"])
HASHES = pa.array([2**63, 3], pa.uint64())


def tables_of(*columns):
    return [
        column if isinstance(column, pa.Table) else table_from_batch({"x": column}, "f")
        for column in columns
    ]


def shared_rows(tables, budget_bytes=MIB, spill_folder=None):
    shared = SharedTable.write(tables, budget_bytes=budget_bytes, spill_folder=spill_folder)
    table = shared.table()
    shared.close()
    return table


# ---------------------------------------------------------------------- types
CASES = {
    "nulls, then integers": ([[None], [2]], pa.int64()),
    "integers, then nulls": ([[2], [None]], pa.int64()),
    "integers, floats, integers": ([[1], [2.5], [3]], pa.float64()),
    "texts of two sizes": ([WORDS, WORDS.cast(pa.large_string())], pa.large_string()),
    "a dictionary, texts": ([WORDS.dictionary_encode(), WORDS], pa.string()),
    "tensors of two shapes": ([np.zeros((2, 2)), np.ones((1, 3))], RaggedTensorType(pa.float64())),
    "what does not fit together": ([[1], ["a"]], ObjectType()),
    "no rows": ([pa.array([], pa.float64()), [1]], pa.float64()),
    "a missing column": ([pa.table({"y": [1, 2]}), [1]], pa.int64()),
    "no columns": ([pa.table({"x": [1, 2]}).select([]), [1]], pa.int64()),
    "booleans, floats": ([[True, False], [1.0, None]], pa.float64()),
    "floats of 16 bits, booleans": ([np.zeros(1, "f2"), [True, None]], pa.float16()),
    "booleans, integers": ([[True], [1]], ObjectType()),
    "hashes, small ones": ([HASHES, [3]], pa.uint64()),
    "hashes, none, small ones": ([HASHES, [None], np.ones(1, "i1")], pa.uint64()),
    "small hashes, negative": ([HASHES[1:], [-1]], pa.int64()),
}


@pytest.mark.parametrize(("columns", "type_"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("budget_bytes", [MIB, 0], ids=["memory", "file"])
def test_shared_memory_joins_as_memory_does(columns, type_, budget_bytes, tmp_path):
    tables = tables_of(*columns)
    joined = concat_tables(tables)
    assert joined.schema.field("x").type == type_
    table = shared_rows(iter(tables), budget_bytes, tmp_path)
    table.validate(full=True)
    assert table.schema.equals(joined.schema)
    assert repr(list(rows_from_table(table))) == repr(list(rows_from_table(joined)))


def test_what_is_joined_is_never_in_memory_as_a_whole(monkeypatch):
    held = []
    before = pa.total_allocated_bytes()

    def converted(table, schema):
        held.append(pa.total_allocated_bytes() - before)
        return one_converted(table, schema)

    one_converted = shared_module.converted
    monkeypatch.setattr(shared_module, "converted", converted)
    kinds = np.int32, np.float32
    tables = (pa.table({"x": np.arange(1 << 15, dtype=kinds[i % 2])}) for i in range(16))
    table = shared_rows(tables, budget_bytes=64 * MIB)
    assert table["x"].type == pa.float64()
    assert len(held) == 16
    assert max(held) < 4 * table.nbytes / 16


def test_nothing_stays_of_what_was_written_before_all_types_were_known(tmp_path):
    before = os.listdir("/proc/self/fd")
    tables = tables_of([2**60 + 1], [0.5])
    for budget_bytes in (0, MIB):
        with pytest.raises(SchemaMismatchError):
            shared_rows(tables, budget_bytes, tmp_path)
    assert os.listdir("/proc/self/fd") == before
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- datasets
def halves():
    """Return a dataset of two blocks that become floats with a null, and integers."""
    table = pa.table({"a": pa.array([1, None, 3, 4]), "k": [3, 2, 1, 0]})
    return from_arrow(table, override_num_blocks=2).map_batches(lambda batch: batch)


WHOLES = {
    "materialize": lambda ds: ds.materialize(),
    "random_shuffle": lambda ds: ds.random_shuffle(),
    "sort": lambda ds: ds.sort("k"),
    "map_groups": lambda ds: ds.groupby("k").map_groups(lambda batch: batch),
    "share": lambda ds: ds.streaming_split(1, equal=True)[0].materialize(),
}


@pytest.mark.parametrize("whole", WHOLES.values(), ids=WHOLES)
def test_where_blocks_end_makes_no_difference(whole):
    table = whole(halves()).to_arrow()
    assert table.schema == halves().to_arrow().schema
    numbers = table.sort_by("k")["a"].to_pylist()
    assert numbers == pytest.approx([4.0, 3.0, float("nan"), 1.0], nan_ok=True)


def test_shuffled_parts_and_unions_are_joined():
    parts = halves().train_test_split(2, shuffle=True, seed=1)
    assert [part.count() for part in parts] == [2, 2]
    both = from_items([{"a": 1, "s": "x"}]).union(from_items([{"a": 1.5, "s": None}]))
    assert sorted(row["a"] for row in both.random_shuffle().iter_rows()) == [1.0, 1.5]


def test_booleans_with_nulls_stay_values():
    table = pa.table({"x": [True, None, False, True]})
    made = from_arrow(table, override_num_blocks=2).map_batches(lambda batch: batch)
    counted = made.groupby("x").count().take_all()
    assert [row["count()"] for row in counted] == [1, 2, 1]
    assert [row["x"] for row in made.sort("x").take(3)] == [0.0, 1.0, 1.0]


def test_what_does_not_fit_is_named_with_its_remedy():
    table = pa.table({"id": pa.array([2**60 + 1, None, 2**60 + 1, 4])})
    made = from_arrow(table, override_num_blocks=2).map_batches(lambda batch: batch)
    problem = r"column 'id' .* int64 .* cannot become double.*astype\(\) or cast\(\).*'pyarrow'"
    with pytest.raises(SchemaMismatchError, match=problem):
        made.to_arrow()
    with pytest.raises(SchemaMismatchError, match=rf"^map_batches\(<lambda>\): .*{problem}"):
        made.random_shuffle().take(1)


def test_a_file_that_has_begun_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(DataContext.get_current(), "target_block_bytes", 1)
    made = dataset_of_slices(tables_of([1, 2], [3.0, float("nan")]))
    with pytest.raises(DataError, match=r"column 'x' is int64 .* double later.* materialize\(\)"):
        made.write_parquet(tmp_path / "out")
    made.materialize().write_parquet(tmp_path / "out")
    assert pq.read_table(tmp_path / "out")["x"].type == pa.float64()


# ---------------------------------------------------------------------- no columns
def file_of(folder):
    pq.write_table(pa.table({"a": [1]}), folder / "a.parquet")
    return folder


NOTHING = {
    "items": (lambda _: from_items([{}, {}]), "from_items: rows need at least one column"),
    "Arrow": (lambda _: from_arrow(pa.table({"a": [1]}).select([])), "from_arrow: rows need"),
    "pandas": (lambda _: from_pandas(halves().to_pandas()[[]]), "from_pandas: rows need"),
    "selected": (lambda _: halves().select_columns([]), "select_columns: name at least one"),
    "dropped": (lambda _: halves().drop_columns(["k", "a"]).take(), "no other column is left"),
    "read": (lambda at: read_parquet(file_of(at), columns=[]), "name at least one column"),
}


@pytest.mark.parametrize(("make", "problem"), NOTHING.values(), ids=NOTHING)
def test_rows_without_columns_are_refused(make, problem, tmp_path):
    with pytest.raises(ConfigurationError, match=problem):
        make(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds.map(lambda row: {}),
        lambda ds: ds.flat_map(lambda row: [{}, {}]),
        lambda ds: ds.map_batches(lambda frame: frame[[]], batch_format="pandas"),
    ],
    ids=["map", "flat_map", "map_batches"],
)
def test_functions_that_return_rows_without_columns_are_refused(change):
    with pytest.raises(TransformError, match=r"returned \d rows without any column"):
        change(halves()).take()


def test_no_rows_need_no_columns(tmp_path):
    assert from_items([]).count() == 0
    assert halves().map_batches(lambda batch: {}).take_all() == []
    assert read_parquet(file_of(tmp_path), columns=[], include_paths=True).columns() == ["path"]
