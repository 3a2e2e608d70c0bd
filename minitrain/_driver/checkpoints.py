"""Names checkpoints, commits them when every rank's files are there, and deletes the surplus."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minitrain._logging import logger
from minitrain._storage import commit
from minitrain._storage.commit import FileEntry
from minitrain._storage.files import write_bytes
from minitrain._storage.layout import RunLayout
from minitrain._storage.ranking import Registered, lookup, ranked, superfluous
from minitrain._storage.record import RunRecord
from minitrain._wire.messages import Reported
from minitrain.exceptions import CheckpointError

__all__ = ["CheckpointKeeper"]

_METADATA = ".metadata.json"


class CheckpointKeeper:
    """The checkpoints of one run.

    Args:
        layout: The run's directory.
        record: The run's record, which names those that stay.
        metadata: The trainer's, added to every checkpoint's own.
    """

    def __init__(self, layout: RunLayout, record: RunRecord, metadata: Mapping[str, Any]) -> None:
        self._layout = layout
        self._record = record
        self._metadata = dict(metadata)
        self._names: dict[int, tuple[str | None, Path]] = {}
        self._next_index = layout.next_checkpoint_index()
        self._registered = commit.committed(layout.root)
        self._warned = False

    @property
    def newest(self) -> str | None:
        """The path of the checkpoint that was committed last."""
        return str(self._layout.checkpoint(self._registered[-1].name)) if self._registered else None

    def begin_attempt(self) -> None:
        """Forget what an earlier attempt had begun and not finished, also on disk."""
        self._names.clear()
        swept = commit.sweep(self._layout.root)
        if swept:
            logger.info("removed checkpoints that were never finished: %s", ", ".join(swept))

    def path_for(self, index: int, dir_name: str | None) -> str:
        """Return where the files of the ``index``-th report's checkpoint go.

        Raises:
            CheckpointError: The name is taken, or ranks disagree about it.
        """
        if index in self._names:
            asked, path = self._names[index]
            if dir_name != asked:
                raise CheckpointError(
                    f"report(checkpoint_dir_name={dir_name!r}): another rank gave {asked!r} in "
                    "the same report; all ranks must give the same name"
                )
            return str(path)
        name = dir_name or self._layout.checkpoint_name(self._next_index)
        path = self._layout.checkpoint(name)
        try:
            commit.begin(path)
        except FileExistsError as error:
            raise CheckpointError(
                f"report(checkpoint_dir_name={dir_name!r}): {path} exists already; a checkpoint's "
                "name is never used twice"
            ) from error
        except OSError as error:
            raise CheckpointError(f"the checkpoint {path} could not be begun: {error}") from error
        if dir_name is None:
            self._next_index += 1
        self._names[index] = (dir_name, path)
        return str(path)

    def commit(self, reports: Sequence[Reported], row: Mapping[str, Any]) -> Registered:
        """Commit the checkpoint of a report that every rank has made, and delete the surplus.

        Args:
            reports: By rank; at least one names a checkpoint.
            row: The report's row.

        Raises:
            CheckpointError: It could not be written.
        """
        names = {report.checkpoint for report in reports if report.checkpoint is not None}
        assert len(names) == 1, names
        path = self._layout.checkpoint(names.pop())
        self._names.pop(reports[0].index, None)
        try:
            entries = commit.merge_entries(path, [report.files for report in reports])
            entries = self._with_metadata(path, entries)
            sequence = self._registered[-1].sequence + 1 if self._registered else 0
            registered = commit.commit(path, entries, sequence, row)
        except (OSError, ValueError, TypeError) as error:  # the last two: metadata is no JSON dict
            raise CheckpointError(f"{path} could not be committed: {error}") from error
        self._registered.append(registered)
        self._warn_if_unscored(row)
        self._retain()
        return registered

    def _with_metadata(self, path: Path, entries: list[FileEntry]) -> list[FileEntry]:
        """Add the trainer's metadata for keys that the user has not set."""
        if not self._metadata:
            return entries
        file = path / _METADATA
        own = json.loads(file.read_bytes()) if file.exists() else {}
        data = json.dumps({**self._metadata, **own}).encode()
        write_bytes(file, data)
        others = [entry for entry in entries if entry.path != _METADATA]
        return [FileEntry(_METADATA, len(data), zlib.crc32(data)), *others]

    def _warn_if_unscored(self, row: Mapping[str, Any]) -> None:
        attribute = self._record.score_attribute
        if attribute is None or self._warned or lookup(row, attribute) is not None:
            return
        self._warned = True
        logger.warning(
            "a checkpoint was reported without the metric %r (checkpoint_score_attribute); it "
            "counts as the worst. Reported were: %s",
            attribute,
            ", ".join(sorted(row)),
        )

    def _retain(self) -> None:
        """Delete what need not be kept, after the record that no longer names it is on disk."""
        record = self._record
        in_order = ranked(self._registered, record.score_attribute, record.score_order)
        surplus = superfluous(in_order, record.num_to_keep)
        self._registered = [one for one in self._registered if one not in surplus]
        record.checkpoints = [one.name for one in self._registered]
        record.save(self._layout)
        for registered in surplus:
            commit.delete(self._layout.checkpoint(registered.name))
