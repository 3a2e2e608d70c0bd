"""What cannot be sent to the workers is named, wherever it hides."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import textwrap
import threading
from types import ModuleType

import pytest

from minitrain._driver.payload import by_value, dump
from minitrain.exceptions import ConfigurationError

LOCK = threading.Lock()


def uses_a_global():
    return LOCK


class Holder:
    def __init__(self, thing=None):
        self.thing = thing

    def method(self):
        return self.thing


def closure_over(thing):
    def train():
        return thing

    return train


def with_default(thing):
    def train(first=1, locker=thing):
        return locker

    return train


def from_a_script(text):
    """Return the function ``train`` of a module that workers could not import."""
    module = ModuleType("__main__")
    exec(textwrap.dedent(text), vars(module))
    return module.train


@pytest.mark.parametrize(
    ("value", "named"),
    [
        pytest.param(closure_over(LOCK), ["captured variable 'thing'"], id="closure"),
        pytest.param(
            from_a_script(
                """
                import threading
                the_lock = threading.Lock()
                def train():
                    with the_lock:
                        pass
                """
            ),
            ["captured variable 'the_lock'"],
            id="global",
        ),
        pytest.param(with_default(LOCK), ["the default of 'locker'"], id="default"),
        pytest.param(
            Holder(LOCK).method, ["the object it is bound to", "attribute 'thing'"], id="bound"
        ),
        pytest.param(Holder(LOCK), ["attribute 'thing'"], id="attribute"),
        pytest.param({"lr": 1, "guard": LOCK}, ["the key 'guard'"], id="config key"),
        pytest.param(
            {"model": {"parts": [1, LOCK]}},
            ["the key 'model'", "the key 'parts'", "item 1"],
            id="nested",
        ),
        pytest.param(functools.partial(max, LOCK), ["the arguments", "item 0"], id="partial"),
        pytest.param(
            functools.partial(max, key=LOCK), ["the arguments", "item 0"], id="partial keyword"
        ),
        pytest.param(
            functools.partial(closure_over(LOCK)),
            ["the function", "captured variable 'thing'"],
            id="partial function",
        ),
        pytest.param(
            closure_over(closure_over(LOCK)),
            ["captured variable 'thing', the captured variable 'thing'"],
            id="closure in a closure",
        ),
    ],
)
def test_the_part_that_cannot_be_pickled_is_named(value, named):
    with pytest.raises(ConfigurationError) as caught:
        dump("train_loop_per_worker", value)
    text = str(caught.value)
    assert text.startswith("train_loop_per_worker cannot be sent to the workers because of ")
    for part in named:
        assert part in text
    assert ", a lock:" in text
    assert "cannot pickle" in text


def test_something_that_cannot_be_pickled_itself_is_named_by_its_argument():
    with pytest.raises(ConfigurationError, match=r"^datasets cannot be sent to the workers: "):
        dump("datasets", LOCK)


def test_the_original_error_is_the_cause():
    with pytest.raises(ConfigurationError) as caught:
        dump("datasets", LOCK)
    assert isinstance(caught.value.__cause__, TypeError)


def test_something_that_refers_to_itself_is_refused_and_not_followed_for_ever():
    config = {}
    config["self"] = config
    config["guard"] = LOCK
    with pytest.raises(ConfigurationError, match=r"the key 'self', .*cannot pickle"):
        dump("train_loop_config", config)


@pytest.mark.parametrize("value", [lambda: 42, closure_over(42), with_default(42)])
def test_lambdas_and_closures_travel(value):
    assert pickle.loads(dump("train_loop_per_worker", value))() == 42


def loads_elsewhere(data: bytes, tmp_path) -> str:
    """Unpickle and call a function in a process that cannot import the modules of this one."""
    (tmp_path / "data").write_bytes(data)
    code = "import pickle, sys; print(pickle.load(open('data', 'rb'))())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.fixture
def module_of_a_test_runner(tmp_path):
    """A module under a name that only this process knows."""
    (tmp_path / "file.py").write_text("NUMBER = 42\ndef train():\n    return NUMBER\n")
    name = "known_here_only"
    module = ModuleType(name)
    module.__file__ = str(tmp_path / "file.py")
    exec((tmp_path / "file.py").read_text(), vars(module))
    sys.modules[name] = module
    yield module
    del sys.modules[name]


def test_a_module_that_workers_cannot_import_travels_by_value(module_of_a_test_runner, tmp_path):
    train = module_of_a_test_runner.train
    with by_value(train):
        assert loads_elsewhere(dump("train_loop_per_worker", train), tmp_path) == "42"


def test_by_value_ends_with_its_block(module_of_a_test_runner, tmp_path):
    train = module_of_a_test_runner.train
    with by_value(train):
        pass
    data = dump("train_loop_per_worker", train)
    assert "known_here_only" in loads_elsewhere(data, tmp_path)


@pytest.mark.campaign
def test_a_file_that_pytest_imported_by_its_path_travels_by_value(tmp_path):
    test_file = tmp_path / "deep" / "test_user.py"
    test_file.parent.mkdir()
    test_file.write_text(
        textwrap.dedent(
            """
            import pathlib
            from minitrain._driver.payload import by_value, dump

            NUMBER = 42

            def train():
                return NUMBER

            def test_it():
                with by_value(train):
                    pathlib.Path("data.pkl").write_bytes(dump("train_loop_per_worker", train))
            """
        )
    )
    command = [
        sys.executable,
        "-P",
        "-c",
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
    ]
    options = ["-q", "-p", "no:cacheprovider"]
    options += ["--import-mode=importlib", "deep"]
    done = subprocess.run(
        command + options, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert loads_elsewhere((tmp_path / "data.pkl").read_bytes(), tmp_path) == "42"


def test_functions_of_installed_modules_travel_by_name():
    with by_value(textwrap.dedent):
        assert len(dump("train_loop_per_worker", textwrap.dedent)) < 100
