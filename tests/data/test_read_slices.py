"""Any rows of a block are the same rows of all of it, for every kind of source."""

from __future__ import annotations

import gzip
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minitrain.data.context import DataContext
from minitrain.data.files.binary_formats import BytesFormat, FilesSource, ImageFormat
from minitrain.data.files.line_formats import CsvFormat, JsonFormat, TextFormat
from minitrain.data.files.numpy_format import NumpySource
from minitrain.data.files.parquet import ParquetSource
from minitrain.data.files.text_formats import LinesSource
from minitrain.data.plans.sources import RangeSource, TableSource
from tests.data.reading import where

ROWS = 60
TABLE = pa.table({"a": range(ROWS), "b": [f"x{n}" for n in range(ROWS)]})


def parquet(folder, **options):
    pq.write_table(TABLE, folder / "a.parquet", row_group_size=17)
    return ParquetSource(where=where(folder, include_paths=True), **options)


def filtered_parquet(folder):
    return parquet(folder, predicate=pc.field("a") > 20)


def skipping_parquet(folder):
    return parquet(folder, on_error="skip")


def csv(folder):
    rows = "".join(f"{n},x{n}\n" for n in range(ROWS))
    (folder / "a.csv").write_text("a,b\n" + rows)
    (folder / "b.csv.gz").write_bytes(gzip.compress(b"a,b\n" + rows.encode()))
    return LinesSource(kind="read_csv", where=where(folder), format=CsvFormat())


def skipping_json(folder):
    lines = [json.dumps({"a": n}) if n % 7 else "{" for n in range(ROWS)]
    (folder / "a.json").write_text("\n".join(lines))
    return LinesSource(
        kind="read_json", where=where(folder), format=JsonFormat(lines=True), on_error="skip"
    )


def text(folder):
    (folder / "a.txt").write_text("\n".join(f"line {n}" if n % 4 else "" for n in range(ROWS)))
    return LinesSource(kind="read_text", where=where(folder), format=TextFormat())


def images(folder, on_error="raise"):
    for n in range(12):
        Image.fromarray(np.full((3, 2 + n % 2), n, np.uint8)).save(folder / f"{n:02}.png")
    (folder / "05.png").write_bytes(b"" if on_error == "skip" else (folder / "04.png").read_bytes())
    return FilesSource(
        kind="read_images", where=where(folder), format=ImageFormat(), on_error=on_error
    )


def skipping_images(folder):
    return images(folder, on_error="skip")


def binary(folder):
    for n in range(12):
        (folder / f"{n:02}").write_bytes(b"x" * n)
    return FilesSource(kind="read_binary_files", where=where(folder), format=BytesFormat())


def arrays(folder):
    np.save(folder / "a.npy", np.arange(ROWS * 2).reshape(ROWS, 2))
    np.save(folder / "b.npy", np.asfortranarray(np.arange(ROWS * 2).reshape(ROWS, 2)))
    return NumpySource(where=where(folder))


def memory(folder):
    return TableSource(kind="from_arrow", table=TABLE.slice(3), number=3)


def numbers(folder):
    return RangeSource(n=ROWS, number=4)


KINDS = [
    parquet,
    filtered_parquet,
    skipping_parquet,
    csv,
    skipping_json,
    text,
    images,
    skipping_images,
    binary,
    arrays,
    memory,
    numbers,
]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_a_part_of_a_block_is_that_part_of_the_whole(make, tmp_path, monkeypatch):
    context = DataContext(target_block_bytes=400, target_table_bytes=64)
    monkeypatch.setattr(DataContext, "_current", context)
    folder = tmp_path / "files"
    folder.mkdir()
    blocks = pickle.loads(pickle.dumps(list(make(folder).blocks())))
    whole = [pa.concat_tables(block.read()) for block in blocks]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        which=st.integers(0, len(blocks) - 1),
        start=st.integers(0, ROWS + 5),
        stop=st.none() | st.integers(0, ROWS + 5),
    )
    def check(which, start, stop):
        block, all_rows = blocks[which], whole[which]
        assert block.count() == all_rows.num_rows
        assert block.rows in {None, all_rows.num_rows}
        tables = list(block.read(start, stop))
        assert all(table.num_rows for table in tables)
        expected = all_rows.to_pylist()[start:stop]
        found = [row for table in tables for row in table.to_pylist()]
        assert repr(found) == repr(expected)

    check()
