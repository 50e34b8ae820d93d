"""The work that all tasks share which measure images: real images, metrics, items, and images to look at."""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue

from evalsvc.errors import InvalidData
from evalsvc.files.arrays import Array
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import FeatureSets, ImageMetric
from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.shares import share_stderr
from evalsvc.spec.images import Fit, program_of
from evalsvc.spec.looks import schedule
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.image_features import ExtractorSpec, FeaturePass, Rows, join_features
from evalsvc.tasks.image_measures import Given, load_metrics, measure, needs_rows, rounded
from evalsvc.tasks.image_recipes import find_protocol
from evalsvc.tasks.image_reference import (
    ReferenceIdentity,
    ReferencePart,
    ReferenceSpec,
    categories_of,
    identify_reference,
    read_reference,
    reference_features,
    reference_parts,
    stated_by,
)
from evalsvc.tasks.image_task import AGREEMENT, ImageTask
from evalsvc.tasks.reference_statistics import TapStatistics
from evalsvc.tasks.result_warnings import cut_inputs, left_out, names_of_tokens
from evalsvc.tasks.task import Context, Plan, Shard, TaskResult, TaskWarning, Work

CLASSIFIER = "digits"
"""Key of the features that the parameter `classifier` gives: a score for each label."""

GRID_COLUMNS = 8

Item: TypeAlias = dict[str, JsonValue]


@dataclass(frozen=True)
class ImagePlan:
    prompts: str
    """Digest of the prompts of the images."""
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
    given: str = ""
    """SHA-256 of the checkpoint that is images."""
    unused: int = 0
    """Number of given images that belong to no prompt."""
    categories: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Range [start, stop) of the real images of each category, for metrics by category."""


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
    images: str = ""
    """Digest of the images' contents; empty for images that are sampled."""
    part: Literal["sample"] = "sample"


@dataclass(frozen=True)
class SampledImage:
    id: str
    codes: str
    """Digest of the image's codes; empty for an image that was not sampled here."""
    label: int | None


@dataclass(frozen=True)
class KeptImage:
    index: int
    png: bytes
    id: str
    prompt: str


@dataclass(frozen=True)
class SampleOutput:
    features: Mapping[str, Array[np.float32]]
    images: Sequence[SampledImage]
    kept: Sequence[KeptImage]
    side: int
    """Height and width of the images; 0 for images of several sizes."""
    protocol: Mapping[str, JsonValue]
    cut: int
    """Number of captions that did not fit the layout."""
    part: Literal["sample"] = "sample"


@dataclass(frozen=True)
class ReferenceOutput:
    features: Mapping[str, Array[np.float32]]
    part: Literal["reference"] = "reference"


ImageShard: TypeAlias = ReferenceShard | SampleShard
ImageOutput: TypeAlias = ReferenceOutput | SampleOutput

Measuring = TypeVar("Measuring", bound=ImageTask)
"""Parameters of a task that measures images."""


class ImageWork(Work[Measuring, ImageShard, ImageOutput]):
    made: ClassVar[str]
    """Origin of the images in the name of the plan's unit."""

    @abstractmethod
    def _origin(self, scale: float) -> Mapping[str, JsonValue]:
        """Return how the images of a guidance scale came to be, for the details of artifacts."""

    @abstractmethod
    def _images_protocol(self, scale: float, part: SampleOutput, plan: ImagePlan) -> dict[str, JsonValue]:
        """Return the part of the protocol that describes the images, whatever is measured of them."""

    def _plan_metrics(
        self, context: Context, prompts: str, captions: str, count: int, reference: ReferenceSpec | None
    ) -> ImagePlan:
        """Choose the metrics of `count` images. `prompts` and `captions` are digests; `captions` may be empty."""
        given = Given(self._extractors(), reference, captions != "", count)
        chosen = self.task.metrics and [name for name in self.task.metrics if name != AGREEMENT]
        reasons = {metric: given.lacks(context, metric) for metric in load_metrics(chosen, self._program)}
        lacking = {metric.name: reason for metric, reason in reasons.items() if reason is not None}
        if self.task.metrics is not None and lacking:
            name, reason = next(iter(lacking.items()))
            raise InvalidData(f"{name} cannot be measured: {reason}; change that, or remove {name} from `metrics`")
        metrics = [metric for metric, reason in reasons.items() if reason is None]
        categories = categories_of(context.images(str(self.task.reference))) if self.task.by_category else {}
        labels = set() if self.task.classifier is None else {CLASSIFIER}
        features = FeaturePass(context, self._extractors(), {metric.features for metric in metrics} | labels)
        real = sorted({metric.features for metric in metrics if metric.needs != "nothing"})
        return ImagePlan(
            prompts,
            captions,
            [metric.name for metric in metrics],
            lacking,
            [metric.name for metric in reasons if metric.name in lacking and given.means(metric)],
            {key: features.identity(key) for key in features.keys},
            identify_reference(context, reference) if reference is not None and real else None,
            real,
            sorted({metric.features for metric in metrics if needs_rows(metric) or self._by_category(metric)}),
            categories=categories,
        )

    def _by_category(self, metric: ImageMetric) -> bool:
        return self.task.by_category and metric.name in ("fid", "fid64")

    def _planned(
        self, context: Context, plan: ImagePlan, reference: ReferenceSpec | None, shards: Sequence[SampleShard]
    ) -> Plan[ImageShard]:
        """Return the plan of the task's images in `shards`, after those of real images without known statistics."""
        before: list[ReferenceShard] = []
        if reference is not None and plan.reference is not None:
            compared = {key: plan.features[key] for key in plan.real}
            size = self.task.shard_size
            parts = reference_parts(context, reference, plan.reference, compared, plan.rows, size)
            before = [ReferenceShard(images.stop - images.start, images, plan) for images in parts]
        # With several scales, the first scale would be finished before the others begin.
        several = len(self.task.scales) > 1
        looks = () if several else schedule([shard.units for shard in (*before, *shards)], len(before))
        real, measured = (sum(shard.units for shard in part) for part in (before, shards))
        unit = f"images ({real:,} real, {measured:,} {self.made})" if real else "images"
        return Plan([*before, *shards], unit, looks, self.task.until)

    def _selection(self) -> dict[str, JsonValue]:
        rule, seed = self.task.select, self.task.select_seed
        return {"select": rule if rule == "first" else {"rule": rule, "seed": seed}}

    def _features(self, context: Context, shard: ImageShard) -> FeaturePass:
        keys = shard.images.keys if shard.part == "reference" else shard.plan.features
        features = FeaturePass(context, self._extractors(), keys)
        features.require_planned(shard.plan.features)
        return features

    def _real_features(
        self, context: Context, shard: ReferenceShard, reference: ReferenceSpec | None
    ) -> ReferenceOutput:
        assert reference is not None, "the plan had one"
        return ReferenceOutput(reference_features(context, reference, self._features(context, shard), shard.images))

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
                    {"index": index, "id": image.id, **({"codes": image.codes} if image.codes else {})}
                    for index, image in enumerate(sampled)
                ]
                metrics += self._measure(scale, parts, drawn, plan, reference, details)
                origin = self._origin(scale)
                items += [item | {"guidance_scale": scale} if "guidance_scale" in origin else item for item in drawn]
                prefix = f"guidance-{scale:g}-" if len(self.task.scales) > 1 else ""
                artifacts += keep_images(parts, origin, prefix)
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
        yield from left_out(self.task.name, reasons, "use more images, or set `metrics`")
        if isinstance(deviates, list) and self.task.protocol is not None:
            deviations, called = ", ".join(map(str, deviates)), find_protocol(self.task.protocol).called
            yield TaskWarning(
                "not_the_recipe",
                f"{self.task.name}/fid",
                f"it is not the {called} of {self.task.protocol}: {deviations}; do not compare it with published ones",
            )
        remedy = "use shorter captions, or a layout with a greater `length`"
        yield from cut_inputs(self.task.name, "captions", cut_captions, images, remedy)
        yield from names_of_tokens(self.task.name, plan.names_tokens)
        if plan.unused:
            told = f"{plan.unused:,} images belong to no prompt and are not measured; name them by their prompts' ids"
            yield TaskWarning("images_unused", self.task.name, told)

    def _reference(self, side: int, named: Callable[[], tuple[str | int, ...]]) -> ReferenceSpec | None:
        """Return the real images for images of `side` pixels; `named` returns those that the captions name."""
        if self.task.reference is None:
            return None
        fit = Fit(self.task.reference_size or side, self.task.reference_crop, self.task.reference_filter)
        images = named() if self.task.reference_of == "captions" else None
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
        stated = stated_by(context, self.task.reference)
        return read_reference(context.kept, self.task.reference, plan.reference, features, plan.rows, computed, stated)

    def _measure(
        self,
        scale: float,
        parts: Sequence[SampleOutput],
        items: Sequence[Item],
        plan: ImagePlan,
        reference: Mapping[str, TapStatistics],
        details: dict[str, object],
    ) -> Iterator[MetricValue]:
        first = parts[0] if len({part.side for part in parts}) == 1 else replace(parts[0], side=0, protocol={})
        images = self._images_protocol(scale, first, plan)
        # Items of several scales share their index, so the compared keys hold the scale.
        suffix = "" if len(self.task.scales) == 1 else f"@{scale:g}"
        features = join_features([part.features for part in parts])
        labels = [image.label for part in parts for image in part.images]
        if CLASSIFIER in features:
            for item, label, scores in zip(items, labels, features[CLASSIFIER], strict=True):
                item |= {"label": label, "read": int(scores.argmax())}
        measured = measure(plan.metrics, features, reference, self.task.seed, self._program)
        chosen = [(metric.name, metric, estimate, items) for metric, estimate in measured]
        for _, metric, *_ in [each for each in chosen if self._by_category(each[1])]:
            real = reference[metric.features].features
            assert real is not None, "the plan has asked for the features"
            for label, (category, (start, stop)) in enumerate(sorted(plan.categories.items())):
                members = [index for index, of in enumerate(labels) if of == label]
                if min(len(members), stop - start) >= metric.min_images:
                    rows, against = features[metric.features][members], real[start:stop]
                    estimate = metric.estimate(FeatureSets(rows, Moments.of(against), against, self.task.seed))
                    chosen.append((f"{metric.name}_{category}", metric, estimate, [items[index] for index in members]))
        for name, metric, estimate, covered in chosen:
            key, shares = f"{name}{suffix}", rounded(estimate)
            for item, share in zip(covered, shares or (), strict=False):
                item[key] = share
            if estimate.details:
                details[key] = estimate.details
            of_category: dict[str, JsonValue] = {} if name == metric.name else {"category": name.partition("_")[2]}
            yield MetricValue(
                f"{self.task.name}/{name}",
                estimate.value,
                estimate.stderr,
                estimate.n,
                metric.unit,
                metric.direction,
                Protocol(images | self._metric_protocol(metric, estimate.n, first, plan) | of_category),
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
            protocol = Protocol({**images, **weights, **self._resizing(first), **self._stopping()})
            name = f"{self.task.name}/{AGREEMENT}"
            yield agreement.as_metric(name, "fraction", "higher", protocol, chance, (key,))

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
            recipe = find_protocol(self.task.protocol)
            extractor = plan.features["inception/2048"]["extractor"]
            n = None if plan.reference.stated else plan.reference.n
            reasons = list(recipe.deviations(plan.captions, prompts=fid.n, reference=n, extractor=extractor))
            called |= {"fid_deviates": [*reasons]} if reasons else {"fid_is": f"{recipe.called}, {recipe.name}"}
        return called


def keep_images(parts: Sequence[SampleOutput], origin: Mapping[str, JsonValue], prefix: str) -> list[Artifact]:
    kept = [image for part in parts for image in part.kept]
    if not kept:
        return []
    prompts = [image.prompt for image in kept]
    details = {"images": len(kept), "columns": GRID_COLUMNS, "prompts": prompts, **origin}
    artifacts = [
        Artifact("grid", f"{prefix}grid.png", "image/png", encode_grid([image.png for image in kept]), details)
    ]
    for image in kept:
        details = {"id": image.id, "prompt": image.prompt, **origin}
        artifacts.append(Artifact("sample", f"{prefix}{image.index:05d}.png", "image/png", image.png, details))
    return artifacts


def encode_grid(files: Sequence[bytes]) -> bytes:
    images = [Image.open(io.BytesIO(content)) for content in files]
    width, height = images[0].size
    rows = math.ceil(len(images) / GRID_COLUMNS)
    canvas = Image.new("RGB", (width * min(len(images), GRID_COLUMNS), height * rows), "white")
    for index, image in enumerate(images):
        canvas.paste(image, (index % GRID_COLUMNS * width, index // GRID_COLUMNS * height))
    return _as_png(canvas)


def encode_image(pixels: NDArray[np.uint8]) -> bytes:  # [3, H, W]
    return _as_png(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))


def _as_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
