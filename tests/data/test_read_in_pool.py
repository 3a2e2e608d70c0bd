"""Processes of a pool that read the files they work on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minitrain import data
from minitrain.data.plans.mapped import TableBlock
from minitrain.exceptions import DataError, DataFileError, TransformError

NUMBER = 150


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    for number in range(NUMBER):
        (made / f"{number:03}.bin").write_bytes(b"%d" % number)
    return made


def numbers(batch):
    return {
        "number": [int(one) for one in batch["bytes"]],
        "pid": [os.getpid()] * len(batch["bytes"]),
        "size": [len(batch["bytes"])] * len(batch["bytes"]),
    }


@pytest.mark.campaign
@pytest.mark.parametrize("batch_size", [None, pytest.param(40, marks=pytest.mark.campaign)])
def test_rows_come_in_order_from_other_processes(folder, batch_size):
    made = data.read_binary_files(str(folder)).map_batches(
        numbers, concurrency=2, batch_size=batch_size
    )
    rows = made.take_all()
    assert [row["number"] for row in rows] == list(range(NUMBER))
    assert os.getpid() not in {row["pid"] for row in rows}
    sizes = {row["size"] for row in rows}
    assert sizes == ({40, 30} if batch_size else {64, 22})


@pytest.mark.campaign
def test_only_the_files_of_a_share_are_read(folder):
    made = data.read_binary_files(str(folder)).map_batches(
        numbers, concurrency=1, udf_modifying_row_count=False
    )
    ranks = made.streaming_split(2, equal=True)
    (folder / "000.bin").unlink()
    assert [row["number"] for row in ranks[1].iter_rows()] == list(range(75, 150))


def test_an_error_of_the_function_names_the_rows(folder):
    (folder / "077.bin").write_bytes(b"seventy-seven")
    made = data.read_binary_files(str(folder)).map_batches(numbers, concurrency=1, batch_size=10)
    with pytest.raises(TransformError, match=r"raised ValueError: .*at rows 70 to 79 of .*000.bin"):
        made.take_all()


@pytest.mark.campaign
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    made = data.read_images(str(tmp_path)).map_batches(lambda batch: batch, concurrency=1)
    broken = tmp_path / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataFileError, match=r"1\.png"):
        made.take_all()
    skipping = data.read_images(str(tmp_path), on_error="skip")
    assert skipping.map_batches(lambda batch: batch, concurrency=1).count() == 2


def test_a_process_that_dies_is_told_with_the_rows(folder):
    def die(batch):
        os._exit(3) if b"100" in set(batch["bytes"]) else None
        return numbers(batch)

    made = data.read_binary_files(str(folder)).map_batches(die, concurrency=1, batch_size=10)
    with pytest.raises(DataError, match=r"at rows 100 to 109 of .*\(rows 100 to 110\)"):
        made.take_all()


@pytest.mark.campaign
def test_rows_in_memory_are_sent(folder):
    kept = data.read_binary_files(str(folder)).materialize()
    assert isinstance(kept.plan.listed[0], TableBlock)
    rows = kept.map_batches(numbers, concurrency=1).take_all()
    assert [row["number"] for row in rows] == list(range(NUMBER))
