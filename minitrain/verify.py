"""``python -m minitrain.verify RUN_DIR``: are a run's checkpoints still what was written?"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minitrain import _manifest
from minitrain._storage.layout import RECORD
from minitrain.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["main"]

_UNFINISHED = ".unfinished"
_OUR_NAMES = re.compile(r"checkpoint_\d{6,}")
_WHOLE, _DAMAGE, _USAGE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one directory of the run turned out to be.

    Attributes:
        name: The directory's name.
        manifest: What was written; None if it was never committed, or nobody can read it.
        problems: What is wrong.
    """

    name: str
    manifest: _manifest.Manifest | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def is_unfinished(self) -> bool:
        return self.manifest is None and not self.problems


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per checkpoint, and what is wrong with it.

    Args:
        argv: The arguments, by default those of this process.

    Returns:
        0 if all checkpoints are whole, 1 if one is damaged, 2 if there is no run.
    """
    parser = argparse.ArgumentParser(
        prog="python -m minitrain.verify",
        description="Compare every checkpoint of a run with what was written.",
        epilog="Exit status: 0 all are whole, 1 something is damaged, 2 no run there.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a path, or a URI such as s3://...")
    parser.add_argument(
        "--sizes", action="store_true", help="compare sizes only: fast, but blind to a flipped bit"
    )
    args = parser.parse_args(argv)
    try:
        run = Checkpoint(args.run_dir)
        names = _directories(run.filesystem, run.path)
        if names is None:
            sys.stderr.write(f"{args.run_dir}: no run there (it has no {RECORD})\n")
            return _USAGE
        findings = [
            finding
            for name in names
            if (finding := _look_at(run.filesystem, run.path, name, contents=not args.sizes))
        ]
    except (OSError, ValueError) as error:  # a storage that does not answer, a URI that is none
        sys.stderr.write(f"{args.run_dir}: cannot be read: {error}\n")
        return _USAGE
    sys.stdout.write("\n".join([*_table(findings), _summary(findings, only_sizes=args.sizes), ""]))
    return _DAMAGE if any(finding.problems for finding in findings) else _WHOLE


def _directories(filesystem: FileSystem, path: str) -> list[str] | None:
    """Return the names of the directories in a run's directory; None if there is no run."""
    from pyarrow.fs import FileType

    if filesystem.get_file_info(f"{path.rstrip('/')}/{RECORD}").type != FileType.File:
        return None
    files = _manifest.list_files(filesystem, path)
    return sorted({name.partition("/")[0] for name in files if "/" in name})


def _look_at(filesystem: FileSystem, root: str, name: str, *, contents: bool) -> _Finding | None:
    """Return what a directory is; None if it has nothing to do with checkpoints."""
    path = f"{root.rstrip('/')}/{name}"
    if name.startswith(_UNFINISHED):
        return _Finding(name)
    try:
        manifest = _manifest.read(filesystem, path)
    except ValueError as error:
        return _Finding(name, problems=[f"{_manifest.MANIFEST}: {error}"])
    if manifest is not None:
        problems = _manifest.find_problems(manifest, filesystem, path, contents=contents)
        return _Finding(name, manifest, problems)
    from pyarrow.fs import FileType

    begun = filesystem.get_file_info(f"{path}/{_UNFINISHED}").type != FileType.NotFound
    return _Finding(name) if begun or _OUR_NAMES.fullmatch(name) else None


def _table(findings: Sequence[_Finding]) -> list[str]:
    rows = [(finding.name, *_extent(finding), _verdict(finding)) for finding in findings]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for finding, (name, files, size, verdict) in zip(findings, rows, strict=True):
        columns = (name.ljust(widths[0]), files.rjust(widths[1]), size.rjust(widths[2]), verdict)
        lines.append("  ".join(columns))
        lines += [f"    {problem}" for problem in finding.problems]
    return lines


def _extent(finding: _Finding) -> tuple[str, str]:
    if finding.manifest is None:
        return "", ""
    return _count(len(finding.manifest.files), "file"), _readable(finding.manifest.size_bytes)


def _verdict(finding: _Finding) -> str:
    if finding.problems:
        return "DAMAGED"
    return "unfinished: not a checkpoint" if finding.is_unfinished else "whole"


def _summary(findings: Sequence[_Finding], *, only_sizes: bool) -> str:
    damaged = sum(bool(finding.problems) for finding in findings)
    unfinished = sum(finding.is_unfinished for finding in findings)
    num_checkpoints = len(findings) - unfinished
    if damaged:
        verdict = f"{damaged} of {_count(num_checkpoints, 'checkpoint')} damaged"
    elif num_checkpoints:
        verdict = f"{_count(num_checkpoints, 'checkpoint')}, all whole"
        verdict += " by their sizes" if only_sizes else ""
    else:
        verdict = "no checkpoints"
    return verdict + (f", {unfinished} unfinished" if unfinished else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _readable(size_bytes: int) -> str:
    """Return a size as people read it.

    >>> _readable(1536)
    '1.5 KiB'
    """
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:  # noqa: PLR2004 - what a unit is to the next smaller one
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


if __name__ == "__main__":
    sys.exit(main())
