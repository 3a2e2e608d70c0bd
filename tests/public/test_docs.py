"""Every example in the documentation and in docstrings runs; every link leads somewhere."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minitrain
from minitrain import _env, exceptions

ROOT = Path(minitrain.__file__).parent.parent
PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.exists()
]
PRINT_WHAT_THEY_SHOW = {"data.md"}
"""The text blocks of these pages are what their examples print, but for the line breaks."""
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(minitrain.__path__, "minitrain.")
    if not module.name.endswith("__main__")
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


SLOW_PAGES = {
    "backends.md", "checkpoints.md", "data.md", "errors.md", "fault-tolerance.md", "hosts.md",
    "reports.md", "storage.md", "README.md",
}  # fmt: skip


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.campaign] * (page.name in SLOW_PAGES), id=page.name)
        for page in PAGES
    ],
)
def test_the_examples_of_a_page_run_in_order(page, tmp_path):
    code = "\n".join(blocks(page, "python"))
    if not code:
        return
    script = tmp_path / "page.py"
    script.write_text(code)
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if page.name in PRINT_WHAT_THEY_SHOW:
        printed = words(done.stdout.replace(str(tmp_path), "/data"))
        for shown in blocks(page, "text"):
            assert words(shown) in printed, f"not printed:\n{shown}\nbut:\n{done.stdout}"


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_run(name):
    module = importlib.import_module(name)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=options).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readmes_commands_are_those_ci_runs():
    commands = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    ci = (ROOT / ".ci" / "run").read_text().replace("install -q", "install")
    assert len(commands) == 2
    for command in commands:
        assert command in ci


def test_every_variable_stands_in_the_documentation():
    text = (ROOT / "docs" / "environment.md").read_text()
    for variable in _env.VARIABLES.values():
        default = f"`{variable.default}`" if variable.default else "nothing"
        assert f"| `{variable.name}` | {default} | {variable.meaning} |" in text


def test_every_error_stands_in_the_documentation():
    text = (ROOT / "docs" / "errors.md").read_text()
    for name in exceptions.__all__:
        if name.endswith("Error"):
            assert f"`{name}`" in text, name


def test_every_example_stands_in_a_test():
    text = (ROOT / "tests" / "integrations" / "test_examples.py").read_text()
    for path in (ROOT / "examples").iterdir():
        if path.suffix in {".py", ".ipynb"}:
            assert path.name in text or path.stem in text, path.name
