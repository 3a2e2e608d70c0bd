"""Contacts from the tests, which are outside the world, to hosts inside."""

from __future__ import annotations

import json
import selectors
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from minitrain._hosts.contact import Contact
from minitrain._hosts.facts import own_versions
from minitrain._hosts.greeting import MARKER
from minitrain._hosts.plan import Plan
from minitrain._hosts.spec import Host
from minitrain._hosts.transport import Transport, ssh, transport_of
from tests.hosts.world import DRIVER, World

HERE = transport_of("env HOST={host}")
"""A transport that leads nowhere else."""

WITHIN_S = 20.0


def into(world: World, *options: str) -> Transport:
    """Return ssh as the driver in a world has it."""
    return from_outside(world, ssh((*options, "-F", world.ssh_config)))


def from_outside(world: World, transport: Transport, environ: Mapping[str, str] = {}) -> Transport:
    """Return a transport that the driver in a world has, for a driver that is this process."""
    variables = [f"{name}={value}" for name, value in environ.items()]
    enter = (*world.on(DRIVER)._enter, "env", *variables)
    return replace(transport, template=(*enter, *transport.template))


def contact(name: str, transport: Transport = HERE, *, python=sys.executable, **settings):
    """Start a contact; the settings are its own, or its plan's."""
    keys = {"arguments", "environ", "probe"}
    own = {key: settings.pop(key) for key in keys & settings.keys()}
    plan = Plan(transport=transport, python=str(python), **settings)
    return Contact(Host(name), plan, **{"arguments": (), "environ": {}, **own})


def advance(contact: Contact, timeout_s: float = WITHIN_S) -> Contact:
    """Advance a contact until it has greeted, or raises."""
    deadline_s = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(contact.read_fd, selectors.EVENT_READ)
        while not contact.advance():
            if contact.wants_to_write and len(selector.get_map()) == 1:
                selector.register(contact.write_fd, selectors.EVENT_WRITE)
            assert selector.select(deadline_s - time.monotonic()), contact.words()
    return contact


def fake_python(folder: Path, *, before: str = "", after: str = "", **facts) -> Path:
    """Write a program that greets as a Python with other facts would.

    Args:
        folder: Where.
        before: Shell commands before the greeting.
        after: Likewise after it.
        facts: What it says otherwise than the truth.
    """
    own = own_versions()
    said = {
        "hostname": "fake",
        "python": own.python,
        "executable": "/fake/python",
        "minitrain": own.minitrain,
        "torch": own.torch,
        "num_cpus": 3,
        "gpus": [],
        "free_bytes": 1 << 30,
        "total_bytes": 2 << 30,
        "address": None,
        "time_s": time.time(),
        **facts,
    }
    path = folder / "python"
    line = MARKER + json.dumps(said)
    path.write_text(f"#!/bin/sh\n{before}\nread -r source\necho '{line}'\n{after}\n")
    path.chmod(0o755)
    return path
