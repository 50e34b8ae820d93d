"""Sampling in the largest batch that fits into memory.

`generate_fitting` → `largest_batch`, then `generate`; and again with half the batch where memory ran out all the same.
The batch moves codes by rounding at most, so an evaluation goes on with a smaller one; by how much is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from evalsvc.errors import OutOfMemory
from evalsvc.models import Transformer
from evalsvc.sampling.memory import attempt, available_bytes, footprint, predicted_bytes, release
from evalsvc.sampling.sampler import Prompt, SamplerSpec, Samples, chosen_path, generate
from evalsvc.spec.model_config import ModelConfig

HEADROOM = 1.1
"""Of what is predicted, which is right to a tenth."""

PROBE_PROMPTS = 4
PROBE_CODES = 64
"""Codes of each of those prompts that are drawn at both batches, to see how many are equal."""


ADVICE = "evaluate in bfloat16, run fewer workers, or use a device with more memory"

Reason = Literal["declared", "predicted", "out of memory", "out of memory in decoding"]


@dataclass(frozen=True)
class BatchShape:
    """In what batches prompts are drawn, and why; part of the provenance."""

    batch: int
    declared: int
    """What the suite asked for."""
    reason: Reason
    """Why it is `batch`: it fits, the declared one was predicted not to, or memory ran out with a larger one."""
    predicted_bytes: int
    """Beside the model's weights."""
    available_bytes: int | None
    """Before anything was allocated; None: the system does not say."""
    drawn: int
    """Prompts that had been drawn before, in larger batches."""
    agreement: float | None
    """Share of equal codes where some of them were drawn again in this batch; None where none had been drawn."""
    compared: int
    """Codes that this share is of."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def largest_batch(
    config: ModelConfig,
    spec: SamplerSpec,
    prompt_length: int,
    dtype: torch.dtype,
    available: int,
    *,
    device: str = "cpu",
    beside: int = 0,
    packed: bool = False,
) -> int:
    """Return the largest of `spec.batch`, its half, its quarter … that is predicted to fit into `available` bytes.

    With `packed` the laid out copies are there already. Raises OutOfMemory where not even one image fits.
    """
    batch = spec.batch
    while True:
        found = footprint(config, replace(spec, batch=batch), prompt_length, dtype, device=device, beside=beside)
        needed = int(HEADROOM * (found.total - found.weights - (found.packed if packed else 0)))
        if needed <= available:
            return batch
        if batch == 1:
            raise OutOfMemory(
                f"sampling one image at a time takes {_megabytes(needed)} beside the model, and {device} has "
                f"{_megabytes(available)} left; {ADVICE}"
            )
        batch //= 2


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def generate_fitting(
    model: Transformer,
    prompts: Sequence[Prompt],
    spec: SamplerSpec,
    on_step: Callable[[int], None] = lambda codes: None,
    *,
    beside: int = 0,
    on_shape: Callable[[BatchShape], None] = lambda shape: None,
) -> FittingBatches:
    """Run `generate` in the largest batch, up to the declared one, that fits into memory beside `beside` bytes.

    Where memory runs out all the same, the batch is halved, and what was not drawn yet is drawn in it. `on_shape` is
    told the first batch and every change. `on_step` counts as in `generate`.

    Raises:
        OutOfMemory: a single image does not fit.
        Others: as `generate`.
    """
    generate(model, prompts, spec)  # says at once what it refuses
    return FittingBatches(model, prompts, spec, on_step, beside, on_shape)


class FittingBatches:
    """The batches of `generate_fitting`, to be iterated once."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Prompt],
        spec: SamplerSpec,
        on_step: Callable[[int], None],
        beside: int,
        on_shape: Callable[[BatchShape], None],
    ) -> None:
        weight = model.tok_embeddings.weight
        # Of the declared batch: with a smaller one, or for the probe's few codes, another might be chosen.
        path = chosen_path(model.config, spec, weight.dtype, weight.device)
        self.model, self.prompts, self.spec = model, prompts, replace(spec, path=path)
        self.on_step, self.on_shape = on_step, on_shape
        self.beside, self.declared = beside, spec.batch
        self.left = list(range(len(prompts)))
        """Prompts that were not drawn yet."""
        self.probe: tuple[tuple[int, ...], Tensor] | None = None
        """Prompts and their codes [P, PROBE_CODES] in the first batch that was drawn."""
        self._drawing: Generator[Samples, None, None] | None = None
        """What holds sampling's buffers, while there are any."""

    def __iter__(self) -> Iterator[Samples]:
        if not self.prompts:
            return
        self._choose()
        try:
            while self.left:
                yield from self._draw()
        finally:
            self._drop_buffers()

    def shrink(self, failed: str) -> None:
        """Drop sampling's buffers, where memory ran out between two batches as `failed` says, and halve the batch.

        Raises OutOfMemory where there are no buffers to drop, or the batch is one image already.
        """
        if self._drawing is None:
            raise OutOfMemory(
                f"memory ran out while one image was decoded, and sampling holds none; {ADVICE} ({failed})"
            )
        self._drop_buffers()
        if self.left:
            self._halve("out of memory in decoding", failed)
        else:
            release()

    def _choose(self) -> None:
        release()  # what an earlier shard has left would count against this one
        available = available_bytes(self._weight.device)
        reason: Reason = "declared"
        if available is not None:
            batch = largest_batch(
                self.model.config,
                self.spec,
                self._longest,
                self._weight.dtype,
                available,
                device=str(self._weight.device),
                beside=self.beside,
                packed=self.model.packed is not None,
            )
            reason = "declared" if batch == self.declared else "predicted"
            self.spec = replace(self.spec, batch=batch)
        self._tell(reason, available, None, 0)

    def _draw(self) -> Iterator[Samples]:
        """Batches until all prompts are drawn, or until the batch was halved."""
        left, on_step = tuple(self.left), self.on_step
        before = (len(self.prompts) - len(left)) * self.spec.length
        # `on_step` and not `self`, which holds the generator.
        drawing = generate(
            self.model, [self.prompts[index] for index in left], self.spec, lambda codes: on_step(before + codes)
        )
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
            available = available_bytes(self._weight.device)
            agreement, failed = attempt(self._agreement)
        compared = 0 if self.probe is None else self.probe[1].numel()
        self._tell(reason, available, agreement, compared)

    def _agreement(self) -> float | None:
        """Draw the probe again: the share of its codes that are equal now. None where there is no probe."""
        if self.probe is None:
            return None
        indices, codes = self.probe
        spec = replace(self.spec, length=codes.shape[1])
        again = torch.empty_like(codes)
        for samples in generate(self.model, [self.prompts[index] for index in indices], spec):
            again[list(samples.indices)] = samples.codes.cpu()
        return float((again == codes).double().mean())

    def _tell(
        self,
        reason: Reason,
        available: int | None,
        agreement: float | None,
        compared: int,
    ) -> None:
        device = str(self._weight.device)
        predicted = predicted_bytes(self.model.config, self.spec, self._longest, self._weight.dtype, device)
        drawn = len(self.prompts) - len(self.left)
        self.on_shape(
            BatchShape(self.spec.batch, self.declared, reason, predicted, available, drawn, agreement, compared)
        )

    @property
    def _weight(self) -> Tensor:
        return self.model.tok_embeddings.weight

    @property
    def _longest(self) -> int:
        return max(self.spec.padded_length(prompt) for prompt in self.prompts)
