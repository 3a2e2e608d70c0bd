"""Parquet: blocks are row groups, what is not needed is not read, what is bad is named."""

from __future__ import annotations

import logging
import pickle
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from minitrain.data.context import DataContext
from minitrain.data.files import footers
from minitrain.data.files.parquet import EXTENSIONS, ParquetSource
from minitrain.exceptions import ColumnError, DataError, DataFileError, SchemaMismatchError
from tests.data.reading import counts_of, rows_of, tables_of, where

ROWS = 1000


@pytest.fixture
def context(monkeypatch) -> DataContext:
    context = DataContext()
    monkeypatch.setattr(DataContext, "_current", context)
    return context


def table_of(first, rows=ROWS):
    numbers = range(first, first + rows)
    return pa.table(
        {
            "id": pa.array(numbers),
            "half": pa.array([n / 2 for n in numbers], pa.float32()),
            "name": [f"n{n}" for n in numbers],
            "maybe": pa.array([n if n % 3 else None for n in numbers]),
        }
    )


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "numbers"
    folder.mkdir()
    for index in range(3):
        pq.write_table(table_of(index * ROWS), folder / f"{index}.parquet", row_group_size=250)
    return folder


def source(*paths, **options) -> ParquetSource:
    named = {
        name: options.pop(name) for name in ("include_paths", "partitioning") if name in options
    }
    return ParquetSource(where=where(*paths, extensions=EXTENSIONS, **named), **options)


def test_rows_come_in_the_order_of_files(folder):
    everything = source(folder)
    assert rows_of(everything) == pq.read_table(folder).to_pylist()
    assert counts_of(everything) == 3 * ROWS
    assert everything.describe() == f"read_parquet {folder} (3 files)"
    assert list(everything.input_files()) == [str(folder / f"{n}.parquet") for n in range(3)]


def test_small_row_groups_of_a_file_are_joined_and_large_ones_are_not(folder, context):
    assert [block.rows for block in source(folder).blocks()] == [ROWS] * 3
    context.target_block_bytes = 1000
    blocks = list(source(folder).blocks())
    assert [block.rows for block in blocks] == [250] * 12
    assert blocks[5].name == f"{folder}/1.parquet, row group 1"
    context.target_block_bytes = 1 << 26
    for number in (3, 6, 12):
        assert len(list(source(folder, override_num_blocks=number).blocks())) == number


def test_a_row_group_comes_in_tables_of_a_bounded_size(tmp_path, context):
    rows = 200_000
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(rows)}), tmp_path / "a.parquet")
    context.target_table_bytes = 1 << 16
    (block,) = source(tmp_path / "a.parquet").blocks()
    tables = list(block.read())
    assert len(tables) > 20
    assert max(table.nbytes for table in tables) <= 1.1 * (1 << 16)


def test_columns_are_read_in_the_order_they_are_asked_for(folder):
    chosen = source(folder, columns=("name", "id"))
    assert tables_of(chosen)[0].column_names == ["name", "id"]
    none = source(folder, columns=())
    assert sum(table.num_rows for table in tables_of(none)) == counts_of(none) == 3 * ROWS


def test_a_column_that_is_not_there(folder):
    with pytest.raises(ColumnError, match="did you mean 'half'"):
        list(source(folder, columns=("hlaf",)).blocks())
    with pytest.raises(ColumnError, match="the filter: there is no column 'hlaf'"):
        list(source(folder, predicate=pc.field("hlaf") > 1).blocks())
    with pytest.raises(DataError, match="cannot be applied"):
        list(source(folder, predicate=pc.field("name") > 1).blocks())


@pytest.mark.parametrize(
    "predicate",
    [
        pc.field("id") < 1700,
        (pc.field("id") >= 240) & (pc.field("id") < 260),
        pc.field("maybe") > 2500,
        ~(pc.field("maybe") > 2500),
        pc.field("half") > 600,
        pc.field("name") == "n2718",
        pc.field("maybe").is_null(),
        pc.field("id") > 1e9,
    ],
    ids=str,
)
def test_a_filter_keeps_what_pyarrow_keeps(folder, predicate):
    expected = pads.dataset(folder).to_table(columns=["half"], filter=predicate).to_pylist()
    filtered = source(folder, columns=("half",), predicate=predicate)
    assert rows_of(filtered) == expected
    assert counts_of(filtered) == len(expected)
    known = [block for block in filtered.blocks() if block.rows is not None]
    assert all(block.rows == sum(t.num_rows for t in block.read()) for block in known)


def test_row_groups_that_a_filter_leaves_out_are_not_read(folder):
    corrupt(folder / "2.parquet", 4)
    assert len(rows_of(source(folder, predicate=pc.field("id") < 10))) == 10
    (block,) = source(folder, predicate=(pc.field("id") >= 250) & (pc.field("id") < 500)).blocks()
    assert (block.rows, block.groups) == (250, ((1, 250),))  # statistics decide for all rows
    (block,) = source(folder, predicate=pc.field("id") < 10).blocks()
    assert block.rows is None
    assert block.count() == 10


def test_nulls_and_nan_are_not_decided_by_statistics(tmp_path):
    table = pa.table({"x": [6.0, float("nan"), 7.0], "n": [6, None, 7]})
    pq.write_table(table, tmp_path / "a.parquet")
    for name in table.column_names:
        filtered = source(tmp_path, predicate=pc.field(name) > 5)
        assert counts_of(filtered) == len(rows_of(filtered)) == 2


def test_a_count_with_a_filter_reads_only_its_columns(folder):
    predicate = pc.field("id") < 10
    (block,) = source(folder, predicate=predicate).blocks()
    counting = block.reading.for_counting()
    assert counting.stored.names == ["id"]


def test_folders_and_paths_become_columns_and_files_are_left_out_by_them(tmp_path):
    for year in (2023, 2024):
        path = tmp_path / f"year={year}"
        path.mkdir()
        pq.write_table(pa.table({"a": [year, year + 1]}), path / "x.parquet")
    everything = source(tmp_path, include_paths=True)
    assert everything.schema().names == ["a", "year", "path"]
    assert rows_of(everything)[2] == {
        "a": 2024,
        "year": 2024,
        "path": str(tmp_path / "year=2024/x.parquet"),
    }
    filtered = source(tmp_path, columns=("a",), predicate=pc.field("year") == 2024)
    assert rows_of(filtered) == [{"a": 2024}, {"a": 2025}]
    assert [block.rows for block in filtered.blocks()] == [2]
    both = source(tmp_path, predicate=(pc.field("year") == 2024) & (pc.field("a") == 2025))
    assert rows_of(both) == [{"a": 2025, "year": 2024}]
    assert rows_of(source(tmp_path, columns=("year",)))[0] == {"year": 2023}
    assert source(tmp_path, partitioning=None).schema().names == ["a"]


def test_a_file_with_all_footers_is_enough(tmp_path, monkeypatch):
    described = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table_of(0), path, row_group_size=300, metadata_collector=described)
        described[-1].set_file_path(path.name)
    pq.write_metadata(table_of(0).schema, tmp_path / "_metadata", metadata_collector=described)
    expected = [(block.name, block.rows) for block in source(tmp_path).blocks()]
    asked = []
    monkeypatch.setattr(
        "minitrain.data.files.parquet.read_footer",
        lambda file, *rest: (asked.append(file.path), footers.read_footer(file, *rest))[1],
    )
    again = source(tmp_path)
    assert [(block.name, block.rows) for block in again.blocks()] == expected
    assert set(asked) <= {str(tmp_path / "a.parquet")}  # for the columns
    assert len(rows_of(again)) == 2 * ROWS
    asked.clear()
    pq.write_table(table_of(0), tmp_path / "c.parquet")  # and now it does not describe all files
    assert counts_of(source(tmp_path)) == 3 * ROWS
    assert str(tmp_path / "c.parquet") in asked


def test_bytes_that_hold_tensors(tmp_path):
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3) + n for n in range(4)]
    pq.write_table(
        pa.table({"x": [one.tobytes() for one in arrays], "n": range(4)}), tmp_path / "a.parquet"
    )
    tensors = source(tmp_path, tensors={"x": (np.float32, (2, 3))}, predicate=pc.field("n") > 0)
    (table,) = tables_of(tensors)
    found = table.column("x").combine_chunks()
    np.testing.assert_array_equal(found.to_numpy_ndarray(), np.stack(arrays[1:]))
    with pytest.raises(SchemaMismatchError, match="6 numbers do not make a tensor"):
        rows_of(source(tmp_path, tensors={"x": (np.float32, (2, 2))}))


def test_files_with_other_columns_are_named_with_the_difference(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": ["1"], "c": [2]}), tmp_path / "1.parquet")
    with pytest.raises(SchemaMismatchError) as caught:
        list(source(tmp_path).blocks())
    text = str(caught.value)
    assert f"{tmp_path}/1.parquet and {tmp_path}/0.parquet have different columns" in text
    assert "'a' is string instead of int64" in text
    assert "'b' is missing" in text
    assert "'c' is extra" in text
    skipping = source(tmp_path, on_error="skip")
    assert rows_of(skipping) == [{"a": 1, "b": "x"}]
    assert skipping.skips.count == 1


def test_other_columns_do_not_matter_if_they_are_not_read(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"c": [2], "a": [2]}), tmp_path / "1.parquet")
    assert rows_of(source(tmp_path, columns=("a",))) == [{"a": 1}, {"a": 2}]


def test_columns_in_another_order_and_of_kindred_types_become_the_first_ones(tmp_path):
    pq.write_table(pa.table({"a": pa.array([1], pa.int64()), "b": ["x"]}), tmp_path / "0.parquet")
    other = pa.table({"b": pa.array(["y"]).dictionary_encode(), "a": pa.array([2], pa.int32())})
    pq.write_table(other, tmp_path / "1.parquet")
    assert rows_of(source(tmp_path)) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    pq.write_table(pa.table({"a": pa.array([1], pa.int8())}), narrow / "0.parquet")
    pq.write_table(pa.table({"a": pa.array([300])}), narrow / "1.parquet")
    with pytest.raises(SchemaMismatchError, match=r"1\.parquet, row group 0: a value does not fit"):
        rows_of(source(narrow))


@pytest.mark.parametrize(
    ("stored", "read", "values"),
    [
        (pa.string_view(), pa.large_string(), ["a", None, "longer than twelve bytes"]),
        (pa.binary_view(), pa.large_binary(), [b"a", None, b""]),
        (pa.list_(pa.string_view()), pa.list_(pa.large_string()), [["a"], None, []]),
        (
            pa.struct([("a", pa.list_(pa.binary_view(), 1))]),
            pa.struct([("a", pa.list_(pa.large_binary(), 1))]),
            [{"a": [b"x"]}, None, {"a": [None]}],
        ),
        (
            pa.map_(pa.string_view(), pa.string_view()),
            pa.map_(pa.large_string(), pa.large_string()),
            [[("k", "v")], None, []],
        ),
    ],
    ids=str,
)
def test_views_become_types_that_all_functions_know(tmp_path, stored, read, values):
    table = pa.table({"x": pa.array(values, stored), "n": range(3)})
    pq.write_table(table, tmp_path / "a.parquet")
    filtered = source(tmp_path, predicate=pc.field("n") > 0)
    assert filtered.schema().field("x").type == read
    assert rows_of(filtered) == table.to_pylist()[1:]
    assert rows_of(source(tmp_path, columns=("x",))) == table.select(["x"]).to_pylist()


def test_a_view_is_looked_at_by_a_filter(tmp_path):
    table = pa.table({"x": pa.array(["a", "b", None], pa.string_view())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert rows_of(source(tmp_path, predicate=pc.field("x") == "b")) == [{"x": "b"}]


# What is broken.


def corrupt(path, group):
    """Overwrite a part of a row group's first column."""
    group = min(group, pq.read_metadata(path).num_row_groups - 1)
    column = pq.read_metadata(path).row_group(group).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    noise = random.Random(1).randbytes(column.total_compressed_size)
    data[start : start + len(noise)] = noise
    path.write_bytes(bytes(data))


def test_a_corrupt_row_group_is_named(folder):
    corrupt(folder / "1.parquet", 2)
    with pytest.raises(DataFileError, match=r"1\.parquet, row group 2: cannot be decoded"):
        rows_of(source(folder))


def test_a_page_whose_checksum_is_wrong_is_found(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"a": np.arange(1000)}),
        path,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + 500] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataFileError, match="row group 0"):
        rows_of(source(path))


def test_a_corrupt_row_group_is_skipped_in_each_process_alike(folder, caplog):
    corrupt(folder / "1.parquet", 2)
    skipping = source(folder, on_error="skip")
    blocks = list(skipping.blocks())
    assert {block.rows for block in blocks} == {None}
    left = [n for n in range(3 * ROWS) if not 1500 <= n < 1750]
    assert [row["id"] for row in rows_of(skipping)] == left
    assert counts_of(skipping) == len(left)
    assert [row["id"] for row in rows_of(skipping)] == left
    assert skipping.skips.count == 1
    assert "1.parquet, row group 2" in skipping.skips.first
    with caplog.at_level(logging.WARNING, "minitrain"):
        skipping.warn_of_skips()
        skipping.warn_of_skips()
    (record,) = caplog.records
    assert "skipped 1 of what 3 files hold, the first: " in record.getMessage()
    assert pickle.loads(pickle.dumps(skipping)).skips.count == 0  # of another process
    only_sound = replace(skipping, columns=("half",))
    assert len(rows_of(only_sound)) == 3 * ROWS  # the bad column is not read


@pytest.mark.parametrize("damage", ["truncated", "wrong magic", "empty"])
def test_a_file_that_is_none(folder, damage):
    path = folder / "1.parquet"
    data = path.read_bytes()
    changed = {"truncated": data[:-300], "wrong magic": data[:-4] + b"NOPE", "empty": b""}
    path.write_bytes(changed[damage])
    with pytest.raises(DataFileError, match=r"1\.parquet: is not a Parquet file"):
        list(source(folder).blocks())
    skipping = source(folder, on_error="skip")
    assert len(rows_of(skipping)) == counts_of(skipping) == 2 * ROWS
    assert skipping.skips.count == 1


def test_the_first_file_may_be_the_one_that_is_skipped(folder):
    (folder / "0.parquet").write_bytes(b"nothing")
    assert len(rows_of(source(folder, on_error="skip"))) == 2 * ROWS
    for name in ("1", "2"):
        (folder / f"{name}.parquet").write_bytes(b"nothing")
    with pytest.raises(DataFileError, match="no file can be read"):
        list(source(folder, on_error="skip").blocks())


def test_a_file_that_has_vanished_is_an_error_even_where_bad_ones_are_skipped(folder):
    skipping = source(folder, on_error="skip")
    assert len(skipping.where.files()) == 3
    (folder / "1.parquet").unlink()
    with pytest.raises(DataFileError, match="no longer there"):
        list(skipping.blocks())


def test_it_can_be_abandoned_at_any_time(folder):
    blocks = source(folder).blocks()
    tables = next(blocks).read()
    assert next(tables).num_rows
    tables.close()
    blocks.close()
