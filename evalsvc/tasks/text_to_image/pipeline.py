"""From prompts to features: sample a batch, and meanwhile decode, extract features of and keep the previous one.

    sample_images → generate_fitting → Finishing → Background → PostProcessing.add, once per batch

On a GPU, post-processing runs in a thread and on a stream of its own, one batch behind; on a CPU, where sampling uses
all cores, it follows each batch. If memory runs out, fewer images are decoded together, and then fewer sampled.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from evalsvc.data.images import fit_pixels
from evalsvc.decoders import ImageDecoder, PixelError, pixel_error, to_uint8
from evalsvc.errors import NonFinite
from evalsvc.models.decoding import decoding_stream
from evalsvc.sampling import Prompt, SamplerSpec, Samples
from evalsvc.sampling.fitting import FittingBatches, generate_fitting
from evalsvc.sampling.memory import attempt, release
from evalsvc.sampling.sampler import bucket_on
from evalsvc.spec.images import Fit
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.tasks.image_features import FeaturePass, FeatureRows
from evalsvc.tasks.image_work import KeptImage, SampledImage, SampleOutput, encode_image
from evalsvc.tasks.task import Context
from evalsvc.tasks.text_to_image.prompts import PromptRecord
from evalsvc.tasks.text_to_image.spec import TextToImage

COMPARED = 8
"""Number of images of a shard that are decoded a second time if the decoder is not in float32."""


def sample_images(
    context: Context,
    task: TextToImage,
    layout: VocabularyLayout,
    decoder: ImageDecoder,
    features: FeaturePass,
    records: Sequence[PromptRecord],
    scale: float,
    start: int = 0,
) -> SampleOutput:
    """Sample, decode and measure one image per record, with the shapes of batches in the provenance. `start` is the
    index of the first record among all prompts of the task: the first `task.keep` images are kept."""
    side = task.size or decoder.resolution
    exact = None
    if task.decoder_dtype != "float32":
        exact = context.decoder(task.decoder, task.decoder_config, task.decoder_ema)
    stages = Stages(decoder, decoder.grid(side, side), task.fit(side), features, exact)
    results = PostProcessing(stages, records, kept=task.keep - start)
    params, image_ids = task.params(scale), layout.image_ids
    assert image_ids is not None, "the plan has checked the layout against the decoder"
    prompts, unconditional = _prompts(layout, records, stages.codes, params.guided)
    spec = SamplerSpec(
        image_ids,
        stages.codes,
        params,
        task.batch,
        unconditional,
        bucket_on(torch.device(context.device)),
        weights=task.weights,
        cache_dtype=task.cache_dtype,
        row_end=None if layout.row_end_id is None else (layout.row_end_id, stages.grid[1]),
    )
    shapes: list[object] = []
    try:
        model = context.model(dtype=task.dtype, rotary_inv_freq_dtype=task.rotary_inv_freq_dtype)
        overlap = overlaps(model.device)
        how: dict[str, object] = {"batches": shapes, "overlapped": overlap, "bucket": spec.bucket}
        context.provenance["sampling"] = how
        batches = generate_fitting(
            model,
            prompts,
            spec,
            lambda codes: context.report(codes // stages.codes),
            reserved=stages.bytes(task.batch),
            on_shape=lambda shape: shapes.append(shape.to_json()),
            kept=context.sampler,
        )
        with Background(model.device, overlap=overlap) as background:
            finishing = Finishing(results, background, batches, task.batch)
            for samples in batches:
                how |= {"path": samples.path, "noise": samples.noise, "attention": samples.attention}
                finishing.wait()
                finishing.start(samples)
                if not overlap:
                    finishing.wait()
            finishing.wait()
    except NonFinite as error:
        raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None
    how["decoded_at_once"] = finishing.fewest
    if results.decoder_error is not None:
        how["decoder_error"] = results.decoder_error.to_json()
    protocol: dict[str, JsonValue] = {"layout": layout.digest, "decoder": decoder.digest, "size": side}
    return SampleOutput(
        results.rows.joined(),
        [results.images[index] for index in range(len(records))],
        [
            KeptImage(start + index, png, records[index].id, records[index].text)
            for index, png in sorted(results.kept.items())
        ],
        side,
        {**protocol, **context.rotary()},
        cut=sum(record.cut > 0 for record in records),
    )


def _prompts(
    layout: VocabularyLayout, records: Sequence[PromptRecord], codes: int, guided: bool
) -> tuple[list[Prompt], tuple[int, ...] | None]:
    """Return the prompts, and guidance's unconditional prompt that they share. With `prompt.pad`, each has its own."""
    prompts = [Prompt(record.id, record.ids) for record in records]
    if not guided:
        return prompts, None
    if layout.image_prompt is None:
        return prompts, tuple(layout.prompt(None, codes).ids)
    if layout.image_prompt.pad is None:
        return prompts, records[0].unconditional
    return [Prompt(record.id, record.ids, unconditional=record.unconditional) for record in records], None


def overlaps(device: torch.device) -> bool:
    return device.type == "cuda"


@dataclass(frozen=True)
class Stages:
    decoder: ImageDecoder
    grid: tuple[int, int]
    fit: Fit
    features: FeaturePass
    exact: ImageDecoder | None = None
    """Decoder in float32, if `decoder` is not."""

    @property
    def codes(self) -> int:
        return self.grid[0] * self.grid[1]

    def bytes(self, images: int) -> int:
        """Return the maximum number of bytes that decoding and features need for a batch."""
        pixels = images * 3 * self.decoder.downsampling**2 * self.codes
        decoders = [self.decoder] if self.exact is None else [self.decoder, self.exact]
        # The steps follow each other; the decoder's float32 result and the images exist during the features.
        return max(*(decoder.decode_bytes(self.grid) for decoder in decoders), self.features.bytes()) + 6 * pixels


class PostProcessing:
    def __init__(self, stages: Stages, records: Sequence[PromptRecord], kept: int) -> None:
        self._stages, self._records, self._kept_until = stages, records, kept
        self.rows = FeatureRows()
        self.images: dict[int, SampledImage] = {}
        self.kept: dict[int, bytes] = {}
        self.decoder_error: PixelError | None = None
        """Pixel distances of some images from those of `Stages.exact`."""

    def add(self, samples: Samples, at_once: int) -> None:
        """Decode and measure a batch, `at_once` images at a time, without images that an earlier attempt finished."""
        done = sum(index in self.images for index in samples.indices)
        for start in range(done, len(samples.indices), at_once):
            self._add(samples.indices[start : start + at_once], samples.codes[start : start + at_once])

    def _add(
        self,
        indices: Sequence[int],
        codes: Tensor,  # [B, N] int64
    ) -> None:
        stages = self._stages
        if stages.exact is not None and self.decoder_error is None:
            self.decoder_error = pixel_error(stages.exact, stages.decoder, codes[:COMPARED], stages.grid)
        pixels = compared = to_uint8(stages.decoder.decode(codes, stages.grid))  # [B, 3, H, W] uint8
        if pixels.shape[2:] != (stages.fit.size, stages.fit.size):
            fitted = [fit_pixels(image, stages.fit) for image in pixels.cpu().numpy()]
            compared = torch.from_numpy(np.stack(fitted))  # [B, 3, size, size] uint8
        features = stages.features(compared, [self._records[index].text for index in indices])
        images = {}
        for index, row in zip(indices, codes.cpu(), strict=True):
            digest = hashlib.sha256(row.to(torch.int32).numpy().tobytes()).hexdigest()[:16]
            images[index] = SampledImage(self._records[index].id, digest, self._records[index].label)
        pictures = zip(indices, pixels.cpu(), strict=True)
        kept = {index: encode_image(picture.numpy()) for index, picture in pictures if index < self._kept_until}
        # All or nothing: if memory ran out before this line, these images are repeated.
        self.rows.add(indices, features)
        self.images |= images
        self.kept |= kept


class Finishing:
    """Post-processing of the newest batch, with the memory that sampling leaves. Only here are batches made smaller."""

    def __init__(self, results: PostProcessing, background: Background, batches: FittingBatches, at_once: int) -> None:
        self._results, self._background, self._batches = results, background, batches
        self.at_once = self.fewest = at_once
        """Maximum number of images decoded together, now and least; halved each time that memory runs out."""
        self._refused: Counter[int] = Counter()
        """How often memory ran out for each number of images."""
        self._samples: Samples | None = None

    def start(self, samples: Samples) -> None:
        # Try each number once more: while a graph is captured, the allocator cannot free its unused blocks.
        again = [size for size, times in self._refused.items() if times == 1]
        self._start(samples, max([self.at_once, *again]))

    def _start(self, samples: Samples, at_once: int) -> None:
        self._samples, self.at_once, self.fewest = samples, at_once, min(at_once, self.fewest)
        self._background.submit(partial(self._results.add, samples, self.at_once))

    def wait(self) -> None:
        """Wait for the batch. If memory runs out, decode fewer images together; for a single image, sample fewer."""
        while failed := attempt(self._background.wait)[1]:
            # Free memory in this thread, because freeing memory would break a graph's capture.
            assert self._samples is not None, "nothing else runs out of memory here"
            together = min(self.at_once, len(self._samples.indices))
            self._refused[together] += 1
            if together > 1:
                release()
            else:
                self._batches.shrink(failed)
            self._start(self._samples, max(1, together // 2))


@functools.cache
def post_processing_thread(threads: int) -> ThreadPoolExecutor:
    """Return the thread of all shards: cuDNN's plans belong to a thread, and each new thread makes them again. A new
    thread would use as many threads of its own as there are cores, and round differently."""
    return ThreadPoolExecutor(1, "post-processing", torch.set_num_threads, (threads,))


class Background:
    """Runs one piece of work at a time: with `overlap`, while the caller continues, and otherwise in `wait`."""

    def __init__(self, device: torch.device, *, overlap: bool) -> None:
        self._executor = post_processing_thread(torch.get_num_threads()) if overlap else None
        self._stream = decoding_stream(device) if overlap and device.type == "cuda" else None
        self._pending: Callable[[], None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work`, which ends with its results on the CPU, after all earlier work."""
        self.wait()
        if self._executor is None:
            self._pending = work
            return
        # The work holds its inputs until it is finished, so their memory is not reused by the caller's stream.
        ready = None if self._stream is None else torch.cuda.current_stream(self._stream.device).record_event()
        self._pending = self._executor.submit(self._run, work, ready).result

    def _run(self, work: Callable[[], None], ready: torch.cuda.Event | None) -> None:
        if self._stream is None or ready is None:
            work()
            return
        # A thread starts on the first device, even if the stream belongs to another.
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            work()

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._executor is not None:
            with suppress(Exception):  # the first error counts, and the thread uses memory until its work ends
                self.wait()
