"""How long over ssh hosts from the command to the first line on all ranks, and what follows.

The hosts are those of the tests: network namespaces of this machine, each with an sshd, so that
all share its processors. They are cold: nothing of a training runs on them, and all of them
import torch at the same time, which is measured beside it. The peers are torchrunx and ``ssh``
with torchrun on every host, as one would type it. All ranks of every side do one ``all_reduce``
over gloo and note the time; the last one counts. Root only, as the hosts are::

    python bench/launch.py --runs 5 --torchrunx PEERS/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from _figures import Row, note, one_thread_each, print_table, rotated, spread, verdict
from _machine import print_machine
from _peers import here

REPOSITORY = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, REPOSITORY)

from tests.hosts.world import World, why_not  # noqa: E402

NUM_HOSTS = 4
WORKERS_PER_HOST = 2
PORT = 29500
TIMEOUT_S = 120
BEYOND_IMPORT_S = 1.5
WARM_S = 0.5
RESTART_S = 0.6
RESTART_TIMES_FASTER = 8
REPORT_BYTES = 1024
NUM_REPORTS = 2000
IMPORT = "import time; b = time.perf_counter(); import torch; print(time.perf_counter() - b)"


@dataclass
class Bench:
    """The hosts, and how each side is launched over them.

    Attributes:
        world: The hosts.
        torchrunx: The Python that has torchrunx, if there is one.
    """

    world: World
    torchrunx: str

    def run(self, command: Sequence[str], out: Path) -> Any:
        """Run a command where the driver is and return what it, or its rank 0, left in a file."""
        environ = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/bench"}
        self.world.run(command, env=environ, cwd=REPOSITORY, timeout_s=TIMEOUT_S, check=True)
        return json.loads(out.read_text(encoding="utf-8"))

    def minitrain(self, num_hosts: int, out: Path, *script: str) -> Any:
        """Launch our script over the first hosts."""
        hosts = ",".join(f"{name}:{WORKERS_PER_HOST}" for name in self.world.hosts[:num_hosts])
        launcher = [sys.executable, "-m", "minitrain.launch", "--hosts", hosts]
        options = [f"--ssh-options=-F {self.world.ssh_config}"]
        what, *rest = script
        return self.run([*launcher, *options, here("_launched.py"), what, str(out), *rest], out)

    def on_all_hosts(self, num_hosts: int, commands: Sequence[Sequence[str]]) -> str:
        """Return a command line that runs one command on each host by ssh and waits for all."""
        variables = [f"PYTHONPATH={REPOSITORY}:{REPOSITORY}/bench"]
        variables += [
            f"{name}={value}"
            for name, value in os.environ.items()
            if name in {"OMP_NUM_THREADS", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"}
        ]
        ssh = ["ssh", "-F", self.world.ssh_config]
        lines = []
        for host, command in zip(self.world.hosts[:num_hosts], commands, strict=True):
            there = f"cd {shlex.quote(REPOSITORY)} && {shlex.join(['env', *variables, *command])}"
            lines.append(f'{shlex.join([*ssh, host, there])} & pids="$pids $!"')
        return "\n".join([*lines, "for pid in $pids; do wait $pid || exit 1; done"])

    def torchrun(
        self, num_hosts: int, out: Path, options: Callable[[int], list[str]], *script: str
    ) -> Any:
        """Type torchrun on the first hosts."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(num_hosts)]
        workers = ["--nproc-per-node", str(WORKERS_PER_HOST)]
        commands = [
            [*launcher, *workers, *options(node), here(script[0]), *script[1:]]
            for node in range(num_hosts)
        ]
        return self.run(["sh", "-c", self.on_all_hosts(num_hosts, commands)], out)

    @property
    def first(self) -> str:
        """The address of the first host."""
        return self.world.addresses[self.world.hosts[0]]

    # ------------------------------------------------------------------ what is measured
    def imports(self, folder: Path) -> float:
        """Return how long the slowest host takes to import torch while all do."""
        outs = [folder / f"{host}.seconds" for host in self.world.hosts]
        commands = [["sh", "-c", f"{sys.executable} -c '{IMPORT}' >{out}"] for out in outs]
        self.world.run(
            ["sh", "-c", self.on_all_hosts(NUM_HOSTS, commands)], timeout_s=TIMEOUT_S, check=True
        )
        return max(float(out.read_text(encoding="utf-8")) for out in outs)

    def ours(self, folder: Path) -> dict[str, float]:
        """Return our seconds, of cold hosts and of warm ones, and those of the import around it."""
        before_s = self.imports(folder)
        began_s = time.time()
        first, *more = self.minitrain(
            NUM_HOSTS, folder / "out", "fits", str(NUM_HOSTS * WORKERS_PER_HOST)
        )
        import_s = (before_s + self.imports(folder)) / 2
        return {
            "import": import_s,
            "ours": first["line"] - began_s,
            "beyond": first["line"] - began_s - import_s,
            "ours, from fit()": first["line"] - first["called"],
            "warm": median(one["line"] - one["called"] for one in more),
            "warm, whole": median(one["returned"] - one["called"] for one in more),
        }

    def torchrun_by_hand(self, folder: Path) -> dict[str, float]:
        """Return torchrun's."""

        def options(node: int) -> list[str]:
            where = ["--master-addr", self.first, "--master-port", str(PORT)]
            return ["--node-rank", str(node), *where]

        began_s, out = time.time(), folder / "out"
        seen = self.torchrun(NUM_HOSTS, out, options, "_peers.py", "torchrun", str(out))
        return {"torchrun": seen["line"] - began_s}

    def by_torchrunx(self, folder: Path) -> dict[str, float]:
        """Return torchrunx's."""
        hosts = ",".join(self.world.hosts)
        arguments = [hosts, str(WORKERS_PER_HOST), self.world.ssh_config, str(folder / "out")]
        began_s = time.time()
        seen = self.run([self.torchrunx, here("_torchrunx.py"), *arguments], folder / "out")
        return {"torchrunx": seen["line"] - began_s}

    def restart(self, folder: Path) -> dict[str, float]:
        """Return our seconds from a worker's death to the next first line, over two hosts."""
        num_workers = str(2 * WORKERS_PER_HOST)
        return {"restart": self.minitrain(2, folder / "out", "restart", num_workers)}

    def restart_of_torchrun(self, folder: Path) -> dict[str, float]:
        """Return torchrun's."""
        options = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.first}:{PORT}"]
        options += ["--rdzv-id", "bench", "--max-restarts", "1"]
        script = ["_restarted.py", str(folder), str(2 * WORKERS_PER_HOST - 1)]
        seen = self.torchrun(2, folder / "seconds", lambda _: options, *script)
        return {"restart of torchrun": seen}


def measure(bench: Bench, runs: int) -> dict[str, list[float]]:
    """Let the sides take turns."""
    sides = [bench.ours, bench.torchrun_by_hand]
    sides += [bench.by_torchrunx] if bench.torchrunx else []
    restarts = [bench.restart, bench.restart_of_torchrun]
    samples: dict[str, list[float]] = defaultdict(list)
    for turn in range(runs):
        for side in [*rotated(sides, turn), *rotated(restarts, turn)]:
            with tempfile.TemporaryDirectory() as folder:
                taken = side(Path(folder))
            for name, seconds in taken.items():
                samples[name].append(seconds)
            said = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in taken.items())
            note(f"run {turn + 1}: {said}")
    return samples


def rows(samples: dict[str, list[float]], num_bytes: float) -> list[Row]:
    """Hold the figures against the targets."""
    middle = {name: median(values) for name, values in samples.items()}
    cold = spread(samples["ours"], "s", 2)
    what = f"{NUM_HOSTS} cold hosts x {WORKERS_PER_HOST} workers: command to first line"
    table = []
    for peer in ("torchrunx", "torchrun"):
        if peer in samples:
            ratio = middle[peer] / middle["ours"]
            seconds = f"{peer} {spread(samples[peer], 's', 2)}"
            faster = f"{ratio:.1f} x faster"
            table.append(Row(what, cold, seconds, faster, "faster", verdict(met=ratio > 1)))
    restart_times = middle["restart of torchrun"] / middle["restart"]
    return [
        *table,
        Row(
            what,
            cold,
            f"slowest `import torch` {spread(samples['import'], 's', 2)}",
            f"import + {spread(samples['beyond'], 's', 2)}",
            f"<= import + {BEYOND_IMPORT_S} s",
            verdict(met=middle["beyond"] <= BEYOND_IMPORT_S),
        ),
        Row("from fit() to the first line", spread(samples["ours, from fit()"], "s", 2)),
        Row(
            "later fit() on the same hosts: first line",
            spread(samples["warm"], "s"),
            target=f"<= {WARM_S} s",
            met=verdict(met=middle["warm"] <= WARM_S),
        ),
        Row("later fit(): until it returns", spread(samples["warm, whole"], "s")),
        Row(
            "SIGKILL of a worker on another host to the next first line",
            spread(samples["restart"], "s"),
            f"torchrun {spread(samples['restart of torchrun'], 's', 2)}",
            f"{restart_times:.1f} x faster",
            f"<= {RESTART_S} s, >= {RESTART_TIMES_FASTER} x faster",
            verdict(met=middle["restart"] <= RESTART_S and restart_times >= RESTART_TIMES_FASTER),
        ),
        Row(
            "bytes the driver reads for a report of 5 scalars",
            f"{num_bytes:.0f}",
            target=f"<= {REPORT_BYTES}",
            met=verdict(met=num_bytes <= REPORT_BYTES),
        ),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="turns of every side")
    parser.add_argument(
        "--torchrunx",
        default=os.environ.get("TORCHRUNX_PYTHON", ""),
        help="a Python that has torchrunx; by default $TORCHRUNX_PYTHON",
    )
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        note(f"nothing is measured: {reason}")
        return
    one_thread_each()
    # Otherwise torchrun has one store for all attempts, and gloo finds the addresses of the last.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    print_machine("From the command to the first line on all ranks, over ssh hosts")
    # The peers need names that resolve.
    with World(NUM_HOSTS, resolvable=True) as world:
        bench = Bench(world, arguments.torchrunx)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out")
            num_bytes = bench.minitrain(1, out, "reports", str(NUM_REPORTS))
        samples = measure(bench, arguments.runs)
    print_table(rows(samples, num_bytes))


if __name__ == "__main__":
    main()
