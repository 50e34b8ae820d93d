"""From prompts to features as the image task does it: the share of each stage, and what doing two at a time gains."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from card_model import batches_of, prompt_lengths
from side_by_side import seconds
from torch import Tensor

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.decoders import ImageDecoder, to_uint8
from evalsvc.decoders.config import REGISTERED
from evalsvc.features.inception import Inception
from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams
from evalsvc.sampling.fitting import KeptSampler, generate_fitting
from evalsvc.sampling.sampler import bucket_on
from evalsvc.tasks.image_features import ExtractorSpec, FeaturePass
from evalsvc.tasks.image_work import SampleOutput
from evalsvc.tasks.text_to_image import pipeline as image_pipeline
from evalsvc.tasks.text_to_image.pipeline import overlaps
from evalsvc.tasks.text_to_image.prompts import PromptRecord
from evalsvc.tasks.text_to_image.spec import TextToImage
from evalsvc.tasks.text_to_image.work import TextToImageWork
from on_card.kit import GIB, Kit, Row, figure, holds, left_out
from on_card.rates import bandwidth
from on_card.twins import BILLION, TINY, Shape, build_movqgan, build_transformer, draw_inception, layer_weights

Array = np.ndarray[Any, Any]

KEY = "inception/2048"
RESIZE = "pil-bicubic"
WORDS = 20
"""Of a caption."""
BATCHES = 3
"""Of the longer of two shards that are timed."""
IMAGES = 30_000
"""Of a FID that is called so."""


@dataclass(frozen=True)
class Case:
    shape: Shape
    dtype: str
    decoder: Mapping[str, Any]
    size: int
    """Height and width of an image in pixels."""
    batch: int
    """Images sampled at once where stages run one after the other."""
    overlapped: int
    """Images sampled at once, of three batches, where they may overlap."""

    def bytes(self) -> int:
        """About what the larger of the two takes beside the weights: keys and values, and 10 GiB of maps."""
        shape = self.shape
        tokens = (self.size // 8) ** 2 + 64
        return 4 * self.batch * tokens * shape.n_layers * shape.hidden_dim + 10 * GIB


NARROW = {**REGISTERED["movqgan-67M"]["ddconfig"], "ch": 32, "num_res_blocks": 1, "resolution": 64}
# An entry more than the layout has codes, so that the one after any code is one, too.
TINY_DECODER = {**REGISTERED["movqgan-67M"], "n_embed": 65, "ddconfig": {**NARROW, "attn_resolutions": [8]}}
FULL = Case(BILLION, "bfloat16", REGISTERED["movqgan-270M"], size=256, batch=128, overlapped=64)
CHECKED = Case(TINY, "float32", TINY_DECODER, size=32, batch=2, overlapped=2)
"""Small enough for any device."""
SMALL = replace(CHECKED, batch=1, overlapped=1)


@dataclass
class Stand:
    """A task's context without a checkpoint's files: it gives the models that it holds."""

    model_: Transformer
    decoder_: ImageDecoder
    extractor_: Inception
    checkpoint: CheckpointRef = field(default_factory=lambda: CheckpointRef("drawn"))
    provenance: dict[str, Any] = field(default_factory=dict)
    report: Callable[[int], None] = lambda done: None
    sampler: KeptSampler = field(default_factory=KeptSampler)

    @property
    def device(self) -> str:
        return str(self.model_.tok_embeddings.weight.device)

    def model(self, *, dtype: str, rotary_inv_freq_dtype: str) -> Transformer:
        return self.model_

    def rotary(self) -> Mapping[str, str]:
        return {}

    def decoder(self, *_: object, **__: object) -> ImageDecoder:
        return self.decoder_

    def extractor(self, *_: object) -> Inception:
        return self.extractor_

    def features(self) -> FeaturePass:
        return FeaturePass(self, [ExtractorSpec("inception", "drawn", RESIZE)], [KEY])


def run(kit: Kit) -> Iterator[Row]:
    """Compare features by overlapped and by single stages, then time the stages and the overlap."""
    extractor = Inception(draw_inception(), device=str(kit.device))
    stand = _build(kit, CHECKED, extractor)
    yield from _compare(kit, stand)
    case = SMALL if kit.small else FULL
    if not kit.small:
        del stand
        kit.release()
        if kit.free_bytes() < case.bytes():
            yield left_out("1B bf16", f"needs about {case.bytes():,} bytes, {kit.free_bytes():,} are free")
            return
        stand = _build(kit, case, extractor)
    yield from _time_stages(kit, case, stand)
    kit.release()
    yield from _time_overlap(kit, case, stand)
    kit.release()
    yield from _time_shards(kit, case, stand)


def _build(kit: Kit, case: Case, extractor: Inception) -> Stand:
    model = build_transformer(case.shape, kit.device, getattr(torch, case.dtype))
    return Stand(model, build_movqgan(case.decoder).to(kit.device), extractor)


def _compare(kit: Kit, stand: Stand) -> Iterator[Row]:
    """Hold what the task returns, stages overlapped and not, against the stages run by themselves."""
    case, count = CHECKED, 3
    together, apart = (_features_of(_task_output(case, stand, count, case.batch, flag)) for flag in (True, False))
    yield _equal("float32: features equal with overlap on and off", together, apart)
    # In the batches of the task: others may round otherwise.
    codes = kit.touched(_codes(case, stand, count, case.batch)).split(case.batch)
    by_hand = [_look(stand, _decode(case, stand, part)) for part in codes]
    yield _equal("float32: features equal those of single stages", np.concatenate(by_hand), together)


def _equal(what: str, found: Array, expected: Array) -> Row:
    return holds(what, np.array_equal(found, expected), f"differ by {np.abs(found - expected).max():.3g}")


def _time_stages(kit: Kit, case: Case, stand: Stand) -> Iterator[Row]:
    """Time one batch, stage by stage, and say what share of it each one is."""
    title, batch = _title(case), case.batch
    _task_output(case, stand, batch, batch, False, size=32)  # warm-up, of images of few codes
    _look(stand, _decode(case, stand, _some_codes(case, min(batch, 32), kit.device)))
    kept: dict[str, Any] = {}
    stages = {
        "sampling": lambda: kept.update(codes=_codes(case, stand, batch, batch)),
        "decoding": lambda: kept.update(pixels=_decode(case, stand, kept["codes"])),
        "features": lambda: _look(stand, kept["pixels"]),
    }
    times = {}
    for name, stage in stages.items():
        times[name] = seconds(stage)
        kit.release()
    whole = sum(times.values())
    yield figure(f"{title}, batch {batch}, stages in turn: images/s", batch / whole, "images/s", seconds=times)
    for name, taken in times.items():
        yield figure(f"{title}, batch {batch}: share of {name}", taken / whole, "", images_per_second=batch / taken)
    least = _sampling_bytes(case, stand) / bandwidth(kit.device)
    yield figure(f"{title}, batch {batch}: sampling, of bandwidth", least / times["sampling"], "", least_seconds=least)
    hours = IMAGES * whole / batch / 3_600
    yield figure(f"{title}, batch {batch}: {IMAGES:,} images, stages in turn", hours, "h")


def _time_overlap(kit: Kit, case: Case, stand: Stand) -> Iterator[Row]:
    """Time a shard of three batches as the task does it, what follows sampling overlapped and not."""
    batch = case.overlapped
    count, title = 3 * batch, f"{_title(case)}, 3 batches of {batch}"
    taken = {}
    for overlap in (False, True):
        _task_output(case, stand, batch, batch, overlap, size=32)  # warm-up
        taken[overlap] = seconds(lambda overlap=overlap: _task_output(case, stand, count, batch, overlap))
        kit.release()
    for overlap, spent in taken.items():
        name = "overlapped" if overlap else "in turn"
        yield figure(f"{title}, {name}: images/s", count / spent, "images/s", images=count, seconds=spent)
    yield figure(f"{title}: time in turn over overlapped", taken[False] / taken[True], "x")
    yield figure(f"{title}: {IMAGES:,} images, overlapped", IMAGES * taken[True] / count / 3_600, "h")


def _time_shards(kit: Kit, case: Case, stand: Stand) -> Iterator[Row]:
    """Time what a shard costs beside its images, which is the more of it the fewer codes an image has."""
    stand.decoder_.__dict__.pop("digest", None)
    for turn in ("first", "second"):
        taken = seconds(lambda: stand.decoder_.digest)
        yield figure(f"the decoder's digest, {turn} time", taken, "s")
    batch, side = case.overlapped, case.size if kit.small else case.size // 2
    work = TextToImageWork(_task(case, batch, side))
    shard, bucket = work._shard_size(str(kit.device), IMAGES), bucket_on(kit.device)
    lengths = prompt_lengths(WORDS + 4)
    yield figure("images of a default shard", shard, batch=batch)
    for each in dict.fromkeys((16, bucket)):
        yield figure(f"batches of {shard} images, prompts padded to {each}", batches_of(lengths, each, shard, batch))
    overlap, spent = overlaps(kit.device), {}
    for batches in (1, BATCHES):
        spent[batches] = seconds(lambda n=batches: _task_output(case, stand, n * batch, batch, overlap, size=side))
        kit.release()
        rate = batches * batch / spent[batches]
        yield figure(f"{_title(case)}, {side} pixels, shard of {batches} × {batch}: images/s", rate, "images/s")
    each = (spent[BATCHES] - spent[1]) / (BATCHES - 1)
    yield figure("a shard's time beside its batches", spent[1] - each, "s", seconds_of_a_batch=each)


def _sampling_bytes(case: Case, stand: Stand) -> int:
    """Count what all steps of a batch read at least: the layers, the head's image rows, and keys and values."""
    shape, model = case.shape, stand.model_
    assert shape.layout.image is not None
    length = (case.size // stand.decoder_.downsampling) ** 2
    live = len(_records(case, 1, length)[0].ids) + length / 2
    weights = layer_weights(model) + shape.layout.image.size * shape.hidden_dim
    cached = 2 * shape.n_layers * case.batch * shape.hidden_dim * live
    return int(length * (weights + cached) * model.tok_embeddings.weight.element_size())


def _title(case: Case) -> str:
    return f"{case.shape.name} {'bf16' if case.dtype == 'bfloat16' else 'fp32'}"


def _task(case: Case, batch: int, size: int) -> TextToImage:
    return TextToImage(
        name="drawn", samples=2, decoder="drawn", size=size, batch=batch, dtype=case.dtype, resize=RESIZE, keep=0
    )


def _records(case: Case, count: int, codes: int) -> list[PromptRecord]:
    draw = random.Random(0)
    layout = case.shape.layout
    prompts = [layout.prompt(draw.choices(range(layout.text.size), k=WORDS), codes) for _ in range(count)]
    return [PromptRecord(str(index), "", tuple(made.ids), made.cut, None, None) for index, made in enumerate(prompts)]


def _task_output(
    case: Case, stand: Stand, count: int, batch: int, overlap: bool, size: int | None = None
) -> SampleOutput:
    """Return what the task's shard of so many images returns; with `overlap` a thread decodes, on any device."""
    size = size or case.size
    task = _task(case, batch, size)
    records = _records(case, count, (size // stand.decoder_.downsampling) ** 2)
    with mock.patch.object(image_pipeline, "overlaps", return_value=overlap):
        return image_pipeline.sample_images(
            stand, task, case.shape.layout, stand.decoder_, stand.features(), records, scale=1.0
        )


def _features_of(output: SampleOutput) -> Array:
    return output.features[KEY]


def _codes(case: Case, stand: Stand, count: int, batch: int) -> Tensor:  # [count, N], in the order of the prompts
    """Sample as the task does, and nothing else."""
    length = (case.size // stand.decoder_.downsampling) ** 2
    prompts = [Prompt(record.id, record.ids) for record in _records(case, count, length)]
    image_ids = case.shape.layout.image_ids
    assert image_ids is not None
    spec = SamplerSpec(image_ids, length, SamplingParams(), batch)
    found = list(generate_fitting(stand.model_, prompts, spec))
    order = torch.tensor([index for samples in found for index in samples.indices]).argsort()
    codes = torch.cat([samples.codes for samples in found])
    return codes[order.to(codes.device)]


def _some_codes(case: Case, batch: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, (case.size // 8) ** 2)
    return torch.randint(0, case.decoder["n_embed"], shape, generator=generator).to(device)


def _decode(case: Case, stand: Stand, codes: Tensor) -> Tensor:  # [B, 3, H, W] uint8
    return to_uint8(stand.decoder_.decode(codes, stand.decoder_.grid(case.size, case.size)))


def _look(stand: Stand, pixels: Tensor) -> Array:  # [B, 2048] float32
    return stand.features()(pixels)[KEY].numpy()
