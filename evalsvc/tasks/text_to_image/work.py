"""The text_to_image task on a worker: its shards of real and sampled images, and the metrics of their features."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from evalsvc.decoders import ImageDecoder
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.image_metric import ImageMetric
from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.shares import share_stderr
from evalsvc.spec.images import Fit, program_of
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.looks import schedule
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.image_codes import require_codebook
from evalsvc.tasks.image_features import ExtractorSpec, FeaturePass, join_features
from evalsvc.tasks.image_measures import Given, load_metrics, measure, rounded
from evalsvc.tasks.image_reference import (
    ReferenceSpec,
    identify_reference,
    read_reference,
    reference_features,
    reference_shards,
)
from evalsvc.tasks.reference_statistics import TapStatistics
from evalsvc.tasks.suspicions import cut_inputs, left_out
from evalsvc.tasks.task import Context, Plan, TaskResult, TaskWarning, Work, cut
from evalsvc.tasks.text_to_image.artifacts import keep_images
from evalsvc.tasks.text_to_image.pipeline import sample_images
from evalsvc.tasks.text_to_image.prompts import Prompts, PromptSpec, read_prompts
from evalsvc.tasks.text_to_image.recipes import find_protocol
from evalsvc.tasks.text_to_image.spec import TextToImage


class TextToImageWork(Work[TextToImage, Mapping[str, Any], Mapping[str, Any]]):
    """Plan, run and merge a text_to_image task."""

    def plan(self, context: Context) -> Plan[Mapping[str, Any]]:
        """Cut reference images, where their features are not known, and prompts into shards.

        Raises InvalidData where a caption does not fit the layout or lacks its label, or a metric cannot be measured,
        and AssetMissing for a decoder or extractor that was not pulled.
        """
        layout, decoder = context.layout(), self._decoder(context)
        require_codebook(layout, decoder, self.task.decoder)
        prompts = self._prompts(context, layout, decoder)
        if self.task.classifier is not None:
            _require_labels(self.task.captions, prompts)
        count = len(prompts.records)
        reference = self._reference(self._size(decoder), prompts)
        metrics, lacking, expected = self._choose(context, reference, count)
        features = self._features(context, {metric.features for metric in metrics})
        identities = {key: features.identity(key) for key in features.keys}
        real = {metric.features: identities[metric.features] for metric in metrics if metric.needs != "nothing"}
        identity = identify_reference(context, reference) if reference is not None and real else None
        before: list[dict[str, Any]] = []
        if reference is not None and identity is not None:
            before = list(reference_shards(context, reference, identity, real, self.task.shard_size))
        common = {
            "digest": prompts.digest,
            "captions": prompts.captions,
            "metrics": [metric.name for metric in metrics],
            "left_out": lacking,
            "expected": expected,
            "features": identities,
            "reference": identity,
            "real": sorted(real),
        }
        shards = [
            {"part": "sample", "scale": scale, "start": start, "stop": stop, "units": stop - start}
            for scale in self.task.scales
            for start, stop in cut(count, self.task.shard_size)
        ]
        # Of several scales the first ones would be done before the others begin.
        several = len(self.task.scales) > 1
        looks = () if several else schedule([shard["units"] for shard in (*before, *shards)], len(before))
        return Plan([shard | common for shard in (*before, *shards)], "images", looks, self.task.until)

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return features of the shard's images; of sampled ones also digests of the codes, and the first as files.

        Raises DataChanged where captions, images or an extractor are not what was planned, and NonFinite.
        """
        layout, decoder = context.layout(), self._decoder(context)
        prompts = self._prompts(context, layout, decoder)
        features = self._features(context, shard.get("keys", shard["features"]))
        features.require_planned(shard["features"])
        if shard["part"] == "reference":
            reference = self._reference(self._size(decoder), prompts)
            assert reference is not None, "the plan had one"
            images = slice(shard["start"], shard["stop"])
            return reference_features(context, reference, features, images, shard["images"])
        if prompts.digest != shard["digest"]:
            raise DataChanged.since_planned(prompts.path)
        part = prompts.records[shard["start"] : shard["stop"]]
        output = sample_images(context, self.task, layout, decoder, features, part, shard)
        return {**output, "cut": sum(record.cut > 0 for record in part)}

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        """The metrics per guidance scale, agreement with the captions' labels, the grid and the kept images."""
        pairs = list(zip(shards, outputs, strict=True))
        real = [output for shard, output in pairs if shard["part"] == "reference"]
        reference = self._statistics(context, shards[0], real)
        metrics: list[MetricValue] = []
        items: list[dict[str, Any]] = []
        artifacts: list[Artifact] = []
        details: dict[str, Any] = {}
        for scale in self.task.scales:
            parts = [output for shard, output in pairs if shard["part"] == "sample" and shard["scale"] == scale]
            if parts:
                sampled = [item for part in parts for item in part["items"]]
                drawn = [{"index": index, **item} for index, item in enumerate(sampled)]
                metrics += self._measure(scale, parts, drawn, shards[0], reference, details)
                items += [item | {"guidance_scale": scale} for item in drawn]
                artifacts += keep_images(parts, self.task.params(scale), several=len(self.task.scales) > 1)
        notes = {
            "images": len(items),
            "captions_cut": sum(output["cut"] for shard, output in pairs if shard["part"] == "sample"),
            "left_out": dict(shards[0]["left_out"]),
            "details": details,
        }
        called = self._called(shards[0], metrics)
        warnings = list(self._suspicions(shards[0], metrics, notes, called))
        return TaskResult(metrics, items, notes | called, artifacts, warnings)

    def real_images(self, context: Context) -> ReferenceSpec | None:
        """Return which real images samples are compared with, and how they become squares; None: the task has none."""
        decoder = self._decoder(context)
        return self._reference(self._size(decoder), self._prompts(context, context.layout(), decoder))

    def _suspicions(
        self,
        planned: Mapping[str, Any],
        metrics: Sequence[MetricValue],
        notes: Mapping[str, Any],
        called: Mapping[str, Any],
    ) -> Iterator[TaskWarning]:
        reasons = {name: planned["left_out"][name] for name in planned.get("expected", ())}
        measured = {metric.name.partition("/")[2] for metric in metrics}
        count = notes["images"] // len(self.task.scales)
        too_few = f"the task stopped after {count:,} images, which are too few for it"
        reasons |= {name: too_few for name in planned["metrics"] if name not in measured}
        yield from left_out(self.task.name, reasons, "sample more images, or name in `metrics` what you want")
        if "fid_deviates" in called:
            deviations = ", ".join(called["fid_deviates"])
            yield TaskWarning(
                "not_the_recipe",
                f"{self.task.name}/fid",
                f"it is not the FID-30K of {self.task.protocol}: {deviations}; do not compare it with published ones",
            )
        remedy = "give shorter captions, or a layout with a greater `length`"
        yield from cut_inputs(self.task.name, "captions", notes["captions_cut"], notes["images"], remedy)

    def _decoder(self, context: Context) -> ImageDecoder:
        return context.decoder(
            self.task.decoder, self.task.decoder_config, self.task.decoder_ema, self.task.decoder_dtype
        )

    def _size(self, decoder: ImageDecoder) -> int:
        return self.task.size or decoder.resolution

    def _prompts(self, context: Context, layout: VocabularyLayout, decoder: ImageDecoder) -> Prompts:
        height, width = decoder.grid(self._size(decoder), self._size(decoder))
        captions = None if self.task.captions is None else context.dataset(self.task.captions)
        tokenizer = layout.text.tokenizer if self.task.tokenizer is None else context.dataset(self.task.tokenizer)
        spec = PromptSpec(
            captions,
            self.task.samples,
            self.task.select,
            self.task.select_seed,
            tokenizer,
            height * width,
            layout,
            layout.digest,
            context.readable,
        )
        return read_prompts(spec)

    def _reference(self, side: int, prompts: Prompts) -> ReferenceSpec | None:
        if self.task.reference is None:
            return None
        fit = Fit(self.task.reference_size or side, self.task.reference_crop, self.task.reference_filter)
        images = prompts.images() if self.task.reference_of == "captions" else None
        return ReferenceSpec(self.task.reference, fit, images)

    @property
    def _program(self) -> str | None:
        return program_of(self.task.extractor)

    def _features(self, context: Context, keys: Collection[str]) -> FeaturePass:
        return FeaturePass(context, self._extractors(), keys)

    def _extractors(self) -> list[ExtractorSpec]:
        named = (
            ("inception", self.task.extractor, self.task.resize),
            ("clip", self.task.clip, "pil-bicubic-crop"),
            ("dinov2", self.task.dinov2, self.task.dinov2_resize),
        )
        return [ExtractorSpec(kind, name, resize) for kind, name, resize in named if name is not None]

    def _choose(
        self, context: Context, reference: ReferenceSpec | None, count: int
    ) -> tuple[list[ImageMetric], dict[str, str], list[str]]:
        """The metrics that are measured, why the others are not, and which of those were to be expected."""
        given = Given(self._extractors(), reference, self.task.captions is not None, count)
        found = {metric: given.lacks(context, metric) for metric in load_metrics(self.task.metrics, self._program)}
        lacking = {metric.name: reason for metric, reason in found.items() if reason is not None}
        if self.task.metrics is not None and lacking:
            name, reason = next(iter(lacking.items()))
            raise InvalidData(f"{name} cannot be measured: {reason}; give it, or leave {name} out of `metrics`")
        expected = [metric.name for metric in found if metric.name in lacking and given.means(metric)]
        return [metric for metric, reason in found.items() if reason is None], lacking, expected

    def _statistics(
        self, context: Context, planned: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]
    ) -> dict[str, TapStatistics]:
        if self.task.reference is None or planned["reference"] is None:
            return {}

        def compute(keys: Sequence[str]) -> Mapping[str, Any]:
            shard = {**planned, "part": "reference", "start": 0, "stop": None, "keys": keys}
            return self.run(context, {**shard, "images": planned["reference"]["images"]})

        features = {key: planned["features"][key] for key in planned["real"]}
        return read_reference(context, self.task.reference, planned["reference"], features, parts, compute)

    def _measure(
        self,
        scale: float,
        parts: Sequence[Mapping[str, Any]],
        items: Sequence[dict[str, Any]],
        planned: Mapping[str, Any],
        reference: Mapping[str, TapStatistics],
        details: dict[str, Any],
    ) -> Iterator[MetricValue]:
        """The metrics of one guidance scale; puts the images' shares into `items`."""
        images = self._images_protocol(scale, parts[0])
        # Items of several scales share their index, so what is compared has the scale in its name.
        suffix = "" if len(self.task.scales) == 1 else f"@{scale:g}"
        features = join_features(parts)
        for metric, estimate in measure(planned["metrics"], features, reference, self.task.seed, self._program):
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
                Protocol(images | self._metric_protocol(metric, estimate.n, parts[0], planned)),
                items=() if shares is None else (key,),
                groups=estimate.groups,
            )
        if self.task.classifier is not None:
            yield self._agreement(items, f"agrees{suffix}", parts[0], images)

    def _agreement(
        self, items: Sequence[dict[str, Any]], key: str, part: Mapping[str, Any], images: Mapping[str, Any]
    ) -> MetricValue:
        for item in items:
            item[key] = item.pop("agrees")
        n, hits = len(items), sum(item[key] for item in items)
        share = Ratio(hits / n, share_stderr(hits, n), n)
        protocol = Protocol({**images, "classifier": part["classifier"], **self._stopping()})
        name, baseline = f"{self.task.name}/agreement", 1 / part["classes"]
        return share.as_metric(name, "fraction", "higher", protocol, baseline, (key,))

    def _images_protocol(self, scale: float, part: Mapping[str, Any]) -> dict[str, Any]:
        """What moves the images."""
        return {
            "task": self.task.kind,
            "dtype": self.task.dtype,
            "rotary_inv_freq_dtype": self.task.rotary_inv_freq_dtype,
            "sampling": self.task.params(scale).to_json(),
            "select": self.task.select
            if self.task.select == "first"
            else {"rule": self.task.select, "seed": self.task.select_seed},
            **({} if self.task.weights == "plain" else {"weights": self.task.weights}),
            **({} if self.task.cache_dtype in (None, self.task.dtype) else {"cache_dtype": self.task.cache_dtype}),
            **({} if self.task.decoder_dtype == "float32" else {"decoder_dtype": self.task.decoder_dtype}),
            **part["protocol"],
        }

    def _metric_protocol(
        self, metric: ImageMetric, n: int, part: Mapping[str, Any], planned: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What else moves the metric."""
        compared = self.task.fit(part["protocol"]["size"])
        return {
            "estimator": metric.estimator,
            **planned["features"][metric.features],
            **({} if compared.size == part["protocol"]["size"] else {"compared": compared.to_json()}),
            **({"n": n} if metric.biased else self._stopping()),
            **({} if metric.needs == "nothing" else {"reference": dict(planned["reference"])}),
        }

    def _stopping(self) -> dict[str, Any]:
        """What moves the number of images where that moves no expectation."""
        return {} if self.task.until is None else {"until": self.task.until.model_dump()}

    def _called(self, planned: Mapping[str, Any], metrics: Sequence[MetricValue]) -> dict[str, Any]:
        """By which of the field's names the FID goes, and where it goes by none, why."""
        fid = next((metric for metric in metrics if metric.name == f"{self.task.name}/fid"), None)
        if self.task.protocol is None:
            return {}
        if fid is None:
            return {"protocol": self.task.protocol}
        deviations = list(
            find_protocol(self.task.protocol).deviations(
                planned["captions"],
                prompts=fid.n,
                reference=planned["reference"].get("n"),
                extractor=str(fid.protocol.content["extractor"]),
            )
        )
        label = {"fid_deviates": deviations} if deviations else {"fid_is": f"FID-30K, {self.task.protocol}"}
        return {"protocol": self.task.protocol, **label}


def _require_labels(path: str | None, prompts: Prompts) -> None:
    for index, record in enumerate(prompts.records):
        if record.label is None:
            raise InvalidData(f"{path}: caption {index + 1} has no label, which `classifier` needs; leave it out")
