"""The records of pulled assets, and where the assets are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from evalsvc.assets.catalog import Asset, find_asset
from evalsvc.checkpoints.reference import identify
from evalsvc.errors import AssetCorrupt, AssetMissing
from evalsvc.files.atomic import write_whole


@dataclass(frozen=True)
class Record:
    """The record of a pulled asset, next to the asset as `FILE.json`."""

    name: str
    source: str
    source_sha256: str
    """Digest of the downloaded file."""
    sha256: str
    """Digest of the asset, which differs from `source_sha256` if the file was converted."""
    size: int


def locate_asset(name: str, folder: Path) -> Path:
    """Return the file or folder of a pulled asset. Only its size is checked; `pull` checks the content."""
    asset = find_asset(name, f"for a file or folder, write its path with a slash: ./{name}")
    path, record = folder / asset.file, read_record(name, folder)
    if record is None or not is_there(asset, path):
        raise AssetMissing(
            f"the asset {name} ({asset.purpose}) is not in {folder}; run: evalsvc assets pull {name} "
            f"(about {asset.megabytes} MB), or with {asset.given_as} that you have: "
            f"evalsvc assets pull {name} --from PATH"
        )
    if (size := identify(path).size) != record.size:
        raise AssetCorrupt(f"{path} has {size:,} bytes instead of {record.size:,}; run: evalsvc assets pull {name}")
    return path


def is_there(asset: Asset, path: Path) -> bool:
    """Return whether a file, or for an asset of several files a folder, is at the path."""
    return path.is_dir() if asset.is_folder else path.is_file()


def read_record(name: str, folder: Path) -> Record | None:
    """Return the record of a pulled asset; None if it was not pulled, or its record cannot be read."""
    try:
        return Record(**json.loads(_record_path(find_asset(name), folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(asset: Asset, folder: Path, record: Record) -> None:
    """Write the record of an asset next to it, atomically."""
    content = json.dumps(asdict(record), indent=2) + "\n"
    write_whole(_record_path(asset, folder), content.encode(), durable=False, mode=0o666)


def _record_path(asset: Asset, folder: Path) -> Path:
    return folder / f"{asset.file}.json"
