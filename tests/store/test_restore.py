"""Restoring: everything is back, in whichever database, or nothing is served; and hostile backups are refused."""

import errno
import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import msgpack
import pytest
import sqlalchemy as sa
from filled_store import (
    DATABASE,
    Member,
    changed_database,
    files_of,
    fill,
    read_members,
    rows_of,
    settings_of,
    write_members,
    write_signed,
)
from migrated import migrated_store
from posts_and_results import act, enter, submission, suite
from queue_steps import dispatched

from evalsvc.config import Settings
from evalsvc.errors import (
    BackupUnusable,
    DatabaseInUse,
    DataDirectoryUnusable,
    InvalidRequest,
    SchemaVersionMismatch,
    TargetNotEmpty,
)
from evalsvc.files.outputs import EXTENSION
from evalsvc.store import backup
from evalsvc.store.backup import restore_backup, write_backup
from evalsvc.store.data_folder import OWNER, RESTORING, claim_data_folder
from evalsvc.store.lock import CoordinatorLock, database_id
from evalsvc.store.runs.deletion import delete_run
from evalsvc.store.session import Store
from evalsvc.store.tables import Artifact, Run, Term

pytestmark = pytest.mark.usefixtures("whole_databases")

Members = dict[str, Member]
Change = Callable[[Members], None]
Refuse = Callable[..., None]


@pytest.fixture(scope="session")
def good_backup(whole_databases: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a database with something of everything, not to be changed."""
    folder = tmp_path_factory.mktemp("backed-up")
    store = migrated_store(folder / "evalsvc.db")
    write_backup(fill(store, folder), folder / "backup.tar")
    store.close()
    return folder / "backup.tar"


@pytest.fixture
def empty_target(tmp_path: Path) -> Iterator[Store]:
    """A migrated and empty database in a data folder with nothing else."""
    folder = tmp_path / "restored"
    folder.mkdir()
    store = migrated_store(folder / "evalsvc.db")
    yield store
    store.close()


@pytest.fixture
def settings(empty_target: Store, tmp_path: Path) -> Settings:
    """The settings of the empty target."""
    return settings_of(empty_target, tmp_path / "restored")


@pytest.fixture(params=["sqlite", pytest.param("empty_postgresql", id="postgresql")])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A database without tables, with a data folder of its own."""
    url = f"sqlite:///{tmp_path / 'restored' / 'evalsvc.db'}"
    store = Store(url if request.param == "sqlite" else request.getfixturevalue(request.param))
    yield store
    store.close()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("evalsvc.db")}


def test_every_row_and_every_file_is_back(store: Store, target: Store, tmp_path: Path) -> None:
    """From each kind of database to each: NaN and infinities, times, documents and bytes are equal."""
    assert write_backup(fill(store, tmp_path), tmp_path / "backup.tar") == []
    folder = tmp_path / "restored"
    assert restore_backup(settings_of(target, folder), tmp_path / "backup.tar")[0] == []
    assert rows_of(target) == rows_of(store)
    assert sum(len(rows) for rows in rows_of(store).values()) > 100
    assert files_of(folder) == files_of(tmp_path)
    assert len(files_of(folder)) >= 9
    assert names_in(folder) == {"artifacts", "items", "shared", "spool", OWNER}
    target.check_schema()


def test_the_restored_database_goes_on(store: Store, target: Store, tmp_path: Path) -> None:
    """No id is given a second time, also where its row was deleted; and the restored database is another one."""
    claim_data_folder(tmp_path, database_id(store), store.url)
    enter(store, submission(1, run="kept"), suite())
    [deleted] = enter(store, submission(1, run="deleted"), suite())
    act(store, delete_run, "deleted", cancel=True)
    folder = tmp_path / "restored"
    write_backup(settings_of(store, tmp_path), tmp_path / "backup.tar")
    restore_backup(settings_of(target, folder), tmp_path / "backup.tar")
    assert enter(target, submission(1, run="new"), suite()) == [deleted + 1]
    assert dispatched(target, "plan")
    assert database_id(target) != database_id(store)
    claim_data_folder(folder, database_id(target), target.url, may_begin=False)
    with pytest.raises(DataDirectoryUnusable, match="of another database"):
        claim_data_folder(tmp_path, database_id(target), target.url)


def test_the_target_must_be_empty(good_backup: Path, empty_target: Store, settings: Settings) -> None:
    left = settings.statistics_path / "coco.npz"
    left.parent.mkdir(parents=True)
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


def test_a_database_on_which_a_service_has_started(good_backup: Path, empty_target: Store, settings: Settings) -> None:
    """A new deployment starts its service before somebody can restore; that one must not run any more."""
    lock = CoordinatorLock(empty_target.url)
    lock.acquire()
    lock.begin_term(empty_target)
    claim_data_folder(settings.data_path, database_id(empty_target), empty_target.url)
    with pytest.raises(DatabaseInUse, match=r"served by another evalsvc \(process .*; stop the other service"):
        restore_backup(settings, good_backup)
    lock.release()
    restore_backup(settings, good_backup)
    with empty_target.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Term)) == 1
        assert session.scalar(sa.select(sa.func.count()).select_from(Artifact)) == 3


def test_a_full_disk_is_named(good_backup: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(settings.data_path / "x"))
    monkeypatch.setattr(backup, "_keep_ids", Mock(side_effect=full))
    with pytest.raises(DataDirectoryUnusable, match="x cannot be written: no space left"):
        restore_backup(settings, good_backup)


KILLED = """
import os, signal, sys
from pathlib import Path
from evalsvc.config import Settings
from evalsvc.store import backup
setattr({place}, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
backup.restore_backup(Settings(data_dir=sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.usefixtures("child_process")
@pytest.mark.parametrize("place", ['backup, "_keep_ids"', 'backup.data_folder, "write_owner"'], ids=["rows", "owner"])
def test_a_killed_restore_is_marked(good_backup: Path, empty_target: Store, settings: Settings, place: str) -> None:
    """No service starts on the folder; and a restore begins anew unless all rows are there."""
    arguments = [sys.executable, "-c", KILLED.format(place=place), str(settings.data_path), str(good_backup)]
    environment = os.environ | {"TMPDIR": str(settings.data_path.parent)}
    assert subprocess.run(arguments, env=environment).returncode == -signal.SIGKILL
    assert len(files_of(settings.data_path)) >= 9
    has_rows = any(rows_of(empty_target).values())
    assert has_rows is ("write_owner" in place)
    with pytest.raises(DataDirectoryUnusable, match="an unfinished restore; run the same `evalsvc restore` again"):
        claim_data_folder(settings.data_path, database_id(empty_target), empty_target.url)
    if has_rows:
        with pytest.raises(TargetNotEmpty):
            restore_backup(settings, good_backup)
    else:
        restore_backup(settings, good_backup)
        claim_data_folder(settings.data_path, database_id(empty_target), empty_target.url, may_begin=False)
        assert RESTORING not in names_in(settings.data_path)


def test_a_backup_of_a_newer_evalsvc(good_backup: Path, empty_target: Store, settings: Settings) -> None:
    members = read_members(good_backup)
    statement("UPDATE alembic_version SET version_num = '9999'")(members)
    with pytest.raises(SchemaVersionMismatch, match=r"schema version 9999.* a newer evalsvc made the database"):
        restore_backup(settings, write_members(settings.data_path / "newer.tar", members.values()))
    assert not any(rows_of(empty_target).values())


@pytest.fixture
def refuse(settings: Settings, empty_target: Store) -> Callable[..., None]:
    """Restoring fails with a message, restores no row, and writes nothing outside of the data folder."""

    def outside() -> set[Path]:
        return {file for file in settings.data_path.parent.rglob("*") if settings.data_path not in file.parents}

    def require(path: Path, message: str = "") -> None:
        before = outside()
        with pytest.raises(BackupUnusable, match=f"is not a whole backup: .*{message}.*; use another backup"):
            restore_backup(settings, path)
        assert not any(rows_of(empty_target).values())
        assert outside() == before

    return require


def test_what_is_written_again_by_hand_is_restored(good_backup: Path, settings: Settings, tmp_path: Path) -> None:
    """The tests below prove nothing if what they change were refused anyway."""
    members = read_members(good_backup)
    statement("SELECT 1")(members)
    members["evalsvc.db"].info["pax_headers"] = {"comment": "code \x1b[31m"}
    assert restore_backup(settings, write_members(tmp_path / "same.tar", members.values())) == ([], "code unknown")
    assert len(files_of(settings.data_path)) == len(members) - 1


KINDS = {
    "symbolic link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": DATABASE},
    "character device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
    "block device": {"type": tarfile.BLKTYPE, "devmajor": 8},
    "fifo": {"type": tarfile.FIFOTYPE},
    "folder": {"type": tarfile.DIRTYPE},
    "old regular file": {"type": tarfile.AREGTYPE},
    "contiguous file": {"type": tarfile.CONTTYPE},
    "GNU sparse file": {"type": tarfile.GNUTYPE_SPARSE},
    "GNU long name": {"type": tarfile.GNUTYPE_LONGNAME},
    "global header": {"type": tarfile.XGLTYPE},
    "sparse file of POSIX": {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1099511627776"}},
    "long header": {"pax_headers": {"comment": "x" * (1 << 17)}},
    "huge file": {"size": 1 << 60},
    "negative size": {"pax_headers": {"size": "-512"}},
    "time that is none": {"pax_headers": {"mtime": "yesterday"}},
    "time beyond all times": {"pax_headers": {"mtime": "9" * 40}},
    "another name": {"pax_headers": {"path": "../evil"}},
}


@pytest.mark.parametrize("info", KINDS.values(), ids=KINDS)
def test_a_file_that_is_no_plain_file(info: dict[str, Any], good_backup: Path, refuse: Refuse, tmp_path: Path) -> None:
    evil = Member(f"artifacts/aa/{'a' * 64}", b"evil", dict(info))
    refuse(write_members(tmp_path / "bad.tar", [evil, *read_members(good_backup).values()]))


OTHER_NAMES = f"""
../evil artifacts/../../evil artifacts/aa/../{"a" * 64} /etc/cron.d/evil /artifacts/aa/{"a" * 64}
artifacts/AA/{"A" * 64} artifacts/aa/{"a" * 64}/x artifacts//{"a" * 64} outputs/1/-1-2 outputs/../2-3
spool/1/../../../evil spool/1/epoch.pt/.. spool/1//evil spool/1 statistics/../../evil.npz statistics/evil.py
evalsvc.db-wal database.json restore.unfinished artifacts
"""


@pytest.mark.parametrize("name", [*OTHER_NAMES.split(), ""])
def test_a_file_with_another_name(name: str, good_backup: Path, refuse: Refuse, tmp_path: Path) -> None:
    path = write_members(tmp_path / "bad.tar", [Member(name, b"evil"), *read_members(good_backup).values()])
    refuse(path, "a backup has no file")


def test_a_file_twice_or_no_database(good_backup: Path, refuse: Refuse, tmp_path: Path) -> None:
    members = read_members(good_backup)
    twice = write_members(tmp_path / "twice.tar", [*members.values(), next(iter(members.values()))])
    refuse(twice, "a backup has no file")
    del members[DATABASE]
    refuse(write_members(tmp_path / "less.tar", members.values()), "it has no evalsvc.db")


def statement(*sql: str) -> Change:
    """Change the database of a backup."""

    def change(members: Members) -> None:
        members[DATABASE].content = changed_database(members[DATABASE].content, *sql)

    return change


def output_of(*fields: Any) -> str:
    packed = msgpack.packb(msgpack.ExtType(EXTENSION, msgpack.packb(fields))).hex()
    return f"UPDATE shards SET output = x'{packed}' WHERE stage = 'run'"


def overwritten(size: int, noise: bytes) -> Change:
    """Write noise over the database of a backup, from its byte `size`."""

    def change(members: Members) -> None:
        content = members[DATABASE].content
        members[DATABASE].content = content[:size] + noise * ((len(content) - size) // len(noise))

    return change


def names(sql: str, file: str) -> tuple[Change, str]:
    return statement(sql), f"a row names the file '{file}'"


CHANGES: dict[str, tuple[Change, str]] = {
    "artifact outside": names("UPDATE artifacts SET sha256 = '../../../x'", "artifacts/../../../../x"),
    "pruned artifact outside": names("UPDATE artifacts SET sha256 = '/etc/x' WHERE pruned_at IS NOT NULL", "/etc/x"),
    "items outside": names("UPDATE tasks SET items_sha256 = '../x'", "items/../../x"),
    "output outside": names(output_of("../../etc", 1, 1, "0" * 64, 1), "outputs/../../etc/1-1"),
    "output that is none": (statement(output_of(1, 2)), "names no file of an output"),
    "spooled copy outside": names("UPDATE checkpoints SET path = '/a/..' WHERE spool_state = 'ready'", r"spool/\d/.."),
    "no table": (statement("DROP TABLE tokens"), "no such table: tokens"),
    "no column": (
        statement("DROP INDEX uq_tokens_current", "ALTER TABLE tokens DROP COLUMN revoked_at"),
        "no such column: tokens.revoked_at",
    ),
    "no parent": (statement("PRAGMA foreign_keys=OFF", "DELETE FROM suites", "DELETE FROM runs"), "FOREIGN KEY"),
    "text for a time": (statement("UPDATE runs SET created_at = 'yesterday'"), ""),
    "text for a document": (statement("UPDATE suites SET content = '{'"), ""),
    "deep document": (statement(f"UPDATE suites SET content = '{'[' * 200_000}'"), ""),
    "damaged database": (overwritten(4096, Random(1).randbytes(4096)), ""),
    "no database": (overwritten(0, b"evil"), "file is not a database"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_changed_database(change: Change, message: str, good_backup: Path, refuse: Refuse, tmp_path: Path) -> None:
    members = read_members(good_backup)
    change(members)
    refuse(write_members(tmp_path / "bad.tar", members.values()), message)


def test_what_is_no_backup(good_backup: Path, refuse: Refuse, settings: Settings, tmp_path: Path) -> None:
    path, good = tmp_path / "bad.tar", good_backup.read_bytes()
    contents = {
        "empty": b"",
        "zeros": bytes(10240),
        "a pickle": pickle.dumps({"a": 1}) * 1000,
        "compressed": gzip.compress(good),
        "followed by more": good + b"more",
        "two backups": good + good,
    }
    for content in contents.values():
        path.write_bytes(content)
        refuse(path, "it was cut off or changed, or is no backup")
        if not content.startswith(good):
            refuse(write_signed(path, content))
    assert names_in(settings.data_path) == set(), "the data folder stays as it was"


def test_what_is_no_file(settings: Settings, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent.tar", tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InvalidRequest, match=f"{path}.*; name a file that `evalsvc backup` wrote"):
            restore_backup(settings, path)


def test_what_was_cut_off_or_changed(good_backup: Path, refuse: Refuse, settings: Settings, tmp_path: Path) -> None:
    path, content, dice = tmp_path / "bad.tar", bytearray(good_backup.read_bytes()), Random(22)
    for size in [*(dice.randrange(len(content)) for _ in range(20)), len(content) - 1, len(content) - 64]:
        path.write_bytes(content[:size])
        refuse(path, "it was cut off or changed")
    for place in [*(dice.randrange(len(content)) for _ in range(50)), len(content) - 1]:
        content[place] ^= 1
        path.write_bytes(content)
        refuse(path, "it was cut off or changed")
        content[place] ^= 1
    assert names_in(settings.data_path) == set(), "the data folder stays as it was"
