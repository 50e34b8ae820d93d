"""The text_to_image task on a worker: shards of real and sampled images, and metrics of their features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from pydantic import JsonValue

from evalsvc.decoders import ImageDecoder
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.files.arrays import Array
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.image_metric import ImageMetric
from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.shares import share_stderr
from evalsvc.spec.images import Fit, program_of
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.looks import schedule
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.image_codes import require_codebook, require_grid
from evalsvc.tasks.image_features import ExtractorSpec, FeaturePass, Rows, join_features
from evalsvc.tasks.image_measures import Given, load_metrics, measure, needs_rows, rounded
from evalsvc.tasks.image_reference import (
    ReferenceIdentity,
    ReferencePart,
    ReferenceSpec,
    identify_reference,
    read_reference,
    reference_features,
    reference_parts,
)
from evalsvc.tasks.reference_statistics import TapStatistics
from evalsvc.tasks.result_warnings import cut_inputs, left_out, names_of_tokens
from evalsvc.tasks.task import Context, Plan, Shard, TaskResult, TaskWarning, Work, cut
from evalsvc.tasks.text_to_image.pipeline import SampleOutput, keep_images, sample_images
from evalsvc.tasks.text_to_image.prompts import (
    Prompts,
    PromptSpec,
    read_prompts,
    require_labels,
    require_unconditional,
)
from evalsvc.tasks.text_to_image.recipes import find_protocol
from evalsvc.tasks.text_to_image.spec import AGREEMENT, TextToImage

CLASSIFIER = "digits"
"""Key of the features that the parameter `classifier` gives: a score for each label."""

Item: TypeAlias = dict[str, JsonValue]


@dataclass(frozen=True)
class ImagePlan:
    prompts: str
    """Digest of the prompts, see `Prompts.digest`."""
    captions: str
    """Digest of the whole list that the prompts were selected from."""
    metrics: Sequence[str]
    left_out: Mapping[str, str]
    expected: Sequence[str]
    """Names in `left_out` that a reader would expect."""
    features: Mapping[str, Mapping[str, str]]
    """Protocol's content for the features that the metrics use, by key."""
    reference: ReferenceIdentity | None
    """None if no metric uses real images."""
    real: Sequence[str]
    """Keys of the features that are compared with real images."""
    rows: Sequence[str]
    """Keys in `real` of which a metric needs the real images' features, not only their moments."""
    tokenizer: str | None = None
    """Digest of the tokenizer of a layout with a `prompt`."""
    names_tokens: int = 0
    """Number of captions that hold the names of special tokens."""


@dataclass(frozen=True)
class ReferenceShard(Shard):
    images: ReferencePart
    plan: ImagePlan
    part: Literal["reference"] = "reference"


@dataclass(frozen=True)
class SampleShard(Shard):
    scale: float
    start: int
    stop: int
    plan: ImagePlan
    part: Literal["sample"] = "sample"


@dataclass(frozen=True)
class ReferenceOutput:
    features: Mapping[str, Array[np.float32]]
    part: Literal["reference"] = "reference"


ImageShard: TypeAlias = ReferenceShard | SampleShard
ImageOutput: TypeAlias = ReferenceOutput | SampleOutput


class TextToImageWork(Work[TextToImage, ImageShard, ImageOutput]):
    def plan(self, context: Context) -> Plan[ImageShard]:
        layout, decoder = context.layout(), self._decoder(context)
        require_codebook(layout, decoder, self.task.decoder)
        prompts = self._prompts(context, layout, decoder)
        if layout.image_prompt is not None and any(self.task.params(scale).guided for scale in self.task.scales):
            require_unconditional(prompts)
        if self.task.classifier is not None:
            require_labels(self.task.captions, prompts.records)
        reference = self._reference(decoder, prompts)
        plan = self._plan_metrics(context, prompts, reference)
        before: list[ReferenceShard] = []
        if reference is not None and plan.reference is not None:
            compared = {key: plan.features[key] for key in plan.real}
            size = self.task.shard_size
            parts = reference_parts(context, reference, plan.reference, compared, plan.rows, size)
            before = [ReferenceShard(images.stop - images.start, images, plan) for images in parts]
        shards = [
            SampleShard(stop - start, scale, start, stop, plan)
            for scale in self.task.scales
            for start, stop in cut(len(prompts.records), self.task.shard_size)
        ]
        # With several scales, the first scale would be finished before the others begin.
        several = len(self.task.scales) > 1
        looks = () if several else schedule([shard.units for shard in (*before, *shards)], len(before))
        real, sampled = (sum(shard.units for shard in part) for part in (before, shards))
        unit = f"images ({real:,} real, {sampled:,} sampled)" if real else "images"
        return Plan([*before, *shards], unit, looks, self.task.until)

    def _plan_metrics(self, context: Context, prompts: Prompts, reference: ReferenceSpec | None) -> ImagePlan:
        given = Given(self._extractors(), reference, self.task.captions is not None, len(prompts.records))
        chosen = self.task.metrics and [name for name in self.task.metrics if name != AGREEMENT]
        reasons = {metric: given.lacks(context, metric) for metric in load_metrics(chosen, self._program)}
        lacking = {metric.name: reason for metric, reason in reasons.items() if reason is not None}
        if self.task.metrics is not None and lacking:
            name, reason = next(iter(lacking.items()))
            raise InvalidData(
                f"{name} cannot be measured: {reason}; give what is missing, or remove {name} from `metrics`"
            )
        metrics = [metric for metric, reason in reasons.items() if reason is None]
        labels = set() if self.task.classifier is None else {CLASSIFIER}
        features = FeaturePass(context, self._extractors(), {metric.features for metric in metrics} | labels)
        real = sorted({metric.features for metric in metrics if metric.needs != "nothing"})
        return ImagePlan(
            prompts.digest,
            prompts.captions,
            [metric.name for metric in metrics],
            lacking,
            [metric.name for metric in reasons if metric.name in lacking and given.means(metric)],
            {key: features.identity(key) for key in features.keys},
            identify_reference(context, reference) if reference is not None and real else None,
            real,
            sorted({metric.features for metric in metrics if needs_rows(metric)}),
            prompts.tokenizer,
            sum(record.names_tokens for record in prompts.records),
        )

    def run(self, context: Context, shard: ImageShard) -> ImageOutput:
        layout, decoder = context.layout(), self._decoder(context)
        prompts, plan = self._prompts(context, layout, decoder), shard.plan
        keys = shard.images.keys if shard.part == "reference" else plan.features
        features = FeaturePass(context, self._extractors(), keys)
        features.require_planned(plan.features)
        if shard.part == "reference":
            reference = self._reference(decoder, prompts)
            assert reference is not None, "the plan had one"
            return ReferenceOutput(reference_features(context, reference, features, shard.images))
        if prompts.digest != plan.prompts:
            raise DataChanged.since_planned(prompts.path)
        records = prompts.records[shard.start : shard.stop]
        return sample_images(context, self.task, layout, decoder, features, records, shard.scale, shard.start)

    def merge(self, context: Context, shards: Sequence[ImageShard], outputs: Sequence[ImageOutput]) -> TaskResult:
        plan = shards[0].plan
        reference = self._statistics(context, plan, shards, outputs)
        metrics: list[MetricValue] = []
        items: list[Item] = []
        artifacts: list[Artifact] = []
        details: dict[str, object] = {}
        cut_captions = 0
        for scale in self.task.scales:
            # No other output is read, because each may be a file.
            of_scale = [n for n, shard in enumerate(shards) if shard.part == "sample" and shard.scale == scale]
            parts = [output for n in of_scale if (output := outputs[n]).part == "sample"]
            if parts:
                sampled = [image for part in parts for image in part.images]
                drawn: list[Item] = [
                    {"index": index, "id": image.id, "codes": image.codes} for index, image in enumerate(sampled)
                ]
                metrics += self._measure(scale, parts, drawn, plan, reference, details)
                items += [item | {"guidance_scale": scale} for item in drawn]
                artifacts += keep_images(parts, self.task.params(scale), several=len(self.task.scales) > 1)
                cut_captions += sum(part.cut for part in parts)
        called = self._called(plan, metrics)
        warnings = list(self._suspicions(plan, metrics, len(items), cut_captions, called.get("fid_deviates")))
        notes = {"images": len(items), "captions_cut": cut_captions, "left_out": dict(plan.left_out)}
        return TaskResult(metrics, items, {**notes, "details": details, **called}, artifacts, warnings)

    def _suspicions(
        self, plan: ImagePlan, metrics: Sequence[MetricValue], images: int, cut_captions: int, deviates: JsonValue
    ) -> Iterator[TaskWarning]:
        reasons = {name: plan.left_out[name] for name in plan.expected}
        measured = {metric.name.partition("/")[2] for metric in metrics}
        count = images // len(self.task.scales)
        too_few = f"the task stopped after {count:,} images, which are too few"
        reasons |= {name: too_few for name in plan.metrics if name not in measured}
        yield from left_out(self.task.name, reasons, "sample more images, or set `metrics`")
        if isinstance(deviates, list):
            deviations = ", ".join(map(str, deviates))
            yield TaskWarning(
                "not_the_recipe",
                f"{self.task.name}/fid",
                f"it is not the FID-30K of {self.task.protocol}: {deviations}; do not compare it with published values",
            )
        remedy = "use shorter captions, or a layout with a greater `length`"
        yield from cut_inputs(self.task.name, "captions", cut_captions, images, remedy)
        yield from names_of_tokens(self.task.name, plan.names_tokens)

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

    def _reference(self, decoder: ImageDecoder, prompts: Prompts) -> ReferenceSpec | None:
        if self.task.reference is None:
            return None
        side = self.task.reference_size or self.task.size or decoder.resolution
        fit = Fit(side, self.task.reference_crop, self.task.reference_filter)
        images = prompts.images() if self.task.reference_of == "captions" else None
        return ReferenceSpec(self.task.reference, fit, images)

    @property
    def _program(self) -> str | None:
        return program_of(self.task.extractor)

    def _extractors(self) -> list[ExtractorSpec]:
        named = (
            ("inception", self.task.extractor, self.task.resize),
            ("clip", self.task.clip, "pil-bicubic-crop"),
            ("dinov2", self.task.dinov2, self.task.dinov2_resize),
            (CLASSIFIER, self.task.classifier, "mean-8x8"),
        )
        return [ExtractorSpec(kind, name, resize) for kind, name, resize in named if name is not None]

    def _statistics(
        self, context: Context, plan: ImagePlan, shards: Sequence[ImageShard], outputs: Sequence[ImageOutput]
    ) -> dict[str, TapStatistics]:
        # Outputs of its shards are read only if the statistics are not kept yet.
        if self.task.reference is None or plan.reference is None:
            return {}

        def computed() -> dict[str, Rows]:
            indices = [index for index, shard in enumerate(shards) if shard.part == "reference"]
            return join_features([outputs[index].features for index in indices])

        features = {key: plan.features[key] for key in plan.real}
        return read_reference(context.kept, self.task.reference, plan.reference, features, plan.rows, computed)

    def _measure(
        self,
        scale: float,
        parts: Sequence[SampleOutput],
        items: Sequence[Item],
        plan: ImagePlan,
        reference: Mapping[str, TapStatistics],
        details: dict[str, object],
    ) -> Iterator[MetricValue]:
        images = self._images_protocol(scale, parts[0], plan)
        # Items of several scales share their index, so the compared keys hold the scale.
        suffix = "" if len(self.task.scales) == 1 else f"@{scale:g}"
        features = join_features([part.features for part in parts])
        if CLASSIFIER in features:
            labels = [image.label for part in parts for image in part.images]
            for item, label, scores in zip(items, labels, features[CLASSIFIER], strict=True):
                item |= {"label": label, "read": int(scores.argmax())}
        for metric, estimate in measure(plan.metrics, features, reference, self.task.seed, self._program):
            key, shares = f"{metric.name}{suffix}", rounded(estimate)
            for item, share in zip(items, shares or (), strict=False):
                item[key] = share
            if estimate.details:
                details[key] = estimate.details
            yield MetricValue(
                f"{self.task.name}/{metric.name}",
                estimate.value,
                estimate.stderr,
                estimate.n,
                metric.unit,
                metric.direction,
                Protocol(images | self._metric_protocol(metric, estimate.n, parts[0], plan)),
                items=() if shares is None else (key,),
                groups=estimate.groups,
            )
        if CLASSIFIER in features:
            key, chance = f"agrees{suffix}", 1 / features[CLASSIFIER].shape[1]
            for item in items:
                item[key] = item["read"] == item["label"]
            n, hits = len(items), sum(item[key] is True for item in items)
            agreement = Ratio(hits / n, share_stderr(hits, n), n)
            weights = {"classifier": plan.features[CLASSIFIER]["extractor"]}
            protocol = Protocol({**images, **weights, **self._resizing(parts[0]), **self._stopping()})
            name = f"{self.task.name}/{AGREEMENT}"
            yield agreement.as_metric(name, "fraction", "higher", protocol, chance, (key,))

    def _images_protocol(self, scale: float, part: SampleOutput, plan: ImagePlan) -> dict[str, JsonValue]:
        task = self.task
        return {
            "task": task.kind,
            "dtype": task.dtype,
            "rotary_inv_freq_dtype": task.rotary_inv_freq_dtype,
            "sampling": task.params(scale).to_json(),
            "select": task.select if task.select == "first" else {"rule": task.select, "seed": task.select_seed},
            **({} if task.weights == "plain" else {"weights": task.weights}),
            **({} if task.cache_dtype in (None, task.dtype) else {"cache_dtype": task.cache_dtype}),
            **({} if task.decoder_dtype == "float32" else {"decoder_dtype": task.decoder_dtype}),
            "prompts": plan.prompts,
            **({} if plan.tokenizer is None else {"tokenizer": plan.tokenizer}),
            **part.protocol,
        }

    def _metric_protocol(
        self, metric: ImageMetric, n: int, part: SampleOutput, plan: ImagePlan
    ) -> dict[str, JsonValue]:
        against = None if metric.needs == "nothing" else plan.reference
        return {
            "estimator": metric.estimator,
            **plan.features[metric.features],
            **self._resizing(part),
            **({"n": n} if metric.biased else self._stopping()),
            **({} if against is None else {"reference": against.to_json()}),
        }

    def _resizing(self, part: SampleOutput) -> dict[str, JsonValue]:
        compared = self.task.fit(part.side)
        return {} if compared.size == part.side else {"compared": compared.to_json()}

    def _stopping(self) -> dict[str, JsonValue]:
        return {} if self.task.until is None else {"until": self.task.until.model_dump()}

    def _called(self, plan: ImagePlan, metrics: Sequence[MetricValue]) -> dict[str, JsonValue]:
        if self.task.protocol is None:
            return {}
        fid = next((metric for metric in metrics if metric.name == f"{self.task.name}/fid"), None)
        called: dict[str, JsonValue] = {"protocol": self.task.protocol}
        if fid is not None and plan.reference is not None:
            deviates = find_protocol(self.task.protocol).deviations
            extractor = plan.features["inception/2048"]["extractor"]
            reasons = list(deviates(plan.captions, prompts=fid.n, reference=plan.reference.n, extractor=extractor))
            called |= {"fid_deviates": [*reasons]} if reasons else {"fid_is": f"FID-30K, {self.task.protocol}"}
        return called
