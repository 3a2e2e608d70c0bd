"""What the tests of sources share."""

from __future__ import annotations

import pickle

from minitrain.data.files.source import FileSet


def where(*paths, **options) -> FileSet:
    return FileSet(paths=tuple(str(path) for path in paths), **options)


def rows_of(source) -> list[dict]:
    return [row for table in tables_of(source) for row in table.to_pylist()]


def tables_of(source) -> list:
    tables = [table for block in source.blocks() for table in block.read()]
    assert all(table.num_rows for table in tables)
    assert all(table.schema.equals(source.schema()) for table in tables)
    return tables


def counts_of(source) -> int:
    """Count the rows as another process would, which has only what was pickled."""
    return sum(block.count() for block in pickle.loads(pickle.dumps(list(source.blocks()))))
