"""From captions to images and what is known of them: sample, decode, extract features, measure.

Work is cut by prompts. A shard sends back the features of its images, not the images: only the first few are kept, as
files to look at. Features of the reference images are shards too, the first ones, and only the first time; later they
come from a file. What a metric is, `metrics/image_metric.py` says; all of them read one pass of the extractors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from evalsvc.data.captions import Selection
from evalsvc.data.images import Crop, Filter, Fit
from evalsvc.errors import DataChanged, InvalidData, InvalidRequest, UnknownName
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.shares import share_stderr
from evalsvc.spec import catalog
from evalsvc.spec.bounds import MAX_BATCH, MAX_ID, MAX_SIDE, Images, Seed, ShardSize, Word
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.looks import Until, schedule
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.spec.sampling import SamplingParams
from evalsvc.tasks.suspicions import cut_inputs, left_out
from evalsvc.tasks.task import AssetName, Context, DataPath, Plan, Task, TaskResult, TaskWarning, cut
from evalsvc.tasks.text_to_image.prompts import Prompts, PromptSpec, read_prompts
from evalsvc.tasks.text_to_image.recipes import PROMPTS, find_protocol

if TYPE_CHECKING:
    from evalsvc.decoders import ImageDecoder
    from evalsvc.metrics.image_metric import ImageMetric
    from evalsvc.tasks.image_features import ExtractorSpec, FeaturePass
    from evalsvc.tasks.image_reference import ReferenceSpec
    from evalsvc.tasks.reference_statistics import TapStatistics

FID_30K = re.compile(r"fid[^a-z0-9]?30k", re.IGNORECASE)
"""Names of suites and tasks that promise what only 30,000 images are."""


class TextToImage(Task):
    """Images sampled from captions, what is known of them, and how far they are from real images."""

    kind: ClassVar[str] = "text_to_image"

    protocol: Word | None = None
    """A published recipe, see `image_protocols.py`; it fixes some of the parameters below and refuses others in their
    place. `samples` may be smaller, for a trial, which then is not called by the recipe's name."""
    captions: DataPath | None = None
    """Prompts: COCO annotations, CSV or JSONL; None: images without text, `samples` of them."""
    samples: Images | None = None
    """How many captions [all that `select` allows]."""
    select: Selection = "first"
    """Which: the first, a random choice, or one each of randomly chosen images."""
    select_seed: Seed = 0
    """Of that choice."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for the captions [the layout's]."""
    decoder: AssetName
    """The image tokenizer: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Its configuration: a registered name such as `movqgan-67M`, or the path of a YAML file [what lies beside the
    checkpoint]."""
    decoder_ema: bool = False
    """Use its averaged weights."""
    decoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the decoder. bfloat16 moves pixels, and so every metric a little."""
    size: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    """Side of the images in pixels [the decoder's]."""
    metrics: tuple[Word, ...] | None = Field(default=None, max_length=64)
    """Which of the catalog's image metrics [all that can be measured with what is given and so many images]."""
    reference: AssetName | None = None
    """Real images: a folder or a packed file; or the name of statistics from `evalsvc reference import`."""
    reference_of: Literal["all", "captions"] = "all"
    """All of them, or those that the chosen captions are of."""
    reference_crop: Crop = "center"
    """`center` cuts the square in the middle, `none` squeezes the whole image to a square."""
    reference_filter: Filter = "lanczos"
    """Of the resampling of real images to `reference_size`."""
    reference_size: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    """Side in pixels at which images are compared [that of the sampled ones]."""
    filter: Filter = "lanczos"
    """Of the resampling of sampled images to `reference_size`, where theirs is another size."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest code."""
    top_k: int | None = Field(default=None, ge=1, le=MAX_ID)
    """Draw from this many likeliest codes [all]."""
    top_p: float | None = None
    """Draw from the fewest likeliest codes with this probability [all]."""
    guidance_scale: float | Annotated[tuple[float, ...], Field(max_length=16)] = 1.0
    """Classifier-free guidance; several values give one series each."""
    seed: Seed = 0
    """Of the noise, and of the subsets that metrics draw."""
    batch: int = Field(default=32, ge=1, le=MAX_BATCH)
    """Images sampled together, if memory allows; moves tokens by rounding at most."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the language model; features are float32."""
    weights: Literal["plain", "int8"] = "plain"
    """How the language model's weights are kept; int8 rounds them."""
    cache_dtype: Literal["float32", "bfloat16"] | None = None
    """Of keys and values [as the model's]."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """To what the rotary frequencies were rounded in training [found from the run's configuration]."""
    extractor: AssetName = "inception"
    """FID's Inception: the name of an asset or the path of its file."""
    resize: Literal["pil-bicubic", "tf1-bilinear"] = "pil-bicubic"
    """How images come to its size: as clean-fid or as torch-fidelity. They are different metrics."""
    clip: AssetName | None = None
    """CLIP, for `clip_score` and `cmmd`: the name of an asset or the path of its folder."""
    dinov2: AssetName | None = None
    """DINOv2, for `fd_dinov2`: the name of an asset or the path of its folder."""
    dinov2_resize: Literal["pil-bicubic-square", "pil-bicubic-crop"] = "pil-bicubic-square"
    """How images come to its size: as FD-DINOv2's authors do it, or as its own."""
    classifier: DataPath | None = None
    """A classifier of the images; measures how often it reads the caption's label."""
    until: Until | None = None
    """Stop when a metric's standard error is small enough, as `{metric: kid, stderr: 0.0005}` [after all images]."""
    keep: int = Field(default=64, ge=0, le=10_000)
    """How many images are kept, as files and in the grid."""
    shard_size: ShardSize = 256
    """Images in a shard; moves no number."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, content: Any) -> Any:
        """What the recipe fixes and the suite leaves out."""
        if isinstance(content, Mapping) and isinstance(content.get("protocol"), str):
            try:
                return {**find_protocol(content["protocol"]).fields, **content}
            except UnknownName as error:
                raise ValueError(error.message) from None
        return content

    @field_validator("top_p")
    @classmethod
    def _all_is_none(cls, top_p: float | None) -> float | None:
        return None if top_p == 1 else top_p

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...] | None) -> tuple[str, ...] | None:
        known = catalog.names("metrics")
        for name in metrics or ():
            if name not in known:
                raise ValueError(UnknownName.among("metric", name, known).message)
        if metrics is not None and len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice; name each once")
        return metrics

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> TextToImage:
        if self.captions is None and self.samples is None:
            raise ValueError("give `captions`, or `samples` for images without text")
        if self.reference_of == "captions" and (self.captions is None or "/" not in (self.reference or "")):
            raise ValueError("`reference_of: captions` needs `captions`, and a folder or file of images as `reference`")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"guidance_scale is {list(self.scales)}, with a scale twice; name each once")
        try:
            for scale in self.scales:
                self.params(scale)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        self._check_protocol()
        self._check_until()
        for name in (self.name, (info.context or {}).get("suite", "")):
            if FID_30K.search(name) and self.samples != PROMPTS:
                found = "all captions" if self.samples is None else f"{self.samples:,}"
                raise ValueError(
                    f"{name!r} promises {PROMPTS:,} images, `samples` is {found}; rename it, or sample more"
                )
        return self

    def _check_protocol(self) -> None:
        if self.protocol is None:
            return
        for field, fixed in find_protocol(self.protocol).fields.items():
            found = getattr(self, field)
            smaller = field == "samples" and found is not None and found < fixed
            if found != fixed and not smaller:
                raise ValueError(
                    f"{field} is {found}, the protocol {self.protocol} has {fixed}; leave one of the two out"
                )

    def _check_until(self) -> None:
        if self.until is not None and len(self.scales) > 1:
            raise ValueError("`until` needs one guidance scale; give each scale a task of its own")
        measured = [*(catalog.names("metrics") if self.metrics is None else self.metrics), "agreement"]
        if self.until is not None and self.until.metric not in measured:
            raise ValueError(f"until: {UnknownName.among('metric', self.until.metric, measured).message}")

    @property
    def scales(self) -> tuple[float, ...]:
        return self.guidance_scale if isinstance(self.guidance_scale, tuple) else (self.guidance_scale,)

    def params(self, guidance_scale: float) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, guidance_scale, self.seed)

    def fit(self, side: int) -> Fit:
        """How sampled images of `side` pixels come to the size at which they are compared."""
        return Fit(self.reference_size or side, "none", self.filter)

    def plan(self, context: Context) -> Plan:
        """Cut reference images, where their features are not known, and prompts into shards.

        Raises:
            InvalidData: a caption that the layout refuses, a label that is missing, too few images; a metric that is
                asked for and cannot be measured.
            AssetMissing: the decoder or an extractor was not pulled.
        """
        from evalsvc.tasks.image_codes import require_codebook
        from evalsvc.tasks.image_reference import identify_reference, reference_shards

        layout, decoder = context.layout(), self._decoder(context)
        require_codebook(layout, decoder, self.decoder)
        prompts = self._prompts(context, layout, decoder)
        if self.classifier is not None:
            _require_labels(self.captions, prompts)
        count = len(prompts.records)
        reference = self._reference(self._size(decoder), prompts)
        metrics, lacking, expected = self._choose(context, reference, count)
        features = self._features(context, {metric.features for metric in metrics})
        identities = {key: features.identity(key) for key in features.keys}
        real = {metric.features: identities[metric.features] for metric in metrics if metric.needs != "nothing"}
        identity = identify_reference(context, reference) if reference is not None and real else None
        before: list[dict[str, Any]] = []
        if reference is not None and identity is not None:
            before = list(reference_shards(context, reference, identity, real, self.shard_size))
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
            for scale in self.scales
            for start, stop in cut(count, self.shard_size)
        ]
        # Of several scales the first ones would be done before the others begin.
        several = len(self.scales) > 1
        looks = () if several else schedule([shard["units"] for shard in (*before, *shards)], len(before))
        return Plan([shard | common for shard in (*before, *shards)], "images", looks, self.until)

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        """Features of the shard's images; of sampled ones also digests of the codes, and the first as files.

        Raises:
            DataChanged: captions, reference images or an extractor are not what was planned.
            NonFinite: the logits are not; names the checkpoint and the prompt.
        """
        from evalsvc.tasks import image_reference
        from evalsvc.tasks.text_to_image import pipeline as image_pipeline

        layout, decoder = context.layout(), self._decoder(context)
        prompts = self._prompts(context, layout, decoder)
        features = self._features(context, shard.get("keys", shard["features"]))
        features.require_planned(shard["features"])
        if shard["part"] == "reference":
            reference = self._reference(self._size(decoder), prompts)
            assert reference is not None, "the plan had one"
            images = slice(shard["start"], shard["stop"])
            return image_reference.reference_features(context, reference, features, images, shard["images"])
        if prompts.digest != shard["digest"]:
            raise DataChanged(f"{prompts.path} has changed since this evaluation was planned; evaluate again")
        part = prompts.records[shard["start"] : shard["stop"]]
        output = image_pipeline.sample_images(context, self, layout, decoder, features, part, shard)
        return {**output, "cut": sum(record.cut > 0 for record in part)}

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        """The metrics per guidance scale, agreement with the captions' labels, the grid and the kept images."""
        from evalsvc.tasks.text_to_image.artifacts import keep_images

        pairs = list(zip(shards, outputs, strict=True))
        real = [output for shard, output in pairs if shard["part"] == "reference"]
        reference = self._statistics(context, shards[0], real)
        metrics: list[MetricValue] = []
        items: list[dict[str, Any]] = []
        artifacts: list[Artifact] = []
        details: dict[str, Any] = {}
        for scale in self.scales:
            parts = [output for shard, output in pairs if shard["part"] == "sample" and shard["scale"] == scale]
            if parts:
                drawn = [{"index": index, **item} for index, item in enumerate(_items(parts))]
                metrics += self._measure(scale, parts, drawn, shards[0], reference, details)
                items += [item | {"guidance_scale": scale} for item in drawn]
                artifacts += keep_images(parts, self.params(scale), several=len(self.scales) > 1)
        notes = {
            "images": len(items),
            "captions_cut": sum(output["cut"] for shard, output in pairs if shard["part"] == "sample"),
            "left_out": dict(shards[0]["left_out"]),
            "details": details,
        }
        called = self._called(shards[0], metrics)
        warnings = list(self._suspicions(shards[0], metrics, notes, called))
        return TaskResult(metrics, items, notes | called, artifacts, warnings)

    def _suspicions(
        self,
        planned: Mapping[str, Any],
        metrics: Sequence[MetricValue],
        notes: Mapping[str, Any],
        called: Mapping[str, Any],
    ) -> Iterator[TaskWarning]:
        reasons = {name: planned["left_out"][name] for name in planned.get("expected", ())}
        measured = {metric.name.partition("/")[2] for metric in metrics}
        count = notes["images"] // len(self.scales)
        too_few = f"the task stopped after {count:,} images, which are too few for it"
        reasons |= {name: too_few for name in planned["metrics"] if name not in measured}
        yield from left_out(self.name, reasons, "sample more images, or name in `metrics` what you want")
        if "fid_deviates" in called:
            deviations = ", ".join(called["fid_deviates"])
            yield TaskWarning(
                "not_the_recipe",
                f"{self.name}/fid",
                f"it is not the FID-30K of {self.protocol}: {deviations}; do not compare it with published ones",
            )
        remedy = "give shorter captions, or a layout with a greater `length`"
        yield from cut_inputs(self.name, "captions", notes["captions_cut"], notes["images"], remedy)

    def _decoder(self, context: Context) -> ImageDecoder:
        return context.decoder(self.decoder, self.decoder_config, self.decoder_ema, self.decoder_dtype)

    def _size(self, decoder: ImageDecoder) -> int:
        return self.size or decoder.resolution

    def _prompts(self, context: Context, layout: VocabularyLayout, decoder: ImageDecoder) -> Prompts:
        height, width = decoder.grid(self._size(decoder), self._size(decoder))
        captions = None if self.captions is None else context.dataset(self.captions)
        tokenizer = layout.text.tokenizer if self.tokenizer is None else context.dataset(self.tokenizer)
        spec = PromptSpec(
            captions,
            self.samples,
            self.select,
            self.select_seed,
            tokenizer,
            height * width,
            layout,
            layout.digest,
            context.readable,
        )
        return read_prompts(spec)

    def _reference(self, side: int, prompts: Prompts) -> ReferenceSpec | None:
        from evalsvc.tasks.image_reference import ReferenceSpec

        if self.reference is None:
            return None
        fit = Fit(self.reference_size or side, self.reference_crop, self.reference_filter)
        images = prompts.images() if self.reference_of == "captions" else None
        return ReferenceSpec(self.reference, fit, images)

    def _features(self, context: Context, keys: Collection[str]) -> FeaturePass:
        from evalsvc.tasks.image_features import FeaturePass

        return FeaturePass(context, self._extractors(), keys)

    def _extractors(self) -> list[ExtractorSpec]:
        from evalsvc.tasks.image_features import ExtractorSpec

        named = (
            ("inception", self.extractor, self.resize),
            ("clip", self.clip, "pil-bicubic-crop"),
            ("dinov2", self.dinov2, self.dinov2_resize),
        )
        return [ExtractorSpec(kind, name, resize) for kind, name, resize in named if name is not None]

    def _choose(
        self, context: Context, reference: ReferenceSpec | None, count: int
    ) -> tuple[list[ImageMetric], dict[str, str], list[str]]:
        """The metrics that are measured, why the others are not, and which of those were to be expected."""
        from evalsvc.tasks.image_measures import Given, load_metrics

        given = Given(self._extractors(), reference, self.captions is not None, count)
        found = {metric: given.lacks(context, metric) for metric in load_metrics(self.metrics)}
        lacking = {metric.name: reason for metric, reason in found.items() if reason is not None}
        if self.metrics is not None and lacking:
            name, reason = next(iter(lacking.items()))
            raise InvalidData(f"{name} cannot be measured: {reason}; give it, or leave {name} out of `metrics`")
        expected = [metric.name for metric in found if metric.name in lacking and given.means(metric)]
        return [metric for metric, reason in found.items() if reason is None], lacking, expected

    def _statistics(
        self, context: Context, planned: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]
    ) -> dict[str, TapStatistics]:
        from evalsvc.tasks.image_reference import read_reference

        if self.reference is None or planned["reference"] is None:
            return {}

        def compute(keys: Sequence[str]) -> Mapping[str, Any]:
            shard = {**planned, "part": "reference", "start": 0, "stop": None, "keys": keys}
            return self.run(context, {**shard, "images": planned["reference"]["images"]})

        features = {key: planned["features"][key] for key in planned["real"]}
        return read_reference(context, self.reference, planned["reference"], features, parts, compute)

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
        from evalsvc.tasks.image_features import join_features
        from evalsvc.tasks.image_measures import measure, rounded

        images = self._images_protocol(scale, parts[0])
        # Items of several scales share their index, so what is compared has the scale in its name.
        suffix = "" if len(self.scales) == 1 else f"@{scale:g}"
        for metric, estimate in measure(planned["metrics"], join_features(parts), reference, self.seed):
            key, shares = f"{metric.name}{suffix}", rounded(estimate)
            for item, share in zip(items, shares or (), strict=False):
                item[key] = share
            if estimate.details:
                details[key] = estimate.details
            yield MetricValue(
                f"{self.name}/{metric.name}",
                estimate.value,
                estimate.stderr,
                estimate.n,
                metric.unit,
                metric.direction,
                Protocol(images | self._metric_protocol(metric, estimate.n, parts[0], planned)),
                items=() if shares is None else (key,),
                groups=estimate.groups,
            )
        if self.classifier is not None:
            yield self._agreement(items, f"agrees{suffix}", parts[0], images)

    def _agreement(
        self, items: Sequence[dict[str, Any]], key: str, part: Mapping[str, Any], images: Mapping[str, Any]
    ) -> MetricValue:
        for item in items:
            item[key] = item.pop("agrees")
        n, hits = len(items), sum(item[key] for item in items)
        protocol = Protocol({**images, "classifier": part["classifier"], **self._stopping()})
        baseline = 1 / part["classes"]
        return MetricValue(
            f"{self.name}/agreement",
            hits / n,
            share_stderr(hits, n),
            n,
            "fraction",
            "higher",
            protocol,
            baseline,
            (key,),
        )

    def _images_protocol(self, scale: float, part: Mapping[str, Any]) -> dict[str, Any]:
        """What moves the images."""
        return {
            "task": self.kind,
            "dtype": self.dtype,
            "rotary_inv_freq_dtype": self.rotary_inv_freq_dtype,
            "sampling": self.params(scale).to_json(),
            "select": self.select if self.select == "first" else {"rule": self.select, "seed": self.select_seed},
            **({} if self.weights == "plain" else {"weights": self.weights}),
            **({} if self.cache_dtype in (None, self.dtype) else {"cache_dtype": self.cache_dtype}),
            **({} if self.decoder_dtype == "float32" else {"decoder_dtype": self.decoder_dtype}),
            **part["protocol"],
        }

    def _metric_protocol(
        self, metric: ImageMetric, n: int, part: Mapping[str, Any], planned: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What else moves the metric."""
        compared = self.fit(part["protocol"]["size"])
        return {
            "estimator": metric.estimator,
            **planned["features"][metric.features],
            **({} if compared.size == part["protocol"]["size"] else {"compared": compared.to_json()}),
            **({"n": n} if metric.biased else self._stopping()),
            **({} if metric.needs == "nothing" else {"reference": dict(planned["reference"])}),
        }

    def _stopping(self) -> dict[str, Any]:
        """What moves the number of images where that moves no expectation."""
        return {} if self.until is None else {"until": self.until.model_dump()}

    def _called(self, planned: Mapping[str, Any], metrics: Sequence[MetricValue]) -> dict[str, Any]:
        """By which of the field's names the FID goes, and where it goes by none, why."""
        fid = next((metric for metric in metrics if metric.name == f"{self.name}/fid"), None)
        if self.protocol is None:
            return {}
        if fid is None:
            return {"protocol": self.protocol}
        deviations = list(
            find_protocol(self.protocol).deviations(
                planned["captions"],
                prompts=fid.n,
                reference=planned["reference"].get("n"),
                extractor=fid.protocol.content["extractor"],
            )
        )
        label = {"fid_deviates": deviations} if deviations else {"fid_is": f"FID-30K, {self.protocol}"}
        return {"protocol": self.protocol, **label}


def _items(parts: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for part in parts:
        yield from part["items"]


def _require_labels(path: str | None, prompts: Prompts) -> None:
    for index, record in enumerate(prompts.records):
        if record.label is None:
            raise InvalidData(f"{path}: caption {index + 1} has no label, which `classifier` needs; leave it out")
