"""Who gets which rows, when, and what comes after an interruption: through real streams."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitrain.data
from minitrain.data.dataset import Dataset
from minitrain.data.feeding.stream import _Ahead
from minitrain.data.iterator import DataIterator, merged_positions
from minitrain.data.plans.readahead import Piece, reading
from minitrain.data.plans.runtime import Runtime
from minitrain.exceptions import ConfigurationError, DataError, SchemaMismatchError, TransformError
from tests.data.numbers import Reads, numbers


def ids(batches: Any) -> list[int]:
    return [int(one) for batch in batches for one in batch["id"]]


def shape(iterator: DataIterator, **options: Any) -> tuple[list[int], list[int]]:
    """Return an epoch's rows, and the sizes of its batches."""
    batches = list(iterator.iter_batches(**options))
    return ids(batches), [len(batch["id"]) for batch in batches]


def shuffled(dataset: Dataset, kind: str) -> Dataset:
    match kind:
        case "blocks":
            return dataset.randomize_block_order(seed=5)
        case "rows":
            return dataset.random_shuffle(seed=5)
        case _:
            return dataset


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=6)
kinds = st.sampled_from(["none", "blocks", "rows"])
windows = st.none() | st.integers(1, 15)


# ---------------------------------------------------------------------- every epoch
@settings(max_examples=60, deadline=None)
@given(
    sizes=sizes,
    world=st.integers(1, 5),
    batch=st.integers(1, 9),
    window=windows,
    kind=kinds,
    remainder=st.sampled_from(["drop", "pad"]),
    filtered=st.booleans(),
    counted=st.booleans(),
)
def test_all_ranks_get_as_many_rows_and_batches_and_each_row_comes_once(
    sizes, world, batch, window, kind, remainder, filtered, counted
):
    dataset = numbers(sizes, is_counted=counted)
    if filtered:
        dataset = dataset.filter(lambda row: row["id"] % 3 != 1)
    expected = [one for one in range(sum(sizes)) if not filtered or one % 3 != 1]
    ranks = shuffled(dataset, kind).streaming_split(world, equal=True, remainder=remainder)
    options = {"batch_size": batch, "local_shuffle_buffer_size": window}
    for _ in range(2):
        epoch = [shape(rank, **options) for rank in ranks]
        assert len({tuple(sizes_of_batches) for _, sizes_of_batches in epoch}) == 1
        got = [row for rows, _ in epoch for row in rows]
        if remainder == "drop":
            assert len(set(got)) == len(got) > len(expected) - world
            assert set(got) <= set(expected)
        else:
            assert set(got) == set(expected)
            assert len(got) < len(expected) + world


@settings(max_examples=30, deadline=None)
@given(sizes=sizes, world=st.integers(1, 4))
def test_shares_that_need_not_be_equal_leave_nothing_out(sizes, world):
    ranks = numbers(sizes).streaming_split(world)
    got = [shape(rank, batch_size=4)[0] for rank in ranks]
    assert [row for rows in got for row in rows] == list(range(sum(sizes)))
    assert max(map(len, got)) - min(map(len, got)) <= 1


@pytest.mark.parametrize("kind", ["blocks", "rows"])
def test_each_epoch_has_another_order_unless_asked_otherwise(kind):
    again = numbers([4] * 8)
    fixed = (
        again.randomize_block_order(seed=1, reseed_after_execution=False)
        if kind == "blocks"
        else again.random_shuffle(seed=1, reseed_after_execution=False)
    )
    iterator, same = shuffled(again, kind).iterator(), fixed.iterator()
    epochs = [tuple(shape(iterator)[0]) for _ in range(3)]
    assert len(set(epochs)) == 3
    assert len({tuple(shape(same)[0]) for _ in range(3)}) == 1


def test_a_local_shuffle_has_another_order_in_each_epoch_and_for_each_seed():
    options = {"local_shuffle_buffer_size": 16}
    orders = set()
    for seed in (1, 2):
        iterator = numbers([32]).iterator()
        for _ in range(2):
            orders.add(tuple(shape(iterator, local_shuffle_seed=seed, **options)[0]))
    assert len(orders) == 4


def test_a_window_stays_a_window():
    rows, _ = shape(numbers([100]).iterator(), local_shuffle_buffer_size=10)
    assert rows != list(range(100))
    for start in range(0, 100, 10):
        assert sorted(rows[start : start + 10]) == list(range(start, start + 10))


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, batch=st.integers(1, 7), window=windows, kind=kinds)
def test_rows_that_nobody_counted_come_in_the_same_order(sizes, batch, window, kind):
    options = {"batch_size": batch, "local_shuffle_buffer_size": window, "local_shuffle_seed": 3}
    unknown = shuffled(numbers(sizes, is_counted=False), kind)
    known = shuffled(numbers(sizes), kind).iterator()
    for _ in range(2):
        assert ids(unknown.iter_batches(**options)) == shape(known, **options)[0]


def test_order_does_not_depend_on_the_process(tmp_path):
    shares = numbers([7, 9, 11]).randomize_block_order(seed=2).streaming_split(2, equal=True)
    copies = cloudpickle.loads(cloudpickle.dumps(shares))
    for share, copy in zip(shares, copies, strict=True):
        assert shape(share) == shape(copy)


def test_a_batch_size_of_none_gives_all_ranks_as_many_batches():
    ranks = numbers([20_000, 5, 13], table_rows=700).streaming_split(2, equal=True)
    assert len({len(list(rank.iter_batches(batch_size=None))) for rank in ranks}) == 1


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_last_batch(drop_last):
    _, sizes_of_batches = shape(numbers([10]).iterator(), batch_size=4, drop_last=drop_last)
    assert sizes_of_batches == ([4, 4] if drop_last else [4, 4, 2])


# ---------------------------------------------------------------------- interruptions
@settings(max_examples=80, deadline=None)
@given(
    sizes=sizes,
    worlds=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    stops=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    batch=st.integers(1, 5),
    window=windows,
    kind=kinds,
)
def test_after_any_interruptions_each_row_of_the_epoch_has_come_once(
    sizes, worlds, stops, batch, window, kind
):
    dataset = shuffled(numbers(sizes), kind).resolved()
    options = {"batch_size": batch, "local_shuffle_buffer_size": window}
    seen: list[int] = []
    position: dict[str, Any] | None = None
    for attempt, world in enumerate(worlds):
        ranks = dataset.streaming_split(world, equal=True)
        is_last = attempt == len(worlds) - 1
        running = []
        for rank in ranks:
            if position is not None:
                rank.resume(position)
            running.append(iter(rank.iter_batches(**options)))
        taken = 10**6 if is_last else stops[attempt]
        for iterator in running:
            for _, one in zip(range(taken), iterator, strict=False):
                seen.extend(one["id"].tolist())
        position = json.loads(json.dumps(merged_positions([rank.position() for rank in ranks])))
        if position["epoch"] > 0:
            break
        for iterator in running:
            iterator.close()
    assert len(set(seen)) == len(seen)
    assert len(seen) > sum(sizes) - max(worlds)


@settings(max_examples=60, deadline=None)
@given(
    sizes=sizes,
    world=st.integers(1, 3),
    stop=st.integers(0, 6),
    batch=st.integers(1, 5),
    window=windows,
    kind=kinds,
)
def test_the_same_ranks_get_what_would_have_come(sizes, world, stop, batch, window, kind):
    dataset = shuffled(numbers(sizes), kind).resolved()
    options = {"batch_size": batch, "local_shuffle_buffer_size": window}
    straight = [
        [shape(rank, **options)[0] for _ in range(2)]
        for rank in dataset.streaming_split(world, equal=True)
    ]
    ranks = dataset.streaming_split(world, equal=True)
    begun: list[list[int]] = []
    positions = []
    for rank in ranks:
        batches = iter(rank.iter_batches(**options))
        begun.append(ids(one for _, one in zip(range(stop), batches, strict=False)))
        positions.append(rank.position())
        batches.close()
    merged = merged_positions(positions)
    again = dataset.streaming_split(world, equal=True)
    for number, rank in enumerate(again):
        rank.resume(merged)
        epochs = [shape(rank, **options)[0] for _ in range(2)]
        if merged["epoch"] == 0:
            assert begun[number] + epochs[0] == straight[number][0]
            assert epochs[1] == straight[number][1]
        else:
            assert epochs[0] == straight[number][1]


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, world=st.integers(1, 4), stop=st.integers(0, 4), window=windows)
def test_a_state_is_that_of_one_rank_with_its_padding(sizes, world, stop, window):
    options = {"batch_size": 2, "local_shuffle_buffer_size": window}

    def ranks() -> list[DataIterator]:
        return numbers(sizes).streaming_split(world, equal=True, remainder="pad")

    for straight, begun, again in zip(ranks(), ranks(), ranks(), strict=True):
        batches = iter(begun.iter_batches(**options))
        rows = ids(one for _, one in zip(range(stop), batches, strict=False))
        again.load_state_dict(json.loads(json.dumps(begun.state_dict())))
        batches.close()
        if again.state_dict()["epoch"] == 0:
            assert rows + shape(again, **options)[0] == shape(straight, **options)[0]


def test_a_step_that_changes_the_number_of_rows_may_follow_what_differs_in_each_epoch():
    dataset = numbers([4] * 5).randomize_block_order(seed=1).limit(10)
    dataset = dataset.map_batches(lambda batch: {"id": batch["id"]})
    ranks = dataset.streaming_split(2, equal=True)
    state = merged_positions([rank.position() for rank in ranks])
    found = [ids(rank.iter_batches()) for rank in ranks]
    for rank in ranks:
        rank.resume(state)
    assert [ids(rank.iter_batches()) for rank in ranks] == found


def test_an_epoch_that_was_left_is_over():
    iterator = numbers([10]).iterator()
    for _ in iterator.iter_batches(batch_size=2):
        break
    assert iterator.position()["epoch"] == 1


def test_within_the_loop_the_position_is_after_the_batch():
    iterator = numbers([10]).iterator()
    batches = iterator.iter_batches(batch_size=4, prefetch_batches=3)
    positions = [iterator.position() for _ in batches]
    assert [(one["epoch"], one["remaining"]) for one in positions] == [
        (0, [[4, 10]]),
        (0, [[8, 10]]),
        (0, []),
    ]
    assert iterator.position()["epoch"] == 1


def test_the_position_among_rows_is_after_the_row():
    iterator = numbers([10]).iterator()
    for row in iterator.iter_rows():
        if row["id"] == 3:
            break_at = iterator.state_dict()
    again = numbers([10]).iterator()
    again.load_state_dict(break_at)
    assert [row["id"] for row in again.iter_rows()] == [4, 5, 6, 7, 8, 9]


def test_rows_can_be_iterated_over_again():
    rows = numbers([6]).randomize_block_order().iter_rows()
    assert list(rows) == list(rows) == [{"id": one} for one in range(6)]


def test_a_position_survives_until_it_is_used():
    first = numbers([10]).iterator()
    batches = iter(first.iter_batches(batch_size=4))
    next(batches)
    position = merged_positions([first.position()])
    batches.close()
    again = numbers([10]).iterator()
    again.resume(position)
    assert merged_positions([again.position()]) == position
    assert shape(again)[0] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "other",
    [
        numbers([10, 1]),
        numbers([5, 5]),
        numbers([10]).randomize_block_order(seed=1),
        numbers([10]).random_shuffle(seed=1),
        numbers([10]).randomize_block_order(seed=1, reseed_after_execution=False),
        numbers([10]).sort("id"),
    ],
)
def test_a_position_in_another_dataset_is_refused(other):
    position = merged_positions([numbers([10]).iterator().position()])
    with pytest.raises(DataError, match="another dataset"):
        other.iterator().resume(position)


# ---------------------------------------------------------------------- reading
def test_only_the_blocks_of_a_share_are_read():
    reads = Reads()
    ranks = numbers([3] * 8, before=reads).streaming_split(4, equal=True)
    reads.firsts.clear()  # of the first rows, which are looked at in any case
    assert shape(ranks[2])[0] == list(range(12, 18))
    assert sorted(reads.firsts) == [12, 15]


def test_after_a_resumption_only_what_is_left_is_read():
    reads = Reads()
    dataset = numbers([3] * 8, before=reads).resolved()
    first = dataset.iterator()
    for _ in first.iter_batches(batch_size=15):
        position = merged_positions([first.position()])
        break
    reads.firsts.clear()
    again = dataset.iterator()
    again.resume(position)
    assert shape(again)[0] == list(range(15, 24))
    assert min(reads.firsts) == 15


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_error_while_reading_comes_where_the_batch_is_taken(prefetch):
    def before(first: int) -> None:
        if first == 12:
            raise OSError("the disk is gone")

    iterator = numbers([6, 6, 6], table_rows=6, before=before).iterator()
    batches = iter(iterator.iter_batches(batch_size=6, prefetch_batches=prefetch))
    assert ids([next(batches), next(batches)]) == list(range(12))
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_file_that_has_changed_since_it_was_counted_is_named():
    changed = threading.Event()

    def keep(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"id": batch["id"][:-1] if changed.is_set() else batch["id"]}

    iterator = numbers([6, 6], table_rows=6).map_batches(keep).resolved().iterator()
    changed.set()
    with pytest.raises(DataError, match=r"numbers from 0: rows 0 to 6 were counted, but only 5"):
        shape(iterator)


def test_rows_of_a_part_of_a_block_are_named():
    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": 1 // (7 - row["id"])}

    with pytest.raises(TransformError, match=r"at rows 0 to 2 of numbers from 0, from row 6$"):
        numbers([9]).repartition(3).map(refuse).take_all()


def test_without_a_seed_every_process_draws_the_same_sample():
    one, other = (numbers([60]).random_sample(0.5).streaming_split(1)[0] for _ in range(2))
    assert one.position() == other.position()
    assert shape(one) == shape(other)


def test_parts_of_a_block_are_sampled_each_by_itself():
    rows = numbers([60]).repartition(3).random_sample(0.5, seed=1).take_all()
    samples = [{row["id"] % 20 for row in rows if row["id"] // 20 == part} for part in range(3)]
    assert samples[0] != samples[1] != samples[2]


def test_a_function_that_promised_to_keep_rows_and_does_not_is_named():
    dataset = numbers([6]).map_batches(lambda _: {"id": [1]}, udf_modifying_row_count=False)
    with pytest.raises(TransformError, match="returned 1 rows for 3, although"):
        shape(dataset.iterator())


def test_an_iterator_that_is_dropped_ends_its_threads():
    batches = iter(numbers([1000]).iterator().iter_batches(batch_size=1, prefetch_batches=2))
    next(batches)
    assert any(thread.name.startswith("dataset-") for thread in threading.enumerate())
    del batches
    gc.collect()
    assert not [one for one in threading.enumerate() if one.name.startswith("dataset-")]


@pytest.mark.parametrize("prefetch", [pytest.param(0, marks=pytest.mark.campaign), 2])
def test_a_process_ends_while_an_epoch_is_read(prefetch):
    script = f"""
        import minitrain.data
        rows = minitrain.data.range(1_000_000)
        batches = iter(rows.iter_batches(batch_size=10, prefetch_batches={prefetch}))
        print(next(batches)["id"].tolist()[-1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert (ended.stdout, ended.stderr) == ("9\n", "")


def test_an_iteration_may_be_closed_by_one_of_its_own_threads():
    closed = threading.Event()

    def close(first: int) -> None:
        if first == 3:
            batches.close()
            closed.set()

    reader = reading(map(Piece, numbers([6, 6], before=close).plan.blocks(0)), Runtime())
    batches = _Ahead(iter(reader), 1, Runtime(), reader)
    list(batches)
    assert closed.wait(10)
    batches.close()


def test_what_is_closed_needs_no_module_to_be_closed_again(monkeypatch):
    reader = reading(map(Piece, numbers([6, 6]).plan.blocks(0)), Runtime())
    batches = _Ahead(iter(reader), 1, Runtime(), reader)
    next(iter(batches))
    for one in (batches, reader):
        one.close()
    for module in ("minitrain.data.feeding.stream", "minitrain.data.plans.readahead"):
        monkeypatch.setattr(f"{module}.os", None)  # as Python leaves them at its end
    for one in (batches, reader):
        one.close()


def test_a_fork_may_read_while_a_thread_calls_a_function():
    called, go_on = threading.Event(), threading.Event()

    def wait(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        called.set()
        go_on.wait(30)
        return batch

    dataset = numbers([6]).map_batches(wait)
    batches = dataset.iter_batches(prefetch_batches=1)
    reading = threading.Thread(target=list, args=(batches,))
    reading.start()
    assert called.wait(10)
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        go_on.set()
        os._exit(0 if len(dataset.take_all()) == 6 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    go_on.set()
    reading.join()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loop_that_a_fork_took_over_is_refused(prefetch):
    batches = iter(numbers([6, 6]).iter_batches(batch_size=2, prefetch_batches=prefetch))
    next(batches)
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        try:
            list(batches)
        except DataError as error:
            os._exit(0 if "in another process" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert ids(batches) == list(range(2, 12))


def test_two_epochs_at_a_time():
    iterator = numbers([6]).iterator()
    pairs = list(
        zip(iterator.iter_batches(batch_size=2), iterator.iter_batches(batch_size=2), strict=True)
    )
    assert [ids(pair) for pair in pairs] == [[0, 1, 0, 1], [2, 3, 2, 3], [4, 5, 4, 5]]
    assert iterator.position()["epoch"] == 2


# ---------------------------------------------------------------------- batches
def test_batches_of_tensors():
    torch = pytest.importorskip("torch")
    (batch,) = numbers([5]).iter_torch_batches(dtypes=torch.float32)
    assert batch["id"].dtype == torch.float32
    batch["id"] += 1  # it is the user's own memory
    (named,) = numbers([5]).iter_torch_batches(dtypes={"id": torch.int32})
    assert named["id"].dtype == torch.int32
    (made,) = numbers([5]).iter_torch_batches(collate_fn=lambda batch: batch["id"].sum())
    assert made == 10


@pytest.mark.parametrize("wrong", ["float32", np.float32, {"id": "float32"}])
def test_wrong_dtypes_are_refused_at_once(wrong):
    pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"must be a torch\.dtype"):
        numbers([5]).iter_torch_batches(dtypes=wrong)


@pytest.mark.parametrize("table_rows", [1, 2, 4])
def test_whether_a_column_is_a_tensor_follows_from_its_batch_alone(table_rows):
    pytest.importorskip("torch")

    def lists(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"x": [np.zeros(1 + (row == 3)) for row in batch["id"]]}

    dataset = numbers([4], table_rows=table_rows).map_batches(lists)
    kinds = [type(batch["x"]).__name__ for batch in dataset.iter_torch_batches(batch_size=2)]
    assert kinds == ["Tensor", "list"]


def test_dtypes_beside_a_collate_fn_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="dtypes has no effect beside collate_fn"):
        numbers([5]).iter_torch_batches(collate_fn=len, dtypes=torch.int32)


@pytest.mark.parametrize("wrong", [5, "collate"])
def test_a_collate_fn_that_cannot_be_called_is_refused(wrong):
    pytest.importorskip("torch")
    with pytest.raises(TypeError, match=f"collate_fn={wrong!r} cannot be called"):
        numbers([5]).iter_torch_batches(collate_fn=wrong)


def test_the_automatic_device_is_the_workers():
    pytest.importorskip("torch")
    iterator = numbers([5]).iterator()
    asked = []
    iterator.bind(device=lambda: asked.append("asked") or "meta")
    (batch,) = iterator.iter_torch_batches()
    assert asked == ["asked"]
    assert batch["id"].device.type == "meta"


@pytest.mark.parametrize("batch_format", ["pandas", "pyarrow", "numpy", "default", None])
def test_formats(batch_format):
    (batch,) = numbers([5]).iter_batches(batch_format=batch_format)
    kinds = {"pandas": "DataFrame", "pyarrow": "Table", None: "Table"}
    assert type(batch).__name__ == kinds.get(batch_format, "dict")
    assert list(map(int, pa.array(np.asarray(batch["id"])).to_pylist())) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("window", [None, 100])
def test_large_tensors_are_not_copied_by_torch_s_threads_which_spin(window, monkeypatch):
    torch = pytest.importorskip("torch")

    def copy_with_threads(*args, **kwargs):
        raise AssertionError("torch copies")

    monkeypatch.setattr(torch, "cat", copy_with_threads)
    monkeypatch.setattr(torch.Tensor, "index_select", copy_with_threads)
    images = np.arange(3 * 5 * 40_000, dtype="u1").reshape(15, 40_000)
    ds = minitrain.data.from_numpy({"x": images}, override_num_blocks=3)
    batches = list(ds.iter_torch_batches(batch_size=4, local_shuffle_buffer_size=window))
    assert [len(batch["x"]) for batch in batches] == [4, 4, 4, 3]
    found = torch.concatenate([batch["x"] for batch in batches]).numpy()
    if window is None:
        np.testing.assert_array_equal(found, images)
    else:
        assert sorted(map(bytes, found)) == sorted(map(bytes, images))


@pytest.mark.parametrize("window", [None, 4])
def test_numbers_that_numpy_has_not_are_joined_and_shuffled_all_the_same(window):
    torch = pytest.importorskip("torch")
    batches = numbers([3, 3, 3]).iter_torch_batches(
        batch_size=2, dtypes=torch.bfloat16, local_shuffle_buffer_size=window
    )
    found = torch.concatenate([batch["id"] for batch in batches])
    assert found.dtype == torch.bfloat16
    assert sorted(found.tolist()) == list(range(9))


@pytest.mark.parametrize("method", ["iter_batches", "iter_torch_batches"])
@pytest.mark.parametrize("size", [2, 3])  # a batch ends where the other columns begin, or not
def test_rows_with_other_columns_are_refused(method, size):
    both = numbers([4]).union(numbers([4]).rename_columns({"id": "x"}))
    with pytest.raises(SchemaMismatchError, match=r"columns \['id'\], others \['x'\]: give"):
        list(getattr(both, method)(batch_size=size))


def test_rows_are_dicts_of_python_values():
    assert list(numbers([2]).iter_rows()) == [{"id": 0}, {"id": 1}]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"prefetch_batches": -1}, "prefetch_batches=-1"),
        ({"local_shuffle_buffer_size": 0}, "local_shuffle_buffer_size=0"),
        ({"local_shuffle_seed": 0.5}, r"local_shuffle\(seed\)=0.5"),
    ],
)
def test_wrong_numbers_are_refused_at_once(options, named):
    with pytest.raises(ConfigurationError, match=named):
        numbers([5]).iter_batches(**options)


def test_integers_of_numpy_are_integers():
    iterator = numbers([5]).randomize_block_order(seed=np.int64(3)).iterator()
    (first, *_) = iterator.iter_batches(
        batch_size=np.int64(2), local_shuffle_buffer_size=np.int8(4)
    )
    assert len(first["id"]) == 2


def test_stats_say_where_the_time_went():
    iterator = numbers([100]).map_batches(lambda batch: batch).iterator()
    assert iterator.stats() == "nothing was read yet"
    shape(iterator, local_shuffle_buffer_size=10)
    for part in ("map_batches(<lambda>)", "converted", "shuffled", "waited for batches"):
        assert part in iterator.stats()


def test_a_share_in_memory():
    share = numbers([5, 5]).streaming_split(2, equal=True)[1]
    kept = share.materialize()
    assert [row["id"] for row in kept.take_all()] == [5, 6, 7, 8, 9]


def test_who_iterates_over_a_dataset_itself_is_told_what_to_iterate_over():
    with pytest.raises(TypeError, match=r"\.iter_batches\(\), .* of a Dataset"):
        list(numbers([3]))
    with pytest.raises(TypeError, match=r"\.iter_batches\(\), .* of a DataIterator"):
        iter(numbers([3]).iterator())
