"""Runs every benchmark, one after the other; about half an hour on 2 cores.

The machine should do nothing else meanwhile. ``--quick`` takes few samples, to see that all of it
works::

    python bench/all.py | tee figures.md
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from _figures import note
from _peers import here

COMMANDS = (
    ("import_time.py", "--runs", "20"),
    ("report.py", "--runs", "7"),
    ("report.py", "--runs", "5", "--pause-us", "1000"),
    ("memory.py", "--runs", "5"),
    ("start.py", "--runs", "9"),
    ("first_fit.py", "--runs", "9"),
    ("step_time.py", "--runs", "11"),
    ("restart.py", "--runs", "9"),
    ("sharded_save.py", "--runs", "7"),
    ("checkpoints.py", "--runs", "9"),
    ("report_checkpoint.py", "--runs", "9"),
    ("checkpoints_s3.py", "--runs", "5"),
    ("ingest.py", "--runs", "5"),
    ("control_plane.py", "--runs", "3"),
    ("launch.py", "--runs", "7"),
)
QUICK_COMMANDS = (
    ("import_time.py", "--runs", "2"),
    ("report.py", "--runs", "1"),
    ("report.py", "--runs", "1", "--pause-us", "1000", "--calls", "2000"),
    ("memory.py", "--runs", "1"),
    ("start.py", "--runs", "1", "--fits", "2"),
    ("first_fit.py", "--runs", "1"),
    ("step_time.py", "--runs", "1", "--scale", "0.2"),
    ("restart.py", "--runs", "1"),
    ("sharded_save.py", "--runs", "1", "--mib", "256"),
    ("checkpoints.py", "--runs", "1", "--megabytes", "16"),
    ("report_checkpoint.py", "--runs", "1", "--megabytes", "16"),
    ("checkpoints_s3.py", "--runs", "1", "--megabytes", "64"),
    ("ingest.py", "--runs", "1", "--epochs", "1", "--scale", "0.1"),
    ("control_plane.py", "--runs", "1", "--hosts", "10", "100"),
    ("launch.py", "--runs", "1"),
)


def main() -> None:
    """Run them all; the exit status says whether each came to its end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples")
    commands = QUICK_COMMANDS if parser.parse_args().quick else COMMANDS
    failed = []
    for script, *arguments in commands:
        note(f"bench/{script} {' '.join(arguments)}")
        if subprocess.run([sys.executable, here(script), *arguments], check=False).returncode:
            failed.append(script)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
