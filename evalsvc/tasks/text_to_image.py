"""From captions to images and their distance from real ones: sample, decode, extract features, FID.

Work is cut by prompts. A shard sends back the features of its images, not the images: only the first few are kept, as
files to look at. Features of the reference images are shards too, the first time; later they come from a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from evalsvc.artifacts import Artifact
from evalsvc.captions import Caption, CaptionData, read_captions
from evalsvc.errors import DataChanged, InvalidData, InvalidRequest
from evalsvc.layout import VocabularyLayout
from evalsvc.protocol import MetricValue, Protocol, canonical_json
from evalsvc.sampling_params import SamplingParams
from evalsvc.tasks.task import AssetName, Context, DataPath, Plan, Task, TaskResult

if TYPE_CHECKING:
    from evalsvc.metrics.frechet import Gaussian
    from evalsvc.tasks.image_pipeline import Reference, ReferenceSpec

ESTIMATOR = "frechet/1"
"""In the protocol: how features become a distance. Another version is another series."""

JACKKNIFE_GROUPS = 20
"""Groups of prompts, contiguous and of equal size, that are left out one at a time for the standard error."""

FULL_TAP = 2048
"""Features of the FID that the field reports."""

SMOKE_TAP = 64
"""Features of the distance that a few hundred images can bear."""


class TextToImage(Task):
    """Images sampled from captions, and how far they are from real images."""

    kind: ClassVar[str] = "text_to_image"

    captions: DataPath | None = None
    """Prompts: COCO annotations, CSV or JSONL; None: images without text, `samples` of them."""
    samples: int | None = Field(default=None, ge=1)
    """How many: the first so many captions [all of them]."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for the captions [the layout's]."""
    decoder: AssetName
    """The image tokenizer: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Its configuration: a registered name such as `movqgan-67M`, or the path of a YAML file [what lies beside the
    checkpoint]."""
    decoder_ema: bool = False
    """Use its averaged weights."""
    reference: AssetName
    """Real images: a folder or a packed file; or the name of statistics from `evalsvc reference import`."""
    size: int | None = Field(default=None, ge=8)
    """Side of the images in pixels [the decoder's]."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest code."""
    top_k: int | None = None
    """Draw from this many likeliest codes [all]."""
    top_p: float | None = None
    """Draw from the fewest likeliest codes with this probability [all]."""
    guidance_scale: float | tuple[float, ...] = 1.0
    """Classifier-free guidance; several values give one series each."""
    seed: int = 0
    """Of the noise."""
    batch: int = Field(default=32, ge=1)
    """Images sampled together; moves tokens by rounding at most."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the language model; decoder and features are float32."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """To what the rotary frequencies were rounded in training [found from the run's configuration]."""
    extractor: AssetName = "inception"
    """The feature extractor: the name of an asset or the path of its file."""
    resize: Literal["pil-bicubic", "tf1-bilinear"] = "pil-bicubic"
    """How images come to the extractor's size: as clean-fid or as torch-fidelity. They are different metrics."""
    classifier: DataPath | None = None
    """A classifier of the images; measures how often it reads the caption's label."""
    keep: int = Field(default=64, ge=0)
    """How many images are kept, as files and in the grid."""
    shard_size: int = Field(default=256, ge=1)
    """Images in a shard; moves no number."""

    @model_validator(mode="after")
    def _check(self) -> TextToImage:
        if self.captions is None and self.samples is None:
            raise ValueError("give `captions`, or `samples` for images without text")
        try:
            for scale in self.scales:
                self.params(scale)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        return self

    @property
    def scales(self) -> tuple[float, ...]:
        return self.guidance_scale if isinstance(self.guidance_scale, tuple) else (self.guidance_scale,)

    def params(self, guidance_scale: float) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, guidance_scale, self.seed)

    def plan(self, context: Context) -> Plan:
        """Cut prompts and, where their features are not known, reference images into shards.

        Raises:
            InvalidData: a caption that the layout refuses, a label that is missing, too few images.
            AssetMissing: the decoder or the extractor was not pulled.
        """
        from evalsvc.tasks.image_codes import require_codebook
        from evalsvc.tasks.image_pipeline import reference_shards

        layout = context.layout()
        decoder = context.decoder(self.decoder, self.decoder_config, self.decoder_ema)
        require_codebook(layout, decoder, self.decoder)
        prompts = self._prompts(context, layout, self._codes(decoder))
        if self.classifier is not None:
            _require_labels(self.captions, prompts)
        count = len(prompts.records)
        taps = (SMOKE_TAP, FULL_TAP) if count > FULL_TAP else (SMOKE_TAP,)
        common = {"digest": prompts.digest, "taps": taps}
        shards: list[dict[str, Any]] = []
        for scale in self.scales:
            for start, stop in _ranges(count, self.shard_size):
                shards.append({"part": "sample", "scale": scale, "start": start, "stop": stop, "units": stop - start})
        shards += reference_shards(context, self._reference(self._size(decoder), taps), self.shard_size)
        return Plan([shard | common for shard in shards], "images")

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        """Features of the shard's images; of sampled ones also digests of the codes, and the first as files.

        Raises:
            DataChanged: the captions or the reference images are not what was planned.
            NonFinite: the logits are not; names the checkpoint and the prompt.
        """
        from evalsvc.tasks import image_pipeline

        decoder = context.decoder(self.decoder, self.decoder_config, self.decoder_ema)
        if shard["part"] == "reference":
            spec = self._reference(self._size(decoder), shard["taps"])
            return image_pipeline.reference_features(context, spec, shard["start"], shard["stop"], shard["images"])
        layout = context.layout()
        prompts = self._prompts(context, layout, self._codes(decoder))
        if prompts.digest != shard["digest"]:
            raise DataChanged(f"{prompts.path} has changed since this evaluation was planned; evaluate again")
        part = prompts.records[shard["start"] : shard["stop"]]
        output = image_pipeline.sample_images(context, self, layout, decoder, part, shard)
        return {**output, "cut": sum(record.cut > 0 for record in part)}

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        """FID per guidance scale, agreement with the captions' labels, the grid and the kept images."""
        from evalsvc.tasks import image_pipeline

        pairs = list(zip(shards, outputs, strict=True))
        known = [output for shard, output in pairs if shard["part"] == "reference"]
        sampled = [pair for pair in pairs if pair[0]["part"] == "sample"]
        spec = self._reference(sampled[0][1]["protocol"]["size"], shards[0]["taps"])
        reference = image_pipeline.reference_statistics(context, spec, known)
        metrics: list[MetricValue] = []
        items: list[dict[str, Any]] = []
        artifacts: list[Artifact] = []
        for scale, group in groupby(sampled, key=lambda pair: pair[0]["scale"]):
            parts = [output for _, output in group]
            protocol = Protocol(self._protocol(scale, parts[0], reference))
            metrics += self._metrics(parts, reference.moments, protocol)
            drawn = [item for part in parts for item in part["items"]]
            items += [{"index": index} | item | {"guidance_scale": scale} for index, item in enumerate(drawn)]
            artifacts += image_pipeline.keep_images(parts, self.params(scale), several=len(self.scales) > 1)
        notes = {
            "images": len(items),
            "captions_cut": sum(output["cut"] for _, output in sampled),
            "distances": sorted({metric.name for metric in metrics if metric.unit == "distance"}),
        }
        return TaskResult(metrics, items, notes, artifacts)

    def _reference(self, size: int, taps: Sequence[int]) -> ReferenceSpec:
        from evalsvc.tasks.image_pipeline import ReferenceSpec

        return ReferenceSpec(self.reference, size, self.extractor, self.resize, tuple(taps))

    def _codes(self, decoder: Any) -> int:
        height, width = decoder.grid(self._size(decoder), self._size(decoder))
        return int(height * width)

    def _size(self, decoder: Any) -> int:
        return self.size or int(decoder.resolution)

    def _prompts(self, context: Context, layout: VocabularyLayout, codes: int) -> Prompts:
        if self.captions is None:
            return _unconditional(layout, codes, self.samples or 0)
        data = read_captions(context.dataset(self.captions))
        if self.samples is not None and self.samples > len(data.captions):
            raise InvalidData(
                f"{data.path} has {len(data.captions):,} captions, {self.samples:,} images are asked for; "
                "lower `samples` or give more captions"
            )
        tokenizer = layout.text.tokenizer if self.tokenizer is None else context.dataset(self.tokenizer)
        return _prompts(layout, codes, data, data.captions[: self.samples], tokenizer)

    def _protocol(self, scale: float, part: Mapping[str, Any], reference: Reference) -> dict[str, Any]:
        return {
            "task": self.kind,
            "estimator": ESTIMATOR,
            "dtype": self.dtype,
            "rotary_inv_freq_dtype": self.rotary_inv_freq_dtype,
            "sampling": self.params(scale).to_json(),
            "resize": self.resize,
            "reference": dict(reference.identity),
            **part["protocol"],
        }

    def _metrics(
        self, parts: Sequence[Mapping[str, Any]], reference: Mapping[int, Gaussian], protocol: Protocol
    ) -> Iterator[MetricValue]:
        from evalsvc.tasks.image_pipeline import frechet_metrics, join_features

        features = join_features(parts)
        for tap, name in ((FULL_TAP, "fid"), (SMOKE_TAP, "fid64")):
            # Of fewer images than features the covariance has no full rank: the small tap is the honest figure.
            if tap in features and tap in reference and len(features[tap]) > tap:
                value, stderr, n = frechet_metrics(features[tap], reference[tap], JACKKNIFE_GROUPS)
                yield MetricValue(f"{self.name}/{name}", value, stderr, n, "distance", "lower", protocol)
        if self.classifier is not None:
            agreed = [item["agrees"] for part in parts for item in part["items"]]
            n = len(agreed)
            share = sum(agreed) / n
            stderr = (share * (1 - share) / (n - 1)) ** 0.5 if n > 1 else None
            baseline = 1 / parts[0]["classes"]
            # Under several guidance scales the items of one prompt are told apart by more than their index.
            items = ("agrees",) if len(self.scales) == 1 else ()
            name = f"{self.name}/agreement"
            yield MetricValue(name, share, stderr, n, "fraction", "higher", protocol, baseline, items)


@dataclass(frozen=True)
class PromptRecord:
    """One image to sample."""

    id: str
    text: str
    ids: tuple[int, ...]
    """What precedes the first image token."""
    cut: int
    """Text ids that did not fit."""
    label: int | None


@dataclass(frozen=True)
class Prompts:
    path: str
    records: tuple[PromptRecord, ...]

    @cached_property
    def digest(self) -> str:
        """Of what the model is given, so of tokenizer, template and cuts too, and of the ids of the noise."""
        total = hashlib.sha256()
        for record in self.records:
            total.update(canonical_json([record.id, record.ids]).encode())
        return total.hexdigest()


def _prompts(
    layout: VocabularyLayout, codes: int, data: CaptionData, captions: Sequence[Caption], tokenizer: str | None
) -> Prompts:
    from evalsvc.data import text_encoder

    encode = text_encoder(data.path, tokenizer)
    records = []
    for caption in captions:
        try:
            prompt = layout.prompt(encode(caption.text), codes)
        except InvalidData as error:
            raise InvalidData(f"{data.path}, {caption.where} {error.message}") from None
        records.append(PromptRecord(caption.id, caption.text, tuple(prompt.ids), prompt.cut, caption.label))
    return Prompts(data.path, tuple(records))


def _unconditional(layout: VocabularyLayout, codes: int, samples: int) -> Prompts:
    ids = tuple(layout.prompt(None, codes).ids)
    records = tuple(PromptRecord(str(index), "", ids, 0, None) for index in range(samples))
    return Prompts("unconditional", records)


def _require_labels(path: str | None, prompts: Prompts) -> None:
    for index, record in enumerate(prompts.records):
        if record.label is None:
            raise InvalidData(f"{path}: caption {index + 1} has no label, which `classifier` needs; leave it out")


def _ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    return pairwise([*range(0, count, size), count])
