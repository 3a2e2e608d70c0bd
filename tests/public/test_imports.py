"""What is importable, and what an import costs and starts."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

import minitrain
from minitrain._os.processes import MARK_VARIABLE

HEAVY = [
    "deepspeed",
    "horovod",
    "lightgbm",
    "lightning",
    "numpy",
    "optuna",
    "pandas",
    "psutil",
    "pyarrow",
    "tensorboard",
    "tensorflow",
    "torch",
    "transformers",
    "xgboost",
]
MODULES = [
    "minitrain",
    "minitrain.backend",
    "minitrain.callbacks",
    "minitrain.checkpoint",
    "minitrain.collective",
    "minitrain.config",
    "minitrain.context",
    "minitrain.exceptions",
    "minitrain.result",
    "minitrain.session",
    "minitrain.stacks",
    "minitrain.trainer",
    "minitrain.verify",
]
RAY_TRAIN = [
    "Checkpoint",
    "CheckpointConfig",
    "DataConfig",
    "FailureConfig",
    "Result",
    "RunConfig",
    "ScalingConfig",
    "SyncConfig",
    "TRAIN_DATASET_KEY",
    "TrainContext",
    "TrainingFailedError",
    "get_checkpoint",
    "get_context",
    "get_dataset_shard",
    "report",
]
RAY_TRAIN_V2 = ["ControllerError", "LoggingConfig", "UserCallback", "WorkerGroupError"]
RAY_TRAIN_TORCH = [
    "TorchCheckpoint",
    "TorchConfig",
    "TorchTrainer",
    "accelerate",
    "backward",
    "enable_reproducibility",
    "get_device",
    "get_devices",
    "prepare_data_loader",
    "prepare_model",
    "prepare_optimizer",
]
OUR_TORCH = sorted([*RAY_TRAIN_TORCH, "load_state", "save_state"])


def outcome(code: str, **environ: str | None) -> str:
    """Return what a script prints."""
    env = {name: value for name, value in {**os.environ, **environ}.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------ what an import costs
def imported_by(statement: str) -> list[str]:
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    return outcome(code).split()


def test_importing_minitrain_imports_nothing_heavy():
    assert imported_by("import minitrain") == []


@pytest.mark.parametrize(
    "statement",
    [
        "from minitrain import ScalingConfig, RunConfig, CheckpointConfig, FailureConfig",
        "from minitrain import report, get_context, get_checkpoint, Checkpoint",
        "from minitrain import collective, exceptions",
        "import minitrain.launch.__main__",
    ],
)
def test_what_a_script_imports_at_its_head_imports_nothing_heavy(statement):
    assert imported_by(statement) == []


def test_the_core_imports_no_framework():
    code = "from minitrain import Result; from minitrain.trainer import DataParallelTrainer"
    assert "torch" not in imported_by(code)


# ------------------------------------------------------------------ what is there
def test_every_exported_name_resolves():
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            if (module, name) != (minitrain, "torch"):  # tried below, in a process of its own
                assert getattr(module, name) is not None, (module, name)


def test_what_ray_train_exports_is_there():
    for name in RAY_TRAIN + RAY_TRAIN_V2:
        assert getattr(minitrain, name) is not None
        assert name in minitrain.__all__
        assert name in dir(minitrain)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("minitrain.collective", ["barrier", "broadcast_from_rank_zero"]),
        ("minitrain.backend", ["Backend", "BackendConfig"]),
        ("minitrain.trainer", ["BaseTrainer", "DataParallelTrainer", "TrainingFailedError"]),
    ],
)
def test_what_ray_trains_modules_export_is_there(module, names):
    found = importlib.import_module(module)
    assert set(names) <= set(found.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'minitrain' has no attribute 'Trainer'"):
        minitrain.Trainer  # noqa: B018 - looking it up is the test


def test_the_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert minitrain.__version__ == version("minitrain")


# ------------------------------------------------------------------ what an import starts
STARTED = """
import os, sys
import psutil
import minitrain.torch
from minitrain._driver import agents

def started():
    children = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    return len([command for command in children if "minitrain._agent" in command])
"""


def test_importing_the_torch_package_starts_one_agent_and_only_one():
    code = f"""{STARTED}
print(started(), len(agents._pool.idle), *sorted(minitrain.torch.__all__))
agents.prestart()
print(started())
pids = [child.pid for child in psutil.Process().children(recursive=True)]
minitrain.shutdown()
print(started(), [pid for pid in pids if psutil.pid_exists(pid)])
"""
    lines = outcome(code, MINITRAIN_PRESTART=None, RANK=None).splitlines()
    assert lines == [f"1 1 {' '.join(OUR_TORCH)}", "1", "0 []"]


def test_where_no_run_is_likely_to_start_importing_it_starts_nothing():
    code = f"""{STARTED}
counts = [started()]
del os.environ["MINITRAIN_PRESTART"]
for name in ("RANK", {MARK_VARIABLE!r}):
    os.environ[name] = "1"
    agents.prestart()
    counts.append(started())
    del os.environ[name]
print(counts)
"""
    assert outcome(code, MINITRAIN_PRESTART="0", RANK=None) == "[0, 0, 0]"
