"""From prompts to features, and from features to metrics: the part of the image tasks that needs torch."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evalsvc.arrays import pack_array, unpack_array
from evalsvc.artifacts import Artifact
from evalsvc.decoders import ImageDecoder, to_uint8
from evalsvc.errors import DataChanged, NonFinite
from evalsvc.features.digit_classifier import load_classifier
from evalsvc.features.inception import Resize
from evalsvc.images import Fit, ImageSource, read_images
from evalsvc.layout import VocabularyLayout
from evalsvc.metrics.frechet import Gaussian, Moments, frechet_jackknife
from evalsvc.protocol import canonical_json
from evalsvc.reference import (
    ReferenceStatistics,
    TapStatistics,
    load_reference,
    reference_key,
    reference_path,
    save_reference,
)
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.tasks.task import Context

if TYPE_CHECKING:
    from evalsvc.tasks.text_to_image import PromptRecord, TextToImage

GRID_COLUMNS = 8

EXTRACTED_AT_ONCE = 32
"""Reference images between two looks at whether the work was cancelled."""


def sample_images(
    context: Context,
    task: TextToImage,
    layout: VocabularyLayout,
    decoder: ImageDecoder,
    records: Sequence[PromptRecord],
    shard: Mapping[str, Any],
) -> dict[str, Any]:
    """Sample, decode and look at the images of one shard.

    Returns `features` by tap ([n, tap] float32, packed), `items` (one an image: its id and a digest of its codes),
    `kept` (the first images as PNG), `classes` and what it adds to the `protocol`.
    """
    side = task.size or decoder.resolution
    grid = decoder.grid(side, side)
    length = grid[0] * grid[1]
    spec = _spec(task, layout, length, shard["scale"])
    model = context.model(dtype=task.dtype, rotary_inv_freq_dtype=task.rotary_inv_freq_dtype)
    extractor = context.extractor(task.extractor)
    classifier = None if task.classifier is None else load_classifier(context.dataset(task.classifier))
    features: dict[int, list[tuple[int, Tensor]]] = {}
    items: dict[int, dict[str, Any]] = {}
    kept: list[dict[str, Any]] = []
    prompts = [Prompt(record.id, record.ids) for record in records]
    try:
        for samples in generate(model, prompts, spec, lambda codes: context.report(codes // length)):
            pixels = to_uint8(decoder.decode(samples.codes, grid))  # [b, 3, H, W]
            for tap, rows in extractor.features(pixels, task.resize, shard["taps"]).items():
                features.setdefault(tap, []).extend(zip(samples.indices, rows.cpu(), strict=True))
            labels = [None] * len(pixels) if classifier is None else classifier.predict(pixels).tolist()
            for index, codes, image, label in zip(
                samples.indices, samples.codes.cpu(), pixels.cpu(), labels, strict=True
            ):
                record = records[index]
                items[index] = _item(record, codes, label)
                if shard["start"] + index < task.keep:
                    details = {"id": record.id, "prompt": record.text}
                    kept.append({"index": shard["start"] + index, "png": encode_png(image), "details": details})
    except NonFinite as error:
        raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None
    return {
        "features": {str(tap): _pack(rows) for tap, rows in features.items()},
        "items": [items[index] for index in range(len(records))],
        "kept": sorted(kept, key=lambda entry: int(entry["index"])),
        "classes": None if classifier is None else classifier.classes,
        "protocol": {
            "prompts": shard["digest"],
            "layout": layout.digest,
            "decoder": decoder.digest,
            "extractor": extractor.digest,
            "size": side,
            **({} if classifier is None else {"classifier": classifier.digest}),
        },
    }


@dataclass(frozen=True)
class ReferenceSpec:
    """Which real images, and how they become features."""

    name: str
    """A path of images, or the name of imported statistics."""
    size: int
    extractor: str
    resize: Resize
    taps: tuple[int, ...]

    @property
    def imported(self) -> bool:
        return "/" not in self.name

    @property
    def fit(self) -> Fit:
        return Fit(self.size)


@dataclass(frozen=True)
class Reference:
    """What samples are compared with."""

    moments: Mapping[int, Gaussian]
    """By tap."""
    identity: Mapping[str, Any]
    """What a protocol says of it."""


def reference_shards(context: Context, spec: ReferenceSpec, shard_size: int) -> list[dict[str, Any]]:
    """The shards that compute the features of the reference; none where its statistics are known."""
    if spec.imported:
        load_reference(spec.name, context.statistics_folder())
        return []
    source = read_images(context.dataset(spec.name))
    if reference_path(_reference_key(context, spec, source), context.statistics_folder()).exists():
        return []
    shards = []
    for start in range(0, len(source), shard_size):
        stop = min(start + shard_size, len(source))
        images = source.digest(range(start, stop))
        shards.append({"part": "reference", "start": start, "stop": stop, "units": stop - start, "images": images})
    return shards


def reference_features(
    context: Context, spec: ReferenceSpec, start: int, stop: int, planned: str | None = None
) -> dict[str, Any]:
    """Features of some of the reference's images, packed, by tap.

    Raises:
        DataChanged: their digest is not the planned one.
    """
    source = read_images(context.dataset(spec.name))
    if planned is not None and source.digest(range(start, min(stop, len(source)))) != planned:
        raise DataChanged(f"{source.path} has changed since this evaluation was planned; evaluate again")
    extractor = context.extractor(spec.extractor)
    rows: dict[int, list[Tensor]] = {tap: [] for tap in spec.taps}
    done = 0
    for images in source.batches(range(start, stop), spec.fit, EXTRACTED_AT_ONCE):
        for tap, found in extractor.features(images, spec.resize, spec.taps).items():
            rows[tap].append(found.cpu())
        done += len(images)
        context.report(done)
    return {"features": {str(tap): pack_array(torch.cat(found).numpy()) for tap, found in rows.items()}}


def reference_statistics(context: Context, spec: ReferenceSpec, parts: Sequence[Mapping[str, Any]]) -> Reference:
    """The reference's statistics: imported, kept from before, or from `parts` (all of its shards' outputs).

    Where they were known to the worker that planned and are not to this one, they are computed here.
    """
    folder = context.statistics_folder()
    if spec.imported:
        found = load_reference(spec.name, folder)
        return Reference(found.moments, {"imported": found.digest})
    source = read_images(context.dataset(spec.name))
    key = _reference_key(context, spec, source)
    if not reference_path(key, folder).exists():
        parts = parts or [reference_features(context, spec, 0, len(source))]
        moments = {tap: Moments.of(features) for tap, features in join_features(parts).items()}
        taps = {tap: TapStatistics(one.n, one.mean, one.covariance) for tap, one in moments.items()}
        save_reference(ReferenceStatistics(taps, foreign=False, source=source.path), key, folder)
    identity = {"images": source.digest(range(len(source))), "n": len(source), "fit": spec.fit.to_json()}
    return Reference(load_reference(key, folder).moments, identity)


def _reference_key(context: Context, spec: ReferenceSpec, source: ImageSource) -> str:
    data = f"{source.digest(range(len(source)))}/{len(source)}/{','.join(map(str, spec.taps))}"
    extractor = context.extractor(spec.extractor).digest
    return reference_key(
        data=data, extractor=extractor, resize=spec.resize, crop=canonical_json(spec.fit.to_json()), size=spec.size
    )


def join_features(parts: Sequence[Mapping[str, Any]]) -> dict[int, np.ndarray[Any, Any]]:
    """[n, tap] of all parts in their order, by tap."""
    taps = parts[0]["features"]
    return {int(tap): np.concatenate([unpack_array(part["features"][tap]) for part in parts]) for tap in taps}


def frechet_metrics(
    features: np.ndarray[Any, Any],  # [n, tap]
    reference: Gaussian,
    groups: int,
) -> tuple[float, float | None, int]:
    """Distance, standard error and n. Groups are of the images' order, whatever the shards were."""
    parts = np.array_split(features, min(groups, len(features) // 2)) if len(features) >= 4 else [features]
    value, stderr = frechet_jackknife([Moments.of(part) for part in parts], reference)
    return value, stderr, len(features)


def keep_images(parts: Sequence[Mapping[str, Any]], params: SamplingParams, several: bool) -> list[Artifact]:
    """The first images as files, and all of them as one grid."""
    kept = [entry for part in parts for entry in part["kept"]]
    if not kept:
        return []
    prefix = f"guidance-{params.guidance_scale:g}-" if several else ""
    sampling = params.to_json()
    samples = [
        Artifact("sample", f"{prefix}{entry['index']:05d}.png", "image/png", entry["png"], entry["details"] | sampling)
        for entry in kept
    ]
    prompts = [entry["details"]["prompt"] for entry in kept]
    grid = encode_grid([entry["png"] for entry in kept])
    details = {"images": len(kept), "columns": GRID_COLUMNS, "prompts": prompts, **sampling}
    return [Artifact("grid", f"{prefix}grid.png", "image/png", grid, details), *samples]


def encode_png(image: Tensor) -> bytes:
    """A uint8 image [3, H, W] as a lossless file."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG")
    return stream.getvalue()


def encode_grid(files: Sequence[bytes]) -> bytes:
    """Images of one size, row by row, GRID_COLUMNS to a row."""
    images = [Image.open(io.BytesIO(content)) for content in files]
    width, height = images[0].size
    rows = math.ceil(len(images) / GRID_COLUMNS)
    canvas = Image.new("RGB", (width * min(len(images), GRID_COLUMNS), height * rows), "white")
    for index, image in enumerate(images):
        canvas.paste(image, (index % GRID_COLUMNS * width, index // GRID_COLUMNS * height))
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _spec(task: TextToImage, layout: VocabularyLayout, length: int, scale: float) -> SamplerSpec:
    params = task.params(scale)
    unconditional = tuple(layout.prompt(None, length).ids) if params.guided else None
    image_ids = layout.image_ids
    assert image_ids is not None, "the plan has checked the layout against the decoder"
    return SamplerSpec(image_ids, length, params, task.batch, unconditional)


def _item(record: PromptRecord, codes: Tensor, label: int | None) -> dict[str, Any]:
    digest = hashlib.sha256(codes.to(torch.int32).numpy().tobytes()).hexdigest()[:16]
    item: dict[str, Any] = {"id": record.id, "codes": digest}
    return item if label is None else item | {"label": record.label, "read": label, "agrees": label == record.label}


def _pack(rows: Sequence[tuple[int, Tensor]]) -> dict[str, Any]:
    ordered = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    return pack_array(torch.stack(ordered).numpy())
