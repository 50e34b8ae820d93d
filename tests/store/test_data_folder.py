"""The data folder: whose it is, which database's files it has, and which artifacts rules keep."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from posts_and_results import act, ask, enter, kept_artifact, metric, submission, suite
from queue_steps import evaluate_whole

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import DataDirectoryUnusable, InvalidRequest, UnknownName
from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.spec.artifact_policy import Retention
from evalsvc.spec.protocol import Direction
from evalsvc.store import data_folder
from evalsvc.store.artifacts import find_prunable, mark_pruned, require_metric, retention_view
from evalsvc.store.data_folder import OWNER, RESTORING, DiskUse, claim_data_folder, may_begin_folder, named_artifacts
from evalsvc.store.lock import CoordinatorLock, database_id
from evalsvc.store.lookup import find_run
from evalsvc.store.session import Store
from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, Series, Task, now


def test_another_database_is_refused_before_it_removes_what_it_does_not_name(tmp_path: Path) -> None:
    claim_data_folder(tmp_path, "a" * 32, "postgresql://user:secret@host/first")
    claim_data_folder(tmp_path, "a" * 32, "postgresql://user:secret@moved/first")
    with pytest.raises(DataDirectoryUnusable, match=r"another database, postgresql://user:.*@host/first, .*--data-dir"):
        claim_data_folder(tmp_path, "b" * 32, "postgresql://user:secret@host/second")
    (tmp_path / OWNER).unlink()
    claim_data_folder(tmp_path, "b" * 32, "postgresql://user:secret@host/second")
    assert json.loads((tmp_path / OWNER).read_text())["id"] == "b" * 32
    assert "secret" not in (tmp_path / OWNER).read_text()


def test_a_database_that_has_a_folder_begins_no_other_one(tmp_path: Path) -> None:
    """A restored database on an empty folder served, and answered that all of its artifacts were lost."""
    words = r"sqlite:///x has runs, and the folder .* --data-dir .* `evalsvc restore`"
    with pytest.raises(DataDirectoryUnusable, match=words):
        claim_data_folder(tmp_path, "a" * 32, "sqlite:///x", may_begin=False)
    assert list(tmp_path.iterdir()) == []
    claim_data_folder(tmp_path, "a" * 32, "sqlite:///x")
    claim_data_folder(tmp_path, "a" * 32, "sqlite:///x", may_begin=False)
    (tmp_path / RESTORING).touch()
    with pytest.raises(DataDirectoryUnusable, match="holds an unfinished restore; run the same `evalsvc restore`"):
        claim_data_folder(tmp_path, "a" * 32, "sqlite:///x")


def test_a_damaged_file_is_nobodys_and_one_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for content in ("torn", "", "[]", "{}"):
        (tmp_path / OWNER).write_text(content)
        with pytest.raises(DataDirectoryUnusable, match=f"see .*{OWNER}"):
            claim_data_folder(tmp_path, "a" * 32, "sqlite:///evalsvc.db")
    (tmp_path / "file").touch()
    with pytest.raises(DataDirectoryUnusable, match=f"{OWNER} cannot be written: file exists; change"):
        claim_data_folder(tmp_path / "file", "a" * 32, "sqlite:///evalsvc.db")


def test_a_database_is_the_same_for_ever(store: Store) -> None:
    lock = CoordinatorLock(store.url)
    before = database_id(store)
    lock.acquire()
    lock.begin_term(store)
    lock.release()
    assert database_id(store) == before
    assert len(before) == 32


@pytest.mark.parametrize("kind", ["artifacts", "items"])
def test_a_database_with_runs_takes_over_only_a_folder_with_its_files(store: Store, tmp_path: Path, kind: str) -> None:
    def may_begin() -> bool:
        return ask(store, may_begin_folder, tmp_path / "artifacts", tmp_path / "items")

    assert may_begin(), "a new one"
    database_id(store)
    assert may_begin(), "one without runs"
    sha256 = keep_content(tmp_path / kind, b"content")
    enter(store, submission(1), suite())
    named = {"artifacts": [kept_artifact(sha256)]} if kind == "artifacts" else {"items": sha256}
    evaluate_whole(store, metric(1.0), **named)
    assert may_begin(), "whose file is there"
    artifact_path(tmp_path / kind, sha256).unlink()
    assert not may_begin()


def test_a_database_of_old_has_begun_none(store: Store, tmp_path: Path) -> None:
    """Before databases had an identity, no folder said whose it was."""
    enter(store, submission(1), suite())
    assert ask(store, may_begin_folder, tmp_path / "artifacts", tmp_path / "items")


def test_sizes_are_those_of_the_files(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "a").write_bytes(b"x" * 1000)
    (folder / "b").write_bytes(b"x" * 24)
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 5000)
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    disk = ask(store, DiskUse(folder, store.url).view)
    assert disk.data_bytes == 1024 + (folder / "link").lstat().st_size
    assert disk.data_complete
    assert 0 < disk.free_bytes <= disk.total_bytes
    assert disk.database_bytes is not None
    assert disk.database_bytes > 10_000, "the tables of an empty database"


def test_the_disk_is_measured_once_in_a_while(store: Store, tmp_path: Path) -> None:
    clock = [0.0]
    use = DiskUse(tmp_path, store.url, lambda: clock[0])
    first = ask(store, use.view)
    (tmp_path / "new").write_bytes(b"x" * 1_000_000)
    assert ask(store, use.view) is first
    clock[0] = data_folder.EVERY
    second = ask(store, use.view)
    assert second.data_bytes >= first.data_bytes + 1_000_000


def test_a_folder_that_is_large_or_away(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "PATIENCE", -1.0)
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    assert not ask(store, DiskUse(tmp_path, store.url).view).data_complete, "a lower bound"
    assert ask(store, DiskUse(tmp_path / "nothing", store.url).view) is None


def test_nobody_waits_for_a_measurement(store: Store, tmp_path: Path) -> None:
    """A folder with a million files takes a second, and pages that come meanwhile have the answer before."""
    use = DiskUse(tmp_path, store.url)
    with use._lock, ThreadPoolExecutor(1) as threads:
        assert threads.submit(ask, store, use.view).result(30) is None


def evaluate(store: Store, step: int, value: float = 1.0, content: str = "", **fields: Any) -> None:
    """A checkpoint that leaves an artifact, of its own content unless one is given."""
    enter(store, submission(step, **fields), suite())
    evaluate_whole(store, metric(value), artifacts=[kept_artifact(content or f"{step:064d}")])


def pruned_steps(store: Store, run: str | None = None, **rule: Any) -> list[int]:
    with store.reading() as session:
        ids = find_prunable(session, Retention(**rule) if rule else None, run).ids
        steps = sa.select(Checkpoint.step).join(Evaluation).join(Task).join(Artifact, Artifact.task_id == Task.id)
        return sorted(session.scalars(steps.where(Artifact.id.in_(ids))))


def test_every_part_of_a_rule_keeps_what_it_says(store: Store) -> None:
    for step, value in ((0, 5.0), (50, 4.0), (100, 1.0), (150, 3.0), (200, 2.0)):
        evaluate(store, step, value)
    assert pruned_steps(store) == []
    assert pruned_steps(store, last=2) == [0, 50, 100]
    assert pruned_steps(store, every=100) == [50, 150]
    assert pruned_steps(store, best="loss/text") == [0, 50, 150, 200]
    with store.transaction() as session:
        session.get_one(Evaluation, 2).finished_at = now() - timedelta(days=3)
    assert pruned_steps(store, days=2) == [50]
    assert pruned_steps(store, last=1, every=150) == [50, 100]


@pytest.mark.parametrize(("value", "direction"), [(math.nan, "lower"), (math.inf, "lower"), (1.0, "none")])
def test_where_no_value_is_the_best_all_is_kept(store: Store, value: float, direction: Direction) -> None:
    """All of it was pruned: the best were no steps."""
    evaluate(store, 50, value)
    evaluate(store, 100, value)
    assert pruned_steps(store, last=1, best="coco/fid") == [], "spelt wrongly, or not measured yet"
    with store.transaction() as session:
        session.execute(sa.update(Series).values(direction=direction))
    assert pruned_steps(store, last=1, best="loss/text") == []


def test_a_metric_that_nobody_has_is_not_kept_by(store: Store) -> None:
    ask(store, require_metric, "coco/fid")
    evaluate(store, 50)
    for name in ("loss/text", "loss/*"):
        ask(store, require_metric, name)
    with pytest.raises(UnknownName, match=r"no metric is named 'loss/txt'; did you mean 'loss/text'\?.*once a run"):
        ask(store, require_metric, "loss/txt")
    with store.transaction() as session:
        session.execute(sa.update(Series).values(direction="none"))
    with pytest.raises(InvalidRequest, match="best is 'loss/text', a metric without a better direction"):
        ask(store, require_metric, "loss/text")


def test_a_run_may_have_its_own_rule(store: Store) -> None:
    for run in ("run-a", "run-b"):
        for step in (50, 100):
            evaluate(store, step, run=run)
    with store.transaction() as session:
        find_run(session, "run-a").retention = {"every": 50}
    with store.reading() as session:
        default = Retention(last=1)
        assert find_prunable(session, default).by_run == {"run-b": 1}
        assert retention_view(find_run(session, "run-a"), default).from_ == "run"
        expected = {"run": "run-b", "keep": {"last": 1}, "from": "service"}
        assert retention_view(find_run(session, "run-b"), default).model_dump() == expected
        assert retention_view(find_run(session, "run-b"), None).keep is None
        with pytest.raises(UnknownName):
            find_prunable(session, None, "run-x")


def test_replaced_checkpoints_do_not_count_as_steps(store: Store) -> None:
    evaluate(store, 50)
    evaluate(store, 100)
    evaluate(store, 100, content="f" * 64, identity=Identity(7, 7), replace=True)
    assert pruned_steps(store, last=2) == [100]
    assert pruned_steps(store, days=1) == []


def test_a_shared_content_stays_named_until_the_last_artifact_is_pruned(store: Store) -> None:
    for step in (50, 100, 150):
        evaluate(store, step, content="c" * 64)
    for keep in (2, 1):
        found = ask(store, find_prunable, Retention(last=keep))
        assert len(found.ids) == 1
        act(store, mark_pruned, found)
        assert ask(store, named_artifacts, ["c" * 64]) == {"c" * 64}
        assert pruned_steps(store, last=keep) == []


def test_what_is_not_over_is_left_alone(store: Store) -> None:
    evaluate(store, 50)
    evaluate(store, 100)
    with store.transaction() as session:
        session.execute(sa.update(Evaluation).values(state="running"))
    assert pruned_steps(store, last=1) == []
