"""What a run is doing, what can happen to it, and what it does next.

Nothing here touches a process, a socket or a clock: :func:`step` is a pure function, so every
transition is tested without starting a worker. The controller is its only caller: it turns the
outside world into events and carries out the actions.

::

    Starting --ready--> Running --returned--> Stopping --gone--> Finished
        |                  |                     ^  |
        +------failed------+---------------------+  +--gone--> Starting (attempt + 1)
        |                  |                     |  +--gone--> Failed
        +---interrupted----+---------------------+  +--gone--> Interrupted
                           |                     |
                           +------resized--------+
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from minitrain._driver.policies import NOTHING, Budget, Retry, Spent
from minitrain.exceptions import TrainingFailedError

__all__ = [
    "Action",
    "AttemptFailed",
    "Event",
    "Failed",
    "Finished",
    "InterruptRequested",
    "Interrupted",
    "ResizePossible",
    "Running",
    "StartWorkers",
    "Starting",
    "State",
    "StopWorkers",
    "Stopping",
    "WorkersGone",
    "WorkersReady",
    "WorkersReturned",
    "step",
]


@dataclass(frozen=True, slots=True)
class Starting:
    """Workers are being started; not all of them are ready to train yet."""

    attempt: int
    num_workers: int
    spent: Spent = NOTHING


@dataclass(frozen=True, slots=True)
class Running:
    """The train function is executing on every worker."""

    attempt: int
    num_workers: int
    spent: Spent = NOTHING


@dataclass(frozen=True, slots=True)
class Stopping:
    """Workers are being ended; ``then`` follows once the last one is gone."""

    attempt: int
    then: Starting | Finished | Failed | Interrupted


@dataclass(frozen=True, slots=True)
class Finished:
    """Terminal: the train function returned on every rank."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal: the run failed and will not be retried."""

    error: TrainingFailedError


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Terminal: the user ended it."""


State: TypeAlias = Starting | Running | Stopping | Finished | Failed | Interrupted


@dataclass(frozen=True, slots=True)
class WorkersReady:
    """Every worker has been told to train.

    Attributes:
        attempt: Which attempt.
        num_workers: How many there are: fewer than were to be started, if there is no more room.
    """

    attempt: int
    num_workers: int


@dataclass(frozen=True, slots=True)
class WorkersReturned:
    """The train function returned on every rank."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A worker died, raised or could not be started; or the driver's own side failed.

    Attributes:
        attempt: Which attempt.
        error: How.
        fits: How many workers there is room for now.
        final: Whether there is no next attempt whatever the budget: the driver has to go.
    """

    attempt: int
    error: TrainingFailedError
    fits: int
    final: bool = False


@dataclass(frozen=True, slots=True)
class ResizePossible:
    """There is room for more workers, and a checkpoint to start them from."""

    attempt: int
    num_workers: int


@dataclass(frozen=True, slots=True)
class InterruptRequested:
    """The user pressed Ctrl-C."""

    attempt: int


@dataclass(frozen=True, slots=True)
class WorkersGone:
    """No process of this attempt is left."""

    attempt: int


Event: TypeAlias = (
    WorkersReady
    | WorkersReturned
    | AttemptFailed
    | ResizePossible
    | InterruptRequested
    | WorkersGone
)


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Start this many workers."""

    attempt: int
    num_workers: int


@dataclass(frozen=True, slots=True)
class StopWorkers:
    """End every worker of the attempt.

    Attributes:
        attempt: Which attempt.
        done: Whether their work is done, so that they may leave by themselves.
    """

    attempt: int
    done: bool


Action: TypeAlias = StartWorkers | StopWorkers


def step(state: State, event: Event, budget: Budget) -> tuple[State, Action | None]:
    """Return the next state, and the action that leads there if one is needed."""
    if isinstance(state, Finished | Failed | Interrupted) or event.attempt != state.attempt:
        return state, None  # late news from an attempt that is over
    match state, event:
        case Starting(), WorkersReady():
            return Running(state.attempt, event.num_workers, state.spent), None
        case Running(), WorkersReturned():
            return _stopping(state.attempt, Finished(), done=True)
        case Running(), ResizePossible(num_workers=num_workers):
            return _stopping(state.attempt, Starting(state.attempt + 1, num_workers, state.spent))
        case ((Starting() | Running()), AttemptFailed()):
            return _stopping(state.attempt, _after_failure(state, event, budget))
        case ((Starting() | Running()), InterruptRequested()):
            return _stopping(state.attempt, Interrupted())
        case Stopping(), _:
            return _while_stopping(state, event)
        case _:
            raise AssertionError(f"{event} cannot happen in {state}")


def _while_stopping(state: Stopping, event: Event) -> tuple[State, Action | None]:
    match event, state.then:
        case InterruptRequested(), _:
            return replace(state, then=Interrupted()), None
        case AttemptFailed(error=error, final=True), Starting():
            return replace(state, then=Failed(error)), None
        case WorkersGone(), Starting(attempt=attempt, num_workers=num_workers):
            return state.then, StartWorkers(attempt, num_workers)
        case WorkersGone(), _:
            return state.then, None
        case _:  # ending workers makes them fail; the cause is already known
            return state, None


def _stopping(
    attempt: int, then: Starting | Finished | Failed | Interrupted, *, done: bool = False
) -> tuple[State, Action]:
    return Stopping(attempt, then), StopWorkers(attempt, done)


def _after_failure(
    state: Starting | Running, event: AttemptFailed, budget: Budget
) -> Starting | Failed:
    if event.final:
        return Failed(event.error)
    decision = budget.decide(state.spent, state.num_workers, event.error, event.fits)
    match decision:
        case Retry(num_workers=num_workers, spent=spent):
            return Starting(state.attempt + 1, num_workers, spent)
        case "raise":
            return Failed(event.error)
        case _:
            assert_never(decision)
