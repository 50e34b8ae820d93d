"""The text_to_image task on a worker: shards of real and sampled images, and metrics of their features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from pydantic import JsonValue

from evalsvc.decoders import ImageDecoder
from evalsvc.errors import DataChanged
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.tasks.image_codes import require_codebook, require_grid
from evalsvc.tasks.image_reference import ReferenceSpec
from evalsvc.tasks.image_task import require_labels
from evalsvc.tasks.image_work import ImageOutput, ImagePlan, ImageShard, ImageWork, SampleOutput, SampleShard
from evalsvc.tasks.task import Context, Plan, cut
from evalsvc.tasks.text_to_image.pipeline import sample_images
from evalsvc.tasks.text_to_image.prompts import Prompts, PromptSpec, read_prompts, require_unconditional
from evalsvc.tasks.text_to_image.spec import TextToImage

SHARD_BATCHES = 4
"""Most batches in a shard on a GPU, unless the batches are small."""
SHARES = 8
"""Least number of shards of a task on GPUs, unless they are smaller than `shard_size`: several GPUs share a task."""


class TextToImageWork(ImageWork[TextToImage]):
    made = "sampled"

    def plan(self, context: Context) -> Plan[ImageShard]:
        layout, decoder = context.layout(), self._decoder(context)
        require_codebook(layout, decoder, self.task.decoder)
        prompts = self._prompts(context, layout, decoder)
        if layout.image_prompt is not None and any(self.task.params(scale).guided for scale in self.task.scales):
            require_unconditional(prompts)
        if self.task.classifier is not None or self.task.by_category:
            require_labels(self.task.captions, [record.label for record in prompts.records])
        reference, count = self._real(decoder, prompts), len(prompts.records)
        plan = replace(
            self._plan_metrics(context, prompts.digest, prompts.captions, count, reference),
            tokenizer=prompts.tokenizer,
            names_tokens=sum(record.names_tokens for record in prompts.records),
        )
        shards = [
            SampleShard(stop - start, scale, start, stop, plan)
            for scale in self.task.scales
            for start, stop in cut(count, self._shard_size(context.device, count))
        ]
        return self._planned(context, plan, reference, shards)

    def run(self, context: Context, shard: ImageShard) -> ImageOutput:
        layout, decoder = context.layout(), self._decoder(context)
        prompts = self._prompts(context, layout, decoder)
        if shard.part == "reference":
            return self._real_features(context, shard, self._real(decoder, prompts))
        features = self._features(context, shard)
        if prompts.digest != shard.plan.prompts:
            raise DataChanged.since_planned(prompts.path)
        records = prompts.records[shard.start : shard.stop]
        return sample_images(context, self.task, layout, decoder, features, records, shard.scale, shard.start)

    def _shard_size(self, device: str, images: int) -> int:
        """Return the number of images in a shard. On a GPU a shard is several whole batches: a shard's first graphs and
        last decoding overlap with nothing, and dummies fill a batch that is not whole."""
        size, batch = self.task.shard_size, self.task.batch
        if self.task.until is not None or not device.startswith("cuda"):
            return size
        share = min(math.ceil(images / SHARES), SHARD_BATCHES * batch)
        return batch * math.ceil(max(size, share) / batch)

    def _decoder(self, context: Context) -> ImageDecoder:
        task = self.task
        return context.decoder(task.decoder, task.decoder_config, task.decoder_ema, task.decoder_dtype)

    def _prompts(self, context: Context, layout: VocabularyLayout, decoder: ImageDecoder) -> Prompts:
        side = self.task.size or decoder.resolution
        height, width = decoder.grid(side, side)
        require_grid(layout, (height, width), side)
        captions = None if self.task.captions is None else context.dataset(self.task.captions)
        tokenizer = layout.text.tokenizer if self.task.tokenizer is None else context.dataset(self.task.tokenizer)
        chosen, codes = (captions, self.task.samples, self.task.select, self.task.select_seed), height * width
        spec = PromptSpec(*chosen, tokenizer, layout.text.bos, codes, layout, layout.digest, context.readable)
        return read_prompts(spec)

    def _real(self, decoder: ImageDecoder, prompts: Prompts) -> ReferenceSpec | None:
        return self._reference(self.task.size or decoder.resolution, prompts.images)

    def _origin(self, scale: float) -> Mapping[str, JsonValue]:
        return self.task.params(scale).to_json()

    def _images_protocol(self, scale: float, part: SampleOutput, plan: ImagePlan) -> dict[str, JsonValue]:
        task = self.task
        return {
            "task": task.kind,
            "dtype": task.dtype,
            "rotary_inv_freq_dtype": task.rotary_inv_freq_dtype,
            "sampling": task.params(scale).to_json(),
            **self._selection(),
            **({} if task.weights == "plain" else {"weights": task.weights}),
            **({} if task.cache_dtype in (None, task.dtype) else {"cache_dtype": task.cache_dtype}),
            **({} if task.decoder_dtype == "float32" else {"decoder_dtype": task.decoder_dtype}),
            "prompts": plan.prompts,
            **({} if plan.tokenizer is None else {"tokenizer": plan.tokenizer}),
            **part.protocol,
        }
