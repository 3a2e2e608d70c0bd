"""A framework is added from outside, through Backend and BackendConfig alone."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

import pytest

import minitrain
from minitrain import Backend, BackendConfig, ScalingConfig
from minitrain.exceptions import ControllerError, WorkerGroupError
from minitrain.trainer import DataParallelTrainer

calls: list[str] = []


@dataclass
class OutsideConfig(BackendConfig):
    fails_in: str = ""
    dies_in: str = ""

    @property
    def backend_cls(self):
        return OutsideBackend

    @property
    def train_func_context(self):
        @contextlib.contextmanager
        def around():
            os.environ["AROUND"] = "yes"
            yield

        return around


class OutsideBackend(Backend):
    def on_start(self, worker_group, backend_config):
        self._hook("on_start", worker_group, backend_config)
        ranks = worker_group.execute(lambda: minitrain.get_context().get_world_rank())
        assert ranks == list(range(len(worker_group)))
        port = worker_group.execute_single(0, lambda: 1234)
        worker_group.execute(_remember, port=port)
        assert worker_group.get_resources_per_worker() == {"CPU": 1}

    def on_training_start(self, worker_group, backend_config):
        self._hook("on_training_start", worker_group, backend_config)

    def on_shutdown(self, worker_group, backend_config):
        self._hook("on_shutdown", worker_group, backend_config)
        worker_group.execute(_remember, port=0)

    def _hook(self, name, worker_group, config):
        calls.append(name)
        if config.fails_in == name:
            worker_group.execute(_fail)
        if config.dies_in == name:
            worker_group.execute(os.kill, 0, signal.SIGKILL)


def _remember(port):
    os.environ["PORT_OF_BACKEND"] = str(port)


def _fail():
    raise LookupError("the framework says no")


def run(function, **config):
    calls.clear()
    return DataParallelTrainer(
        function,
        backend_config=OutsideConfig(**config),
        scaling_config=ScalingConfig(num_workers=2),
    ).fit()


def test_hooks_run_in_order_and_reach_every_worker():
    result = run(lambda: (os.environ["PORT_OF_BACKEND"], os.environ["AROUND"]))
    assert result.return_value == ("1234", "yes")
    assert calls == ["on_start", "on_training_start", "on_shutdown"]


def test_a_hook_that_raises_fails_the_run_with_the_frameworks_words():
    with pytest.raises(ControllerError, match="the framework says no") as caught:
        run(lambda: None, fails_in="on_training_start")
    assert isinstance(caught.value.__cause__, LookupError)
    assert calls[-1] == "on_shutdown"


def test_a_worker_that_dies_while_the_backend_starts_is_a_workers_failure():
    with pytest.raises(WorkerGroupError, match="was killed by SIGKILL"):
        run(lambda: None, dies_in="on_start")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shutdown_that_fails_is_told_and_does_not_spoil_the_result(num_workers, caplog):
    class Broken(Backend):
        def on_shutdown(self, worker_group, backend_config):
            raise RuntimeError("cannot end")

    class BrokenConfig(BackendConfig):
        backend_cls = Broken

    with caplog.at_level("WARNING", logger="minitrain"):
        result = DataParallelTrainer(
            lambda: "fine",
            backend_config=BrokenConfig(),
            scaling_config=ScalingConfig(num_workers=num_workers),
        ).fit()
    assert result.return_value == "fine"
    assert "Broken.on_shutdown raised RuntimeError: cannot end" in caplog.text


def test_a_failed_train_function_still_shuts_the_backend_down():
    def train():
        raise ValueError("no")

    with pytest.raises(WorkerGroupError, match="ValueError: no"):
        run(train)
    assert calls == ["on_start", "on_training_start", "on_shutdown"]


def test_report_in_a_process_forked_by_a_worker_is_refused():
    def train():
        child = os.fork()
        if child == 0:
            try:
                minitrain.report({"x": 1})
            except minitrain.exceptions.NotInTrainingError:
                os._exit(42)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert run(train).return_value == 42
