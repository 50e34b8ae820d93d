"""Packing images and their prompts into the folder of two files in which they are uploaded."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeAlias

from evalsvc.errors import CheckpointChanged, InvalidRequest
from evalsvc.spec.images import ARCHIVES, PICTURES, PROMPTS

Images: TypeAlias = str | Path | Sequence[Any]
"""A folder or an archive, or images of PIL."""

Prompts: TypeAlias = str | Path | Sequence[str] | None
"""A file of captions, or a text for each image."""


@contextmanager
def packed(images: Images, prompts: Prompts) -> Iterator[Path]:
    """Yield a folder with `images.…`, an archive, and the file of prompts. Equal images and prompts give equal files,
    so a second upload sends nothing. An archive is not copied."""
    texts = None if isinstance(prompts, str | Path | None) else list(prompts)
    with TemporaryDirectory(prefix="evalsvc-") as name:
        folder = Path(name)
        if not isinstance(images, str | Path):
            if prompts is not None and (texts is None or len(texts) != len(images)):
                given = f"the file {prompts}" if texts is None else f"a list of {len(texts):,} texts"
                raise InvalidRequest(f"prompts is {given} for {len(images):,} images; give a text for each image")
            # The number of its line is the id of a prompt that has none.
            named = ((f"{place}.png", _as_png(image, place)) for place, image in enumerate(images, 1))
            _write_tar(folder / "images.tar", named)
        else:
            near = _pack_path(Path(images).expanduser(), folder)
            prompts = near if prompts is None else prompts
        if texts is not None:
            lines = (json.dumps({"text": text}) + "\n" for text in texts)
            (folder / PROMPTS[0]).write_text("".join(lines), "utf-8")
        elif prompts is not None:
            assert isinstance(prompts, str | Path)
            _link(Path(prompts).expanduser(), folder, "prompts", [Path(file).suffix for file in PROMPTS])
        yield folder


def _pack_path(images: Path, folder: Path) -> Path | None:
    """Pack a folder or an archive; return the file of prompts that a folder holds."""
    if not images.is_dir():
        _link(images, folder, "images", ARCHIVES)
        return None
    names = sorted(path.relative_to(images) for path in images.rglob("*") if path.suffix.lower() in PICTURES)
    names = [name for name in names if "/." not in f"/{name.as_posix()}" and (images / name).is_file()]
    archives = [path for path in images.glob("images.*") if path.suffix in ARCHIVES]
    listed = [images / name for name in PROMPTS if (images / name).is_file()]
    if len(archives) + bool(names) != 1 or len(listed) > 1:
        raise InvalidRequest(
            f"{images} holds {len(names):,} image files, {len(archives):,} archives images.{{tar,npz,parquet,"
            f"safetensors}} and {len(listed)} files of prompts; keep files or one archive, and one file of prompts"
        )
    if archives:
        _link(archives[0], folder, "images", ARCHIVES)
    else:
        _write_tar(folder / "images.tar", ((name.as_posix(), (images / name).open("rb")) for name in names))
    return next(iter(listed), None)


def _link(file: Path, folder: Path, stem: str, endings: Sequence[str]) -> None:
    if not file.is_file():
        raise InvalidRequest(f"there is no file of {stem} {file}; give a path of this machine")
    if file.suffix not in endings:
        raise InvalidRequest(f"the {stem} {file} end in {file.suffix or 'nothing'!r}; give {', '.join(endings)}")
    (folder / f"{stem}{file.suffix}").symlink_to(file.absolute())


def _write_tar(path: Path, named: Iterable[tuple[str, BinaryIO]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, stream in named:
            with stream:
                member = tarfile.TarInfo(name)
                member.size = stream.seek(0, os.SEEK_END)
                stream.seek(0)
                try:
                    archive.addfile(member, stream)
                except OSError as error:
                    raise CheckpointChanged(f"image {name} changed while it was packed ({error}); try again") from None


def _as_png(image: Any, place: int) -> BinaryIO:
    if not hasattr(image, "save"):
        raise InvalidRequest(
            f"image {place} is {type(image).__name__}; give images of PIL, such as Image.fromarray(array)"
        )
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream
