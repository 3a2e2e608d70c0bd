"""All ranks meet before anything is made: is everybody there, and do all see the same storage?"""

from __future__ import annotations

import os
import queue
import socket
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from minitrain import _env
from minitrain._launched.letters import Ended, Farewell, Look, Present, Refused, RunTold
from minitrain._launched.post import Post
from minitrain._logging import logger
from minitrain._os.launchers import Launched
from minitrain._os.machine import address_towards, node_ip
from minitrain._os.processes import began_at
from minitrain.exceptions import CollectiveTimeoutError, ConfigurationError, ControllerError

__all__ = ["Mail", "answer", "gather", "refuse"]

Mail: TypeAlias = "queue.SimpleQueue[tuple[int, Any]]"
"""Who has sent what; an error is from this rank's own thread, which found the store gone."""

_FAREWELL_S = 5.0
"""How long ranks have to hear that nothing is trained, before rank 0 may take the store along."""


def gather(post: Post, mail: Mail, launched: Launched, folder: str | None) -> tuple[Present, ...]:
    """Wait, in rank 0, for all other ranks, and return all by rank.

    Args:
        post: The way to them.
        mail: What they send.
        launched: What the launcher says of this rank.
        folder: The directory on this host that they must see; None: the run is kept elsewhere.

    Raises:
        ConfigurationError: One does not see it.
        CollectiveTimeoutError: One did not come.
    """
    world_size = launched.world_size
    with _token(folder) as token:
        for rank in range(1, world_size):
            post.send(rank, Look(token))
        peers = {0: _present(token, launched), **_all_present(mail, world_size)}
    blind = [rank for rank, peer in peers.items() if not peer.sees]
    if blind:
        raise ConfigurationError(
            f"RunConfig(storage_path): rank {blind[0]} on {peers[blind[0]].hostname} does not see "
            f"what rank 0 on {peers[0].hostname} writes to {folder}; use a directory that all "
            "hosts share, or a URI such as s3://bucket/folder"
        )
    return tuple(peers[rank] for rank in range(world_size))


@contextmanager
def _token(folder: str | None) -> Generator[str | None]:
    if folder is None:
        yield None
        return
    path = Path(folder, f".minitrain-probe-{uuid.uuid4().hex[:12]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ConfigurationError(
            f"RunConfig(storage_path={folder!r}): cannot be written to: {error}"
        ) from error
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _present(token: str | None, launched: Launched) -> Present:
    address = address_towards(launched.master_addr)
    if address is None or address.startswith("127."):  # on rank 0's own host
        address = node_ip()
    sees = token is None or Path(token).exists()
    return Present(socket.gethostname(), address, os.getpid(), began_at(os.getpid()), sees)


def _all_present(mail: Mail, world_size: int) -> dict[int, Present]:
    limit_s = _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
    deadline_s = time.monotonic() + limit_s
    warn_s = _env.seconds("MINITRAIN_COLLECTIVE_WARN_S")
    found: dict[int, Present] = {}
    while len(found) < world_size - 1:
        missing = [rank for rank in range(1, world_size) if rank not in found]
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise CollectiveTimeoutError("fit", missing, limit_s)
        try:
            rank, letter = mail.get(timeout=min(left_s, warn_s))
        except queue.Empty:
            names = ", ".join(map(str, missing))
            logger.warning("fit(): rank %s has not called it yet; the others wait", names)
            continue
        if isinstance(letter, ControllerError):
            raise letter
        if isinstance(letter, Present):
            found[rank] = letter
    return found


def answer(post: Post, mail: Mail, launched: Launched) -> RunTold:
    """Tell rank 0, in every other rank, that this one is there, and return what it says.

    Raises:
        Exception: What rank 0 says: nothing is trained.
        CollectiveTimeoutError: It says nothing.
    """
    while True:
        letter = _next_letter(mail)
        match letter:
            case Look(path=path):
                post.send(0, _present(path, launched))
            case RunTold():
                return letter
            case Refused(error=error):
                post.send(0, Farewell())
                post.flush()
                raise error
            case _:
                pass


def refuse(post: Post, mail: Mail, world_size: int, reason: Exception) -> None:
    """Tell all other ranks, in rank 0, that nothing is trained, or nothing any more.

    Raises:
        ControllerError: There is no way to them.
    """
    for rank in range(1, world_size):
        post.send(rank, Refused(reason))
        post.send(rank, Ended("failed", str(reason) or repr(reason), {}))
    post.flush()
    deadline_s = time.monotonic() + _FAREWELL_S
    num_gone = 0
    with suppress(queue.Empty):  # they have ended, or have not come
        while num_gone < world_size - 1:  # this process may take the store along
            _, letter = mail.get(timeout=max(0.0, deadline_s - time.monotonic()))
            num_gone += isinstance(letter, Farewell)


def _next_letter(mail: Mail) -> Any:
    """Return what rank 0 says next.

    Raises:
        CollectiveTimeoutError: It says nothing.
        ControllerError: It cannot any more.
    """
    limit_s = _env.seconds("MINITRAIN_COLLECTIVE_TIMEOUT_S")
    try:
        _, letter = mail.get(timeout=limit_s)
    except queue.Empty:
        raise CollectiveTimeoutError("fit", [0], limit_s) from None
    if isinstance(letter, ControllerError):
        raise letter
    return letter
