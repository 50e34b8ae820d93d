"""The data folder, which belongs to one database. A starting service removes files that the database does not name."""

from __future__ import annotations

import json
from pathlib import Path

from evalsvc.config import shown_url
from evalsvc.errors import DataDirectoryUnusable, os_reason
from evalsvc.files.atomic import write_whole

OWNER = "database.json"
"""The file that names the folder's database: `{"id": …, "url": …}`."""

RESTORING = "restore.unfinished"
"""The file that marks a folder with an unfinished restore."""


def make_data_folder(folder: Path) -> None:
    """Make the data folder, readable for the service's user alone. An existing folder keeps its permissions.

    Raises:
        DataDirectoryUnusable: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".evalsvc-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(f"the folder {folder}", error) from None


def claim_data_folder(folder: Path, database_id: str, url: str, *, may_begin: bool = True) -> None:
    """Claim the folder for a database. Files of another database's folder would be removed, so such a folder is
    refused.

    Args: database_id: as `store.lock.database_id` returns. url: of the database, for the message that another database
    gets. may_begin: whether the database may claim a folder without an owner.

    Raises:
        DataDirectoryUnusable: the folder belongs to another database, has an unfinished restore, has no owner while
            `may_begin` is not set, or cannot be written.
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
    """Claim the folder for a database, whichever database owned the folder before.

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
