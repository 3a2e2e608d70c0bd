"""Other launchers: a real torchrun, and processes started by hand as one would start them."""

from __future__ import annotations

import contextlib
import socket
import textwrap

import psutil
import pytest

TORCHRUN = """
    import sys

    from torch.distributed.run import main

    if __name__ == "__main__":
        main(sys.argv[1:])
"""


@pytest.fixture
def torchrun(start_script, tmp_path):
    """Return a function that starts a script under torchrun, on this host."""
    started = []

    def start(text, *args, options=(), num_ranks=2):
        train = tmp_path / f"train_{len(started)}.py"
        train.write_text(textwrap.dedent(text))
        given = ["--standalone", f"--nproc-per-node={num_ranks}", *options, str(train), *args]
        # It leaves folders of its own.
        started.append(start_script(TORCHRUN, *given, env={"TMPDIR": str(tmp_path)}))
        return started[-1]

    yield start
    _end_all(started)


@pytest.fixture
def start_ranks(start_script, tmp_path):
    """Return a function that starts a script once per rank, and whose environment it is given."""
    started = []

    def start(text, *args, environ_of, num_ranks=2):
        ranks = [start_script(text, *args, env=environ_of(rank)) for rank in range(num_ranks)]
        started.extend(ranks)
        return ranks

    yield start
    _end_all(started)


def _end_all(scripts):
    for script in scripts:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(script.process.pid)
            for one in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        script.process.wait()


@pytest.fixture
def by_hand():
    """Return what gives a rank the variables that everybody's scripts set by hand."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def environ_of(rank):
        return {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }

    return environ_of
