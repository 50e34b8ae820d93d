"""Making a backup: of one moment of the database and its files, whatever the service does meanwhile."""

import errno
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy as sa
from filled_store import files_of, read_members, rows_of, settings_of
from migrated import add_migration, migrated_store
from posts_and_results import ask, enter, kept_artifact, metric, submission, suite
from queue_steps import evaluate_whole

from evalsvc.checkpoints.copies import spooled
from evalsvc.config import Settings
from evalsvc.errors import DatabaseUnusable, DataDirectoryUnusable, InvalidRequest, SchemaVersionMismatch
from evalsvc.files.artifacts import artifact_path, drop_contents, keep_content
from evalsvc.files.items import pack_items
from evalsvc.store import backup
from evalsvc.store.backup import restore_backup, write_backup
from evalsvc.store.data_folder import OWNER, asked_anew, claim_data_folder, named_artifacts
from evalsvc.store.lock import database_id
from evalsvc.store.session import Store
from evalsvc.store.tables import Artifact, Checkpoint, now

Lite = tuple[Store, Settings]

pytestmark = pytest.mark.usefixtures("whole_databases")


def settings_with_folder(store: Store, folder: Path) -> Settings:
    """The settings of a store whose data folder is claimed."""
    folder.mkdir(exist_ok=True)
    claim_data_folder(folder, database_id(store), store.url)
    return settings_of(store, folder)


def measure(store: Store, settings: Settings, step: int, content: bytes = b"grid") -> str:
    """Evaluate a checkpoint, of which an artifact and results per item remain. Returns the artifact's digest."""
    enter(store, submission(step), suite())
    sha256 = keep_content(settings.artifacts_path, content)
    kept = keep_content(settings.items_path, pack_items([{"index": 0, "text": os.urandom(100).hex()}]))
    evaluate_whole(store, metric(float(step)), artifacts=[kept_artifact(sha256)], items=kept)
    return sha256


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[tuple[Store, Settings]]:
    """A SQLite database in a data folder of its own, and its settings."""
    store = migrated_store(tmp_path / "evalsvc.db")
    yield store, settings_with_folder(store, tmp_path)
    store.close()


@contextmanager
def restored(path: Path, lost: Sequence[str] = ()) -> Iterator[Store]:
    """The database of a backup, restored into the folder `restored` beside it."""
    target = Store(f"sqlite:///{path.parent / 'restored' / 'evalsvc.db'}")
    assert restore_backup(settings_of(target, path.parent / "restored"), path)[0] == list(lost)
    yield target
    target.close()


def before_each_file(monkeypatch: pytest.MonkeyPatch, act: Callable[[str], None]) -> None:
    """Have something done between the copy of the database and the copy of each file."""
    add = backup._add

    def act_and_add(tar: Any, added: set[str], folder: Path, name: str, sha256: str | None = None) -> bool:
        act(name)
        return add(tar, added, folder, name, sha256)

    monkeypatch.setattr(backup, "_add", act_and_add)


def artifacts_in(path: Path) -> set[str]:
    return {name.rpartition("/")[2] for name in read_members(path) if name.startswith("artifacts/")}


def test_a_file_that_is_there_is_not_replaced(store: Store, tmp_path: Path) -> None:
    settings = settings_with_folder(store, tmp_path / "data")
    path = tmp_path / "backup.tar"
    path.write_text("mine")
    with pytest.raises(InvalidRequest, match="exists; choose another name, or add --force"):
        write_backup(settings, path)
    assert path.read_text() == "mine"
    write_backup(settings, path, force=True)
    assert read_members(path).keys() == {"evalsvc.db"}
    assert path.stat().st_mode & 0o777 == 0o600
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
    with pytest.raises(DatabaseUnusable, match=r"the database sqlite:.* is empty; say with --data-dir or"):
        write_backup(settings, tmp_path / "backup.tar")


def test_a_database_of_an_older_evalsvc(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of SQLite is migrated, so that a new version backs up before `serve --migrate`. The original is not."""
    settings = settings_with_folder(store, tmp_path / "data")
    enter(store, submission(1), suite())
    add_migration(tmp_path / "migrations", monkeypatch)
    if store.engine.dialect.name != "sqlite":
        with pytest.raises(SchemaVersionMismatch, match="or back up with that version and start"):
            write_backup(settings, tmp_path / "backup.tar")
    else:
        write_backup(settings, tmp_path / "backup.tar")
        with restored(tmp_path / "backup.tar") as target:
            target.check_schema()
            assert rows_of(target) == rows_of(store)
    assert store.schema_version() == "0100"


def test_the_folder_of_another_database(tmp_path: Path) -> None:
    store = migrated_store(tmp_path / "evalsvc.db")
    database_id(store)
    settings, owner = settings_of(store, tmp_path), tmp_path / OWNER
    owner.write_text('{"id": "another", "url": "sqlite:////other"}')
    with pytest.raises(DataDirectoryUnusable, match="has the artifacts of another database, sqlite:////other"):
        write_backup(settings, tmp_path / "backup.tar")
    owner.unlink()
    before = set(tmp_path.iterdir())
    with pytest.raises(DataDirectoryUnusable, match=r"is not its data folder: the folder has no database.json"):
        write_backup(settings, tmp_path / "backup.tar")
    assert set(tmp_path.iterdir()) == before
    store.close()


def test_what_was_lost_before_is_named(lite: Lite, tmp_path: Path) -> None:
    """A disk that has lost a file must not keep the rest from being saved."""
    store, settings = lite
    gone, damaged, kept = (measure(store, settings, step, b"grid %d" % step) for step in range(3))
    paths = {sha256: artifact_path(settings.artifacts_path, sha256) for sha256 in (gone, damaged, kept)}
    paths[gone].unlink()
    paths[damaged].write_bytes(b"other")
    lost = sorted(str(paths[sha256].relative_to(tmp_path)) for sha256 in (gone, damaged))
    assert write_backup(settings, tmp_path / "backup.tar") == lost
    assert artifacts_in(tmp_path / "backup.tar") == {kept}
    with restored(tmp_path / "backup.tar", lost) as target:
        assert rows_of(target) == rows_of(store)
    assert artifact_path(tmp_path / "restored" / "artifacts", kept).is_file()


def test_what_is_pruned_in_between_is_not_named_by_the_backup(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    settings = settings_with_folder(store, tmp_path / "data")
    *pruned, kept = (measure(store, settings, step, b"grid %d" % step) for step in range(3))

    def prune_it(name: str) -> None:
        if (sha256 := name.rpartition("/")[2]) in pruned:
            pruned.remove(sha256)
            with store.transaction() as session:  # as the service does with what a run's rule does not keep
                session.execute(sa.update(Artifact).where(Artifact.sha256 == sha256).values(pruned_at=now()))
            drop_contents(settings.artifacts_path, [sha256], asked_anew(store.reading, named_artifacts))

    before_each_file(monkeypatch, prune_it)
    assert write_backup(settings, tmp_path / "backup.tar") == []
    monkeypatch.undo()
    assert artifacts_in(tmp_path / "backup.tar") == {kept}
    with restored(tmp_path / "backup.tar") as target:
        assert ask(target, named_artifacts) == {kept}


def test_a_release_in_between(lite: Lite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of its files must not be taken for the whole: the backup says that it was released."""
    store, settings = lite
    enter(store, submission(1), suite())
    with store.transaction() as session:
        checkpoint = session.scalars(sa.select(Checkpoint)).one()
        checkpoint.spool, checkpoint.spool_state = "copy", "ready"
    folder = spooled(tmp_path, checkpoint.id).folder / Path(checkpoint.path).name
    folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (folder / name).write_text(name)

    def release(name: str) -> None:
        if name.endswith("/b"):
            with store.transaction() as session:
                session.execute(sa.update(Checkpoint).values(spool_state="released"))
            spooled(tmp_path, checkpoint.id).remove()

    before_each_file(monkeypatch, release)
    assert write_backup(settings, tmp_path / "backup.tar") == []
    with restored(tmp_path / "backup.tar") as target, target.reading() as session:
        assert session.scalars(sa.select(Checkpoint.spool_state)).all() == ["released"]


def test_outputs_that_go_away_in_between(lite: Lite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy service would hold up the backup for ever; the shards of missing outputs run again."""
    named = backup.named_files
    monkeypatch.setattr(backup, "named_files", lambda *_, **options: named(*_, **options) | {"outputs/1/2-3": "0" * 64})
    assert write_backup(lite[1], tmp_path / "backup.tar") == []


def test_no_space_leaves_no_part_of_a_file(lite: Lite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(tarfile.TarFile, "addfile", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(InvalidRequest, match=r"backup.tar cannot be written: .*no space left on device; free some"):
        write_backup(lite[1], tmp_path / "backup.tar")
    assert sorted(tmp_path.iterdir()) == before


def test_the_tar_is_a_data_folder(lite: Lite, tmp_path: Path) -> None:
    """Whoever has a backup and no evalsvc unpacks it with tar."""
    store, settings = lite
    measure(store, settings, 1)
    write_backup(settings, tmp_path / "backup.tar")
    with tarfile.open(tmp_path / "backup.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = Store(f"sqlite:///{tmp_path / 'unpacked' / 'evalsvc.db'}")
    assert rows_of(unpacked) == rows_of(store)
    assert files_of(tmp_path / "unpacked") == files_of(tmp_path)
    unpacked.close()
