"""The settings of datasets."""

from __future__ import annotations

import numpy as np
import pytest

from minitrain.data import DataContext
from minitrain.exceptions import ConfigurationError


def test_a_setting_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'memory_budget_bytes'"):
        DataContext().memory_budget = 1
    with pytest.raises(AttributeError, match="it has memory_budget_bytes, shared"):
        DataContext().colour = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_budget_bytes", "1 GB"),
        ("memory_budget_bytes", 1.5e9),
        ("target_table_bytes", 0),
        ("target_block_bytes", None),
        ("read_threads", True),
        ("spill_folder", 3),
    ],
)
def test_a_wrong_value_is_refused_when_it_is_set(name, value):
    with pytest.raises(ConfigurationError, match=rf"DataContext\.{name}={value!r}: must be"):
        setattr(DataContext(), name, value)


def test_right_values_are_taken():
    context = DataContext(read_threads=3, spill_folder="/tmp")
    context.read_threads = context.spill_folder = None
    context.read_threads = np.int64(2)
    context.shared_memory_bytes = 0
    assert context.shared_memory_bytes == 0
