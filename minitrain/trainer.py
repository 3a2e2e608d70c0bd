"""Trainers: what to run, where, and with which framework around it."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from minitrain._datasets import Datasets
from minitrain._driver.home import Home, find
from minitrain._driver.job import Job
from minitrain._driver.restore import arguments_of, keep
from minitrain._driver.run import fit
from minitrain._launched.fit import fit as fit_launched
from minitrain._launched.fit import launched_by_others
from minitrain._logging import logger
from minitrain._storage.layout import TRAINER
from minitrain._storage.resolve import resolve
from minitrain.backend import BackendConfig
from minitrain.checkpoint import Checkpoint
from minitrain.config import DataConfig, RunConfig, ScalingConfig
from minitrain.exceptions import ConfigurationError, TrainingFailedError
from minitrain.result import Result

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["BaseTrainer", "DataParallelTrainer", "TrainingFailedError"]

TrainFunction: TypeAlias = Callable[[], Any] | Callable[[dict[str, Any]], Any]


class BaseTrainer:
    """What all trainers have in common. Subclass it to train in one worker process.

    A subclass overrides :meth:`training_loop`, which may call :func:`minitrain.report` and the
    other functions for train functions.

    Args:
        scaling_config: How many workers.
        run_config: Where the run goes and how it is watched.
        datasets: By name, for :func:`minitrain.get_dataset_shard`: those of :mod:`minitrain.data`
            are divided among the workers, a function is called in the worker that asks, and
            anything else is given as it is.
        metadata: JSON that is added to the metadata of every checkpoint.
        resume_from_checkpoint: What :func:`minitrain.get_checkpoint` returns at the start.

    Raises:
        ConfigurationError: (a ValueError) An argument is of the wrong kind.
        TypeError: ``metadata`` is not a dict.
    """

    _given: dict[str, Any]
    _restored: Home | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember what a trainer is made with, also one of a user's class, for :meth:`restore`."""
        trainer = super().__new__(cls)
        trainer._given = _by_name(cls, trainer, args, kwargs)
        return trainer

    def __init__(
        self,
        *,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        resume_from_checkpoint: Checkpoint | None = None,
    ) -> None:
        self.scaling_config = _checked("scaling_config", scaling_config, ScalingConfig)
        self.run_config = _checked("run_config", run_config, RunConfig)
        if resume_from_checkpoint is not None:
            _checked("resume_from_checkpoint", resume_from_checkpoint, Checkpoint)
        self.resume_from_checkpoint = resume_from_checkpoint
        self.datasets = _checked_datasets(datasets)
        self.metadata = _checked_metadata(metadata)

    def setup(self) -> None:
        """Is called in the worker before :meth:`training_loop`; does nothing by default."""

    def training_loop(self) -> None:
        """Train. To be overridden.

        Raises:
            NotImplementedError: It was not.
        """
        raise NotImplementedError(f"{type(self).__name__}.training_loop() is not written")

    def _set_up_and_train(self) -> None:
        self.setup()
        self.training_loop()

    def _job(self) -> Job:
        return Job(
            trainer=type(self).__name__,
            function=self._set_up_and_train,
            arguments=(),
            config={},
            backend_config=BackendConfig(),
            scaling=self.scaling_config,
            run_config=self.run_config,
            datasets=Datasets(self.datasets),
            metadata=self.metadata,
            resume_from=self.resume_from_checkpoint,
        )

    def fit(self) -> Result:
        """Train, and return what came of it.

        Raises:
            TrainingFailedError: It failed; ``__cause__`` is the worker's own exception.
            ConfigurationError: This machine cannot do it, or something cannot be pickled;
                nothing was started.
            DataError: A dataset cannot be read, or a step of it fails; nothing was started.
            KeyboardInterrupt: Ctrl-C was pressed; everything reported is kept.
        """
        job = replace(self._job(), trainer_file=keep(type(self).__name__, self._given))
        launched = None if self.scaling_config.num_workers == 0 else launched_by_others()
        if launched is not None:
            return fit_launched(job, self._restored, launched)
        return fit(job, self._restored)

    @classmethod
    def can_restore(
        cls, path: str | os.PathLike[str], storage_filesystem: FileSystem | None = None
    ) -> bool:
        """Return whether there is a run in a directory that :meth:`restore` can go on with.

        Args:
            path: A path or a URI.
            storage_filesystem: What holds it, if the path does not say so.
        """
        return resolve(path, storage_filesystem, one_process=True).itself().exists(TRAINER)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        storage_filesystem: FileSystem | None = None,
        datasets: Mapping[str, Any] | None = None,
        scaling_config: ScalingConfig | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return a trainer that goes on with a run, from its newest checkpoint.

        The run's directory may have been moved. ``fit()`` continues its reports, its checkpoints
        and its logs where they end; for a run that is over it only returns the result.

        Args:
            path: The run's directory, a path or a URI.
            storage_filesystem: What holds it, if the path does not say so.
            datasets: Must be given again, if there were any.
            scaling_config: Another number of workers, say.
            **kwargs: Other arguments of the trainer that are to differ, or that could not be kept.

        Raises:
            ConfigurationError: (a ValueError) There is no run, or an argument must be given again;
                the message says which.

        Example:
            The pattern for a job that is started again until it is done::

                path = "/results/experiment"
                if TorchTrainer.can_restore(path):
                    trainer = TorchTrainer.restore(path)
                else:
                    run_config = RunConfig(storage_path="/results", name="experiment")
                    trainer = TorchTrainer(train, run_config=run_config)
                trainer.fit()
        """
        home = find(os.fspath(path), storage_filesystem)
        given = {"datasets": datasets, "scaling_config": scaling_config, **kwargs}
        overrides = {name: value for name, value in given.items() if value is not None}
        trainer_class, arguments = arguments_of(home, overrides)
        if trainer_class != cls.__name__:
            logger.warning(
                "Invalid trainer type: %s is a run of %s, restored as %s",
                home.storage.root,
                trainer_class,
                cls.__name__,
            )
        try:
            trainer = cls(**arguments)
        except TypeError as error:
            raise ConfigurationError(f"{cls.__name__}.restore: {error}") from error
        trainer._restored = home
        return trainer


class DataParallelTrainer(BaseTrainer):
    """Runs one function in every worker, with a framework's backend around it.

    Args:
        train_loop_per_worker: The train function. It takes nothing or the configuration, and may
            be a lambda or a closure: it is sent by value.
        train_loop_config: The configuration it is given.
        backend_config: The framework's settings; by default there is no framework.
        scaling_config: How many workers.
        run_config: Where the run goes and how it is watched.
        dataset_config: Which datasets are divided among the workers.
        datasets: By name, for :func:`minitrain.get_dataset_shard`.
        metadata: JSON that is added to the metadata of every checkpoint.
        resume_from_checkpoint: What :func:`minitrain.get_checkpoint` returns at the start.

    Raises:
        ConfigurationError: (a ValueError) An argument is of the wrong kind.
        TypeError: ``metadata`` is not a dict.

    Example:
        >>> import minitrain
        >>> from minitrain.trainer import DataParallelTrainer
        >>> def train(config):
        ...     minitrain.report({"twice": 2 * config["number"]})
        >>> trainer = DataParallelTrainer(train, train_loop_config={"number": 21})
        >>> trainer.fit().metrics["twice"]
        42
    """

    def __init__(
        self,
        train_loop_per_worker: TrainFunction,
        *,
        train_loop_config: Mapping[str, Any] | None = None,
        backend_config: BackendConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        dataset_config: DataConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        resume_from_checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(
            scaling_config=scaling_config,
            run_config=run_config,
            datasets=datasets,
            metadata=metadata,
            resume_from_checkpoint=resume_from_checkpoint,
        )
        self._takes_config = _takes_config(train_loop_per_worker)
        self.train_loop_per_worker = train_loop_per_worker
        if train_loop_config is not None and not isinstance(train_loop_config, Mapping):
            raise ConfigurationError(
                f"train_loop_config={train_loop_config!r}: must be a dict, "
                f"not {type(train_loop_config).__name__}"
            )
        self.train_loop_config = dict(train_loop_config or {})
        self.backend_config = _checked("backend_config", backend_config, BackendConfig)
        self.dataset_config: DataConfig = _checked("dataset_config", dataset_config, DataConfig)
        self._refuse_automatic_checkpoints()

    def _refuse_automatic_checkpoints(self) -> None:
        """A train function makes its checkpoints itself."""
        checkpoints = self.run_config.checkpoint_config
        assert checkpoints is not None
        for name in ("checkpoint_frequency", "checkpoint_at_end"):
            if getattr(checkpoints, name):
                raise ConfigurationError(
                    f"CheckpointConfig({name}={getattr(checkpoints, name)!r}): "
                    f"{type(self).__name__} runs your function, which makes checkpoints by "
                    "calling minitrain.report(metrics, checkpoint=...)"
                )

    @classmethod
    def restore(  # type: ignore[override]  # the order of ray.train
        cls,
        path: str | os.PathLike[str],
        train_loop_per_worker: TrainFunction | None = None,
        train_loop_config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return a trainer that goes on with a run; see :meth:`BaseTrainer.restore`.

        Args:
            path: The run's directory, a path or a URI.
            train_loop_per_worker: Another train function.
            train_loop_config: Another configuration.
            **kwargs: As for :meth:`BaseTrainer.restore`.
        """
        return super().restore(
            path,
            train_loop_per_worker=train_loop_per_worker,
            train_loop_config=train_loop_config,
            **kwargs,
        )

    def get_dataset_config(self) -> DataConfig:
        """Return which datasets are divided among the workers."""
        return self.dataset_config

    def _job(self) -> Job:
        return Job(
            trainer=type(self).__name__,
            function=self.train_loop_per_worker,
            arguments=(self.train_loop_config,) if self._takes_config else (),
            config=self.train_loop_config,
            backend_config=self.backend_config,
            scaling=self.scaling_config,
            run_config=self.run_config,
            datasets=Datasets(self.datasets, self.dataset_config),
            metadata=self.metadata,
            resume_from=self.resume_from_checkpoint,
        )


def _by_name(
    cls: type[Any], trainer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a constructor by name."""
    try:
        bound = inspect.signature(cls.__init__).bind(trainer, *args, **kwargs)
    except TypeError:
        return {}  # the constructor will say what is wrong
    named: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return {name: value for name, value in named.items() if value is not None}


def _checked(name: str, value: Any, kind: type[Any]) -> Any:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConfigurationError(
            f"{name}={value!r}: must be a minitrain.{kind.__name__}, not {type(value).__name__}"
        )
    return value


def _checked_datasets(datasets: Any) -> dict[str, Any]:
    if datasets is None:
        return {}
    if not isinstance(datasets, Mapping) or not all(isinstance(name, str) for name in datasets):
        raise ConfigurationError(
            f"datasets={datasets!r}: must be a dict of names and datasets, such as "
            "{'train': dataset}"
        )
    return dict(datasets)


def _checked_metadata(metadata: Any) -> dict[str, Any]:
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata={metadata!r}: must be a dict, not {type(metadata).__name__}")
    try:
        json.dumps(dict(metadata))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"metadata={metadata!r}: must be JSON: {error}") from error
    return dict(metadata)


def _takes_config(function: Any) -> bool:
    """Return whether a train function is called with the configuration.

    Raises:
        ConfigurationError: It is no function, or wants more than that.
    """
    if not callable(function):
        raise ConfigurationError(
            f"train_loop_per_worker={function!r}: must be a function, not {type(function).__name__}"
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C: nobody knows
        return False
    optional = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    required = [
        parameter
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty and parameter.kind not in optional
    ]
    missing = [p.name for p in parameters if _must_be_named(p)]
    if len(required) > 1 or missing:
        raise ConfigurationError(
            "train_loop_per_worker should take in 0 or 1 required arguments, but it accepts "
            f"{len(required) + len(missing)} required arguments instead."
        )
    return len(required) == 1


def _must_be_named(parameter: inspect.Parameter) -> bool:
    keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    return keyword_only and parameter.default is inspect.Parameter.empty
