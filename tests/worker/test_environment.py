"""A worker's environment: the driver's, and what torchrun gives its workers."""

from __future__ import annotations

import pytest

from minitrain._env import THREADS_VARIABLE
from minitrain._wire.messages import Place, StartWorkers
from minitrain._worker.environment import own_devices, variables

ONE = Place(0, 1, 0, 1, 0)
SECOND_HOST = Place(
    rank=5, world_size=6, local_rank=1, local_world_size=2, node_rank=2, num_nodes=3
)


def order(environ=None, *, attempt=0, max_restarts=0):
    return StartWorkers(
        attempt=attempt,
        places=(ONE,),
        payload=b"",
        environ=environ or {},
        own_variables=frozenset(),
        sys_path=(),
        argv=(),
        working_dir="/",
        code_from="",
        log_dir="/",
        console_ranks=frozenset(),
        cpus_per_worker=None,
        store_address="10.0.0.1",
        store_port=12345,
        run_id="abc",
        max_restarts=max_restarts,
    )


def made(environ=None, place=ONE, *, interface=None, threads=1, **settings):
    return variables(order(environ, **settings), place, interface, threads)


TORCHRUNS = {
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "12345",
    "RANK": "5",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "2",
    "GROUP_WORLD_SIZE": "3",
    "ROLE_NAME": "default",
    "ROLE_RANK": "5",
    "ROLE_WORLD_SIZE": "6",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "abc",
}


@pytest.mark.parametrize(
    "driver", [{}, dict.fromkeys(TORCHRUNS, "driver's")], ids=["fresh", "a worker itself"]
)
def test_torchruns_variables_say_where_this_worker_stands(driver):
    environ = made(driver, SECOND_HOST, attempt=2, max_restarts=3)
    assert {name: environ.get(name) for name in TORCHRUNS} == TORCHRUNS


def test_everything_is_text():
    assert all(
        isinstance(name, str) and isinstance(value, str)
        for name, value in made(place=SECOND_HOST, interface="lo").items()
    )


def test_the_drivers_environment_is_the_workers():
    made_of = {"PATH": "/bin", "HF_HOME": "/models", "EMPTY": ""}
    assert made_of.items() <= made(made_of).items()


def test_the_driver_keeps_its_own():
    environ = {"RANK": "7"}
    made(environ)
    assert environ == {"RANK": "7"}


@pytest.mark.parametrize("threads", [1, 4])
def test_the_threads_are_said_unless_the_user_said_otherwise(threads):
    assert made(threads=threads)["OMP_NUM_THREADS"] == str(threads)
    assert made({"OMP_NUM_THREADS": "3"}, threads=threads)["OMP_NUM_THREADS"] == "3"


def test_whose_threads_they_are_is_said():
    assert made(threads=4)[THREADS_VARIABLE] == "4"
    assert THREADS_VARIABLE not in made({"OMP_NUM_THREADS": "4"}, threads=4)


@pytest.mark.parametrize("name", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_the_interface_to_the_store_is_named_unless_the_user_named_one(name):
    assert made(interface="eth0")[name] == "eth0"
    assert made({name: "ib0"}, interface="eth0")[name] == "ib0"
    assert name not in made(interface=None)


def test_workers_of_a_host_see_the_gpus_of_all_of_them():
    place = Place(1, 2, 1, 2, 0, gpus=("5",), visible_gpus=("3", "5"))
    environ = {"CUDA_VISIBLE_DEVICES": "3,4,5,6"}
    assert made(environ, place)["CUDA_VISIBLE_DEVICES"] == "3,5"


@pytest.mark.parametrize("environ", [{}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_without_gpus_what_the_user_said_of_them_stays(environ):
    assert made(environ).get("CUDA_VISIBLE_DEVICES") == environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("own", "union", "expected"),
    [
        ((), (), ()),
        (("0",), ("0", "1"), (0,)),
        (("5",), ("3", "5"), (1,)),
        (("2", "3"), ("0", "1", "2", "3"), (2, 3)),
        (("GPU-bb",), ("GPU-aa", "GPU-bb"), (1,)),
    ],
)
def test_a_worker_knows_its_gpus_by_their_place_among_the_visible(own, union, expected):
    assert own_devices(Place(0, 1, 0, 1, 0, gpus=own, visible_gpus=union)) == expected
