"""Resampling images of a text_to_image task, and comparing their codes with the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ValidationError

from evalsvc.tasks.text_to_image.shards import SampleShard
from evalsvc.tasks.text_to_image.spec import TextToImage
from evalsvc.tasks.text_to_image.work import TextToImageWork
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.recorded import RecordedTask
from evalsvc.worker.context import ShardContext


@dataclass(frozen=True)
class Samples:
    """The first images of a task at one guidance scale."""

    codes: Sequence[str]
    """Digest of each image's codes."""
    files: Sequence[bytes]
    """Images as PNG, in the decoder's size."""
    total: int
    """Number of images that the whole task samples at this scale."""
    side: int
    """Height and width of an image."""
    protocol: Mapping[str, object]
    """Digests of prompts, layout and decoder."""
    machine: Mapping[str, str]
    """Properties that may change codes by rounding: card, torch, threads, batch."""


@dataclass(frozen=True)
class RecordedCodes:
    """The recorded codes of one guidance scale."""

    codes: Sequence[str]
    protocol: Mapping[str, object]
    machine: Mapping[str, str]

    @classmethod
    def of(cls, task: RecordedTask, scale: float) -> RecordedCodes | None:
        """Read the results per item; return None if no images are recorded."""
        items = [item for item in task.items if item.get("guidance_scale") == scale]
        protocols = [metric.protocol for metric in task.metrics if scale_of(metric.protocol) == scale]
        if not items:
            return None
        codes = [str(item.get("codes")) for item in items]
        return cls(codes, protocols[0] if protocols else {}, _machine(task.provenance))


def sample_again(context: ShardContext, spec: TextToImage, scale: float, n: int) -> Samples:
    """Sample the first n images of a task, or all if there are fewer, by the task's own code.

    Raises the errors of the task: InvalidData, AssetMissing, NonFinite, OutOfMemory.
    """
    # Without metrics, no features are extracted; they are extracted from the files later.
    bare = spec.model_copy(update={"metrics": (), "classifier": None, "until": None, "keep": n})
    work = TextToImageWork(bare)
    shards = [shard for shard in work.plan(context).shards if shard.part == "sample" and shard.scale == scale]
    outputs = [
        output for shard in shards if shard.start < n and (output := work.run(context, _cut(shard, n))).part == "sample"
    ]
    protocol = {"prompts": shards[0].plan.prompts, **outputs[0].protocol}
    provenance = {**context.to_provenance(), "versions": {"torch": str(torch.__version__)}}
    return Samples(
        [image.codes for output in outputs for image in output.images],
        [kept.png for output in outputs for kept in output.kept],
        sum(shard.units for shard in shards),
        outputs[0].side,
        protocol,
        _machine({"shards": [provenance]}),
    )


def _cut(shard: SampleShard, n: int) -> SampleShard:
    """Return the shard without prompts from the n-th on."""
    stop = min(shard.stop, n)
    return replace(shard, stop=stop, units=stop - shard.start)


def compare_codes(samples: Samples, recorded: RecordedCodes, of: str) -> Finding:
    """Compare the codes of resampled images with the recorded codes.

    Codes that differ are an error only if nothing explains the difference: another card, release of torch, number of
    threads or batch rounds differently, and other prompts or decoder weights give other images.
    """
    pairs = list(zip(samples.codes, recorded.codes, strict=False))
    equal = sum(again == before for again, before in pairs)
    quantity, program = f"codes of {of}", "recorded digests"
    reasons = _changed(recorded.protocol, samples.protocol) + _changed(recorded.machine, samples.machine)
    if equal < len(pairs) and reasons:
        share = f"{len(pairs) - equal:,} of {len(pairs):,} images have other codes than recorded"
        return Untried(quantity, program, f"{share}: {'; '.join(reasons)}")
    note = "images with the recorded codes, of those sampled again"
    return Agreement.of_numbers(quantity, program, equal, len(pairs), 0, note)


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [
        f"{name} was {before[name]}, is {value} here"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


class _Batch(BaseModel):
    batch: int


class _Sampling(BaseModel):
    batches: list[_Batch] = []
    path: str | None = None


class _Shard(BaseModel):
    """The fields read from the provenance of a shard that sampled."""

    device: str | None = None
    device_name: str | None = None
    threads: int | None = None
    versions: dict[str, str] = {}
    sampling: _Sampling


def _machine(provenance: Mapping[str, object] | None) -> dict[str, str]:
    """Return the properties that may change codes by rounding, from a task's provenance; empty if it has none."""
    shards = (provenance or {}).get("shards")
    for entry in shards if isinstance(shards, (list, tuple)) else ():
        try:
            shard = _Shard.model_validate(entry)
        except ValidationError:  # a shard that did not sample, or another version
            continue
        properties = {
            "device": shard.device_name or shard.device,
            "torch": shard.versions.get("torch"),
            "threads": shard.threads,
            "batch": ", ".join(dict.fromkeys(str(shape.batch) for shape in shard.sampling.batches)),
            "sampling path": shard.sampling.path,
        }
        return {name: str(value) for name, value in properties.items() if value}
    return {}


def scale_of(protocol: Mapping[str, object]) -> object:
    """Return the guidance scale in a protocol; None if there is none."""
    sampling = protocol.get("sampling")
    return sampling.get("guidance_scale") if isinstance(sampling, Mapping) else None
