"""Write a backup: a snapshot of the database, and the files of the data folder that the rows name.

The service keeps running, because the snapshot is a read transaction, which blocks no writer. While the transaction is
open, the named files are linked into a folder of the backup (`pinned_files`), so the service may delete the originals.
A file that is deleted between the snapshot and its link is not named by the next snapshot, so snapshots are taken until
no further file is missing. The manifest lists files that are missing in two consecutive snapshots as lost.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from sqlalchemy import Connection, text

from evalsvc import __version__
from evalsvc.config import Settings, shown_url
from evalsvc.errors import DatabaseUnusable, DataDirectoryUnusable, InvalidRequest, os_reason
from evalsvc.files.atomic import replacing
from evalsvc.store.backup.archive import ArchiveWriter, Damaged
from evalsvc.store.backup.manifest import FORMAT, NAMED, Manifest, TableRows
from evalsvc.store.backup.members import STATISTICS_PATH
from evalsvc.store.backup.named import named_files
from evalsvc.store.backup.pinned_files import PinnedFiles, pinned_files
from evalsvc.store.backup.rows import CHUNK, MAX_CHUNK, Columns, chunks_of, dump_rows, largest_ids, read_schema
from evalsvc.store.data_folder import OWNER, require_owner
from evalsvc.store.session import Store, is_known_revision, require_database, translated

SNAPSHOTS = 20
"""The most snapshots until all files of a snapshot must be linked."""


@dataclass(frozen=True)
class Written:
    """A finished backup."""

    path: Path
    size: int
    """The bytes of the file."""
    manifest: Manifest

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.manifest.tables)


@dataclass
class _Part:
    """The parts of the manifest that are collected while the backup is written."""

    tables: list[TableRows] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)


def write_backup(settings: Settings, path: Path, *, force: bool = False, spool: bool = True) -> Written:
    """Write a backup of the settings' database and data folder to the file `path`. A failed backup leaves no file.

    Args:
        force: whether to replace an existing file.
        spool: whether to include copies of checkpoints that were posted with `spool`.

    Raises:
        InvalidRequest: `path` exists or cannot be written.
        DatabaseUnusable: the database does not exist or does not answer.
        SchemaVersionMismatch: a newer evalsvc made the database.
        DataDirectoryUnusable: the data folder belongs to another database, or cannot be written.
    """
    if path.exists() and not (force and path.is_file()):
        raise InvalidRequest(f"{path} exists; choose another name, or add --force to replace the file")
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path}: the folder {path.parent} does not exist; create the folder first")
    store = _open_store(settings)
    try:
        revision = _require_schema(store)
        with translated(store.url), pinned_files(settings.data_path) as pinned:
            try:
                with replacing(path) as stream, tempfile.TemporaryFile() as lines:
                    archive = ArchiveWriter(stream, lines)
                    manifest = _write(store, settings, revision, pinned, archive, spool=spool)
                    archive.close(manifest.model_dump_json())
                    size = stream.tell()
                _sync_folder(path.parent)
            except OSError as error:
                where = error.filename or path
                raise InvalidRequest(
                    f"the backup {path} cannot be written: {where}: {os_reason(error)}; free some space, choose "
                    "another path, or run the command as the user of the service"
                ) from None
    finally:
        store.close()
    return Written(path, size, manifest)


def _open_store(settings: Settings) -> Store:
    """Open an existing database.

    Raises:
        DatabaseUnusable: the database does not exist.
    """
    require_database(settings.database)
    return Store(settings.database)


def _require_schema(store: Store) -> str:
    """Return the schema version of the database, which may be older than this program's.

    Raises:
        DatabaseUnusable: the database is empty.
        SchemaVersionMismatch: a newer evalsvc made the database.
    """
    revision = store.schema_version()
    if revision is None:
        raise DatabaseUnusable(f"the database {shown_url(store.url)} is empty; there is nothing to back up")
    if not is_known_revision(revision):
        store.check_schema()
    return revision


def _write(
    store: Store, settings: Settings, revision: str, pinned: PinnedFiles, archive: ArchiveWriter, *, spool: bool
) -> Manifest:
    """Write all members but the manifest, and return the manifest."""
    part = _Part()
    with _consistent(store, settings, pinned, part, spool=spool) as (connection, schema):
        part.tables = [
            _write_table(archive, connection, f"{number:02d}-{name}", columns)
            for number, (name, columns) in enumerate(schema.items())
        ]
        part.ids = largest_ids(connection, schema)
    _write_named(archive, pinned, part)
    _write_spool(archive, pinned, part)
    _write_statistics(archive, settings.statistics_path)
    return Manifest(
        format=FORMAT,
        evalsvc=__version__,
        made_at=datetime.now(UTC),
        database="sqlite" if store.engine.dialect.name == "sqlite" else "postgresql",
        revision=revision,
        tables=part.tables,
        ids=part.ids,
        members=archive.members,
        files=archive.files,
        lost=len(part.lost),
        lost_names=sorted(part.lost)[:NAMED],
    )


@contextmanager
def _consistent(
    store: Store, settings: Settings, pinned: PinnedFiles, part: _Part, *, spool: bool
) -> Iterator[tuple[Connection, dict[str, Columns]]]:
    """Yield a snapshot of the database whose files are pinned. `part.lost` has the names of lost files."""
    missing_before: set[str] = set()
    for _ in range(SNAPSHOTS):
        with _snapshot(store) as connection:
            schema = read_schema(connection)
            _require_own_folder(connection, schema, settings, store.url)
            part.lost = pinned.pin(named_files(connection, schema, spool=spool))
            if part.lost <= missing_before:
                yield connection, schema
                return
        missing_before = part.lost
    raise DataDirectoryUnusable(
        f"the service deletes files of the data folder {settings.data_path} faster than the backup links them, "
        f"{SNAPSHOTS} times in a row; make the backup when fewer runs are deleted or pruned"
    )


@contextmanager
def _snapshot(store: Store) -> Iterator[Connection]:
    """Yield a transaction that reads one snapshot of the database and blocks no writer."""
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with store.engine.connect() as connection:
        if store.engine.dialect.name != "sqlite":  # every transaction of SQLite reads one snapshot
            connection = connection.execution_options(**options)
        with connection.begin():
            yield connection


def _require_own_folder(connection: Connection, schema: dict[str, Columns], settings: Settings, url: str) -> None:
    """Raise DataDirectoryUnusable if the data folder does not belong to the database."""
    if "terms" not in schema or "database_id" not in schema["terms"].kinds:
        return
    identity = connection.scalar(text("SELECT database_id FROM terms"))
    if identity is not None and not require_owner(settings.data_path, identity, url):
        raise DataDirectoryUnusable(
            f"the folder {settings.data_path} is not the data folder of the database {shown_url(url)}: the folder has "
            f"no {OWNER}; name the data folder with --data-dir (EVALSVC_DATA_DIR)"
        )


def _write_table(archive: ArchiveWriter, connection: Connection, name: str, columns: Columns) -> TableRows:
    rows = 0
    for number, (chunk, lines) in enumerate(chunks_of(dump_rows(connection, columns))):
        if len(chunk) > MAX_CHUNK:
            raise DatabaseUnusable(
                f"a row of table {columns.table} has more than {MAX_CHUNK - CHUNK:,} bytes, too many for this backup; "
                "use a backup tool of the database, and report this bug"
            )
        archive.add(f"tables/{name}/{number:06d}.jsonl", BytesIO(chunk), len(chunk))
        rows += lines
    return TableRows(name=columns.table, columns=dict(columns.kinds), rows=rows)


def _write_named(archive: ArchiveWriter, pinned: PinnedFiles, part: _Part) -> None:
    """Write artifacts, results per item and outputs. Damaged files are listed as lost."""
    for section in ("artifacts", "items", "outputs"):
        for place, path in pinned.of(section):
            sha256 = None if section == "outputs" else path.name
            name = f"{section}/{place if sha256 is None else sha256}"
            try:
                with path.open("rb") as content:
                    archive.add(name, content, os.fstat(content.fileno()).st_size, sha256=sha256)
            except Damaged:
                part.lost.add(name)


def _write_spool(archive: ArchiveWriter, pinned: PinnedFiles, part: _Part) -> None:
    """Write the spooled checkpoints: files, or folders of files with names of any length."""
    count: dict[str, int] = {}
    for place, path in pinned.of("spool"):
        checkpoint, _, rest = place.partition("/")
        number = count[checkpoint] = count.get(checkpoint, -1) + 1
        try:
            _write_file(archive, f"spool/{checkpoint}/{number:06d}", path, rest)
        except Damaged:  # the file was written to during the backup
            part.lost.add(f"spool/{checkpoint}")


def _write_statistics(archive: ArchiveWriter, folder: Path) -> None:
    """Write all reference statistics and cached answers. No row names these files."""
    number = 0
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if not re.fullmatch(STATISTICS_PATH, place) or path.is_symlink() or not path.is_file():
            continue
        try:
            _write_file(archive, f"statistics/{number:09d}", path, place)
            number += 1
        except FileNotFoundError:
            continue  # the service deletes the oldest answers to free space


def _write_file(archive: ArchiveWriter, name: str, path: Path, place: str) -> None:
    with path.open("rb") as content:
        status = os.fstat(content.fileno())
        archive.add(name, content, status.st_size, path=place, mtime_ns=status.st_mtime_ns)


def _sync_folder(folder: Path) -> None:
    """Write the folder's entries to the disk, so that the file's new name survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
