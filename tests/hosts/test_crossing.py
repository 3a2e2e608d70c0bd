"""Which variables go to other hosts, and above all which do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain._hosts.crossing import crossing, is_secret


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "CUDA_HOME", "CUDA_LAUNCH_BLOCKING"),
        *("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TORCH_HOME", "HF_HOME"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MINITRAIN_STORAGE", "MINITRAIN_RETRY_S"),
    ],
)
def test_what_users_of_torchrun_expect_crosses(name):
    assert crossing({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    [
        *("HOME", "USER", "EDITOR", "SSH_AUTH_SOCK", "DISPLAY", "PATH_X", "MYPATH", "path"),
        *("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN", "MINITRAIN_TOKEN", "NCCL_password"),
        *("TORCH_PASSWD", "HF_CREDENTIALS", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_the_rest_and_secrets_stay_unless_they_are_named(name):
    assert crossing({name: "x"}) == {}
    assert crossing({name: "x"}, [name]) == {name: "x"}
    assert (name in crossing({name: "x"}, ["*"])) != (
        is_secret(name) or name == "CUDA_VISIBLE_DEVICES"
    )


@pytest.mark.parametrize(
    "name",
    [
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"),
        *("ROLE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "MINITRAIN_AGENT"),
        *("MINITRAIN_HOSTS", "MINITRAIN_TRANSPORT", "MINITRAIN_REMOTE_PYTHON"),
        *("MINITRAIN_SSH_OPTIONS", "MINITRAIN_WORKERS_PER_HOST", "MINITRAIN_COLLECT"),
    ],
)
def test_what_says_who_this_process_is_never_crosses(name):
    assert crossing({name: "x"}, [name, "*"]) == {}


@given(
    st.dictionaries(st.text(min_size=1), st.text()),
    st.lists(st.sampled_from(["*", "A*", "*KEY*", "[A-Z]*", "?*"])),
)
def test_no_pattern_lets_a_secret_through(environ, patterns):
    environ = {
        f"{name}{suffix}": value for name, value in environ.items() for suffix in ("", "Key")
    }
    crossed = crossing(environ, patterns)
    assert crossed.items() <= environ.items()
    assert not any(is_secret(name) and name not in patterns for name in crossed)
