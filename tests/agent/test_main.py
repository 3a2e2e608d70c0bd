"""An agent before it is ready: it imports torch, which takes long, and may be needed no more."""

from __future__ import annotations

import os
import subprocess
import sys

WAIT_S = 20.0


def test_an_agent_ends_with_its_driver_also_while_it_imports_torch(tmp_path):
    """The import never ends: only who is watched meanwhile can."""
    (tmp_path / "torch.py").write_text(
        "import os, time\nos.write(2, b'importing')\nwhile True:\n    time.sleep(0.1)\n"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', os.getcwd())}"
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "minitrain._agent", "--name", "early"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "MINITRAIN_AGENT": "/early"},
    ) as agent:
        try:
            assert agent.stdin is not None
            assert agent.stderr is not None
            assert agent.stderr.read(len(b"importing")) == b"importing"
            agent.stdin.close()
            assert agent.wait(WAIT_S) == 1
        finally:
            agent.kill()
