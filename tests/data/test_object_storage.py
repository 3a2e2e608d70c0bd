"""Parquet files on an object store: what is asked of it, and what it says."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import minitrain.data
from minitrain.exceptions import DataFileError

FILES = 20


def requests(server):
    """Return what the server was asked for so far: methods and paths."""
    log = re.sub(r"\x1b\[\d+m", "", server.log.read_text(errors="replace"))
    return re.findall(r'"(GET|HEAD) (\S+) HTTP', log)


@pytest.fixture
def folder(moto, request):
    if moto._process is None:  # another test has killed it
        moto.start_again()
    path = moto.path(request.node.name)  # of its own: what was read of a file is remembered
    table = pa.table({"x": np.arange(10)})
    for number in range(FILES):
        with moto.filesystem().open_output_stream(f"{path}/{number:02}.parquet") as stream:
            pq.write_table(table, stream)
    return path


@pytest.mark.campaign
def test_a_footer_costs_one_request(moto, folder):
    before = len(requests(moto))
    assert minitrain.data.read_parquet(folder, filesystem=moto.filesystem()).count() == 10 * FILES
    asked = [method for method, path in requests(moto)[before:] if path.endswith(".parquet")]
    assert asked == ["GET"] * FILES


@pytest.mark.campaign
def test_a_file_that_went_away_after_it_was_listed_is_named(moto, folder):
    filesystem = moto.filesystem()
    ds = minitrain.data.read_parquet(folder, filesystem=filesystem)
    ds.schema()  # lists
    filesystem.delete_file(f"{folder}/07.parquet")
    with pytest.raises(DataFileError, match=r"07\.parquet: is no longer there"):
        ds.count()
