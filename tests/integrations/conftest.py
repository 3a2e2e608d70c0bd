"""A library in place of NVIDIA's, which has as many GPUs as a file says."""

from __future__ import annotations

import shutil
import subprocess

import pytest

NVML = r"""
#include <stdio.h>
#include <stdlib.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    FILE *file = fopen(getenv("FAKE_GPUS_FILE"), "r");
    int ok = file && fscanf(file, "%u", count) == 1;
    if (file) fclose(file);
    return ok ? 0 : 9;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(size_t)(1 + index);
    return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    snprintf(name, length, "Fake %u", (unsigned)(size_t)device - 1);
    return 0;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%08x", (unsigned)(size_t)device - 1);
    return 0;
}
"""


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
