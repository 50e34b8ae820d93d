"""The data folder: whose it is, and which database's files it has."""

import json
import threading
from pathlib import Path

import pytest
from posts_and_results import kept_artifact, metric, submission, suite
from queue_steps import enter, evaluate_whole

from evalsvc.errors import DataDirectoryUnusable
from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.store import data_folder
from evalsvc.store.data_folder import (
    EVERY,
    OWNER,
    RESTORING,
    DiskUse,
    claim_data_folder,
    make_data_folder,
    may_begin_folder,
)
from evalsvc.store.lock import CoordinatorLock, database_id
from evalsvc.store.session import Store


def test_it_is_its_owners_only(tmp_path: Path) -> None:
    """With PostgreSQL it holds artifacts, items and spooled checkpoints all the same."""
    make_data_folder(tmp_path / "a" / "data")
    assert (tmp_path / "a" / "data").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "a" / "data").iterdir()) == []


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
    with pytest.raises(
        DataDirectoryUnusable, match=r"sqlite:///x has runs, and the folder .* --data-dir .* `evalsvc restore`"
    ):
        claim_data_folder(tmp_path, "a" * 32, "sqlite:///x", may_begin=False)
    assert list(tmp_path.iterdir()) == []
    claim_data_folder(tmp_path, "a" * 32, "sqlite:///x")
    claim_data_folder(tmp_path, "a" * 32, "sqlite:///x", may_begin=False)


def test_a_folder_with_half_a_restore_is_nobodys(tmp_path: Path) -> None:
    claim_data_folder(tmp_path, "a" * 32, "sqlite:///x")
    (tmp_path / RESTORING).touch()
    with pytest.raises(DataDirectoryUnusable, match="holds an unfinished restore; run the same `evalsvc restore`"):
        claim_data_folder(tmp_path, "a" * 32, "sqlite:///x")


@pytest.mark.parametrize("content", ["torn", "", "[]", "{}"])
def test_a_damaged_file_is_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / OWNER).write_text(content)
    with pytest.raises(DataDirectoryUnusable, match=f"see .*{OWNER}"):
        claim_data_folder(tmp_path, "a" * 32, "sqlite:///evalsvc.db")


def test_it_cannot_be_written(tmp_path: Path) -> None:
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
        with store.reading() as session:
            return may_begin_folder(session, tmp_path / "artifacts", tmp_path / "items")

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
    with store.reading() as session:
        assert may_begin_folder(session, tmp_path / "artifacts", tmp_path / "items")


def test_sizes_are_those_of_the_files(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "a").write_bytes(b"x" * 1000)
    (folder / "b").write_bytes(b"x" * 24)
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 5000)
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    with store.reading() as session:
        disk = DiskUse(folder, store.url).view(session)
    assert disk.data_bytes == 1024 + (folder / "link").lstat().st_size
    assert disk.data_complete
    assert 0 < disk.free_bytes <= disk.total_bytes
    assert disk.database_bytes is not None
    assert disk.database_bytes > 10_000, "the tables of an empty database"


def test_the_disk_is_measured_once_in_a_while(store: Store, tmp_path: Path) -> None:
    clock = [0.0]
    use = DiskUse(tmp_path, store.url, lambda: clock[0])
    with store.reading() as session:
        first = use.view(session)
        (tmp_path / "new").write_bytes(b"x" * 1_000_000)
        assert use.view(session) is first
        clock[0] = EVERY
        second = use.view(session)
    assert second.data_bytes >= first.data_bytes + 1_000_000


def test_a_large_folder_is_a_lower_bound(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "PATIENCE", -1.0)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"x" * 100_000)
    with store.reading() as session:
        disk = DiskUse(tmp_path, store.url).view(session)
    assert not disk.data_complete


def test_nobody_waits_for_a_measurement(store: Store, tmp_path: Path) -> None:
    """A folder with a million files takes a second, and pages that come meanwhile have the answer before."""
    use = DiskUse(tmp_path, store.url)
    seen = []

    def ask() -> None:
        with store.reading() as session:
            seen.append(use.view(session))

    with use._lock:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_disk_that_is_away_is_not_measured(store: Store, tmp_path: Path) -> None:
    with store.reading() as session:
        assert DiskUse(tmp_path / "nothing", store.url).view(session) is None
