"""Assets that are folders of several files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from evalsvc.assets.catalog import Asset, Source
from evalsvc.assets.download import Progress, download
from evalsvc.assets.records import Record, write_record
from evalsvc.checkpoints.reference import hash_files, identify
from evalsvc.errors import AssetCorrupt, AssetMissing


def take_folder(asset: Asset, folder: Path, path: Path) -> Path:
    """Install a local folder as the asset, with only the files that belong to the asset."""
    if not path.is_dir():
        raise AssetMissing(f"--from {path}: there is no such folder; use the folder of the asset {asset.name}")
    chosen = []
    for sources in asset.parts:
        names = [_name(source) for source in sources]
        file = next((name for name in names if (path / name).is_file()), None)
        if file is None:
            raise AssetMissing(f"--from {path}: the folder has no {' or '.join(names)}, which {asset.name} needs")
        chosen.append(file)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        for name in chosen:
            shutil.copyfile(path / name, fresh / name)
        return install_folder(asset, folder, fresh, str(path.absolute()))


def fetch_folder(asset: Asset, folder: Path, progress: Progress) -> Path:
    """Download the files of a folder one after the other. All are partial files until the last is complete."""
    staging = folder / f"{asset.file}.partial"
    staging.mkdir(exist_ok=True)
    names = [_fetch_part(asset, sources, staging, progress) for sources in asset.parts]
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        for name in names:
            (staging / f"{name}.partial").replace(fresh / name)
        shutil.rmtree(staging)
        return install_folder(asset, folder, fresh, asset.address)


def _fetch_part(asset: Asset, sources: tuple[Source, ...], staging: Path, progress: Progress) -> str:
    attempts: list[AssetMissing | AssetCorrupt] = []
    for source in sources:
        try:
            download(source, staging / f"{_name(source)}.partial", None, progress)
        except (AssetMissing, AssetCorrupt) as error:
            attempts.append(error)
        else:
            return _name(source)
    raise type(attempts[-1])(
        f"the asset {asset.name} could not be downloaded: {'; '.join(error.message for error in attempts)}. "
        f"With a folder that you have: evalsvc assets pull {asset.name} --from PATH"
    )


def install_folder(asset: Asset, folder: Path, fresh: Path, source: str, source_sha256: str | None = None) -> Path:
    """Move a complete folder to the asset's final name. Its record is written first, as for files.

    `source_sha256` is the digest of the file that the folder was converted from; None if its files were downloaded.
    """
    target = folder / asset.file
    for file in fresh.iterdir():
        file.chmod(0o644)
    digest = hash_files(fresh)
    write_record(asset, folder, Record(asset.name, source, source_sha256 or digest, digest, identify(fresh).size))
    if target.is_dir():
        shutil.rmtree(target)
    fresh.replace(target)
    return target


def _name(source: Source) -> str:
    return source.url.rpartition("/")[2]
