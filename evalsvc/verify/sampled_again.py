"""Images of a text_to_image task that are sampled again, and whether they have the recorded codes."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evalsvc.tasks.text_to_image.spec import TextToImage
from evalsvc.tasks.text_to_image.work import TextToImageWork
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.recorded import RecordedTask
from evalsvc.worker.context import ShardContext


@dataclass(frozen=True)
class Samples:
    """The first images of a task at one guidance scale."""

    codes: Sequence[str]
    """A digest of each image's codes."""
    files: Sequence[bytes]
    """The images as PNG, in the decoder's size."""
    total: int
    """Images that the whole task samples at this scale."""
    side: int
    """Height and width of an image."""
    protocol: Mapping[str, Any]
    """Digests of prompts, layout and decoder."""
    machine: Mapping[str, str]
    """What may move codes by rounding: card, torch, threads, batch."""


@dataclass(frozen=True)
class RecordedCodes:
    """What is recorded of the images of one guidance scale."""

    codes: Sequence[str]
    protocol: Mapping[str, Any]
    machine: Mapping[str, str]

    @classmethod
    def of(cls, task: RecordedTask, scale: float) -> RecordedCodes | None:
        """Read the results per item; None where no images are recorded."""
        items = [item for item in task.items if item.get("guidance_scale") == scale]
        protocols = [metric.protocol for metric in task.metrics if scale_of(metric.protocol) == scale]
        if not items or task.provenance is None:
            return None
        shards = [shard for shard in task.provenance.get("shards", ()) if "sampling" in shard]
        machine = _machine(shards[0]) if shards else {}
        return cls([str(item.get("codes")) for item in items], protocols[0] if protocols else {}, machine)


def sample_again(context: ShardContext, spec: TextToImage, scale: float, n: int) -> Samples:
    """Sample the first n images of a task, or as many as it has, by the task's own code.

    Raises what the task raises: InvalidData, AssetMissing, NonFinite, OutOfMemory.
    """
    # Without metrics no features are extracted: these are taken from the files.
    bare = spec.model_copy(update={"metrics": (), "classifier": None, "until": None, "keep": n})
    work = TextToImageWork(bare)
    shards = [shard for shard in work.plan(context).shards if shard["part"] == "sample" and shard["scale"] == scale]
    outputs = []
    for shard in shards:
        if shard["start"] < n:
            stop = min(shard["stop"], n)
            outputs.append(work.run(context, {**shard, "stop": stop, "units": stop - shard["start"]}))
    provenance = {**context.to_provenance(), "versions": {"torch": str(torch.__version__)}, "host": platform.node()}
    return Samples(
        [item["codes"] for output in outputs for item in output["items"]],
        [kept["png"] for output in outputs for kept in output["kept"]],
        sum(shard["units"] for shard in shards),
        outputs[0]["protocol"]["size"],
        outputs[0]["protocol"],
        _machine(provenance),
    )


def compare_codes(samples: Samples, recorded: RecordedCodes, of: str) -> Finding:
    """Compare the codes of images that were sampled again with the recorded ones.

    Codes that differ are wrong only where nothing explains them: another card, release of torch, number of threads or
    batch rounds otherwise, and other prompts or weights of the decoder give other images.
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


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {before[name]}, is {value} here"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _machine(shard: Mapping[str, Any]) -> dict[str, str]:
    """Return what moves codes by rounding, from the provenance of a shard that sampled."""
    sampling, versions = shard.get("sampling") or {}, shard.get("versions") or {}
    batches = [str(shape.get("batch")) for shape in sampling.get("batches") or ()]
    found = {
        "device": shard.get("device_name") or shard.get("device"),
        "torch": versions.get("torch"),
        "threads": shard.get("threads"),
        "batch": ", ".join(dict.fromkeys(batches)),
        "sampling path": sampling.get("path"),
    }
    return {name: str(value) for name, value in found.items() if value}


def scale_of(protocol: Mapping[str, Any]) -> Any:
    """Return the guidance scale in a protocol; None where there is none."""
    sampling = protocol.get("sampling")
    return sampling.get("guidance_scale") if isinstance(sampling, Mapping) else None
