"""Files on storage servers: the same rows as from a disk, and failures that are not skipped."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from minitrain.data.context import DataContext
from minitrain.data.files.line_formats import CsvFormat
from minitrain.data.files.parquet import ParquetSource
from minitrain.data.files.paths import list_files
from minitrain.data.files.text_formats import LinesSource
from minitrain.exceptions import DataPathError
from tests.data.reading import counts_of, rows_of, where

ROWS = 1000


@pytest.fixture
def uri(storage_server):
    """Return a folder on a server, with Parquet and CSV files whose names are no valid URIs."""
    filesystem = storage_server.filesystem()
    for year in (2023, 2024):
        table = pa.table({"id": range(ROWS), "x": [f"{year}-{n}" for n in range(ROWS)]})
        name = storage_server.path(f"reading/year={year}/part [1] a.parquet")
        filesystem.create_dir(name.rpartition("/")[0])
        with filesystem.open_output_stream(name) as stream:
            pq.write_table(table, stream, row_group_size=300)
    with filesystem.open_output_stream(storage_server.path("reading/rows.csv")) as stream:
        stream.write(b"a,b\n" + b"".join(b"%d,x\n" % n for n in range(ROWS)))
    return storage_server.uri("reading")


def inside(uri, path):
    place, question, query = uri.partition("?")
    return f"{place}/{path}{question}{query}"


def test_parquet_on_a_server(uri):
    source = ParquetSource(where=where(uri, extensions=("parquet",), include_paths=True))
    rows = rows_of(source)
    assert len(rows) == counts_of(source) == 2 * ROWS
    assert rows[-1]["year"] == 2024
    assert rows[-1]["path"].endswith("bkt/reading/year=2024/part [1] a.parquet")
    assert "://" in rows[-1]["path"]
    few = ParquetSource(
        where=where(inside(uri, "year=*/*.parquet")),
        predicate=(pc.field("year") == 2024) & (pc.field("id") >= 990),
        columns=("x",),
    )
    assert rows_of(few) == [{"x": f"2024-{n}"} for n in range(990, ROWS)]


def test_csv_on_a_server_is_read_in_ranges(uri, monkeypatch):
    monkeypatch.setattr(DataContext, "_current", DataContext(target_block_bytes=1000))
    source = LinesSource(kind="read_csv", where=where(inside(uri, "rows.csv")), format=CsvFormat())
    assert len(list(source.blocks())) > 3
    assert [row["a"] for row in rows_of(source)] == list(range(ROWS))
    assert counts_of(source) == ROWS


def test_a_missing_path_on_a_server(uri):
    with pytest.raises(DataPathError, match=r"has 'year=2023' and 'year=2024'|has 'year=2024'"):
        list_files([inside(uri, "year=2025")])


@pytest.mark.campaign
def test_a_server_that_is_gone_is_no_bad_file(storage_server, uri):
    source = ParquetSource(where=where(uri, extensions=("parquet",)), on_error="skip")
    blocks = list(source.blocks())
    storage_server.kill()
    try:
        with pytest.raises(OSError):  # noqa: PT011 - in the server's own words
            list(blocks[0].read())
    finally:
        storage_server.start_again()
    assert source.skips.count == 0
