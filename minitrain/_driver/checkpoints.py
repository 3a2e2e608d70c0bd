"""Names checkpoints, commits them when every rank's files are there, and deletes the surplus."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minitrain._datasets import Positions
from minitrain._driver.clerk import Clerk, Outcome
from minitrain._logging import logger
from minitrain._storage.layout import RECORD, ROWS, TABLE, TRAINER
from minitrain._storage.ranking import Registered, lookup, ranked, superfluous
from minitrain._storage.record import RunRecord
from minitrain._storage.run_storage import RunStorage
from minitrain._wire.messages import Reported
from minitrain.checkpoint import Checkpoint
from minitrain.exceptions import CheckpointError

__all__ = ["CheckpointKeeper"]

_NAME = "checkpoint_{:06d}"
_RESERVED = {"artifacts", "logs", ROWS, TABLE, RECORD, TRAINER}


class CheckpointKeeper:
    """The checkpoints of one run.

    Args:
        storage: Where they are.
        record: The run's record, which names those that stay.
        metadata: The trainer's, added to every checkpoint's own.
        clerk: Does what takes time.
        rows: Of the run's earlier life. They also name checkpoints that were never finished.
    """

    def __init__(
        self,
        storage: RunStorage,
        record: RunRecord,
        metadata: Mapping[str, Any],
        clerk: Clerk,
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._storage = storage
        self._record = record
        self._metadata = dict(metadata)
        self._clerk = clerk
        self._names: dict[int, tuple[str | None, str]] = {}
        named = (row.get("checkpoint_dir_name") for row in rows)
        self._next_index = storage.next_index(name for name in named if isinstance(name, str))
        self._registered = storage.committed()
        self._used = {one.name for one in self._registered}
        self._num_committed = self._registered[-1].sequence + 1 if self._registered else 0
        self._doomed: deque[str] = deque()
        self._unsaved: bytes | None = None  # what the record is to say
        self._warned = False
        self._positions = Positions()

    @property
    def num_committed(self) -> int:
        """How many checkpoints the run has ever committed."""
        return self._num_committed

    @property
    def kept(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and rows of the checkpoints that are kept, oldest first."""
        return [(one.name, dict(one.report)) for one in self._registered]

    def begin_attempt(self) -> None:
        """Forget what an earlier attempt had begun and not finished, also in the storage."""
        self._names.clear()
        swept = self._storage.sweep()
        if swept:
            logger.info("removed checkpoints that were never finished: %s", ", ".join(swept))

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; a damaged one is set aside.

        On a local disk every byte is read; elsewhere sizes are compared, and the bytes when a
        worker fetches them.
        """
        while self._registered:
            name = self._registered[-1].name
            problems = self._storage.verify(name, contents=self._storage.is_local)
            if not problems:
                return self._storage.checkpoint(name)
            logger.warning("%s is damaged and not started from: %s", name, "; ".join(problems[:3]))
            self._registered.pop()
            self._record.checkpoints = [one.name for one in self._registered]
            self._storage.write(RECORD, self._record.dump())  # names no checkpoint that is none
            self._storage.set_aside(name)
        return None

    def resume_positions(self) -> dict[str, Any]:
        """Return how far datasets had been read at the newest checkpoint, by name.

        From here on it is what the next checkpoints say of datasets that nobody asks for.
        """
        self._positions = Positions()
        if self._registered:
            try:
                self._positions.now = self._storage.positions(self._registered[-1].name)
            except ValueError as error:
                logger.warning("datasets are read from their beginning: %s", error)
        return dict(self._positions.now)

    def name_for(self, index: int, dir_name: str | None, *, in_place: bool = False) -> str:
        """Return the name of the ``index``-th report's checkpoint, the same to every rank.

        Args:
            index: Of the report.
            dir_name: The name the user gave, if any.
            in_place: Whether the user puts the files there, or has.

        Raises:
            CheckpointError: The name is taken, or ranks disagree about it.
        """
        if index in self._names:
            asked, name = self._names[index]
            if dir_name != asked:
                raise CheckpointError(
                    f"report(checkpoint_dir_name={dir_name!r}): another rank gave {asked!r} in "
                    "the same report; all ranks must give the same name"
                )
            return name
        name = dir_name or _NAME.format(self._next_index)
        path = self._storage.checkpoint(name).path
        begun = {other for _, other in self._names.values()}
        try:
            if name in self._used | begun | _RESERVED:
                raise FileExistsError(path)
            if not in_place:
                self._storage.begin(name)
        except FileExistsError as error:
            raise CheckpointError(
                f"report(checkpoint_dir_name={dir_name!r}): {path} exists already; a checkpoint's "
                "name is never used twice"
            ) from error
        except OSError as error:
            raise CheckpointError(f"the checkpoint {path} could not be begun: {error}") from error
        if dir_name is None:
            self._next_index += 1
        self._names[index] = (dir_name, name)
        return name

    def commit(
        self,
        name: str,
        reports: Sequence[Reported],
        row: Mapping[str, Any],
        then: Callable[[Outcome[Registered]], object],
    ) -> None:
        """Commit the checkpoint of a report that every rank has made.

        What need not be kept any more goes with :meth:`tidy`.

        Args:
            name: Its name.
            reports: By rank, each with the files it has written.
            row: The report's row.
            then: Called when it is committed, or with the :class:`CheckpointError` if it is not.
        """
        parts = [report.files for report in reports]
        in_place = any(report.in_place for report in reports)
        sequence = self._num_committed
        self._positions.take([one.positions for one in reports])
        positions = dict(self._positions.now)

        def work() -> Registered:
            try:
                adopted = [self._storage.adopt(name)] if in_place else []
                return self._storage.commit(
                    name, adopted or parts, sequence, row, self._metadata, positions
                )
            except (OSError, ValueError, TypeError) as error:  # the last two: metadata is no JSON
                path = self._storage.checkpoint(name).path
                raise CheckpointError(f"{path} could not be committed: {error}") from error

        def registered(outcome: Outcome[Registered]) -> None:
            if isinstance(outcome, Registered):
                self._register(outcome, row)
            then(outcome)

        self._clerk.do(work, registered)

    def give_up(self, name: str) -> None:
        """Delete what there is of a checkpoint that could not be written."""
        self._clerk.do(lambda: self._storage.delete(name), _warn)

    def _register(self, registered: Registered, row: Mapping[str, Any]) -> None:
        self._num_committed += 1
        self._used.add(registered.name)
        self._registered.append(registered)
        self._warn_if_unscored(row)
        self._retain()

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

    def tidy(self) -> None:
        """Delete what need not be kept; whoever waits for a commit need not wait for that."""
        if self._doomed:
            self._clerk.do(self._delete_doomed, _warn)

    def _delete_doomed(self) -> None:
        self._save_record()  # only what the record no longer names
        while self._doomed:  # also those whose turn it was when the storage did not answer
            self._storage.delete(self._doomed[0])
            self._doomed.popleft()

    def _save_record(self) -> None:
        if self._unsaved is not None:
            self._storage.write(RECORD, self._unsaved)
            self._unsaved = None

    def _retain(self) -> None:
        """Choose what need not be kept, and store the record that no longer names it."""
        record = self._record
        in_order = ranked(self._registered, record.score_attribute, record.score_order)
        surplus = superfluous(in_order, record.num_to_keep)
        self._registered = [one for one in self._registered if one not in surplus]
        record.checkpoints = [one.name for one in self._registered]
        self._unsaved = record.dump()
        self._doomed += [one.name for one in surplus]
        self._clerk.do(self._save_record, _warn)


def _warn(outcome: Outcome[None]) -> None:
    if isinstance(outcome, Exception):
        logger.warning("the run's storage: %s", outcome)
