"""Imports what workers will want, once, so that they are forked with it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import sys
import warnings
from collections.abc import Iterable

__all__ = ["preload"]


def preload(modules: Iterable[str]) -> None:
    """Import modules; one that cannot be imported is left to the workers, who will say so.

    Afterwards the garbage collector leaves all of it alone, for ever: in a worker it would
    touch, and so copy, every page that is shared with the agent. Meanwhile, too: an import leaves
    hardly any garbage, and looking for it takes a seventh of the time that torch's takes.
    """
    new = [module for module in modules if module not in sys.modules]
    gc.disable()
    for module in new:
        with (
            contextlib.suppress(Exception),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    gc.enable()
    if new:
        gc.freeze()
