"""Packed scores against one request at a time with all logits."""

import math
import random
from collections.abc import Sequence
from dataclasses import astuple
from itertools import chain
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from mixed_layouts import mixed_layout, with_heads_apart
from small_models import small_model
from torch import Tensor

from evalsvc.errors import Cancelled, InvalidData, NonFinite
from evalsvc.models import Transformer
from evalsvc.scoring import Request, Score, score, scorer
from evalsvc.scoring.scorer import CPU_BATCH_TOKENS, target_columns, token_batches
from evalsvc.spec.layout import ImageBlock, TextBlock, VocabularyLayout, text_only

ROWS = 48
BUDGET = 64

CONFIGS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "llama_rotary, rms_norm, tied": {"positional_embedding_type": "llama_rotary", "model_norm": "rms_norm"}
    | {"weight_tying": True},
    "head_rotary, qk_norm": {"positional_embedding_type": "head_rotary", "qk_norm": True},
    "no positions, gemma_geglu": {"positional_embedding_type": "none", "ffn_type": "gemma_geglu"},
    "post_embed_norm, lp_layer_norm": {"post_embed_norm": True, "model_norm": "lp_layer_norm", "qk_norm": True},
}


def layout_of(text: range, image: range | None, **special: int) -> VocabularyLayout:
    block = None if image is None else ImageBlock(offset=image.start, size=len(image))
    layout = VocabularyLayout(text=TextBlock(offset=text.start, size=len(text)), image=block, special=special)
    return layout.resolve(ROWS)


LAYOUTS = {
    "text only": text_only(ROWS),
    "image then special": layout_of(range(24), range(24, 40), doc=40, pad=41),
    "image first, then a gap": layout_of(range(20, 44), range(16), doc=17),
    "text in the middle": layout_of(range(8, 32), None),
    "image and special inside text": mixed_layout(ROWS, range(2, 44), range(9, 20), doc=5, pad=20, end=43),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def build_model(kind: type[Transformer] = Transformer, **changes: Any) -> Transformer:
    return small_model(kind=kind, **{"vocab_size": ROWS} | changes)


def make_requests(model: Transformer, layout: VocabularyLayout) -> list[Request]:
    """Questions with options of one id and of many, one asked twice, one text split at two places, and the likeliest
    continuations: over all ids and within text ids."""
    pick = random.Random(0)
    text = [*chain(*layout.text_ranges)]

    def some(most: int) -> tuple[int, ...]:
        return tuple(pick.choices(text, k=pick.randint(1, most)))

    contexts = [some(12) for _ in range(12)]
    requests = [Request(context, some(9)) for context in contexts for _ in range(pick.randint(1, 5))]
    requests += [Request(contexts[0], (token,)) for token in text[:4]]
    requests += [requests[3], requests[3]]
    words = some(4) + some(4) + some(4)
    requests += [Request(words[:2], words[2:]), Request(words[:4], words[4:])]
    for context in contexts[:4]:
        requests.append(Request(context, likeliest(model, context, range(ROWS), pick.randint(1, 5))))
        requests.append(Request(context, likeliest(model, context, text, pick.randint(1, 5))))
    return requests


def likeliest(model: Transformer, context: Sequence[int], rows: Sequence[int], count: int) -> tuple[int, ...]:
    ids = list(context)
    for _ in range(count):
        ids.append(rows[int(model(torch.tensor([ids]))[0, -1, list(rows)].argmax())])
    return tuple(ids[len(context) :])


def slow_score(model: Transformer, layout: VocabularyLayout, request: Request) -> Score:
    """The definition: one sequence, all logits, in float64 from the hidden states on."""
    ids = torch.tensor([request.context + request.continuation])
    hidden = model.hidden(ids[:, :-1])[0, len(request.context) - 1 :]
    logits = hidden.double() @ model.output.weight.double().T
    columns = slow_columns(logits, torch.tensor(request.continuation), layout).sum(0).tolist()
    return Score(columns[0], columns[1] == 0, columns[2], columns[3] == 0, columns[4])


def slow_columns(logits: Tensor, ids: Tensor, layout: VocabularyLayout, heads_apart: bool = False) -> Tensor:
    """The definition, one target after the other; `chosen` are the ids of each softmax."""
    text, image = [*chain(*layout.text_ranges)], list(layout.image_range or ())
    rows = []
    for row, target in zip(logits.double(), ids.tolist(), strict=True):
        chosen = list(range(ROWS))
        if heads_apart:
            chosen = image if target in image else [one for one in chosen if one not in image]
        columns = []
        for some in (chosen, sorted({*text, target})):
            among = row[some]
            columns += [float(among.log_softmax(0)[some.index(target)]), int(among.argmax()) != some.index(target)]
        columns[3] |= target not in text
        rows.append([*columns, 0.0 if heads_apart else float(row.softmax(0)[image].sum())])
    return torch.tensor(rows, dtype=torch.float64)


def assert_equal(found: Sequence[Score], expected: Sequence[Score], tolerance: float) -> None:
    ours, theirs = (torch.tensor([astuple(one) for one in scores], dtype=torch.float64) for scores in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=2e-7, atol=tolerance)  # flags are 0 or 1


def check(
    model: Transformer, layout: VocabularyLayout, requests: list[Request], tolerance: float = 1e-5
) -> list[Score]:
    expected = [slow_score(model, layout, request) for request in requests]
    assert_equal(score(model, layout, requests, BUDGET), expected, tolerance)
    return expected


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_one_request_at_a_time(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model, layout = build_model(**changes).to(dtype), LAYOUTS["image then special"]
    # The logits are float32 in any case, and a continuation sums up to nine of them.
    scores = check(model, layout, make_requests(model, layout), 1e-5 if dtype == torch.float32 else 2e-6)
    assert {one.greedy for one in scores} == {one.greedy_within for one in scores} == {True, False}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout: VocabularyLayout) -> None:
    model = build_model()
    scores = check(model, layout, make_requests(model, layout))
    assert all((one.image_mass > 0) == (layout.image is not None) for one in scores)


def cut_tiles(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(scorer, "LEAST_COLUMNS", columns)
    monkeypatch.setattr(scorer, "CPU_TILE_BYTES", 0)


@pytest.mark.parametrize("budget", [1, 17, 100_000])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_neither_batch_nor_tile_nor_order_matters(budget: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, layout = build_model(), LAYOUTS["image then special"]
    requests = make_requests(model, layout)
    expected = score(model, layout, requests, BUDGET)
    cut_tiles(monkeypatch, chunk)
    assert_equal(score(model, layout, requests, budget), expected, 1e-5)
    order = random.Random(1).sample(range(len(requests)), len(requests))
    shuffled = score(model, layout, [requests[index] for index in order], budget)
    assert_equal(shuffled, [expected[index] for index in order], 1e-5)


class Counting(Transformer):
    read: list[int]
    scored: int

    def mixed(self, ids: Tensor, *others: Any) -> Tensor:
        self.read.append(ids.numel())
        return super().mixed(ids, *others)

    def head(self, hidden: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        self.scored += len(hidden) * (rows.stop - rows.start)
        return super().head(hidden, rows)


def count(requests: Sequence[Request], batch_tokens: int) -> Counting:
    model = build_model(Counting)
    model.read, model.scored = [], 0
    score(model, text_only(ROWS), requests, batch_tokens)
    return model


def test_the_work_that_packing_saves() -> None:
    options = [(1,), (2,), (3,), (4, 5, 6), (7, 8, 9, 10), (4, 5, 7)]
    counted = count([Request(tuple(range(10)), option) for option in options] * 3, 1000)
    assert (counted.read, counted.scored) == ([10 + 2 + 3], (1 + 2 + 3) * ROWS)


@pytest.mark.parametrize("batch_tokens", [200, 100_000])
def test_batches_are_small_on_a_cpu(batch_tokens: int) -> None:
    budget = min(batch_tokens, CPU_BATCH_TOKENS)
    many = [Request((token, *range(39)), (other, 3)) for token in range(40) for other in range(2)]
    read = count(many, batch_tokens).read
    assert (sum(read), len(read), max(read) <= budget) == (40 * 42, math.ceil(40 / (budget // 42)), True)


def test_a_row_may_be_longer_than_the_table_of_positions() -> None:
    """Its positions are depths; counted along the row they would be refused."""
    model = build_model(positional_embedding_type="llama_rotary", seq_len=8)
    check(model, text_only(ROWS), [Request(tuple(range(10)), (token,) * 6) for token in range(5)])
    with pytest.raises(InvalidData, match="position 16 is beyond"):
        score(model, text_only(ROWS), [Request(tuple(range(10)), (1,) * 8)], BUDGET)


def test_progress_and_cancelling() -> None:
    model, layout = build_model(), text_only(ROWS)
    requests = make_requests(model, layout)
    seen: list[int] = []
    score(model, layout, requests, BUDGET, seen.append)
    assert seen == sorted(set(seen))
    assert (len(seen) > 3, seen[0], seen[-1]) == (True, 0, len(requests))
    assert score(model, layout, [], BUDGET) == []
    with pytest.raises(Cancelled):
        score(model, layout, requests, BUDGET, Mock(side_effect=[None, Cancelled("enough")]))


@pytest.mark.parametrize(("empty", "part"), [(Request((), (1,)), "context"), (Request((1,), ()), "continuation")])
def test_an_empty_part_is_named(empty: Request, part: str) -> None:
    with pytest.raises(InvalidData, match=f"^request 1 has an empty {part}; "):
        score(build_model(), text_only(ROWS), [Request((1,), (2,)), empty], BUDGET)


def test_what_is_not_finite_is_named() -> None:
    """NaN passes through the mask, 0 times NaN being NaN: the option before it in its row was once blamed."""
    model = build_model()
    model.tok_embeddings.weight[7] = math.nan
    requests = [Request((1, 2), (3, 4)), Request((1, 2), (5, 7)), Request((1, 2), (7, 5)), Request((1,), (5, 6, 2))]
    assert math.isfinite(score(model, text_only(ROWS), requests[:2], BUDGET)[1].logprob)  # the last id is not read
    with pytest.raises(NonFinite, match=r"of question 2 is not finite; the first part .* is tok_embeddings; the run"):
        score(model, text_only(ROWS), requests, BUDGET, name="question {}".format)


def test_batches_hold_the_budget_with_their_padding() -> None:
    assert list(token_batches([3, 9, 1, 4, 4, 20], 12)) == [[5], [1], [3, 4, 0], [2]]
    assert list(token_batches([], 12)) == []


@pytest.mark.parametrize("heads_apart", [False, True])
@pytest.mark.parametrize("layout", [LAYOUTS["image first, then a gap"], LAYOUTS["image and special inside text"]])
@pytest.mark.parametrize("tile", [1, 5, 1000])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_equals_all_logits_at_once(
    tile: int, spread: float, layout: VocabularyLayout, heads_apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole numbers, so that many are equally likely: across tiles too the first counts as the likeliest."""
    cut_tiles(monkeypatch, tile)
    torch.manual_seed(0)
    logits = (spread * torch.randn(50, ROWS)).round()
    at, ids = torch.arange(50).repeat_interleave(ROWS), torch.arange(ROWS).repeat(50)
    seen: list[int] = []

    def of_rows(hidden: Tensor, rows: slice) -> Tensor:
        assert len(hidden) == 50
        seen.extend(range(ROWS)[rows])
        return logits[:, rows].clone()

    found = target_columns(torch.zeros(50, 4), of_rows, at, ids, layout, heads_apart)
    torch.testing.assert_close(found, slow_columns(logits[at], ids, layout, heads_apart), rtol=1e-6, atol=1e-5)
    assert seen == list(range(ROWS)), "every id is computed once"
    assert [int((found[:, column] == 0).sum()) for column in (1, 3)] == [100 if heads_apart else 50, 50]


def test_a_model_says_that_its_heads_are_apart() -> None:
    model, layout = build_model(), LAYOUTS["image then special"]
    requests = make_requests(model, layout)[:12]
    found = score(with_heads_apart(model), layout, requests, BUDGET)
    for one, request in zip(found, requests, strict=True):
        whole = torch.tensor([request.context + request.continuation])
        logits = model(whole)[0, len(request.context) - 1 : -1]
        ids = torch.tensor(request.continuation)
        assert one.logprob == pytest.approx(float(slow_columns(logits, ids, layout, True)[:, 0].sum()), abs=1e-5)
        assert one.image_mass == 0
