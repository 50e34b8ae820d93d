import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import sampling_reference as reference
import torch
from decode_paths import leave_uncompiled
from sampling_reference import make_prompts, tiny_model
from torch import Tensor

from evalsvc.errors import Cancelled, InvalidRequest, NonFinite, UnknownName
from evalsvc.families.reading import resolve_config
from evalsvc.models import DecodeStep, Transformer, packed_bytes
from evalsvc.models.decoding import DecodeCache, StraightCache
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, cache_bytes, generate
from evalsvc.sampling.sampler import FINITE_CHECK_STEPS, chosen_path, runnable_path
from evalsvc.spec.model_config import ModelConfig

IMAGE_ROWS = range(20, 36)
UNCONDITIONAL = (36, 37)


def spec_of(**changes: Any) -> SamplerSpec:
    """Small shapes; fields of SamplingParams and of SamplerSpec alike."""
    params = {key: changes.pop(key) for key in list(changes) if key in SamplingParams.__dataclass_fields__}
    fields: dict[str, Any] = {"image_ids": IMAGE_ROWS, "length": 6, "batch": 3, "unconditional": UNCONDITIONAL}
    return SamplerSpec(**fields | {"bucket": 4, "params": SamplingParams(**params)} | changes)


def codes_by_prompt(model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec) -> dict[str, list[int]]:
    batches = generate(model, prompts, spec)
    rows = [pair for samples in batches for pair in zip(samples.indices, samples.codes.tolist(), strict=True)]
    assert sorted(index for index, _ in rows) == list(range(len(prompts)))
    return {prompts[index].id: row for index, row in rows}


@pytest.mark.parametrize("path", ["plain", "graph"])
@pytest.mark.parametrize("ending", ["exhausted", "closed", "failed"])
def test_buffers_end_with_the_work(path: str, ending: str, buffers: list[weakref.ref[Any]]) -> None:
    """Steps and their graphs once held each other: a second shard found the keys and values of the first on the GPU,
    and the next checkpoint the last one's weights. An error's traceback held them as well."""
    model, prompts = tiny_model("rotary"), make_prompts(7)

    def on_step(codes: int) -> None:
        if ending == "failed" and codes > 20:
            raise Cancelled("enough")

    batches = generate(model, prompts, spec_of(path=path), on_step)
    if ending == "failed":
        with pytest.raises(Cancelled) as caught:
            list(batches)
        assert caught.tb is not None, "is held until the end of this test"
    elif ending == "closed":
        next(batches)
        assert buffers[0]() is not None, "there is more to draw"
        batches.close()
    else:
        assert list(batches)
    assert [buffer() for buffer in buffers] == [None] * 3
    if ending != "failed":  # there the traceback holds the model, which is the caller's
        gone = weakref.ref(model)
        del model, batches
        assert gone() is None


def with_own_unconditional(prompts: Sequence[Prompt]) -> list[Prompt]:
    """As Janus has them: as long as the prompt, with pads between its first and its last id; one is longer."""
    padded = [(prompt.ids[0], *(38 for _ in prompt.ids[2:]), prompt.ids[-1])[-len(prompt.ids) :] for prompt in prompts]
    padded[-1] = (36, 37) * 4
    return [replace(prompt, unconditional=ids) for prompt, ids in zip(prompts, padded, strict=True)]


DRAWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.6},
    {"top_k": 4},
    {"top_p": 0.7},
    {"guidance_scale": 3.0},
    {"guidance_scale": 0.0},
    {"temperature": 0, "guidance_scale": 2.0},
    {"temperature": 1.4, "top_k": 9, "top_p": 0.9, "guidance_scale": 1.7, "seed": 5},
    {"guidance_scale": 2.0, "image_ids": tuple(random.Random(1).sample(IMAGE_ROWS, len(IMAGE_ROWS)))},
    {"guidance_scale": 2.0, "unconditional": (36, 37, 38, 39, 36)},  # longer than the texts' bucket
    {"row_end": (39, 3)},
    {"row_end": (39, 1), "temperature": 0, "guidance_scale": 2.0},
    {"row_end": (21, 4), "guidance_scale": 2.0},  # of the image's rows, behind a row that is not full
]


@pytest.mark.parametrize("kind", ["rotary", "head_rotary", "llama_rotary", "none"])
@pytest.mark.parametrize("path", ["packed", "blocked", "graph"])
def test_every_path_equals_the_slow_reference(kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64; with guidance, over bucket and block borders. `blocked` is the compiled path, uncompiled."""
    if path == "blocked":
        leave_uncompiled(monkeypatch)
        monkeypatch.setattr("evalsvc.sampling.sampler.can_compile", lambda device: True)
        monkeypatch.setattr("evalsvc.sampling.logits.compiled", lambda function: function)
        path = "compiled"
    model, prompts = tiny_model(kind), make_prompts(4)
    spec = spec_of(path=path, guidance_scale=2, length=24, batch=2)
    require_reference(model, prompts, spec)
    require_reference(model, with_own_unconditional(prompts), replace(spec, row_end=(39, 5), unconditional=None))
    assert {samples.path for samples in generate(model, prompts, spec)} == {path}


@pytest.mark.usefixtures("compiler")
def test_compiled_equals_plain() -> None:
    prompts, model, spec = make_prompts(16), tiny_model(vocab_size=WIDE, hidden_dim=64), wide_spec(2.0)
    plain = codes_by_prompt(model, prompts, replace(spec, path="plain"))
    assert codes_by_prompt(model, prompts, replace(spec, path="compiled")) == plain
    few = codes_by_prompt(model, prompts[::-1][:5], replace(spec, path="compiled"))
    assert few == {prompt: plain[prompt] for prompt in few}, "neighbours and order do not matter"


@pytest.mark.parametrize(
    "changes", [{"weights": "int8"}, {"cache_dtype": "bfloat16"}, {"cache_dtype": "float8"}], ids=str
)
def test_rounded_weights_and_caches_move_few_codes(wide_model: Transformer, changes: dict[str, Any]) -> None:
    prompts, spec = make_prompts(24), replace(wide_spec(1.0), **changes)
    found, exact = (codes_by_prompt(wide_model, prompts, each) for each in (spec, wide_spec(1.0)))
    equal = [a == b for prompt in found for a, b in zip(found[prompt], exact[prompt], strict=True)]
    assert sum(equal) > 0.5 * len(equal)
    assert codes_by_prompt(wide_model, prompts[5:6], spec) == {"p5": found["p5"]}


def test_the_path_follows_from_the_declared_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's small images are not compiled, whole images of a real model are, and one image at a time is not."""
    cpu, full = torch.device("cpu"), resolve_config("open_lm_160m", Path("none"))
    image = spec_of(image_ids=range(50_432, 50_432 + 16_384), length=1_024, batch=32, bucket=16)

    def path(config: ModelConfig, spec: SamplerSpec, device: torch.device = cpu) -> str:
        return chosen_path(config, spec, torch.float32, device)

    assert path(tiny_model().config, spec_of(length=64, batch=64)) == "plain"
    assert path(full, image, torch.device("cuda")) == "graph"
    assert path(full, replace(image, path="plain")) == "plain"
    if packed_bytes(full, 16_384, torch.float32):
        assert path(full, image) == "compiled"
        assert path(full, replace(image, batch=1)) == "packed"
    monkeypatch.setattr("evalsvc.sampling.sampler.can_compile", lambda device: False)
    assert runnable_path(tiny_model(), spec_of(path="compiled")) == "packed"


@pytest.mark.parametrize("kind", ["rotary", "head_rotary", "llama_rotary", "none"])
@pytest.mark.parametrize("changes", DRAWS, ids=str)
def test_equals_the_slow_reference(kind: str, changes: dict[str, Any]) -> None:
    require_reference(tiny_model(kind), make_prompts(8), spec_of(**changes))


@pytest.mark.parametrize("changes", [{}, {"temperature": 0}, {"unconditional": None, "row_end": (39, 2)}], ids=str)
def test_unconditional_prompts_of_different_lengths_equal_the_slow_reference(changes: dict[str, Any]) -> None:
    """Also longer than the prompt's own bucket; without guidance they change nothing."""
    model, prompts = tiny_model(), make_prompts(11)
    own = with_own_unconditional(prompts)
    assert len({len(prompt.unconditional or ()) for prompt in own}) > 4
    require_reference(model, own, spec_of(guidance_scale=3.0, **changes))
    assert codes_by_prompt(model, own, spec_of(**changes)) == codes_by_prompt(model, prompts, spec_of(**changes))


WIDE = 64 + 256
"""Rows of a table with 256 codes behind 64 others: enough choices for rounding to show."""


def wide_spec(guidance_scale: float) -> SamplerSpec:
    return spec_of(image_ids=range(64, WIDE), length=24, batch=8, guidance_scale=guidance_scale)


@pytest.fixture(scope="module")
def wide_model() -> Transformer:
    return tiny_model(vocab_size=WIDE, hidden_dim=96, dtype="float32")


@pytest.mark.parametrize(("guidance_scale", "own"), [(1.0, False), (3.0, False), (3.0, True)])
def test_neighbours_order_and_shards_do_not_matter(wide_model: Transformer, guidance_scale: float, own: bool) -> None:
    spec, prompts = wide_spec(guidance_scale), make_prompts(24)
    if own:
        prompts = with_own_unconditional(prompts)
    expected = codes_by_prompt(wide_model, prompts, spec)
    shuffled = random.Random(2).sample(prompts, len(prompts))
    assert codes_by_prompt(wide_model, shuffled, spec) == expected
    for shard in range(3):
        assert codes_by_prompt(wide_model, shuffled[shard::3], spec).items() <= expected.items()
    assert codes_by_prompt(wide_model, prompts[11:12], spec) == {"p11": expected["p11"]}


def require_reference(model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec) -> None:
    expected = {prompt.id: reference.codes_of(model, spec, prompt) for prompt in prompts}
    assert codes_by_prompt(model, prompts, spec) == expected


class Watched:
    """Records the shapes and positions of the prompts that a model is run with, and of the steps that follow."""

    def __init__(self, model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.positions: list[list[Any]] = []
        self.caches: list[DecodeCache] = []
        hidden, step = model.hidden, DecodeStep.__call__

        def watched_hidden(ids: Tensor, **arguments: Any) -> Tensor:
            self.shapes.append(tuple(ids.shape))
            self.positions.append(arguments["positions"].tolist())
            return hidden(ids, **arguments)

        def watched_step(decode: DecodeStep, ids: Tensor, positions: Tensor, slot: int) -> Tensor:
            self.shapes.append(tuple(ids.shape))
            self.positions.append(positions.tolist())
            if decode.cache not in self.caches:
                self.caches.append(decode.cache)
            return step(decode, ids, positions, slot)

        monkeypatch.setattr(model, "hidden", watched_hidden)
        monkeypatch.setattr(DecodeStep, "__call__", watched_step)


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 3), (3.0, 6)])
def test_every_step_has_the_declared_shape(monkeypatch: pytest.MonkeyPatch, guidance_scale: float, rows: int) -> None:
    model = tiny_model()
    watched = Watched(model, monkeypatch)
    prompts = [Prompt(str(row), (1,) * length) for row, length in enumerate((1, 4, 5, 2, 3))]
    spec = spec_of(guidance_scale=guidance_scale)
    batches = [samples.indices for samples in generate(model, prompts, spec)]
    assert batches == [(0, 1, 3), (4,), (2,)]
    steps = [(rows,)] * 5
    prompt = [[(3, padded), *([(1, padded)] if rows == 6 else [])] for padded in (4, 4, 8)]
    assert watched.shapes == [*prompt[0], *steps, *prompt[1], *steps, *prompt[2], *steps]
    (cache,) = watched.caches
    assert isinstance(cache, StraightCache)
    used = cache.keys.nbytes + cache.values.nbytes
    assert used == cache_bytes(model.config, rows, 8 + 5, torch.float64)


def test_padding_does_not_count_as_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions are relative and would hide it, but a table of them ends, and rounding grows with them."""
    model = tiny_model()
    watched = Watched(model, monkeypatch)
    prompts = [Prompt("short", (1,)), Prompt("long", (1, 2, 3))]
    list(generate(model, prompts, spec_of(batch=2, length=3, guidance_scale=2)))
    prompt = [[[0, 0, 0, 0], [0, 0, 1, 2]], [[0, 0, 0, 1]]]
    assert watched.positions == [*prompt, [1, 3, 2, 2], [2, 4, 3, 3]]


def test_row_ends_count_as_positions_and_fill_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    watched = Watched(model, monkeypatch)
    list(generate(model, [Prompt("a", (1, 2, 3))], spec_of(batch=1, length=5, guidance_scale=2, row_end=(39, 2))))
    assert watched.positions[2:] == [[place, place - 1] for place in range(3, 9)]
    (cache,) = watched.caches
    assert isinstance(cache, StraightCache)
    assert cache.keys.shape[3] == 4 + 6, "four codes and two row ends; the last code is not read"
    assert bool((cache.keys[:, :, :, -1] != 0).all())


def test_what_comes_out_are_plain_tensors() -> None:
    """Inference mode must not leak to the caller, nor a later batch overwrite an earlier one."""
    model, prompts = tiny_model(), make_prompts(7)
    kept = []
    for samples in generate(model, prompts, spec_of()):
        assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == (False, True)
        assert (samples.codes.is_inference(), samples.codes.dtype) == (False, torch.int64)
        kept.append(samples)
    codes = codes_by_prompt(model, prompts, spec_of())
    for samples in kept:
        assert samples.codes.tolist() == [codes[prompts[index].id] for index in samples.indices]


def test_progress_counts_codes_and_can_cancel_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, seen = tiny_model(), make_prompts(4, longest=2), []
    watched = Watched(model, monkeypatch)
    list(generate(model, prompts, spec_of(), seen.append))
    assert seen == [*range(3, 19, 3), *range(19, 25)]
    watched.shapes.clear()
    with pytest.raises(Cancelled):
        list(generate(model, prompts, spec_of(), Mock(side_effect=[None, None, None, Cancelled("enough")])))
    assert len(watched.shapes) == 4


@pytest.mark.parametrize("changes", [{}, {"temperature": 0}, {"top_p": 0.9}, {"guidance_scale": 2}], ids=str)
def test_nan_names_prompt_and_position(changes: dict[str, Any]) -> None:
    prompts, spec = make_prompts(3, longest=1), spec_of(length=70, **changes)
    codes = codes_by_prompt(tiny_model(), prompts, spec)
    code = codes["p1"][2]
    model = tiny_model()
    model.tok_embeddings.weight[IMAGE_ROWS[code]] = torch.nan
    with pytest.raises(NonFinite) as caught:
        list(generate(model, prompts, spec))
    places = {prompt: row.index(code) + 1 for prompt, row in codes.items() if code in row[:-1]}
    reported = next(prompt for prompt, place in places.items() if place < FINITE_CHECK_STEPS)
    assert f"image code {places[reported]} of prompt {reported!r}" in caught.value.message


@pytest.mark.parametrize(
    ("prompts", "changes", "fragment"),
    [
        ([Prompt("a", ())], {}, "prompt 'a' is empty"),
        ([Prompt("a", (1,)), Prompt("a", (2,))], {}, "two prompts have the id 'a'"),
        ([Prompt("a", (1, 40))], {}, "prompt 'a' has the id 40; the model's table has 0…39"),
        ([], {"image_ids": range(30, 41)}, "image_ids has the id 40"),
        ([], {"weights": "float3"}, "no weights is named 'float3'"),
        ([], {"cache_dtype": "float3"}, "no cache_dtype is named 'float3'"),
        ([], {"path": "float3"}, "no path is named 'float3'"),
        ([], {"length": 0}, "length is 0"),
        ([], {"batch": 0}, "batch is 0"),
        ([], {"bucket": 0}, "bucket is 0"),
        ([], {"image_ids": ()}, "image_ids is empty"),
        ([], {"guidance_scale": 2, "unconditional": ()}, "guidance_scale 2.0 needs an unconditional prompt"),
        ([Prompt("a", (1,), unconditional=())], {"guidance_scale": 2}, "guidance_scale 2.0 needs an unconditional"),
        ([Prompt("a", (1,), unconditional=(1, 40))], {}, "the unconditional prompt of 'a' has the id 40"),
        ([Prompt("a", (1,), unconditional=(1,)), Prompt("b", (1,))], {}, "prompt 'b' has no unconditional prompt"),
        ([], {"row_end": (40, 2)}, "row_end has the id 40"),
        ([], {"row_end": (39, 0)}, "row_end has 0 codes in a row"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_step(
    prompts: list[Prompt], changes: dict[str, Any], fragment: str
) -> None:
    with pytest.raises((InvalidRequest, UnknownName), match=fragment):
        generate(tiny_model(), prompts, spec_of(**changes))
    assert list(generate(tiny_model(), [], spec_of())) == []
