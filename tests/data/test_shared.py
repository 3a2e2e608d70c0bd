"""Tables in shared memory: mapped by other processes, and gone with the last of them."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from minitrain.data.processes.shared import SharedTable, once_per_host
from minitrain.exceptions import DataError, SchemaMismatchError

LONG = pytest.mark.campaign

MIB = 1 << 20
NAME = "memfd:minitrain-data"


def write(*tables, budget_bytes=64 * MIB, spill_folder=None):
    return SharedTable.write(tables, budget_bytes=budget_bytes, spill_folder=spill_folder)


def some_rows(count=1000, start=0):
    return pa.table(
        {
            "number": np.arange(start, start + count),
            "text": pa.array((f"row {i}" if i % 7 else None for i in range(count)), pa.string()),
        }
    )


def memories(pid="self"):
    """Return how many descriptors and mappings of ours a process has."""
    links = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(entry.path))
        except FileNotFoundError:
            continue
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum(NAME in link for link in links), sum(NAME in line for line in maps)


@pytest.fixture(autouse=True)
def nothing_stays():
    gc.collect()
    before = memories(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert (memories(), len(os.listdir("/proc/self/fd"))) == before


@pytest.fixture
def spill_folder(tmp_path):
    folder = tmp_path / "spill"
    folder.mkdir()
    return folder


# ------------------------------------------------------------------ writing and mapping
@pytest.mark.parametrize("budget_bytes", [64 * MIB, 10_000, 0], ids=["memory", "both", "file"])
def test_rows_come_back_as_they_were(budget_bytes, spill_folder):
    tables = [some_rows(), some_rows(10, start=1000).slice(3, 5), some_rows(0)]
    shared = write(*tables, budget_bytes=budget_bytes, spill_folder=spill_folder)
    assert shared.table().equals(pa.concat_tables(tables))
    assert shared.rows == 1005
    assert shared.spilled == (budget_bytes < MIB)
    assert shared.size_bytes > 8 * 1005
    assert list(spill_folder.iterdir()) == []
    shared.close()


def test_rows_are_mapped_and_not_copied():
    column = np.arange(4 * MIB)
    shared = write(pa.table({"a": column}))
    before = pa.total_allocated_bytes()
    table = shared.table()
    assert pa.total_allocated_bytes() - before < MIB
    address = table["a"].chunk(0).buffers()[1].address
    spans = [
        [int(part, 16) for part in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if NAME in line
    ]
    assert any(start <= address < end for start, end in spans)
    shared.close()


@LONG
def test_a_table_outlives_what_it_came_from_and_takes_the_memory_with_it():
    shared = write(some_rows())
    table = shared.table()
    shared.close()
    assert memories() == (0, 1), "no descriptor, one mapping"
    column = table["number"]
    del table
    assert column.to_pylist() == list(range(1000))
    del column
    assert memories() == (0, 0)


def test_memory_goes_with_the_object_that_nobody_has_closed():
    shared = write(some_rows())
    assert memories()[0] == 1
    del shared
    gc.collect()
    assert memories() == (0, 0)


@LONG
def test_memory_is_given_back_as_soon_as_there_is_a_file(spill_folder):
    in_memory = []

    def tables():
        for start in range(0, 10_000, 1000):
            in_memory.append(memories()[0])
            yield some_rows(start=start)

    shared = SharedTable.write(tables(), budget_bytes=50_000, spill_folder=spill_folder)
    assert (in_memory[1], in_memory[-1]) == (1, 0)
    assert shared.table()["number"].to_pylist() == list(range(10_000))
    shared.close()


@LONG
@pytest.mark.parametrize("refusal", ["missing", "refused"])
def test_where_there_is_no_memory_to_be_had_a_file_does_as_well(refusal, monkeypatch, tmp_path):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    if refusal == "missing":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refuse)
    shared = write(some_rows(), spill_folder=tmp_path)
    assert shared.spilled
    assert shared.table().equals(some_rows())
    shared.close()


def test_tables_may_have_no_rows_no_columns_or_not_be_there():
    shared = write()
    assert (shared.rows, shared.table().num_columns) == (0, 0)
    shared.close()
    shared = write(some_rows(0))
    assert shared.table().schema == some_rows().schema
    shared.close()
    shared = write(some_rows().select([]))
    assert shared.rows == shared.table().num_rows == 1000
    shared.close()


@LONG
def test_dictionaries_may_differ_from_table_to_table():
    tables = [pa.table({"a": pa.array(words).dictionary_encode()}) for words in (["x"], ["y", "x"])]
    shared = write(*tables)
    assert shared.table()["a"].to_pylist() == ["x", "y", "x"]
    shared.close()


@LONG
def test_tensors_stay_tensors():
    images = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    shared = write(pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images)}))
    column = shared.table()["image"].combine_chunks()
    assert np.array_equal(column.to_numpy_ndarray(), images)
    del column
    shared.close()


@LONG
def test_other_columns_are_named_and_leave_nothing():
    with pytest.raises(SchemaMismatchError, match=r"^a dataset: .*column 'number'.* double"):
        write(some_rows(start=2**60), pa.table({"number": [1.5], "text": ["a"]}))


@LONG
def test_an_error_of_who_makes_the_rows_passes_and_leaves_nothing():
    def tables():
        yield some_rows()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        SharedTable.write(tables(), budget_bytes=MIB, spill_folder=None)


@LONG
def test_a_spill_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing.*No such file.*DataContext.*spill_folder"):
        write(some_rows(), budget_bytes=0, spill_folder=tmp_path / "missing")


FULL = """
import sys
import pyarrow as pa
from minitrain.data.processes.shared import SharedTable
from minitrain.exceptions import DataError
import os

tables = [pa.table({"a": list(range(100_000))})] * 100
try:
    SharedTable.write(tables, budget_bytes=1 << 20, spill_folder=sys.argv[1])
except DataError as error:
    print(error)
free = os.statvfs(sys.argv[1])
print("free", free.f_bfree == free.f_blocks)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_spill_folder_is_said_with_what_to_do_and_is_empty_afterwards(spill_folder):
    mount = f"mount -t tmpfs -o size=4m tmpfs {spill_folder} && exec {sys.executable} -c '{FULL}' "
    run = ["unshare", "-m", "bash", "-c", mount.replace("\n'", "'") + str(spill_folder)]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=40, check=False)
    assert f"the spill folder {spill_folder} is full" in ended.stdout, ended.stderr
    assert "DataContext.get_current().spill_folder = " in ended.stdout
    assert "free True" in ended.stdout


# ------------------------------------------------------------------ other processes
READ = """
import pickle, sys
shared = pickle.load(open(sys.argv[1], "rb"))
try:
    print("sum", sum(shared.table()["number"].to_pylist()), flush=True)
except Exception as error:
    print(type(error).__name__, error, shared.reachable(), flush=True)
if sys.stdin.readline():
    again = pickle.loads(pickle.dumps(shared))
    print("again", sum(again.table()["number"].to_pylist()), flush=True)
"""


@LONG
@pytest.mark.parametrize("budget_bytes", [64 * MIB, 0], ids=["memory", "file"])
def test_another_process_maps_it_and_keeps_it_when_the_first_one_lets_go(tmp_path, budget_bytes):
    shared = write(some_rows(), budget_bytes=budget_bytes, spill_folder=tmp_path)
    (tmp_path / "reference").write_bytes(pickle.dumps(shared))
    with subprocess.Popen(
        [sys.executable, "-c", READ, str(tmp_path / "reference")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout.readline() == "sum 499500\n"
        shared.close()
        out, _ = reader.communicate("go on\n", timeout=20)
        assert out == "again 499500\n"


OWN = """
import pickle, signal, sys
import numpy as np, pyarrow as pa
from minitrain.data.processes.shared import SharedTable
mib = 1 << 20
columns = [pa.table({"number": np.ones(mib)})] * 16
owned = [
    SharedTable.write(columns, budget_bytes=budget, spill_folder=sys.argv[1])
    for budget in (1 << 30, 0)
]
open(sys.argv[2], "wb").write(pickle.dumps(owned))
print("written", [shared.spilled for shared in owned], flush=True)
signal.pause()
"""


@pytest.mark.campaign
def test_nothing_is_left_of_an_owner_that_was_killed(start_script, spill_folder, tmp_path):
    script = start_script(OWN, str(spill_folder), str(tmp_path / "references"))
    script.wait_for("written [False, True]")
    assert list(spill_folder.iterdir()) == []
    owned = pickle.loads((tmp_path / "references").read_bytes())
    inodes = {shared._place.inode for shared in owned}
    shared_before = memory_of_the_machine()
    free_before = free_bytes(spill_folder)
    script.process.kill()
    script.wait()
    for shared in owned:
        assert not shared.reachable()
        with pytest.raises(DataError, match=r"process \d+, which held it, has ended; materialize"):
            shared.table()
    assert list(spill_folder.iterdir()) == []
    assert not inodes & open_inodes()
    # Half, because other processes use this machine too.
    wait_until(lambda: shared_before - memory_of_the_machine() > 64 * MIB)
    wait_until(lambda: free_bytes(spill_folder) - free_before > 64 * MIB)


def memory_of_the_machine():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Shmem:"))


def free_bytes(folder):
    status = os.statvfs(folder)
    return status.f_bfree * status.f_frsize


def open_inodes():
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found.add(path.stat().st_ino)
        except OSError:
            continue
    return found


def wait_until(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@LONG
def test_a_number_that_means_another_file_by_now_is_not_opened(tmp_path):
    shared = write(some_rows())
    reference = pickle.dumps(shared)
    number = shared._descriptor
    shared.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.dup2(other, number)
    with pytest.raises(DataError, match="has closed it"):
        pickle.loads(reference).table()
    for descriptor in {other, number}:
        os.close(descriptor)


@LONG
def test_a_reference_from_another_host_is_refused(tmp_path, monkeypatch):
    shared = write(some_rows())
    reference = pickle.loads(pickle.dumps(shared))
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr("minitrain.data.processes.shared._BOOT_ID", tmp_path / "boot_id")
    with pytest.raises(DataError, match="on another host"):
        reference.table()
    shared.close()


@LONG
def test_threads_may_map_it_at_once():
    shared = write(some_rows())
    reference = pickle.loads(pickle.dumps(shared))
    start = threading.Barrier(4)
    sums = []

    def read():
        start.wait()
        sums.append(sum(reference.table()["number"].to_pylist()))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [499_500] * 4
    shared.close()
    reference.close()


# ------------------------------------------------------------------ once per host
ASK = """
import os, sys
from pathlib import Path
import pyarrow as pa
from minitrain.data.processes.shared import SharedTable, once_per_host

folder = Path(sys.argv[1])

def make():
    with open(folder / "made", "a") as made:
        made.write(f"{os.getpid()}\\n")
    print("making", flush=True)
    if "wait" in sys.argv:
        sys.stdin.readline()
    tables = [pa.table({"number": [1, 2, 3]})]
    return SharedTable.write(tables, budget_bytes=1 << 20, spill_folder=None)

print("ready", flush=True)
shared = once_per_host("a dataset", folder, make)
print("sum", sum(shared.table()["number"].to_pylist()), flush=True)
sys.stdin.readline()
"""


class Asker:
    def __init__(self, folder, *args):
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASK, str(folder), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self, word):
        while word not in (line := self.process.stdout.readline()):
            assert line, f"it ended without {word!r}"

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def ask(tmp_path):
    askers = []

    def start(*args):
        askers.append(Asker(tmp_path, *args))
        return askers[-1]

    yield start
    for asker in askers:
        asker.kill()


def makers(folder):
    return [int(line) for line in (folder / "made").read_text().split()]


@LONG
def test_of_processes_that_race_one_makes_it_and_all_have_it(ask, tmp_path):
    askers = [ask() for _ in range(4)]
    for asker in askers:
        asker.says("sum 6")
    assert len(makers(tmp_path)) == 1


@LONG
def test_when_the_maker_is_killed_in_the_middle_the_next_one_makes_it(ask, tmp_path):
    first = ask("wait")
    first.says("making")
    second = ask()
    second.says("ready")
    first.kill()
    second.says("sum 6")
    assert makers(tmp_path) == [first.process.pid, second.process.pid]


@LONG
def test_when_the_maker_has_gone_the_next_one_makes_it(ask, tmp_path):
    first, second = ask(), None
    first.says("sum 6")
    first.kill()
    second = ask()
    second.says("sum 6")
    assert makers(tmp_path) == [first.process.pid, second.process.pid]


@LONG
def test_who_asks_with_another_key_gets_something_else(tmp_path):
    ones = once_per_host("a", tmp_path, lambda: write(some_rows(1)))
    twos = once_per_host("b", tmp_path, lambda: write(some_rows(2)))
    again = once_per_host("a", tmp_path, lambda: pytest.fail("it is there"))
    assert [ones.rows, twos.rows, again.rows] == [1, 2, 1]
    assert again.table().equals(some_rows(1))
    for shared in (ones, twos, again):
        shared.close()


@LONG
def test_after_an_error_the_next_one_makes_it(tmp_path):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        once_per_host("a", tmp_path, fail)
    shared = once_per_host("a", tmp_path, lambda: write(some_rows(1)))
    assert shared.rows == 1
    shared.close()


@LONG
@pytest.mark.parametrize("rest", ["{", "[]", '{"place": {}}', "null"])
def test_what_a_killed_process_has_half_written_is_ignored(tmp_path, rest):
    once_per_host("a", tmp_path, lambda: write(some_rows(1))).close()
    (file,) = tmp_path.glob("*.shared")
    file.write_text(rest)
    shared = once_per_host("a", tmp_path, lambda: write(some_rows(2)))
    assert shared.rows == 2
    shared.close()
