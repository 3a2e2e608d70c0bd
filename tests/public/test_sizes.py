"""No file outgrows a reader, and every file says what it is."""

from __future__ import annotations

from pathlib import Path

import minitrain

FILES = sorted(Path(minitrain.__file__).parent.rglob("*.py"))
MAX_LINES = 600


def test_no_file_outgrows_a_reader():
    lines = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert len(lines) > 40
    assert {path: number for path, number in lines.items() if number > MAX_LINES} == {}


def test_every_file_says_what_it_is():
    silent = [str(path) for path in FILES if not path.read_text().startswith('"""')]
    assert silent == []
