"""Encoding and decoding images: the part of the reconstruction task that needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from evalsvc.data.images import ImageSource
from evalsvc.decoders import to_uint8
from evalsvc.errors import NonFinite
from evalsvc.features import FeatureExtractor
from evalsvc.files.arrays import Array
from evalsvc.metrics.frechet import counted_once
from evalsvc.metrics.image_metric import Estimate
from evalsvc.metrics.reconstruction import CodebookUse, codebook_use, paired_frechet_shares, psnr, ssim
from evalsvc.metrics.reference_program import ReferenceProgram, statistics_of, with_value
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.tasks.task import Context, Shard


@dataclass(frozen=True)
class ReconstructionPlan:
    """The common part of all shards of a plan."""

    protocol: Mapping[str, JsonValue]
    """Protocol of the metrics, without the features of distances."""
    features: Mapping[str, str]
    """Protocol's content for the features."""
    taps: Sequence[int]
    """Numbers of features of the distances."""


@dataclass(frozen=True)
class ReconstructionShard(Shard):
    """A contiguous range of images."""

    start: int
    stop: int
    images: str
    """SHA-256 of the images' contents."""
    plan: ReconstructionPlan


@dataclass(frozen=True)
class PairedFeatures:
    """Features of images and, row by row, of their reconstructions."""

    originals: Array[np.float32]  # [n, d]
    reconstructions: Array[np.float32]  # [n, d]


@dataclass(frozen=True)
class ReconstructionOutput:
    """The results of a range of images."""

    names: Sequence[str]
    psnr: Sequence[float]
    """PSNR of each image in dB."""
    ssim: Sequence[float]
    """SSIM of each image."""
    code_counts: Array[np.int64]  # [codebook_size]
    """Number of occurrences of each code."""
    features: Mapping[int, PairedFeatures]
    """Features by tap."""


class RoundTrip:
    """Images that were encoded and decoded, with their measures so far."""

    def __init__(self, coder: ImageCoder, extractor: FeatureExtractor | None, resize: str, taps: Sequence[int]) -> None:
        self._coder, self._extractor = coder, extractor
        self._resize, self._taps = resize, taps
        self._grid = coder.decoder.grid(coder.fit.size, coder.fit.size)
        self._counts = torch.zeros(coder.decoder.codebook_size, dtype=torch.int64)
        self._features: dict[int, list[tuple[Tensor, Tensor]]] = {tap: [] for tap in taps}
        self.psnr: list[float] = []
        self.ssim: list[float] = []

    def add(
        self,
        originals: Tensor,  # [B, 3, size, size] uint8
        codes: Tensor,  # [B, N] int64
        named: Callable[[int], str],
    ) -> None:
        """Decode a batch and compare."""
        decoded = self._coder.decoder.decode(codes, self._grid)
        _require_finite(decoded, lambda index: named(len(self.psnr) + index))
        originals, reconstructions = originals.to(decoded.device), to_uint8(decoded)
        self.psnr += psnr(reconstructions, originals).tolist()
        self.ssim += ssim(reconstructions, originals).tolist()
        self._counts += torch.bincount(codes.flatten(), minlength=len(self._counts)).cpu()
        if self._extractor is not None:
            real, made = (
                self._extractor.features(pixels, self._resize, self._taps) for pixels in (originals, reconstructions)
            )
            for tap in self._taps:
                self._features[tap].append((real[tap].cpu(), made[tap].cpu()))

    def output(self, names: Sequence[str]) -> ReconstructionOutput:
        """Return all measures, of images with these names."""
        features = {}
        for tap, batches in self._features.items():
            real, made = (torch.cat(side).numpy() for side in zip(*batches, strict=True))
            features[tap] = PairedFeatures(real, made)
        return ReconstructionOutput(names, self.psnr, self.ssim, self._counts.numpy(), features)


def reconstruct(
    context: Context, coder: ImageCoder, source: ImageSource, images: Sequence[int], trip: RoundTrip
) -> ReconstructionOutput:
    """Encode and decode `images` and compare."""
    names = [source.name(index) for index in images]
    context.report(0)
    for originals, codes in coder.batches(context, source, images):
        trip.add(originals, codes, lambda index: f"{source.path}, image {names[index]}")
        context.report(len(trip.psnr))
    return trip.output(names)


def joined_use(outputs: Sequence[ReconstructionOutput]) -> CodebookUse:
    """Combine the `code_counts` of all shards."""
    return codebook_use(torch.from_numpy(np.sum([output.code_counts for output in outputs], axis=0)))


def paired_distance(parts: Sequence[PairedFeatures], program: ReferenceProgram | None = None) -> Estimate:
    """Compute the Fréchet distance between the two sides of all shards, with a share for each image.

    The value is biased upwards by about C/n; see `paired_frechet_shares` and `counted_once` for its standard error.
    With `program` the value is the program's; the standard error is evalsvc's.
    """
    originals = np.concatenate([part.originals for part in parts])
    reconstructions = np.concatenate([part.reconstructions for part in parts])
    estimate = Estimate.of_images(counted_once(paired_frechet_shares(originals, reconstructions), originals.shape[1]))
    if program is None:
        return estimate
    return with_value(estimate, program.distance(statistics_of(reconstructions), statistics_of(originals)))


def _require_finite(decoded: Tensor, named: Callable[[int], str]) -> None:
    finite = decoded.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        raise NonFinite(
            f"{named(finite.index(False))}: the decoder's output has NaN or infinity; check that its weights fit its "
            "configuration"
        )
