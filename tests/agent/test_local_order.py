"""An order to start workers, made into one for a host that is not the driver's."""

from __future__ import annotations

import os
import sys

import pytest

from minitrain._agent.local_order import LocalOrder
from minitrain._hosts.code import pack
from minitrain._wire.messages import StartWorkers

ORDER = StartWorkers(
    attempt=0,
    places=(),
    payload=b"",
    environ={"SENT": "1"},
    own_variables=frozenset(),
    sys_path=("/home/me/project", "/home/me/project/lib", "/shared/lib"),
    argv=("train.py",),
    working_dir="",
    code_from="",
    log_dir="",
    console_ranks=frozenset(),
    cpus_per_worker=None,
    store_address="127.0.0.1",
    store_port=1,
    run_id="id",
    max_restarts=0,
)


def changed(**fields):
    return StartWorkers(**({name: getattr(ORDER, name) for name in ORDER.__slots__} | fields))


def test_on_the_drivers_host_an_order_is_left_as_it_is(tmp_path):
    assert LocalOrder(tmp_path, elsewhere=False).here(ORDER) is ORDER


def test_elsewhere_what_was_sent_comes_on_top_of_the_hosts_own_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THE_HOST", "1")
    monkeypatch.setenv("SENT", "0")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # what an agent has for itself
    environ = LocalOrder(tmp_path, elsewhere=True).here(ORDER).environ
    assert (environ["OF_THE_HOST"], environ["SENT"]) == ("1", "1")
    assert "OPENBLAS_NUM_THREADS" not in environ


def test_what_crossed_when_the_agent_started_may_be_taken_back(tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth9")
    monkeypatch.setenv("MINITRAIN_CROSSED", "PATH,NCCL_SOCKET_IFNAME")
    environ = LocalOrder(tmp_path, elsewhere=True).here(ORDER).environ
    assert "NCCL_SOCKET_IFNAME" not in environ
    assert "MINITRAIN_CROSSED" not in environ


def test_elsewhere_the_hosts_own_search_path_comes_after_the_drivers(tmp_path):
    found = LocalOrder(tmp_path, elsewhere=True).here(ORDER).sys_path
    assert found[:3] == ORDER.sys_path
    assert set(sys.path) <= set(found)


def test_code_that_was_sent_is_where_the_agent_put_it(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "model.py").write_text("x = 1")
    orders = LocalOrder(tmp_path, elsewhere=True)
    orders.code = pack(project)
    order = orders.here(
        changed(
            code_from=str(project), sys_path=(str(project), "/shared"), working_dir=str(project)
        )
    )
    orders.make_folders(order)
    code = order.working_dir
    assert order.sys_path[:2] == (code, "/shared")
    assert os.listdir(code) == ["model.py"]


def test_a_runs_directory_below_the_code_is_where_the_host_sees_it(tmp_path):
    orders = LocalOrder(tmp_path, elsewhere=True)
    order = orders.here(changed(code_from="/shared/me", working_dir="/shared/me/runs/a/artifacts"))
    assert order.working_dir == "/shared/me/runs/a/artifacts"


def test_workers_start_in_a_folder_of_the_agents_unless_there_is_another(tmp_path):
    orders = LocalOrder(tmp_path, elsewhere=True)
    order = orders.here(ORDER)
    orders.make_folders(order)
    assert os.path.isdir(order.working_dir)
    assert order.working_dir.startswith(str(tmp_path))


def test_a_directory_that_is_not_there_is_named_with_what_to_do(tmp_path):
    orders = LocalOrder(tmp_path, elsewhere=True)
    order = orders.here(changed(working_dir="/no/such/folder"))
    with pytest.raises(FileNotFoundError, match=r"/no/such/folder does not exist.*--sync-code"):
        orders.make_folders(order)
