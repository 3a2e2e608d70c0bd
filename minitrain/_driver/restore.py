"""``trainer.pkl``: what a trainer was made with, to make it again in another process."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import cloudpickle

from minitrain._driver.home import Home
from minitrain._driver.payload import by_value
from minitrain._storage.layout import TRAINER
from minitrain.exceptions import ConfigurationError

__all__ = ["arguments_of", "keep"]

_DATASETS = "datasets"


def keep(trainer: str, given: Mapping[str, Any]) -> bytes:
    """Return the contents of ``trainer.pkl``.

    Every argument is pickled by itself: one that cannot be, or that cannot be unpickled where the
    run is restored, has to be given again, and the others need not.

    Args:
        trainer: The trainer's class.
        given: What it was made with. Of datasets only the names are kept.
    """
    arguments: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    with by_value(given.get("train_loop_per_worker", keep)):
        for name, value in given.items():
            if name == _DATASETS:
                continue
            try:
                arguments[name] = cloudpickle.dumps(value)
            except Exception as error:  # noqa: BLE001 - whatever pickling strangers' classes does
                problems[name] = f"{type(error).__name__}: {error}"
    return pickle.dumps(
        {
            "version": 1,
            "trainer": trainer,
            "arguments": arguments,
            "problems": problems,
            "datasets": sorted(given.get(_DATASETS) or ()),
        }
    )


def arguments_of(home: Home, overrides: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class of a run's trainer, and what to make it with.

    Args:
        home: Where the run is.
        overrides: Arguments that are given again.

    Raises:
        ConfigurationError: An argument has to be given again, or datasets do not match.
    """
    try:
        kept = pickle.loads(home.storage.read(TRAINER))
    except FileNotFoundError:
        raise ConfigurationError(
            f"restore(path={home.storage.root!r}): Invalid restore path: it has no {TRAINER}"
        ) from None
    arguments = dict(overrides)
    for name, data in kept["arguments"].items():
        if name in arguments:
            continue
        try:
            arguments[name] = pickle.loads(data)
        except Exception as error:
            raise _give_again(name, f"{type(error).__name__}: {error}") from error
    for name, reason in kept["problems"].items():
        if name not in arguments:
            raise _give_again(name, reason)
    _check_datasets(kept[_DATASETS], arguments.get(_DATASETS) or {})
    return kept["trainer"], arguments


def _give_again(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} could not be kept with the run ({reason}); pass it again: "
        f"restore(path, {name}=...)"
    )


def _check_datasets(kept: list[str], given: Mapping[str, Any]) -> None:
    missing = sorted(set(kept) - given.keys())
    if missing:
        raise ConfigurationError(
            f"the datasets {missing} need to be provided again: restore(path, datasets={{...}})"
        )
    unknown = sorted(given.keys() - set(kept))
    if unknown:
        raise ConfigurationError(
            f"restore(datasets): {unknown} don't match the original dataset keys {kept}"
        )
