"""Whether the hosts of a run see its directory: asked by way of a file that is put there."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from minitrain._driver.fleet import Fleet
from minitrain._driver.home import Home
from minitrain.exceptions import ConfigurationError

__all__ = ["SharedFolder"]


class SharedFolder:
    """The run's directory, with a file in it that other hosts can look for.

    Args:
        home: The run's places.
        elsewhere: The hosts with workers that are not this one and need to see it.

    Attributes:
        hosts: Those; none where the run's storage is remote anyway.
        path: The directory.
        token: The file's name.
    """

    def __init__(self, home: Home, elsewhere: Sequence[int]) -> None:
        self.hosts = list(elsewhere) if home.storage.is_local else []
        self.path = home.storage.root
        self.token = f".seen-{uuid.uuid4().hex[:12]}"
        self._file = home.layout.root / self.token

    def __enter__(self) -> Self:
        if self.hosts:
            self._file.write_bytes(b"")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.hosts:
            with suppress(OSError):
                self._file.unlink()

    def require(self, unseen: Mapping[int, str], fleet: Fleet) -> None:
        """Refuse hosts that cannot see the directory.

        Raises:
            ConfigurationError: There is one.
        """
        if not unseen:
            return
        hosts = ", ".join(f"{fleet.name(host)} ({problem})" for host, problem in unseen.items())
        raise ConfigurationError(
            f"RunConfig(storage_path): {self.path} is not one directory for all hosts: {hosts}. "
            "Use a directory that they share, such as NFS, or an object store (s3://...), or "
            "LaunchConfig(collect=True) (--collect), which brings checkpoints here over the pipes"
        )
