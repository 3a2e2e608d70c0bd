"""How an attempt comes about: hosts, places, the store between them, workers that have joined."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from minitrain import _env
from minitrain._driver.home import Home
from minitrain._driver.job import Job
from minitrain._driver.placement import Room, places, workers_that_fit
from minitrain._driver.shared_folder import SharedFolder
from minitrain._driver.starting import Seen, Start, worker_orders
from minitrain._driver.worker_group import (
    AgentLost,
    Happening,
    HostFailed,
    HostNews,
    News,
    WorkerGroup,
    WorkersUnableError,
)
from minitrain._logging import logger
from minitrain._wire import messages as wire
from minitrain.exceptions import (
    ConfigurationError,
    HostError,
    LaunchError,
    RendezvousTimeoutError,
    describe_exit,
)

__all__ = ["Assembly"]

_SETTING = "MINITRAIN_START_TIMEOUT_S"
_AGAIN_S = 1.0
"""The time between two tries to reach a host that was lost and is needed."""
_REACH_S = 5.0
"""How long an address of the rendezvous store has to answer a host."""

Take: TypeAlias = Callable[[Happening], object]


class Assembly:
    """Brings the hosts and the workers of attempts together.

    Args:
        job: What the run does.
        home: Where it is.
        group: Its workers.
        train: What they train with, pickled.
        take: Takes what happens meanwhile; may raise.
        is_troubled: Whether something has gone wrong with a worker.
    """

    def __init__(
        self,
        job: Job,
        home: Home,
        group: WorkerGroup,
        train: bytes,
        take: Take,
        is_troubled: Callable[[], bool],
    ) -> None:
        self._job = job
        self._home = home
        self._group = group
        self._train = train
        self._take = take
        self._is_troubled = is_troubled
        self._deadline_s = 0.0
        self._is_first = True
        self._tried: dict[int, HostError] = {}  # how the last try ended, while there are more

    def assemble(self, num_workers: int) -> None:
        """Have workers that have joined.

        As long as not all hosts have been there, one that cannot be reached is an error, even if
        the others have room enough; unless the run has a range of workers.

        Args:
            num_workers: How many; fewer, but not fewer than the smallest number that was asked
                for, if there is no room for so many on the hosts that can be reached.

        Raises:
            HostError: A host cannot be reached, or not be used.
            LaunchError: Likewise, several of them; or something takes too long.
            WorkersUnableError: Workers failed.
        """
        self._deadline_s = time.monotonic() + _env.seconds(_SETTING)
        self._gather(num_workers, is_first=self._is_first)
        self._is_first = False
        rooms = self._rooms()
        scaling = self._job.scaling
        num_workers = min(num_workers, self._num_that_fit(list(rooms.values())))
        by_room = places(scaling, list(rooms.values()), num_workers)
        placed = dict(zip(rooms, by_room, strict=True))
        group = self._group
        group.place([placed.get(host, ()) for host in range(len(group.fleet.hosts))])
        self._warn_of_idle_hosts(rooms)
        port, addresses = self._serve_store()
        start = Start(self._job, self._home, group.attempt, port, self._train)
        with SharedFolder(self._home, self._that_need_to_see_it()) as folder:
            seen = self._survey(port, addresses, folder)
        orders = worker_orders(start, group.fleet, placed, seen)
        for host, host_orders in orders.items():
            for order in host_orders:
                group.order_host(host, order)
        self._await_workers()

    # ------------------------------------------------------------------ hosts
    def _gather(self, num_workers: int, *, is_first: bool) -> None:
        """Wait for the agents: for all that may come, or for enough where the rest was silent."""
        fleet = self._group.fleet
        self._tried.clear()
        while self._is_worth_waiting(num_workers, is_first=is_first):
            for happening in self._while_gathering():
                if isinstance(happening, AgentLost):
                    self._lost_while_starting(happening, num_workers)
                elif isinstance(happening, HostFailed):
                    self._tried[happening.host] = happening.error
                else:
                    self._take(happening)
        if fleet.problems and is_first and not self._job.scaling.elasticity_enabled:
            raise _error_of(fleet.problems)
        for problem in fleet.problems.values():
            logger.warning("going on without a host: %s", problem)

    def _while_gathering(self) -> list[Happening]:
        again_s = math.inf if self._group.fleet.is_starting else time.monotonic() + _AGAIN_S
        happenings = self._group.receive(min(self._deadline_s, again_s))
        if time.monotonic() >= self._deadline_s:
            self._give_up_waiting()
        elif time.monotonic() >= again_s:
            self._group.lease_lost_ones()
        return happenings

    def _is_worth_waiting(self, num_workers: int, *, is_first: bool) -> bool:
        """Return whether hosts may come that are needed, or that have just been here.

        A host that is lost may come back, after a reboot for one, and is tried again and again;
        one that cannot be reached at the very beginning is more likely misspelled.
        """
        fleet = self._group.fleet
        if is_first:
            return fleet.is_starting
        if time.monotonic() >= self._deadline_s:
            return False
        may_not_come = all(map(fleet.was_silent, fleet.pending()))
        return not may_not_come or self.fits() < min(num_workers, self._job.scaling.min_workers)

    def _lost_while_starting(self, lost: AgentLost, num_workers: int) -> None:
        fleet, host = self._group.fleet, lost.host
        agent = fleet.agents[host]
        if agent is None:
            return
        if fleet.is_only_here:
            self._group.place([range(num_workers)])
            self._take(lost)
            raise WorkersUnableError("the agent ended while it started")
        if agent.is_here:
            problem = f"cannot train: the agent {describe_exit(agent.exitcode())}"
            fleet.drop(host, HostError(agent.host.name, problem))
            return
        advice = "Its own words may be above; is its disk full, or its memory?"
        fleet.drop(host, HostError(agent.host.name, "cannot train", agent.why_lost(), advice))

    def _give_up_waiting(self) -> None:
        fleet = self._group.fleet
        timeout_s = _env.seconds(_SETTING)
        for host in fleet.pending():
            agent = fleet.agents[host]
            assert agent is not None
            if agent.is_here:
                raise RendezvousTimeoutError(["the agent"], timeout_s, _SETTING)
            late = self._tried.get(host) or agent.late(timeout_s)
            if not isinstance(late, HostError):
                problem = f"was reached, but its agent was not ready within {timeout_s:g} s"
                advice = f"importing torch may take long there; {_SETTING} sets the time."
                late = HostError(agent.host.name, problem, "", advice)
            fleet.drop(host, late)

    def _rooms(self) -> dict[int, Room]:
        """Return what the hosts have that are to be used, by their numbers."""
        fleet = self._group.fleet
        rooms = {host: fleet.room(host) for host in fleet.ready()}
        staying = {host: room for host, room in rooms.items() if not fleet.was_silent(host)}
        if _most(self._job, list(staying.values())) >= self._job.scaling.min_workers:
            return staying
        return rooms

    def fits(self) -> int:
        """Return for how many workers there is room on the hosts that are there."""
        return _most(self._job, list(self._rooms().values()))

    def fits_perhaps(self) -> int:
        """Return for how many workers there may be room for the next attempt.

        Where the hosts that are there are too few, those that were lost are hoped for.
        """
        fits = self.fits()
        if fits >= self._job.scaling.min_workers:
            return fits
        fleet = self._group.fleet
        return _most(self._job, [fleet.room(host) for host in range(len(fleet.hosts))])

    def _num_that_fit(self, rooms: Sequence[Room]) -> int:
        try:
            return workers_that_fit(self._job.scaling, rooms)
        except ConfigurationError as error:
            problems = self._group.fleet.problems
            if problems:
                raise _error_of(problems) from error
            raise

    def _warn_of_idle_hosts(self, rooms: Mapping[int, Room]) -> None:
        busy = set(self._group.hosts)
        idle = [room.host for host, room in rooms.items() if host not in busy]
        if idle:
            logger.warning(
                "%s: no workers there: the hosts before have room for all %d "
                "(placement_strategy='SPREAD' uses every host)",
                ", ".join(idle),
                self._group.world_size,
            )

    def _that_need_to_see_it(self) -> list[int]:
        """Return the hosts, other than this one, whose workers use the run's directory itself."""
        fleet = self._group.fleet
        if self._job.collects:
            return []
        return [host for host in self._group.hosts if not fleet.hosts[host].is_here]

    # ------------------------------------------------------------------ between the hosts
    def _serve_store(self) -> tuple[int, tuple[str, ...]]:
        """Have the store served on the first host; return its port, and where it may be reached."""
        group = self._group
        first, *others = group.hosts
        for_others = bool(others)
        group.order_host(first, wire.ServeStore(for_others))
        news = self._await(wire.StoreServed, [first], "the rendezvous store")[first]
        agent = group.fleet.agents[first]
        assert agent is not None
        assert agent.facts is not None
        return news.port, agent.facts.addresses if for_others else ("127.0.0.1",)

    def _survey(self, port: int, addresses: tuple[str, ...], folder: SharedFolder) -> Seen:
        """Find out how the hosts reach each other and the run's directory."""
        group = self._group
        if len(group.hosts) == 1 and not folder.hosts:
            return Seen(dict.fromkeys(group.hosts, "127.0.0.1"), frozenset())
        for host in group.hosts:
            look_for = folder.path if host in folder.hosts else ""
            group.order_host(
                host,
                wire.Survey(group.attempt, addresses, port, look_for, folder.token, _REACH_S),
            )
        found = self._await(wire.Surveyed, group.hosts, "the survey")
        first, *others = group.hosts
        by_host = {host: found[host].address for host in others}
        cut_off = [host for host, address in by_host.items() if address is None]
        if cut_off:
            raise self._cannot_reach(first, cut_off[0], addresses, port)
        by_host[first] = by_host[others[0]] if others else "127.0.0.1"
        unseen = {host: found[host].folder_problem for host in folder.hosts}
        folder.require({h: why for h, why in unseen.items() if why}, group.fleet)
        seen_by = frozenset(host for host, problem in unseen.items() if not problem)
        return Seen({host: address or "" for host, address in by_host.items()}, seen_by)

    def _cannot_reach(
        self, first: int, host: int, addresses: tuple[str, ...], port: int
    ) -> HostError:
        fleet = self._group.fleet
        return HostError(
            fleet.name(host),
            f"cannot reach {fleet.name(first)}, where rank 0 is, at any of its addresses",
            f"{', '.join(addresses) or 'it has none'} (port {port})",
            "Does a firewall between them let TCP connections through?",
        )

    # ------------------------------------------------------------------ waiting
    def _await(self, kind: type[Any], hosts: Sequence[int], name: str) -> dict[int, Any]:
        """Return what each of some hosts says, while nothing goes wrong.

        Args:
            kind: The class of what they are to say.
            hosts: Those hosts.
            name: What is waited for, for the error.
        """
        found: dict[int, Any] = {}
        while len(found) < len(hosts):
            happened = self._received(lambda: [name])
            for happening in happened:
                match happening:
                    case HostNews(host=host, message=message) if isinstance(message, kind):
                        found[host] = message
                    case _:
                        self._take_trouble(happening)
            self._raise_if_troubled(happened)
        return found

    def _await_workers(self) -> None:
        group = self._group
        joined: set[int] = set()

        def missing() -> list[int]:
            return [rank for rank in range(group.world_size) if rank not in joined]

        def missing_names() -> list[str]:
            return [f"rank {rank}" for rank in missing()]

        while len(joined) < group.world_size:
            happened = self._received(missing_names, missing)
            for happening in happened:
                match happening:
                    case News(rank=rank, message=wire.Joined()):
                        joined.add(rank)
                    case _:
                        self._take_trouble(happening)
            self._raise_if_troubled(happened)

    def _received(
        self, names: Callable[[], list[str]], ranks: Callable[[], Sequence[int]] = tuple
    ) -> list[Happening]:
        happenings = self._group.receive(self._deadline_s)
        if happenings:
            return happenings
        error = RendezvousTimeoutError(names(), _env.seconds(_SETTING), _SETTING)
        started = [rank for rank in ranks() if rank in self._group.pids]
        if started:
            raise WorkersUnableError("workers did not join", late=started) from error
        raise error

    def _take_trouble(self, happening: Happening) -> None:
        match happening:
            case HostNews(host=host, message=wire.StartFailed(problem=problem)):
                name = self._group.fleet.name(host)
                raise HostError(name, "could not start its workers", problem)
            case _:
                self._take(happening)

    def _raise_if_troubled(self, happened: Sequence[Happening]) -> None:
        losses = any(isinstance(one, AgentLost | HostFailed) for one in happened)
        if self._is_troubled() or (losses and self._group.lost):
            raise WorkersUnableError("workers failed while they were starting")


def _most(job: Job, rooms: Sequence[Room]) -> int:
    try:
        return workers_that_fit(job.scaling, rooms)
    except ConfigurationError:
        return 0


def _error_of(problems: Mapping[int, HostError]) -> LaunchError:
    """Return one error for all hosts that have one."""
    first, *more = (problems[host] for host in sorted(problems))  # not in the order of their ends
    if not more:
        return first
    lines = "".join(f"\n  {problem}" for problem in (first, *more))
    return LaunchError(f"{len(problems)} hosts cannot be used:{lines}")
