"""What ``ingest.py`` reads: tables and images that are always the same."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

__all__ = ["FEATURES", "ROW_BYTES", "decoded", "many_times", "write_images", "write_tables"]

FEATURES = tuple(f"f{number}" for number in range(16))
ROW_BYTES = 16 * 4 + 8
IMAGE_SIDE = 256
SMALL_SIDE = 128


def write_tables(folder: Path, *, files: int, rows: int, first: int = 0) -> Path:
    """Write so many files with so many rows of 16 random float32 and an int64: the row's number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    random = np.random.default_rng(first)
    for number in range(files):
        columns = {name: random.random(rows, dtype=np.float32) for name in FEATURES}
        start = first + number * rows
        columns["label"] = np.arange(start, start + rows)
        pq.write_table(pa.table(columns), folder / f"part-{number:04d}.parquet")
    return folder


def many_times(folder: Path, times: int, into: Path) -> Path:
    """Make a folder with every file under several names: much to read that takes little disk."""
    into.mkdir()
    for turn in range(times):
        for path in sorted(folder.iterdir()):
            (into / f"{turn:03d}-{path.name}").hardlink_to(path)
    return into


def write_images(folder: Path, number: int) -> Path:
    """Write photographs, as far as a decoder cares: smooth areas, edges and noise."""
    from PIL import Image

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:IMAGE_SIDE, 0:IMAGE_SIDE] / IMAGE_SIDE
    for index in range(number):
        waves = random.uniform(1, 8, (3, 2))
        pixels = np.stack([np.sin(a * x + b * y) for a, b in waves], axis=-1) * 100 + 128
        left, top = random.integers(0, IMAGE_SIDE // 2, 2)
        pixels[top : top + 90, left : left + 90] += random.uniform(-80, 80, 3)
        pixels += random.normal(0, 3, pixels.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{index:05d}.png", compress_level=1)
    return folder


def decoded(png: bytes) -> np.ndarray:
    """Decode an image and make it smaller: what both sides do with each."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BILINEAR)
        return np.array(small)
