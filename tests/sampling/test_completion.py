"""Text generation against one prompt at a time, a whole forward pass for every id and no cache."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import sampling_reference as reference
import torch
from sampling_reference import tiny_model

from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import Cancelled, InvalidData, InvalidRequest, NonFinite
from evalsvc.models import KVCache, Transformer, load_model
from evalsvc.sampling import Continuation, SamplingParams, complete

Stop = Callable[[int, Sequence[int]], bool]
ROWS = 40


def make_prompts(count: int, most: int = 7, rows: int = ROWS, longest: int = 9) -> list[Continuation]:
    """Prompts of 1…`longest` ids that draw between 1 and `most`."""
    pick = random.Random(0)
    return [
        Continuation(f"p{row}", tuple(pick.choices(range(rows), k=1 + row * 5 % longest)), 1 + row * 3 % most)
        for row in range(count)
    ]


def slow(
    model: Transformer,
    prompt: Continuation,
    params: SamplingParams,
    allowed: Sequence[int] = range(ROWS),
    end: frozenset[int] = frozenset(),
) -> list[int]:
    """At each place the likeliest row, or the row with the largest ln p + Gumbel noise."""
    drawn: list[int] = []
    while len(drawn) < prompt.max_tokens and not (drawn and drawn[-1] in end):
        logits = model(torch.tensor([[*prompt.ids, *drawn]]))[0, -1].tolist()
        scores = logits = [logits[row] for row in allowed]
        if params.temperature:
            noise = [reference.uniform(params.seed, prompt.id, len(drawn), row) for row in allowed]
            weights = reference.probabilities(logits, None, params)
            scores = [
                math.log(weight) - math.log(-math.log(u)) if weight else -math.inf
                for weight, u in zip(weights, noise, strict=True)
            ]
        drawn.append(allowed[scores.index(max(scores))])
    return drawn


PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(),
    SamplingParams(temperature=0.6, seed=3),
    SamplingParams(top_k=4),
    SamplingParams(temperature=1.4, top_k=20, top_p=0.9),
]


@pytest.mark.parametrize("kind", ["rotary", "head_rotary", "llama_rotary", "none"])
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_equals_the_slow_reference(kind: str, params: SamplingParams) -> None:
    model, prompts, end = tiny_model(kind), make_prompts(9), frozenset({3, 20, 31})
    for allowed in ([range(ROWS)], [range(5, 30)], [range(2, 3), range(7, 21), range(21, 30), range(35, ROWS)]):
        expected = [slow(model, prompt, params, [*chain(*allowed)], end) for prompt in prompts]
        for batch_tokens in (1, 40, 1_000):
            found = complete(model, prompts, params, batch_tokens=batch_tokens, allowed=allowed, end=end)
            assert found == expected


def test_many_rows_are_drawn_from_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(), make_prompts(9)
    expected = complete(model, prompts, SamplingParams(), batch_tokens=1_000)
    monkeypatch.setattr("evalsvc.sampling.completion.LOGITS_PER_DRAW", ROWS * 2)
    assert complete(model, prompts, SamplingParams(), batch_tokens=1_000) == expected
    assert complete(model, [], SamplingParams(), batch_tokens=100) == []


def test_stop_ends_a_row_and_sees_its_own_ids() -> None:
    model, prompts = tiny_model(), make_prompts(9, most=30)
    whole = complete(model, prompts, SamplingParams(), batch_tokens=1_000)
    seen: list[list[list[int]]] = [[] for _ in prompts]

    def stop(index: int, ids: Sequence[int]) -> bool:
        seen[index].append(list(ids))
        return len(ids) == index + 1

    found = complete(model, prompts, SamplingParams(), batch_tokens=300, stop=stop)
    assert found == [ids[: index + 1] for index, ids in enumerate(whole)]
    for prompt, ids, calls in zip(prompts, found, seen, strict=True):
        assert calls == [ids[:count] for count in range(1, len(ids) + 1) if count < prompt.max_tokens]


def test_batches_keep_to_their_tokens_and_ended_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(), make_prompts(40, most=20)
    shapes: list[tuple[int, int]] = []
    original = model.hidden

    def hidden(ids: torch.Tensor, *, cache: KVCache, **others: Any) -> torch.Tensor:
        shapes.append((ids.shape[0], cache.length + ids.shape[1]))
        return original(ids, cache=cache, **others)

    monkeypatch.setattr(model, "hidden", hidden)
    complete(model, prompts, SamplingParams(), batch_tokens=200)
    assert max(rows * (length + 1) for rows, length in shapes) <= 200
    shapes.clear()
    ragged = [Continuation(str(row), (row,), 2**row) for row in range(6)]
    complete(model, ragged, SamplingParams(), batch_tokens=1_000)
    assert [rows for rows, _ in shapes] == [*[6] * 3, *[3] * 12, *[1] * 16], "they leave when half have ended"


def shared_prompts() -> list[Continuation]:
    """Few-shot prompts of one block, one of them continued in three ways, one the beginning of another."""
    pick = random.Random(2)
    block, question = tuple(pick.choices(range(ROWS), k=20)), (3, 1, 4)
    same = [Continuation(f"way {way}", (*block, *question), 5) for way in range(3)]
    others = [Continuation(f"question {row}", (*block, *[10 + row] * row), 5) for row in range(4)]
    return [*same, *others, *make_prompts(4)]


@pytest.mark.parametrize("kind", ["rotary", "head_rotary", "llama_rotary", "none"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_what_prompts_begin_with_is_computed_once(
    kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to each prompt alone without a cache, in float64, and no token of the block is computed twice."""
    model, prompts, params = tiny_model(kind), shared_prompts(), SamplingParams(temperature=temperature)
    expected = [slow(model, prompt, params) for prompt in prompts]
    read: list[int] = []
    original = model.mixed

    def mixed(ids: torch.Tensor, *others: Any) -> torch.Tensor:
        read.append(ids.numel())
        return original(ids, *others)

    monkeypatch.setattr(model, "mixed", mixed)
    assert complete(model, prompts[:7], params, batch_tokens=1_000) == expected[:7]
    assert read[0] == 20 + 3 + 0 + 1 + 2 + 3
    assert complete(model, prompts, params, batch_tokens=1_000) == expected
    assert complete(model, prompts, params, batch_tokens=60) == expected


def test_a_row_that_has_ended_disturbs_nobody() -> None:
    """Neither by running beyond llama_rotary's table of 128 positions nor by what it would have drawn next."""
    model = tiny_model("llama_rotary")
    with torch.no_grad():
        model.tok_embeddings.weight[7] = float("nan")
    long, params = Continuation("long", (1,) * 126, 60), SamplingParams()
    others = [Continuation(f"other {row}", (row,), 60) for row in range(6)]
    options: dict[str, Any] = {"batch_tokens": 10_000, "allowed": [range(8)], "end": frozenset({7})}
    together = complete(model, [long, *others], params, stop=lambda index, ids: index == 0, **options)[1:]
    assert together == [complete(model, [other], params, **options)[0] for other in others]
    assert len({len(rows) for rows in together}) > 2, "some went on beside NaN"
    with pytest.raises(InvalidData, match="position 128 is beyond llama_rotary's 128 positions"):
        complete(model, [long], params, batch_tokens=1_000, allowed=[range(7)])


def test_nan_names_the_prompt_and_its_place() -> None:
    """Also where others share their beginning with it, and the mask: 0 times NaN is NaN."""
    prompts = [Continuation("good", (1, 2), 9), Continuation("a prompt of many words " * 9, (3,), 9)]
    model = tiny_model()
    drawn = complete(model, prompts, SamplingParams(), batch_tokens=100)
    bad = next(row for row in drawn[1][2:] if row not in drawn[0])
    place = drawn[1].index(bad) + 1
    with torch.no_grad():
        model.tok_embeddings.weight[bad] = float("nan")
    words = (
        f"after {place} drawn ids of prompt 'a prompt of ...f many words ' are NaN .*first part .* is tok_embeddings"
    )
    with pytest.raises(NonFinite, match=words):
        complete(model, prompts, SamplingParams(), batch_tokens=100)
    assert complete(model, prompts[:1], SamplingParams(), batch_tokens=100) == drawn[:1]
    prompts = [Continuation("good", (1, 2, 3, 4), 2), Continuation("bad", (1, 2, 3, bad), 2)]
    with pytest.raises(NonFinite, match="of prompt 'bad' are NaN or infinite"):
        complete(model, prompts, SamplingParams(temperature=0), batch_tokens=100, allowed=[range(bad)])


def test_progress_counts_completed_prompts_and_can_cancel() -> None:
    model, seen = tiny_model(), []
    prompts = [Continuation(str(row), (row,), 1 + row % 3) for row in range(6)]
    complete(model, prompts, SamplingParams(), batch_tokens=1_000, report=seen.append)
    assert seen == [2, 4, 6]
    with pytest.raises(Cancelled):
        complete(model, prompts, SamplingParams(), batch_tokens=1_000, report=Mock(side_effect=Cancelled("enough")))
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([Continuation("a", (), 1)], {}, "prompt 'a' is empty; give at least one id"),
        ([Continuation("a", (1,), 0)], {}, "prompt 'a' has max_tokens 0"),
        ([Continuation("a", (40,), 1)], {}, "prompt 'a' has the id 40; the model's table has 0…39"),
        ([Continuation("a", (1,), 1), Continuation("a", (2,), 1)], {}, "two prompts have the id 'a'"),
        ([], {"allowed": [range(30, 41)]}, "allowed has the id 40"),
        ([], {"allowed": []}, "give the rows to draw from as ranges of at least one"),
        ([], {"allowed": [range(3, 3)]}, "give the rows to draw from as ranges of at least one"),
        ([], {"allowed": [range(3, 9), range(8, 12)]}, "the ranges of allowed overlap or descend"),
        ([], {"params": SamplingParams(guidance_scale=2)}, "guidance_scale is 2.0; text has no unconditional prompt"),
    ],
)
def test_what_makes_no_sense_is_refused(prompts: list[Continuation], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        complete(tiny_model(), prompts, **{"params": SamplingParams(), "batch_tokens": 100} | options)


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball."
)


@pytest.mark.parametrize("kind", ["llama_rotary", "rotary"])
def test_a_real_model_tells_its_documented_story(shared: Path, kind: str) -> None:
    """What llama2.c prints for these weights, greedily from the beginning of a text."""
    folder = shared / "golden" / "stories260k_openlm"
    config = str(folder / f"stories260k_{kind}.json")
    model = load_model(folder / f"stories260k_{kind}.pt", config, dtype="float32", device="cpu")
    [ids] = complete(model, [Continuation("", (1,), 64)], SamplingParams(temperature=0), batch_tokens=1_000)
    assert read_tokenizer(folder / "tokenizer.json").decode(ids).startswith(STORY)
