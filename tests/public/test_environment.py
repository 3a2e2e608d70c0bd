"""The environment variables that the library reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import minitrain
from minitrain import _env
from minitrain.exceptions import ConfigurationError


def test_a_variable_has_its_value_or_its_default():
    for name, variable in _env.VARIABLES.items():
        with _env.override(name, None):
            assert _env.text(name) == variable.default
        with _env.override(name, "something"):
            assert _env.text(name) == "something"


@pytest.mark.parametrize(
    ("on", "values"),
    [
        (False, ["0", "false", "False", "NO", "off", "", "  ", " 0 "]),
        (True, ["1", "true", "yes", "on", "2", "anything", None]),
    ],
)
def test_a_switch_is_turned_off_by_certain_words_and_on_otherwise(on, values):
    for value in values:
        with _env.override("MINITRAIN_CHDIR", value):
            assert _env.flag("MINITRAIN_CHDIR") is on, value


@pytest.mark.parametrize(
    ("value", "expected"), [("1", 1.0), ("0.5", 0.5), (" 2 ", 2.0), ("1e3", 1000.0), (None, 120.0)]
)
def test_seconds_are_a_positive_number(value, expected):
    with _env.override("MINITRAIN_START_TIMEOUT_S", value):
        assert _env.seconds("MINITRAIN_START_TIMEOUT_S") == expected


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", "", "5s"])
def test_other_seconds_are_refused_with_the_name_and_the_value(value):
    with (
        _env.override("MINITRAIN_START_TIMEOUT_S", value),
        pytest.raises(ConfigurationError) as caught,
    ):
        _env.seconds("MINITRAIN_START_TIMEOUT_S")
    assert str(caught.value).startswith(f"MINITRAIN_START_TIMEOUT_S={value!r}: must be a positive")


def test_all_is_well_with_the_defaults():
    _env.check()


@pytest.mark.parametrize("name", [name for name in _env.VARIABLES if name.endswith("_S")])
def test_a_number_that_is_none_is_found_before_anything_depends_on_it(name):
    with _env.override(name, "soon"), pytest.raises(ConfigurationError, match=f"{name}='soon'"):
        _env.check()


@pytest.mark.parametrize("before", [None, "before"])
def test_an_override_holds_for_its_block(before, monkeypatch):
    monkeypatch.delenv("MINITRAIN_PRELOAD", raising=False)
    with _env.override("MINITRAIN_PRELOAD", before):
        with _env.override("MINITRAIN_PRELOAD", "inside"):
            assert os.environ["MINITRAIN_PRELOAD"] == "inside"
        assert os.environ.get("MINITRAIN_PRELOAD") == before
    assert "MINITRAIN_PRELOAD" not in os.environ


def test_an_override_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), _env.override("MINITRAIN_PRELOAD", "inside"):
        raise ZeroDivisionError
    assert "MINITRAIN_PRELOAD" not in os.environ


def test_every_variable_says_what_it_means():
    for name, variable in _env.VARIABLES.items():
        assert variable.name == name
        assert name.startswith("MINITRAIN_")
        assert len(variable.meaning) > 10


def test_every_variable_that_the_code_names_is_in_the_table():
    sources = Path(minitrain.__file__).parent.rglob("*.py")
    named = {
        name
        for path in sources
        for name in re.findall(r"\b_env\.\w+\(\s*\"(\w+)\"", path.read_text())
    }
    assert named == _env.VARIABLES.keys()
