"""Processes that call a function: in order, whatever it does, and gone when they should be."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pyarrow as pa
import pytest

from minitrain._env import THREADS_VARIABLE
from minitrain._os.processes import is_alive
from minitrain.data.processes.pool import Pool, _environment
from minitrain.exceptions import DataError, RemoteError

MIB = 1 << 20

LONG = pytest.mark.campaign


@pytest.fixture
def make_pool():
    pools = []

    def make(function, processes=2):
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        pickled = cloudpickle.dumps(function)
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        pools.append(Pool(pickled, processes, "map_batches(f)"))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(autouse=True)
def no_descriptor_stays(make_pool):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    # Pools may still be open here: what is left of their results must not be. A call that nobody
    # waits for any more may still be under way.
    wait_until(lambda: memories() == (0, 0))
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * 2


def memories():
    """Return how many descriptors and mappings of shared memory this process has."""
    links = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            links.append(os.readlink(entry.path))
        except FileNotFoundError:
            continue
    maps = Path("/proc/self/maps").read_text().splitlines()
    name = "memfd:minitrain-data"
    return sum(name in link for link in links), sum(name in line for line in maps)


def tables(count, rows=3):
    return [
        pa.table({"number": list(range(index * rows, (index + 1) * rows))})
        for index in range(count)
    ]


def numbers(results):
    return [number for table in results for number in table["number"].to_pylist()]


def same(table):
    yield table


def pids(table):
    yield pa.table({"pid": [os.getpid()]})


def children():
    """Return the processes of pools; an agent that another test has left idle is none."""
    return {child.pid for child in psutil.Process().children() if is_of_a_pool(child)}


def is_of_a_pool(child):
    try:
        return "minitrain.data.processes.process" in child.cmdline()
    except psutil.NoSuchProcess:
        return False


# ------------------------------------------------------------------ results
def test_results_come_in_the_order_of_their_tables(make_pool):
    def slow_first(table):
        if table["number"][0].as_py() == 0:
            while not os.path.exists(flag):
                time.sleep(0.01)
        if table["number"][0].as_py() == 3:
            open(flag, "w").close()
        yield table

    flag = os.path.join(os.environ["TMPDIR"], f"pytest-of-flag-{os.getpid()}")
    try:
        assert numbers(make_pool(slow_first).map(tables(20))) == list(range(60))
    finally:
        os.unlink(flag)


def test_all_processes_work_and_none_of_them_is_this_one(make_pool):
    def together(table):
        open(os.path.join(folder, str(os.getpid())), "w").close()
        deadline_s = time.monotonic() + 20
        while len(os.listdir(folder)) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.005)
        yield pa.table({"pid": [os.getpid()]})

    folder = os.path.join(os.environ["TMPDIR"], f"pytest-of-together-{os.getpid()}")
    os.mkdir(folder)
    results = pa.concat_tables(make_pool(together).map(tables(2)))
    assert len(set(results["pid"].to_pylist())) == 2
    assert set(results["pid"].to_pylist()) <= children()


def test_a_generator_may_yield_any_number_of_tables(make_pool):
    def repeat(table):
        for row in range(table.num_rows):
            for _ in range(row):
                yield table.slice(row, 1)

    results = list(make_pool(repeat).map(tables(2)))
    assert [table.num_rows for table in results] == [1] * 6
    assert numbers(results) == [1, 2, 2, 4, 5, 5]


@LONG
def test_more_results_than_a_socket_holds_at_a_time(make_pool):
    def many(table):
        for index in range(3000):
            yield pa.table({"number": [index]})

    assert numbers(make_pool(many, 1).map(tables(1))) == list(range(3000))


@LONG
def test_lambdas_and_what_they_capture_travel(make_pool):
    factor = 10
    pool = make_pool(
        lambda table: iter([pa.table({"number": [factor * table["number"][0].as_py()]})])
    )
    assert numbers(pool.map(tables(3))) == [0, 30, 60]


class Counting:
    """Keeps state: how often it was called in its process."""

    def __init__(self, mark):
        self.mark = mark
        self.calls = None

    def __call__(self, table):
        if self.calls is None:
            self.calls = 0
            with open(self.mark, "a") as made:
                made.write(f"{os.getpid()}\n")
        self.calls += 1
        yield pa.table({"calls": [self.calls]})


def test_an_object_is_loaded_once_per_process_and_keeps_its_state(make_pool, tmp_path):
    pool = make_pool(Counting(str(tmp_path / "made")), 1)
    counts = [table["calls"][0].as_py() for table in pool.map(tables(5))]
    counts += [table["calls"][0].as_py() for table in pool.map(tables(2))]
    assert counts == [1, 2, 3, 4, 5, 6, 7]
    assert len((tmp_path / "made").read_text().split()) == 1


MAIN = """
import cloudpickle, os, sys
import pyarrow as pa
from minitrain.data.processes.pool import Pool
import beside

FACTOR = 7

def scale(table):
    print("printed by", os.getpid())
    yield pa.table({
        "number": [FACTOR * beside.PLUS + table["number"][0].as_py()],
        "cwd": [os.getcwd()],
        "path": [sys.path],
        "variables": [[os.environ.get(name, "") for name in ("PYTHONPATH", "A_VARIABLE")]],
        "threads": [pa.cpu_count()],
    })

sys.path.append("/another/place")
os.environ["A_VARIABLE"] = "set"
os.chdir(sys.argv[1])
pool = Pool(cloudpickle.dumps(scale), 1, "scale")
(result,) = pool.map([pa.table({"number": [1]})])
assert result["number"].to_pylist() == [15], result
assert result["cwd"].to_pylist() == [os.getcwd()]
assert result["path"].to_pylist() == [sys.path]
assert result["variables"].to_pylist() == [[os.environ.get("PYTHONPATH", ""), "set"]]
assert result["threads"].to_pylist() == [1]
print("done by", os.getpid(), flush=True)
if "leave" not in sys.argv:
    pool.close()
"""


@LONG
@pytest.mark.parametrize("end", ["close", "leave"])
def test_a_process_is_as_its_owner_a_script(start_script, all_gone, tmp_path, end):
    (tmp_path / "beside.py").write_text("PLUS = 2")
    (tmp_path / "elsewhere").mkdir()
    script = start_script(MAIN, str(tmp_path / "elsewhere"), end)
    assert script.wait() == 0, script.output
    lines = script.output.splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == ["printed by", "done by"], script.output
    all_gone([int(line.split()[-1]) for line in lines])


def test_tensors_and_types_of_their_own_survive(make_pool):
    class Degrees(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.float64(), "tests.degrees")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type, serialized):
            return cls()

    images = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    pa.register_extension_type(Degrees())
    try:
        table = pa.table(
            {
                "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
                "angle": pa.ExtensionArray.from_storage(Degrees(), pa.array([1.0, 2.0, None])),
            }
        ).replace_schema_metadata({"made by": "tests"})
        (result,) = make_pool(same, 1).map([table])
        assert result.equals(table, check_metadata=True)
        assert isinstance(result.schema.field("angle").type, Degrees)
        del result
    finally:
        pa.unregister_extension_type("tests.degrees")


@LONG
def test_a_large_table_is_mapped_on_its_way_back(make_pool):
    table = pa.table({"number": np.arange(300 * MIB // 8)})
    pool = make_pool(same, 1)
    before = pa.total_allocated_bytes()
    (result,) = pool.map([table])
    assert pa.total_allocated_bytes() - before < MIB
    assert result.equals(table)
    del result


@LONG
def test_results_take_no_memory_when_they_were_dropped(make_pool):
    pool = make_pool(same, 1)
    most = 0
    for result in pool.map(tables(1, rows=MIB) * 30):
        del result
        most = max(most, memories()[1])
    assert most <= 3, "the results in flight"
    assert memories() == (0, 0)
    (child,) = children()
    # A process is a little behind: it lets go of the last table after it has told the end of it.
    wait_until(lambda: "minitrain-data" not in Path(f"/proc/{child}/maps").read_text())


@LONG
def test_only_a_table_more_than_there_are_processes_is_taken_in_advance(make_pool):
    taken = itertools.count()
    results = make_pool(same).map(table for table, _ in zip(tables(10), taken, strict=False))
    next(results)
    assert next(taken) == 3
    results.close()


def test_threads_may_use_it_at_once_and_each_gets_its_own(make_pool):
    pool = make_pool(same)
    wanted = tables(40)
    found = {}

    def read(index):
        found[index] = numbers(pool.map(wanted[index * 10 : (index + 1) * 10]))

    threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {index: list(range(index * 30, (index + 1) * 30)) for index in range(4)}


@LONG
def test_who_does_not_take_results_keeps_no_process_from_others(make_pool):
    def many(table):
        for _ in range(500):
            yield table

    pool = make_pool(many, 1)
    waiting = pool.map(tables(2))
    next(waiting)
    assert len(list(pool.map(tables(2)))) == 1000
    assert len(list(waiting)) == 999


def test_an_iteration_that_was_left_disturbs_no_other(make_pool):
    pool = make_pool(same)
    for _ in range(10):
        left = pool.map(tables(20))
        next(left)
        left.close()
        left = pool.map(tables(20))
        next(left)
        del left
    assert numbers(pool.map(tables(3))) == list(range(9))


@LONG
def test_calls_that_nobody_waits_for_any_more_are_not_made(make_pool, tmp_path):
    def wait(table):
        with open(tmp_path / "calls", "a") as calls:
            calls.write(f"{table['number'][0].as_py()}\n")
        while not (tmp_path / "go on").exists():
            time.sleep(0.005)
        yield table

    def failing():
        yield third
        raise LookupError

    first, second, third = tables(3)
    (tmp_path / "calls").touch()
    pool = make_pool(wait, 1)
    reader = threading.Thread(target=lambda: list(pool.map([first])))
    reader.start()
    wait_until(lambda: (tmp_path / "calls").read_text() == "0\n")
    with pytest.raises(LookupError):
        list(pool.map(failing()))
    (tmp_path / "go on").touch()
    list(pool.map([second]))
    reader.join()
    assert (tmp_path / "calls").read_text() == "0\n3\n"


# ------------------------------------------------------------------ exceptions
class CustomError(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code

    def __reduce__(self):
        return type(self), (self.code, str(self))


def test_an_exception_is_raised_here_with_the_frames_over_there(make_pool):
    def innermost(table):
        raise ValueError("the third is bad")

    def fail_at_third(table):
        if table["number"][0].as_py() == 6:
            innermost(table)
        yield table

    results = make_pool(fail_at_third).map(tables(5))
    assert numbers([next(results), next(results)]) == list(range(6))
    with pytest.raises(ValueError, match="the third is bad") as caught:
        next(results)
    (note,) = caught.value.__notes__
    assert "In process" in note
    assert "in fail_at_third" in note
    assert note.endswith('raise ValueError("the third is bad")')
    assert "process.py" not in note
    assert next(results, None) is None


@LONG
def test_after_an_exception_the_processes_are_the_same(make_pool):
    def odd(table):
        if table["number"][0].as_py() % 2:
            yield table.slice(0, 1)
            raise ValueError("odd")
        yield pa.table({"number": [os.getpid()]})

    pool = make_pool(odd, 1)
    (before,) = numbers(pool.map(tables(1)))
    with pytest.raises(ValueError, match="odd"):
        list(pool.map(tables(2)))
    assert numbers(pool.map(tables(1))) == [before]


@LONG
def test_an_exception_keeps_what_it_was_raised_from(make_pool):
    def fail(table):
        try:
            {}["missing"]
        except KeyError as error:
            raise CustomError(7, "as it is") from error
        yield table

    with pytest.raises(Exception, match="as it is") as caught:
        list(make_pool(fail, 1).map(tables(1)))
    assert type(caught.value).__name__ == "CustomError"
    assert caught.value.code == 7
    assert isinstance(caught.value.__cause__, KeyError)
    assert '{}["missing"]' in caught.value.__cause__.__notes__[0]


@LONG
def test_an_exception_that_cannot_travel_is_described(make_pool):
    def fail(table):
        class StubbornError(Exception):
            def __reduce__(self):
                raise TypeError("no")

        raise StubbornError("here")
        yield table

    with pytest.raises(RemoteError, match=r"StubbornError: here") as caught:
        list(make_pool(fail, 1).map(tables(1)))
    assert "in fail" in caught.value.__notes__[0]


@LONG
def test_a_function_that_exits_does_not_end_its_owner(make_pool):
    with pytest.raises(RemoteError, match="SystemExit: 3"):
        list(make_pool(lambda table: sys.exit(3), 1).map(tables(1)))


@LONG
def test_what_is_no_table_is_an_error(make_pool):
    with pytest.raises(AttributeError, match="schema"):
        list(make_pool(lambda table: iter([5]), 1).map(tables(1)))


def test_a_function_that_cannot_be_loaded_is_said_so(make_pool):
    class Unloadable:
        def __reduce__(self):
            return eval, ("1 / 0",)

    pool = make_pool(Unloadable())
    for _ in range(2):
        with pytest.raises(DataError, match=r"map_batches\(f\).*cannot be loaded.*zero") as caught:
            list(pool.map(tables(1)))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_of_who_makes_the_tables_passes(make_pool):
    def failing():
        yield from tables(4)
        raise LookupError

    with pytest.raises(LookupError):
        list(make_pool(same).map(failing()))


# ------------------------------------------------------------------ deaths
@pytest.mark.parametrize(
    ("end", "how"),
    [
        pytest.param(lambda: os._exit(3), "exited with code 3", marks=LONG, id="exit"),
        pytest.param(
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            r"was killed by SIGKILL \(often the out",
            id="kill",
        ),
        pytest.param(
            lambda: os.kill(os.getpid(), signal.SIGSEGV),
            r"was killed by SIGSEGV",
            marks=LONG,
            id="crash",
        ),
        pytest.param(lambda: os._exit(0), "exited with code 0", marks=LONG, id="exit 0"),
    ],
)
def test_a_process_that_dies_is_an_error_that_says_where_and_how(
    make_pool, end, how, capfd, monkeypatch
):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)

    def die_at_third(table):
        if table["number"][0].as_py() == 6:
            print("last words")
            end()
        yield table

    pool = make_pool(die_at_third)
    results = pool.map(tables(5), "/data/a.parquet, row group 3")
    assert numbers([next(results), next(results)]) == list(range(6))
    where = r"table 2 \(rows 6 to 9\) of /data/a.parquet, row group 3"
    with pytest.raises(DataError, match=rf"map_batches\(f\): process \d+.*{how}.*{where}"):
        next(results)
    assert "last words" in capfd.readouterr().out
    assert numbers(pool.map(tables(2))) == list(range(6)), "another one has taken its place"


def test_a_process_that_is_killed_while_it_waits_is_replaced(make_pool):
    pool = make_pool(pids, 1)
    (first,) = pool.map(tables(1))
    os.kill(first["pid"][0].as_py(), signal.SIGKILL)
    os.waitid(os.P_PID, first["pid"][0].as_py(), os.WEXITED | os.WNOWAIT)
    (second,) = pool.map(tables(1))
    assert first["pid"] != second["pid"]


@LONG
def test_a_fork_of_a_process_does_not_hide_its_end(make_pool, tmp_path):
    def fork_and_die(table):
        def fork():
            pid = os.fork()
            if pid == 0:
                while True:
                    time.sleep(1)
            (tmp_path / "fork").write_text(str(pid))

        # One that is forked by the main thread would end with it anyway.
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        os._exit(3)

    with pytest.raises(DataError, match="exited with code 3"):
        list(make_pool(fork_and_die, 1).map(tables(1)))
    wait_until(lambda: not is_alive(int((tmp_path / "fork").read_text())))


@LONG
def test_a_process_that_cannot_be_started_is_said_so(make_pool, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DataError, match=r"map_batches\(f\): no process .*/nowhere/python"):
        list(make_pool(same).map(tables(1)))


@LONG
def test_no_process_is_left_as_a_zombie(make_pool):
    pool = make_pool(lambda table: os._exit(1))
    for _ in range(3):
        with pytest.raises(DataError):
            list(pool.map(tables(1)))
    pool.close()
    assert children() == set()


def wait_until(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


HANG = """
import cloudpickle, ctypes, os, subprocess, sys, threading
import pyarrow as pa
from minitrain.data.processes.pool import Pool

def hang(table):
    if how == "native":  # holds the interpreter's lock for ever
        print("works", os.getpid(), flush=True)
        ctypes.PyDLL(None).pause()
    if how == "careless":  # the kernel no longer kills it
        ctypes.CDLL(None).prctl(1, 0)
    if how == "fork" and os.fork():
        print("works", os.getpid(), flush=True)
    print("works", os.getpid(), flush=True)
    while True:
        try:
            threading.Event().wait()
        except BaseException:
            pass
    yield table

how = sys.argv[1]
pool = Pool(cloudpickle.dumps(hang), 2, "hang")
if how == "idle":
    print("works", flush=True)
    threading.Event().wait()
if how == "owner forks":
    for _ in range(30):  # while processes are started; they keep the sockets open
        if os.fork() == 0:
            threading.Event().wait()
list(pool.map([pa.table({"number": [1]})] * 2))
"""


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("how", "number"),
    [
        pytest.param("python", 2, marks=LONG),
        ("native", 2),
        pytest.param("careless", 2, marks=LONG),
        pytest.param("fork", 4, marks=LONG),
        pytest.param("owner forks", 2, marks=LONG),
        ("idle", 1),
    ],
)
def test_processes_end_with_an_owner_that_was_killed(start_script, all_gone, how, number):
    script = start_script(HANG, how)
    wait_until(lambda: script.output.count("works") >= number)
    wait_until(lambda: len(script.descendants()) >= 2)
    pids = script.descendants()
    forks = [pid for pid in pids if command(pid) == command(script.process.pid)]
    script.process.kill()
    script.wait()
    workers = [pid for pid in pids if pid not in forks]
    all_gone(workers)
    for pid in forks:  # the owner's own forks are its own business
        os.kill(pid, signal.SIGKILL)
    all_gone(pids)


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


THREAD = """
import cloudpickle, threading
import pyarrow as pa
from minitrain.data.processes.pool import Pool

def use():
    global pool
    pool = Pool(cloudpickle.dumps(lambda table: iter([table])), 2, "f")
    list(pool.map([pa.table({"number": [1]})] * 2))

thread = threading.Thread(target=use)
thread.start()
thread.join()
print(len(list(pool.map([pa.table({"number": [1]})] * 9))), flush=True)
pool.close()
"""


@LONG
def test_the_thread_that_made_it_may_end_before_it(start_script):
    script = start_script(THREAD)
    assert script.wait() == 0
    assert script.output == "9\n"


FORK = """
import cloudpickle, os, sys, threading, time
import pyarrow as pa
from minitrain.data.processes.pool import Pool

folder = sys.argv[1]

def wait(table):
    open(os.path.join(folder, "began"), "w").close()
    while not os.path.exists(os.path.join(folder, "go on")):
        time.sleep(0.005)
    yield table

def use(who):
    print(who, len(list(pool.map(tables))), flush=True)

def fork(function):
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

def use_and_close():
    use("fork")
    pool.close()

tables = [pa.table({"number": [1]})] * 5
pool = Pool(cloudpickle.dumps(wait), 2, "f")
user = threading.Thread(target=use, args=("owner",))
user.start()
while not os.path.exists(os.path.join(folder, "began")):
    time.sleep(0.005)
fork(lambda: pool.close())
open(os.path.join(folder, "go on"), "w").close()
user.join()
fork(use_and_close)
use("owner")
pool.close()
"""


@LONG
def test_a_fork_of_the_owner_has_processes_of_its_own(start_script, tmp_path):
    script = start_script(FORK, str(tmp_path))
    assert script.wait() == 0, script.output
    assert script.output == "owner 5\nfork 5\nowner 5\n"


@LONG
def test_signals_to_everybody_are_the_owners_business(make_pool):
    pool = make_pool(pids, 1)
    (first,) = pool.map(tables(1))
    pid = first["pid"][0].as_py()
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, signum)
    (second,) = pool.map(tables(1))
    assert second["pid"][0].as_py() == pid


@LONG
def test_programs_of_the_function_can_be_terminated(make_pool):
    def terminate(table):
        with subprocess.Popen(["sleep", "100"]) as sleeper:
            sleeper.terminate()
        forked = os.fork()
        if forked == 0:
            while True:
                signal.pause()
        os.kill(forked, signal.SIGTERM)
        _, status = os.waitpid(forked, 0)
        yield pa.table({"number": [sleeper.returncode, -os.WTERMSIG(status)]})

    assert numbers(make_pool(terminate, 1).map(tables(1))) == [-15, -15]


# ------------------------------------------------------------------ closing
@LONG
def test_to_close_it_while_it_works_ends_everything_at_once(make_pool, tmp_path):
    def hang(table):
        child = subprocess.Popen(["sleep", "1000"])
        with open(tmp_path / "began", "a") as began:
            began.write(f"{os.getpid()} {child.pid}\n")
        while True:
            time.sleep(1)
        yield table

    (tmp_path / "began").touch()
    pool = make_pool(hang)
    caught = []

    def read():
        try:
            list(pool.map(tables(5)))
        except DataError as error:
            caught.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: (tmp_path / "began").read_text().count("\n") == 2)
    pool.close()
    reader.join(20)
    assert caught == ["map_batches(f): its pool of processes was closed while rows were read"]
    pids = [int(pid) for pid in (tmp_path / "began").read_text().split()]
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


@LONG
def test_a_process_that_waits_ends_in_good_order(make_pool, tmp_path):
    def leave_a_word(table):
        import atexit

        atexit.register(lambda: (tmp_path / "word").write_text("ended"))
        yield table

    pool = make_pool(leave_a_word, 1)
    list(pool.map(tables(1)))
    pool.close()
    assert (tmp_path / "word").read_text() == "ended"


def test_closed_it_refuses_and_may_be_closed_again(make_pool):
    pool = make_pool(same)
    results = pool.map(tables(10))
    next(results)
    pool.close()
    pool.close()
    with pytest.raises(DataError, match="was closed"):
        list(results)
    with pytest.raises(DataError, match="was closed"):
        list(pool.map(tables(1)))


@LONG
def test_closed_before_it_has_begun(make_pool):
    for _ in range(3):
        make_pool(same).close()


@LONG
def test_a_pool_that_nobody_holds_ends_by_itself():
    pool = Pool(cloudpickle.dumps(lambda table: iter([table])), 2, "f")
    list(pool.map(tables(2)))
    pids = children()
    assert len(pids) == 2
    del pool
    gc.collect()
    wait_until(lambda: not children() & pids)
    wait_until(lambda: not any("minitrain-pool" in t.name for t in threading.enumerate()))


@LONG
def test_it_works_where_there_is_no_memory_to_be_had(make_pool, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")

    def without(table):
        del os.memfd_create
        yield table
        yield table

    assert numbers(make_pool(without, 1).map(tables(1))) == [0, 1, 2] * 2


@pytest.mark.parametrize(
    ("set_here", "threads"),
    [
        ({}, ["1", "1", "1"]),
        ({"OMP_NUM_THREADS": "4"}, ["4", None, None]),  # the others follow it by themselves
        ({"MKL_NUM_THREADS": "4"}, ["1", "4", "1"]),
        ({"OMP_NUM_THREADS": "4", THREADS_VARIABLE: "4"}, ["1", "1", "1"]),
        ({"OMP_NUM_THREADS": "2", THREADS_VARIABLE: "4"}, ["2", None, None]),
    ],
    ids=["nothing", "users", "users for one library", "a worker's", "users in a worker"],
)
def test_a_process_computes_with_one_thread_unless_the_user_said_otherwise(
    monkeypatch, set_here, threads
):
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    for name in (*names, THREADS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_here.items():
        monkeypatch.setenv(name, value)
    environment = _environment()
    assert [environment.get(name) for name in names] == threads
