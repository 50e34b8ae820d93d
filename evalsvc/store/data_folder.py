"""The data folder has the files of one database: what its rows do not name is removed when a service starts."""

from __future__ import annotations

import json
from pathlib import Path

from evalsvc.config import shown_url
from evalsvc.errors import DataDirectoryUnusable, os_reason
from evalsvc.files.atomic import write_whole

OWNER = "database.json"
"""File of the folder: `{"id": …, "url": …}` of its database."""

RESTORING = "restore.unfinished"
"""File of a folder that a restore is writing to, or was when it was killed."""


def make_data_folder(folder: Path) -> None:
    """Make the data folder, for the service's own user; one that is there stays as somebody set it up.

    Raises:
        DataDirectoryUnusable: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".evalsvc-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(f"the folder {folder}", error) from None


def claim_data_folder(folder: Path, database_id: str, url: str, *, may_begin: bool = True) -> None:
    """Have the folder belong to this database; of one that belongs to another, what that names would be removed.

    Args:
        database_id: as `store.lock.database_id` says.
        url: of the database, for the message that another one gets.
        may_begin: whether the database may begin to use a folder that is nobody's.

    Raises:
        DataDirectoryUnusable: it belongs to another one, has an unfinished restore, is nobody's where `may_begin` is
            not set, or cannot be written.
    """
    if (folder / RESTORING).exists():
        raise DataDirectoryUnusable(
            f"the folder {folder} has a restore that did not end; run the same `evalsvc restore` again, which begins "
            "anew, or choose another folder with --data-dir (EVALSVC_DATA_DIR)"
        )
    if require_owner(folder, database_id, url):
        return
    if not may_begin:
        raise DataDirectoryUnusable(
            f"the database {shown_url(url)} has runs, and the folder {folder} is not its data folder: there is no "
            f"{OWNER}, and none of the files that the database names; give its folder with --data-dir "
            "(EVALSVC_DATA_DIR), or restore both with `evalsvc restore`; if that folder is lost for good, add "
            "--new-data-folder: metrics stay, artifacts and results per item that were files are gone"
        )
    write_owner(folder, database_id, url)


def write_owner(folder: Path, database_id: str, url: str) -> None:
    """Have the folder belong to this database, whoever it belonged to.

    Raises:
        DataDirectoryUnusable: the folder cannot be written.
    """
    path = folder / OWNER
    try:
        content = json.dumps({"id": database_id, "url": shown_url(url)}).encode()
        write_whole(path, content, durable=False, mode=0o666)
    except OSError as error:
        raise unwritable(str(path), error) from None


def require_owner(folder: Path, database_id: str, url: str) -> bool:
    """Raise DataDirectoryUnusable if the folder belongs to another database. Returns whether it belongs to this one."""
    path = folder / OWNER
    try:
        owner = json.loads(path.read_bytes()) if path.exists() else None
        if owner is None:
            return False
    except OSError as error:
        raise unwritable(str(path), error) from None
    except ValueError:
        owner = None
    found = owner if isinstance(owner, dict) else {}
    if found.get("id") != database_id:
        raise DataDirectoryUnusable(
            f"the folder {folder} has the artifacts of another database, {found.get('url', f'see {path}')}, and "
            f"{shown_url(url)} would remove them; choose another folder with --data-dir (EVALSVC_DATA_DIR), or, if "
            f"that database is gone for good, remove {path}"
        )
    return True


def unwritable(what: str, error: OSError) -> DataDirectoryUnusable:
    """Return the error to raise for a file or folder of the data folder that cannot be written."""
    return DataDirectoryUnusable(
        f"{what} cannot be written: {os_reason(error)}; "
        "change its permissions or choose another with --data-dir (EVALSVC_DATA_DIR)"
    )
