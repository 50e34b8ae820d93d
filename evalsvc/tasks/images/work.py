"""The task images on a worker: external images are read, brought to one size, and measured as sampled images are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from evalsvc.checkpoints.reference import named
from evalsvc.data.captions import read_captions
from evalsvc.data.images import ImageSource, fit_pixels, loaded_ahead, read_images
from evalsvc.data.prompted_images import PromptedImages, pair_images, prompts_with
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.spec.bounds import MAX_SIDE
from evalsvc.spec.images import Fit
from evalsvc.tasks.image_features import FeatureRows
from evalsvc.tasks.image_reference import EXTRACTED_AT_ONCE, ReferenceSpec
from evalsvc.tasks.image_task import named_images, require_labels
from evalsvc.tasks.image_work import (
    ImageOutput,
    ImagePlan,
    ImageShard,
    ImageWork,
    KeptImage,
    SampledImage,
    SampleOutput,
    SampleShard,
    encode_image,
)
from evalsvc.tasks.images.spec import ExternalImages
from evalsvc.tasks.task import Context, Plan, TaskResult, cut

_paired = lru_cache(maxsize=2)(pair_images)
"""Pairing of the last images of this process, because every shard needs all of it."""


class ExternalImagesWork(ImageWork[ExternalImages]):
    made = "given"

    def plan(self, context: Context) -> Plan[ImageShard]:
        source, images = self._given(context)
        if self.task.classifier is not None or self.task.by_category:
            require_labels(images.path, [image.label for image in images.images])
        reference, indices = self._real(source, images), [image.image for image in images.images]
        plan = replace(
            self._plan_metrics(context, images.prompts, images.captions, len(indices), reference),
            given=context.digest(),
            unused=images.unused if self.task.samples is None else 0,
        )
        shards = [
            SampleShard(stop - start, 1.0, start, stop, plan, source.digest(indices[start:stop]))
            for start, stop in cut(len(indices), self.task.shard_size)
        ]
        return self._planned(context, plan, reference, shards)

    def run(self, context: Context, shard: ImageShard) -> ImageOutput:
        source, images = self._given(context)
        if shard.part == "reference":
            return self._real_features(context, shard, self._real(source, images))
        if images.prompts != shard.plan.prompts:
            raise DataChanged.since_planned(images.path)
        features, chosen = self._features(context, shard), images.images[shard.start : shard.stop]
        load = partial(self._read, context, source, self.task.fit(self._side(source, images)))
        # Sampled images have these batches by default, and so equal images have features that are equal to the bit.
        ahead = loaded_ahead(load, [image.image for image in chosen], EXTRACTED_AT_ONCE)
        rows, kept, digests, sides = FeatureRows(), list[KeptImage](), list[str](), set[int]()
        while batch := list(islice(ahead, EXTRACTED_AT_ONCE)):
            indices = range(len(digests), len(digests) + len(batch))
            texts = [chosen[index].text for index in indices]
            rows.add(indices, features(torch.from_numpy(np.stack([pixels for _, _, pixels in batch])), texts))
            for index, (digest, side, pixels) in zip(indices, batch, strict=True):
                if (place := shard.start + index) < self.task.keep:
                    kept.append(KeptImage(place, encode_image(pixels), chosen[index].id, chosen[index].text))
                digests.append(digest)
                sides.add(side)
            context.report(len(digests))
        if hashlib.sha256("".join(digests).encode()).hexdigest() != shard.images:
            raise DataChanged.since_planned(source.path)
        side = sides.pop() if len(sides) == 1 else 0
        measured = [SampledImage(image.id, "", image.label) for image in chosen]
        return SampleOutput(rows.joined(), measured, kept, side, {"size": side} if side else {}, cut=0)

    def merge(self, context: Context, shards: Sequence[ImageShard], outputs: Sequence[ImageOutput]) -> TaskResult:
        context.provenance["checkpoint_sha256"] = shards[0].plan.given
        return super().merge(context, shards, outputs)

    def _given(self, context: Context) -> tuple[ImageSource, PromptedImages]:
        path, allow = Path(context.checkpoint.path), context.checkpoint.rule
        try:
            with named(context.checkpoint):
                source = read_images(path, allow)
        except InvalidData as error:
            raise InvalidData(f"{error.message}; a task of kind images reads images and no weights") from None
        captions = None
        if self.task.captions is not None:
            captions = read_captions(context.dataset(self.task.captions), context.readable)
        elif (prompts := prompts_with(path, allow)) is not None:
            captions = read_captions(prompts, allow)
        return source, _paired(source, captions, self.task.select, self.task.samples, self.task.select_seed)

    def _side(self, source: ImageSource, images: PromptedImages) -> int:
        """Return the side of the images, which is that of the first image unless `reference_size` is given."""
        if self.task.reference_size is not None:
            return self.task.reference_size
        side: int = source.load(images.images[0].image, None).shape[1]
        if side > MAX_SIDE:
            raise InvalidData(f"{source.path}: images of {side:,} pixels are too large; set `reference_size`")
        return side

    def _real(self, source: ImageSource, images: PromptedImages) -> ReferenceSpec | None:
        real = partial(named_images, images.path, [(image.id, image.real) for image in images.images])
        return self._reference(self._side(source, images), real)

    def _read(self, context: Context, source: ImageSource, fit: Fit, index: int) -> tuple[str, int, NDArray[np.uint8]]:
        """Return an image's digest, its side as stored (0 if it is not square), and its pixels [3, size, size]."""
        with named(context.checkpoint):
            stored = source.stored(index)
            pixels = stored.pixels(None)
            height, width = pixels.shape[1:]
            shown = f"{source.path}, image {source.name(index)} is {width}×{height}"
            if height != width and self.task.crop is None:
                raise InvalidData(f"{shown}, not square; set `reference_size`, and `crop` to center or none")
            if self.task.reference_size is None and height != fit.size:
                raise InvalidData(f"{shown}, but the first is {fit.size}×{fit.size}; set `reference_size` for one size")
            return stored.digest, height if height == width else 0, fit_pixels(pixels, fit)

    def _origin(self, scale: float) -> Mapping[str, JsonValue]:
        return {"sampling": "external"}

    def _images_protocol(self, scale: float, part: SampleOutput, plan: ImagePlan) -> dict[str, JsonValue]:
        prompts = {"prompts": plan.prompts} if plan.captions else {}
        return {"task": self.task.kind, **self._origin(scale), **self._selection(), **prompts, **part.protocol}
