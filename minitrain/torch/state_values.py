"""What of modules, optimizers and the rest is saved, and how it comes back.

A value becomes nested data with tensors in it. The tensors are saved by name,
``model.layer.weight``; the rest, with a tensor on the device ``meta`` in the place of each, is the
structure. Names are those of the bare module, so that it does not matter how one was wrapped.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from minitrain.exceptions import CheckpointError
from minitrain.torch.state_files import safe_types

try:
    from torch.distributed.fsdp import FSDPModule
except ImportError:  # torch < 2.6
    from torch.distributed._composable.fsdp import FSDPModule  # type: ignore[attr-defined]

__all__ = ["Captured", "Part", "capture", "name_of", "parts_of", "with_tensors"]

_Path = tuple[Any, ...]
# Names are compared here, in words; torch would also refuse a module without parameters.
_OPTIONS = StateDictOptions(strict=False)


@dataclass
class Captured:
    """A state taken apart.

    Attributes:
        structure: All but the tensors, by key.
        tensors: The tensors, by name.
        same_everywhere: The names of those that any rank may write; what differs is rank 0's.
    """

    structure: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    same_everywhere: set[str] = field(default_factory=set)


def capture(parts: Iterable[Part]) -> Captured:
    """Take a state apart.

    Raises:
        TypeError: Something in it could not be loaded.
        ValueError: Two tensors have the same name.
    """
    captured = Captured()
    for part in parts:

        def take(path: _Path, tensor: torch.Tensor, part: Part = part) -> torch.Tensor:
            name = name_of(path)
            if name in captured.tensors:
                raise ValueError(f"save_state(): two tensors of the state are called {name!r}")
            captured.tensors[name] = tensor.detach()
            if part.is_same_everywhere(path):
                captured.same_everywhere.add(name)
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        structure = with_tensors(part.state(), (part.key,), take)
        _check_loadable(part.key, structure)
        captured.structure[part.key] = structure
    return captured


def with_tensors(value: Any, path: _Path, new: Callable[[_Path, torch.Tensor], Any]) -> Any:
    """Return data with every tensor replaced; containers without tensors stay as they are."""
    if isinstance(value, torch.Tensor):
        return new(path, value)
    if not isinstance(value, Mapping | list | tuple):
        return value
    keys = list(value) if isinstance(value, Mapping) else range(len(value))
    items = [with_tensors(value[key], (*path, key), new) for key in keys]
    if all(item is value[key] for key, item in zip(keys, items, strict=True)):
        return value
    if isinstance(value, Mapping):
        return dict(zip(keys, items, strict=True))
    return items if isinstance(value, list) else tuple(items)


def name_of(path: _Path) -> str:
    """Return the name of the tensor at a place in a state."""
    return ".".join(map(str, path))


class Part:
    """One value of a state: something plain, which is saved as it is.

    Args:
        key: Its key.
        value: The value.
    """

    def __init__(self, key: str, value: Any) -> None:
        self.key = key
        self.value = value

    is_plain = True

    def state(self) -> Any:
        """Return it as nested data with tensors."""
        return self.value

    def is_same_everywhere(self, path: _Path) -> bool:
        """Return whether a tensor that is not sharded is sure to be the same on all ranks."""
        del path
        return False

    def check(self, saved: Any) -> None:
        """Check that a saved structure fits.

        Raises:
            CheckpointError: It does not; the message says which key.
        """

    def place(self, path: _Path, saved: torch.Tensor) -> torch.Tensor:
        """Return the tensor to read a saved one into, which here is given on ``meta``."""
        del path
        return torch.empty(saved.shape, dtype=saved.dtype)

    def restore(self, saved: Any) -> None:
        """Take over the data that were read, with tensors."""

    def refuse_unless(self, fits: bool, problem: str) -> None:
        """Raise a CheckpointError that names this part unless what was saved fits it."""
        if not fits:
            raise CheckpointError(f"load_state(): state[{self.key!r}]: {problem}")


class _TensorPart(Part):
    is_plain = False

    def check(self, saved: Any) -> None:
        self.refuse_unless(isinstance(saved, torch.Tensor), "the checkpoint has no tensor there")

    def place(self, path: _Path, saved: torch.Tensor) -> torch.Tensor:
        del path, saved
        tensor: torch.Tensor = self.value.detach()
        return tensor


class _StatefulPart(Part):
    """Anything with ``state_dict`` and ``load_state_dict``, such as a learning rate schedule."""

    is_plain = False

    def state(self) -> Any:
        return self.value.state_dict()

    def check(self, saved: Any) -> None:
        self._now = self.state()
        same = type(saved) is not torch.Tensor
        self.refuse_unless(same, "the checkpoint has a tensor there")

    def place(self, path: _Path, saved: torch.Tensor) -> torch.Tensor:
        now = self._now
        for key in path[1:]:
            try:
                now = now[key]
            except (KeyError, IndexError, TypeError):
                return super().place(path, saved)
        if not isinstance(now, torch.Tensor) or now.shape != saved.shape:
            return super().place(path, saved)
        return torch.empty_like(now)

    def restore(self, saved: Any) -> None:
        self.value.load_state_dict(saved)


class _ModulePart(Part):
    is_plain = False

    def __init__(self, key: str, value: Any) -> None:
        super().__init__(key, value)
        if any(isinstance(module, FullyShardedDataParallel) for module in value.modules()):
            raise TypeError(
                f"state[{key!r}] is wrapped by FullyShardedDataParallel, which cannot be saved "
                "here; use torch.distributed.fsdp.fully_shard, or "
                "prepare_model(parallel_strategy='fsdp')"
            )

    def state(self) -> Any:
        self._parameters = set(_names(self.value).values())
        return get_model_state_dict(self.value, options=_OPTIONS)

    def is_same_everywhere(self, path: _Path) -> bool:
        # Buffers are not: each rank has the running means of its own batches.
        return path[1] in self._parameters

    def check(self, saved: Any) -> None:
        self._now = self.state()
        self.refuse_unless(isinstance(saved, dict), "the checkpoint has no module there")
        _compare(self, self._now, saved)

    def place(self, path: _Path, saved: torch.Tensor) -> torch.Tensor:
        now = self._now[path[1]]
        if not isinstance(now, torch.Tensor):
            return super().place(path, saved)
        self.refuse_unless(not now.is_meta, f"{path[1]} is on meta; use to_empty() first")
        return now

    def restore(self, saved: Any) -> None:
        # The tensors are the module's own; this is for what is no tensor, and for its hooks.
        set_model_state_dict(self.value, saved, options=_OPTIONS)


class _OptimizerPart(Part):
    """An optimizer, its states by the names of the parameters.

    torch's ``get_optimizer_state_dict`` does the same, but makes an optimizer without a state take
    a step first.
    """

    is_plain = False

    def __init__(self, key: str, value: Any, state: Mapping[str, Any]) -> None:
        super().__init__(key, value)
        parameters = [p for group in value.param_groups for p in group["params"]]
        names = _names_in_one_module(key, parameters, state)
        self._parameters = dict(zip(names, parameters, strict=True))

    def state(self) -> Any:
        names = list(self._parameters)
        state = self.value.state_dict()
        states = {
            names[at] if isinstance(at, int) else at: one for at, one in state["state"].items()
        }
        for name, parameter in self._parameters.items():
            self._refuse_local_states(name, parameter, states.get(name, {}))
        groups = [
            {
                **{name: value for name, value in group.items() if name != "param_names"},
                "params": [names[at] for at in group["params"]],
            }
            for group in state["param_groups"]
        ]
        return {**state, "state": states, "param_groups": groups}

    def is_same_everywhere(self, path: _Path) -> bool:
        return bool(path[1] == "state")

    def _refuse_local_states(self, name: str, parameter: Any, state: Mapping[str, Any]) -> None:
        """Refuse what belongs to one rank's shard: it would be saved as if it were everybody's."""
        for key, value in state.items():
            local = isinstance(value, torch.Tensor) and not isinstance(value, DTensor)
            if isinstance(parameter, DTensor) and local and value.ndim > 0:
                raise TypeError(
                    f"save_state(): state[{self.key!r}] has a {key!r} for {name} that is a plain "
                    "tensor although the parameter is a DTensor; it cannot be put together"
                )

    def check(self, saved: Any) -> None:
        fits = isinstance(saved, dict) and {"state", "param_groups"} <= saved.keys()
        self.refuse_unless(fits, "the checkpoint has no optimizer there")
        now = self.value.param_groups
        count = len(saved["param_groups"])
        self.refuse_unless(
            count == len(now),
            f"it has {len(now)} groups of parameters, and the checkpoint {count}",
        )
        names = iter(self._parameters)
        for group, saved_group in zip(now, saved["param_groups"], strict=True):
            _compare(self, [next(names) for _ in group["params"]], saved_group["params"])

    def place(self, path: _Path, saved: torch.Tensor) -> torch.Tensor:
        parameter = self._parameters.get(path[2]) if path[1] == "state" else None
        if parameter is None or saved.ndim == 0 or parameter.shape != saved.shape:
            return super().place(path, saved)
        return torch.empty_like(parameter.detach(), dtype=saved.dtype)

    def restore(self, saved: Any) -> None:
        at = {name: index for index, name in enumerate(self._parameters)}
        own = self.value.state_dict()["param_groups"]
        groups = [
            {**group, "params": mine["params"]}
            for group, mine in zip(saved["param_groups"], own, strict=True)
        ]
        states = {at.get(name, name): state for name, state in saved["state"].items()}
        self.value.load_state_dict({**saved, "state": states, "param_groups": groups})


def _compare(part: Part, now: Iterable[str], saved: Iterable[str]) -> None:
    missing, unexpected = set(now) - set(saved), set(saved) - set(now)
    problems = [
        f"{what} {', '.join(sorted(names)[:5])}{' ...' if len(names) > 5 else ''}"  # noqa: PLR2004
        for what, names in (
            ("missing in the checkpoint:", missing),
            ("only in the checkpoint:", unexpected),
        )
        if names
    ]
    part.refuse_unless(not problems, "; ".join(problems))


def _names_in_one_module(
    key: str, parameters: list[torch.Tensor], state: Mapping[str, Any]
) -> list[str]:
    for module in state.values():
        if isinstance(module, nn.Module):
            names = _names(module)
            if all(parameter in names for parameter in parameters):
                return [names[parameter] for parameter in parameters]
    raise TypeError(
        f"state[{key!r}] is an optimizer, but no module of the state has all its parameters; put "
        "the module that it trains into the state as well, several as one torch.nn.ModuleDict"
    )


def _names(module: nn.Module) -> dict[torch.Tensor, str]:
    """Return every parameter with the name it has in the bare module."""
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()  # after a forward without a backward others stand in their place
    return {parameter: _bare(module, name) for name, parameter in module.named_parameters()}


def _bare(module: Any, name: str) -> str:
    kept = []
    for step in name.split("."):
        if not _is_wrapper(module, step):
            kept.append(step)
        module = getattr(module, step)
    return ".".join(kept)


def _is_wrapper(module: Any, step: str) -> bool:
    # The names below are those of torch.compile and of activation checkpointing.
    is_ddp = isinstance(module, DistributedDataParallel) and step == "module"
    return is_ddp or step in {"_orig_mod", "_checkpoint_wrapped_module"}


def parts_of(state: Any, function: str) -> list[Part]:
    """Return the values of a state as what they are.

    Raises:
        TypeError: The state is not a dict with strings as keys, or an optimizer stands alone.
    """
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise TypeError(
            f"{function}(state={state!r:.80}): must be a dict of names and what they stand for, "
            "such as {'model': model, 'optimizer': optimizer, 'epoch': 3}"
        )
    return [_part(key, value, state) for key, value in state.items()]


def _part(key: str, value: Any, state: Mapping[str, Any]) -> Part:
    if isinstance(value, nn.Module):
        return _ModulePart(key, value)
    if isinstance(value, Optimizer):
        return _OptimizerPart(key, value, state)
    if isinstance(value, torch.Tensor):
        return _TensorPart(key, value)
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return _StatefulPart(key, value)
    return Part(key, value)


def _check_loadable(key: str, structure: Any) -> None:
    """Check, while there is still something to save, that it can be loaded without running code.

    Raises:
        TypeError: It cannot.
    """
    buffer = io.BytesIO()
    try:
        torch.save(structure, buffer)
        buffer.seek(0)
        with safe_types():
            torch.load(buffer, weights_only=True)
    except (pickle.PicklingError, pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"save_state(): state[{key!r}] cannot be saved: only tensors, numbers, strings, "
            f"bytes, numpy arrays, and dicts, lists, tuples and sets of them can: {error}"
        ) from error
