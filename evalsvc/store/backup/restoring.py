"""Restore a backup into an empty database and an empty data folder. A backup of SQLite fits PostgreSQL and vice versa.

First the whole file is verified. Then the data folder is marked, its files are written, and one transaction inserts all
rows and is committed last. A failed restore leaves the database empty and removes its files. A killed restore leaves
the mark: no service starts on the folder, and the next restore starts over.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from evalsvc.config import Settings, shown_url
from evalsvc.errors import (
    DatabaseInUse,
    DataDirectoryUnusable,
    SchemaVersionMismatch,
    TargetNotEmpty,
)
from evalsvc.files.atomic import replacing, write_whole
from evalsvc.store.backup.archive import Archive, open_archive
from evalsvc.store.backup.manifest import Manifest, TableRows, parse_manifest
from evalsvc.store.backup.members import Member
from evalsvc.store.backup.named import content_place, named_files, require_safe_row
from evalsvc.store.backup.rows import AT_ONCE, MAX_CHUNK, Columns, begin_ids_after, load_rows, read_schema
from evalsvc.store.data_folder import RESTORING, make_data_folder, require_owner, unwritable, write_owner
from evalsvc.store.lock import CoordinatorLock, database_id
from evalsvc.store.session import Store, alembic_config, is_known_revision, is_outage, translated

FILES = ("artifacts", "items", "outputs", "spool", "statistics")
"""Folders of the data folder that a backup contains. The folders must be empty before a restore."""

FREE = 64 << 20
"""Bytes that must stay free on the disk of the data folder."""


def restore_backup(settings: Settings, path: Path) -> Manifest:
    """Restore a backup file into the database and the data folder of the settings. Return the backup's manifest.

    Raises:
        InvalidRequest: the file does not exist or cannot be read.
        BackupUnusable: the file is not a whole backup.
        SchemaVersionMismatch: a newer evalsvc made the backup, or the empty database.
        TargetNotEmpty: the database has rows, or the data folder has files.
        DatabaseInUse: a service runs on the database.
        DatabaseUnusable: the database does not answer.
        DataDirectoryUnusable: the data folder belongs to another database, or cannot be written.
    """
    folder = settings.data_path
    with open_archive(path) as archive:
        manifest = _read_manifest(archive)
        make_data_folder(folder)
        store = Store(settings.database)
        try:
            with translated(store.url), _locked(store):
                _prepare_database(store, folder, manifest)
                with _marked(folder, archive):
                    _write_files(folder, archive, manifest)
                    _insert_rows(store, folder, archive, manifest)
                _finish(store, folder)
        finally:
            store.close()
    return manifest


def _read_manifest(archive: Archive) -> Manifest:
    try:
        manifest = parse_manifest(archive.manifest)
    except ValueError as error:
        raise archive.unusable(str(error)) from None
    if not is_known_revision(manifest.revision):
        raise SchemaVersionMismatch(
            f"the backup, made {manifest.made}, has schema version {manifest.revision}, which this evalsvc does not "
            "know; restore the backup with that version of evalsvc or a newer one"
        )
    return manifest


@contextmanager
def _locked(store: Store) -> Iterator[None]:
    lock = CoordinatorLock(store.url)
    try:
        lock.acquire()
    except DatabaseInUse as error:
        in_use, _, _ = error.message.partition(";")
        raise DatabaseInUse(f"{in_use}; stop that service, then restore") from None
    try:
        yield
    finally:
        lock.release()


def _prepare_database(store: Store, folder: Path, manifest: Manifest) -> None:
    """Check that the database is empty, and create the tables of the backup's schema version."""
    revision = store.schema_version()
    if revision is not None and not is_known_revision(revision):
        store.check_schema()
    with store.engine.execution_options(writes=True).begin() as connection:
        schema = read_schema(connection)
        _require_empty(connection, schema, store.url)
        identity = connection.scalar(sa.text("SELECT database_id FROM terms")) if _has_identity(schema) else None
        require_owner(folder, identity or "none yet", store.url)
        if revision == manifest.revision:
            return
        if revision is not None:
            tables = sa.MetaData()
            tables.reflect(connection, only=[*schema, "alembic_version"])
            tables.drop_all(connection)
    command.upgrade(alembic_config(store.url), manifest.revision)


def _has_identity(schema: Mapping[str, Columns]) -> bool:
    """Tell whether a schema stores the id of the database."""
    return "terms" in schema and "database_id" in schema["terms"].kinds


def _require_empty(connection: Connection, schema: Mapping[str, Columns], url: str) -> None:
    """Raise TargetNotEmpty if a table has rows. The table `terms` may have the row of a started service."""
    for name, columns in schema.items():
        if name != "terms" and connection.scalar(sa.select(sa.literal(1)).select_from(columns.clause()).limit(1)):
            raise TargetNotEmpty(
                f"the database {shown_url(url)} has rows in the table {name}; restore into an empty database "
                "(--database-url) and a new data folder (--data-dir)"
            )


@contextmanager
def _marked(folder: Path, archive: Archive) -> Iterator[None]:
    """Mark the data folder. If the body fails, remove the mark and the written files; otherwise the mark stays.

    Raises:
        TargetNotEmpty: the data folder has files.
        DataDirectoryUnusable: the disk is full, or the data folder cannot be written.
    """
    mark = folder / RESTORING
    if mark.exists():  # a restore was killed, and these folders were empty before
        _remove_files(folder)
    for name in FILES:
        if next((path for path in (folder / name).rglob("*") if not path.is_dir()), None) is not None:
            raise TargetNotEmpty(f"the folder {folder / name} has files; restore into a new data folder (--data-dir)")
    _require_room(folder, archive)
    try:
        write_whole(mark, b"", durable=True)
        yield
    except OSError as error:
        _remove_files(folder)
        raise unwritable(str(error.filename or folder), error) from None
    except BaseException:
        _remove_files(folder)
        raise


def _require_room(folder: Path, archive: Archive) -> None:
    needed = sum(member.size for member in archive.members(FILES)) + FREE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataDirectoryUnusable(
            f"the disk of the data folder {folder} has {free:,} free bytes, and the restore needs {needed:,}; free "
            "some space, or choose another folder with --data-dir (EVALSVC_DATA_DIR)"
        )


def _remove_files(folder: Path) -> None:
    for name in FILES:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / RESTORING).unlink(missing_ok=True)


def _write_files(folder: Path, archive: Archive, manifest: Manifest) -> None:
    files = 0
    for member in archive.members(FILES):
        _write_file(folder, archive, member)
        files += 1
    if files != manifest.files:
        raise archive.unusable(f"it has {files:,} files, and its manifest says {manifest.files:,}")
    os.sync()


def _insert_rows(store: Store, folder: Path, archive: Archive, manifest: Manifest) -> None:
    """Insert all rows in one transaction, and commit if the rows name the restored files."""
    with store.engine.execution_options(writes=True).begin() as connection:
        schema = read_schema(connection)
        _require_same_tables(archive, manifest, schema)
        if "terms" in schema:
            connection.execute(sa.text("DELETE FROM terms"))
        _insert_members(connection, archive, manifest, schema)
        try:
            begin_ids_after(connection, schema, manifest.ids)
        except ValueError as error:
            raise archive.unusable(str(error)) from None
        _require_named_files(connection, schema, folder, archive, manifest)
        if _has_identity(schema):
            # The original database may still be in use. With the same id, each could claim the other's data folder.
            connection.execute(sa.text("UPDATE terms SET database_id = :new"), {"new": uuid.uuid4().hex})


def _finish(store: Store, folder: Path) -> None:
    """Migrate the database to this program's schema version, claim the data folder, and remove the mark."""
    store.migrate()
    try:
        write_owner(folder, database_id(store), store.url)
        os.sync()
        (folder / RESTORING).unlink()
    except OSError as error:
        raise unwritable(str(folder / RESTORING), error) from None


def _write_file(folder: Path, archive: Archive, member: Member) -> None:
    """Write the content of a member to its path in the data folder."""
    name = Path(member.name)
    if member.section in ("artifacts", "items"):
        target = content_place(member.section, name.name)
        if member.sha256 != name.name:
            raise archive.unusable(f"the SHA-256 of {member.name!r} differs from its name")
    elif member.path is not None:
        target = (name.parent if member.section == "spool" else Path(member.section)) / member.path
    else:
        target = name
    with replacing(folder / target, durable=False) as stream:
        archive.copy(member, stream.write)
    if member.mtime_ns is not None:
        os.utime(folder / target, ns=(member.mtime_ns, member.mtime_ns))


def _require_same_tables(archive: Archive, manifest: Manifest, schema: Mapping[str, Columns]) -> None:
    """Raise BackupUnusable unless the backup has exactly the tables and columns of its schema version."""
    listed = {table.name: table.columns for table in manifest.tables}
    if len(listed) != len(manifest.tables) or set(listed) != set(schema):
        differing = ", ".join(sorted(set(listed) ^ set(schema))) or "one table twice"
        raise archive.unusable(f"its tables are not those of schema version {manifest.revision}: {differing}")
    for name, columns in schema.items():
        if listed[name] != dict(columns.kinds):
            differing = ", ".join(sorted({column for column, _ in listed[name].items() ^ columns.kinds.items()}))
            raise archive.unusable(
                f"the columns of table {name} are not those of schema version {manifest.revision}: {differing}"
            )


def _insert_members(
    connection: Connection, archive: Archive, manifest: Manifest, schema: Mapping[str, Columns]
) -> None:
    """Insert all rows, in the order of the archive."""
    rows = dict.fromkeys((table.name for table in manifest.tables), 0)
    tables = {f"{number:02d}-{table.name}": table for number, table in enumerate(manifest.tables)}
    for member in archive.members(("tables",)):
        table = tables.get(member.name.split("/")[1])
        if table is None or member.size > MAX_CHUNK:
            raise archive.unusable(f"{member.name!r} belongs to no table of the manifest, or is too large")
        rows[table.name] += _insert_chunk(connection, archive, member, table, schema[table.name])
    wrong = [table.name for table in manifest.tables if rows[table.name] != table.rows]
    if wrong:
        raise archive.unusable(f"its manifest has other numbers of rows for {', '.join(wrong)}")


def _insert_chunk(connection: Connection, archive: Archive, member: Member, table: TableRows, columns: Columns) -> int:
    # The backup's columns may have another order than the columns of this database.
    listed = Columns(table.name, table.columns, columns.key)
    try:
        rows = load_rows(listed, archive.read(member))
        for row in rows:
            require_safe_row(table.name, row)
    except ValueError as error:
        raise archive.unusable(f"{member.name!r}, {error}") from None
    statement = sa.insert(listed.clause())
    try:
        for start in range(0, len(rows), AT_ONCE):
            connection.execute(statement, rows[start : start + AT_ONCE])
    except (SQLAlchemyError, ValueError, OverflowError) as error:
        if is_outage(error):
            raise
        raise archive.unusable(f"the database refuses a row of {member.name!r}: {_first_line(error)}") from None
    return len(rows)


def _first_line(error: Exception) -> str:
    return (str(getattr(error, "orig", None) or error).splitlines() or [""])[0][:300]


def _require_named_files(
    connection: Connection, schema: Mapping[str, Columns], folder: Path, archive: Archive, manifest: Manifest
) -> None:
    """Raise BackupUnusable unless the rows name every restored file, and no other files than those listed as lost."""
    named = missing = 0
    for file in named_files(connection, schema, spool=False):
        named += 1
        missing += not (folder / file.place).is_file()
    contents = sum(1 for _ in archive.members(("artifacts", "items", "outputs")))
    if missing > manifest.lost:
        raise archive.unusable(f"{missing:,} files that its rows name are not in it")
    if contents != named - missing:
        raise archive.unusable(f"it has {contents - named + missing:,} files that none of its rows names")
    spooled = {file.name: file.place for file in named_files(connection, schema, spool=True) if "spool/" in file.name}
    for member in archive.members(("spool",)):
        place = spooled.get(member.name.rpartition("/")[0])
        if place is None or Path(str(member.path)).parts[0] != place.name:
            raise archive.unusable(f"none of its rows names the spooled checkpoint of {member.name!r}")
