"""Which files a path stands for, and what is said when there are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from minitrain.data.files.paths import as_paths, list_files
from minitrain.data.files.source import check_partitioning
from minitrain.exceptions import ConfigurationError, DataFileError, DataPathError
from tests.data.reading import where

TREE = [
    "train/b.csv",
    "train/a.csv",
    "train/deep/c.csv",
    "train/_SUCCESS",
    "train/.hidden.csv",
    "train/_temporary/d.csv",
    "train/notes.md",
    "val/a.csv",
    "val/[1].csv",
]


@pytest.fixture
def tree(tmp_path) -> Path:
    folder = tmp_path / "tree"
    for name in TREE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def names(tree, *paths, **options):
    files = list_files([str(path) for path in paths], **options)
    return [file.path.removeprefix(f"{tree}/") for file in files]


def test_a_folder_is_read_in_depth_and_without_what_others_keep_for_themselves(tree):
    found = names(tree, tree / "train", extensions=("csv",))
    assert found == ["train/a.csv", "train/b.csv", "train/deep/c.csv"]
    assert "train/notes.md" in names(tree, tree / "train")


def test_a_file_that_is_named_is_read_whatever_its_name_is(tree):
    assert names(tree, tree / "train/.hidden.csv", extensions=("parquet",)) == ["train/.hidden.csv"]


def test_several_paths_are_sorted_together(tree):
    paths = [tree / "val/a.csv", tree / "train/deep", tree / "train/a.csv"]
    assert names(tree, *paths) == ["train/a.csv", "train/deep/c.csv", "val/a.csv"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*/a.csv", ["train/a.csv", "val/a.csv"]),
        ("train/*.csv", ["train/a.csv", "train/b.csv"]),
        ("train/?.csv", ["train/a.csv", "train/b.csv"]),
        ("train/[!a].csv", ["train/b.csv"]),
        ("train/[ab].*", ["train/a.csv", "train/b.csv"]),
        ("train/.h*", ["train/.hidden.csv"]),
        (
            "**/*.csv",
            ["train/a.csv", "train/b.csv", "train/deep/c.csv", "val/[1].csv", "val/a.csv"],
        ),
        ("train/**", ["train/a.csv", "train/b.csv", "train/deep/c.csv", "train/notes.md"]),
        ("**/deep/*", ["train/deep/c.csv"]),
        ("va?", ["val/[1].csv", "val/a.csv"]),
        ("val/[1].csv", ["val/[1].csv"]),  # a name first, a pattern second
    ],
)
def test_a_pattern(tree, pattern, found):
    assert names(tree, tree / pattern) == found


def test_a_home_a_uri_and_a_relative_path(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    monkeypatch.chdir(tree / "val")
    expected = names(tree, tree / "train")
    assert names(tree, "~/train") == expected
    assert names(tree, f"file://{tree}/train") == expected
    assert names(tree, "../train") == expected
    assert as_paths(Path("~/train")) == ("~/train",)


@pytest.mark.parametrize("kind", ["pyarrow", "fsspec"])
def test_a_filesystem_that_is_given(tree, kind):
    if kind == "pyarrow":
        files = list_files(
            ["train"],
            filesystem=SubTreeFileSystem(str(tree), LocalFileSystem()),
            extensions=["csv"],
        )
        assert [file.path for file in files] == ["train/a.csv", "train/b.csv", "train/deep/c.csv"]
    else:
        found = names(tree, tree / "train/*.csv", filesystem=fsspec.filesystem("file"))
        assert found == ["train/a.csv", "train/b.csv"]


def test_a_filesystem_of_memory():
    memory = fsspec.filesystem("memory")
    memory.pipe("/reading/x/a.bin", b"123")
    try:
        (file,) = list_files(["/reading"], filesystem=memory)
        assert file.size_bytes == 3
        assert not file.is_local
        assert list_files(["memory://reading/x/a.bin"])[0].path.endswith("reading/x/a.bin")
    finally:
        memory.rm("/reading", recursive=True)


def test_files_share_their_filesystem_when_they_are_pickled(tree):
    files = list_files([str(tree / "train"), str(tree / "val")])
    assert len({id(file.filesystem) for file in files}) == 1


def test_a_missing_path_names_the_nearest_folder_and_what_is_like_it(tree):
    with pytest.raises(DataPathError) as caught:
        list_files([str(tree / "trainn/a.csv")])
    assert str(caught.value) == (
        f"{tree}/trainn/a.csv: there is no such file or folder; {tree} has 'train'"
    )
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(DataPathError, match=r"val exists and has '\[1\]\.csv', 'a\.csv'"):
        list_files([str(tree / "val/x/y/z")])


def test_a_pattern_without_matches(tree):
    with pytest.raises(DataPathError, match="no file matches"):
        list_files([str(tree / "train/*.parquet")])


def test_an_empty_folder_says_what_lies_there_instead(tree):
    with pytest.raises(DataPathError) as caught:
        list_files([str(tree / "train")], extensions=("parquet", "pq"))
    text = str(caught.value)
    assert "there are no files that end with .parquet or .pq, but" in text
    assert "a.csv" in text
    (tree / "nothing").mkdir()
    with pytest.raises(DataPathError, match="nothing lies there"):
        list_files([str(tree / "nothing")])


def test_missing_paths_can_be_ignored_unless_all_are(tree):
    paths = [str(tree / "train/a.csv"), str(tree / "nowhere")]
    assert len(list_files(paths, ignore_missing=True)) == 1
    with pytest.raises(DataPathError):
        list_files(paths[1:], ignore_missing=True)


def test_a_filter_of_paths(tree):
    files = list_files([str(tree)], keep=lambda path: path.endswith("b.csv"))
    assert [Path(file.path).name for file in files] == ["b.csv"]
    with pytest.raises(DataPathError, match="partition_filter leaves out every file"):
        list_files([str(tree)], keep=lambda _: False)


@pytest.mark.parametrize("path", ["nosuchscheme://bucket/x", "s3://bucket?bad=option/x"])
def test_a_uri_that_cannot_be_opened(path):
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        list_files([path])


@pytest.mark.parametrize("pattern", ["[z-a]*", "**/[z-a]*", "[z-a]/**"])
def test_a_pattern_that_is_none(tree, pattern):
    with pytest.raises(ConfigurationError, match=r"\[z-a\].* is no pattern: bad character range"):
        list_files([str(tree / pattern)])


def test_paths_must_be_paths():
    with pytest.raises(ConfigurationError, match="at least one"):
        as_paths([])
    with pytest.raises(TypeError, match="3 is neither"):
        as_paths(["a", 3])
    with pytest.raises(ConfigurationError, match="fsspec"):
        list_files(["a"], filesystem=object())


def test_a_list_of_files_stays_what_it_was(tree):
    files = where(tree / "val")
    before = files.files()
    (tree / "val/z.csv").write_text("z")
    assert files.files() == before
    assert len(pickle.loads(pickle.dumps(files)).files()) == len(before)
    assert len(where(tree / "val").files()) == len(before) + 1


@pytest.fixture
def partitioned(tmp_path) -> Path:
    for year, city in [
        ("2023", "Rome"),
        ("2024", "New%20York"),
        ("2024", "__HIVE_DEFAULT_PARTITION__"),
    ]:
        folder = tmp_path / "parts" / f"year={year}" / f"city={city}"
        folder.mkdir(parents=True)
        (folder / "f.csv").write_text("x\n1\n")
    return tmp_path / "parts"


def test_folders_stand_for_columns_with_types(partitioned):
    files = where(partitioned)
    assert files.constants() == pa.schema([("year", pa.int32()), ("city", pa.string())])
    assert [files.values(file) for file in files.files()] == [
        {"year": 2023, "city": "Rome"},
        {"year": 2024, "city": "New York"},
        {"year": 2024, "city": None},
    ]
    arrow = pads.dataset(str(partitioned), format="csv", partitioning="hive").schema
    assert arrow.field("year").type == files.constants().field("year").type


def test_partitions_as_pyarrow_describes_them(partitioned, tmp_path):
    schema = pa.schema([("year", pa.int64()), ("city", pa.string())])
    hive = where(partitioned, partitioning=pads.partitioning(schema, flavor="hive"))
    assert [*hive.values(hive.files()[0]).values()] == [2023, "Rome"]
    assert hive.constants() == schema
    folder = tmp_path / "plain/7/Rome"
    folder.mkdir(parents=True)
    (folder / "f.csv").write_text("x")
    plain = where(tmp_path / "plain", partitioning=pads.partitioning(schema))
    assert plain.values(plain.files()[0]) == {"year": 7, "city": "Rome"}
    assert not where(partitioned, partitioning=None).constants()
    assert check_partitioning(pads.HivePartitioning.discover()) == "hive"
    with pytest.raises(ConfigurationError, match="partitioning"):
        check_partitioning("hiev")


@pytest.mark.parametrize(("flavor", "folder"), [("hive", "year=x"), (None, "x")])
def test_a_folder_that_is_not_what_partitioning_says(tmp_path, flavor, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "f.csv").write_text("x")
    years = pads.partitioning(pa.schema([("year", pa.int64())]), flavor=flavor)
    files = where(tmp_path, partitioning=years)
    with pytest.raises(DataFileError, match=f"{folder}/f.csv: its folders are not what partit"):
        files.values(files.files()[0])
