"""The loop from prompts to image codes, which service, benchmarks and tests share.

`generate` → `Sampler.steps` → a step of `LanguageModel.decoding` and `logits.draw`, once per code.
A prompt gets the same codes with any neighbours, place, shard or restart: its noise is a function of its id, every step
has the declared batch shape (dummies fill the last batch) and the path that follows from the declared shape, its bucket
depends only on its length, and attention always has a mask.
"""

from __future__ import annotations

import functools
import importlib
import reprlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import cast, get_args

import torch
from torch import Tensor

from evalsvc.errors import InvalidRequest, NonFinite, UnknownName
from evalsvc.models import WeightFormat, can_compile, compiler_problem, worth_packing
from evalsvc.models.attention import FLOAT8, attention_dtype
from evalsvc.models.decoding import problem_of
from evalsvc.models.language_model import DecodePath, LanguageModel, PaddedPrompts, StepShape
from evalsvc.sampling.logits import draw
from evalsvc.sampling.noise import stream_keys
from evalsvc.spec.model_config import ModelConfig
from evalsvc.spec.sampling import SamplingParams

FINITE_CHECK_STEPS = 64
"""Number of codes between two checks that logits are finite; each check makes a GPU wait."""

COMPILE_BYTES = 2 * 10**11
"""Number of `compilable_bytes` from which a batch is compiled: reading them takes longer than compiling."""
NOISE_BYTES = 100
"""Bytes that the noise of one code moves through the caches, uncompiled."""
GPU_BUCKET = 64
"""Multiple of tokens to which prompts are padded on a GPU: most captions have one padded length."""
KERNEL, COMPILED, UNCOMPILED = "kernel", "compiled", "uncompiled"
Draw = Callable[[Tensor, SamplingParams, Tensor, int], tuple[Tensor, Tensor]]
CACHE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": FLOAT8, "float64": torch.float64}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "weights": ("plain", "int8"),
    "cache_dtype": (None, *CACHE_DTYPES),
    "path": (None, *get_args(DecodePath)),
}


@dataclass(frozen=True)
class Prompt:
    id: str
    """Id that selects the noise: rows of a prompt list with the same text have different ids and images."""
    ids: tuple[int, ...]
    """Ids before the first drawn token, at least one, as rows of the model's table."""
    unconditional: tuple[int, ...] | None = field(default=None, kw_only=True)
    """Unconditional prompt of guidance, for all prompts of a call or for none; None: `SamplerSpec.unconditional`."""


@dataclass(frozen=True)
class SamplerSpec:
    """Specification of what is drawn, and in which shapes. `batch`, `bucket` and `path` change numbers only by rounding
    and are provenance; the other fields are protocol."""

    image_ids: Sequence[int]
    """Rows of the image tokens in the order of the codes, `VocabularyLayout.image_ids`."""
    length: int
    params: SamplingParams
    batch: int
    """Number of images drawn together; dummies fill the last batch. Guidance doubles the rows."""
    unconditional: tuple[int, ...] | None = None
    """Unconditional prompt of guidance, for prompts without one of their own."""
    bucket: int = 16
    """Multiple of tokens to which prompts are padded; prompts of one padded length share batches."""
    weights: WeightFormat = "plain"
    """"int8" rounds the weights of all products, and their inputs, to 8 bits."""
    cache_dtype: str | None = None
    """Dtype of keys and values, a name in CACHE_DTYPES; None: the model's dtype."""
    path: DecodePath | None = None
    """Path of a step, see `models.decoding`; None: that of `chosen_path`."""
    row_end: tuple[int, int] | None = None
    """Row of the token that follows every row of codes, and the number of codes in a row. The token is read and never
    drawn: after the last row of codes nothing is drawn, and the token is left out."""

    def __post_init__(self) -> None:
        for name in ("length", "batch", "bucket"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UnknownName.among(name, getattr(self, name), [choice for choice in choices if choice is not None])
        if not self.image_ids:
            raise InvalidRequest("image_ids is empty; give the rows of the layout's image block")
        if self.row_end is not None and self.row_end[1] < 1:
            raise InvalidRequest(f"row_end has {self.row_end[1]} codes in a row; give 1 or more")

    @property
    def rows(self) -> int:
        return 2 * self.batch if self.params.guided else self.batch

    @property
    def rows_of_codes(self) -> range | tuple[int, ...]:
        """Return `image_ids`, as a range where they are consecutive: that part of the table is read in place."""
        ids = tuple(self.image_ids)
        consecutive = range(ids[0], ids[0] + len(ids))
        return consecutive if ids == tuple(consecutive) else ids

    def dtype_of_cache(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.cache_dtype is None else CACHE_DTYPES[self.cache_dtype]

    def dtype_of_attention(self, dtype: torch.dtype) -> torch.dtype:
        return attention_dtype(self.dtype_of_cache(dtype), dtype)

    def padded_length(self, prompt: Prompt) -> int:
        longest = max(len(prompt.ids), len(self.unconditional_of(prompt)) if self.params.guided else 0)
        return -(-longest // self.bucket) * self.bucket

    def unconditional_of(self, prompt: Prompt) -> tuple[int, ...]:
        return (self.unconditional if prompt.unconditional is None else prompt.unconditional) or ()

    def read_before(self, position: int) -> int:
        """Return the number of tokens behind the prompt that are read before the code at `position` is drawn."""
        return position if self.row_end is None else position + position // self.row_end[1]


@dataclass(frozen=True)
class Samples:
    """Codes of one batch of prompts, without dummies."""

    indices: tuple[int, ...]
    codes: Tensor
    """Codes, [len(indices), length] int64, on the model's device."""
    path: DecodePath
    noise: str = ""
    """Code that draws: `kernel`, or torch's with `compiled` or `uncompiled` noise, on a GPU with the reason."""
    attention: str = ""
    """See `Decoding.attention`."""


def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    spec: SamplerSpec,
    on_step: Callable[[int], None] = lambda codes: None,
    lend: Callable[[LanguageModel, SamplerSpec, int], AbstractContextManager[Sampler]] | None = None,
) -> Generator[Samples, None, None]:
    """Yield the codes of every prompt, a batch at a time: shortest prompts first, otherwise in order.

    `on_step` gets the number of codes drawn so far after every step, and may raise, e.g. Cancelled. Needs
    `Footprint.added` in addition to the weights until the generator is exhausted, closed or fails. `lend` provides the
    sampler for the model, the specification and the longest padded prompt [a new one, which is closed].
    """
    rows = model.config.vocab_size
    check_prompts(prompts, rows, "the template needs a text or a special token before IMAGE")
    check_ids("the unconditional prompt", spec.unconditional or (), rows)
    check_ids("image_ids", spec.image_ids, rows)
    check_ids("row_end", () if spec.row_end is None else spec.row_end[:1], rows)
    _check_guidance(prompts, spec, rows)
    return _batches(model, prompts, spec, on_step, lend or (lambda *shape: closing(Sampler(*shape))))


def cache_bytes(config: ModelConfig, rows: int, length: int, dtype: torch.dtype) -> int:
    return 2 * config.n_layers * rows * config.kv_dim * length * dtype.itemsize


def _batches(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    spec: SamplerSpec,
    on_step: Callable[[int], None],
    lend: Callable[[LanguageModel, SamplerSpec, int], AbstractContextManager[Sampler]],
) -> Generator[Samples, None, None]:
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(spec.padded_length(prompt), []).append(index)
    if not by_length:
        return
    done = 0
    with lend(model, spec, max(by_length)) as sampler:
        for padded, indices in sorted(by_length.items()):
            for start in range(0, len(indices), spec.batch):
                batch = tuple(indices[start : start + spec.batch])
                for _ in sampler.steps([prompts[index] for index in batch], padded):
                    done += len(batch)
                    on_step(done)
                # Copy: the buffer is reused, and a tensor of inference mode would spread that mode to its users.
                how = sampler.path, sampler.noise, sampler.step.attention
                yield Samples(batch, sampler.codes[: len(batch)].clone(), *how)


class Sampler:
    """Buffers for calls of `generate`, for prompts padded to at most `longest` tokens. No code depends on an earlier
    batch."""

    def __init__(self, model: LanguageModel, spec: SamplerSpec, longest: int) -> None:
        self.model, self.spec, self.device, self.longest = model, spec, model.device, longest
        self.image_ids = torch.tensor(list(spec.image_ids), device=self.device)  # [codes]
        self.path = runnable_path(model, spec)
        self.noise = noise_kind(self.path, self.device, len(spec.image_ids), spec.params)
        self.draw = draw_by(self.noise)
        cache_dtype = None if spec.cache_dtype is None else CACHE_DTYPES[spec.cache_dtype]
        capacity = longest + spec.read_before(spec.length - 1)  # the last code is drawn and never read by the model
        shape = StepShape(spec.rows, spec.rows_of_codes, capacity, self.path, spec.weights, cache_dtype)
        with torch.inference_mode():
            self.step = model.decoding(shape)
            self.codes = torch.empty(spec.batch, spec.length, dtype=torch.int64, device=self.device)  # [B, length]

    def steps(self, prompts: Sequence[Prompt], padded: int) -> Iterator[int]:
        """Draw one code of every prompt per step, into `codes`; yield the position. Inference mode ends with a step."""
        real, spec = len(prompts), self.spec
        filled = [*prompts, *[prompts[0]] * (spec.batch - real)]
        keys = stream_keys(spec.params.seed, [prompt.id for prompt in filled], self.device)
        without = [spec.unconditional_of(prompt) for prompt in filled] if spec.params.guided else []
        shared = filled[0].unconditional is None  # then the unconditional prompt is read once for all rows
        counts = [len(ids) for ids in (*(prompt.ids for prompt in filled), *without)]
        lengths, last = torch.tensor(counts, device=self.device), max(counts) - 1  # [rows]
        finite_until = torch.full((spec.batch,), spec.length, device=self.device)
        codes = torch.zeros_like(finite_until)  # [batch], of the step before
        for position in range(spec.length):
            with torch.inference_mode():
                if position == 0:
                    texts = [prompt.ids for prompt in filled]
                    parts = [PaddedPrompts.of(texts, padded, slice(0, spec.batch), self.device)]
                    if without:
                        texts = without[:1] if shared else without
                        parts.append(PaddedPrompts.of(texts, padded, slice(spec.batch, spec.rows), self.device))
                    logits = self.step.read(parts)
                else:
                    read = spec.read_before(position)
                    self.model.require_positions(last + read)
                    tokens = [self.image_ids[codes].repeat(spec.rows // spec.batch)]
                    if spec.row_end is not None and position % spec.row_end[1] == 0:
                        tokens.append(torch.full_like(tokens[0], spec.row_end[0]))
                    for offset, ids in enumerate(tokens, read - len(tokens)):
                        logits = self.step(ids, lengths + offset, padded + offset)
                codes, finite = self.draw(logits, spec.params, keys, position)
                self.codes[:, position] = codes
                finite_until = torch.where(finite, finite_until, finite_until.clamp(max=position))
            if (position + 1) % FINITE_CHECK_STEPS == 0 or position + 1 == spec.length:
                for prompt, first_bad in zip(prompts, finite_until[:real].tolist(), strict=True):
                    if first_bad < spec.length:
                        raise NonFinite(
                            f"the logits of image code {first_bad} of prompt {prompt.id!r} are NaN or infinite; "
                            "evaluate in float32, or the run has diverged by this step"
                        )
            yield position

    def serves(self, model: LanguageModel, spec: SamplerSpec, longest: int) -> bool:
        return self.model is model and (self.spec, self.longest) == (spec, longest)

    def close(self) -> None:
        """Drop the buffers, also where an error's traceback holds this sampler."""
        self.step.close()
        del self.step, self.codes


def chosen_path(config: ModelConfig, spec: SamplerSpec, dtype: torch.dtype, device: torch.device) -> DecodePath:
    """Choose the path of a step by the declared batch, not by the number of prompts, so that shards round alike."""
    if spec.path is not None:
        return spec.path
    if device.type == "cuda":
        return "graph"
    if device.type != "cpu" or not worth_packing(config, len(spec.image_ids), dtype, device):
        return "plain"
    return "compiled" if compilable_bytes(config, spec, dtype) >= COMPILE_BYTES else "packed"


def bucket_on(device: torch.device) -> int:
    """Return the multiple of tokens to which prompts are padded by default. A GPU reads padding faster than it draws a
    batch of its own for the few prompts of another length, which dummies would fill."""
    return GPU_BUCKET if device.type == "cuda" else SamplerSpec.bucket


def noise_kind(path: DecodePath, device: torch.device, codes: int, params: SamplingParams) -> str:
    """Return `Samples.noise` of a path."""
    if path == "compiled":
        return COMPILED
    if path != "graph" or device.type != "cuda":
        return UNCOMPILED
    if problem := compiler_problem(str(device)):
        return f"{UNCOMPILED}: {problem}"
    problem = kernel_problem(str(device), codes, params)
    return f"{COMPILED}: {problem}" if problem else KERNEL


def draw_by(noise: str) -> Draw:
    """Return the function that draws by a `noise_kind`."""
    return drawing_kernel() if noise == KERNEL else functools.partial(draw, compile_noise=noise.startswith(COMPILED))


@functools.cache
def drawing_kernel() -> Draw:
    """Return `drawing.draw_by_kernel`, whose module imports Triton: on a GPU alone, where torch brings it."""
    return cast(Draw, importlib.import_module("evalsvc.sampling.drawing").draw_by_kernel)


@functools.lru_cache(maxsize=64)
def kernel_problem(device: str, codes: int, params: SamplingParams) -> str:
    """Return why `drawing_kernel` does not draw by these parameters, or "". Takes seconds the first time."""

    def is_equal() -> bool:
        logits = torch.linspace(-2, 2, (8 if params.guided else 4) * codes, device=device).view(-1, codes)
        keys = stream_keys(params.seed, "abcd", torch.device(device))
        by_torch, by_kernel = (way(logits, params, keys, 1)[0] for way in (draw, drawing_kernel()))
        return torch.equal(by_torch, by_kernel)

    return problem_of(is_equal, "the kernel draws other codes than torch")


def compilable_bytes(config: ModelConfig, spec: SamplerSpec, dtype: torch.dtype) -> int:
    """Return the bytes that one batch moves in the parts that compiling accelerates: keys and values, and the noise."""
    read = spec.read_before(spec.length)
    attended = read * cache_bytes(config, spec.rows, read // 2, spec.dtype_of_cache(dtype))
    return attended + spec.length * spec.batch * len(spec.image_ids) * NOISE_BYTES


def runnable_path(model: LanguageModel, spec: SamplerSpec) -> DecodePath:
    """Return the path of `planned_path`, or the nearest path that runs on this machine."""
    path = planned_path(model, spec)
    # can_compile takes seconds.
    runs = path != "compiled" or (model.device.type == "cpu" and can_compile("cpu"))
    return path if runs else "packed"


def planned_path(model: LanguageModel, spec: SamplerSpec) -> DecodePath:
    """Return the only path of a model that has one, or else the `chosen_path`."""
    return model.only_path or chosen_path(model.config, spec, model.dtype, model.device)


def _check_guidance(prompts: Sequence[Prompt], spec: SamplerSpec, rows: int) -> None:
    own = [prompt for prompt in prompts if prompt.unconditional is not None]
    if own and len(own) < len(prompts):
        # Rows that share a prompt are computed in another shape, so a prompt's codes would depend on its neighbours.
        name = next(reprlib.repr(prompt.id) for prompt in prompts if prompt.unconditional is None)
        raise InvalidRequest(f"prompt {name} has no unconditional prompt, and others do; give one to all or to none")
    for prompt in own:
        check_ids(f"the unconditional prompt of {reprlib.repr(prompt.id)}", prompt.unconditional or (), rows)
    if spec.params.guided and not (all(prompt.unconditional for prompt in own) if own else spec.unconditional):
        raise InvalidRequest(
            f"guidance_scale {spec.params.guidance_scale} needs an unconditional prompt; give the layout a "
            "template with a special token before IMAGE, or set guidance_scale to 1"
        )


def check_prompts(prompts: Sequence[Prompt], rows: int, if_empty: str) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        name = reprlib.repr(prompt.id)
        if not prompt.ids:
            raise InvalidRequest(f"prompt {name} is empty; {if_empty}")
        if prompt.id in seen:
            raise InvalidRequest(
                f"two prompts have the id {name} and would draw the same noise; give each prompt a different id"
            )
        seen.add(prompt.id)
        check_ids(f"prompt {name}", prompt.ids, rows)


def check_ids(what: str, ids: Sequence[int], rows: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < rows):
        wrong = next(row for row in ids if not 0 <= row < rows)
        raise InvalidRequest(f"{what} has the id {wrong}; the model's table has 0…{rows - 1}")
