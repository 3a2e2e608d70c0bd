"""GPUs are counted and named through NVIDIA's library; here it is one of our own making."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain._os.gpus import Gpu, assign, num_needed, visible

GPUS = [Gpu(str(n), f"Model {n}", f"GPU-{n}{n}-abc") for n in range(4)]


# ------------------------------------------------------------------ who gets which
@pytest.mark.parametrize(
    ("workers", "each", "names", "expected"),
    [
        (2, 1, "01", [("0",), ("1",)]),
        (2, 1.0, "01", [("0",), ("1",)]),
        (2, 2, "0123", [("0", "1"), ("2", "3")]),
        (1, 4, "0123", [("0", "1", "2", "3")]),
        (3, 0.5, "01", [("0",), ("0",), ("1",)]),
        (4, 0.3, "01", [("0",), ("0",), ("0",), ("1",)]),
        (2, 0.7, "01", [("0",), ("1",)]),
        (10, 0.1, "0", [("0",)] * 10),
        (3, 1 / 3, "0", [("0",)] * 3),
        (2, 1, "53", [("5",), ("3",)]),
        (0, 1, "0", []),
    ],
)
def test_every_worker_gets_its_gpus(workers, each, names, expected):
    assert assign(workers, each, list(names)) == expected


@pytest.mark.parametrize(
    ("workers", "each", "expected"),
    [
        (1, 1, 1),
        (3, 1, 3),
        (2, 2, 4),
        (3, 0.5, 2),
        (4, 0.3, 2),
        (3, 0.3, 1),
        (10, 0.1, 1),
        (11, 0.1, 2),
        (2, 0.7, 2),
        (3, 1 / 3, 1),
        (0, 0.5, 0),
    ],
)
def test_how_many_gpus_are_needed(workers, each, expected):
    assert num_needed(workers, each) == expected


amounts = st.one_of(
    st.integers(min_value=1, max_value=8),
    st.floats(min_value=0.01, max_value=1, exclude_max=True),
    st.integers(min_value=1, max_value=50).map(lambda count: 1 / count),
)


@given(workers=st.integers(min_value=0, max_value=40), each=amounts)
def test_what_is_needed_is_enough_and_nothing_is_given_twice(workers, each):
    names = [str(number) for number in range(num_needed(workers, each))]
    given_out = assign(workers, each, names)
    assert len(given_out) == workers
    used = [name for own in given_out for name in own]
    assert set(used) == set(names), "not more than needed"
    share = min(each, 1)
    for name in names:
        assert used.count(name) * share <= 1 + 1e-6
    assert all(len(own) == max(1, int(each)) for own in given_out)


# ------------------------------------------------------------------ CUDA_VISIBLE_DEVICES
@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [("0", 0), ("1", 1), ("2", 2), ("3", 3)]),
        ("", []),
        ("0", [("0", 0)]),
        ("2,0", [("2", 2), ("0", 0)]),
        (" 1 , 3 ", [("1", 1), ("3", 3)]),
        ("GPU-11-abc", [("GPU-11-abc", 1)]),
        ("GPU-22", [("GPU-22", 2)]),
        ("GPU-33,0", [("GPU-33", 3), ("0", 0)]),
        ("-1", []),
        ("0,-1,1", [("0", 0)]),
        ("1,9,0", [("1", 1)]),
        ("0,GPU-99,1", [("0", 0)]),
        ("NoDevFiles", []),
        ("none", []),
        ("0,,1", [("0", 0)]),
        ("MIG-11", []),
    ],
)
def test_the_variable_leaves_what_cuda_would_see_in_its_order(variable, expected):
    chosen = visible(GPUS, variable)
    assert [(gpu.name, GPUS.index(Gpu(gpu.uuid[4], gpu.model, gpu.uuid))) for gpu in chosen] == (
        expected
    )


# ------------------------------------------------------------------ the library
NVML = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}
static void note(const char *call) {
    FILE *file = fopen(getenv("FAKE_LOG"), "a");
    fprintf(file, "%s\n", call);
    fclose(file);
}
int nvmlInit_v2(void) { note("init"); return number("FAKE_INIT"); }
int nvmlShutdown(void) { note("shutdown"); return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = number("FAKE_GPUS");
    return number("FAKE_COUNT");
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    if (getenv("FAKE_LOST") && number("FAKE_LOST") == (int)index) return 15;
    *handle = (void *)(size_t)(0x7f0000000000ull + index);
    return 0;
}
static unsigned int index_of(void *handle) { return (unsigned int)((size_t)handle & 0xff); }
int nvmlDeviceGetName(void *handle, char *name, unsigned int length) {
    snprintf(name, length, "NVIDIA Fake %u", index_of(handle));
    return 0;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-%08x-0000", index_of(handle));
    return 0;
}
"""
LIST = (
    "import dataclasses, json; from minitrain._os.gpus import list_gpus;"
    "print(json.dumps([dataclasses.astuple(gpu) for gpu in list_gpus()]))"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    command = [compiler, "-shared", "-fPIC", "-o", "libnvidia-ml.so.1", "nvml.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


def listed(folder, **environ):
    """List the GPUs in a process that finds this library and no other."""
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env |= {"LD_LIBRARY_PATH": str(folder), "FAKE_LOG": str(folder / "log"), **environ}
    done = subprocess.run(
        [sys.executable, "-c", LIST], capture_output=True, text=True, check=True, env=env
    )
    return [Gpu(*fields) for fields in json.loads(done.stdout)]


def test_every_gpu_is_listed_with_its_model_and_uuid(library):
    assert listed(library, FAKE_GPUS="2") == [
        Gpu("0", "NVIDIA Fake 0", "GPU-00000000-0000"),
        Gpu("1", "NVIDIA Fake 1", "GPU-00000001-0000"),
    ]


def test_only_visible_gpus_are_listed(library):
    gpus = listed(library, FAKE_GPUS="4", CUDA_VISIBLE_DEVICES="3,GPU-00000001")
    assert gpus == [
        Gpu("3", "NVIDIA Fake 3", "GPU-00000003-0000"),
        Gpu("GPU-00000001", "NVIDIA Fake 1", "GPU-00000001-0000"),
    ]


@pytest.mark.parametrize(
    ("environ", "indices"),
    [
        ({"FAKE_GPUS": "0"}, []),
        ({"FAKE_GPUS": "2", "FAKE_INIT": "9"}, []),
        ({"FAKE_GPUS": "2", "FAKE_COUNT": "9"}, []),
        ({"FAKE_GPUS": "3", "FAKE_LOST": "1"}, ["0", "2"]),
    ],
    ids=["no gpu", "driver not loaded", "no count", "one fell off the bus"],
)
def test_what_does_not_answer_is_not_listed(library, environ, indices):
    assert [gpu.name for gpu in listed(library, **environ)] == indices


def test_the_library_is_shut_down_after_use(library):
    (library / "log").unlink(missing_ok=True)
    listed(library, FAKE_GPUS="1")
    assert (library / "log").read_text().split() == ["init", "shutdown"]


def test_a_machine_without_the_library_has_no_gpus(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    assert listed(tmp_path) == []
