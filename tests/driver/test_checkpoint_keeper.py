"""Checkpoints of a run: names, commits, what stays; with real files."""

from __future__ import annotations

import json
import logging
import os
import zlib
from pathlib import Path

import pytest

from minitrain._driver.checkpoints import CheckpointKeeper
from minitrain._driver.clerk import Clerk
from minitrain._storage.disk import LocalDisk
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import RunRecord
from minitrain._storage.run_storage import RunStorage
from minitrain._wire.messages import Reported
from minitrain.exceptions import CheckpointError


class Run:
    """A run's directory and the keeper of its checkpoints."""

    def __init__(self, root: Path, *, keep=None, attribute=None, order="max", metadata=None):
        self.layout = RunLayout(root)
        self.record = RunRecord(
            name=root.name,
            run_id="abc",
            trainer="T",
            minitrain_version="0",
            scaling={},
            config={},
            num_to_keep=keep,
            score_attribute=attribute,
            score_order=order,
        )
        self.metadata = metadata or {}
        self.reports = 0
        self.open()

    def open(self, rows=()):
        self.storage = RunStorage(LocalDisk(str(self.layout.root)))
        clerk = Clerk(waits=False)
        self.keeper = CheckpointKeeper(self.storage, self.record, self.metadata, clerk, rows)
        clerk.close()

    def begin(self, index, name=None, **how):
        """Begin a checkpoint and return its directory."""
        return self.layout.root / self.keeper.name_for(index, name, **how)

    def commit(self, reports, row):
        """Commit what ranks have reported, and return it or raise why not."""
        (name,) = {report.checkpoint for report in reports if report.checkpoint}
        outcomes = []
        self.keeper.commit(name, reports, row, outcomes.append)
        self.keeper.tidy()
        (outcome,) = outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @property
    def newest(self):
        """The path of the checkpoint that the next attempt starts from."""
        checkpoint = self.keeper.newest()
        return checkpoint and checkpoint.path

    def manifest(self, name):
        return self.storage.manifest(name)

    def report(self, metrics, files=None, name=None, ranks=2):
        """Have every rank make a report, with the files it is given by rank."""
        index, self.reports = self.reports, self.reports + 1
        path = self.begin(index, name)
        reports = [Reported(index, metrics)] * ranks
        for rank, content in (files or {0: {"weights": "w"}}).items():
            source = self.layout.root.parent / f"source_{rank}_{index}"
            for file, text in content.items():
                (source / file).parent.mkdir(parents=True, exist_ok=True)
                (source / file).write_text(text)
            entries = self.storage.put(source, path.name)
            reports[rank] = Reported(index, metrics, None, path.name, entries)
        return self.commit(reports, metrics)

    @property
    def on_disk(self):
        return sorted(path.name for path in self.layout.root.iterdir() if path.is_dir())


@pytest.fixture
def make_run(tmp_path):
    def make(**settings):
        root = tmp_path / "run"
        root.mkdir()
        return Run(root, **settings)

    return make


# ------------------------------------------------------------------ names
def test_checkpoints_are_numbered(make_run):
    run = make_run()
    names = [run.report({"loss": number}).name for number in range(3)]
    assert names == ["checkpoint_000000", "checkpoint_000001", "checkpoint_000002"]


def test_every_rank_that_asks_is_given_the_same_directory(make_run):
    run = make_run()
    assert run.begin(0, None) == run.begin(0, None)
    assert run.begin(1, None) != run.begin(0, None)


def test_a_name_is_not_used_again_after_its_checkpoint_was_deleted(make_run):
    run = make_run(keep=1)
    names = [run.report({}).name for _ in range(3)]
    run.open()
    names.append(run.report({}).name)
    run.report({}, name="mine")
    names.append(run.report({}).name)
    assert names == [f"checkpoint_{number:06d}" for number in range(5)]


def test_a_name_is_not_used_again_after_an_attempt_that_did_not_finish(make_run):
    run = make_run()
    run.report({})
    unfinished = run.begin(1, None)
    run.keeper.begin_attempt()
    begun = [run.begin(index, None) for index in (0, 1)]
    assert unfinished not in begun
    assert all(path.is_dir() for path in begun)


def test_a_name_that_only_a_row_remembers_is_not_used_again(make_run):
    run = make_run()
    run.report({})
    unfinished = run.begin(1, None).name
    run.keeper.begin_attempt()
    run.open([{}, {"checkpoint_dir_name": unfinished}, {"checkpoint_dir_name": None}])
    assert run.report({}).name not in {unfinished, "checkpoint_000000"}


def test_the_name_of_a_damaged_checkpoint_is_not_used_again_by_another_driver(make_run):
    run = make_run()
    run.report({})
    damaged = run.report({}).name
    (run.layout.root / damaged / "weights").write_text("?")
    run.keeper.newest()
    run.open()
    assert run.report({}).name not in {damaged, "checkpoint_000000"}


def test_a_user_may_choose_the_name(make_run):
    run = make_run()
    assert run.report({}, name="best so far").name == "best so far"
    assert run.report({}).name == "checkpoint_000000"


@pytest.mark.parametrize("taken", ["mine", "logs", "result.json"])
def test_a_name_that_is_taken_is_refused_with_the_path(make_run, taken):
    run = make_run()
    (run.layout.root / "logs").mkdir()
    run.layout.rows.touch()
    run.report({}, name="mine")
    with pytest.raises(CheckpointError) as caught:
        run.begin(9, taken)
    assert repr(taken) in str(caught.value)
    assert str(run.layout.root / taken) in str(caught.value)


def test_a_taken_name_does_not_touch_the_live_checkpoint(make_run):
    run = make_run(keep=1)
    run.report({}, {0: {"weights": "good"}}, name="mine")
    with pytest.raises(CheckpointError):
        run.report({}, {0: {"weights": "bad"}}, name="mine")
    assert ((run.layout.root / "mine") / "weights").read_text() == "good"
    assert run.manifest("mine")


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("a", None), (None, "b")])
def test_ranks_that_disagree_about_the_name_are_told_both(make_run, first, second):
    run = make_run()
    run.begin(0, first)
    with pytest.raises(CheckpointError) as caught:
        run.begin(0, second)
    assert repr(first) in str(caught.value)
    assert repr(second) in str(caught.value)


def test_a_directory_that_cannot_be_made_is_a_checkpoint_error(make_run):
    run = make_run()
    run.layout.root.rmdir()
    run.layout.root.touch()
    with pytest.raises(CheckpointError, match="could not be begun"):
        run.begin(0, None)


# ------------------------------------------------------------------ commits
def test_the_files_of_all_ranks_are_in_one_checkpoint(make_run):
    run = make_run()
    files = {0: {"rank_0": "a", "same": "x"}, 1: {"rank_1": "b", "deep/er": "c", "same": "x"}}
    path = run.layout.root / run.report({}, files).name
    manifest = run.manifest(path.name)
    assert set(manifest["files"]) == {"rank_0", "rank_1", "deep/er", "same"}
    for name, facts in manifest["files"].items():
        data = (path / name).read_bytes()
        assert facts == {"bytes": len(data), "crc32": zlib.crc32(data)}


def test_any_subset_of_the_ranks_may_give_files(make_run):
    run = make_run()
    path = run.layout.root / run.report({}, {2: {"only": "x"}}, ranks=3).name
    assert list(run.manifest(path.name)["files"]) == ["only"]


def test_the_newest_is_the_one_committed_last(make_run):
    run = make_run(keep=2, attribute="acc")
    assert run.newest is None
    for accuracy in (3, 2, 1):
        name = run.report({"acc": accuracy}).name
        assert run.newest == str(run.layout.root / name)


def test_another_keeper_of_the_run_knows_what_was_committed(make_run):
    run = make_run()
    name = run.report({}).name
    run.open()
    assert run.newest == str(run.layout.root / name)
    assert run.report({}).sequence == 1


def test_a_checkpoint_that_cannot_be_committed_is_an_error_and_no_checkpoint(make_run):
    run = make_run()
    path = run.begin(0, None)
    (path / ".unfinished").unlink()
    path.rmdir()
    reports = [Reported(0, {}, None, path.name, ())]
    with pytest.raises(CheckpointError, match="could not be committed"):
        run.commit(reports, {})
    assert run.newest is None


# ------------------------------------------------------------------ what stays
@pytest.mark.parametrize(
    ("settings", "scores", "stay"),
    [
        ({"keep": None}, [1, 2, 3], [0, 1, 2]),
        ({"keep": 1}, [1, 2, 3], [2]),
        ({"keep": 2}, [1, 2, 3], [1, 2]),
        ({"keep": 1, "attribute": "s"}, [3, 2, 1], [0, 2]),
        ({"keep": 1, "attribute": "s"}, [1, 2, 3], [2]),
        ({"keep": 2, "attribute": "s"}, [1, 3, 2], [1, 2]),
        ({"keep": 2, "attribute": "s", "order": "min"}, [10, 9, float("nan"), 7], [1, 3]),
        ({"keep": 2, "attribute": "s", "order": "min"}, [10, None, 9, 8], [2, 3]),
        ({"keep": 1, "attribute": "s", "order": "min"}, [1, None], [0, 1]),
    ],
)
def test_the_best_and_the_newest_stay_on_disk(make_run, settings, scores, stay):
    run = make_run(**settings)
    for score in scores:
        run.report({} if score is None else {"s": score})
    assert run.on_disk == [f"checkpoint_{number:06d}" for number in stay]
    assert run.record.checkpoints == run.on_disk


def test_a_newest_that_was_not_good_enough_goes_with_the_next_report(make_run):
    run = make_run(keep=1, attribute="s")
    for score in (3, 2):
        run.report({"s": score})
    assert run.on_disk == ["checkpoint_000000", "checkpoint_000001"]
    run.report({"s": 1})
    assert run.on_disk == ["checkpoint_000000", "checkpoint_000002"]


def test_the_record_no_longer_names_a_checkpoint_when_it_is_deleted(make_run, monkeypatch):
    run = make_run(keep=1)
    run.report({})
    named_at_deletion = []
    really_delete = RunStorage.delete

    def delete(self, name):
        assert (run.layout.root / name).is_dir()
        named_at_deletion.append((name, RunRecord.load(run.layout).checkpoints))
        really_delete(self, name)

    monkeypatch.setattr(RunStorage, "delete", delete)
    run.report({})
    assert named_at_deletion == [("checkpoint_000000", ["checkpoint_000001"])]


def test_the_record_no_longer_names_a_damaged_checkpoint_when_it_is_set_aside(
    make_run, monkeypatch
):
    run = make_run()
    whole, damaged = run.report({}).name, run.report({}).name
    (run.layout.root / damaged / "weights").write_text("?")
    named = []
    really_set_aside = RunStorage.set_aside

    def set_aside(self, name):
        named.append((name, RunRecord.load(run.layout).checkpoints))
        really_set_aside(self, name)

    monkeypatch.setattr(RunStorage, "set_aside", set_aside)
    assert run.newest == str(run.layout.root / whole)
    assert named == [(damaged, [whole])]


def test_a_checkpoint_is_committed_before_the_record_names_it(make_run, monkeypatch):
    run = make_run()
    really_replace = os.replace
    committed_at_save = []

    def replace(source, target):
        if Path(target) == run.layout.record:
            named = json.loads(Path(source).read_text())["checkpoints"]
            paths = [(run.layout.root / name) for name in named]
            committed_at_save.append([run.manifest(path.name) is not None for path in paths])
        really_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    run.report({})
    run.report({})
    assert committed_at_save == [[True], [True, True]]


def test_a_score_that_is_missing_is_warned_of_once_with_what_was_reported(make_run, caplog):
    run = make_run(keep=2, attribute="val/acc")
    with caplog.at_level(logging.WARNING, "minitrain"):
        run.report({"val": {"loss": 1}, "epoch": 1})
        run.report({"val": {"loss": 1}, "epoch": 2})
    (record,) = caplog.records
    assert "'val/acc'" in record.getMessage()
    assert "epoch" in record.getMessage()


def test_a_score_that_is_there_is_not_warned_of(make_run, caplog):
    run = make_run(keep=2, attribute="val/acc")
    with caplog.at_level(logging.WARNING, "minitrain"):
        run.report({"val": {"acc": 0}})
    assert not caplog.records


# ------------------------------------------------------------------ metadata
@pytest.mark.parametrize(
    ("own", "trainers", "expected"),
    [
        (None, {"a": 1}, {"a": 1}),
        ({"b": 2}, {"a": 1}, {"a": 1, "b": 2}),
        ({"a": 2}, {"a": 1, "c": 3}, {"a": 2, "c": 3}),
        ({"a": None}, {"a": 1}, {"a": None}),
        ({"a": 2}, {}, {"a": 2}),
    ],
)
def test_the_trainers_metadata_is_added_and_the_users_own_wins(make_run, own, trainers, expected):
    run = make_run(metadata=trainers)
    files = {"weights": "w"} | ({".metadata.json": json.dumps(own)} if own else {})
    path = run.layout.root / run.report({}, {0: files}).name
    assert json.loads((path / ".metadata.json").read_text()) == expected


def test_the_manifest_knows_the_metadata_as_it_was_written(make_run):
    run = make_run(metadata={"a": 1})
    path = run.layout.root / run.report({}, {0: {".metadata.json": '{"b": 2}'}}).name
    data = (path / ".metadata.json").read_bytes()
    files = run.manifest(path.name)["files"]
    assert files == {".metadata.json": {"bytes": len(data), "crc32": zlib.crc32(data)}}


@pytest.mark.parametrize("text", ["{ torn", "[1]"])
def test_metadata_that_is_not_a_json_object_is_an_error_of_the_checkpoint(make_run, text):
    run = make_run(metadata={"a": 1})
    with pytest.raises(CheckpointError):
        run.report({}, {0: {".metadata.json": text}})


# ------------------------------------------------------------------ what an attempt left
@pytest.mark.parametrize("name", [None, "mine"])
def test_a_new_attempt_sweeps_what_was_not_finished(make_run, name):
    run = make_run()
    unfinished = run.begin(0, name)
    (unfinished / "half").write_text("half")
    run.keeper.begin_attempt()
    assert not unfinished.exists()


def test_a_new_attempt_keeps_checkpoints_and_the_users_own_folders(make_run):
    run = make_run()
    run.report({})
    run.report({}, name="mine")
    for own in ("plots", "artifacts", "checkpoint_best", "checkpoints"):
        (run.layout.root / own).mkdir()
        (run.layout.root / own / "file").touch()
    before = run.on_disk
    run.keeper.begin_attempt()
    assert run.on_disk == before


def test_a_name_can_be_chosen_again_after_an_attempt_that_did_not_finish(make_run):
    run = make_run()
    run.begin(0, "mine")
    run.keeper.begin_attempt()
    assert run.report({}, name="mine").name == "mine"


def test_what_could_not_be_deleted_goes_with_the_next_one(make_run, monkeypatch):
    run = make_run(keep=1)
    run.report({"loss": 0})

    def fail(storage, name):
        raise OSError("the storage does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(RunStorage, "delete", fail)
        run.report({"loss": 1})
    assert run.on_disk == ["checkpoint_000000", "checkpoint_000001"]
    run.report({"loss": 2})
    assert run.on_disk == ["checkpoint_000002"]
