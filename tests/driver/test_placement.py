"""Where workers go, and what a machine is too small for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain._driver.placement import Room, places, shares
from minitrain._driver.placement import workers_that_fit as workers_that_fit_in
from minitrain._os.gpus import Gpu
from minitrain.config import ScalingConfig
from minitrain.exceptions import ConfigurationError


def gpus(number: int, model: str = "NVIDIA A100-SXM4-80GB") -> list[Gpu]:
    return [Gpu(str(index), model, f"GPU-{index:08x}") for index in range(number)]


def scaling(num_workers, each: float | None = None, accelerator_type: str | None = None):
    resources = None if each is None else {"GPU": each}
    return ScalingConfig(
        num_workers=num_workers,
        use_gpu=True,
        resources_per_worker=resources,
        accelerator_type=accelerator_type,
    )


def workers_that_fit(wanted, there):
    return workers_that_fit_in(wanted, [Room(tuple(there))])


def places_on_one_host(num_workers, each, there):
    wanted = ScalingConfig(num_workers=num_workers)
    if each:
        wanted = scaling(num_workers, each)
    (own,) = places(wanted, [Room(tuple(there))], num_workers)
    return own


@pytest.mark.parametrize("num_workers", [1, 64])
def test_without_gpus_any_number_of_workers_fits(num_workers):
    assert workers_that_fit(ScalingConfig(num_workers=num_workers), []) == num_workers


def test_without_gpus_an_elastic_run_takes_the_most():
    assert workers_that_fit(ScalingConfig(num_workers=(2, 5)), []) == 5


@pytest.mark.parametrize(
    ("num_workers", "each", "there", "expected"),
    [
        (2, None, 2, 2),
        (2, 2, 4, 2),
        (2, 2, 5, 2),
        (4, 0.5, 2, 4),
        (3, 0.5, 2, 3),
        (3, 0.3, 1, 3),
        (10, 0.1, 1, 10),
        ((1, 4), None, 2, 2),
        ((1, 4), None, 8, 4),
        ((2, 4), None, 2, 2),
        ((1, 4), 2, 5, 2),
        ((1, 8), 0.5, 3, 6),
    ],
)
def test_as_many_workers_start_as_there_are_gpus_for(num_workers, each, there, expected):
    assert workers_that_fit(scaling(num_workers, each), gpus(there)) == expected


@pytest.mark.parametrize(
    ("num_workers", "each", "there", "needed"),
    [
        (1, None, 0, 1),
        (3, None, 2, 3),
        (2, 2, 3, 4),
        (3, 0.5, 1, 2),
        (4, 0.3, 1, 2),
        ((3, 4), None, 2, 3),
        ((2, 4), 2, 3, 4),
    ],
)
def test_too_few_gpus_are_refused_with_both_numbers(num_workers, each, there, needed):
    with pytest.raises(ConfigurationError) as caught:
        workers_that_fit(scaling(num_workers, each), gpus(there))
    assert f"asks for {needed} GPU" in str(caught.value)
    assert f"this machine has {there}" in str(caught.value)


@pytest.mark.parametrize("wanted", ["A100", "a100", "NVIDIA A100", "A100-SXM4", "A100 80GB"[:4]])
def test_the_accelerator_type_is_a_part_of_the_models_name(wanted):
    assert workers_that_fit(scaling(2, accelerator_type=wanted), gpus(2)) == 2


def test_another_model_is_refused_naming_both():
    with pytest.raises(ConfigurationError, match=r"'H100'.*NVIDIA A100-SXM4-80GB"):
        workers_that_fit(scaling(1, accelerator_type="H100"), gpus(1))


def test_one_gpu_of_another_model_is_enough_to_refuse():
    mixed = [*gpus(1), Gpu("1", "NVIDIA T4", "GPU-ffffffff")]
    with pytest.raises(ConfigurationError, match="NVIDIA T4"):
        workers_that_fit(scaling(2, accelerator_type="A100"), mixed)


def test_with_a_model_and_no_gpu_at_all_the_numbers_are_named():
    with pytest.raises(ConfigurationError, match="this machine has 0"):
        workers_that_fit(scaling(1, accelerator_type="A100"), [])


def test_ranks_on_one_host_are_the_local_ranks():
    places = places_on_one_host(3, 0, [])
    assert [place.rank for place in places] == [0, 1, 2]
    assert [place.local_rank for place in places] == [0, 1, 2]
    assert {place.world_size for place in places} == {3}
    assert {place.local_world_size for place in places} == {3}
    assert {place.node_rank for place in places} == {0}


def test_without_gpus_nobody_is_given_any():
    for place in places_on_one_host(2, 0, gpus(2)):
        assert place.gpus == place.visible_gpus == ()


@pytest.mark.parametrize(
    ("num_workers", "each", "own", "union"),
    [
        (2, 1, [("0",), ("1",)], ("0", "1")),
        (2, 2, [("0", "1"), ("2", "3")], ("0", "1", "2", "3")),
        (3, 0.5, [("0",), ("0",), ("1",)], ("0", "1")),
        (4, 0.3, [("0",), ("0",), ("0",), ("1",)], ("0", "1")),
    ],
)
def test_every_worker_has_its_own_gpus_and_sees_those_of_all(num_workers, each, own, union):
    places = places_on_one_host(num_workers, each, gpus(4))
    assert [place.gpus for place in places] == own
    assert {place.visible_gpus for place in places} == {union}


def test_gpus_keep_the_names_that_cuda_knows_them_by():
    named = [Gpu("GPU-aa", "model", "GPU-aa"), Gpu("5", "model", "GPU-bb")]
    places = places_on_one_host(2, 1, named)
    assert [place.gpus for place in places] == [("GPU-aa",), ("5",)]


# ------------------------------------------------------------------ several hosts
INF = math.inf


@pytest.mark.parametrize(
    ("num_workers", "capacities", "strategy", "expected"),
    [
        (4, [4, 4], "PACK", [4, 0]),
        (6, [4, 4], "PACK", [4, 2]),
        (6, [4, 4], "SPREAD", [3, 3]),
        (5, [4, 4, 4], "SPREAD", [2, 2, 1]),
        (4, [1, 2, 4], "SPREAD", [1, 2, 1]),
        (7, [1, 2, 4], "SPREAD", [1, 2, 4]),
        (4, [INF, INF], "PACK", [2, 2]),
        (2, [INF, INF, INF], "PACK", [1, 1, 0]),
        (8, [1, INF, 2], "PACK", [1, 5, 2]),
        (3, [2, 4], "STRICT_PACK", [0, 3]),
        (2, [0, 4, 4], "SPREAD", [0, 1, 1]),
        (3, [4, 4, 4], "STRICT_SPREAD", [1, 1, 1]),
        (4, [INF], "STRICT_SPREAD", [4]),
    ],
)
def test_hosts_get_their_shares(num_workers, capacities, strategy, expected):
    assert shares(num_workers, capacities, strategy) == expected


@given(
    capacities=st.lists(st.integers(0, 9) | st.just(INF), min_size=1, max_size=6),
    strategy=st.sampled_from(["PACK", "SPREAD"]),
    data=st.data(),
)
def test_all_workers_are_placed_and_no_host_gets_too_many(capacities, strategy, data):
    total = sum(min(capacity, 20) for capacity in capacities)
    num_workers = data.draw(st.integers(0, int(total)))
    counts = shares(num_workers, capacities, strategy)
    assert sum(counts) == num_workers
    assert all(0 <= count <= capacity for count, capacity in zip(counts, capacities, strict=True))
    if strategy == "SPREAD":
        room = [c for c, capacity in zip(counts, capacities, strict=True) if c < capacity]
        assert max(counts, default=0) <= min(room, default=max(counts, default=0)) + 1


def test_ranks_are_contiguous_and_hosts_without_workers_have_no_node_rank():
    rooms = [Room(limit=2, host="a"), Room(limit=0, host="b"), Room(limit=3, host="c")]
    on_a, on_b, on_c = places(ScalingConfig(num_workers=4), rooms, 4)
    assert [(p.rank, p.local_rank, p.local_world_size, p.node_rank) for p in on_a] == [
        (0, 0, 2, 0),
        (1, 1, 2, 0),
    ]
    assert on_b == ()
    assert [(p.rank, p.local_rank, p.local_world_size, p.node_rank) for p in on_c] == [
        (2, 0, 2, 1),
        (3, 1, 2, 1),
    ]
    assert {(p.world_size, p.num_nodes) for p in (*on_a, *on_c)} == {(4, 2)}


def test_each_hosts_workers_see_their_own_hosts_gpus():
    rooms = [Room(tuple(gpus(1)), host="a"), Room(tuple(gpus(4)), host="b")]
    on_a, on_b = places(scaling(3), rooms, 3)
    assert [place.gpus for place in (*on_a, *on_b)] == [("0",), ("0",), ("1",)]
    assert {place.visible_gpus for place in on_b} == {("0", "1")}


@pytest.mark.parametrize(
    ("settings", "limits", "said"),
    [
        ({"num_workers": 5}, [2, 2], "5 workers, but there is room for 4 on a, b"),
        (
            {"num_workers": 3, "placement_strategy": "STRICT_SPREAD"},
            [4, 4],
            "'STRICT_SPREAD', but there is room for 2 on a, b",
        ),
        (
            {"num_workers": 5, "placement_strategy": "STRICT_PACK"},
            [4, 4],
            "'STRICT_PACK', but there is room for 4 on a, b",
        ),
    ],
)
def test_too_little_room_on_the_hosts_is_refused(settings, limits, said):
    rooms = [Room(limit=limit, host=name) for limit, name in zip(limits, "abc", strict=False)]
    with pytest.raises(ConfigurationError, match=said):
        workers_that_fit_in(ScalingConfig(**settings), rooms)


def test_too_few_gpus_on_several_hosts_are_counted_together():
    rooms = [Room(tuple(gpus(2)), host="a"), Room(tuple(gpus(1)), host="b")]
    with pytest.raises(ConfigurationError, match=r"asks for 4 GPUs .* a, b together have 3"):
        workers_that_fit_in(scaling(4), rooms)


def test_an_elastic_run_takes_what_the_hosts_have():
    rooms = [Room(limit=2, host="a"), Room(limit=1, host="b")]
    assert workers_that_fit_in(ScalingConfig(num_workers=(2, 8)), rooms) == 3
