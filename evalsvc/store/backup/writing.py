"""Making a backup: one snapshot of the database, and the files of the data folder that its rows name.

The service keeps running. The snapshot is a read transaction, which makes no writer wait. While it is open the named
files are linked into a folder of the backup's own (`pinned_files`), and what the service deletes afterwards is still
there. A file that went away between snapshot and link has been pruned or deleted, so the next snapshot does not name
it: snapshots are taken until one finds its files. What two of them in a row miss was lost before, as the manifest says.
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

from sqlalchemy import Connection, make_url, text

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
from evalsvc.store.session import Store, is_known_revision, translated

SNAPSHOTS = 20
"""Most snapshots that are taken until one finds all of its files."""


@dataclass(frozen=True)
class Written:
    """A backup that was made."""

    path: Path
    size: int
    """Bytes of the file."""
    manifest: Manifest

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.manifest.tables)


@dataclass
class _Part:
    """What the manifest will say, as far as it is known."""

    tables: list[TableRows] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)


def write_backup(settings: Settings, path: Path, *, force: bool = False, spool: bool = True) -> Written:
    """Write the database and the data folder of the settings to the file `path`, whole or not at all.

    Args:
        force: whether a file that is there is replaced.
        spool: whether copies of checkpoints that were posted with `spool` are included.

    Raises:
        InvalidRequest: `path` is there already, or cannot be written.
        DatabaseUnusable: there is no database, or it does not answer.
        SchemaVersionMismatch: the database was made by a newer evalsvc.
        DataDirectoryUnusable: the data folder belongs to another database, or cannot be written.
    """
    if path.exists() and not (force and path.is_file()):
        raise InvalidRequest(f"{path} is there already; choose another name, or add --force to replace a backup")
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path}: there is no folder {path.parent}; make it first")
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
                    f"the backup {path} cannot be made: {where}: {os_reason(error)}; make room, choose another place, "
                    "or run the command as the user of the service"
                ) from None
    finally:
        store.close()
    return Written(path, size, manifest)


def _open_store(settings: Settings) -> Store:
    """Open the database, and make none where there is none."""
    url = make_url(settings.database) if "://" in settings.database else None
    if url is not None and url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise DatabaseUnusable(
            f"there is no database {shown_url(settings.database)}; say with --data-dir or --database-url "
            "(EVALSVC_DATA_DIR, EVALSVC_DATABASE_URL) where the service has it"
        )
    return Store(settings.database)


def _require_schema(store: Store) -> str:
    """Return the migration that the database stands at, which may be an older one."""
    revision = store.schema_version()
    if revision is None:
        raise DatabaseUnusable(f"the database {shown_url(store.url)} is empty; there is nothing to back up")
    if not is_known_revision(revision):
        store.check_schema()
    return revision


def _write(
    store: Store, settings: Settings, revision: str, pinned: PinnedFiles, archive: ArchiveWriter, *, spool: bool
) -> Manifest:
    """Write all but the manifest's own member, and return the manifest."""
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
    """Open a snapshot of the database whose files are pinned; `part.lost` is what is missing for good."""
    before: set[str] = set()
    for _ in range(SNAPSHOTS):
        with _snapshot(store) as connection:
            schema = read_schema(connection)
            _require_own_folder(connection, schema, settings, store.url)
            part.lost = pinned.pin(named_files(connection, schema, spool=spool))
            if part.lost <= before:
                yield connection, schema
                return
        before = part.lost
    raise DataDirectoryUnusable(
        f"files of the data folder {settings.data_path} go away faster than they are linked, {SNAPSHOTS} times in a "
        "row; make the backup when fewer runs are deleted or pruned"
    )


@contextmanager
def _snapshot(store: Store) -> Iterator[Connection]:
    """A transaction that sees the database as it is at its first query, and makes nobody wait."""
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with store.engine.connect() as connection:
        if store.engine.dialect.name != "sqlite":  # where a transaction is a snapshot anyway, as its log is ahead
            connection = connection.execution_options(**options)
        with connection.begin():
            yield connection


def _require_own_folder(connection: Connection, schema: dict[str, Columns], settings: Settings, url: str) -> None:
    """Raise DataDirectoryUnusable if the data folder is not the database's own, so that its files would be missed."""
    if "terms" not in schema or "database_id" not in schema["terms"].kinds:
        return
    identity = connection.scalar(text("SELECT database_id FROM terms"))
    if identity is not None and not require_owner(settings.data_path, identity, url):
        raise DataDirectoryUnusable(
            f"the folder {settings.data_path} is not the data folder of the database {shown_url(url)}: it has no "
            f"{OWNER}; say with --data-dir (EVALSVC_DATA_DIR) where that is"
        )


def _write_table(archive: ArchiveWriter, connection: Connection, name: str, columns: Columns) -> TableRows:
    rows = 0
    for number, (chunk, lines) in enumerate(chunks_of(dump_rows(connection, columns))):
        if len(chunk) > MAX_CHUNK:
            raise DatabaseUnusable(
                f"a row of table {columns.table} has more than {MAX_CHUNK - CHUNK:,} bytes, and no backup takes it; "
                "use the database's own backup, and report this"
            )
        archive.add(f"tables/{name}/{number:06d}.jsonl", BytesIO(chunk), len(chunk))
        rows += lines
    return TableRows(name=columns.table, columns=dict(columns.kinds), rows=rows)


def _write_named(archive: ArchiveWriter, pinned: PinnedFiles, part: _Part) -> None:
    """Write artifacts, results per item and outputs; what is damaged is lost."""
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
    """Write the spooled checkpoints, each a file or a folder with files, whose names others chose."""
    count: dict[str, int] = {}
    for place, path in pinned.of("spool"):
        checkpoint, _, rest = place.partition("/")
        number = count[checkpoint] = count.get(checkpoint, -1) + 1
        try:
            _write_file(archive, f"spool/{checkpoint}/{number:06d}", path, rest)
        except Damaged:  # a link to a file that its owner has just written to
            part.lost.add(f"spool/{checkpoint}")


def _write_statistics(archive: ArchiveWriter, folder: Path) -> None:
    """Write reference statistics and kept answers as they are now: each is whole, and no row names them."""
    number = 0
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if not re.fullmatch(STATISTICS_PATH, place) or path.is_symlink() or not path.is_file():
            continue
        try:
            _write_file(archive, f"statistics/{number:09d}", path, place)
            number += 1
        except FileNotFoundError:
            continue  # the oldest answers are deleted to make room


def _write_file(archive: ArchiveWriter, name: str, path: Path, place: str) -> None:
    with path.open("rb") as content:
        status = os.fstat(content.fileno())
        archive.add(name, content, status.st_size, path=place, mtime_ns=status.st_mtime_ns)


def _sync_folder(folder: Path) -> None:
    """Have the file's new name on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
