"""Agents that are lent again."""

from __future__ import annotations

import pytest

from minitrain._driver import agents
from minitrain._hosts.plan import Plan
from minitrain._hosts.spec import Host
from minitrain._hosts.transport import transport_of
from tests.hosts.namespaces import wait

HERE = Plan(transport=transport_of("env HOST={host}"))


@pytest.mark.campaign
def test_an_agent_that_is_lent_again_knows_how_long_it_may_hear_nothing():
    """At once: the link may be cut before the next regular ping."""
    (agent,) = agents.lease([Host("far")], HERE, 60.0, ())

    def is_ready() -> bool:
        agent.receive()
        return agent.facts is not None

    wait(is_ready, "the agent")
    agents.release(agent)
    with agents._pool.lock:  # no heart beats meanwhile
        (again,) = agents.lease([Host("far")], HERE, 1.0, ())
        agents._pool.heart.stop()
    assert again is agent
    wait(lambda: agent._process.poll() is not None, "the agent's end", timeout_s=10)
    agents.release(agent)
