"""Back up the database and the data folder to one tar while the service runs, and restore both.

The tar has the files of the data folder under their paths, and the database as the SQLite file `evalsvc.db`, also that
of PostgreSQL. The SHA-256 of the tar follows its end, so a restore notices every change.

The service may delete files during a backup, and no lock is needed. A file is complete before a transaction names it,
does not change afterwards, and is deleted after a transaction that no longer names it. So the database is copied first,
and then the files that the copy names. If the service deletes a file in between, a newer copy of the database does not
name the file, and replaces the first copy. A missing file that two consecutive copies name was lost before the backup.
Outputs of unfinished tasks come and go faster than that: a restored service runs the shards of missing outputs again.

A restore marks the data folder first, and commits all rows last. If the restore fails or is killed, the mark stays: no
service starts on the folder, and the next restore begins anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, Table, delete, insert, inspect, literal, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from evalsvc.checkpoints.copies import spool_path
from evalsvc.checkpoints.reference import files_of
from evalsvc.config import Settings, shown_url
from evalsvc.errors import BackupUnusable, DatabaseUnusable, InvalidData, InvalidRequest, TargetNotEmpty, os_reason
from evalsvc.files.artifacts import artifact_path
from evalsvc.files.atomic import FOR_GROUP, replacing, write_whole
from evalsvc.files.kept import FILE_NAME, claim_shared
from evalsvc.files.opened import anywhere, open_file
from evalsvc.installation import code_digest, find_commit
from evalsvc.store import data_folder
from evalsvc.store.data_folder import named_artifacts, named_items, named_outputs
from evalsvc.store.lock import CoordinatorLock, database_id
from evalsvc.store.session import Store, database_unusable, is_known_revision, open_known, translated
from evalsvc.store.tables import Artifact, Base, Checkpoint, Term

DATABASE = "evalsvc.db"

SHARED = ("outputs", "statistics")
"""Subfolders of the folder that workers read too."""

FOLDERS = ("artifacts", "items", "spool", *SHARED)
"""Subfolders that a backup has."""

FILE = re.compile(
    r"(artifacts|items)/[0-9a-f]{2}/[0-9a-f]{64}|outputs/[0-9]{1,18}/[0-9]{1,18}-[0-9]{1,18}"
    r"|spool/[0-9]{1,18}(/(?!\.{1,2}(/|\Z))[^/\0\ud800-\udfff]+)+"
    rf"|statistics/({FILE_NAME.pattern})|{re.escape(DATABASE)}"
)
"""The database, and the other files that a backup may have: paths relative to the folders of `_home`."""

ROWS = 500
"""The number of rows in one read or insert."""

PIECE = 1 << 20
"""Bytes in one read."""

DIGEST = 64
"""Bytes at the end of a backup: the SHA-256 of all bytes before, as hexadecimal digits."""

LONG_NAME = 1 << 16
"""The most bytes of a header with a long name."""


def write_backup(settings: Settings, path: Path, *, force: bool = False, spool: bool = True) -> list[str]:
    """Write a backup of the settings' database and data folder to the file `path`. A failed backup leaves no file.

    Return the files that the database names and that are missing or damaged. `force` replaces an existing file, and
    `spool` includes copies of checkpoints that were posted with `spool`.
    """
    if path.exists() and not (force and path.is_file()):
        raise InvalidRequest(f"{path} exists; choose another name, or add --force to replace the file")
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path}: the folder {path.parent} does not exist; create the folder first")
    try:
        with (
            closing(open_known(settings)) as store,
            translated(store.url),
            tempfile.TemporaryDirectory(prefix="evalsvc-backup-") as staging,
            replacing(path) as stream,
        ):
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
                lost = _write(store, settings, tar, Path(staging) / DATABASE, spool)
            stream.flush()
            with open(stream.name, "rb") as written:
                stream.write(hashlib.file_digest(written, "sha256").hexdigest().encode())
        os.sync()  # the file's new name survives a crash
    except OSError as error:
        raise InvalidRequest(
            f"the backup {path} cannot be written: {error.filename or path}: {os_reason(error)}; free some space there "
            "and in TMPDIR, choose another path, or run the command as the user of the service"
        ) from None
    return lost


def _write(store: Store, settings: Settings, tar: tarfile.TarFile, database: Path, spool: bool) -> list[str]:
    added: set[str] = set()
    lost_before: set[str] = set()
    while True:
        with closing(_copy_database(store, database)) as copy:
            with copy.reading() as session:
                identity = session.scalar(select(Term.database_id))
            if not data_folder.require_owner(settings.data_path, identity, store.url) and identity is not None:
                data_folder.claim_data_folder(settings.data_path, identity, store.url, may_begin=False)
            named = named_files(copy, spool=spool)
        lost = set()
        for name, sha256 in named.items():
            folder = _home(settings, name)
            is_whole = all(_add(tar, added, folder, file, sha256) for file in _files_of(folder, name))
            if not is_whole and not name.startswith("outputs/"):
                lost.add(name)
        if lost <= lost_before:
            break
        lost_before = lost
    for file in _files_of(settings.shared_path, "statistics"):
        _add(tar, added, settings.shared_path, file)
    _add(tar, added, database.parent, DATABASE)
    return sorted(lost)


def _home(settings: Settings, name: str) -> Path:
    return settings.shared_path if name.startswith(SHARED) else settings.data_path


def _files_of(folder: Path, name: str) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return [path.relative_to(folder).as_posix() for path in files_of(folder / name)]
    return [name]


def _add(tar: tarfile.TarFile, added: set[str], folder: Path, name: str, sha256: str | None = None) -> bool:
    if name not in added and FILE.fullmatch(name):
        with suppress(FileNotFoundError, NotADirectoryError), (folder / name).open("rb") as stream:
            if sha256 is None or sha256 == hashlib.file_digest(stream, "sha256").hexdigest():
                status = os.fstat(stream.fileno())
                header = tarfile.TarInfo(name)
                header.size, header.mode, header.mtime = status.st_size, 0o600, int(status.st_mtime)
                if name.startswith("spool/"):  # the exact time is a part of a checkpoint's identity
                    header.pax_headers = {"mtime": f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09}"}
                if name == DATABASE:
                    header.pax_headers = {"comment": f"code {code_digest()}, commit {find_commit() or 'unknown'}"}
                stream.seek(0)
                tar.addfile(header, stream)
                added.add(name)
    return name in added


def named_files(copy: Store, *, spool: bool) -> dict[str, str | None]:
    """Return the files that the rows name, by relative path, with the SHA-256 of all but spooled checkpoints."""
    with copy.reading() as session:
        named: dict[Path, str | None] = {file.path(Path("outputs")): file.sha256 for file in named_outputs(session)}
        named |= {artifact_path(Path("artifacts"), sha256): sha256 for sha256 in named_artifacts(session)}
        named |= {artifact_path(Path("items"), sha256): sha256 for sha256 in named_items(session)}
        if spool:
            ready = select(Checkpoint.id, Checkpoint.path).where(Checkpoint.spool_state == "ready")
            named |= {spool_path(Path(), row.id, row.path): None for row in session.execute(ready)}
    return {str(path): sha256 for path, sha256 in named.items()}


def _copy_database(store: Store, file: Path) -> Store:
    file.unlink(missing_ok=True)
    is_sqlite = store.engine.dialect.name == "sqlite"
    if not is_sqlite or not is_known_revision(str(store.schema_version())):
        store.check_schema()
    if is_sqlite:
        try:
            with store.engine.connect() as connection, closing(sqlite3.connect(file)) as target:
                connection.connection.driver_connection.backup(target)  # type: ignore[union-attr]
        except sqlite3.Error as error:
            raise database_unusable(store.url, error) from None
    copy = Store(f"sqlite:///{file}")
    copy.migrate()
    if not is_sqlite:
        snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with store.engine.connect().execution_options(**snapshot) as source:
            copy_rows(source, copy)
    return copy


def copy_rows(source: Connection, store: Store) -> None:
    """Copy all rows to an empty database of either kind, in one transaction. New rows reuse no id of the source."""
    with store.engine.execution_options(writes=True).begin() as target:
        target.execute(delete(Term))  # a service may have been started on the empty database
        for table in Base.metadata.sorted_tables:
            rows = source.execute(select(table), execution_options={"yield_per": ROWS})
            for part in rows.mappings().partitions():
                target.execute(insert(table), [dict(row) for row in part])
        for table in Base.metadata.sorted_tables:
            if table.autoincrement_column is not None:
                _keep_ids(table, source, target)


def _keep_ids(table: Table, source: Connection, target: Connection) -> None:
    name, sequence = {"name": table.name}, "pg_get_serial_sequence(:name, 'id')"
    ids = target.scalars(select(table.c.id).order_by(table.c.id.desc()).limit(1)).all()
    if source.dialect.name == "sqlite":
        given = source.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = :name"), name)
    else:
        given = source.scalar(text(f"SELECT pg_sequence_last_value({sequence}::regclass)"), name)
    largest = {"largest": max(given or 0, *ids, 0)}
    if target.dialect.name != "sqlite":
        target.execute(text(f"SELECT setval({sequence}, :largest + 1, false)"), name | largest)
    elif table.dialect_options["sqlite"]["autoincrement"]:
        target.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), name)
        target.execute(text("INSERT INTO sqlite_sequence VALUES (:name, :largest)"), name | largest)


def restore_backup(settings: Settings, path: Path) -> tuple[list[str], str]:
    """Restore a backup; return artifacts and results per item that were lost before, and what code wrote the backup."""
    try:
        stream = open_file(path, "backup", anywhere).stream
    except InvalidData as error:
        raise InvalidRequest(f"{error.message}; name a file that `evalsvc backup` wrote") from None
    folder = settings.data_path
    with stream, _errors_of(path, folder), tempfile.TemporaryDirectory(prefix="evalsvc-restore-") as staging:
        _require_unchanged(stream)
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as tar:
            members = _read_members(tar, os.fstat(stream.fileno()).st_size)
            database = members.pop(DATABASE)
            writer = re.fullmatch(r"code \w+, commit [\w-]+", database.pax_headers.get("comment", ""), re.ASCII)
            _extract(tar, database, Path(staging) / DATABASE)
            with closing(Store(f"sqlite:///{staging}/{DATABASE}")) as copy:
                named = _checked_names(copy)
                data_folder.make_data_folder(folder)
                with closing(Store(settings.database)) as store, translated(store.url), ExitStack() as stack:
                    lock = CoordinatorLock(store.url)
                    lock.acquire()
                    stack.callback(lock.release)
                    _require_empty(store, settings)
                    write_whole(folder / data_folder.RESTORING, b"")
                    for member in members.values():
                        _extract(tar, member, _home(settings, member.name) / member.name)
                    os.sync()
                    with copy.engine.connect() as source:
                        copy_rows(source, store)
                    data_folder.write_owner(folder, database_id(store), store.url)
                    claim_shared(settings.shared_path, database_id(store))
                    os.sync()
                    (folder / data_folder.RESTORING).unlink()
    lost = sorted(name for name in named if name.startswith(("artifacts/", "items/")) and name not in members)
    return lost, writer[0][:100] if writer else "code unknown"


@contextmanager
def _errors_of(path: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise data_folder.unwritable(str(error.filename or f"{folder} or TMPDIR"), error) from None
    except (tarfile.TarError, SQLAlchemyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        problem = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
        raise BackupUnusable(f"{path} is not a whole backup: {problem}; use another backup") from None


def _require_unchanged(stream: BinaryIO) -> None:
    digest, rest = hashlib.sha256(), os.fstat(stream.fileno()).st_size - DIGEST
    while rest > 0 and (piece := stream.read(min(PIECE, rest))):
        digest.update(piece)
        rest -= len(piece)
    if stream.read(DIGEST + 1) != digest.hexdigest().encode():
        raise ValueError("it was cut off or changed, or is no backup")
    stream.seek(0)


class _Header(tarfile.TarInfo):
    """The header of a regular file, or the header before it with a long name, a large size or an exact time."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type != tarfile.REGTYPE and not (header.type == tarfile.XHDTYPE and header.size <= LONG_NAME):
            raise ValueError(f"{header.name!r} is no regular file")
        return header


def _read_members(tar: tarfile.TarFile, size: int) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for header in tar:
        is_whole = 0 <= header.size <= size and not header.issparse()
        if not is_whole or header.name in members or not FILE.fullmatch(header.name):
            raise ValueError(f"a backup has no file {header.name!r} of {header.size:,} bytes here")
        members[header.name] = header
    if DATABASE not in members:
        raise ValueError(f"it has no {DATABASE}")
    return members


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None, "_Header refuses all but regular files"
    with replacing(target, durable=False, mode=FOR_GROUP if member.name.startswith(SHARED) else 0o600) as stream:
        shutil.copyfileobj(content, stream)
    if exact := member.pax_headers.get("mtime"):
        mtime_ns = int(exact.replace(".", ""))
        os.utime(target, ns=(mtime_ns, mtime_ns))


def _checked_names(copy: Store) -> dict[str, str | None]:
    try:
        copy.migrate()
    except DatabaseUnusable as error:
        raise ValueError(error.message) from None
    with copy.transaction() as session:
        if (problem := session.scalar(text("PRAGMA integrity_check"))) != "ok":
            raise ValueError(f"its database is damaged: {problem}")
        for table in Base.metadata.sorted_tables:
            session.execute(select(table).limit(1))
        # The original database may still be in use. With the same id, each could claim the other's data folder.
        session.execute(update(Term).values(database_id=uuid.uuid4().hex))
        digests = session.scalars(select(Artifact.sha256)).all()
    named = named_files(copy, spool=True)
    # The service deletes the artifacts of a deleted run, pruned or not.
    names = [*named, *(str(artifact_path(Path("artifacts"), sha256)) for sha256 in digests)]
    if outside := [name for name in names if not FILE.fullmatch(name)]:
        raise ValueError(f"a row names the file {outside[0]!r}")
    return named


def _require_empty(store: Store, settings: Settings) -> None:
    with store.engine.connect() as connection:
        tables = set(inspect(connection).get_table_names()) - {Term.__tablename__}
        for table in Base.metadata.sorted_tables:
            row = select(literal(1)).select_from(table).limit(1)
            if table.name in tables and connection.scalar(row) is not None:
                raise TargetNotEmpty(
                    f"the database {shown_url(store.url)} has rows in the table {table.name}; restore into an empty "
                    "database (--database-url) and a new data folder (--data-dir)"
                )
    store.migrate()
    with store.reading() as session:
        data_folder.require_owner(settings.data_path, session.scalar(select(Term.database_id)), store.url)
    restoring = settings.data_path / data_folder.RESTORING
    for subfolder in (_home(settings, name) / name for name in FOLDERS):
        if restoring.exists():  # an earlier restore failed, and the subfolder was empty before
            shutil.rmtree(subfolder, ignore_errors=True)
        if any(not path.is_dir() for path in subfolder.rglob("*")):
            raise TargetNotEmpty(f"the folder {subfolder} has files; restore into a new data folder (--data-dir)")
