"""Small sources of training data, prepared with the miniature's image tokenizer, text tokenizer and layout."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from prepare.preparation import Prepared, Request, prepare

from evalsvc.config import Settings
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout

LAYOUT = parse_layout(str(ROOT / "runs" / "layout.yaml"))
DECODER = ROOT / "movqgan" / "movqgan_miniature.ckpt"
TOKENIZER = ROOT / "tokenizer.json"
SETTINGS = Settings(devices="cpu", threads=1)
CAPTIONS = ("a small grey zero", "one, written by hand", "this image shows 2", "a handwritten three", "four")


def picture(number: int) -> bytes:
    """Return the number-th of many different PNG files, higher than wide."""
    pixels = np.random.default_rng(number).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def caption(number: int) -> str:
    return f"{CAPTIONS[number % len(CAPTIONS)]} no {number}"


def write_folder(folder: Path, count: int) -> Path:
    """Write a folder of images with a text file each."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05d}.png").write_bytes(picture(number))
        (folder / f"{number:05d}.txt").write_text(caption(number) + "\n")
    return folder


def write_tar(path: Path, members: Iterable[tuple[tarfile.TarInfo | str, bytes]]) -> Path:
    """Write a tar as webdataset does: a member's time has a fraction, which needs an extended header."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for header, content in members:
            info = tarfile.TarInfo(header) if isinstance(header, str) else header
            info.mtime = info.mtime or 1_700_000_000.25  # type: ignore[assignment]
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, number: int) -> list[tuple[tarfile.TarInfo | str, bytes]]:
    """Return the members of a sample as img2dataset writes them."""
    metadata = json.dumps({"caption": caption(number), "status": "success"}).encode()
    return [(f"{key}.jpg", picture(number)), (f"{key}.json", metadata), (f"{key}.txt", caption(number).encode())]


def request(source: Path, output: Path, **changes: Any) -> Request:
    given: dict[str, Any] = {"decoder": str(DECODER), "tokenizer": TOKENIZER, "layout": LAYOUT}
    return Request(source=source, output=output, **given | changes)


def prepared(source: Path, output: Path, settings: Settings = SETTINGS, **changes: Any) -> Prepared:
    """Prepare a source, without a display of the progress."""
    return prepare(request(source, output, **changes), settings, lambda *_: None)


def read_shards(output: Path) -> dict[str, list[int]]:
    """Return the ids of each sequence by key, in the order of the shards."""
    sequences: dict[str, list[int]] = {}
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                assert member.name.endswith(".json.gz")
                sequences[member.name.removesuffix(".json.gz")] = json.loads(gzip.decompress(content.read()))
    return sequences


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def bytes_of(output: Path) -> Mapping[str, bytes]:
    """Return the content of all files that a data set consists of."""
    names = ("*.tar", "*.jsonl", "prepare.json", "settings.json")
    return {path.name: path.read_bytes() for name in names for path in sorted(output.glob(name))}
