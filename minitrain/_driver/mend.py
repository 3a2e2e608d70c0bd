"""Makes the files of a run agree that was ended at any moment, before it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from minitrain._driver.home import Home
from minitrain._driver.tables import rewrite
from minitrain._storage.record import RunRecord
from minitrain._storage.rows import RowFile, read_rows, repair

__all__ = ["mend"]


def mend(home: Home) -> None:
    """Bring ``result.json`` and ``progress.csv`` in line with what was committed.

    A torn last line, left by a loss of power, goes. A report with a checkpoint is committed first
    and written as a row then: if that did not happen any more, or the row was not brought to a
    storage elsewhere, it is done now.
    """
    rows = home.layout.rows
    repair(rows)
    known = {_identity(row) for row in read_rows(rows)}
    committed = home.storage.committed()
    missing = [one for one in committed if _identity(one.report) not in known]
    if missing:
        config = RunRecord.load(home.layout).config
        with closing(RowFile(rows, config)) as file:
            for registered in missing:
                file.append(registered.report, durable=True)
    rewrite(home.layout.table, read_rows(rows))


def _identity(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what tells a row from all others.

    A checkpoint's name does not: that of one which was lost may have been given again, and rank 0,
    which writes the row, does not know it if others gave all the files.
    """
    return row.get("training_iteration"), row.get("time_total_s")
