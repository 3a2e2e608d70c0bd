"""What a run should be: immutable, checked when it is made, no processes and no files here.

Names, defaults and meanings are ray.train's. What Ray accepts and then ignores or trips over is
refused; every refusal names the field, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from minitrain.callbacks import UserCallback
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    from minitrain.data.dataset import Dataset
    from minitrain.data.iterator import DataIterator

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "FailureConfig",
    "LaunchConfig",
    "LoggingConfig",
    "RunConfig",
    "ScalingConfig",
    "SyncConfig",
]

StopCondition: TypeAlias = Mapping[str, float] | Callable[[str, dict[str, Any]], bool]

_LEVELS = ("CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "NOTSET", "TRACE", "WARN", "WARNING")
_PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


def _refuse(where: str, value: Any, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{where}={value!r}: {allowed}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and isfinite(value) and value >= 0


def _check_switch(where: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _refuse(where, value, "must be True or False")


def _check_strings(where: str, values: Any, kind: str) -> None:
    is_list = isinstance(values, list | tuple)
    if not is_list or not all(isinstance(value, str) and value for value in values):
        raise _refuse(where, values, f"must be a list of {kind}")


@dataclass(frozen=True)
class ScalingConfig:
    """How many workers, and what each of them gets.

    Attributes:
        num_workers: Processes to train with; 0 trains in the driver's own process, for a
            debugger. A pair ``(min, max)`` takes as many as there are GPUs for, at most max,
            with fewer when some are lost and more when there are more again.
        use_gpu: Whether each worker gets a GPU.
        resources_per_worker: ``{"CPU": 4, "GPU": 2}``; by default one GPU with ``use_gpu``, one
            CPU otherwise. CPUs are the threads a worker computes with and are not reserved; a
            fraction of a GPU shares it.
        trainer_resources: Accepted as in ray.train; nothing is reserved for the driver.
        placement_strategy: ``PACK`` fills one host after the other, ``SPREAD`` gives every host
            its share, ``STRICT_PACK`` wants all workers on one host, ``STRICT_SPREAD`` each on
            its own; with one host they are all the same.
        accelerator_type: A part of the GPUs' model name that all of them must have, like
            ``"A100"``.
        elastic_resize_monitor_interval_s: With a pair for ``num_workers``: how often, at most,
            a checkpoint is taken as the occasion to start again with more workers.
        hosts: The hosts to train on, ``["node1", "user@node2:2"]``, each with the most workers it
            takes, where that is to be said; by default those of ``$MINITRAIN_HOSTS``, which
            ``python -m minitrain.launch`` sets, else this machine.

    Raises:
        ConfigurationError: (a ValueError) A value is wrong or contradicts another.

    Example:
        >>> from minitrain import ScalingConfig
        >>> ScalingConfig(num_workers=4).num_cpus_per_worker
        1
    """

    trainer_resources: Mapping[str, float] | None = None
    num_workers: int | tuple[int, int] = 1
    use_gpu: bool = False
    resources_per_worker: Mapping[str, float] | None = None
    placement_strategy: str = "PACK"
    accelerator_type: str | None = None
    elastic_resize_monitor_interval_s: float = 60.0
    hosts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self._check_num_workers()
        _check_switch("ScalingConfig(use_gpu)", self.use_gpu)
        _check_resources("ScalingConfig(trainer_resources)", self.trainer_resources)
        _check_resources("ScalingConfig(resources_per_worker)", self.resources_per_worker)
        self._check_gpus()
        if self.placement_strategy not in _PLACEMENTS:
            allowed = f"must be one of {', '.join(_PLACEMENTS)}"
            raise _refuse("ScalingConfig(placement_strategy)", self.placement_strategy, allowed)
        if self.accelerator_type is not None and not isinstance(self.accelerator_type, str):
            allowed = "must be a part of a GPU's model name, such as 'A100'"
            raise _refuse("ScalingConfig(accelerator_type)", self.accelerator_type, allowed)
        if not _is_amount(self.elastic_resize_monitor_interval_s):
            where = "ScalingConfig(elastic_resize_monitor_interval_s)"
            value = self.elastic_resize_monitor_interval_s
            raise _refuse(where, value, "must be a number of seconds >= 0")
        if self.hosts is not None:
            _check_strings("ScalingConfig(hosts)", self.hosts, "names like 'node1' or 'node2:4'")
            if not self.hosts:
                allowed = "must name a host; None trains on this machine"
                raise _refuse("ScalingConfig(hosts)", self.hosts, allowed)

    def _check_num_workers(self) -> None:
        given = self.num_workers
        where = "ScalingConfig(num_workers)"
        bounds = given if isinstance(given, tuple) else (given, given)
        if len(bounds) != 2 or not all(_is_int(bound) for bound in bounds):  # noqa: PLR2004
            raise _refuse(where, given, "must be an int or a tuple of two ints")
        if min(bounds) < 0:
            raise _refuse(where, given, "the number of workers cannot be negative")
        if isinstance(given, tuple) and min(bounds) < 1:
            raise _refuse(where, given, "the smallest number of workers must be at least 1")
        if bounds[0] > bounds[1]:
            raise _refuse(where, given, f"{bounds[0]} workers at least, but {bounds[1]} at most")

    def _check_gpus(self) -> None:
        given = self.resources_per_worker or {}
        gpus = given.get("GPU")
        if not self.use_gpu and gpus:
            raise _refuse(
                "ScalingConfig(resources_per_worker)",
                dict(given),
                "`use_gpu` is False but `GPU` was found: set use_gpu=True or remove `GPU`",
            )
        if self.use_gpu and gpus is not None:
            if gpus == 0:
                allowed = "`use_gpu` is True but `GPU` is 0: set use_gpu=False or ask for a GPU"
                raise _refuse("ScalingConfig(resources_per_worker)", dict(given), allowed)
            if gpus > 1 and gpus != int(gpus):
                allowed = "more than one `GPU` must be a whole number"
                raise _refuse("ScalingConfig(resources_per_worker)", dict(given), allowed)
        if self.accelerator_type and not self.use_gpu:
            allowed = "needs use_gpu=True"
            raise _refuse("ScalingConfig(accelerator_type)", self.accelerator_type, allowed)

    @property
    def elasticity_enabled(self) -> bool:
        """Whether ``num_workers`` is a range."""
        return isinstance(self.num_workers, tuple)

    @property
    def min_workers(self) -> int:
        """The fewest workers to train with."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The most workers to train with."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def _resources(self) -> dict[str, float]:
        given = dict(self.resources_per_worker or {})
        if self.use_gpu:
            given.setdefault("GPU", 1)
        elif not given:
            given = {"CPU": 1}
        return {name: amount for name, amount in given.items() if amount}

    @property
    def num_cpus_per_worker(self) -> float:
        """CPUs of one worker."""
        return self._resources.get("CPU", 0)

    @property
    def num_gpus_per_worker(self) -> float:
        """GPUs of one worker."""
        return self._resources.get("GPU", 0)

    @property
    def additional_resources_per_worker(self) -> dict[str, float]:
        """What else was asked for; kept for the train function's context."""
        return {name: n for name, n in self._resources.items() if name not in {"CPU", "GPU"}}

    @property
    def total_resources(self) -> dict[str, float]:
        """The resources of all workers together."""
        return {name: amount * self.max_workers for name, amount in self._resources.items()}


def _check_resources(where: str, resources: Any) -> None:
    if resources is None:
        return
    if not isinstance(resources, Mapping):
        raise _refuse(where, resources, 'must be a dict like {"CPU": 2}')
    for name, amount in resources.items():
        if not isinstance(name, str) or not _is_amount(amount):
            raise _refuse(where, dict(resources), f"{name!r} must be a name with an amount >= 0")
        near = difflib.get_close_matches(name.upper(), ["CPU", "GPU"], n=1, cutoff=0.6)
        if near and name not in {"CPU", "GPU"}:
            allowed = f"{name!r} is not known; did you mean {near[0]!r}?"
            raise _refuse(where, dict(resources), allowed)


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints stay.

    Attributes:
        num_to_keep: How many; None keeps all. The newest is never deleted.
        checkpoint_score_attribute: The reported metric that ranks them, nested as ``"val/acc"``;
            by default the newer is the better. A checkpoint whose metric is missing or NaN is
            the worst in either order.
        checkpoint_score_order: ``"max"`` or ``"min"``.
        checkpoint_frequency: For trainers that save by themselves; 0 for train functions.
        checkpoint_at_end: Likewise; None for train functions.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: Literal["max", "min"] = "max"
    checkpoint_frequency: int = 0
    checkpoint_at_end: bool | None = None

    def __post_init__(self) -> None:
        keep = self.num_to_keep
        if keep is not None and (not _is_int(keep) or keep < 1):
            raise _refuse("CheckpointConfig(num_to_keep)", keep, "must be None or an integer >= 1")
        if self.checkpoint_score_order not in ("max", "min"):
            where = "CheckpointConfig(checkpoint_score_order)"
            raise _refuse(where, self.checkpoint_score_order, "must be 'max' or 'min'")
        attribute = self.checkpoint_score_attribute
        if attribute is not None and (not isinstance(attribute, str) or not attribute):
            where = "CheckpointConfig(checkpoint_score_attribute)"
            raise _refuse(where, attribute, "must be the name of a reported metric")
        if self.checkpoint_at_end is not None:
            _check_switch("CheckpointConfig(checkpoint_at_end)", self.checkpoint_at_end)
        if not _is_int(self.checkpoint_frequency) or self.checkpoint_frequency < 0:
            where = "CheckpointConfig(checkpoint_frequency)"
            raise _refuse(where, self.checkpoint_frequency, "must be an integer >= 0")


@dataclass(frozen=True)
class FailureConfig:
    """What happens after a failure.

    Attributes:
        max_failures: How many failed attempts are followed by another one, which starts from the
            newest checkpoint; -1: without end.
        fail_fast: True or ``"raise"``: fail at the first error, which is the default anyway.
        hang_timeout_s: A rank that has not reported for so long has failed, and the Python stacks
            of all ranks are kept; None: never. Longer than the longest step between two reports,
            the first included.
        max_preemption_failures: How many attempts that ended because their machine was taken
            away are followed by another one; -1: without end. They do not count as failures.
        preemption_grace_s: How long workers may go on after SIGTERM, to report a last
            checkpoint; less than whoever sends it waits before SIGKILL (Slurm and Kubernetes:
            30 s).
        heartbeat_timeout_s: A host that has not been heard of for so long is lost, and the
            workers on it with it; they end by themselves, as they hear nothing either.
    """

    max_failures: int = 0
    fail_fast: bool | Literal["raise"] = False
    hang_timeout_s: float | None = None
    max_preemption_failures: int = -1
    preemption_grace_s: float = 20.0
    heartbeat_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("max_failures", "max_preemption_failures"):
            value = getattr(self, name)
            if not _is_int(value) or value < -1:
                allowed = "must be an integer >= 0, or -1 for no limit"
                raise _refuse(f"FailureConfig({name})", value, allowed)
        timeout_s = self.hang_timeout_s
        if timeout_s is not None and (not _is_amount(timeout_s) or not timeout_s):
            allowed = "must be None or a positive number of seconds"
            raise _refuse("FailureConfig(hang_timeout_s)", timeout_s, allowed)
        if not _is_amount(self.preemption_grace_s):
            allowed = "must be a number of seconds >= 0"
            raise _refuse("FailureConfig(preemption_grace_s)", self.preemption_grace_s, allowed)
        if not _is_amount(self.heartbeat_timeout_s) or self.heartbeat_timeout_s < 1:
            allowed = "must be a number of seconds >= 1"
            raise _refuse("FailureConfig(heartbeat_timeout_s)", self.heartbeat_timeout_s, allowed)
        if not isinstance(self.fail_fast, bool) and self.fail_fast != "raise":
            allowed = "must be True, False or 'raise'"
            raise _refuse("FailureConfig(fail_fast)", self.fail_fast, allowed)
        if self.fail_fast and self.max_failures != 0:
            allowed = f"contradicts max_failures={self.max_failures}; use one of them"
            raise _refuse("FailureConfig(fail_fast)", self.fail_fast, allowed)


@dataclass(frozen=True)
class SyncConfig:
    """How what workers write to their working directory reaches the storage, as in ray.train.

    On a local disk the working directory is the run's ``artifacts`` folder, and there is nothing
    to bring anywhere.

    Attributes:
        sync_period: Seconds between two times that logs and tables are brought to a storage
            elsewhere; they are at checkpoints and at the end as well.
        sync_timeout: How long the storage may take for what it was given, in seconds.
        sync_artifacts: Whether what workers wrote in their working directory is brought there,
            too; otherwise it is gone when the run is over.
        sync_artifacts_on_checkpoint: Whether that is done at checkpoints, not only at the end.
    """

    sync_period: float = 300
    sync_timeout: float = 1800
    sync_artifacts: bool = False
    sync_artifacts_on_checkpoint: bool = True

    def __post_init__(self) -> None:
        for name in ("sync_period", "sync_timeout"):
            value = getattr(self, name)
            if not _is_amount(value) or value == 0:
                raise _refuse(f"SyncConfig({name})", value, "must be a positive number of seconds")
        _check_switch("SyncConfig(sync_artifacts)", self.sync_artifacts)
        _check_switch("SyncConfig(sync_artifacts_on_checkpoint)", self.sync_artifacts_on_checkpoint)


@dataclass(frozen=True)
class LoggingConfig:
    """What the library itself says on the console.

    Attributes:
        log_level: Name of the least important level that is shown.
    """

    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if self.log_level not in _LEVELS:
            raise _refuse("LoggingConfig(log_level)", self.log_level, f"must be one of {_LEVELS}")


@dataclass(frozen=True)
class LaunchConfig:
    """How other hosts are reached, and what goes there.

    What is not given here is taken from the environment variable that ``python -m
    minitrain.launch`` sets.

    Attributes:
        transport: What starts a program on another host: ``"ssh"``, ``"srun"``, or a command
            with ``{host}`` in it, such as ``"kubectl exec -i {host} --"``.
        python: The path of the Python there; by default that of the driver's.
        env: Names of variables that go there besides the usual ones; ``*`` stands for anything.
            One that looks like a secret goes only if it is named in full.
        working_dir: The working directory there; by default the driver's, where that exists.
        ssh_options: More options for ssh, ``("-p", "2222")``; they win over the library's.
        sync_code: Whether the working directory is copied there, less what git ignores.
        collect: Whether checkpoints of all hosts travel over the pipes to the driver's storage.
    """

    transport: str | None = None
    python: str | None = None
    env: Sequence[str] = ()
    working_dir: str | Path | None = None
    ssh_options: Sequence[str] = ()
    sync_code: bool | None = None
    collect: bool | None = None

    def __post_init__(self) -> None:
        for name in ("transport", "python", "working_dir"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str | Path) or not str(value)):
                raise _refuse(f"LaunchConfig({name})", value, "must be None or a string")
        _check_strings("LaunchConfig(env)", self.env, "names of environment variables")
        _check_strings("LaunchConfig(ssh_options)", self.ssh_options, "options of ssh, as strings")
        for name in ("sync_code", "collect"):
            if getattr(self, name) is not None:
                _check_switch(f"LaunchConfig({name})", getattr(self, name))


@dataclass(frozen=True)
class DataConfig:
    """Which datasets are divided among the workers, and how.

    Attributes:
        datasets_to_split: ``"all"`` or a list of names; every worker gets the whole of the others.
        execution_options: Accepted as in ray.train, where it tunes Ray's execution.
        enable_shard_locality: Likewise.
        remainder: Every worker gets equally many rows. ``"drop"``: the last rows of an epoch, fewer
            than there are workers, come to nobody; ``"pad"``: some rows come twice.
    """

    datasets_to_split: Literal["all"] | Sequence[str] = "all"
    execution_options: Any = None
    enable_shard_locality: bool = True
    remainder: Literal["drop", "pad"] = "drop"

    def __post_init__(self) -> None:
        names = self.datasets_to_split
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if names != "all" and not is_list:
            raise TypeError(
                "DataConfig(datasets_to_split): should be 'all' or a list of strings of dataset "
                f"names. Received {type(names).__name__} with value {names}."
            )
        if self.remainder not in {"drop", "pad"}:
            raise _refuse("DataConfig(remainder)", self.remainder, "must be 'drop' or 'pad'")

    def divides(self, name: str) -> bool:
        """Return whether a dataset is divided among the workers."""
        return self.datasets_to_split == "all" or name in self.datasets_to_split

    def configure(
        self,
        datasets: Mapping[str, Dataset],
        world_size: int,
        worker_handles: Sequence[Any] | None = None,  # noqa: ARG002 - ray.train's, like the next
        worker_node_ids: Sequence[str] | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[dict[str, DataIterator]]:
        """Return each rank's part of every dataset; a subclass may divide them otherwise.

        It is called in every worker, which takes its own part: it must return the same in all of
        them, and do nothing else.

        Args:
            datasets: By name, without those that are functions or something else.
            world_size: How many workers there are.
            worker_handles: Accepted as in ray.train; None here.
            worker_node_ids: Likewise.
            **kwargs: For more of Ray's arguments.
        """
        parts: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            if self.divides(name):
                own = dataset.streaming_split(world_size, equal=True, remainder=self.remainder)
            else:
                own = [dataset.iterator() for _ in range(world_size)]
            for part, iterator in zip(parts, own, strict=True):
                part[name] = iterator
        return parts


@dataclass(frozen=True)
class RunConfig:
    """Where a run goes and how it is watched.

    Attributes:
        name: The run's name and directory; by default the trainer's class and the time. A name
            that is taken gets a number.
        storage_path: The directory that holds the run's directory: a path, or a URI such as
            ``s3://bucket/folder``, ``gs://...``, ``hdfs://...``, or of any other filesystem that
            fsspec knows; by default ``$MINITRAIN_STORAGE``, else ``~/minitrain_results``.
        storage_filesystem: A ``pyarrow.fs`` or fsspec filesystem in which ``storage_path`` is a
            path.
        failure_config: What happens after a failure.
        checkpoint_config: Which checkpoints stay.
        sync_config: How the workers' files reach the storage.
        verbose: 0: only warnings and errors on the console.
        stop: When to end early: ``{"accuracy": 0.97}``, reached when a reported value is at least
            that, or a function ``(trial_id, row) -> bool``. Every report then waits for the
            decision.
        callbacks: Instances of :class:`minitrain.UserCallback`.
        log_to_file: Accepted as in ray.train: output always goes to
            ``logs/attempt_N/rank_R.log``.
        worker_runtime_env: ``{"env_vars": {...}}``, added to the driver's environment.
        logging_config: What the library says on the console.
        log_ranks: Ranks whose output also appears on the driver's console, or ``"all"``.
        launch_config: How other hosts are reached.
    """

    name: str | None = None
    storage_path: str | Path | None = None
    storage_filesystem: Any = None
    failure_config: FailureConfig | None = None
    checkpoint_config: CheckpointConfig | None = None
    sync_config: SyncConfig | None = None
    verbose: int | None = None
    stop: StopCondition | None = None
    callbacks: Sequence[UserCallback] | None = None
    progress_reporter: None = None
    log_to_file: bool = False
    worker_runtime_env: Mapping[str, Any] | None = None
    logging_config: LoggingConfig | None = None
    log_ranks: Sequence[int] | Literal["all"] = field(default=(0,))
    launch_config: LaunchConfig | None = None

    def __post_init__(self) -> None:
        self._check_name()
        self._check_storage()
        self._fill_defaults()
        self._check_watching()
        _check_runtime_env(self.worker_runtime_env)
        _check_stop(self.stop)

    def _check_name(self) -> None:
        if self.name is None:
            return
        plain = isinstance(self.name, str) and re.fullmatch(r"[^/\0]+", self.name)
        if not plain or self.name in {".", ".."}:
            raise _refuse("RunConfig(name)", self.name, "must be the name of a directory")

    def _check_storage(self) -> None:
        path = self.storage_path
        if path is not None and (not isinstance(path, str | Path) or not str(path)):
            raise _refuse("RunConfig(storage_path)", path, "must be a path")
        filesystem = self.storage_filesystem
        is_one = hasattr(filesystem, "type_name") or hasattr(filesystem, "protocol")
        if filesystem is not None and not is_one:
            allowed = "must be a pyarrow.fs.FileSystem or an fsspec filesystem"
            raise _refuse("RunConfig(storage_filesystem)", filesystem, allowed)

    def _fill_defaults(self) -> None:
        kinds: dict[str, type[Any]] = {
            "failure_config": FailureConfig,
            "checkpoint_config": CheckpointConfig,
            "sync_config": SyncConfig,
            "logging_config": LoggingConfig,
            "launch_config": LaunchConfig,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, kind())
            elif not isinstance(value, kind):
                allowed = f"must be a minitrain.{kind.__name__}, not {type(value).__name__}"
                raise _refuse(f"RunConfig({name})", value, allowed)

    def _check_watching(self) -> None:
        callbacks = self.callbacks
        if callbacks is not None and (
            not isinstance(callbacks, list | tuple)
            or not all(isinstance(callback, UserCallback) for callback in callbacks)
        ):
            allowed = "all callbacks must be instances of minitrain.UserCallback, in a list"
            raise _refuse("RunConfig(callbacks)", callbacks, allowed)
        if self.progress_reporter is not None:
            allowed = "is for searches; a callback sees every report of a run"
            raise _refuse("RunConfig(progress_reporter)", self.progress_reporter, allowed)
        if not isinstance(self.log_to_file, bool):
            allowed = "must be a bool: output always goes to logs/attempt_N/rank_R.log"
            raise _refuse("RunConfig(log_to_file)", self.log_to_file, allowed)
        if self.verbose is not None and self.verbose not in (0, 1, 2, 3):
            raise _refuse("RunConfig(verbose)", self.verbose, "must be 0, 1, 2 or 3")
        ranks = self.log_ranks
        is_ranks = isinstance(ranks, list | tuple) and all(_is_int(r) and r >= 0 for r in ranks)
        if ranks != "all" and not is_ranks:
            raise _refuse("RunConfig(log_ranks)", ranks, "must be 'all' or a list of ranks")

    def shows(self, rank: int) -> bool:
        """Return whether the output of a rank goes to the console."""
        return self.log_ranks == "all" or rank in self.log_ranks


def _check_runtime_env(runtime_env: Any) -> None:
    if runtime_env is None:
        return
    where = "RunConfig(worker_runtime_env)"
    if not isinstance(runtime_env, Mapping) or set(runtime_env) - {"env_vars"}:
        allowed = (
            'must be {"env_vars": {...}}; packages and folders are those of the driver, '
            "which workers share"
        )
        raise _refuse(where, runtime_env, allowed)
    variables = runtime_env.get("env_vars", {})
    if not isinstance(variables, Mapping):
        raise _refuse(where, runtime_env, '"env_vars" must be a dict of names and strings')
    for name, value in variables.items():
        strings = isinstance(name, str) and isinstance(value, str)
        if not strings or not name or "=" in name or "\0" in name + value:
            raise _refuse(where, runtime_env, f"{name!r} must be a name with a string for value")


def _check_stop(stop: Any) -> None:
    if stop is None or callable(stop):
        return
    is_dict = isinstance(stop, Mapping) and all(
        isinstance(name, str) and isinstance(value, int | float) for name, value in stop.items()
    )
    if not is_dict:
        allowed = "must be a dict of metric and number, or a function (trial_id, row) -> bool"
        raise _refuse("RunConfig(stop)", stop, allowed)
