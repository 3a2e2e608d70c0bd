"""Datasets in files: what is written is read back, and what is interrupted leaves nothing."""

import datetime
import json
import signal
import subprocess
import sys
import textwrap
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.data.context import DataContext
from minitrain.data.creation import from_items
from minitrain.data.read import read_csv, read_json, read_numpy, read_parquet
from minitrain.data.values import table_from_batch
from minitrain.data.writing import write as write_module
from minitrain.data.writing.output import SaveMode
from minitrain.exceptions import (
    ColumnError,
    ConfigurationError,
    DataError,
    DataPathError,
    TransformError,
)
from tests.data.slices import dataset_of, dataset_of_slices

TABLE = pa.table(
    {
        "id": range(1000),
        "text": [f'row "{i}", \n of many' if i % 7 else None for i in range(1000)],
        "x": [i / 3 if i % 5 else None for i in range(1000)],
    }
)


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("method", "read", "extension"),
    [
        ("write_parquet", read_parquet, "parquet"),
        ("write_csv", read_csv, "csv"),
        ("write_json", read_json, "json"),
    ],
)
def test_rows_come_back_in_order(tmp_path, monkeypatch, method, read, extension):
    monkeypatch.setattr(DataContext.get_current(), "target_block_bytes", 1000)
    assert getattr(dataset_of(TABLE, 5), method)(tmp_path / "out", max_rows_per_file=90) is None
    names = names_in(tmp_path / "out")
    assert len(names) == 12
    assert all(name.endswith(f".{extension}") and name[0].isdigit() for name in names)
    options = {"parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True)}
    back = read(str(tmp_path / "out"), **(options if method == "write_csv" else {})).to_arrow()
    if method == "write_csv":  # which has no nulls of text
        back = back.set_column(1, "text", pa.array([t or None for t in back["text"].to_pylist()]))
    assert back.cast(TABLE.schema).to_pylist() == TABLE.to_pylist()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 300),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 80)),
    st.one_of(st.none(), st.integers(1, 80)),
    st.sampled_from([1, 400, 1 << 30]),
)
def test_files_have_the_sizes_they_should(tmp_path_factory, rows, pieces, least, most, file_bytes):
    if least and most and least > most:
        least, most = most, least
    folder = tmp_path_factory.mktemp("sizes")
    table = TABLE.slice(0, rows)
    context = DataContext.get_current()
    target, context.target_block_bytes = context.target_block_bytes, 500
    before, write_module._FILE_BYTES = write_module._FILE_BYTES, file_bytes
    try:
        dataset_of(table, pieces).write_parquet(
            folder, min_rows_per_file=least, max_rows_per_file=most
        )
    finally:
        write_module._FILE_BYTES, context.target_block_bytes = before, target
    sizes = [pq.read_metadata(folder / name).num_rows for name in names_in(folder)]
    assert sum(sizes) == rows
    if rows == 0:
        assert sizes == [0]
    if most:
        assert max(sizes) <= most
    if least:
        assert all(size >= least for size in sizes[:-1])
    assert [row["id"] for row in pq.read_table(folder).to_pylist()] == list(range(rows))


def test_tensors_and_objects_survive_parquet(tmp_path):
    ragged = [np.ones((i % 3 + 1, 2)) * i for i in range(50)]
    table = table_from_batch(
        {
            "image": np.arange(50 * 12, dtype="uint8").reshape(50, 3, 4),
            "ragged": ragged,
            "object": [Fraction(i, 7) for i in range(50)],
        },
        "a test",
    )
    dataset_of(table).write_parquet(tmp_path)
    back = read_parquet(str(tmp_path)).take_all()
    assert back[7]["image"].tolist() == np.arange(84, 96).reshape(3, 4).tolist()
    assert [row["ragged"].shape for row in back] == [tensor.shape for tensor in ragged]
    assert back[9]["object"] == Fraction(9, 7)


@pytest.mark.parametrize("method", ["write_csv", "write_json"])
def test_what_text_cannot_hold_is_refused_before_anything_is_written(tmp_path, method):
    tensors = dataset_of(table_from_batch({"image": np.zeros((9, 2, 2))}, "a test"))
    with pytest.raises(DataError, match=r"column 'image' is .*tensor.*write Parquet"):
        getattr(tensors, method)(tmp_path / "out")
    mapped = dataset_of(pa.table({"x": [1, 2]})).map_batches(lambda _: {"b": [b"\0", b"\1"]})
    with pytest.raises(DataError, match="column 'b' is binary"):
        getattr(mapped, method)(tmp_path / "out")
    assert not list(tmp_path.rglob("*.*"))


def test_json_has_times_decimals_and_no_nan(tmp_path):
    table = pa.table(
        {
            "t": [datetime.datetime(2026, 1, 2, 3, 4, 5)],  # noqa: DTZ001 - without a zone
            "d": [Decimal("0.10")],
            "n": [float("nan")],
            "l": [[1.5, float("inf")]],
            "s": [{"a": "é", "b": None}],
            "w": pa.array([5_000_000], pa.duration("us")),
        }
    )
    dataset_of(table, 1).write_json(tmp_path)
    (name,) = names_in(tmp_path)
    assert json.loads((tmp_path / name).read_text()) == {
        "t": "2026-01-02T03:04:05",
        "d": "0.10",
        "n": None,
        "l": [1.5, None],
        "s": {"a": "é", "b": None},
        "w": 5.0,
    }


def test_dictionaries_are_written_as_what_they_stand_for(tmp_path):
    codes = pa.array(["a", "b", None, "a"]).dictionary_encode()
    table = pa.table({"c": codes, "id": range(4)})
    dataset_of(table, 2).write_csv(tmp_path / "csv")
    assert read_csv(str(tmp_path / "csv")).to_arrow()["c"].to_pylist() == ["a", "b", "", "a"]
    dataset_of(table, 2).write_parquet(tmp_path / "parquet")
    assert pq.read_table(tmp_path / "parquet")["c"].to_pylist() == ["a", "b", None, "a"]


def test_a_csv_that_would_lose_rows_is_refused(tmp_path):
    table = pa.table({"s": ["a", None, "", "b"]})
    with pytest.raises(DataError, match="column 's' has nulls"):
        dataset_of(table, 1).write_csv(tmp_path)
    dataset_of(pa.table({"s": ["a", "", "b"]}), 1).write_csv(tmp_path)
    assert [row["s"] for row in read_csv(str(tmp_path)).take_all()] == ["a", "", "b"]


def test_arrays_come_back(tmp_path):
    arrays = np.random.default_rng(0).normal(size=(100, 2, 3))
    dataset = dataset_of(table_from_batch({"data": arrays, "id": np.arange(100)}, "a test"))
    dataset.write_numpy(tmp_path, column="data", max_rows_per_file=30)
    assert len(names_in(tmp_path)) == 4
    back = read_numpy(str(tmp_path)).take_batch(100)["data"]
    np.testing.assert_array_equal(back, arrays)
    with pytest.raises(ColumnError, match="did you mean 'data'"):
        dataset.write_numpy(tmp_path, column="dat")
    ragged = dataset_of(table_from_batch({"r": [np.ones(1), np.ones(2)]}, "a test"))
    with pytest.raises(DataError, match="different shapes"):
        ragged.write_numpy(tmp_path / "ragged", column="r")
    assert not names_in(tmp_path / "ragged")


def test_partitions_become_folders_and_columns_again(tmp_path):
    table = pa.table(
        {"k": ["a/b", None, "c d", "a/b"] * 25, "y": [2024, 2025] * 50, "x": range(100)}
    )
    dataset_of(table).write_parquet(tmp_path, partition_cols=["k", "y"])
    folders = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")}
    assert folders == {
        "k=a%2Fb/y=2024",
        "k=a%2Fb/y=2025",
        "k=__HIVE_DEFAULT_PARTITION__/y=2025",
        "k=c%20d/y=2024",
    }
    ours = read_parquet(str(tmp_path)).to_arrow().select(table.column_names)
    assert sorted(map(str, ours.to_pylist())) == sorted(map(str, table.to_pylist()))
    theirs = pq.read_table(tmp_path, partitioning="hive")
    assert theirs.num_rows == 100


def test_many_partitions_are_not_all_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(write_module, "_OPEN_FILES", 3)
    monkeypatch.setattr(DataContext.get_current(), "target_block_bytes", 1)
    table = pa.table({"k": [i % 10 for i in range(400)], "x": range(400)})
    dataset_of(table).write_parquet(tmp_path, partition_cols=["k"])
    assert len(names_in(tmp_path)) > 10
    back = read_parquet(str(tmp_path)).sort("x").to_arrow()
    assert back["x"].to_pylist() == list(range(400))
    assert back["k"].to_pylist() == [i % 10 for i in range(400)]


def test_no_rows_leave_a_file_that_says_which_columns_there_are(tmp_path):
    dataset_of(TABLE).filter(lambda _: False).write_parquet(tmp_path / "parquet")
    (name,) = names_in(tmp_path / "parquet")
    assert pq.read_schema(tmp_path / "parquet" / name).names == ["id", "text", "x"]
    dataset_of(TABLE).limit(0).write_csv(tmp_path / "csv")
    (name,) = names_in(tmp_path / "csv")
    assert (tmp_path / "csv" / name).read_text().strip() == '"id","text","x"'
    dataset_of(TABLE).limit(0).write_json(tmp_path / "json")
    assert names_in(tmp_path / "json") == []


def test_modes_decide_what_becomes_of_files_that_are_there(tmp_path):
    one, two = dataset_of(TABLE.slice(0, 10)), dataset_of(TABLE.slice(10, 5))

    def ids():
        return [row["id"] for row in read_parquet(str(tmp_path)).take_all()]

    one.write_parquet(tmp_path, mode="error")
    two.write_parquet(tmp_path, mode="ignore")
    assert ids() == list(range(10))
    with pytest.raises(ConfigurationError, match="there are files already"):
        two.write_parquet(tmp_path, mode=SaveMode.ERROR)
    two.write_parquet(tmp_path)
    assert ids() == list(range(15))
    two.write_parquet(tmp_path, mode=SaveMode.OVERWRITE)
    assert ids() == list(range(10, 15))
    with pytest.raises(ConfigurationError, match=r"mode='replace': must be one of \['append'"):
        two.write_parquet(tmp_path, mode="replace")


def test_a_dataset_may_overwrite_what_it_reads(tmp_path):
    dataset_of(TABLE).write_parquet(tmp_path, max_rows_per_file=100)
    doubled = read_parquet(str(tmp_path)).map_batches(lambda b: b | {"id": b["id"] * 2})
    doubled.write_parquet(tmp_path, mode="overwrite")
    back = read_parquet(str(tmp_path)).to_arrow()
    assert back["id"].to_pylist() == [2 * i for i in range(1000)]


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(DataContext.get_current(), "target_block_bytes", 1000)
    dataset_of(TABLE.slice(0, 50)).write_parquet(tmp_path, max_rows_per_file=np.int64(10))
    before = names_in(tmp_path)

    def fails(row):
        if row["id"] == 900:
            deadline = time.monotonic() + 20
            while len(names_in(tmp_path)) == len(before):  # rows are read ahead of what is written
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise ArithmeticError("late")
        return row

    with pytest.raises(TransformError, match="ArithmeticError: late"):
        dataset_of(TABLE, 20).map(fails).write_parquet(tmp_path, max_rows_per_file=10, mode=mode)
    assert names_in(tmp_path) == before


def test_readers_do_not_see_what_is_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(DataContext.get_current(), "target_block_bytes", 1000)
    dataset_of(TABLE.slice(0, 1)).write_parquet(tmp_path)
    seen = []

    def watch(batch):
        seen.append((len(names_in(tmp_path)), read_parquet(str(tmp_path)).count()))
        return batch

    dataset_of(TABLE, 20).map_batches(watch).write_parquet(tmp_path, max_rows_per_file=50)
    assert max(names for names, _ in seen) > 5
    assert {rows for _, rows in seen} == {1}
    assert read_parquet(str(tmp_path)).count() == 1001


_KILLED = """
    import pathlib, sys, threading

    import minitrain.data
    from minitrain.data.context import DataContext

    folder, mark = map(pathlib.Path, sys.argv[1:])
    DataContext.get_current().target_block_bytes = 1000

    def stops(row):
        if row["id"] == 4000:
            mark.touch()
            threading.Event().wait()
        return row

    dataset = minitrain.data.range(5000, override_num_blocks=50).map(stops)
    dataset.write_parquet(folder, mode="overwrite", max_rows_per_file=100)
"""


def test_a_write_that_is_killed_leaves_what_was_there(tmp_path):
    folder, mark = tmp_path / "data", tmp_path / "mark"
    dataset_of(TABLE).write_parquet(folder)
    script = [sys.executable, "-c", textwrap.dedent(_KILLED), str(folder), str(mark)]
    with subprocess.Popen(script) as process:
        deadline = time.monotonic() + 30
        while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(names_in(folder)) > 1  # it had written something
    assert read_parquet(str(folder)).to_arrow().equals(TABLE)
    dataset_of(TABLE.slice(0, 3)).write_parquet(folder, mode="overwrite")
    assert len(names_in(folder)) == 1  # what it had left is gone, too


class _Bucket(pyarrow.fs.FileSystemHandler):
    """A storage of objects: nothing can be moved, and what is closed is there."""

    def __init__(self, folder):
        self.filesystem = pyarrow.fs.SubTreeFileSystem(str(folder), pyarrow.fs.LocalFileSystem())

    def get_type_name(self):
        return "s3"

    def move(self, src, dest):
        raise NotImplementedError("move")

    def open_output_stream(self, path, metadata):
        self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        return self.filesystem.open_output_stream(path, metadata=metadata)

    def create_dir(self, path, recursive):
        raise NotImplementedError("create_dir")

    def get_file_info_selector(self, selector):
        return self.filesystem.get_file_info(selector)

    def __getattr__(self, name):
        return getattr(self.filesystem, name)

    copy_file = delete_dir = delete_dir_contents = delete_root_dir_contents = None
    open_append_stream = None

    def delete_file(self, path):
        self.filesystem.delete_file(path)

    def get_file_info(self, paths):
        return self.filesystem.get_file_info(paths)

    def normalize_path(self, path):
        return path

    def open_input_file(self, path):
        return self.filesystem.open_input_file(path)

    def open_input_stream(self, path):
        return self.filesystem.open_input_stream(path)


def test_a_storage_of_objects_gets_whole_files_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(DataContext.get_current(), "target_block_bytes", 1000)
    bucket = pyarrow.fs.PyFileSystem(_Bucket(tmp_path))
    dataset_of(TABLE).write_parquet("bucket/data", filesystem=bucket, max_rows_per_file=300)
    written = names_in(tmp_path)
    assert len(written) == 4

    def fails(row):
        if row["id"] == 900:
            raise ArithmeticError("late")
        return row

    with pytest.raises(TransformError):
        dataset_of(TABLE, 9).map(fails).write_parquet(
            "bucket/data", filesystem=bucket, mode="overwrite", max_rows_per_file=10
        )
    assert names_in(tmp_path) == written
    dataset_of(TABLE.slice(0, 5)).write_parquet("bucket/data", filesystem=bucket, mode="overwrite")
    (name,) = names_in(tmp_path)
    assert pq.read_table(tmp_path / name).num_rows == 5


def test_later_rows_must_fit_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(DataContext.get_current(), "target_block_bytes", 1)
    ints, floats = pa.table({"x": [1, 2]}), pa.table({"x": [1.0, 2.0]})
    dataset_of_slices([ints, floats]).write_parquet(tmp_path / "fits")
    assert pq.read_table(tmp_path / "fits")["x"].to_pylist() == [1, 2, 1, 2]
    halves = dataset_of_slices([ints, pa.table({"x": [0.5]})])
    with pytest.raises(DataError, match="column 'x' is int64 in the first rows and double later"):
        halves.write_parquet(tmp_path / "halves")
    others = dataset_of_slices([ints, pa.table({"y": [1]})])
    with pytest.raises(DataError, match=r"columns \['x'\], later ones \['y'\]"):
        others.write_parquet(tmp_path / "others")


def test_options_go_to_arrow(tmp_path):
    dataset_of(TABLE).write_parquet(tmp_path / "parquet", compression="zstd")
    (name,) = names_in(tmp_path / "parquet")
    metadata = pq.read_metadata(tmp_path / "parquet" / name)
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    options = pyarrow.csv.WriteOptions(delimiter=";", include_header=False)
    dataset_of(TABLE.select(["id"])).write_csv(tmp_path / "csv", write_options=options)
    (name,) = names_in(tmp_path / "csv")
    assert (tmp_path / "csv" / name).read_text().startswith("0\n1\n")


def test_uris_and_filesystems_say_where(tmp_path):
    dataset_of(TABLE).write_parquet((tmp_path / "uri").as_uri())
    assert read_parquet((tmp_path / "uri").as_uri()).count() == 1000
    below = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    dataset_of(TABLE).write_parquet("below/it", filesystem=below)
    assert read_parquet("below/it", filesystem=below).count() == 1000


def test_wrong_places_and_sizes_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    dataset = dataset_of(TABLE)
    with pytest.raises(ConfigurationError, match="is a file; a dataset is written to a folder"):
        dataset.write_parquet(tmp_path / "file")
    with pytest.raises(DataPathError, match="there is no such folder"):
        dataset.write_parquet(tmp_path / "not" / "there", try_create_dir=False)
    with pytest.raises(ConfigurationError, match="max_rows_per_file=0"):
        dataset.write_parquet(tmp_path, max_rows_per_file=0)
    with pytest.raises(ConfigurationError, match="min_rows_per_file=9 is more than"):
        dataset.write_parquet(tmp_path, min_rows_per_file=9, max_rows_per_file=5)
    with pytest.raises(ColumnError, match=r"partition_cols: .*did you mean 'id'"):
        dataset.write_parquet(tmp_path, partition_cols=["idd"])
    for names, error, named in [
        ("textt", ColumnError, r"partition_cols: .*'textt'; did you mean 'text'"),
        (["text", "text"], ConfigurationError, "partition_cols: a column is named twice"),
        ([3], TypeError, "partition_cols: 3 is no name of a column"),
        (3, TypeError, "partition_cols: 3 is no name of a column"),
    ]:
        with pytest.raises(error, match=named):
            dataset.write_parquet(tmp_path, partition_cols=names)
    with pytest.raises(ConfigurationError, match="no other column is left"):
        dataset.write_parquet(tmp_path, partition_cols=["id", "text", "x"])
    with pytest.raises(DataError, match="there is no column to write"):
        from_items([]).write_csv(tmp_path)
