"""Restoring: everything is back, in whichever database, or nothing is."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from backup_files import Parts, write_parts
from filled_store import files_of, fill, rows_of, settings_of
from migrated import FIRST_ROWS, insert_rows
from queue_steps import dispatched, enter, submission, suite

from evalsvc.errors import (
    BackupUnusable,
    DatabaseInUse,
    DataDirectoryUnusable,
    SchemaVersionMismatch,
    TargetNotEmpty,
)
from evalsvc.store.backup import restoring
from evalsvc.store.backup.restoring import restore_backup
from evalsvc.store.backup.writing import write_backup
from evalsvc.store.data_folder import OWNER, RESTORING, claim_data_folder
from evalsvc.store.lock import CoordinatorLock, database_id
from evalsvc.store.runs.deletion import delete_run
from evalsvc.store.session import Store, alembic_config
from evalsvc.store.tables import Artifact, Evaluation, Run, Term

pytestmark = pytest.mark.usefixtures("whole_databases")


@pytest.fixture(params=["sqlite", pytest.param("empty_postgresql", id="postgresql")])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A database without tables, with a data folder of its own."""
    url = f"sqlite:///{tmp_path / 'restored' / 'evalsvc.db'}"
    store = Store(url if request.param == "sqlite" else request.getfixturevalue(request.param))
    yield store
    store.close()


def test_every_row_and_every_file_is_back(store: Store, target: Store, tmp_path: Path) -> None:
    """From each kind of database to each, and nothing is where it was only on the way."""
    written = write_backup(fill(store, tmp_path), tmp_path / "backup.tar")
    assert written.path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "backup").exists()
    folder = tmp_path / "restored"
    manifest = restore_backup(settings_of(target, folder), written.path)
    assert manifest == written.manifest
    assert rows_of(target) == rows_of(store)
    assert sum(len(rows) for rows in rows_of(store).values()) == written.rows > 100
    assert files_of(folder) == files_of(tmp_path)
    assert len(files_of(folder)) == written.manifest.files >= 9
    names = {path.name for path in folder.iterdir() if not path.name.startswith("evalsvc.db")}
    assert names == {"artifacts", "items", "outputs", "spool", "statistics", OWNER}
    target.check_schema()


def test_the_restored_database_goes_on(store: Store, target: Store, tmp_path: Path) -> None:
    """No id is given a second time, also where its row was deleted; and the restored database is another one."""
    claim_data_folder(tmp_path, database_id(store), store.url)
    enter(store, submission(1, run="kept"), suite())
    [deleted] = enter(store, submission(1, run="deleted"), suite())
    with store.transaction() as session:
        delete_run(session, "deleted", cancel=True)
    folder = tmp_path / "restored"
    settings = settings_of(target, folder)
    restore_backup(settings, write_backup(settings_of(store, tmp_path), tmp_path / "backup.tar").path)
    assert enter(target, submission(1, run="new"), suite()) == [deleted + 1]
    assert dispatched(target, "plan")
    assert database_id(target) != database_id(store)
    claim_data_folder(folder, database_id(target), target.url, may_begin=False)
    with pytest.raises(DataDirectoryUnusable, match="of another database"):
        claim_data_folder(tmp_path, database_id(target), target.url)


def test_a_backup_of_an_older_schema_is_brought_to_this_one(tmp_path: Path, store: Store) -> None:
    """A backup comes before `serve --migrate`, and the new version is installed then."""
    old = Store(f"sqlite:///{tmp_path / 'old' / 'evalsvc.db'}")
    command.upgrade(alembic_config(old.url), "0002")
    insert_rows(old, FIRST_ROWS)
    written = write_backup(settings_of(old, tmp_path / "old"), tmp_path / "backup.tar")
    old.close()
    assert written.manifest.revision == "0002"
    restore_backup(settings_of(store, tmp_path / "restored"), written.path)
    store.check_schema()
    with store.reading() as session:
        evaluation = session.get_one(Evaluation, 5)
        assert (evaluation.checkpoint.id, evaluation.checkpoint.run.name) == (3, "old")
        assert evaluation.created_at == FIRST_ROWS["evaluations"][0]["created_at"]


def test_the_target_must_be_empty(good_backup: Path, empty_target: Store, tmp_path: Path) -> None:
    settings = settings_of(empty_target, tmp_path / "restored")
    left = settings.statistics_path / "coco.npz"
    left.parent.mkdir()
    left.write_bytes(b"mine")
    with pytest.raises(TargetNotEmpty, match="statistics has files; restore into a new data folder"):
        restore_backup(settings, good_backup)
    assert left.read_bytes() == b"mine"
    left.unlink()
    with empty_target.transaction() as session:
        session.add(run := Run(name="mine"))
    with pytest.raises(TargetNotEmpty, match="has rows in the table runs; restore into an empty database"):
        restore_backup(settings, good_backup)
    with empty_target.transaction() as session:
        session.delete(run)
    (settings.data_path / OWNER).write_text(json.dumps({"id": "other", "url": "sqlite:////other"}))
    with pytest.raises(DataDirectoryUnusable, match="has the artifacts of another database, sqlite:////other"):
        restore_backup(settings, good_backup)


def test_into_a_database_on_which_a_service_has_started(good_backup: Path, empty_target: Store, tmp_path: Path) -> None:
    """A new deployment starts its service before somebody can restore; that one must not run any more."""
    settings = settings_of(empty_target, tmp_path / "restored")
    lock = CoordinatorLock(empty_target.url)
    lock.acquire()
    lock.begin_term(empty_target)
    claim_data_folder(settings.data_path, database_id(empty_target), empty_target.url)
    with pytest.raises(DatabaseInUse, match=r"served by another evalsvc \(process .*; stop that service, then rest"):
        restore_backup(settings, good_backup)
    lock.release()
    restore_backup(settings, good_backup)
    with empty_target.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Term)) == 1
        assert session.scalar(sa.select(sa.func.count()).select_from(Artifact)) == 3


def test_a_restore_that_fails_leaves_nothing(
    good_backup: Path,
    empty_target: Store,
    is_untouched: Callable[[], bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(empty_target, tmp_path / "restored")

    def fail(*_: Any) -> None:
        assert (settings.data_path / RESTORING).exists()
        raise OSError(28, "No space left on device", str(settings.data_path / "x"))

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "begin_ids_after", fail)
        with pytest.raises(DataDirectoryUnusable, match="x cannot be written: no space left"):
            restore_backup(settings, good_backup)
    assert is_untouched()
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "FREE", 1 << 60)
        with pytest.raises(DataDirectoryUnusable, match=r"free bytes, and the restore needs .*; free some space"):
            restore_backup(settings, good_backup)
    assert is_untouched()
    restore_backup(settings, good_backup)


KILLED = """
import os, signal, sys
from pathlib import Path
from evalsvc.config import Settings
from evalsvc.store.backup import restoring
setattr(restoring, sys.argv[3], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
restoring.restore_backup(Settings(data_dir=sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.usefixtures("child_process")
def test_a_restore_that_was_killed_is_marked_and_begins_anew(
    good_backup: Path, empty_target: Store, tmp_path: Path
) -> None:
    settings = settings_of(empty_target, tmp_path / "restored")
    arguments = [sys.executable, "-c", KILLED, str(settings.data_path), str(good_backup), "_require_named_files"]
    assert subprocess.run(arguments).returncode == -signal.SIGKILL
    assert not any(rows_of(empty_target).values())
    assert len(files_of(settings.data_path)) >= 9
    with pytest.raises(DataDirectoryUnusable, match="an unfinished restore; run the same `evalsvc restore` again"):
        claim_data_folder(settings.data_path, database_id(empty_target), empty_target.url)
    restore_backup(settings, good_backup)
    claim_data_folder(settings.data_path, database_id(empty_target), empty_target.url, may_begin=False)


@pytest.mark.usefixtures("child_process")
def test_killed_when_the_rows_are_there_it_stays_marked(good_backup: Path, empty_target: Store, tmp_path: Path) -> None:
    settings = settings_of(empty_target, tmp_path / "restored")
    arguments = [sys.executable, "-c", KILLED, str(settings.data_path), str(good_backup), "_finish"]
    assert subprocess.run(arguments).returncode == -signal.SIGKILL
    with pytest.raises(DataDirectoryUnusable, match="an unfinished restore"):
        claim_data_folder(settings.data_path, database_id(empty_target), empty_target.url)
    with pytest.raises(TargetNotEmpty):
        restore_backup(settings, good_backup)


def test_files_that_were_lost_before_are_counted(
    parts: Parts, empty_target: Store, is_untouched: Callable[[], bool], tmp_path: Path
) -> None:
    """With as many as the manifest says it is restored, with one more it is not."""
    for entry in parts.of("items/")[:1]:
        parts.entries.remove(entry)
        parts.manifest["files"] -= 1
    settings = settings_of(empty_target, tmp_path / "restored")
    with pytest.raises(BackupUnusable, match="1 files that its rows name are not in it"):
        restore_backup(settings, write_parts(tmp_path / "less.tar", parts))
    assert is_untouched()
    parts.manifest |= {"lost": 1, "lost_names": ["items/x"]}
    assert restore_backup(settings, write_parts(tmp_path / "less.tar", parts)).lost == 1


def test_a_database_of_a_newer_evalsvc_is_no_target(good_backup: Path, empty_target: Store, tmp_path: Path) -> None:
    with empty_target.transaction() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaVersionMismatch, match="a newer evalsvc made the database"):
        restore_backup(settings_of(empty_target, tmp_path / "restored"), good_backup)
