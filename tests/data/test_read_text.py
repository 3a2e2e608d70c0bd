"""CSV, JSON and text: ranges of bytes, types from the first lines, bad lines by their numbers."""

from __future__ import annotations

import bz2
import gzip
import json

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minitrain.data.context import DataContext
from minitrain.data.files.line_formats import CsvFormat, JsonFormat, TextFormat
from minitrain.data.files.text_formats import LinesSource
from minitrain.exceptions import ColumnError, DataFileError, SchemaMismatchError
from tests.data.reading import counts_of, rows_of, tables_of, where


@pytest.fixture(autouse=True)
def context(monkeypatch) -> DataContext:
    """Make blocks and tables so small that files of a few lines are cut."""
    context = DataContext(target_block_bytes=500, target_table_bytes=120)
    monkeypatch.setattr(DataContext, "_current", context)
    return context


def csv(*paths, include_paths=False, on_error="raise", columns=None, number=None, **options):
    return LinesSource(
        kind="read_csv",
        where=where(*paths, include_paths=include_paths),
        format=CsvFormat(**options),
        on_error=on_error,
        columns=columns,
        override_num_blocks=number,
    )


def jsons(*paths, on_error="raise", columns=None, **options):
    return LinesSource(
        kind="read_json",
        where=where(*paths),
        format=JsonFormat(**options),
        on_error=on_error,
        columns=columns,
    )


def text(*paths, on_error="raise", **options):
    return LinesSource(
        kind="read_text", where=where(*paths), format=TextFormat(**options), on_error=on_error
    )


def lines_of(rows, header="a,b"):
    return header + "\n" + "".join(f"{n},x{n}\n" for n in rows)


def test_a_file_is_cut_into_ranges_of_lines(tmp_path):
    (tmp_path / "a.csv").write_text(lines_of(range(1000)))
    source = csv(tmp_path)
    blocks = list(source.blocks())
    assert len(blocks) > 10
    assert rows_of(source) == [{"a": n, "b": f"x{n}"} for n in range(1000)]
    assert [block.count() for block in blocks] == [
        sum(table.num_rows for table in block.read()) for block in blocks
    ]
    assert counts_of(source) == 1000
    assert f"{tmp_path}/a.csv, bytes " in blocks[1].name
    assert len(list(csv(tmp_path, number=3).blocks())) in {3, 4}


def test_columns_that_are_asked_for_and_paths(tmp_path):
    (tmp_path / "a.csv").write_text(lines_of(range(3)))
    source = csv(tmp_path, include_paths=True, columns=("path", "b"))
    assert rows_of(source)[0] == {"path": f"{tmp_path}/a.csv", "b": "x0"}
    assert tables_of(source)[0].column_names == ["path", "b"]
    assert sum(t.num_rows for t in tables_of(csv(tmp_path, columns=()))) == 3
    with pytest.raises(ColumnError, match="no column 'c'"):
        list(csv(tmp_path, columns=("c",)).blocks())


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n\n"])
def test_the_end_of_a_file(tmp_path, end):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4" + end)
    assert rows_of(csv(tmp_path)) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert counts_of(csv(tmp_path)) == 2


def test_what_precedes_the_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeff# note\n\na;ü\n#units\n1;2\n".encode())
    options = pacsv.ReadOptions(skip_rows=1, skip_rows_after_names=1)
    parsing = pacsv.ParseOptions(delimiter=";")
    assert rows_of(csv(path, read=options, parsing=parsing)) == [{"a": 1, "ü": 2}]
    path.write_text("1,2\n3,4\n")
    named = pacsv.ReadOptions(column_names=["x", "y"])
    assert rows_of(csv(path, read=named))[0] == {"x": 1, "y": 2}
    numbered = pacsv.ReadOptions(autogenerate_column_names=True)
    assert rows_of(csv(path, read=numbered))[0] == {"f0": 1, "f1": 2}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    values=st.lists(
        st.tuples(st.integers(-99, 99), st.text("ab\"', é", max_size=6)), min_size=1, max_size=60
    ),
    target=st.integers(1, 200),
)
def test_csv_is_read_as_pyarrow_reads_it(tmp_path, values, target):
    DataContext.get_current().target_block_bytes = target
    table = pa.table({"n": [n for n, _ in values], "s": [s for _, s in values]})
    pacsv.write_csv(table, tmp_path / "a.csv")
    convert = pacsv.ConvertOptions(column_types={"s": pa.string()})
    source = csv(tmp_path / "a.csv", convert=convert)
    assert rows_of(source) == table.to_pylist()
    assert counts_of(source) == table.num_rows


def test_files_have_columns_in_another_order(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,x\n")
    (tmp_path / "b.csv").write_text("b,a\ny,2\n")
    assert rows_of(csv(tmp_path)) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def test_a_file_with_other_columns(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,x\n")
    (tmp_path / "b.csv").write_text("a,c\n1,x\n")
    with pytest.raises(SchemaMismatchError, match=r"b\.csv and .*a\.csv .* 'b' is missing, .* 'c'"):
        list(csv(tmp_path).blocks())
    skipping = csv(tmp_path, on_error="skip")
    assert rows_of(skipping) == [{"a": 1, "b": "x"}]
    assert skipping.skips.count == 1


def test_empty_files_have_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").write_text("a,b\n")
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    assert rows_of(csv(tmp_path)) == [{"a": 1, "b": 2}]
    assert csv(tmp_path / "b.csv").schema().names == ["a", "b"]
    assert counts_of(csv(tmp_path / "b.csv")) == 0


def test_two_columns_of_the_same_name(tmp_path):
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataFileError, match="two columns are called 'a'"):
        csv(tmp_path).schema()


def test_a_value_of_another_type_is_named_by_line_and_column(tmp_path):
    text = lines_of(range(400)) + "z,1\n" + lines_of(range(100))[4:]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SchemaMismatchError) as caught:
        rows_of(csv(tmp_path))
    assert f"{tmp_path}/a.csv, line 402, column 'a': invalid value 'z'" in str(caught.value)
    assert "column_types={'a': pyarrow.string()}" in str(caught.value)
    convert = pacsv.ConvertOptions(column_types={"a": pa.string()})
    assert len(rows_of(csv(tmp_path, convert=convert))) == 501
    assert len(rows_of(csv(tmp_path, columns=("b",)))) == 501  # nobody looks at it


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_lines_that_cannot_be_parsed_are_skipped_and_counted(tmp_path, compress):
    text = lines_of(range(400)) + "z,1\n1,2,3\n" + lines_of(range(100))[4:] + "7,\xff\n"
    ending = {gzip.compress: ".gz", bz2.compress: ".bz2"}.get(compress, "")
    (tmp_path / f"a.csv{ending}").write_bytes(compress(text.encode("latin-1")))
    with pytest.raises(DataFileError, match="line 403: CSV parse error: Expected 2 columns, got 3"):
        rows_of(csv(tmp_path, columns=("b",)))
    skipping = csv(tmp_path, on_error="skip")
    for _ in range(2):
        assert [row["a"] for row in rows_of(skipping)] == [*range(400), *range(100)]
    assert counts_of(skipping) == 500
    assert skipping.skips.count == 3
    assert "line 402, column 'a'" in skipping.skips.first


def test_a_compressed_file_that_ends_too_early(tmp_path):
    whole = gzip.compress(lines_of(range(5000)).encode())
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.csv").write_text("a,b\n1,x\n")
    with pytest.raises(DataFileError, match=r"a\.csv\.gz: cannot be read: Truncated"):
        rows_of(csv(tmp_path))
    skipping = csv(tmp_path, on_error="skip")
    assert rows_of(skipping) == [{"a": 1, "b": "x"}]
    assert counts_of(skipping) == 1
    assert skipping.skips.count == 1


def test_values_over_several_lines(tmp_path):
    text = "a,b\n" + "".join(f'{n},"x\ny{n},z"\n' for n in range(400))
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataFileError, match="newlines_in_values=True"):
        rows_of(csv(tmp_path))
    source = csv(tmp_path, parsing=pacsv.ParseOptions(newlines_in_values=True))
    assert rows_of(source) == [{"a": n, "b": f"x\ny{n},z"} for n in range(400)]
    assert counts_of(source) == 400
    assert len(list(source.blocks())) == 1


def test_quotes_inside_values_are_no_open_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,5" pipe\n2,"6"" pipe"\n')
    assert rows_of(csv(tmp_path))[1] == {"a": 2, "b": '6" pipe'}
    assert counts_of(csv(tmp_path)) == 2


def test_another_encoding(tmp_path):
    for name in ("latin-1", "utf-16"):
        path = tmp_path / name
        path.write_bytes(lines_of(["é", "ü"]).encode(name))
        read = pacsv.ReadOptions(encoding=name)
        assert [row["a"] for row in rows_of(csv(path, read=read))] == ["é", "ü"]
        assert [row["text"] for row in rows_of(text(path, encoding=name))] == [
            "a,b",
            "é,xé",
            "ü,xü",
        ]


# JSON.


def test_json_by_lines(tmp_path):
    rows = [{"a": n, "b": {"c": [n, None]}} for n in range(300)]
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = jsons(tmp_path)
    assert len(list(source.blocks())) > 5
    assert rows_of(source) == rows
    assert counts_of(source) == 300
    assert rows_of(jsons(tmp_path, columns=("b",)))[7] == {"b": {"c": [7, None]}}


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, {"a": 2}]', '\n[\n{"a": 1},\n{"a": 2}\n]', '{"a":\n1}\n{\n"a": 2}']
)
def test_json_that_is_no_lines(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert rows_of(jsons(tmp_path)) == [{"a": 1}, {"a": 2}]
    assert counts_of(jsons(tmp_path)) == 2


def test_json_that_must_be_lines_and_is_not(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}]\n')
    with pytest.raises(DataFileError, match=r"a\.json, line 1"):
        rows_of(jsons(tmp_path, lines=True))


def test_a_handler_of_bad_rows_counts_as_it_reads(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n4,5\n")
    source = csv(tmp_path, parsing=pacsv.ParseOptions(invalid_row_handler=leave_out))
    assert rows_of(source) == [{"a": 1, "b": 2}, {"a": 4, "b": 5}]
    assert counts_of(source) == 2


def leave_out(_):
    return "skip"


def test_json_that_does_not_fit_is_named_by_line_and_skipped(tmp_path):
    lines = ['{"a": 1}'] * 50 + ['{"a": "x"}', '{"a": 1, "b": 2}', '{"a": 1', '{"a": 2}']
    (tmp_path / "a.json").write_text("\n".join(lines) + "\n")
    with pytest.raises(SchemaMismatchError, match=r"line 51, column 'a': .*from number to string"):
        rows_of(jsons(tmp_path))
    skipping = jsons(tmp_path, on_error="skip")
    assert len(rows_of(skipping)) == counts_of(skipping) == 51
    assert skipping.skips.count == 3
    (tmp_path / "a.json").write_text("\n".join(lines[:50] + lines[52:]))
    with pytest.raises(DataFileError, match="line 51: JSON parse error"):
        rows_of(jsons(tmp_path))
    (tmp_path / "a.json").write_text("\n".join(lines[:50] + lines[51:52]))
    with pytest.raises(SchemaMismatchError, match=r"line 51: JSON parse error: unexpected field"):
        rows_of(jsons(tmp_path))
    explicit = pajson.ParseOptions(
        explicit_schema=pa.schema([("a", pa.int64())]), unexpected_field_behavior="ignore"
    )
    assert len(rows_of(jsons(tmp_path, parsing=explicit))) == 51


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1}', "is no JSON array"),
        ("[1]", "element 0 of the array is no object"),
        ('[{"a": "x"}]', "a value is no"),
        ('[{"z": 1}]', "column 'z' is not in the first file"),
    ],
)
def test_a_json_array_that_is_wrong(tmp_path, text, problem):
    (tmp_path / "0.json").write_text('[{"a": 1}]')
    (tmp_path / "1.json").write_text(text)
    with pytest.raises((DataFileError, SchemaMismatchError), match=problem):
        rows_of(jsons(tmp_path))
    skipping = jsons(tmp_path, on_error="skip")
    assert rows_of(skipping) == [{"a": 1}]
    assert skipping.skips.count == 1


# Text.


def test_text_by_lines(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {n}\r\n" for n in range(300)) + "\n  \nlast")
    lines = [*(f"line {n}" for n in range(300)), "last"]
    assert [row["text"] for row in rows_of(text(tmp_path))] == lines
    assert len(list(text(tmp_path).blocks())) > 3
    assert counts_of(text(tmp_path)) == 301
    every = [row["text"] for row in rows_of(text(tmp_path, drop_empty_lines=False))]
    assert every == [*lines[:-1], "", "  ", "last"]


def test_text_in_no_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\n" * 100 + b"de\xff\nf\n")
    with pytest.raises(DataFileError, match=r"a\.txt, line 101: 'utf-8' codec can't decode"):
        rows_of(text(tmp_path))
    skipping = text(tmp_path, on_error="skip")
    assert len(rows_of(skipping)) == counts_of(skipping) == 101
    assert skipping.skips.count == 1


def test_one_line_longer_than_a_block(tmp_path):
    (tmp_path / "a.txt").write_text("a\n" + "b" * 5000 + "\nc")
    assert [len(row["text"]) for row in rows_of(text(tmp_path))] == [1, 5000, 1]
