"""What datasets do to rows, against pandas and plain Python, and what they say when it fails."""

import os
import threading
import traceback
from collections import Counter

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitrain.data
from minitrain.data import DataContext
from minitrain.data.plans.runtime import Runtime
from minitrain.exceptions import ColumnError, ConfigurationError, DataError, TransformError
from tests.data.slices import dataset_of, dataset_of_slices

ROWS = [{"id": i, "x": i / 2, "s": f"s{i % 4}"} for i in range(250)]
TABLE = pa.Table.from_pylist(ROWS)
FRAME = TABLE.to_pandas()
ODD = pc.equal(pc.bit_wise_and(pc.field("id"), 1), 1)


def rows_of(dataset):
    return list(dataset.iter_rows())


def made():
    return dataset_of(TABLE, 4)


# ---------------------------------------------------------------------- functions
def test_a_row_becomes_a_row():
    mapped = made().map(lambda row: {"id": row["id"], "y": row["x"] + 1})
    assert rows_of(mapped) == [{"id": r["id"], "y": r["x"] + 1} for r in ROWS]


def test_a_row_becomes_any_number_of_rows():
    repeated = made().flat_map(
        lambda row: [{"id": row["id"], "n": n} for n in range(row["id"] % 3)]
    )
    assert rows_of(repeated) == [{"id": r["id"], "n": n} for r in ROWS for n in range(r["id"] % 3)]
    assert repeated.count() == sum(r["id"] % 3 for r in ROWS)
    generated = made().flat_map(lambda row: (row for _ in range(2))).limit(4)
    assert [row["id"] for row in rows_of(generated)] == [0, 0, 1, 1]
    assert rows_of(made().flat_map(lambda _: [])) == []


@pytest.mark.parametrize("batch_format", ["default", "numpy", "pandas", "pyarrow", None])
def test_a_batch_becomes_a_batch_of_any_format(batch_format):
    kinds = set()

    def halved(batch):
        kinds.add(type(batch))
        if isinstance(batch, dict):
            return {"id": batch["id"], "x": batch["x"] / 2}
        if isinstance(batch, pd.DataFrame):
            return batch[["id", "x"]].assign(x=batch["x"] / 2)
        return batch.select(["id"]).append_column("x", pc.divide(batch["x"], 2.0))

    mapped = made().map_batches(halved, batch_format=batch_format)
    assert rows_of(mapped) == [{"id": r["id"], "x": r["x"] / 2} for r in ROWS]
    wanted = {"pandas": pd.DataFrame, "pyarrow": pa.Table, None: pa.Table}
    assert kinds == {wanted.get(batch_format, dict)}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 60), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 20)))
def test_batches_have_the_size_that_was_asked_for(rows, pieces, size):
    sizes = []

    def seen(batch):
        sizes.append(len(batch["id"]))
        return batch

    table = pa.table({"id": range(rows)})
    mapped = dataset_of(table, pieces).map_batches(seen, batch_size=size)
    assert [row["id"] for row in rows_of(mapped)] == list(range(rows))
    assert sum(sizes) == rows
    if size is not None:  # each block is cut by itself
        edges = [rows * piece // pieces for piece in range(pieces + 1)]
        blocks = np.diff(edges)
        assert Counter(sizes)[size] >= sum(block // size for block in blocks)
        assert max(sizes, default=0) <= size


def counting(made, rows=1):
    """Return a function that yields five batches, and notes each before."""

    def count(batch):
        for number in range(5):
            made.append(number)
            yield {"id": batch["id"][:rows] + number}

    return count


def test_what_a_generator_yields_is_made_when_it_is_taken():
    made = []
    (block,) = dataset_of(TABLE, 1).map_batches(counting(made)).plan.blocks(0)
    with Runtime().in_this_thread():
        tables = block.read()
        assert next(tables)["id"].to_pylist() == [0]
        assert made == [0]
        assert len(list(tables)) == 14, "three tables are read"


def test_generators_that_wait_for_room_do_not_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(DataContext.get_current(), "memory_budget_bytes", 1)
    made = []
    batches = dataset_of(TABLE, 5).map_batches(counting(made)).iter_batches(batch_size=1)
    ids = [int(batch["id"][0]) for batch in batches]
    assert ids == [first + number for first in range(0, 250, 50) for number in range(5)]


@pytest.mark.parametrize(("target", "rows"), [(8, [1] * 5), (9, [2, 2, 1]), (99, [5])])
def test_small_tables_leave_a_pool_together(target, rows, monkeypatch):
    monkeypatch.setattr(DataContext.get_current(), "target_table_bytes", target)
    (block,) = dataset_of(TABLE, 1).map_batches(counting([]), concurrency=1).plan.blocks(0)
    function = cloudpickle.loads(block.steps[0].pickled())
    tables = list(function(TABLE))
    assert [table.num_rows for table in tables] == rows
    assert {table["id"].num_chunks for table in tables} == {1}
    assert [row for table in tables for row in table["id"].to_pylist()] == list(range(5))


def test_tables_of_different_columns_leave_a_pool_apart():
    def both(batch):
        yield {"id": batch["id"][:1]}
        yield {"x": batch["x"][:1]}

    (block,) = dataset_of(TABLE, 1).map_batches(both, concurrency=1).plan.blocks(0)
    function = cloudpickle.loads(block.steps[0].pickled())
    assert [table.column_names for table in function(TABLE)] == [["id"], ["x"]]


def test_a_generator_yields_any_number_of_batches():
    def in_pieces(batch):
        for start in range(0, len(batch["id"]), 3):
            yield {"id": batch["id"][start : start + 3]}

    assert [row["id"] for row in rows_of(made().map_batches(in_pieces))] == list(range(250))
    assert rows_of(made().map_batches(lambda batch: (one for one in ()))) == []


def test_functions_get_their_arguments():
    def scaled(batch, factor, *, offset):
        return {"x": batch["x"] * factor + offset}

    mapped = made().map_batches(scaled, fn_args=(3,), fn_kwargs={"offset": 1})
    assert [row["x"] for row in rows_of(mapped)] == [r["x"] * 3 + 1 for r in ROWS]
    rowwise = made().map(lambda row, n: {"n": row["id"] + n}, fn_args=[5]).limit(2)
    assert rows_of(rowwise) == [{"n": 5}, {"n": 6}]
    kept = made().filter(lambda row, n: row["id"] < n, fn_kwargs={"n": 3})
    assert [row["id"] for row in rows_of(kept)] == [0, 1, 2]


class Adder:
    """Counts its calls; one object of it lives in each process."""

    def __init__(self, start, *, step=1):
        self.start = start
        self.step = step
        self.calls = 0
        self.thread = threading.Lock()  # cannot be pickled, and need not be

    def __call__(self, batch):
        self.calls += 1
        rows = len(batch["id"])
        return {
            "id": batch["id"] + self.start * self.step,
            "pid": np.full(rows, os.getpid()),
            "object": np.full(rows, id(self)),
            "call": np.full(rows, self.calls),
        }


LONG = pytest.mark.campaign


@pytest.mark.campaign
@pytest.mark.parametrize(
    "concurrency", [None, pytest.param(1, marks=LONG), 2, pytest.param((1, 2), marks=LONG)]
)
def test_a_class_is_made_once_per_process(concurrency):
    mapped = made().map_batches(
        Adder,
        batch_size=10,
        fn_constructor_args=(100,),
        fn_constructor_kwargs={"step": 10},
        concurrency=concurrency,
    )
    got = rows_of(mapped)
    assert [row["id"] for row in got] == list(range(1000, 1250))
    objects = {(row["pid"], row["object"]) for row in got}
    processes = {row["pid"] for row in got}
    assert len(objects) == len(processes)
    assert (os.getpid() in processes) == (concurrency is None)
    assert len(processes) <= (2 if concurrency in {2, (1, 2)} else 1)
    assert sum(max(r["call"] for r in got if r["pid"] == pid) for pid in processes) >= 25


@pytest.mark.campaign
def test_every_function_may_run_in_a_pool():
    chained = (
        made()
        .map(lambda row: row | {"pid": os.getpid()}, concurrency=2)
        .filter(lambda row: row["id"] % 2 == 0, concurrency=1)
        .flat_map(lambda row: [row, row], concurrency=1)
        .add_column("twice", lambda frame: frame["id"] * 2, concurrency=1)
    )
    got = rows_of(chained)
    assert [row["id"] for row in got] == [i for i in range(0, 250, 2) for _ in range(2)]
    assert [row["twice"] for row in got] == [row["id"] * 2 for row in got]
    assert os.getpid() not in {row["pid"] for row in got}


def test_a_function_is_called_by_one_thread_at_a_time():
    busy = threading.Lock()

    def alone(batch):
        assert busy.acquire(blocking=False)
        total = sum(i * i for i in range(2000))
        busy.release()
        return batch | {"total": np.full(len(batch["id"]), total)}

    assert len(rows_of(dataset_of(TABLE, 50).map_batches(alone))) == 250


def test_what_a_function_changes_in_place_is_its_own():
    def overwrites(batch):
        batch["x"][:] = 0
        batch["id"] += 1
        return batch

    dataset = made().materialize()
    assert {row["x"] for row in rows_of(dataset.map_batches(overwrites))} == {0}
    assert rows_of(dataset) == ROWS


# ---------------------------------------------------------------------- columns
def test_columns_are_added():
    for column in (
        lambda frame: frame["x"] * 2,
        lambda frame: (frame["x"] * 2).to_numpy(),
        lambda frame: (frame["x"] * 2).tolist(),
    ):
        added = made().add_column("y", column).to_pandas()
        pd.testing.assert_frame_equal(added, FRAME.assign(y=FRAME["x"] * 2))
    replaced = made().add_column("x", lambda batch: batch["id"], batch_format="numpy").to_pandas()
    pd.testing.assert_frame_equal(replaced, FRAME.assign(x=FRAME["id"]))
    arrow = made().add_column("y", lambda table: pc.add(table["id"], 1), batch_format="pyarrow")
    assert arrow.take(2)[1] == ROWS[1] | {"y": 2}
    computed = made().with_column("y", pc.field("id") + pc.field("x")).to_pandas()
    pd.testing.assert_frame_equal(computed, FRAME.assign(y=FRAME["id"] + FRAME["x"]))
    again = made().with_column("x", pc.field("x") * 0).to_pandas()
    pd.testing.assert_frame_equal(again, FRAME.assign(x=0.0))


def test_columns_are_selected_dropped_and_renamed():
    pd.testing.assert_frame_equal(
        made().select_columns(["s", "id"]).to_pandas(), FRAME[["s", "id"]]
    )
    assert made().select_columns("x").columns() == ["x"]
    pd.testing.assert_frame_equal(made().drop_columns(["x"]).to_pandas(), FRAME[["id", "s"]])
    renamed = made().rename_columns({"x": "y", "id": "x"}).to_pandas()
    pd.testing.assert_frame_equal(renamed, FRAME.rename(columns={"x": "y", "id": "x"}))
    assert made().rename_columns(["a", "b", "c"]).columns() == ["a", "b", "c"]
    swapped = made().rename_columns({"x": "id", "id": "x"}).select_columns(["x"])
    assert [row["x"] for row in swapped.take(3)] == [0, 1, 2]


# ---------------------------------------------------------------------- rows
def test_rows_are_kept_where_a_function_or_an_expression_holds():
    wanted = [r for r in ROWS if r["x"] > 50 and r["s"] == "s1"]
    expression = (pc.field("x") > 50) & (pc.field("s") == "s1")
    assert rows_of(made().filter(lambda row: row["x"] > 50 and row["s"] == "s1")) == wanted
    assert rows_of(made().filter(expr=expression)) == wanted
    assert rows_of(made().filter(expression)) == wanted
    assert made().filter(expression).count() == len(wanted)
    assert rows_of(made().filter(pc.field("x") > 1e9)) == []


def test_nulls_do_not_hold():
    dataset = dataset_of(pa.table({"x": [1, None, 3]}))
    assert rows_of(dataset.filter(pc.field("x") > 1)) == [{"x": 3}]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(0, 50), st.booleans())
def test_the_first_rows(rows, pieces, limit, counted):
    dataset = dataset_of(pa.table({"id": range(rows)}), pieces, counted=counted).limit(limit)
    assert [row["id"] for row in rows_of(dataset)] == list(range(min(rows, limit)))
    assert dataset.count() == min(rows, limit)


def test_a_limit_reads_no_further():
    seen = []

    def note(row):
        seen.append(row["id"])
        return row

    assert dataset_of(TABLE, 10).map(note).limit(30).count() == 30
    assert max(seen, default=0) < 125


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=4), st.data())
def test_unions_and_columns_side_by_side(sizes, data):
    parts = [dataset_of(pa.table({"id": range(n)}), data.draw(st.integers(1, 4))) for n in sizes]
    union = parts[0].union(*parts[1:])
    assert [row["id"] for row in rows_of(union)] == [i for n in sizes for i in range(n)]
    assert union.count() == sum(sizes)
    rows = sizes[0]
    other = dataset_of(pa.table({"id": range(rows, 0, -1), "b": range(rows)}), 3)
    third = dataset_of(pa.table({"id": [7] * rows}), 2, counted=False)
    zipped = parts[0].zip(other, third)
    assert rows_of(zipped) == [{"id": i, "id_1": rows - i, "b": i, "id_2": 7} for i in range(rows)]
    if sizes[0] != sizes[1]:
        with pytest.raises(DataError, match=f"zip: .*have {sizes[0]} and {sizes[1]} rows"):
            rows_of(parts[0].zip(parts[1]))


def test_unions_of_other_types_are_widened():
    union = dataset_of(pa.table({"x": [1, 2]})).union(dataset_of(pa.table({"x": [0.5, None]})))
    assert union.to_arrow()["x"].to_pylist() == [1, 2, 0.5, None]
    assert union.take_batch(3)["x"].tolist() == [1, 2, 0.5]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 9), st.booleans())
def test_rows_are_cut_into_other_blocks(rows, pieces, number, counted):
    dataset = dataset_of(pa.table({"id": range(rows)}), pieces, counted=counted)
    by_number, by_rows = dataset.repartition(number), dataset.repartition(None, number)
    for one in (by_number, by_rows):
        assert [row["id"] for row in rows_of(one)] == list(range(rows))
    assert by_number.num_blocks() == min(number, rows)
    assert by_rows.num_blocks() == -(-rows // number)


# ---------------------------------------------------------------------- order
columns = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-3, 3)),
        st.sampled_from(["", "a", "b"]),
        st.floats(allow_nan=False),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=40)
@given(columns, st.integers(1, 4), st.booleans(), st.booleans())
def test_rows_are_sorted(some, pieces, first, second):
    table = pa.Table.from_pylist(
        [{"a": a, "b": b, "c": c} for a, b, c in some],
        pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64())]),
    )
    ours = dataset_of(table, pieces).sort(["a", "b"], descending=[first, second])
    frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    theirs = frame.sort_values(
        ["a", "b"], ascending=[not first, not second], kind="stable", na_position="last"
    )
    got = rows_of(ours)
    assert [None if pd.isna(a) else a for a in theirs["a"]] == [row["a"] for row in got]
    assert theirs["b"].tolist() == [row["b"] for row in got]
    sorted_by_float = dataset_of(table, pieces).sort("c", descending=np.bool_(1))
    by_float = [row["c"] for row in rows_of(sorted_by_float)]
    assert by_float == sorted((c for _, _, c in some), reverse=True)


def test_dictionaries_and_many_rows_are_sorted():
    names = pa.array(["b", None, "a", "c"] * 50_000).dictionary_encode()
    made = dataset_of(pa.table({"s": names, "id": range(200_000)})).sort("s").to_pandas()
    assert made["s"].value_counts(dropna=False).tolist() == [50_000] * 4
    assert made["s"].tolist()[:50_000] == ["a"] * 50_000
    assert made["id"][:3].tolist() == [2, 6, 10]


def test_all_rows_are_shuffled():
    shuffled = made().random_shuffle(seed=4)
    epochs = [[row["id"] for row in rows_of(shuffled)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(250)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(250))
    again = made().random_shuffle(seed=4)
    assert [[row["id"] for row in rows_of(again)] for _ in range(3)] == epochs
    assert [row["id"] for row in rows_of(made().random_shuffle(seed=5))] not in epochs
    same = made().random_shuffle(seed=4, reseed_after_execution=False)
    assert [[row["id"] for row in rows_of(same)] for _ in range(2)] == [epochs[0]] * 2
    rows = rows_of(made().random_shuffle())
    assert all(row == ROWS[row["id"]] for row in rows)


def test_blocks_are_shuffled_and_their_rows_stay_together():
    dataset = dataset_of(TABLE, 25).randomize_block_order(seed=1)
    epochs = [[row["id"] for row in rows_of(dataset)] for _ in range(2)]
    for epoch in epochs:
        assert epoch != list(range(250))
        firsts = epoch[::10]
        assert epoch == [first + i for first in firsts for i in range(10)]
    assert epochs[0] != epochs[1]
    same = dataset_of(TABLE, 25).randomize_block_order(seed=1, reseed_after_execution=False)
    assert [[row["id"] for row in rows_of(same)] for _ in range(2)] == [epochs[0]] * 2
    assert sorted(epochs[0]) == list(range(250))


@pytest.mark.campaign
def test_a_sample_is_the_same_each_time_and_about_as_large_as_asked():
    table = pa.table({"id": range(20_000)})
    sample = dataset_of(table, 8).random_sample(0.3, seed=2)
    first, second = (sample.to_arrow()["id"].to_pylist() for _ in range(2))
    assert first == second == sorted(set(first))
    assert 5_500 < len(first) < 6_500
    assert sample.count() == len(first)
    other = dataset_of(table, 8).random_sample(0.3, seed=3).to_arrow()["id"].to_pylist()
    assert other != first
    cut = dataset_of(table, 1).repartition(None, 5).random_sample(0.3, seed=2)
    assert 5_500 < cut.count() < 6_500  # no block's rows are drawn as those of another
    assert dataset_of(table).random_sample(0.0).count() == 0
    assert dataset_of(table).random_sample(1.0).count() == 20_000


def test_a_shuffle_of_blocks_before_a_function_gives_the_same_rows():
    steps = dataset_of(TABLE, 10).randomize_block_order(seed=3).filter(lambda row: row["id"] % 2)
    steps = steps.map(lambda row: {"id": row["id"]}).limit(40)
    assert len(rows_of(steps)) == 40
    for rank in steps.streaming_split(2, equal=True):
        assert sum(len(batch["id"]) for batch in rank.iter_batches()) == 20


# ---------------------------------------------------------------------- what goes wrong
def complains(dataset, kind=TransformError):
    with pytest.raises(kind) as caught:
        rows_of(dataset)
    return str(caught.value)


@pytest.mark.parametrize("concurrency", [None, pytest.param(1, marks=pytest.mark.campaign)])
def test_what_is_no_batch_or_row_is_said(concurrency):
    here = {"concurrency": concurrency}

    def wrong(value):
        def returns(_):
            return value

        return returns

    text = complains(made().map_batches(wrong([1, 2]), **here))
    assert "map_batches(returns" in text
    assert "returned a list, not a batch: a dict of arrays" in text
    assert "at rows 0 to" in text
    assert "slice 0" in text
    assert "returned None" in complains(made().map_batches(wrong(None), **here))
    text = complains(made().map_batches(wrong({"a": [1], "b": [1, 2]}), **here))
    assert "'a' has 1 rows, 'b' has 2 rows" in text
    assert "column named 1" in complains(made().map_batches(wrong({1: [1]}), **here))
    assert "not an array or a list" in complains(made().map_batches(wrong({"a": 1}), **here))
    assert "returned a int, not a row" in complains(made().map(wrong(3), **here))
    assert "returned None, not a row" in complains(made().map(wrong(None), **here))
    text = complains(made().flat_map(wrong({"a": 1}), **here))
    assert "returned a dict, not a list of rows" in text
    assert "returned None, not a list of rows" in complains(made().flat_map(wrong(None), **here))
    text = complains(made().flat_map(wrong([1]), **here))
    assert "returned a int, not a row" in text
    text = complains(made().add_column("y", wrong([1, 2]), **here))
    assert "returned 2 values for the column 'y' of" in text
    promised = made().map_batches(
        lambda b: {"id": b["id"][1:]}, udf_modifying_row_count=False, **here
    )
    assert "although ...=False was said: say udf_modifying_row_count=True" in complains(promised)


def _deep(row):
    return 1 // (row["id"] - 137)


def _fails(row):
    return {"y": _deep(row)}


@pytest.mark.parametrize("concurrency", [None, pytest.param(2, marks=LONG)])
def test_a_function_that_raises_shows_its_frames_the_rows_and_the_block(concurrency):
    with pytest.raises(TransformError) as caught:
        rows_of(made().map(_fails, concurrency=concurrency))
    text = str(caught.value)
    assert "map(_fails" in text
    assert "raised ZeroDivisionError: integer division or modulo by zero" in text
    assert "of slice 2" in text  # which has the rows 125 to 186
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    shown = "".join(traceback.format_exception(cause))
    assert "in _deep" in shown
    assert "test_transforms.py" in shown


def test_the_rows_that_failed_are_named():
    with pytest.raises(TransformError, match="at rows 10 to 14 of slice 2"):
        rows_of(
            made().map_batches(lambda b: {"y": [_deep({"id": i}) for i in b["id"]]}, batch_size=5)
        )


def test_rows_of_blocks_that_were_cut_are_found():
    cut = dataset_of(TABLE, 1).repartition(None, 50).map(_fails)
    with pytest.raises(TransformError, match="at rows 0 to 49 of slice 0, from row 100"):
        rows_of(cut)


def test_a_function_that_fails_in_training_fails_before_it():
    with pytest.raises(TransformError, match="ZeroDivisionError"):
        made().map(lambda row: {"y": 1 // row["id"]}).streaming_split(2)


def test_a_class_that_cannot_be_made_is_said():
    class Broken:
        def __init__(self):
            raise OSError("no such model")

        def __call__(self, batch):
            return batch

    for concurrency in (None, 1):
        with pytest.raises(DataError, match="no such model"):
            rows_of(made().map_batches(Broken, concurrency=concurrency))


def test_what_cannot_be_pickled_is_said():
    lock = threading.Lock()

    def guarded(batch):
        with lock:
            return batch

    with pytest.raises(TransformError, match=r"cannot be sent to another process.*lock"):
        rows_of(made().map_batches(guarded, concurrency=1))
    assert len(rows_of(made().map_batches(guarded))) == 250


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (lambda d: d.select_columns(["idd"]), "select_columns"),
        (lambda d: d.drop_columns(["idd"]), "drop_columns"),
        (lambda d: d.rename_columns({"idd": "a"}), "rename_columns"),
        (lambda d: d.sort("idd"), "sort"),
        (lambda d: d.filter(pc.field("idd") > 1), "filter"),
        (lambda d: d.with_column("y", pc.field("idd") + 1), "with_column"),
    ],
)
def test_columns_that_are_not_there_are_named_with_the_nearest(step, what):
    with pytest.raises(ColumnError, match=f"{what}.*no column 'idd'; did you mean 'id'"):
        rows_of(step(made()))


def test_what_cannot_be_compared_is_neither_sorted_nor_grouped():
    dataset = dataset_of(pa.table({"list": [[1], [2]], "id": [1, 2]}))
    assert "sort(list): Sorting not supported for type list" in complains(
        dataset.sort("list"), DataError
    )
    text = complains(dataset.groupby("list").count(), DataError)
    assert "count(): rows cannot be grouped by that: 'list' is list" in text
    with pytest.raises(DataError, match=r"unique\(list\) cannot be computed: column 'list' is"):
        dataset.unique("list")
    with pytest.raises(DataError, match=r"train_test_split\(stratify\): rows cannot be grouped"):
        dataset.train_test_split(1, stratify="list")


def test_wrong_names_are_refused():
    with pytest.raises(DataError, match="several columns named"):
        rows_of(made().rename_columns({"x": "id"}))
    with pytest.raises(DataError, match="2 names were given for 3 columns"):
        rows_of(made().rename_columns(["a", "b"]))
    with pytest.raises(ConfigurationError, match="named twice"):
        rows_of(made().rename_columns(["a", "a", "b"]))
    with pytest.raises(ConfigurationError, match="named twice"):
        made().select_columns(["x", "x"])
    with pytest.raises(TypeError, match="3 is no name of a column"):
        made().drop_columns([3])


@pytest.mark.parametrize("source", ["table", "range", "parquet", "materialized"])
@pytest.mark.parametrize(
    "step",
    [
        lambda d: d.select_columns(["idd"]),
        lambda d: d.drop_columns(["idd"]),
        lambda d: d.rename_columns({"idd": "x"}),
        lambda d: (
            d.limit(3).select_columns(["idd"]).map_batches(len, udf_modifying_row_count=False)
        ),
        lambda d: d.union(d.select_columns(["idd"])),
    ],
)
def test_counting_finds_wrong_names_where_the_columns_are_known(tmp_path, source, step):
    dataset = minitrain.data.range(5)
    if source == "table":
        dataset = minitrain.data.from_arrow(pa.table({"id": range(5)}))
    if source == "parquet":
        dataset.write_parquet(tmp_path)
        dataset = minitrain.data.read_parquet(tmp_path)
    if source == "materialized":
        dataset = dataset.materialize()
    with pytest.raises(ColumnError, match="no column 'idd'; did you mean 'id'"):
        step(dataset).count()


def test_counting_fetches_no_row_for_names():
    class Items:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError

    assert minitrain.data.from_torch(Items()).select_columns(["a"]).count() == 3


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda d: d.map_batches("f"), TypeError, "no function"),
        (lambda d: d.map_batches(len, batch_size=0), ConfigurationError, "batch_size"),
        (lambda d: d.map_batches(len, batch_format="panda"), ConfigurationError, "'pandas'"),
        (lambda d: d.map(len, concurrency=0), ConfigurationError, "concurrency"),
        (lambda d: d.map(len, concurrency=()), ConfigurationError, "the fewest and the most"),
        (lambda d: d.map(len, concurrency=(1, 2, 1)), ConfigurationError, "fewest and the most"),
        (lambda d: d.map(len, concurrency=(3, 1)), ConfigurationError, "fewest and the most"),
        (lambda d: d.map(len, concurrency=("a", 1)), ConfigurationError, "an integer"),
        (lambda d: d.map(len, fn_args=5), TypeError, "fn_args must be a list .* not int"),
        (lambda d: d.map(len, fn_args="ab"), TypeError, "fn_args must be a list .* not str"),
        (lambda d: d.map(len, fn_kwargs=[1]), TypeError, "fn_kwargs must be a dict .* not list"),
        (lambda d: d.map(len, fn_kwargs={1: 2}), TypeError, "fn_kwargs: 1 is no name"),
        (lambda d: d.map(len, fn_constructor_args=[1]), ConfigurationError, "and len is none"),
        (lambda d: d.map(len, fn_constructor_kwargs={"a": 1}), ConfigurationError, "of a class"),
        (lambda d: d.filter(), ConfigurationError, "either a function or an expression"),
        (lambda d: d.filter(ODD, ODD), ConfigurationError, "either a function or an expression"),
        (lambda d: d.filter(len, ODD), ConfigurationError, "either a function or an expression"),
        (lambda d: d.filter(ODD, fn_args=[1]), ConfigurationError, "no arguments"),
        (lambda d: d.with_column("y", 5), TypeError, r"with_column\(expr\) must be an expression"),
        (lambda d: d.with_column("y", len), TypeError, "such as pyarrow.compute.field"),
        (lambda d: d.with_column(5, ODD), TypeError, "with_column: 5 is no name of a column"),
        (lambda d: d.add_column(5, len), TypeError, "add_column: 5 is no name of a column"),
        (lambda d: d.select_columns(5), TypeError, "select_columns: 5 is no name"),
        (lambda d: d.select_columns({"id": "x"}), TypeError, "select_columns: .* no list of names"),
        (lambda d: d.groupby(len), TypeError, "groupby: .* is no name"),
        (lambda d: d.rename_columns({"id": 5}), TypeError, "rename_columns: 5 is no name"),
        (lambda d: d.rename_columns({5: "id"}), TypeError, "rename_columns: 5 is no name"),
        (lambda d: d.rename_columns({"id": "a", "x": "a"}), ConfigurationError, "named twice"),
        (lambda d: d.rename_columns([]), ConfigurationError, "at least one column"),
        (lambda d: d.union([d]), TypeError, r"list is no dataset: .* union\(\*datasets\)"),
        (lambda d: d.union(TABLE), TypeError, "union: Table is no dataset"),
        (lambda d: d.zip(d, [d]), TypeError, r"list is no dataset: .* zip\(\*datasets\)"),
        (lambda d: d.filter(expr="x > 1"), TypeError, "expression of pyarrow.compute"),
        (lambda d: d.filter("x > 1"), TypeError, "expression of pyarrow.compute"),
        (lambda d: d.limit(-1), ConfigurationError, "limit"),
        (lambda d: d.random_sample(1.5), ConfigurationError, "between 0 and 1"),
        (lambda d: d.random_sample("1"), ConfigurationError, "'1'.* between 0 and 1"),
        (lambda d: d.repartition(), ConfigurationError, "either num_blocks or"),
        (lambda d: d.repartition(0), ConfigurationError, "repartition"),
        (lambda d: d.union(pd.DataFrame()), TypeError, "union: DataFrame is no dataset"),
        (lambda d: d.zip(d, {}), TypeError, "zip: dict is no dataset"),
        (lambda d: d.sort(None), TypeError, "sort: None is no name of a column"),
        (lambda d: d.groupby(len), TypeError, "groupby: .* is no name of a column"),
        (lambda d: d.mean(5), TypeError, "mean: 5 is no name of a column"),
        (lambda d: d.groupby("id").sum([5]), TypeError, "sum: 5 is no name of a column"),
        (lambda d: d.unique(["id"]), TypeError, r"unique: \['id'\] is no name of a column"),
        (lambda d: d.with_column(5, pc.scalar(1)), TypeError, "with_column: 5 is no name"),
        (lambda d: d.rename_columns({1: "x"}), TypeError, "rename_columns: 1 is no name"),
        (lambda d: d.write_csv(5), TypeError, "5 is neither a str"),
        (lambda d: d.take(-1), ConfigurationError, r"take\(limit\)=-1"),
        (lambda d: d.take("5"), ConfigurationError, r"take\(limit\)='5'"),
        (lambda d: d.take(None), ConfigurationError, r"take\(limit\)=None"),
        (lambda d: d.take_all(2.5), ConfigurationError, r"take_all\(limit\)=2\.5"),
        (lambda d: d.take_batch(-1), ConfigurationError, r"take_batch\(batch_size\)=-1"),
        (lambda d: d.take_batch(1.5), ConfigurationError, r"take_batch\(batch_size\)=1\.5"),
        (lambda d: d.show("x"), ConfigurationError, r"show\(limit\)='x'"),
        (lambda d: d.to_arrow(-1), ConfigurationError, r"to_arrow\(limit\)=-1"),
        (lambda d: d.to_pandas("1"), ConfigurationError, r"to_pandas\(limit\)='1'"),
        (lambda d: d.streaming_split("2"), ConfigurationError, r"streaming_split\(n\)='2'"),
        (lambda d: d.streaming_split(True), ConfigurationError, r"streaming_split\(n\)=True"),
        (lambda d: d.sort([]), ConfigurationError, "at least one column"),
        (lambda d: d.sort(["id", "x"], [True]), ConfigurationError, "2 columns, but 1 directions"),
        (lambda d: d.sort("id", "d"), TypeError, r"sort\(descending='d'\): must be True or False"),
        (lambda d: d.sort("id", 1), TypeError, "must be True or False"),
        (lambda d: d.sort("id", None), TypeError, "must be True or False"),
    ],
)
def test_wrong_arguments_are_refused_at_once(call, kind, message):
    with pytest.raises(kind, match=message):
        call(made())


def test_arguments_of_numpy_are_taken():
    def added(row, one):
        return {"id": row["id"] + one}

    mapped = made().map(added, fn_args=np.array([5]), fn_constructor_args=())
    mapped = mapped.sort("id", np.array([True])).limit(1)
    assert rows_of(mapped.random_sample(np.float32(1))) == [{"id": 254}]


def test_numbers_of_numpy_are_numbers():
    dataset = made()
    assert len(dataset.take(np.int64(2))) == len(dataset.take_batch(np.int32(2))["id"]) == 2
    assert len(dataset.streaming_split(np.int64(2))) == 2
    assert dataset.take_all(np.int64(len(ROWS))) == ROWS
    assert dataset.sort("id", np.True_).take(1) == ROWS[-1:]


def test_no_step_changes_what_it_works_on():
    dataset = made()
    dataset.map(lambda row: {}).limit(3)
    dataset.drop_columns(["x"])
    assert rows_of(dataset) == ROWS


def test_functions_that_drop_columns_of_some_rows_leave_nulls():
    mapped = made().limit(3).map(lambda row: {"a": 1} if row["id"] else {"b": 2})
    assert [(row.get("a"), row.get("b")) for row in rows_of(mapped)] == [
        (None, 2),
        (1, None),
        (1, None),
    ]
    parts = dataset_of_slices(
        [pa.table({"a": [1]}), pa.table({"a": [None]}), pa.table({"a": [2.5]})]
    )
    assert parts.take_batch(3)["a"].tolist()[::2] == [1, 2.5]


def test_a_process_that_ends_is_spoken_of_once_with_the_rows_it_had():
    def leaves(batch):
        os._exit(3)

    with pytest.raises(DataError) as caught:
        rows_of(made().map_batches(leaves, concurrency=1))
    text = str(caught.value)
    assert text.count("map_batches(leaves, concurrency=1)") == 1
    assert "at rows 0 to" in text
    assert "exited with code 3" in text
