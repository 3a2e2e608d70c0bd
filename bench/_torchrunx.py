"""The first line of a training that torchrunx launches over hosts, as its README does it::

PEERS/bin/python bench/_torchrunx.py h1,h2 2 SSH_CONFIG OUT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from _peers import first_line


def main() -> None:
    """Launch and leave when the last rank had its first line in OUT."""
    from torchrunx import Launcher

    hosts, workers_per_host, ssh_config, out = sys.argv[1:]
    os.environ.setdefault("TORCHRUNX_LOG_DIR", str(Path(out).parent))  # not where one is
    launcher = Launcher(
        hostnames=hosts.split(","),
        workers_per_host=int(workers_per_host),
        ssh_config_file=ssh_config,
        backend="gloo",
        copy_env_vars=("PATH", "PYTHON*", "OMP_*"),
    )
    line_s = launcher.run(first_line).rank(0)
    Path(out).write_text(json.dumps({"line": line_s}), encoding="utf-8")


if __name__ == "__main__":
    main()
