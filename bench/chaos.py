"""Breaks a training in every way there is, again and again, and checks that it survives.

A training of 4 workers whose state after every step is known (``_chaos_training.py``) runs in a
process that is started again whenever it ends. Every few hundred milliseconds something is done to
it: processes are killed and stopped, the disk is full, checkpoints are damaged. When it has
recovered, every promise is looked at (``_chaos_checks.py``)::

    python bench/chaos.py --minutes 10 --seed 1

The same seed gives the same faults; what they meet is a matter of time. The first broken promise
ends the campaign with status 1, and everything stays where the last line says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil
from _chaos_checks import Checks, Violation, processes_with
from _chaos_faults import (
    DISK_FULL,
    DRIVER_AGAIN,
    FAULTS,
    Fault,
    damage,
    full_disk,
    plan,
    unfinished_checkpoint,
)
from _chaos_training import NUM_WORKERS, SYNC_EVERY
from _figures import note
from _machine import print_machine
from _peers import here

from minitrain.exceptions import PreemptionError

DISK_MIB = 256
DISK_FULL_S = 0.5
RECOVERY_DEADLINE_S = 60.0
END_DEADLINE_S = 120.0
STEPS_TO_THE_END = 200
LATE_REPORTS = 50
START_S = 2.0
"""About as long as a driver takes to go on with the run."""
POLL_S = 0.01
PATIENCE = {
    "MINITRAIN_STOP_GRACE_S": "1",  # a stopped worker does not see SIGTERM
    "MINITRAIN_START_TIMEOUT_S": "20",
}


class Driver:
    """The process that trains, started again whenever it ends.

    Args:
        folder: The campaign's.
        storage: Where the run goes.
        checks: Looks at what it leaves.
    """

    def __init__(self, folder: Path, storage: Path, checks: Checks) -> None:
        self._command = [sys.executable, here("_chaos_training.py"), str(folder), str(storage)]
        self._folder, self._checks = folder, checks
        self._mark = f"chaos={folder.name}"
        self._environ = {
            **os.environ,
            **PATIENCE,
            "MINITRAIN_CHAOS": self._mark,
            "TMPDIR": str(folder / "tmp"),
        }
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it."""
        with (self._folder / "driver.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environ
            )

    def start_again_if_it_ended(self, expected: tuple[int, ...]) -> None:
        """Start it again after an end that was to be expected.

        Raises:
            Violation: It ended in another way, or left something.
        """
        status = self.process.poll()
        if status is not None:
            self._checks.that(
                status in expected, f"the driver ended with status {status}, not {expected}"
            )
            self._checks.check_nothing_left(self._mark)
            self.start()

    def end(self) -> None:
        """Wait until it has finished the run."""
        self._checks.that(
            self.process.wait(END_DEADLINE_S) == 0, "the driver did not finish the run"
        )
        self._checks.check_nothing_left(self._mark)

    def close(self) -> None:
        """Kill it with all it started, whatever state they are in."""
        self.process.kill()
        self.process.wait()
        for pid in processes_with(self._mark):
            os.kill(pid, signal.SIGKILL)


class Campaign:
    """Faults, one after the other, and what became of them.

    Args:
        folder: For everything but the run.
        storage: Where the run goes.
    """

    def __init__(self, folder: Path, storage: Path) -> None:
        self._folder, self._storage = folder, storage
        self.checks = Checks(folder, storage)
        self._driver = Driver(folder, storage, self.checks)
        self._began_s = time.monotonic()
        self.recovered_ms: dict[str, list[float]] = defaultdict(list)
        self._inject: dict[str, Callable[[Fault], str]] = {
            "worker": lambda fault: self._signal(self._workers()[fault.rank], fault),
            "agent": lambda fault: self._signal(self._agent(), fault),
            "driver": lambda fault: self._signal(self._driver.process.pid, fault),
            "again": self._kill_driver_again,
            "full": self._fill_disk,
            "upload": self._fail_upload,
            "committed": self._damage_committed,
            "unfinished": self._damage_unfinished,
        }

    def run(self, faults: Iterator[Fault], minutes: float) -> None:
        """Break the training for so long, then let it finish.

        Raises:
            Violation: A promise was broken.
        """
        try:
            self._driver.start()
            self._wait_for_reports(0, 1, ())
            end_s = time.monotonic() + 60 * minutes
            while time.monotonic() < end_s:
                self._do(next(faults))
            self._finish()
        finally:
            self._driver.close()

    def _do(self, fault: Fault) -> None:
        time.sleep(fault.delay_s)
        self._driver.start_again_if_it_ended(())  # nobody has touched it
        expected = self._expected(fault)
        num_lives = len(self.checks.lives())
        began_s = time.monotonic()
        what = self._inject[fault.kind.split()[-1]](fault)
        if fault.kind == DRIVER_AGAIN:  # the one that was killed last may have trained before
            num_lives = len(self.checks.lives())
        if fault.kind == DISK_FULL:
            took_ms = self._recover_from_full_disk(expected)
        else:
            self._wait_for_reports(num_lives, 1, expected)
            took_ms = 1000 * (time.monotonic() - began_s)
        self.recovered_ms[fault.kind].append(took_ms)
        self.checks.check()
        at_s = time.monotonic() - self._began_s
        print(f"{at_s:7.1f} s  {fault.kind:20} {what:45} {took_ms:6.0f} ms", flush=True)

    def _recover_from_full_disk(self, expected: tuple[int, ...]) -> float:
        """Wait until reports return again, and for more: what did not fit may show late."""
        began_s = time.monotonic()
        returned = sum(life.num_reports for life in self.checks.lives().values())
        self._wait_for_reports(0, returned + 1, expected)
        took_ms = 1000 * (time.monotonic() - began_s)
        self._wait_for_reports(0, returned + LATE_REPORTS, expected)
        return took_ms

    def _expected(self, fault: Fault) -> tuple[int, ...]:
        """Return the statuses that the driver may end with after a fault."""
        if fault.kind == DISK_FULL:
            return (1,)  # it cannot keep its own records
        if "driver" not in fault.kind:
            return ()
        preempted = fault.signum == signal.SIGTERM
        return (PreemptionError.EXIT_STATUS,) if preempted else (-signal.SIGKILL,)

    def _wait_for_reports(self, num_lives: int, wanted: int, expected: tuple[int, ...]) -> None:
        """Wait until reports have returned that could not have without a recovery.

        Args:
            num_lives: How many lives do not count: later ones are waited for.
            wanted: How many of their reports.
            expected: What the driver may end with meanwhile.
        """
        deadline_s = time.monotonic() + RECOVERY_DEADLINE_S
        while True:
            self._driver.start_again_if_it_ended(expected)
            lives = list(self.checks.lives().values())[num_lives:]
            if sum(life.num_reports for life in lives) >= wanted:
                return
            self.checks.that(
                time.monotonic() < deadline_s,
                f"no report has returned for {RECOVERY_DEADLINE_S:.0f} s",
            )
            time.sleep(POLL_S)

    # ------------------------------------------------------------------ faults
    def _agent(self) -> int:
        (agent,) = psutil.Process(self._driver.process.pid).children()
        return int(agent.pid)

    def _workers(self) -> dict[int, int]:
        """Return the workers of the attempt under way; one that is starting has none yet."""
        deadline_s = time.monotonic() + RECOVERY_DEADLINE_S
        while True:
            workers = self.checks.record()["attempts"][-1]["workers"]
            if len(workers) == NUM_WORKERS:
                return {worker["rank"]: worker["pid"] for worker in workers}
            self.checks.that(time.monotonic() < deadline_s, "no workers have started")
            time.sleep(POLL_S)

    def _signal(self, pid: int, fault: Fault) -> str:
        os.kill(pid, fault.signum)
        return f"process {pid}"

    def _kill_driver_again(self, fault: Fault) -> str:
        """Kill the driver, and the next one while it takes the run up."""
        after_s = fault.where * START_S
        for delay_s in (0.0, after_s):
            self._driver.start_again_if_it_ended(self._expected(fault))
            time.sleep(delay_s)
            self._driver.process.kill()
            self._driver.process.wait()
        return f"and after {after_s:.2f} s the next"

    def _kill_worker(self, fault: Fault) -> None:
        os.kill(self._workers()[fault.rank], signal.SIGKILL)

    def _fill_disk(self, _fault: Fault) -> str:
        with full_disk(self._storage):
            time.sleep(DISK_FULL_S)
        return f"for {DISK_FULL_S} s"

    def _fail_upload(self, _fault: Fault) -> str:
        (self._folder / "fail_upload").touch()
        return "the next one"

    def _damage_committed(self, fault: Fault) -> str:
        committed = self.checks.committed()
        if not committed:
            self._kill_worker(fault)
            return "there was none"
        return self._damage(self.checks.run / max(committed), fault)

    def _damage_unfinished(self, fault: Fault) -> str:
        checkpoint = unfinished_checkpoint(self.checks.run)
        if checkpoint is None:
            self._kill_worker(fault)
            return "there was none"
        return self._damage(checkpoint, fault)

    def _damage(self, checkpoint: Path, fault: Fault) -> str:
        """Damage a checkpoint, and have the run start again from what it finds."""
        self.checks.damaged.add(checkpoint.name)
        what = damage(checkpoint, fault)
        self._kill_worker(fault)
        return what

    # ------------------------------------------------------------------ the end
    def _finish(self) -> None:
        newest = list(self.checks.lives().values())[-1]
        last_step = (newest.acknowledged + STEPS_TO_THE_END) // SYNC_EVERY * SYNC_EVERY
        made = self._folder / "last_step.new"
        made.write_text(str(last_step), encoding="utf-8")
        made.rename(self._folder / "last_step")
        self._driver.end()
        self.checks.check_end(last_step)

    def summary(self) -> str:
        """Return the table of what was survived."""
        lines = ["| fault | survived | recovery, median | p95 |", "|---|---|---|---|"]
        counts = Counter({kind: len(times) for kind, times in self.recovered_ms.items()})
        for kind in FAULTS:
            if counts[kind]:
                times = sorted(self.recovered_ms[kind])
                p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
                lines.append(f"| {kind} | {counts[kind]} | {median(times):.0f} ms | {p95:.0f} ms |")
        lines.append(f"\n{counts.total()} faults survived, {self.checks.count} invariants checked")
        return "\n".join(lines)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small filesystem that can be filled; nothing where that is not allowed."""
    place = folder / "disk"
    place.mkdir()
    umount = ["umount", "--lazy", str(place)]
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(umount, check=True)


def survive(arguments: argparse.Namespace, folder: Path, storage: Path, kinds: list[str]) -> bool:
    """Run a campaign, say how it went, and return whether every promise was kept."""
    campaign = Campaign(folder, storage)
    try:
        campaign.run(plan(arguments.seed, kinds, NUM_WORKERS), arguments.minutes)
    except Violation as violation:
        shutil.copytree(campaign.checks.run, folder / "kept", dirs_exist_ok=True)
        note(f"\nBROKEN: {violation}\n{campaign.summary()}\nkept: {folder} (the run: kept/)")
        return False
    print(f"\n{campaign.summary()}", flush=True)
    return True


def main() -> None:
    """Run a campaign; the exit status says whether every promise was kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", type=Path, help="where the run goes; it is never filled")
    arguments = parser.parse_args()
    print_machine(f"Chaos: {arguments.minutes:g} minutes, seed {arguments.seed}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    for name in ("lives", "tmp", "storage"):
        (folder / name).mkdir()
    kinds = list(FAULTS)
    with small_disk(folder) as disk:
        if arguments.storage is not None or disk is None:
            kinds.remove(DISK_FULL)
            note(f"left out: {DISK_FULL} (needs root, and no --storage)")
        storage = arguments.storage or disk or folder / "storage"
        survived = survive(arguments, folder, storage, kinds)
    if not survived:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
