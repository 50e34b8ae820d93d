"""Making a backup: of one moment of the database and its files, whatever the service does meanwhile."""

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from backup_files import read_parts
from filled_store import files_of, rows_of, settings_of
from migrated import migrated_store
from queue_steps import enter, evaluate_whole, kept_artifact, metric, submission, suite

from evalsvc.config import Settings
from evalsvc.errors import (
    DatabaseUnusable,
    DataDirectoryUnusable,
    InvalidRequest,
    SchemaVersionMismatch,
)
from evalsvc.files.artifacts import artifact_path, drop_contents, keep_content, naming
from evalsvc.files.items import pack_items
from evalsvc.store.backup import pinned_files as pinning
from evalsvc.store.backup import writing
from evalsvc.store.backup.pinned_files import FOLDER, PinnedFiles
from evalsvc.store.backup.restoring import restore_backup
from evalsvc.store.backup.writing import write_backup
from evalsvc.store.data_folder import OWNER, claim_data_folder
from evalsvc.store.lock import database_id
from evalsvc.store.named_files import asked_anew, named_artifacts, named_items
from evalsvc.store.runs.deletion import delete_run
from evalsvc.store.session import Store, alembic_config
from evalsvc.store.tables import Artifact, Base, MetricValue, Task, now

pytestmark = pytest.mark.usefixtures("whole_databases")


def settings_with_folder(store: Store, folder: Path) -> Settings:
    """The settings of a store whose data folder is claimed."""
    folder.mkdir(exist_ok=True)
    claim_data_folder(folder, database_id(store), store.url)
    return settings_of(store, folder)


def measure(store: Store, settings: Settings, run: str, step: int, content: bytes, items: int = 1) -> str:
    """Evaluate a checkpoint, of which an artifact and results per item remain. Returns the artifact's digest."""
    enter(store, submission(step, run=run), suite())
    with naming:
        sha256 = keep_content(settings.artifacts_path, content)
        packed = pack_items([{"index": index, "text": os.urandom(100).hex()} for index in range(items)])
        kept = keep_content(settings.items_path, packed)
        evaluate_whole(store, metric(float(step)), artifacts=[kept_artifact(sha256)], items=kept)
    return sha256


def prune(store: Store, settings: Settings, sha256: str) -> None:
    """Do what the service does with an artifact that its run's rule does not keep."""
    with store.transaction() as session:
        session.execute(sa.update(Artifact).where(Artifact.sha256 == sha256).values(pruned_at=now()))
    drop_contents(settings.artifacts_path, [sha256], asked_anew(store.reading, named_artifacts))


def test_a_file_that_is_there_is_not_replaced(store: Store, tmp_path: Path) -> None:
    settings = settings_with_folder(store, tmp_path / "data")
    path = tmp_path / "backup.tar"
    path.write_text("mine")
    with pytest.raises(InvalidRequest, match="exists; choose another name, or add --force"):
        write_backup(settings, path)
    assert path.read_text() == "mine"
    write_backup(settings, path, force=True)
    read_parts(path)
    with pytest.raises(InvalidRequest, match="exists; choose another name"):
        write_backup(settings, tmp_path, force=True)
    with pytest.raises(InvalidRequest, match=r"the folder .*absent does not exist; create the folder first"):
        write_backup(settings, tmp_path / "absent" / "backup.tar")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "typo"))
    with pytest.raises(DatabaseUnusable, match=r"there is no database sqlite:.*; say with --data-dir or"):
        write_backup(settings, tmp_path / "backup.tar")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "typo").mkdir()
    (tmp_path / "typo" / "evalsvc.db").touch()
    with pytest.raises(DatabaseUnusable, match="is empty; there is nothing to back up"):
        write_backup(settings, tmp_path / "backup.tar")


def test_a_database_of_a_newer_evalsvc(tmp_path: Path) -> None:
    store = migrated_store(tmp_path / "evalsvc.db")
    with store.transaction() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaVersionMismatch, match="a newer evalsvc made the database"):
        write_backup(settings_of(store, tmp_path), tmp_path / "backup.tar")
    store.close()


def test_the_folder_of_another_database(tmp_path: Path) -> None:
    store = migrated_store(tmp_path / "evalsvc.db")
    database_id(store)
    (tmp_path / OWNER).write_text('{"id": "another", "url": "sqlite:////other"}')
    with pytest.raises(DataDirectoryUnusable, match="has the artifacts of another database, sqlite:////other"):
        write_backup(settings_of(store, tmp_path), tmp_path / "backup.tar")
    (tmp_path / OWNER).unlink()
    with pytest.raises(DataDirectoryUnusable, match=r"is not the data folder of the database .* has no database.json"):
        write_backup(settings_of(store, tmp_path), tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()
    assert not (tmp_path / FOLDER).exists()
    store.close()


def test_what_was_lost_before_is_named(tmp_path: Path) -> None:
    """A disk that has lost a file must not keep the rest from being saved."""
    store = migrated_store(tmp_path / "evalsvc.db")
    settings = settings_with_folder(store, tmp_path)
    gone, damaged, kept = (measure(store, settings, "run-a", step, b"grid %d" % step) for step in range(3))
    artifact_path(settings.artifacts_path, gone).unlink()
    artifact_path(settings.artifacts_path, damaged).write_bytes(b"other")
    manifest = write_backup(settings, tmp_path / "backup.tar").manifest
    assert (manifest.lost, manifest.lost_names) == (2, sorted([f"artifacts/{gone}", f"artifacts/{damaged}"]))
    target = migrated_store(tmp_path / "restored.db")
    restore_backup(settings_of(target, tmp_path / "restored"), tmp_path / "backup.tar")
    assert artifact_path(tmp_path / "restored" / "artifacts", kept).is_file()
    assert rows_of(target) == rows_of(store)
    target.close()
    store.close()


def test_what_is_pruned_in_between_is_not_in_the_next_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = migrated_store(tmp_path / "evalsvc.db")
    settings = settings_with_folder(store, tmp_path)
    digests = [measure(store, settings, "run-a", step, b"grid %d" % step) for step in range(3)]
    pruned = list(digests[:2])
    pin = PinnedFiles.pin

    def prune_and_pin(self: PinnedFiles, files: Any) -> set[str]:
        found = list(files)
        if pruned:
            prune(store, settings, pruned.pop())
        return pin(self, found)

    monkeypatch.setattr(PinnedFiles, "pin", prune_and_pin)
    manifest = write_backup(settings, tmp_path / "backup.tar").manifest
    parts = read_parts(tmp_path / "backup.tar")
    assert (manifest.lost, [entry.name for entry in parts.of("artifacts")]) == (0, [f"artifacts/{digests[2]}"])
    pruned_at = list(parts.table("artifacts")["columns"]).index("pruned_at")
    rows = parts.rows("artifacts").content.decode().splitlines()
    assert [row.split(",")[pruned_at] == "null" for row in rows].count(True) <= 1
    store.close()


def test_what_goes_away_faster_than_it_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = migrated_store(tmp_path / "evalsvc.db")
    settings = settings_with_folder(store, tmp_path)
    names = iter(range(1000))
    monkeypatch.setattr(PinnedFiles, "pin", lambda *_: {f"artifacts/{next(names)}"})
    with pytest.raises(DataDirectoryUnusable, match="faster than the backup links them, 20 times in a row"):
        write_backup(settings, tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()
    store.close()


def test_a_file_that_was_deleted_after_the_link_is_in_the_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy takes long; the service goes on and prunes."""
    store = migrated_store(tmp_path / "evalsvc.db")
    settings = settings_with_folder(store, tmp_path)
    sha256 = measure(store, settings, "run-a", 1, b"grid")
    expected = rows_of(store)
    write_named = writing._write_named

    def prune_first(*arguments: Any) -> None:
        prune(store, settings, sha256)
        assert not artifact_path(settings.artifacts_path, sha256).exists()
        write_named(*arguments)

    monkeypatch.setattr(writing, "_write_named", prune_first)
    write_backup(settings, tmp_path / "backup.tar")
    target = migrated_store(tmp_path / "restored.db")
    restore_backup(settings_of(target, tmp_path / "restored"), tmp_path / "backup.tar")
    assert artifact_path(tmp_path / "restored" / "artifacts", sha256).read_bytes() == b"grid"
    assert rows_of(target) == expected
    target.close()
    store.close()


def test_without_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = migrated_store(tmp_path / "evalsvc.db")
    settings = settings_with_folder(store, tmp_path)
    measure(store, settings, "run-a", 1, b"grid")

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(pinning.os, "link", no_links)  # type: ignore[attr-defined]
    assert write_backup(settings, tmp_path / "backup.tar").manifest.files == 2
    store.close()


def test_no_space_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = migrated_store(tmp_path / "evalsvc.db")
    settings = settings_with_folder(store, tmp_path / "data")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "_write_statistics", full)
    with pytest.raises(
        InvalidRequest, match=r"backup.tar cannot be written: .*no space left on device; free some space"
    ):
        write_backup(settings, tmp_path / "backup.tar")
    assert sorted(path.name for path in tmp_path.iterdir() if "evalsvc.db" not in path.name) == ["data"]
    store.close()


def test_every_table_is_in_a_backup(tmp_path: Path) -> None:
    """Of an old schema, whose tables may differ from those of today, all but Alembic's own are written, too."""
    for revision in ("0001", "head"):
        store = Store(f"sqlite:///{tmp_path / f'{revision}.db'}")
        command.upgrade(alembic_config(store.url), revision)
        manifest = write_backup(settings_of(store, tmp_path), tmp_path / f"{revision}.tar").manifest
        tables = set(sa.inspect(store.engine).get_table_names()) - {"alembic_version"}
        assert {table.name for table in manifest.tables} == tables
        store.close()
    assert tables == set(Base.metadata.tables)


@contextmanager
def at_work(store: Store, settings: Settings) -> Iterator[Callable[[], int]]:
    """Threads that evaluate, prune and delete runs as a service does; yields how often they did."""
    stop, counts, problems = threading.Event(), [0, 0], []

    def evaluate() -> None:
        dice = random.Random(1)
        while not stop.is_set():
            measure(store, settings, f"run-{counts[0] // 3}", counts[0], dice.randbytes(3000), items=800)
            counts[0] += 1

    def remove() -> None:
        dice = random.Random(2)
        while not stop.is_set():
            with store.reading() as session:
                digests = sorted(named_artifacts(session))
            if digests and dice.random() < 0.7:
                prune(store, settings, dice.choice(digests))
            if counts[1] + 1 >= counts[0] // 3:  # the run that is evaluated is not deleted
                stop.wait(0.01)
                continue
            with store.transaction() as session:
                gone = delete_run(session, f"run-{counts[1]}", cancel=False)
            drop_contents(settings.artifacts_path, gone.artifact_contents, asked_anew(store.reading, named_artifacts))
            drop_contents(settings.items_path, gone.item_contents, asked_anew(store.reading, named_items))
            counts[1] += 1

    def run(act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=[act]) for act in (evaluate, remove)]
    for thread in threads:
        thread.start()

    def done() -> int:
        assert problems == []
        return min(counts)

    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []


@pytest.mark.timeout(240)
def test_backups_under_load_are_of_one_moment(store: Store, tmp_path: Path) -> None:
    """Each backup, restored, has a value, an artifact and results per item of every evaluation that it says is over."""
    settings = settings_with_folder(store, tmp_path / "data")
    with at_work(store, settings) as done:
        for number in range(5):
            before = done()
            while done() < before + 1:
                threading.Event().wait(0.01)
            assert write_backup(settings, tmp_path / f"{number}.tar").manifest.lost == 0
    for number in range(5):
        restored = tmp_path / f"restored-{number}"
        restored.mkdir()
        target = migrated_store(restored / "evalsvc.db")
        restore_backup(settings_of(target, restored), tmp_path / f"{number}.tar")
        _require_whole(target, restored)
        target.close()
        shutil.rmtree(restored)


def _require_whole(store: Store, folder: Path) -> None:
    files = {name.rpartition("/")[2] for name in files_of(folder)}
    with store.reading() as session:
        over = session.scalars(sa.select(Task).where(Task.state == "succeeded")).all()
        values = session.scalar(sa.select(sa.func.count()).select_from(MetricValue))
        kept = session.scalars(sa.select(Artifact.sha256).where(Artifact.pruned_at.is_(None))).all()
        artifacts = session.scalar(sa.select(sa.func.count()).select_from(Artifact))
    assert values == artifacts == len(over)
    assert files == set(kept) | {task.items_sha256 for task in over}
