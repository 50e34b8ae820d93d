"""Images through the image decoder and back: the part of the reconstruction task that needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalsvc.data.images import ImageSource
from evalsvc.decoders import to_uint8
from evalsvc.errors import NonFinite
from evalsvc.features import FeatureExtractor
from evalsvc.files.arrays import pack_array, unpack_array
from evalsvc.metrics.image_metric import Estimate
from evalsvc.metrics.paired_frechet import paired_frechet_shares
from evalsvc.metrics.reconstruction import CodebookUse, codebook_use, psnr, ssim
from evalsvc.metrics.reference_program import ReferenceProgram, statistics_of, with_value
from evalsvc.metrics.second_order import counted_once
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.tasks.task import Context

SIDES = ("originals", "reconstructions")


def reconstruct(
    context: Context,
    coder: ImageCoder,
    source: ImageSource,
    images: Sequence[int],
    extractor: FeatureExtractor | None,
    resize: str,
    taps: Sequence[int],
) -> dict[str, Any]:
    """Encode and decode `images` and compare.

    Returns `names`, `psnr` and `ssim`, one an image; `code_counts` [codebook_size] int64, packed; and `features`: by
    tap and side [n, tap] float32, packed.

    Raises:
        NonFinite: the decoder's output; names the image.
    """
    names = [source.name(index) for index in images]
    counts = torch.zeros(coder.decoder.codebook_size, dtype=torch.int64)
    columns: dict[str, list[float]] = {"psnr": [], "ssim": []}
    features: dict[int, dict[str, list[Tensor]]] = {tap: {side: [] for side in SIDES} for tap in taps}
    grid = coder.decoder.grid(coder.fit.size, coder.fit.size)
    context.report(0)
    for originals, codes in coder.batches(context, source, images):
        decoded = coder.decoder.decode(codes, grid)
        _require_finite(decoded, source.path, names[len(columns["psnr"]) :])
        originals, reconstructions = originals.to(decoded.device), to_uint8(decoded)
        columns["psnr"] += psnr(reconstructions, originals).tolist()
        columns["ssim"] += ssim(reconstructions, originals).tolist()
        counts += torch.bincount(codes.flatten(), minlength=len(counts)).cpu()
        if extractor is not None:
            for side, pixels in zip(SIDES, (originals, reconstructions), strict=True):
                for tap, rows in extractor.features(pixels, resize, taps).items():
                    features[tap][side].append(rows.cpu())
        context.report(len(columns["psnr"]))
    return {
        "names": names,
        **columns,
        "code_counts": pack_array(counts.numpy()),
        "features": {
            str(tap): {side: _packed(rows) for side, rows in sides.items()} for tap, sides in features.items()
        },
    }


def joined_use(counts: Sequence[Mapping[str, Any]]) -> CodebookUse:
    """Of all shards' packed `code_counts`."""
    return codebook_use(torch.from_numpy(np.sum([unpack_array(part) for part in counts], axis=0)))


def paired_distance(features: Sequence[Mapping[str, Any]], program: ReferenceProgram | None = None) -> Estimate:
    """Compute the Fréchet distance between the two sides of all shards, with a share of each image.

    The value is too large by about C/n; see `paired_frechet_shares` and `counted_once` for its error. With `program`
    the value is the program's; the error is evalsvc's.

    Raises:
        InvalidData: no more images than features.
    """
    originals, others = (np.concatenate([unpack_array(part[side]) for part in features]) for side in SIDES)
    found = Estimate.of_images(counted_once(paired_frechet_shares(originals, others), originals.shape[1]))
    if program is None:
        return found
    return with_value(found, program.distance(statistics_of(others), statistics_of(originals)))


def _require_finite(decoded: Tensor, path: str, names: Sequence[str]) -> None:
    finite = decoded.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        raise NonFinite(
            f"{path}, image {names[finite.index(False)]}: the decoder's output has NaN or infinity; are its weights "
            "those of its configuration?"
        )


def _packed(rows: Sequence[Tensor]) -> dict[str, Any]:
    return pack_array(torch.cat(list(rows)).numpy())
