"""When a run starts again with more workers."""

from __future__ import annotations

import pytest

from minitrain import ScalingConfig
from minitrain._driver.growth import Growth


def growth(num_workers=2, at_most=4, interval_s=60.0):
    looking = Growth(
        ScalingConfig(num_workers=(1, at_most), elastic_resize_monitor_interval_s=interval_s)
    )
    looking.begin(num_workers, num_committed=0)
    return looking


@pytest.mark.parametrize(("room", "expected"), [(1, None), (2, None), (3, 3), (4, 4)])
def test_it_grows_to_what_there_is_room_for(room, expected):
    assert growth().look(1, 1000.0, lambda: room) == expected


def test_only_at_a_new_checkpoint():
    looking = growth()
    assert looking.look(0, 1000.0, lambda: 4) is None


def test_not_more_often_than_asked():
    looking, asked = growth(), []

    def fits():
        asked.append(True)
        return 2

    for number, now_s in enumerate([1000.0, 1030.0, 1059.0, 1060.0, 1061.0]):
        looking.look(number + 1, now_s, fits)
    assert len(asked) == 2


def test_a_checkpoint_that_came_too_early_is_an_occasion_later():
    looking = growth()
    assert looking.look(1, 1000.0, lambda: 2) is None
    assert looking.look(2, 1030.0, lambda: 4) is None
    assert looking.look(2, 1060.0, lambda: 4) == 4


def test_with_all_that_were_asked_for_nobody_looks():
    looking = growth(num_workers=4)

    def fits():
        raise AssertionError("nobody needs to know")

    assert looking.look(1, 1000.0, fits) is None


def test_a_fixed_number_never_grows():
    looking = Growth(ScalingConfig(num_workers=2))
    looking.begin(2, 0)
    assert looking.look(5, 1000.0, lambda: 9) is None
