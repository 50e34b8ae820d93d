"""Images that another program sampled, each with the prompt that it was made from.

An image belongs to the prompt whose id is its name, without folder and suffix: `ID.png`, or `ID_0.png`, `ID_1.png`, …
for several images of a prompt. If no image is named after a prompt, each prompt names its image in the field `image`.
Images without names belong to the prompts in order, and a Parquet file with texts has its own prompts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from evalsvc.data.captions import Caption, CaptionData, caption_data, select_captions
from evalsvc.data.images import ImageSource
from evalsvc.data.tokens import image_indices
from evalsvc.errors import InvalidData
from evalsvc.files.opened import Allow, anywhere, opened_folder
from evalsvc.spec.images import PICTURES, PROMPTS, Selection

ONE_OF_SEVERAL = re.compile(r"(.+)_([0-9]+)", re.DOTALL)


@dataclass(frozen=True)
class PromptedImage:
    id: str
    """Id of the prompt; `ID_K` for one of several images of the prompt; the image's name if there are no prompts."""
    text: str
    image: int
    """Index in the source."""
    label: int | None
    real: str | int | None
    """Real image that the prompt names."""


@dataclass(frozen=True)
class PromptedImages:
    """Images in the order of their prompts."""

    path: str
    """Path of the prompts; of the images if there are no prompts."""
    images: tuple[PromptedImage, ...]
    prompts: str
    """Digest of ids and texts of these images in this order."""
    captions: str
    """Digest of the whole list of prompts; empty without prompts."""
    unused: int
    """Number of images of no selected prompt."""


def prompts_with(source_path: Path, allow: Allow = anywhere) -> Path | None:
    """Return the file of prompts in a folder of images; None without one."""
    if not source_path.is_dir():
        return None
    with opened_folder(source_path, "image folder", allow) as folder:
        files = [name for name in PROMPTS if (folder / name).exists()]
    if len(files) > 1:
        raise InvalidData(f"the folder {source_path} holds {' and '.join(files)}; keep one of them")
    return source_path / files[0] if files else None


def pair_images(
    source: ImageSource, captions: CaptionData | None, select: Selection, samples: int | None, select_seed: int
) -> PromptedImages:
    """Choose `samples` prompts as `select_captions` does, and return the images of each prompt.

    Without `captions`, the source's own texts are the prompts, or else the images' names, with empty texts.
    """
    listed = captions or source.captions or _unprompted(source)
    chosen = select_captions(listed, select, samples, select_seed)
    places: Mapping[str, Sequence[tuple[str, int]]] = {}
    if captions is not None and source.named:
        places = _by_name({caption.id for caption in listed.captions}, source) or _by_manifest(source, listed, chosen)
    elif len(listed.captions) == len(source):
        places = {caption.id: [(caption.id, index)] for index, caption in enumerate(listed.captions)}
    else:
        raise InvalidData(
            f"{source.path} has {len(source):,} images without names, and {listed.path} {len(listed.captions):,} "
            "prompts; give as many prompts as images in the same order, or images with names"
        )
    if missing := [caption for caption in chosen if caption.id not in places]:
        others = f", nor have {len(missing) - 1:,} others" if len(missing) > 1 else ""
        raise InvalidData(
            f"{listed.path}, {missing[0].where}: the prompt {missing[0].id[:80]!r} has no image in {source.path}"
            f"{others}; add the image as ID.png or ID_0.png with the prompt's id, or remove the prompt"
        )
    pairs = [(caption, *place) for caption in chosen for place in places[caption.id]]
    images = tuple(PromptedImage(name, of.text, index, of.label, of.image) for of, name, index in pairs)
    digest = caption_data(listed.path, (Caption(name, of.text, None, None, "") for of, name, _ in pairs)).digest
    unused = 0 if captions is None else len(source) - len({index for _, _, index in pairs})
    prompted = captions is not None or source.captions is not None
    return PromptedImages(listed.path, images, digest, listed.digest if prompted else "", unused)


def _unprompted(source: ImageSource) -> CaptionData:
    names = [source.name(index) for index in range(len(source))]
    stems = [name[: -len(suffix)] if (suffix := _suffix(name)) else name for name in names]
    ids = stems if len(set(stems)) == len(stems) else names
    return caption_data(source.path, (Caption(name, "", None, None, f"image {name}") for name in ids))


def _by_name(ids: Collection[str], source: ImageSource) -> Mapping[str, Sequence[tuple[str, int]]]:
    """Return the images of each prompt, as id of the image and index."""
    places: dict[str, dict[tuple[int, str], int]] = {}
    for index in range(len(source)):
        whole = source.name(index)
        name = whole if whole in ids else PurePosixPath(whole.removesuffix(_suffix(whole))).name
        several = ONE_OF_SEVERAL.fullmatch(name)
        prompt, number = (name, -1) if name in ids or several is None else (several[1], int(several[2]))
        images = places.setdefault(prompt, {}) if prompt in ids else {}
        if (other := images.setdefault((number, name), index)) != index:
            raise InvalidData(
                f"{source.path} has {source.name(other)!r} and {whole!r} of one prompt; rename one of them"
            )
    return {
        prompt: [(prompt if len(images) == 1 else name, index) for (_, name), index in sorted(images.items())]
        for prompt, images in places.items()
    }


def _by_manifest(
    source: ImageSource, listed: CaptionData, chosen: Sequence[Caption]
) -> Mapping[str, Sequence[tuple[str, int]]]:
    try:
        indices = list(image_indices(Path(listed.path), chosen, source))
    except InvalidData as error:
        raise InvalidData(
            f"no image of {source.path} is named after the id of a prompt, such as {chosen[0].id[:80]!r}, and "
            f"{error.message}"
        ) from None
    return {caption.id: [(caption.id, index)] for caption, index in zip(chosen, indices, strict=True)}


def _suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return suffix if suffix.lower() in PICTURES else ""
