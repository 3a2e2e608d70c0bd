"""The first thing that runs on another host: it says what it finds there and becomes the agent.

Its source is sent to whatever Python is there, so it must be understood by any from 3.6 on, and
imports nothing that may be missing.

::

    driver                                      host
      PREFIX PYTHON -c 'read a line, run it' -->
      this file, as one line                 -->
                                             <-- MARKER and facts, as one line
      length and order                       -->
                                                 becomes `python -m minitrain._agent`
"""

import json
import os
import socket
import sys
import time
from typing import Any

MARKER = "<minitrain>"
_GPUS = "/proc/driver/nvidia/gpus"


def main(search: str) -> None:
    """Greet, take the order, and carry it out.

    Args:
        search: The driver's PYTHONPATH: the packages to report may be there.
    """
    if os.isatty(1):  # srun's unbuffered output: newlines must stay what they are
        import tty

        tty.setraw(1)
    sys.path[:0] = [folder for folder in search.split(os.pathsep) if folder]
    _say(_facts())
    order = _read_order()
    if order is None:
        return
    if "probe" in order:
        _say(_answer(**order["probe"]) if order["probe"] else {})
        return
    _change_folder(order)
    environ = dict(os.environ)
    environ.update(order["environ"])
    program = [sys.executable, "-P", "-m", "minitrain._agent"]
    os.execve(sys.executable, program + order["arguments"], environ)  # noqa: S606


def _facts() -> "dict[str, Any]":
    memory = _memory()
    return {
        "hostname": socket.gethostname(),
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "executable": sys.executable,
        "minitrain": _version("minitrain"),
        "torch": _version("torch"),
        "num_cpus": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
        "free_bytes": memory.get("MemAvailable", 0),
        "total_bytes": memory.get("MemTotal", 0),
        "address": (os.environ.get("SSH_CONNECTION", "").split() + [""] * 3)[2] or None,
        "time_s": time.time(),
    }


def _version(package: str) -> "str | None":
    """Return a version, "" for a package without one, None where there is no such package."""
    try:
        from importlib.metadata import version

        return version(package)
    except Exception:  # noqa: BLE001 - an old Python, no such package, a damaged one: look again
        from importlib.util import find_spec

        return None if find_spec(package) is None else ""


def _memory() -> "dict[str, int]":
    memory: dict[str, int] = {}
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:  # noqa: PTH123
            for line in lines:
                words = line.split()
                memory[words[0].rstrip(":")] = int(words[1]) * 1024
    except OSError:
        pass
    return memory


def _gpus() -> "list[str]":
    """Return the models of NVIDIA's GPUs as their driver lists them; no library is loaded."""
    models = []
    try:
        for name in sorted(os.listdir(_GPUS)):  # noqa: PTH208
            with open(os.path.join(_GPUS, name, "information")) as lines:  # noqa: PTH118, PTH123
                facts = dict(line.partition(":")[::2] for line in lines)
            models.append(facts.get("Model", "GPU").strip())
    except OSError:
        pass
    return models


def _say(facts: "dict[str, Any]") -> None:
    line = (MARKER + json.dumps(facts) + "\n").encode()
    while line:
        line = line[os.write(1, line) :]


def _read_order() -> "dict[str, Any] | None":
    """Read exactly the order: what comes after it is the agent's to read."""
    head = b""
    while not head.endswith(b" "):
        byte = os.read(0, 1)
        if not byte:
            return None  # nobody wants anything
        head += byte
    length, line = int(head), b""
    while len(line) < length:
        part = os.read(0, length - len(line))
        if not part:
            return None
        line += part
    order: dict[str, Any] = json.loads(line.decode())
    return order


def _change_folder(order: "dict[str, Any]") -> None:
    try:
        os.chdir(order["working_dir"])
    except OSError as error:
        if order["working_dir_is_asked_for"]:
            sys.exit("minitrain: working directory: {}".format(error))  # noqa: UP032


def _answer(question: str, answer: str, token: str) -> "dict[str, Any]":
    """Say what keeps a folder from being the driver's: read what it wrote there, and answer."""
    try:
        with open(question, encoding="utf-8") as file:  # noqa: PTH123
            if file.read() != token:
                return {"problem": "{}: is another file here".format(question)}  # noqa: UP032
        with open(answer, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(token)
    except OSError as error:
        return {"problem": str(error)}
    return {"problem": None}
