"""Bad input is refused with the field, the value and what is allowed; nothing is started."""

from __future__ import annotations

import functools
import logging
import math
import pickle
import re

import psutil
import pytest
from pyarrow.fs import LocalFileSystem

import minitrain
from minitrain import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    LaunchConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    SyncConfig,
    UserCallback,
    _env,
)
from minitrain.backend import BackendConfig
from minitrain.exceptions import ConfigurationError
from minitrain.trainer import BaseTrainer, DataParallelTrainer


@pytest.fixture(autouse=True)
def nothing_is_started():
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) == before


@pytest.fixture
def TorchConfig():  # noqa: N802 - the class's own name
    with _env.override("MINITRAIN_PRESTART", "0"):
        return minitrain.torch.TorchConfig


@pytest.fixture
def TorchTrainer():  # noqa: N802 - the class's own name
    with _env.override("MINITRAIN_PRESTART", "0"):
        return minitrain.torch.TorchTrainer


def refusal(make, *args, error=ConfigurationError, **kwargs):
    """Return the message with which a call is refused."""
    with pytest.raises(error) as caught:
        make(*args, **kwargs)
    return str(caught.value)


def test_a_refusal_is_a_value_error():
    with pytest.raises(ValueError, match="num_workers"):
        ScalingConfig(num_workers=-1)


# ------------------------------------------------------------------ ScalingConfig
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("num_workers", "2", "must be an int or a tuple of two ints"),
        ("num_workers", None, "must be an int or a tuple of two ints"),
        ("num_workers", (1, 2, 3), "must be an int or a tuple of two ints"),
        ("num_workers", (1,), "must be an int or a tuple of two ints"),
        ("num_workers", [1, 2], "must be an int or a tuple of two ints"),
        ("num_workers", (1, "2"), "must be an int or a tuple of two ints"),
        ("num_workers", 2.0, "must be an int or a tuple of two ints"),
        ("num_workers", True, "must be an int or a tuple of two ints"),
        ("num_workers", (True, 2), "must be an int or a tuple of two ints"),
        ("num_workers", -1, "cannot be negative"),
        ("num_workers", (-1, 2), "cannot be negative"),
        ("num_workers", (0, 2), "at least 1"),
        ("num_workers", (4, 2), "4 workers at least, but 2 at most"),
        ("use_gpu", "yes", "must be True or False"),
        ("use_gpu", 1, "must be True or False"),
        ("use_gpu", None, "must be True or False"),
        ("resources_per_worker", 4, 'must be a dict like {"CPU": 2}'),
        ("resources_per_worker", [("CPU", 2)], 'must be a dict like {"CPU": 2}'),
        ("resources_per_worker", {"CPU": -1}, "'CPU' must be a name with an amount >= 0"),
        ("resources_per_worker", {"CPU": "2"}, "'CPU' must be a name with an amount >= 0"),
        ("resources_per_worker", {"CPU": True}, "'CPU' must be a name with an amount >= 0"),
        ("resources_per_worker", {"CPU": math.nan}, "'CPU' must be a name with an amount >= 0"),
        ("resources_per_worker", {"CPU": math.inf}, "'CPU' must be a name with an amount >= 0"),
        ("resources_per_worker", {2: 1}, "2 must be a name with an amount >= 0"),
        ("resources_per_worker", {"cpu": 1}, "did you mean 'CPU'?"),
        ("resources_per_worker", {"CPUS": 1}, "did you mean 'CPU'?"),
        ("resources_per_worker", {"gpu": 1}, "did you mean 'GPU'?"),
        ("trainer_resources", {"CPU": -1}, "'CPU' must be a name with an amount >= 0"),
        ("trainer_resources", "CPU", 'must be a dict like {"CPU": 2}'),
        ("placement_strategy", "PACKED", "must be one of PACK, SPREAD"),
        ("placement_strategy", "pack", "must be one of PACK, SPREAD"),
        ("placement_strategy", ["PACK"], "must be one of PACK, SPREAD"),
        ("placement_strategy", None, "must be one of PACK, SPREAD"),
        ("accelerator_type", "A100", "needs use_gpu=True"),
    ],
)
def test_scaling_config_refuses(field, value, allowed):
    text = refusal(ScalingConfig, **{field: value})
    assert text.startswith(f"ScalingConfig({field})={value!r}: ")
    assert allowed in text


@pytest.mark.parametrize(
    ("use_gpu", "gpus", "allowed"),
    [
        (False, 1, "`use_gpu` is False but `GPU` was found: set use_gpu=True or remove `GPU`"),
        (False, 0.5, "`use_gpu` is False but `GPU` was found"),
        (True, 0, "`use_gpu` is True but `GPU` is 0"),
        (True, 1.5, "more than one `GPU` must be a whole number"),
        (True, -1, "'GPU' must be a name with an amount >= 0"),
    ],
)
def test_gpus_that_contradict_use_gpu_are_refused(use_gpu, gpus, allowed):
    text = refusal(ScalingConfig, use_gpu=use_gpu, resources_per_worker={"GPU": gpus})
    assert text.startswith(f"ScalingConfig(resources_per_worker)={{'GPU': {gpus!r}}}: ")
    assert allowed in text


def test_an_accelerator_type_that_is_no_text_is_refused():
    text = refusal(ScalingConfig, use_gpu=True, accelerator_type=100)
    assert text.startswith("ScalingConfig(accelerator_type)=100: ")
    assert "must be a part of a GPU's model name" in text


@pytest.mark.parametrize(
    ("config", "typo"),
    [
        (ScalingConfig, "num_worker"),
        (ScalingConfig, "use_tpu"),
        (RunConfig, "local_dir"),
        (CheckpointConfig, "keep"),
        (FailureConfig, "max_failure"),
        (SyncConfig, "upload_dir"),
        (SyncConfig, "syncer"),
        (DataConfig, "split"),
        (LoggingConfig, "level"),
    ],
)
def test_an_unknown_argument_is_named(config, typo):
    assert f"unexpected keyword argument '{typo}'" in refusal(config, error=TypeError, **{typo: 2})


@pytest.mark.parametrize(
    ("arguments", "cpus", "gpus", "others", "total"),
    [
        ({}, 1, 0, {}, {"CPU": 1}),
        ({"num_workers": 3}, 1, 0, {}, {"CPU": 3}),
        ({"num_workers": (1, 3)}, 1, 0, {}, {"CPU": 3}),
        ({"num_workers": 2, "use_gpu": True}, 0, 1, {}, {"GPU": 2}),
        ({"resources_per_worker": {"CPU": 4}, "num_workers": 2}, 4, 0, {}, {"CPU": 8}),
        ({"resources_per_worker": {"CPU": 0, "disk": 2}}, 0, 0, {"disk": 2}, {"disk": 2}),
        (
            {"use_gpu": True, "resources_per_worker": {"CPU": 2}, "num_workers": 2},
            2,
            1,
            {},
            {"CPU": 4, "GPU": 2},
        ),
        ({"use_gpu": True, "resources_per_worker": {"GPU": 0.5}}, 0, 0.5, {}, {"GPU": 0.5}),
        ({"resources_per_worker": {"GPU": 0, "CPU": 1}}, 1, 0, {}, {"CPU": 1}),
        ({"trainer_resources": {"CPU": 1}}, 1, 0, {}, {"CPU": 1}),
    ],
    ids=str,
)
def test_the_resources_of_a_worker(arguments, cpus, gpus, others, total):
    config = ScalingConfig(**arguments)
    assert config.num_cpus_per_worker == cpus
    assert config.num_gpus_per_worker == gpus
    assert config.additional_resources_per_worker == others
    assert config.total_resources == total


@pytest.mark.parametrize(
    ("num_workers", "least", "most", "elastic"),
    [(0, 0, 0, False), (3, 3, 3, False), ((1, 4), 1, 4, True), ((2, 2), 2, 2, True)],
)
def test_the_bounds_of_the_number_of_workers(num_workers, least, most, elastic):
    config = ScalingConfig(num_workers=num_workers)
    assert (config.min_workers, config.max_workers) == (least, most)
    assert config.elasticity_enabled is elastic


# ------------------------------------------------------------------ CheckpointConfig
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("num_to_keep", 0, "must be None or an integer >= 1"),
        ("num_to_keep", -1, "must be None or an integer >= 1"),
        ("num_to_keep", 1.5, "must be None or an integer >= 1"),
        ("num_to_keep", "2", "must be None or an integer >= 1"),
        ("num_to_keep", True, "must be None or an integer >= 1"),
        ("checkpoint_score_order", "up", "must be 'max' or 'min'"),
        ("checkpoint_score_order", "MAX", "must be 'max' or 'min'"),
        ("checkpoint_score_order", None, "must be 'max' or 'min'"),
        ("checkpoint_score_order", ["max"], "must be 'max' or 'min'"),
        ("checkpoint_score_attribute", "", "must be the name of a reported metric"),
        ("checkpoint_score_attribute", 5, "must be the name of a reported metric"),
        ("checkpoint_frequency", -1, "must be an integer >= 0"),
        ("checkpoint_frequency", 1.5, "must be an integer >= 0"),
        ("checkpoint_frequency", True, "must be an integer >= 0"),
        ("checkpoint_at_end", "yes", "must be"),
    ],
)
def test_checkpoint_config_refuses(field, value, allowed):
    text = refusal(CheckpointConfig, **{field: value})
    assert text.startswith(f"CheckpointConfig({field})={value!r}: ")
    assert allowed in text


# ------------------------------------------------------------------ FailureConfig
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_failures", -5, "must be an integer >= 0, or -1 for no limit"),
        ("max_failures", -2, "must be an integer >= 0, or -1 for no limit"),
        ("max_failures", 1.5, "must be an integer >= 0, or -1 for no limit"),
        ("max_failures", "1", "must be an integer >= 0, or -1 for no limit"),
        ("max_failures", True, "must be an integer >= 0, or -1 for no limit"),
        ("max_failures", None, "must be an integer >= 0, or -1 for no limit"),
        ("heartbeat_timeout_s", 0.5, "must be a number of seconds >= 1"),
        ("heartbeat_timeout_s", float("inf"), "must be a number of seconds >= 1"),
        ("heartbeat_timeout_s", "20", "must be a number of seconds >= 1"),
        ("fail_fast", "never", "must be True, False or 'raise'"),
        ("fail_fast", 1, "must be True, False or 'raise'"),
        ("fail_fast", None, "must be True, False or 'raise'"),
    ],
)
def test_failure_config_refuses(field, value, allowed):
    text = refusal(FailureConfig, **{field: value})
    assert text.startswith(f"FailureConfig({field})={value!r}: ")
    assert allowed in text


@pytest.mark.parametrize("fail_fast", [True, "raise"])
@pytest.mark.parametrize("max_failures", [-1, 1])
def test_fail_fast_contradicts_retries(fail_fast, max_failures):
    text = refusal(FailureConfig, fail_fast=fail_fast, max_failures=max_failures)
    assert f"FailureConfig(fail_fast)={fail_fast!r}" in text
    assert f"max_failures={max_failures}" in text


@pytest.mark.parametrize("max_failures", [-1, 0, 3])
def test_failure_config_takes_numbers_and_no_limit(max_failures):
    assert FailureConfig(max_failures=max_failures).max_failures == max_failures


# ------------------------------------------------------------------ SyncConfig, LoggingConfig
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("sync_period", 0, "must be a positive number of seconds"),
        ("sync_period", -1, "must be a positive number of seconds"),
        ("sync_period", "300", "must be a positive number of seconds"),
        ("sync_timeout", math.nan, "must be a positive number of seconds"),
        ("sync_timeout", None, "must be a positive number of seconds"),
        ("sync_artifacts", "yes", "must be True or False"),
        ("sync_artifacts_on_checkpoint", 1, "must be True or False"),
    ],
)
def test_sync_config_refuses(field, value, allowed):
    text = refusal(SyncConfig, **{field: value})
    assert text.startswith(f"SyncConfig({field})={value!r}: ")
    assert allowed in text


@pytest.mark.parametrize("level", ["foo", "info", "", 20, None, ["INFO"]])
def test_logging_config_names_the_levels_there_are(level):
    text = refusal(LoggingConfig, log_level=level)
    assert text.startswith(f"LoggingConfig(log_level)={level!r}: must be one of ")
    for name in ("CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "NOTSET", "TRACE", "WARNING"):
        assert f"'{name}'" in text


# ------------------------------------------------------------------ DataConfig
@pytest.mark.parametrize("value", ["train", {"train": 1}, ("train",), [1], None, 5])
def test_data_config_refuses_what_is_neither_all_nor_a_list_of_names(value):
    text = refusal(DataConfig, datasets_to_split=value, error=TypeError)
    assert text == (
        "DataConfig(datasets_to_split): should be 'all' or a list of strings of dataset names. "
        f"Received {type(value).__name__} with value {value}."
    )


@pytest.mark.parametrize("value", ["all", [], ["train"], ["train", "unknown"]])
def test_data_config_takes_all_and_lists_of_names(value):
    assert DataConfig(datasets_to_split=value).datasets_to_split == value


# ------------------------------------------------------------------ RunConfig
class NoCallback:
    def after_report(self, *args):
        pass


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("name", "", "must be the name of a directory"),
        ("name", "a/b", "must be the name of a directory"),
        ("name", "/a", "must be the name of a directory"),
        ("name", "..", "must be the name of a directory"),
        ("name", "a\0b", "must be the name of a directory"),
        ("name", 5, "must be the name of a directory"),
        ("storage_path", 5, "must be a path"),
        ("storage_path", "", "must be a path"),
        ("storage_filesystem", "s3", "must be a pyarrow.fs.FileSystem or an fsspec filesystem"),
        ("failure_config", {"max_failures": 1}, "must be a minitrain.FailureConfig, not dict"),
        ("checkpoint_config", 3, "must be a minitrain.CheckpointConfig, not int"),
        ("sync_config", {}, "must be a minitrain.SyncConfig, not dict"),
        ("logging_config", "INFO", "must be a minitrain.LoggingConfig, not str"),
        ("callbacks", UserCallback, "instances of minitrain.UserCallback"),
        ("callbacks", [UserCallback], "instances of minitrain.UserCallback"),
        ("callbacks", [NoCallback()], "instances of minitrain.UserCallback"),
        ("callbacks", [UserCallback(), print], "instances of minitrain.UserCallback"),
        ("callbacks", {UserCallback()}, "instances of minitrain.UserCallback"),
        ("progress_reporter", object(), "a callback sees every report"),
        ("log_to_file", "out.log", "output always goes to logs/attempt_N/rank_R.log"),
        ("log_to_file", ("out", "err"), "output always goes to logs/attempt_N/rank_R.log"),
        ("verbose", 4, "must be 0, 1, 2 or 3"),
        ("verbose", "1", "must be 0, 1, 2 or 3"),
        ("verbose", [1], "must be 0, 1, 2 or 3"),
        ("stop", 5, "must be a dict of metric and number, or a function"),
        ("stop", "loss", "must be a dict of metric and number, or a function"),
        ("stop", {"loss": "low"}, "must be a dict of metric and number, or a function"),
        ("stop", {1: 2}, "must be a dict of metric and number, or a function"),
        ("stop", [("loss", 1)], "must be a dict of metric and number, or a function"),
        ("worker_runtime_env", "env", 'must be {"env_vars": {...}}'),
        ("worker_runtime_env", {"pip": ["numpy"]}, 'must be {"env_vars": {...}}'),
        ("worker_runtime_env", {"env_vars": {"A": 1}}, "'A' must be a name with a string"),
        ("worker_runtime_env", {"env_vars": {1: "a"}}, "1 must be a name with a string"),
        ("worker_runtime_env", {"env_vars": {"": "a"}}, "'' must be a name with a string"),
        ("worker_runtime_env", {"env_vars": {"A=B": "a"}}, "'A=B' must be a name with a string"),
        ("worker_runtime_env", {"env_vars": {"A\0": "a"}}, "must be a name with a string"),
        ("worker_runtime_env", {"env_vars": {"A": "a\0"}}, "must be a name with a string"),
        ("worker_runtime_env", {"env_vars": None}, "env_vars"),
        ("worker_runtime_env", {"env_vars": ["A=1"]}, "env_vars"),
        ("log_ranks", "rank 0", "must be 'all' or a list of ranks"),
        ("log_ranks", 0, "must be 'all' or a list of ranks"),
        ("log_ranks", [-1], "must be 'all' or a list of ranks"),
        ("log_ranks", ["0"], "must be 'all' or a list of ranks"),
        ("log_ranks", [True], "must be 'all' or a list of ranks"),
    ],
)
def test_run_config_refuses(field, value, allowed):
    text = refusal(RunConfig, **{field: value})
    assert text.startswith(f"RunConfig({field})={value!r}: ")
    assert allowed in text


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "run 1", "storage_path": "~/runs"},
        {"storage_path": "file:///tmp/runs", "storage_filesystem": LocalFileSystem()},
        {"stop": {"acc": 0.9, "epoch": 5}},
        {"stop": lambda trial_id, row: True},
        {"callbacks": [UserCallback()]},
        {"callbacks": ()},
        {"worker_runtime_env": {}},
        {"worker_runtime_env": {"env_vars": {"A": "1"}}},
        {"log_ranks": "all"},
        {"log_ranks": [0, 3]},
        {"verbose": 0, "log_to_file": True},
    ],
    ids=str,
)
def test_run_config_takes(arguments):
    for name, value in arguments.items():
        assert getattr(RunConfig(**arguments), name) == value


def test_run_config_fills_in_what_is_not_given():
    config = RunConfig()
    assert config.failure_config == FailureConfig()
    assert config.checkpoint_config == CheckpointConfig()
    assert config.sync_config == SyncConfig()
    assert config.logging_config == LoggingConfig()
    assert config.launch_config == LaunchConfig()


@pytest.mark.parametrize(
    ("ranks", "shown"), [((0,), [0]), ("all", [0, 1, 2]), ([0, 2], [0, 2]), ([], [])]
)
def test_ranks_whose_output_is_shown(ranks, shown):
    config = RunConfig(log_ranks=ranks)
    assert [rank for rank in range(3) if config.shows(rank)] == shown


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (ScalingConfig(), "num_workers"),
        (RunConfig(), "name"),
        (CheckpointConfig(), "num_to_keep"),
        (FailureConfig(), "max_failures"),
        (SyncConfig(), "sync_period"),
        (LoggingConfig(), "log_level"),
        (DataConfig(), "datasets_to_split"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_configurations_are_immutable_and_compare_by_value(config, field):
    with pytest.raises(AttributeError):
        setattr(config, field, 2)
    assert type(config)() == config
    assert pickle.loads(pickle.dumps(config)) == config


# ------------------------------------------------------------------ TorchConfig
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("init_method", "file", "must be 'env' or 'tcp'"),
        ("init_method", None, "must be 'env' or 'tcp'"),
        ("init_method", ["env"], "must be 'env' or 'tcp'"),
        ("timeout_s", 0, "must be a positive number of seconds"),
        ("timeout_s", -1, "must be a positive number of seconds"),
        ("timeout_s", math.nan, "must be a positive number of seconds"),
        ("timeout_s", math.inf, "must be a positive number of seconds"),
        ("timeout_s", True, "must be a positive number of seconds"),
        ("timeout_s", "60", "must be a positive number of seconds"),
        ("timeout_s", None, "must be a positive number of seconds"),
        ("backend", 5, "must be"),
    ],
)
def test_torch_config_refuses(TorchConfig, field, value, allowed):  # noqa: N803
    text = refusal(TorchConfig, **{field: value})
    assert text.startswith(f"TorchConfig({field}={value!r}): ")
    assert allowed in text


def test_the_torch_trainer_wants_a_torch_config(TorchTrainer):  # noqa: N803
    text = refusal(TorchTrainer, print, torch_config={"backend": "gloo"})
    assert text.startswith("torch_config={'backend': 'gloo'}: must be a ")
    assert text.endswith("TorchConfig, not dict")


# ------------------------------------------------------------------ trainers
def train():
    pass


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("run_config", {"name": "x"}, "must be a minitrain.RunConfig, not dict"),
        ("run_config", ScalingConfig(), "must be a minitrain.RunConfig, not ScalingConfig"),
        ("scaling_config", {"num_workers": 2}, "must be a minitrain.ScalingConfig, not dict"),
        ("scaling_config", 2, "must be a minitrain.ScalingConfig, not int"),
        ("dataset_config", {"train": 1}, "must be a minitrain.DataConfig, not dict"),
        ("dataset_config", "all", "must be a minitrain.DataConfig, not str"),
        ("backend_config", "gloo", "must be a minitrain.BackendConfig, not str"),
        ("resume_from_checkpoint", "/a/path", "must be a minitrain.Checkpoint, not str"),
        ("datasets", [1], "must be a dict of names and datasets"),
        ("datasets", {1: "data"}, "must be a dict of names and datasets"),
        ("train_loop_config", [1], "must be a dict, not list"),
        ("train_loop_config", "lr=1", "must be a dict, not str"),
        ("metadata", {"model": object}, "must be JSON"),
        ("metadata", {"set": {1}}, "must be JSON"),
        ("metadata", {(1, 2): 3}, "must be JSON"),
    ],
)
def test_a_trainer_refuses(argument, value, allowed):
    text = refusal(DataParallelTrainer, train, **{argument: value})
    assert text.startswith(f"{argument}={value!r}: ")
    assert allowed in text


@pytest.mark.parametrize("value", ["text", [("a", 1)], 5])
def test_metadata_that_is_no_dict_is_a_type_error(value):
    text = refusal(DataParallelTrainer, train, metadata=value, error=TypeError)
    assert text == f"metadata={value!r}: must be a dict, not {type(value).__name__}"


@pytest.mark.parametrize("argument", ["run_config", "scaling_config", "resume_from_checkpoint"])
def test_a_trainer_without_a_function_refuses_as_well(argument):
    assert refusal(BaseTrainer, **{argument: "x"}).startswith(f"{argument}='x': ")


@pytest.mark.parametrize(
    "settings", [{"checkpoint_frequency": 1}, {"checkpoint_at_end": True}], ids=str
)
def test_a_function_makes_its_checkpoints_itself(settings):
    run_config = RunConfig(checkpoint_config=CheckpointConfig(**settings))
    text = refusal(DataParallelTrainer, train, run_config=run_config)
    ((name, value),) = settings.items()
    assert text.startswith(f"CheckpointConfig({name}={value!r}): ")
    assert "report(metrics, checkpoint=...)" in text


def wants(*names):
    """Return a function with these parameters."""
    namespace: dict = {}
    exec(f"def train({', '.join(names)}): pass", namespace)
    return namespace["train"]


class Functions:
    def __call__(self, config):
        pass

    def method(self, config):
        pass

    def of_two(self, config, other):
        pass


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (wants("a", "b"), 2),
        (wants("a", "b", "c"), 3),
        (wants("a", "*args"), 2),
        (wants("a", "*", "b"), 2),
        (wants("*", "b"), 1),
        (lambda config, other: None, 2),
        (Functions().of_two, 2),
        (functools.partial(wants("a", "b", "c"), 1), 2),
    ],
    ids=str,
)
def test_a_function_that_wants_too_much_is_refused(function, count):
    text = refusal(DataParallelTrainer, function)
    expected = "train_loop_per_worker should take in 0 or 1 required arguments, but it accepts "
    assert text == f"{expected}{count} required arguments instead."


@pytest.mark.parametrize("function", [None, 5, "train"])
def test_what_is_no_function_is_refused(function):
    text = refusal(DataParallelTrainer, function)
    assert text.startswith(f"train_loop_per_worker={function!r}: must be a function, not ")


@pytest.mark.parametrize(
    ("function", "takes_config"),
    [
        (wants(), False),
        (wants("config"), True),
        (wants("config=None"), False),
        (wants("config", "depth=3"), True),
        (wants("*args"), True),
        (wants("**kwargs"), False),
        (wants("*", "depth=3"), False),
        (lambda: None, False),
        (lambda config: None, True),
        (Functions(), True),
        (Functions().method, True),
        (functools.partial(wants("a", "b"), 1), True),
        (functools.partial(wants("a", "b"), b=1), True),
        (functools.partial(wants("a"), 1), False),
    ],
    ids=str,
)
def test_a_function_of_one_argument_is_given_the_configuration(function, takes_config):
    trainer = DataParallelTrainer(function, train_loop_config={"lr": 1})
    assert trainer._job().arguments == (({"lr": 1},) if takes_config else ())


def test_a_function_that_wants_a_configuration_gets_an_empty_one_if_there_is_none():
    assert DataParallelTrainer(lambda config: None)._job().arguments == ({},)


def test_more_gpus_than_there_are_are_refused_with_both_numbers():
    needed = 1000
    trainer = DataParallelTrainer(
        train, scaling_config=ScalingConfig(num_workers=needed, use_gpu=True)
    )
    text = refusal(trainer.fit)
    assert re.search(rf"asks for {needed} GPUs .*this machine has \d+", text)


def test_what_cannot_be_pickled_is_refused_with_its_name(storage):
    guard = logging.Handler().lock
    trainer = DataParallelTrainer(lambda: guard)
    text = refusal(trainer.fit)
    assert text.startswith("train_loop_per_worker cannot be sent to the workers")
    assert "'guard'" in text
    assert not storage.exists(), "no run was begun"


def test_a_storage_path_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    run_config = RunConfig(storage_path=tmp_path / "file" / "below")
    text = refusal(DataParallelTrainer(train, run_config=run_config).fit)
    assert text.startswith(f"RunConfig(storage_path={str(tmp_path / 'file' / 'below')!r}): ")


def test_an_unlimited_backend_needs_no_settings():
    assert DataParallelTrainer(train).backend_config == BackendConfig()
