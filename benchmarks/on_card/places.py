"""Whether a prompt's codes depend on anything but the prompt, in the dtype of production: order, shard, neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams
from evalsvc.sampling.memory import footprint
from on_card.kit import GIB, Kit, Row, figure, holds, left_out
from on_card.shapes import large, shortened
from on_card.tiny_models import (
    FAMILIES,
    TEXT_ROWS,
    UNCONDITIONAL,
    codes_of,
    few_threads,
    share_equal,
    text_prompts,
    tiny_model,
)

PROMPTS = 24
BATCH = 8
BUCKET = 8
PRODUCTION, SMALL_PRODUCTION = ((256, False), (256, True)), ((8, False), (8, True))
"""Images at once, and whether with guidance: 256 and 512 rows."""
PRODUCTION_CODES = 64


def run(kit: Kit) -> Iterator[Row]:
    """Sample the same prompts in one declared batch shape, and in every other respect otherwise."""
    with few_threads(kit):
        yield from _formats(kit)
        yield from _families(kit)
    yield from _in_production(kit)


def _formats(kit: Kit) -> Iterator[Row]:
    length, codes, hidden, layers = (12, 64, 64, 2) if kit.small else (64, 1_024, 512, 4)
    prompts = text_prompts([1 + 7 * row % 24 for row in range(PROMPTS)])
    for dtype, guidance in ((torch.bfloat16, 1.0), (torch.bfloat16, 2.0), (torch.float32, 2.0)):
        model = tiny_model(kit.device, dtype, codes=codes, hidden_dim=hidden, n_layers=layers)
        params = SamplingParams(guidance_scale=guidance)
        image_ids = range(TEXT_ROWS, TEXT_ROWS + codes)
        spec = SamplerSpec(image_ids, length, params, BATCH, UNCONDITIONAL, BUCKET)
        name = f"{str(dtype).removeprefix('torch.')}{', guided' if params.guided else ''}"
        yield from _compare(kit, name, model, prompts, spec)
        del model
        kit.release()


def _families(kit: Kit) -> Iterator[Row]:
    """Turn prompts of one batch around, for models that open_lm's are not."""
    prompts, codes = text_prompts([4] * BATCH), 64
    image_ids = range(TEXT_ROWS, TEXT_ROWS + codes)
    spec = SamplerSpec(image_ids, 12, SamplingParams(guidance_scale=2.0), BATCH, UNCONDITIONAL, BUCKET, path="graph")
    for name, changes in FAMILIES.items():
        model = tiny_model(kit.device, torch.bfloat16, codes=codes, changes=changes)
        yield _turned(kit, f"{name}, bfloat16", model, prompts, spec, turn=3)
        del model
        kit.release()


def _in_production(kit: Kit) -> Iterator[Row]:
    """Turn prompts around at the sizes of an evaluation: there a product may sum a row by its place."""
    subject = shortened(large(kit), PRODUCTION_CODES if not kit.small else 8)
    model = subject.build(kit.device)
    for batch, guided in SMALL_PRODUCTION if kit.small else PRODUCTION:
        params = SamplingParams(guidance_scale=7.5 if guided else 1.0, top_k=min(1_000, subject.codebook // 2))
        spec = replace(subject.spec(batch, guided=guided), params=params)
        what = f"{subject.name}, {spec.rows} rows"
        use = footprint(subject.config, spec, subject.padded, subject.dtype, device=str(kit.device))
        if kit.free_bytes() < use.added:
            yield left_out(what, f"needs {use.added / GIB:.1f} GiB, {kit.free_bytes() / GIB:.1f} free")
            continue
        yield _turned(kit, what, model, subject.prompts(batch), spec, turn=batch // 3)
        kit.release()


def _turned(kit: Kit, what: str, model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec, turn: int) -> Row:
    """Compare codes with those of the prompts that many places on."""
    order = [*range(turn, len(prompts)), *range(turn)]
    expected = codes_of(model, prompts, spec)
    return _equal(
        kit, f"{what}: {turn} places on", codes_of(model, [prompts[at] for at in order], spec), expected[order]
    )


def _compare(kit: Kit, name: str, model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec) -> Iterator[Row]:
    expected = codes_of(model, prompts, spec)
    yield figure(f"{name}: different codes drawn", len(expected.unique()))

    def in_order(order: Sequence[int]) -> Tensor:
        return codes_of(model, [prompts[index] for index in order], spec)

    yield _equal(kit, f"{name}: a second time", codes_of(model, prompts, spec), expected)
    backwards = range(len(prompts))[::-1]
    yield _equal(kit, f"{name}: in the other order", in_order(backwards), expected[backwards])
    half = len(prompts) // 2
    shards = torch.cat((in_order(range(half)), in_order(range(half, len(prompts)))))
    yield _equal(kit, f"{name}: in two shards", shards, expected)
    alone = torch.cat([in_order([index]) for index in range(len(prompts))])
    yield _equal(kit, f"{name}: each alone", alone, expected)
    # Prompts of one padded length are one batch, and each is in every place of it.
    together = [index for index, prompt in enumerate(prompts) if spec.padded_length(prompt) == spec.bucket][:BATCH]
    turned = [together[turn:] + together[:turn] for turn in range(len(together))]
    found = torch.cat([in_order(order) for order in turned])
    yield _equal(
        kit, f"{name}: each in {len(together)} places of a batch", found, expected[torch.tensor(turned).flatten()]
    )


def _equal(kit: Kit, what: str, found: Tensor, expected: Tensor) -> Row:
    share = share_equal(kit.touched(found), expected)
    return holds(what, share == 1, f"{share:.2%} of {found.numel()}")
