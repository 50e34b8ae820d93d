"""Whether a prompt's codes depend on anything but the prompt, in the dtype of production: order, shard, neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams
from on_card.kit import Kit, Row, figure, holds
from on_card.tiny_models import TEXT_ROWS, UNCONDITIONAL, codes_of, few_threads, share_equal, text_prompts, tiny_model

PROMPTS = 24
BATCH = 8
BUCKET = 8


def run(kit: Kit) -> Iterator[Row]:
    """Sample the same prompts in one declared batch shape, and in every other respect otherwise."""
    with few_threads(kit):
        yield from _formats(kit)


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


def _compare(kit: Kit, name: str, model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec) -> Iterator[Row]:
    expected = kit.touched(codes_of(model, prompts, spec))
    yield figure(f"{name}: different codes drawn", len(expected.unique()))

    def in_order(order: Sequence[int]) -> Tensor:
        return codes_of(model, [prompts[index] for index in order], spec)

    yield _equal(f"{name}: a second time", codes_of(model, prompts, spec), expected)
    backwards = range(len(prompts))[::-1]
    yield _equal(f"{name}: in the other order", in_order(backwards), expected[backwards])
    half = len(prompts) // 2
    shards = torch.cat((in_order(range(half)), in_order(range(half, len(prompts)))))
    yield _equal(f"{name}: in two shards", shards, expected)
    alone = torch.cat([in_order([index]) for index in range(len(prompts))])
    yield _equal(f"{name}: each alone", alone, expected)
    # Prompts of one padded length are one batch, and each is in every place of it.
    together = [index for index, prompt in enumerate(prompts) if spec.padded_length(prompt) == spec.bucket][:BATCH]
    turned = [together[turn:] + together[:turn] for turn in range(len(together))]
    found = torch.cat([in_order(order) for order in turned])
    yield _equal(f"{name}: each in {len(together)} places of a batch", found, expected[torch.tensor(turned).flatten()])


def _equal(what: str, found: Tensor, expected: Tensor) -> Row:
    share = share_equal(found, expected)
    return holds(what, share == 1, f"{share:.2%} of {found.numel()}")
