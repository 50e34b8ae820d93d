"""Regenerating recorded images, writing them as PNG files, and measuring them by evalsvc and by other programs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.data.images import ImageSource, fit_pixels
from evalsvc.decoders import to_uint8
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.features import FeatureExtractor
from evalsvc.features.inception_weights import read_inception, trunk
from evalsvc.spec.images import Fit
from evalsvc.spec.suite import build_task
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.tasks.image_reference import ReferenceSpec
from evalsvc.tasks.reconstruction.spec import Reconstruction
from evalsvc.tasks.text_to_image.spec import TextToImage
from evalsvc.tasks.text_to_image.work import TextToImageWork
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.image_folders import image_folders
from evalsvc.verify.image_metrics import OwnMetrics, compare_programs
from evalsvc.verify.image_programs import PROGRAMS, TAPS, Measured
from evalsvc.verify.recorded import RecordedTask, VerifyRequest, opened_context
from evalsvc.verify.sampled_again import RecordedCodes, compare_codes, sample_again, scale_of
from evalsvc.worker.context import ShardContext

MAX_IMAGES = 10_000
"""Maximum number of sampled images, whose PNG files are in memory until the last image is sampled."""

READ_AT_ONCE = 32

INCEPTION = "inception"
"""Asset of evalsvc's own network, for tasks that use another program."""


OTHERS = tuple(program.package for program in PROGRAMS)

DISTANCES = ("fid64", "fid")


@dataclass(frozen=True)
class ImageSets:
    """Two sets of images with their recorded metrics."""

    of: str
    """Name of the images in findings: `256 images of coco`."""
    sampled: Iterable[Tensor]  # uint8 [3, size, size]
    real: Iterable[Tensor]  # uint8 [3, size, size]
    size: int
    recorded: Mapping[str, float] = field(default_factory=dict)
    """Recorded values by names in TAPS."""
    incomparable: str = ""
    """Reason why metrics of these images cannot be compared with the recorded values; empty if they can."""


def verify_samples(task: RecordedTask, request: VerifyRequest) -> list[Finding]:
    """Sample images of a text_to_image task again, and measure them with evalsvc and with other programs.

    Raises InvalidData if the task compares with no real images, and the errors of the task itself.
    """
    spec: TextToImage = build_task(task.spec)
    metrics, findings = choose_metrics(task, request, spec.metrics)
    with opened_context(task, request) as context:
        reference = TextToImageWork(spec).real_images(context)
        if reference is None or reference.imported:
            raise InvalidData(
                f"{spec.name} compares with no real images; set `reference` to a folder or file of images"
            )
        for scale in spec.scales if metrics else ():
            recorded = RecordedCodes.of(task, scale)
            findings_of_codes, sets = _sampled_sets(context, task, spec, scale, recorded, reference, request.n)
            findings += [*findings_of_codes, *_measure(context, spec, metrics, sets, request.output)]
    return findings


def verify_reconstructions(task: RecordedTask, request: VerifyRequest) -> list[Finding]:
    """Encode and decode images of a reconstruction task again, and measure them with evalsvc and with other programs.

    Raises InvalidData, AssetMissing and NonFinite, like the task.
    """
    spec: Reconstruction = build_task(task.spec)
    distances = ["fid64" if tap == 64 else "fid" for tap in spec.taps or (64, 2048)]
    metrics, findings = choose_metrics(task, request, distances)
    with opened_context(task, request) as context:
        source = context.images(spec.images)
        total = min(spec.samples or len(source), len(source))
        n = min(request.n, total)
        decoder = context.decoder(spec.decoder, spec.decoder_config, spec.decoder_ema)
        coder = ImageCoder(decoder, spec.size, spec.crop, spec.filter)
        sets = ImageSets(
            f"{n:,} images of {spec.name}",
            _decoded(context, coder, source, n),
            _fitted(source, range(n), coder.fit),
            coder.fit.size,
            _recorded_values(task),
            "" if n == total else _too_few(total),
        )
        return [*findings, *(_measure(context, spec, metrics, sets, request.output) if metrics else ())]


def choose_metrics(
    task: RecordedTask, request: VerifyRequest, named: Sequence[str] | None
) -> tuple[list[str], list[Finding]]:
    """Return the metrics in TAPS to compute a second time, and findings about the other requested metrics.

    The requested metrics are used; without a request, the recorded ones; without records, those of the task [all].
    """
    asked = [name.partition("/")[2] for name in task.asked(request.metrics)]
    default = list(_recorded_values(task)) if task.metrics else list(TAPS if named is None else named)
    chosen = [name for name in TAPS if name in (asked or default)]
    unsupported = [name for name in asked if name not in TAPS]
    if not asked and not chosen:
        unsupported = [metric.name.partition("/")[2] for metric in task.metrics] or default
    reason = f"no other program computes it here; available: {', '.join(TAPS)}"
    return chosen, [Untried(f"{name} of {task.spec.name}", "", reason) for name in unsupported]


def _sampled_sets(
    context: ShardContext,
    task: RecordedTask,
    spec: TextToImage,
    scale: float,
    recorded: RecordedCodes | None,
    reference: ReferenceSpec,
    n: int,
) -> tuple[list[Finding], ImageSets]:
    """Sample again. Return the comparison of codes, and the images with equally many real images.

    If all images of the task are sampled, all real images are used, like the task does.
    """
    samples = sample_again(context, spec, scale, min(n, MAX_IMAGES, len(recorded.codes) if recorded else n))
    total = len(recorded.codes) if recorded else samples.total
    of = f"{len(samples.files):,} images of {spec.name}" + (f" at guidance {scale:g}" if len(spec.scales) > 1 else "")
    findings: list[Finding] = [] if recorded is None else [compare_codes(samples, recorded, of)]
    whole = len(samples.files) == total
    incomparable = "" if whole else _too_few(total)
    if recorded is not None and list(samples.codes) != list(recorded.codes[: len(samples.codes)]):
        incomparable = "the images differ from the recorded ones, see their codes"
    source = context.images(reference.name)
    real = reference.indices(source)
    fit = spec.fit(samples.side)
    sets = ImageSets(
        of,
        (torch.from_numpy(fit_pixels(_pixels(file), fit)) for file in samples.files),
        _fitted(source, real if whole else real[: len(samples.files)], reference.fit),
        fit.size,
        _recorded_values(task, scale),
        incomparable,
    )
    return findings, sets


def _measure(
    context: ShardContext,
    spec: TextToImage | Reconstruction,
    metrics: Sequence[str],
    sets: ImageSets,
    output: Path | None,
) -> list[Finding]:
    """Write the images as PNG files, and measure the files."""
    name = spec.extractor
    if name is None or name in OTHERS:
        name = INCEPTION
    with image_folders(sets.size) as folders:
        sampled, real = folders.write(sets.sampled, sets.real)
        if output is not None:
            folders.keep(next(folder for index in count() if not (folder := output / str(index)).exists()))
        extractor = context.extractor(name)
        tensors = _network(context.asset(name), extractor)
        images = Measured(folders, sampled, real, tensors, torch.device(context.device))
        own_metrics = OwnMetrics(images, extractor)
        findings = list(compare_programs(images, own_metrics, metrics, sets.of))
        return [*findings, *_compare_recorded(own_metrics, spec, metrics, sets)]


def _compare_recorded(
    own: OwnMetrics, spec: TextToImage | Reconstruction, metrics: Sequence[str], sets: ImageSets
) -> Iterator[Finding]:
    """Compare metrics of the PNG files, by the task's own estimators, with the recorded values."""
    seed = spec.seed if isinstance(spec, TextToImage) else 0
    for name in metrics:
        if name not in sets.recorded:
            continue
        quantity, program = f"{name} of {sets.of}", "recorded value"
        foreign = spec.extractor in OTHERS and name not in DISTANCES
        if reason := f"recorded by {spec.extractor}'s own estimator" if foreign else sets.incomparable:
            yield Untried(quantity, program, reason)
        else:
            sides = own.sides(spec.resize, TAPS[name])
            value = sides.frechet().value if name in DISTANCES else sides.estimate(name, seed)
            tolerance = own.measure(name, spec.resize).tolerance
            note = "PNG files hold the measured pixels: the decoder's, rounded to 8 bits"
            yield Agreement.of_numbers(quantity, program, value, sets.recorded[name], tolerance, note)


def _network(asset: Path, extractor: FeatureExtractor) -> Mapping[str, Tensor]:
    tensors = read_inception(asset)
    if tensor_digest(trunk(tensors)) != extractor.digest:
        raise DataChanged(f"{asset} changed while it was read; verify again")
    return tensors


def _decoded(context: ShardContext, coder: ImageCoder, source: ImageSource, n: int) -> Iterator[Tensor]:
    grid = coder.decoder.grid(coder.fit.size, coder.fit.size)
    for _, codes in coder.batches(context, source, range(n)):
        yield from to_uint8(coder.decoder.decode(codes, grid)).cpu()


def _fitted(source: ImageSource, indices: Sequence[int], fit: Fit) -> Iterator[Tensor]:
    for batch in source.batches(indices, fit, READ_AT_ONCE):
        yield from batch


def _pixels(file: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file), formats=("PNG",)) as image:
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _recorded_values(task: RecordedTask, scale: float | None = None) -> dict[str, float]:
    """Return the recorded values of metrics in TAPS [of one guidance scale]."""
    return {
        name: metric.value
        for metric in task.metrics
        if (name := metric.name.partition("/")[2]) in TAPS and scale in (None, scale_of(metric.protocol))
    }


def _too_few(total: int) -> str:
    return f"the recorded value is of all {total:,} images; use --n {total}"
