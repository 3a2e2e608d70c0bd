"""Whatever is done to a run's directory, it holds what a few sets say it holds."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem as FsspecLocalFileSystem
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.disk import Disk, LocalDisk
from minitrain._storage.retry import Retry
from minitrain._storage.run_storage import RunStorage

NAMES = ["checkpoint_000000", "checkpoint_000001", "checkpoint_000012", "mine", "best.pt"]
names = st.sampled_from(NAMES)
contents = st.dictionaries(
    st.sampled_from(["weights", "deep/state", "deep/er", ".hidden", "é ö"]),
    st.binary(max_size=50),
    max_size=4,
)


class Model(RuleBasedStateMachine):
    """What a run's directory holds, beside the directory."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "run").mkdir()
        self.run = RunStorage(self.disk(self.folder / "run"))
        self.begun: dict[str, dict[str, bytes]] = {}
        self.parts: dict[str, list] = {}
        self.whole: dict[str, tuple[int, dict[str, bytes]]] = {}
        self.aside: set[str] = set()
        self.damaged: set[str] = set()
        self.sequence = 0

    def disk(self, root: Path) -> Disk:
        raise NotImplementedError

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(name=names)
    def begin(self, name):
        if name in self.whole or name in self.aside or name in self.begun:
            if self.run.is_local and name not in self.aside:
                with pytest.raises(FileExistsError):
                    self.run.begin(name)
            return
        self.run.begin(name)
        self.begun[name] = {}
        self.parts[name] = [self.put_into(name, {})]

    def put_into(self, name, content, *, move=False):
        source = Path(tempfile.mkdtemp(dir=self.folder))
        for path, data in content.items():
            (source / path).parent.mkdir(exist_ok=True)
            (source / path).write_bytes(data)
        return self.run.put(source, name, move=move)

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), content=contents, move=st.booleans())
    def put(self, data, content, move):
        name = data.draw(st.sampled_from(sorted(self.begun)))
        self.parts[name].append(self.put_into(name, content, move=move))
        self.begun[name].update(content)

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def commit(self, data):
        name = data.draw(st.sampled_from(sorted(self.begun)))
        self.run.commit(name, self.parts[name], self.sequence, {"n": self.sequence}, {})
        self.whole[name] = (self.sequence, self.begun.pop(name))
        self.sequence += 1

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(self.whole)))
        self.run.delete(name)
        del self.whole[name]

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def set_aside(self, data):
        name = data.draw(st.sampled_from(sorted(self.whole)))
        self.run.set_aside(name)
        del self.whole[name]
        self.damaged.add(name)
        if not self.run.is_local:
            self.aside.add(name)

    @rule()
    def sweep(self):
        assert self.run.sweep() == sorted(self.begun)
        self.begun.clear()

    @invariant()
    def holds_what_the_model_says(self):
        in_order = sorted(self.whole.items(), key=lambda item: item[1][0])
        found = self.run.committed()
        assert [(one.name, one.sequence, one.report) for one in found] == [
            (name, sequence, {"n": sequence}) for name, (sequence, _) in in_order
        ]
        for name, (_, content) in in_order:
            assert self.run.manifest(name)["files"] == {
                path: {"bytes": len(data), "crc32": zlib.crc32(data)}
                for path, data in content.items()
            }
            assert self.run.verify(name) == []
            assert all(self.run.read(f"{name}/{path}") == data for path, data in content.items())
        taken = {*self.whole, *self.begun, *self.damaged}
        numbers = [int(name[11:]) for name in taken if name.startswith("checkpoint_")]
        assert self.run.next_index() == max(numbers, default=-1) + 1


class OnLocalDisk(Model):
    def disk(self, root):
        return LocalDisk(str(root))


class OnSubTree(Model):
    def disk(self, root):
        return ArrowDisk(SubTreeFileSystem(str(root.parent), LocalFileSystem()), "run", Retry(0.0))


class OnHandler(Model):
    def disk(self, root):
        filesystem = PyFileSystem(FSSpecHandler(FsspecLocalFileSystem()))
        return ArrowDisk(filesystem, str(root), Retry(0.0))


limits = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestOnLocalDisk = OnLocalDisk.TestCase
TestOnSubTree = OnSubTree.TestCase
TestOnHandler = OnHandler.TestCase
TestOnLocalDisk.settings = TestOnSubTree.settings = TestOnHandler.settings = limits
