"""The functions that users call, from a path to rows."""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from minitrain.data import read
from minitrain.data.files.source import FileShuffleConfig
from minitrain.exceptions import ConfigurationError, DataError, DataPathError

ROWS = [{"a": n, "b": f"x{n}"} for n in range(5)]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    pacsv.write_csv(pa.Table.from_pylist(ROWS), folder / "a.csv")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    np.save(folder / "a.npy", np.arange(5))
    Image.fromarray(np.zeros((4, 3), np.uint8)).save(folder / "a.png")
    return folder


def test_each_reader_finds_its_own_files_in_a_folder(folder):
    assert read.read_parquet(folder).take_all() == ROWS
    assert read.read_csv(folder).take_all() == ROWS
    assert read.read_json(folder).take_all() == ROWS
    assert read.read_numpy(folder).count() == 5
    assert read.read_images(folder, size=(2, 2), mode="RGB").take_all()[0]["image"].shape == (
        2,
        2,
        3,
    )
    assert read.read_text(folder / "a.txt.gz").take_all() == [{"text": "one"}, {"text": "two"}]
    assert read.read_binary_files(folder).count() == 6
    assert read.read_binary_files(folder, file_extensions=[".csv"]).count() == 1


def test_options_arrive(folder):
    rows = read.read_parquet(folder, columns=["b"], include_paths=True).take_all()
    assert rows[0] == {"b": "x0", "path": str(folder / "a.parquet")}
    convert = pacsv.ConvertOptions(column_types={"a": pa.string()})
    assert read.read_csv(folder, convert_options=convert).take_all()[1]["a"] == "1"
    (folder / "b.csv").write_text("a,b\n1\n")
    with pytest.raises(DataError):
        read.read_csv(folder).take_all()
    assert read.read_csv(folder, on_error="skip").count() == 5


@pytest.mark.parametrize(
    "share_of",
    [
        pytest.param(lambda dataset: dataset, id="dataset"),
        pytest.param(lambda dataset: dataset.iterator(), id="iterator"),
        pytest.param(lambda dataset: dataset.streaming_split(2)[0], id="share"),
    ],
)
def test_whoever_iterates_is_told_once_what_was_skipped(folder, caplog, share_of):
    (folder / "b.csv").write_text("a,b\n1\n")
    with caplog.at_level(logging.WARNING, "minitrain"):
        list(share_of(read.read_csv(folder, on_error="skip")).iter_rows())
    (record,) = caplog.records
    assert "read_csv: skipped 1 of what 2 files hold" in record.getMessage()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"on_error": "ignore"}, "on_error"),
        ({"shuffle": "rows"}, "shuffle"),
        ({"override_num_blocks": 0}, "override_num_blocks"),
        ({"partitioning": "directory"}, "partitioning"),
        ({"paths": []}, "at least one path"),
        ({"paths": ""}, "is empty"),
        ({"paths": ["a", ""]}, "is empty"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, problem):
    with pytest.raises(ConfigurationError, match=problem):
        read.read_csv(**({"paths": "nowhere"} | options))
    with pytest.raises(TypeError, match="unexpected argument 'sep'"):
        read.read_csv("nowhere", sep=";")
    with pytest.raises(ConfigurationError, match="columns='ab': must be a list"):
        read.read_parquet("nowhere", columns="ab")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"size": (3,)}, r"size=\(3,\): must be \(height, width\)"),
        ({"size": 224}, r"size=224: must be \(height, width\)"),
        ({"size": ("3", 4)}, "size="),
        ({"size": (3.5, 4)}, "size="),
        ({"size": (0, 4)}, "size="),
        ({"mode": "RBG"}, "mode='RBG': must be one of .*'RGB'"),
        ({"mode": 3}, "mode=3"),
    ],
)
def test_wrong_images_are_refused_at_once(options, problem):
    with pytest.raises(ConfigurationError, match=problem):
        read.read_images("nowhere", **options)


@pytest.mark.parametrize("columns", [None, ["a"], ["path"]])
def test_paths_are_not_included_where_files_have_such_a_column(tmp_path, columns):
    pq.write_table(pa.table({"a": [1], "path": ["mine"]}), tmp_path / "a.parquet")
    both = read.read_parquet(tmp_path, columns=columns, include_paths=True)
    with pytest.raises(ConfigurationError, match="have a column 'path' of their own"):
        both.schema()
    (tmp_path / "path=1").mkdir()
    (tmp_path / "path=1/a.txt").write_text("x")
    with pytest.raises(ConfigurationError, match="have a column 'path' of their own"):
        read.read_text(tmp_path / "path=1/a.txt", include_paths=True).take_all()


def test_a_missing_path_is_found_when_the_dataset_is_used(tmp_path):
    dataset = read.read_parquet(tmp_path / "nowhere")
    with pytest.raises(DataPathError, match="nowhere: there is no such file or folder"):
        dataset.count()


def test_the_order_of_files_can_be_left_to_chance(tmp_path):
    for n in range(20):
        (tmp_path / f"{n:02}.txt").write_text(f"{n}\n")
    plain = read.read_text(tmp_path).take_all()
    mixed = read.read_text(tmp_path, shuffle=FileShuffleConfig(seed=3)).take_all()
    assert mixed != plain
    assert sorted(map(str, mixed)) == sorted(map(str, plain))
    assert read.read_text(tmp_path, shuffle=FileShuffleConfig(seed=3)).take_all() == mixed


def test_reading_needs_neither_torch_nor_pandas():
    text = (
        "import sys, minitrain.data.read, minitrain.data.creation\n"
        "print(sorted({'torch', 'pandas', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
