"""The agents of a run, one per host, from the first attempt to the last."""

from __future__ import annotations

from collections.abc import Collection

from minitrain._driver import agents
from minitrain._driver.agent_process import HERE, AgentProcess
from minitrain._driver.placement import Room
from minitrain._hosts.plan import Plan
from minitrain._logging import logger
from minitrain._os.gpus import Gpu, list_gpus
from minitrain._wire.messages import RemoveTraces
from minitrain.config import ScalingConfig
from minitrain.exceptions import HostError

__all__ = ["Fleet"]


class Fleet:
    """Which hosts a run has, and who speaks for each.

    Args:
        plan: The hosts, and how they are reached.
        silence_s: How long an agent elsewhere may say nothing.
        preload: Modules that agents are to import.
        scaling: How many workers the run wants, and what each needs.

    Attributes:
        hosts: The hosts in the order of their ranks.
        agents: The agent of each; None where there is none at the moment.
        problems: Why there is none.
    """

    def __init__(
        self, plan: Plan, silence_s: float, preload: Collection[str], scaling: ScalingConfig
    ) -> None:
        self.hosts = plan.hosts or (HERE,)
        self._plan = plan
        self._silence_s = silence_s
        self._preload = preload
        self._scaling = scaling
        self.agents: list[AgentProcess | None] = [None] * len(self.hosts)
        self.problems: dict[int, HostError] = {}
        self._starting: list[int] = []  # also some that have started since
        # The latest of each host elsewhere that was lost, which may still be there.
        self._lost: dict[int, AgentProcess] = {}

    @property
    def is_only_here(self) -> bool:
        """Whether the run has no host but this one."""
        return all(host.is_here for host in self.hosts)

    def name(self, host: int) -> str:
        """Return the name of a host as users know it: as it was given, for this one its own."""
        agent = self.agents[host]
        if agent is not None and agent.facts is not None and agent.is_here:
            return agent.facts.hostname
        return self.hosts[host].name

    def hostname(self, host: int) -> str:
        """Return what a host calls itself."""
        agent = self.agents[host]
        return agent.facts.hostname if agent is not None and agent.facts else self.name(host)

    def lease(self) -> None:
        """Have an agent, or the beginning of one, for every host that has none."""
        missing = [host for host, agent in enumerate(self.agents) if agent is None or agent.lost]
        for host in missing:
            self._part_with(host)
        leased = agents.lease(
            [self.hosts[host] for host in missing], self._plan, self._silence_s, self._preload
        )
        for host, agent in zip(missing, leased, strict=True):
            if isinstance(agent, HostError):
                self.problems[host] = agent
                continue
            self.problems.pop(host, None)
            self.agents[host] = agent
            self._starting.append(host)
            if host in self._lost:
                agent.send(RemoveTraces(self._lost[host].name))

    def _part_with(self, host: int, used: Collection[str] = ()) -> None:
        agent = self.agents[host]
        self.agents[host] = None
        if agent is None:
            return
        if agent.lost and not agent.is_here and agent.facts is not None:
            self._lost[host] = agent
        agents.release(agent, used)

    def give_up(self, host: int, why: str) -> None:
        """End an agent that does not do what it is told."""
        agent = self.agents[host]
        assert agent is not None
        pid = agent.facts.pid if agent.facts is not None else agent.pid
        logger.warning("the agent on %s (pid %d) %s; ending it", self.name(host), pid, why)
        agent.given_up = why
        agent.silent = not agent.is_here  # it is still there, and only its connection ends
        agent.kill()

    def drop(self, host: int, problem: HostError) -> None:
        """Do without a host, for a reason."""
        self.problems[host] = problem
        agent = self.agents[host]
        if agent is not None:
            agent.lost = True
        self._part_with(host)

    def release(self, used: Collection[str] = (), *, usable: bool = True) -> None:
        """Give the agents back after the run.

        Args:
            used: Modules that workers imported.
            usable: Whether others may be lent them; otherwise nobody knows what they are doing.
        """
        for host, agent in enumerate(self.agents):
            if agent is not None and not usable:
                agent.lost = True
            self._part_with(host, used)

    # ------------------------------------------------------------------ what there is
    @property
    def has_lost(self) -> bool:
        """Whether an agent is known to be gone."""
        return any(agent is not None and agent.lost for agent in self.agents)

    def leave(self, host: int) -> None:
        """Note that a host is about to be taken away."""
        agent = self.agents[host]
        if agent is not None and not agent.is_here:
            agent.leaving = True

    def bury_those_here(self) -> None:
        """See to it that nothing is left of agents on this host that are gone."""
        for host, agent in enumerate(self.agents):
            if agent is not None and agent.lost and agent.is_here:
                self._part_with(host)

    def is_lost(self, host: int) -> bool:
        """Return whether a host has no agent that can be reached."""
        agent = self.agents[host]
        return agent is None or agent.lost

    def ready(self) -> list[int]:
        """Return the hosts whose agents wait for orders."""
        return [
            host
            for host, agent in enumerate(self.agents)
            if agent is not None and agent.facts is not None and not agent.lost
        ]

    def pending(self) -> list[int]:
        """Return the hosts whose agents are being started."""
        return [host for host in range(len(self.agents)) if self._is_pending(host)]

    @property
    def is_starting(self) -> bool:
        """Whether there is an agent that is being started; not all are looked at each time."""
        while self._starting and not self._is_pending(self._starting[-1]):
            self._starting.pop()
        return bool(self._starting)

    def _is_pending(self, host: int) -> bool:
        agent = self.agents[host]
        return agent is not None and agent.facts is None and not agent.lost

    def was_silent(self, host: int) -> bool:
        """Return whether a host was out of reach when it was last heard of, or is leaving."""
        agent = self.agents[host]
        if agent is not None and agent.facts is not None:
            return agent.silent or agent.leaving
        return host in self._lost and self._lost[host].silent

    def room(self, host: int) -> Room:
        """Return what a host has for workers, as far as that is known."""
        agent = self.agents[host]
        gpus: tuple[Gpu, ...] = ()
        use_gpu = self._scaling.use_gpu
        if use_gpu and self.hosts[host].is_here:
            gpus = tuple(list_gpus())
        elif use_gpu and agent is not None and agent.facts is not None:
            gpus = agent.facts.gpus
        name = "this machine" if self.is_only_here else self.hosts[host].name
        return Room(gpus, self._limit(host), name)

    def _limit(self, host: int) -> int | None:
        """Return how many workers a host takes at most, where something other than GPUs says so.

        With a range of workers, and nothing said, that is an equal share: who has lost a host
        trains with fewer.
        """
        said = self.hosts[host].workers
        if said is None and self._scaling.elasticity_enabled and not self._scaling.use_gpu:
            return -(-self._scaling.max_workers // len(self.hosts))
        return said
