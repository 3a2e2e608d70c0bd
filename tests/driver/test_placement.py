"""Where workers go, and what a machine is too small for."""

from __future__ import annotations

import pytest

from minitrain._driver.placement import places_on_one_host, workers_that_fit
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
