"""Sampling in the largest batch that fits into memory.

`generate_fitting` → `largest_batch`, then `generate`; with half the batch again if memory still runs out. The batch
changes codes only by rounding, so an evaluation continues with a smaller batch; the share of changed codes is measured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from evalsvc.errors import OutOfMemory
from evalsvc.models.decoding import PATHS
from evalsvc.models.language_model import LanguageModel
from evalsvc.sampling.memory import attempt, available_bytes, footprint, release
from evalsvc.sampling.sampler import Prompt, Sampler, SamplerSpec, Samples, generate, planned_path
from evalsvc.spec.model_config import ModelConfig

HEADROOM = 1.1
"""Factor on the predicted bytes, whose error is below a tenth."""

PROBE_PROMPTS = 4
PROBE_CODES = 64
"""Number of codes per probe prompt that are drawn at both batches, to measure the share of equal codes."""

IDLE_SECONDS = 60.0
"""Seconds after which an unused sampler is dropped: an evaluation has ended, and other processes need the memory."""

ADVICE = "evaluate in bfloat16, run fewer workers, or use a device with more memory"

Reason = Literal["declared", "predicted", "out of memory", "out of memory in decoding"]


@dataclass(frozen=True)
class BatchShape:
    """Batch in which prompts are drawn, with the reason; part of the provenance."""

    batch: int
    declared: int
    reason: Reason
    predicted_bytes: int
    """Predicted bytes in addition to the model's weights."""
    available_bytes: int | None
    """Available bytes before any allocation; None where the system does not report them."""
    drawn: int
    """Number of prompts drawn before, in larger batches."""
    agreement: float | None
    """Share of equal codes where drawn prompts were drawn again in this batch; None without drawn prompts."""
    compared: int

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class KeptSampler:
    """The last sampler of a process whose steps are replayed graphs, for the next shard: capturing graphs makes a GPU
    wait, and returns torch's unused blocks. At most one sampler exists, lent or kept."""

    def __init__(self) -> None:
        self._sampler: Sampler | None = None
        self._owner: object = None
        self._lock = threading.RLock()
        self._idle = threading.Timer(0, self.drop)

    def reserve(self, owner: object) -> None:
        """Drop the sampler unless the last call had an equal `owner`."""
        if owner != self._owner:
            self.drop()
        self._owner = owner

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of the sampler's keys and values."""
        if (kept := self._sampler) is None:
            return 0
        config, dtype, device = kept.model.config, kept.model.dtype, str(kept.device)
        return footprint(config, kept.spec, kept.longest, dtype, device=device).cache

    @contextmanager
    def lend(self, model: LanguageModel, spec: SamplerSpec, longest: int) -> Iterator[Sampler]:
        """Yield the sampler if it serves these arguments, or else a new one. After an error nothing is kept."""
        with self._lock:
            if self._sampler is not None and not self._sampler.serves(model, spec, longest):
                self.drop()
            sampler = self._taken()
        sampler = sampler or Sampler(model, spec, longest)
        try:
            yield sampler
        except BaseException:
            sampler.close()
            raise
        if sampler.path not in PATHS or not PATHS[sampler.path].replayed:
            sampler.close()
            return
        with self._lock:
            self._sampler, self._idle = sampler, threading.Timer(IDLE_SECONDS, self.drop)
            self._idle.daemon = True
            self._idle.start()

    def drop(self) -> bool:
        """Free the sampler's memory; return whether there was a sampler. The lock keeps another thread from capturing
        a graph meanwhile."""
        with self._lock:
            if (sampler := self._taken()) is None:
                return False
            sampler.close()
            del sampler
            release()
            return True

    def _taken(self) -> Sampler | None:
        with self._lock:
            self._idle.cancel()
            sampler, self._sampler = self._sampler, None
            return sampler


def largest_batch(
    config: ModelConfig,
    spec: SamplerSpec,
    prompt_length: int,
    dtype: torch.dtype,
    available: int,
    *,
    device: str = "cpu",
    reserved: int = 0,
    packed: bool = False,
) -> int:
    """Return the largest of `spec.batch`, its half, its quarter … that is predicted to fit into `available` bytes. With
    `packed`, the laid out copies exist already."""
    batch = spec.batch
    while True:
        use = footprint(config, replace(spec, batch=batch), prompt_length, dtype, device=device, reserved=reserved)
        needed = int(HEADROOM * (use.added - (use.packed if packed else 0)))
        if needed <= available:
            return batch
        if batch == 1:
            raise OutOfMemory(
                f"sampling one image at a time takes {needed / 1e6:,.0f} MB in addition to the model, and {device} has "
                f"{available / 1e6:,.0f} MB left; {ADVICE}"
            )
        batch //= 2


def generate_fitting(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    spec: SamplerSpec,
    on_step: Callable[[int], None] = lambda codes: None,
    *,
    reserved: int = 0,
    on_shape: Callable[[BatchShape], None] = lambda shape: None,
    kept: KeptSampler | None = None,
) -> FittingBatches:
    """Run `generate` in the largest batch up to the declared one that fits into memory next to `reserved` bytes, and
    in half of it if memory still runs out. `on_shape` is called with the first batch and every change. `kept` provides
    the sampler, and keeps it for the next call [nothing is kept]."""
    generate(model, prompts, spec)  # raises for invalid arguments, without drawing
    return FittingBatches(model, prompts, spec, on_step, reserved, on_shape, kept)


class FittingBatches:
    """Batches of `generate_fitting`, to be iterated once."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        spec: SamplerSpec,
        on_step: Callable[[int], None],
        reserved: int,
        on_shape: Callable[[BatchShape], None],
        kept: KeptSampler | None,
    ) -> None:
        # Choose the path for the declared batch: a smaller batch, or the probe's few codes, might get another path.
        path = planned_path(model, spec)
        self.model, self.prompts, self.spec = model, prompts, replace(spec, path=path)
        self.on_step, self.on_shape = on_step, on_shape
        self.reserved, self.declared, self.kept = reserved, spec.batch, kept
        self.left = list(range(len(prompts)))
        self.probe: tuple[tuple[int, ...], Tensor] | None = None
        """Prompts and their codes [P, PROBE_CODES] in the first batch that was drawn."""
        self._drawing: Generator[Samples, None, None] | None = None
        """Generator that holds sampling's buffers; None without buffers."""

    def __iter__(self) -> Iterator[Samples]:
        if not self.prompts:
            return
        release()  # memory left by an earlier shard would count as used
        model, available = self.model, available_bytes(self.model.device)
        if available is not None:
            if self.kept is not None:
                available += self.kept.cache_bytes  # used for this batch, or dropped
            size = (model.config, self.spec, self._longest, model.dtype, available)
            laid_out = model.is_laid_out
            batch = largest_batch(*size, device=str(model.device), reserved=self.reserved, packed=laid_out)
            self.spec = replace(self.spec, batch=batch)
        self._report("declared" if self.spec.batch == self.declared else "predicted", available, None, 0)
        try:
            while self.left:
                yield from self._draw()
        finally:
            self._drop_buffers()

    def shrink(self, failed: str) -> None:
        """Drop sampling's buffers and halve the batch, after memory ran out between batches with the message `failed`;
        raise OutOfMemory where there is nothing to drop or to halve."""
        if self._drawing is None and not (self.kept is not None and self.kept.drop()):
            raise OutOfMemory(
                f"memory ran out while one image was decoded, and sampling holds none; {ADVICE} ({failed})"
            )
        self._drop_buffers()
        if self.left:
            self._halve("out of memory in decoding", failed)
        else:
            release()

    def _draw(self) -> Iterator[Samples]:
        left, on_step = tuple(self.left), self.on_step
        before = (len(self.prompts) - len(left)) * self.spec.length
        # The callback refers to `on_step` instead of `self`, which holds the generator.
        prompts = [self.prompts[index] for index in left]
        lend = None if self.kept is None else self.kept.lend
        drawing = generate(self.model, prompts, self.spec, lambda codes: on_step(before + codes), lend)
        self._drawing = drawing
        while self._drawing is not None:
            samples, failed = attempt(lambda: next(drawing, None))
            if samples is None:
                self._drop_buffers()
                if failed:
                    self._halve("out of memory", failed)
                return
            indices = tuple(left[index] for index in samples.indices)
            self.left = [index for index in self.left if index not in indices]
            if self.probe is None:
                self.probe = indices[:PROBE_PROMPTS], samples.codes[:PROBE_PROMPTS, :PROBE_CODES].cpu()
            yield replace(samples, indices=indices)

    def _drop_buffers(self) -> None:
        drawing, self._drawing = self._drawing, None
        if drawing is not None:
            drawing.close()

    def _halve(self, reason: Reason, failed: str) -> None:
        available, agreement = None, None
        while failed:
            if self.spec.batch == 1:
                done = "sampled and decoded" if reason == "out of memory in decoding" else "sampled"
                raise OutOfMemory(f"memory ran out while one image at a time was {done}; {ADVICE} ({failed})")
            self.spec = replace(self.spec, batch=self.spec.batch // 2)
            release()
            available = available_bytes(self.model.device)
            agreement, failed = attempt(self._agreement)
        compared = 0 if self.probe is None else self.probe[1].numel()
        self._report(reason, available, agreement, compared)

    def _agreement(self) -> float | None:
        if self.probe is None:
            return None
        indices, codes = self.probe
        spec = replace(self.spec, length=codes.shape[1])
        again = torch.empty_like(codes)
        for samples in generate(self.model, [self.prompts[index] for index in indices], spec):
            again[list(samples.indices)] = samples.codes.cpu()
        return float((again == codes).double().mean())

    def _report(self, reason: Reason, available: int | None, agreement: float | None, compared: int) -> None:
        model, batches, drawn = self.model, (self.spec.batch, self.declared), len(self.prompts) - len(self.left)
        use = footprint(model.config, self.spec, self._longest, model.dtype, device=str(model.device))
        self.on_shape(BatchShape(*batches, reason, use.added, available, drawn, agreement, compared))

    @property
    def _longest(self) -> int:
        return max(self.spec.padded_length(prompt) for prompt in self.prompts)
