"""The data folder of a database: its owner, the files that the database names, and the space that it takes.

All files that the database does not name are orphans. A starting service removes them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from evalsvc.config import shown_url
from evalsvc.errors import DataDirectoryUnusable, os_reason
from evalsvc.files.artifacts import artifact_path
from evalsvc.files.atomic import write_whole
from evalsvc.files.outputs import OutputFile
from evalsvc.spec import documents
from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, Run, Shard, Task, Term

OWNER = "database.json"
"""The file that names the folder's database: `{"id": …, "url": …}`."""

RESTORING = "restore.unfinished"
"""The file that marks a folder with an unfinished restore."""


def make_data_folder(folder: Path) -> None:
    """Create the data folder, accessible to the service's user only. An existing folder keeps its permissions."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".evalsvc-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(f"the folder {folder}", error) from None


def claim_data_folder(folder: Path, database_id: str, url: str, *, may_begin: bool = True) -> None:
    """Claim the folder for a database. Refuse the folder of another database, whose files the service would remove. A
    folder without an owner is claimed only if `may_begin` is set."""
    if (folder / RESTORING).exists():
        raise DataDirectoryUnusable(
            f"the folder {folder} holds an unfinished restore; run the same `evalsvc restore` again, which starts "
            "over, or choose another folder with --data-dir (EVALSVC_DATA_DIR)"
        )
    if require_owner(folder, database_id, url):
        return
    if not may_begin:
        raise DataDirectoryUnusable(
            f"the database {shown_url(url)} has runs, and the folder {folder} is not its data folder: the folder has "
            f"no {OWNER} and none of the files that the database names; name the data folder with --data-dir "
            "(EVALSVC_DATA_DIR), or restore a backup with `evalsvc restore`; if the data folder is lost for good, add "
            "--new-data-folder: metrics stay, but artifacts and results per item in files are lost"
        )
    write_owner(folder, database_id, url)


def write_owner(folder: Path, database_id: str, url: str) -> None:
    """Claim the folder for a database, even if another database owns the folder."""
    path = folder / OWNER
    try:
        content = json.dumps({"id": database_id, "url": shown_url(url)}).encode()
        write_whole(path, content, durable=False, mode=0o666)
    except OSError as error:
        raise unwritable(str(path), error) from None


def _owner(folder: Path) -> dict[str, str] | None:
    path = folder / OWNER
    try:
        owner = json.loads(path.read_bytes()) if path.exists() else None
    except OSError as error:
        raise unwritable(str(path), error) from None
    except ValueError:
        owner = {}
    return owner if isinstance(owner, dict) or owner is None else {}


def owner_url(folder: Path) -> str | None:
    """Return the URL, without a password, of the database that the folder belongs to; None for a folder without one."""
    owner = _owner(folder)
    return None if owner is None else str(owner.get("url", f"see {folder / OWNER}"))


def require_owner(folder: Path, database_id: str | None, url: str) -> bool:
    """Return whether the folder belongs to this database, whose id is None before its first service: False for a folder
    without an owner."""
    owner = _owner(folder)
    if owner is not None and (database_id is None or owner.get("id") != database_id):
        raise DataDirectoryUnusable(
            f"the folder {folder} has the artifacts of another database, {owner_url(folder)}, which a service on "
            f"{shown_url(url)} would remove; give the URL of that database with --database-url "
            "(EVALSVC_DATABASE_URL), choose another folder with --data-dir (EVALSVC_DATA_DIR), or remove "
            f"{folder / OWNER} if that database is lost for good"
        )
    return owner is not None


def unwritable(what: str, error: OSError) -> DataDirectoryUnusable:
    return DataDirectoryUnusable(
        f"{what} cannot be written: {os_reason(error)}; "
        "change the permissions, or choose another data folder with --data-dir (EVALSVC_DATA_DIR)"
    )


def asked_anew(
    reading: Callable[[], AbstractContextManager[Session]], named: Callable[..., Collection[str]]
) -> Callable[[Collection[str]], Collection[str]]:
    """Return a function that calls `named` (`named_artifacts` or `named_items`) in a new session each time."""

    def ask(digests: Collection[str]) -> Collection[str]:
        with reading() as session:
            return named(session, digests)

    return ask


def named_outputs(session: Session) -> set[OutputFile]:
    """Return the output files that a merge may still read; all other output files are orphans."""
    rows = session.scalars(
        select(Shard.output)
        .join(Task)
        .join(Evaluation)
        .join(Checkpoint)
        .where(Shard.stage == "run", Shard.output.is_not(None), Checkpoint.replaced_at.is_(None))
    )
    return {output for output in rows if isinstance(output, OutputFile)}


def named_artifacts(session: Session, digests: Collection[str] | None = None) -> set[str]:
    """Return the digests of artifacts that were not pruned, of all artifacts or among `digests`."""
    query = select(Artifact.sha256).where(Artifact.pruned_at.is_(None)).distinct()
    return set(session.scalars(query if digests is None else query.where(Artifact.sha256.in_(digests))))


def named_items(session: Session, digests: Collection[str] | None = None) -> set[str]:
    """Return the digests of files with results per item, of all tasks or among `digests`."""
    named = Task.items_sha256.is_not(None) if digests is None else Task.items_sha256.in_(digests)
    return {sha256 for sha256 in session.scalars(select(Task.items_sha256).where(named)) if sha256 is not None}


def may_begin_folder(session: Session, artifacts: Path, items: Path) -> bool:
    """Tell whether the database may claim the data folder with these subfolders, which has no owner: a database without
    runs, one that was never served, or one of whose 20 newest artifacts or results per item a file is there."""
    identity = session.scalar(select(Term.database_id))
    if identity is None or session.scalar(select(Run.id).limit(1)) is None:
        return True
    named = (
        (artifacts, select(Artifact.sha256).where(Artifact.pruned_at.is_(None)).order_by(Artifact.id.desc())),
        (items, select(Task.items_sha256).where(Task.items_sha256.is_not(None)).order_by(Task.id.desc())),
    )
    return any(
        artifact_path(folder, str(sha256)).is_file()
        for folder, query in named
        for sha256 in session.scalars(query.limit(20))
    )


EVERY = 60.0
"""Seconds until the disk is measured again; a page that watches the service's state does not change in between."""

PATIENCE = 1.0
"""Seconds for which files of the data folder are counted; what is counted until then is a lower bound."""


class DiskUse:
    """Measurements of one service's disk: of the data folder, and of the database at a URL."""

    def __init__(self, folder: Path, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._measured_at = -EVERY
        self._last: documents.Disk | None = None

    def view(self, session: Session) -> documents.Disk | None:
        """Return a measurement; None while another thread makes the first one, and if the disk cannot be read."""
        if self._clock() - self._measured_at >= EVERY and self._lock.acquire(blocking=False):
            try:
                self._last = self._measure(session)
                self._measured_at = self._clock()
            finally:
                self._lock.release()
        return self._last

    def _measure(self, session: Session) -> documents.Disk | None:
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return None
        until = time.monotonic() + PATIENCE
        counted, complete = 0, True
        for path in (os.path.join(place, name) for place, _, names in os.walk(self._folder) for name in names):
            with suppress(OSError):
                counted += os.lstat(path).st_size
            if time.monotonic() > until:
                complete = False
                break
        size: int | None = None
        if session.get_bind().dialect.name == "postgresql":
            size = session.scalar(text("SELECT pg_database_size(current_database())"))
        elif file := re.fullmatch(r"sqlite(\+\w+)?:///([^?]+).*", self._url):
            paths = [Path(file[2] + ending) for ending in ("", "-wal")]
            size = sum(path.stat().st_size for path in paths if path.is_file())
        return documents.Disk(
            free_bytes=usage.free,
            total_bytes=usage.total,
            data_bytes=counted,
            data_complete=complete,
            database_bytes=size,
        )
