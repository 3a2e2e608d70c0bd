"""Images, files as they are, and arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from minitrain.data.context import DataContext
from minitrain.data.files.binary_formats import BytesFormat, FilesSource, ImageFormat
from minitrain.data.files.numpy_format import NumpySource
from minitrain.data.values import RaggedTensorType, numpy_from_table
from minitrain.exceptions import DataFileError, SchemaMismatchError
from tests.data.reading import counts_of, rows_of, tables_of, where


@pytest.fixture
def context(monkeypatch) -> DataContext:
    context = DataContext()
    monkeypatch.setattr(DataContext, "_current", context)
    return context


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(150):
        pixels = np.random.default_rng(n).integers(0, 255, (8, 6, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:03}.png")
    return folder


def pictures(folder, on_error="raise", columns=None, include_paths=False, **options):
    return FilesSource(
        kind="read_images",
        where=where(folder, include_paths=include_paths),
        format=ImageFormat(**options),
        on_error=on_error,
        columns=columns,
    )


def pixels_of(source):
    return np.concatenate([numpy_from_table(table)["image"] for table in tables_of(source)])


def test_images_of_one_shape_are_one_array(images):
    source = pictures(images)
    found = pixels_of(source)
    assert (found.shape, found.dtype) == ((150, 8, 6, 3), np.uint8)
    np.testing.assert_array_equal(found[7], np.asarray(Image.open(images / "007.png")))
    assert max(table.num_rows for table in tables_of(source)) == 64
    assert counts_of(source) == 150


def test_images_get_a_size_and_a_mode(images):
    found = pixels_of(pictures(images, size=(4, 5), mode="L"))
    expected = Image.open(images / "003.png").resize((5, 4), Image.Resampling.BILINEAR)
    assert found.shape == (150, 4, 5)
    np.testing.assert_array_equal(found[3], np.asarray(expected.convert("L")))


def test_images_of_several_shapes_keep_them(images):
    Image.fromarray(np.ones((3, 2), np.uint8)).save(images / "001.png")
    source = pictures(images)
    assert isinstance(source.schema().field("image").type, RaggedTensorType)
    assert [image.shape for image in pixels_of(source)[:3]] == [(8, 6, 3), (3, 2), (8, 6, 3)]


def test_an_image_that_is_not_like_the_first_ones(images):
    Image.fromarray(np.ones((3, 2), np.uint8)).save(images / "140.png")
    with pytest.raises(SchemaMismatchError, match=r"140\.png: it is uint8 of shape \(3, 2\)"):
        tables_of(pictures(images))
    skipping = pictures(images, on_error="skip")
    assert len(pixels_of(skipping)) == counts_of(skipping) == 149


@pytest.mark.parametrize("damage", ["header", "pixels"])
def test_a_broken_image(images, damage):
    path = images / "099.png"
    data = path.read_bytes()
    path.write_bytes(b"\x89PNG" if damage == "header" else data[: len(data) // 2])
    with pytest.raises(DataFileError, match=r"099\.png: cannot be decoded"):
        tables_of(pictures(images))
    skipping = pictures(images, on_error="skip", include_paths=True)
    paths = [path for table in tables_of(skipping) for path in table["path"].to_pylist()]
    assert len(paths) == 149
    assert str(path) not in paths
    assert counts_of(skipping) == 149
    assert skipping.skips.count == 1


def test_only_paths_are_wanted(images):
    (images / "099.png").write_bytes(b"nothing")
    source = pictures(images, columns=("path",), include_paths=True)
    assert rows_of(source)[99] == {"path": str(images / "099.png")}


def test_files_as_they_are(tmp_path, context):
    for n in range(20):
        (tmp_path / f"{n:02}.bin").write_bytes(bytes([n]) * n)

    def binary(**options):
        files = where(tmp_path)
        return FilesSource(kind="read_binary_files", where=files, format=BytesFormat(), **options)

    assert rows_of(binary()) == [{"bytes": bytes([n]) * n} for n in range(20)]
    assert [block.rows for block in binary().blocks()] == [20]
    assert [block.rows for block in binary(override_num_blocks=4).blocks()] == [5, 5, 5, 5]
    context.target_block_bytes = 50
    assert len(list(binary().blocks())) > 2
    context.target_table_bytes = 10
    assert len(tables_of(binary())) > 10
    only = next(binary(override_num_blocks=1).blocks())
    (tmp_path / "00.bin").unlink()
    assert next(only.read(5, 6)).to_pylist() == [{"bytes": b"\5" * 5}]  # others are not opened
    with pytest.raises(DataFileError, match=r"00\.bin: is no longer there"):
        list(only.read())


def arrays(folder, **options):
    return NumpySource(where=where(folder), **options)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_cut_into_rows(tmp_path, context, order):
    array = np.asarray(np.random.default_rng(0).random((100, 3, 2)), order=order)
    np.save(tmp_path / "a.npy", array)
    context.target_block_bytes = 500
    context.target_table_bytes = 100
    source = arrays(tmp_path)
    found = np.concatenate([numpy_from_table(table)["data"] for table in tables_of(source)])
    np.testing.assert_array_equal(found, array)
    assert (len(list(source.blocks())) > 5) == (order == "C")
    assert counts_of(source) == 100


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5),
        np.arange(5.0) > 2,
        np.array(["a", "bc"]),
        np.arange(5, dtype=">i4"),
        np.empty((0, 3)),
    ],
)
def test_arrays_of_several_types(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    found = [row["data"] for row in rows_of(arrays(tmp_path))]
    assert found == array.tolist()


def test_objects_are_refused_unless_they_are_trusted(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}, {"a": 2}], dtype=object))
    with pytest.raises(DataFileError, match="allow_pickle=True"):
        list(arrays(tmp_path).blocks())
    assert [row["data"] for row in rows_of(arrays(tmp_path, allow_pickle=True))] == [
        {"a": 1},
        {"a": 2},
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"nothing", "magic string"),
        (None, "its end is missing"),
        (np.float64(3), "a single value"),
        (np.ones((2, 4)), r"shape \(4,\)"),
        (np.ones((2, 3), complex), "complex128"),
    ],
)
def test_an_array_that_does_not_fit(tmp_path, content, problem):
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    path = tmp_path / "b.npy"
    if content is None:
        path.write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises((DataFileError, SchemaMismatchError), match=problem) as caught:
        list(arrays(tmp_path).blocks())
    assert str(path) in str(caught.value)
    skipping = arrays(tmp_path, on_error="skip")
    assert counts_of(skipping) == 2
    assert skipping.skips.count == 1


def test_narrower_numbers_are_widened(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(2))
    np.save(tmp_path / "b.npy", np.ones(2, np.float32))
    assert {table.schema.field("data").type for table in tables_of(arrays(tmp_path))} == {
        pa.float64()
    }
