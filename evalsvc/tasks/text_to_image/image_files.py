"""Artifacts of images: lossless files, and a grid of all of them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from evalsvc.files.artifacts import Artifact
from evalsvc.spec.sampling import SamplingParams
from evalsvc.tasks.text_to_image.shards import SampleOutput

GRID_COLUMNS = 8


def keep_images(parts: Sequence[SampleOutput], params: SamplingParams, several: bool) -> list[Artifact]:
    """Return the first images as files, and all of them as one grid."""
    kept = [image for part in parts for image in part.kept]
    if not kept:
        return []
    prefix = f"guidance-{params.guidance_scale:g}-" if several else ""
    sampling = params.to_json()
    samples = [
        Artifact(
            "sample",
            f"{prefix}{image.index:05d}.png",
            "image/png",
            image.png,
            {"id": image.id, "prompt": image.prompt, **sampling},
        )
        for image in kept
    ]
    grid = encode_grid([image.png for image in kept])
    prompts = [image.prompt for image in kept]
    details = {"images": len(kept), "columns": GRID_COLUMNS, "prompts": prompts, **sampling}
    return [Artifact("grid", f"{prefix}grid.png", "image/png", grid, details), *samples]


def encode_png(image: Tensor) -> bytes:
    """Encode a uint8 image [3, H, W] as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG")
    return stream.getvalue()


def encode_grid(files: Sequence[bytes]) -> bytes:
    """Arrange images of one size row by row, with GRID_COLUMNS per row."""
    images = [Image.open(io.BytesIO(content)) for content in files]
    width, height = images[0].size
    rows = math.ceil(len(images) / GRID_COLUMNS)
    canvas = Image.new("RGB", (width * min(len(images), GRID_COLUMNS), height * rows), "white")
    for index, image in enumerate(images):
        canvas.paste(image, (index % GRID_COLUMNS * width, index // GRID_COLUMNS * height))
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()
