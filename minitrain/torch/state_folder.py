"""The temporary folder of a saved state: it goes with the object that stands for it.

A worker that is killed deletes nothing; its temporary files are removed with its attempt.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import weakref
from pathlib import Path

__all__ = ["PrivateFolder"]


class PrivateFolder:
    """A new folder."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="minitrain-state-"))
        self._pid = os.getpid()

    def delete_with(self, owner: object) -> None:
        """Delete the folder when an object is deleted, or at the end of this process."""
        delete = weakref.finalize(owner, self._delete)
        delete.atexit = False  # a process that was forked may have lost weakref's own handler
        atexit.register(delete)
        weakref.finalize(owner, atexit.unregister, delete).atexit = False

    def _delete(self) -> None:
        if os.getpid() == self._pid:  # a fork, such as a data loader's process, has the owner too
            shutil.rmtree(self.path, ignore_errors=True)
