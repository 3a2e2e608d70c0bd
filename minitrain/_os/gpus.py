"""Counts and names this machine's GPUs through NVIDIA's management library (NVML).

NVML creates no CUDA context, so the processes that look here can still be forked.
Reference: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Gpu", "assign", "list_gpus", "num_needed", "visible"]

_TEXT_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE, and enough for a UUID


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU.

    Attributes:
        name: What ``CUDA_VISIBLE_DEVICES`` calls it: its index, or its UUID where the
            variable held UUIDs.
        model: The marketing name, such as ``NVIDIA A100-SXM4-80GB``.
        uuid: The unique id.
    """

    name: str
    model: str
    uuid: str


def list_gpus(environ: Mapping[str, str] | None = None) -> list[Gpu]:
    """Return the GPUs a process with this environment could use; none without a driver."""
    environ = os.environ if environ is None else environ
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        return visible(_all_gpus(nvml), environ.get("CUDA_VISIBLE_DEVICES"))
    finally:
        nvml.nvmlShutdown()


def _all_gpus(nvml: ctypes.CDLL) -> list[Gpu]:
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    gpus = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            continue
        model = _text(nvml, "nvmlDeviceGetName", handle)
        gpus.append(Gpu(str(index), model, _text(nvml, "nvmlDeviceGetUUID", handle)))
    return gpus


def _text(nvml: ctypes.CDLL, function: str, handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    getattr(nvml, function)(handle, buffer, _TEXT_BYTES)
    return buffer.value.decode()


def visible(gpus: Sequence[Gpu], variable: str | None) -> list[Gpu]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order.

    As CUDA does: entries are indices or (beginnings of) UUIDs, and the first one that fits
    nothing ends the list.
    """
    if variable is None:
        return list(gpus)
    chosen: list[Gpu] = []
    for entry in variable.split(","):
        name = entry.strip()
        match = next((gpu for gpu in gpus if _is_called(gpu, name)), None)
        if match is None:
            break
        chosen.append(Gpu(name, match.model, match.uuid))
    return chosen


def _is_called(gpu: Gpu, name: str) -> bool:
    return name == gpu.name or (name.startswith("GPU-") and gpu.uuid.startswith(name))


def assign(num_workers: int, gpus_per_worker: float, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Give every local worker its GPUs.

    Args:
        num_workers: Workers on this machine.
        gpus_per_worker: A whole number, or a fraction below one to share a GPU.
        names: The GPUs, as ``CUDA_VISIBLE_DEVICES`` calls them.

    Returns:
        One tuple of names per local rank.

    >>> assign(2, 2, ["0", "1", "2", "3"])
    [('0', '1'), ('2', '3')]
    >>> assign(3, 0.5, ["0", "1"])
    [('0',), ('0',), ('1',)]
    """
    if gpus_per_worker < 1:
        sharing = int(1 / gpus_per_worker + 1e-9)
        return [(names[rank // sharing],) for rank in range(num_workers)]
    each = int(gpus_per_worker)
    return [tuple(names[rank * each : (rank + 1) * each]) for rank in range(num_workers)]


def num_needed(num_workers: int, gpus_per_worker: float) -> int:
    """Return how many GPUs :func:`assign` needs.

    >>> num_needed(3, 0.5), num_needed(2, 2)
    (2, 4)
    """
    if gpus_per_worker < 1:
        sharing = int(1 / gpus_per_worker + 1e-9)
        return -(-num_workers // sharing)
    return num_workers * int(gpus_per_worker)
