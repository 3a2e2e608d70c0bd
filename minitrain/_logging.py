"""The one logger of this library, and its lines on a console that nobody set up."""

from __future__ import annotations

import logging
import sys

__all__ = ["logger", "show_on_console"]

logger = logging.getLogger("minitrain")


class _Console(logging.Handler):
    """Writes to whatever ``sys.stderr`` is now: notebooks and test runners replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"minitrain: {self.format(record)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # a closed console must not end a training run
            pass


def show_on_console(level: int | str) -> None:
    """Show records from ``level`` on, unless the program has set up logging itself."""
    logger.setLevel(level)
    if not logger.handlers and not logging.getLogger().handlers:
        logger.addHandler(_Console())
