"""The data folder of a database. A starting service removes files from the folder that the database does not name."""

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
    """Create the data folder, accessible to the service's user only. An existing folder keeps its permissions."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".evalsvc-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(f"the folder {folder}", error) from None


def claim_data_folder(folder: Path, database_id: str, url: str, *, may_begin: bool = True) -> None:
    """Claim the folder for a database. Refuse the folder of another database, whose files the service would remove.

    Args:
        database_id: the id that `store.lock.database_id` returns.
        url: the URL of the database, which another database's error message shows.
        may_begin: whether the database may claim a folder without an owner.
    """
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


def require_owner(folder: Path, database_id: str, url: str) -> bool:
    """Return whether the folder belongs to this database: False for a folder without an owner."""
    path = folder / OWNER
    try:
        owner = json.loads(path.read_bytes()) if path.exists() else None
        if owner is None:
            return False
    except OSError as error:
        raise unwritable(str(path), error) from None
    except ValueError:
        owner = None
    content = owner if isinstance(owner, dict) else {}
    if content.get("id") != database_id:
        raise DataDirectoryUnusable(
            f"the folder {folder} has the artifacts of another database, {content.get('url', f'see {path}')}, and a "
            f"service on {shown_url(url)} would remove them; choose another folder with --data-dir "
            f"(EVALSVC_DATA_DIR), or remove {path} if the other database is lost for good"
        )
    return True


def unwritable(what: str, error: OSError) -> DataDirectoryUnusable:
    """Return the error to raise for a file or folder of the data folder that cannot be written."""
    return DataDirectoryUnusable(
        f"{what} cannot be written: {os_reason(error)}; "
        "change the permissions, or choose another data folder with --data-dir (EVALSVC_DATA_DIR)"
    )
