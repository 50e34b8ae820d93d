"""The loop that turns prompts into image codes. Service, benchmarks and tests consume this one.

`generate` → `Sampler.steps` → `Transformer.hidden` and `logits.draw`, once a code. The same prompt gives the same codes
whatever its neighbours, its place, the shard or a restart, because nothing that a row goes through depends on them:
its noise is a function of its id, every step has the declared batch shape (dummies fill the last batch), its bucket
follows from its own length, and attention always has a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import InvalidRequest, NonFinite
from evalsvc.model_config import ModelConfig
from evalsvc.models import Transformer
from evalsvc.sampling.logits import draw
from evalsvc.sampling.noise import stream_keys
from evalsvc.sampling_params import SamplingParams

FINITE_CHECK_STEPS = 64
"""How many codes are drawn between two looks at whether logits were finite; each look makes a GPU wait."""


@dataclass(frozen=True)
class Prompt:
    id: str
    """What the noise is drawn for: rows of a prompt list with the same text have different ids and images."""
    ids: tuple[int, ...]
    """Token ids before the first image token, see `VocabularyLayout.prompt`."""


@dataclass(frozen=True)
class SamplerSpec:
    """What is drawn, and in which shapes. One that exists is consistent.

    `batch` and `bucket` may move a number by rounding only; they are provenance, the other fields protocol.

    Raises:
        InvalidRequest: a size below 1, or guidance without an unconditional prompt.
    """

    image_ids: Sequence[int]
    """Rows of the image tokens in the order of the codes, `VocabularyLayout.image_ids`; a range costs no copy."""
    length: int
    """Codes an image."""
    params: SamplingParams
    batch: int
    """Images drawn together; the last batch is filled up with dummies. Guidance doubles the rows."""
    unconditional: tuple[int, ...] | None = None
    """The prompt without text, for guidance."""
    bucket: int = 16
    """Prompts are padded to a multiple of so many tokens; those of one padded length share batches."""

    def __post_init__(self) -> None:
        for field in ("length", "batch", "bucket"):
            if getattr(self, field) < 1:
                raise InvalidRequest(f"{field} is {getattr(self, field)}; it must be 1 or more")
        if not self.image_ids:
            raise InvalidRequest("image_ids is empty; give the rows of the layout's image block")
        if self.params.guided and not self.unconditional:
            raise InvalidRequest(
                f"guidance_scale {self.params.guidance_scale} needs an unconditional prompt; give the layout a "
                "template with a special token before IMAGE, or leave guidance_scale at 1"
            )

    @property
    def rows(self) -> int:
        """Sequences that the model runs at once."""
        return 2 * self.batch if self.params.guided else self.batch

    def padded_length(self, prompt: Prompt) -> int:
        """Tokens to which a prompt is padded: a function of itself and of what is declared."""
        longest = max(len(prompt.ids), len(self.unconditional or ()) if self.params.guided else 0)
        return -(-longest // self.bucket) * self.bucket


@dataclass(frozen=True)
class Samples:
    """One batch, dummies left out."""

    indices: tuple[int, ...]
    """Which of the prompts these are."""
    codes: Tensor
    """[len(indices), length] int64, on the model's device."""


def generate(
    model: Transformer,
    prompts: Sequence[Prompt],
    spec: SamplerSpec,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Samples]:
    """Codes of every prompt, a batch at a time: shortest prompts first, otherwise in their order.

    `on_step` is called after every step with the codes drawn so far for all prompts together; what it raises (e.g.
    Cancelled) ends the work. Takes `predicted_bytes` beside the weights, from the first step to the last.

    Raises:
        InvalidRequest: a prompt is empty, names a row that the model does not have, or shares its id with another.
        NonFinite: names the prompt and the image code whose logits are not finite.
        InvalidData: where llama_rotary's table ends.
    """
    _check_prompts(prompts, spec, model.config.vocab_size)
    return _batches(model, prompts, spec, on_step or _ignore)


def cache_bytes(config: ModelConfig, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of `rows` sequences with `length` tokens each."""
    return 2 * config.n_layers * rows * config.attention_dim * length * dtype.itemsize


def predicted_bytes(config: ModelConfig, spec: SamplerSpec, prompt_length: int, dtype: torch.dtype) -> int:
    """Bytes that `generate` takes beside the weights, for prompts padded to `prompt_length` at most.

    The cache, and per code of one step: float32 logits (twice, guided and warped), float64 noise and what it is made
    of. Activations and the rows of a permuted image block, which are copied, come on top.
    """
    step = spec.rows * 4 * 2 + spec.batch * 8 * 3
    cache = cache_bytes(config, spec.rows, prompt_length + spec.length - 1, dtype)
    return cache + step * len(spec.image_ids)


def _batches(
    model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec, on_step: Callable[[int], None]
) -> Iterator[Samples]:
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(spec.padded_length(prompt), []).append(index)
    if not by_length:
        return
    sampler = Sampler(model, spec, max(by_length))
    done = 0
    for padded, indices in sorted(by_length.items()):
        for start in range(0, len(indices), spec.batch):
            batch = tuple(indices[start : start + spec.batch])
            for _ in sampler.steps([prompts[index] for index in batch], padded):
                done += len(batch)
                on_step(done)
            # A copy: the buffer is used again, and as a tensor of inference mode it would spread that to its users.
            yield Samples(batch, sampler.codes[: len(batch)].clone())


class Sampler:
    """The buffers of one call of `generate`, for prompts padded to `longest` tokens at most."""

    def __init__(self, model: Transformer, spec: SamplerSpec, longest: int) -> None:
        self.model = model
        self.spec = spec
        self.device = model.tok_embeddings.weight.device
        self.image_ids = torch.tensor(list(spec.image_ids), device=self.device)  # [codes]
        rows = _as_slice(spec.image_ids)
        self.head = model.output.weight[self.image_ids if rows is None else rows].detach()  # [codes, D]
        with torch.inference_mode():
            # The last code is drawn and never read by the model.
            self.cache = model.new_cache(spec.rows, longest + spec.length - 1)
            self.codes = torch.empty(spec.batch, spec.length, dtype=torch.int64, device=self.device)  # [B, length]

    def steps(self, prompts: Sequence[Prompt], padded: int) -> Iterator[int]:
        """Draw one code of every prompt a turn, into `codes`; yields the position that was drawn.

        Inference mode is on inside a turn only: it belongs to the thread, and the caller has it between two turns.
        """
        real = len(prompts)
        filled = [*prompts, *[prompts[0]] * (self.spec.batch - real)]
        keys = stream_keys(self.spec.params.seed, [prompt.id for prompt in filled], self.device)
        ids, positions, mask = self._inputs(filled, padded)
        finite_until = torch.full((self.spec.batch,), self.spec.length, device=self.device)
        self.cache.length = 0
        for position in range(self.spec.length):
            with torch.inference_mode():
                codes, finite = draw(self._logits(ids, positions, mask), self.spec.params, keys, position)
                self.codes[:, position] = codes
                finite_until = torch.where(finite, finite_until, finite_until.clamp(max=position))
                ids = self.image_ids[codes].repeat(self.spec.rows // self.spec.batch)[:, None]
                positions = positions[:, -1:] + 1
            if (position + 1) % FINITE_CHECK_STEPS == 0 or position + 1 == self.spec.length:
                _require_finite(prompts, finite_until[:real].tolist(), self.spec.length)
            yield position

    def _logits(
        self,
        ids: Tensor,  # [rows, T] int64
        positions: Tensor,  # [rows, T] int64
        mask: Tensor,  # [rows, padded + length - 1] bool
    ) -> Tensor:  # [rows, codes] float32
        live = mask[:, : self.cache.length + ids.shape[1]]
        hidden = self.model.hidden(ids, mask=live, positions=positions, cache=self.cache)[:, -1]
        return functional.linear(hidden, self.head).float()

    def _inputs(self, prompts: Sequence[Prompt], padded: int) -> tuple[Tensor, Tensor, Tensor]:
        """ids and positions [rows, padded] and mask [rows, padded + length - 1] of the prompts, padded on the left.

        What pads is the prompt's own first token, at position 0: masked, and finite where the prompt itself is.
        """
        sequences = [prompt.ids for prompt in prompts]
        if self.spec.params.guided and self.spec.unconditional:
            sequences += [self.spec.unconditional] * len(prompts)
        ids = [[*[sequence[0]] * (padded - len(sequence)), *sequence] for sequence in sequences]
        padding = torch.tensor([[padded - len(sequence)] for sequence in sequences], device=self.device)  # [rows, 1]
        slots = torch.arange(padded + self.spec.length - 1, device=self.device)
        return torch.tensor(ids, device=self.device), (slots[:padded] - padding).clamp_(min=0), slots >= padding


def _as_slice(image_ids: Sequence[int]) -> slice | None:
    """The rows as a slice, which reads the table in place; None where they are not consecutive."""
    first, count = image_ids[0], len(image_ids)
    consecutive = image_ids == range(first, first + count) or list(image_ids) == list(range(first, first + count))
    return slice(first, first + count) if consecutive else None


def _require_finite(prompts: Sequence[Prompt], finite_until: Sequence[int], length: int) -> None:
    for prompt, position in zip(prompts, finite_until, strict=True):
        if position < length:
            raise NonFinite(
                f"the logits of image code {position} of prompt {prompt.id!r} are NaN or infinite; evaluate in "
                "float32, or the run has diverged by this step"
            )


def _check_prompts(prompts: Sequence[Prompt], spec: SamplerSpec, rows: int) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if not prompt.ids:
            raise InvalidRequest(
                f"prompt {prompt.id!r} is empty; the template needs a text or a special token before IMAGE"
            )
        if prompt.id in seen:
            raise InvalidRequest(
                f"two prompts have the id {prompt.id!r} and would draw the same noise; give each row its own id"
            )
        seen.add(prompt.id)
        check_ids(f"prompt {prompt.id!r}", prompt.ids, rows)
    check_ids("the unconditional prompt", spec.unconditional or (), rows)
    check_ids("image_ids", spec.image_ids, rows)


def check_ids(what: str, ids: Sequence[int], rows: int) -> None:
    """Raise InvalidRequest if one of `ids` is not a row of a table of `rows` rows."""
    if ids and not (min(ids) >= 0 and max(ids) < rows):
        wrong = next(row for row in ids if not 0 <= row < rows)
        raise InvalidRequest(f"{what} has the id {wrong}; the model's table has 0…{rows - 1}")


def _ignore(codes_done: int) -> None:
    pass
