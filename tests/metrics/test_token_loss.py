"""Losses of tokens and of unigrams, divergences of next-token distributions, and n-grams that repeat."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from mixed_layouts import plain_loss
from torch import Tensor

from evalsvc.metrics import entropy
from evalsvc.metrics.entropy import CONCENTRATIONS, distinct_n, seq_rep, unigram_loss
from evalsvc.metrics.token_loss import TokenLosses, chunk_rows, divergences, token_losses

BLOCKS: list[tuple[list[range], range | None]] = [
    ([range(12)], range(12, 20)),
    ([range(12)], range(15, 20)),
    ([range(8, 20)], range(8)),
    ([range(5, 11)], range(13, 19)),
    ([range(12)], None),
    ([range(20)], None),
    ([range(2), range(5, 9), range(16, 20)], range(10, 15)),  # image and special rows inside the text
    ([range(1, 2), range(7, 20)], range(2, 6)),
]


def slow(logits: Tensor, targets: Tensor, text: Sequence[int], image: Any, heads_apart: bool = False) -> TokenLosses:
    rows = zip(logits, targets.tolist(), strict=True)
    losses = [plain_loss(row, target, text, image or (), heads_apart) for row, target in rows]
    nll, within, mass = torch.tensor(losses, dtype=torch.float64).unbind(1)
    return TokenLosses(nll, within, mass.log())


@pytest.mark.parametrize("heads_apart", [False, True])
@pytest.mark.parametrize(("text", "image"), BLOCKS)
@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_equals_the_definition(text: list[range], image: range | None, chunk: int, heads_apart: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 6, generator=generator)
    weight = 3 * torch.randn(20, 6, generator=generator)
    targets = torch.randint(20, (50,), generator=generator)
    found = token_losses(hidden, targets, lambda some: some @ weight.T, text, image, chunk, heads_apart)
    expected = slow(hidden @ weight.T, targets, [*chain(*text)], image, heads_apart)
    torch.testing.assert_close(found.nll.double(), expected.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.within.double(), expected.within, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.image_log_mass.double(), expected.image_log_mass, rtol=1e-5, atol=1e-5)


def test_a_block_far_below_the_other_keeps_its_loss() -> None:
    """exp underflows at -104: with one maximum for all ids, the loss within the image ids would be infinite."""
    logits = torch.tensor([[0.0, 1.0, -300.0, -301.0]])
    found = token_losses(torch.zeros(1, 1), torch.tensor([3]), lambda some: logits, [range(2)], range(2, 4), 1)
    expected = slow(logits, torch.tensor([3]), range(2), range(2, 4))
    torch.testing.assert_close(found.within, expected.within.float())
    torch.testing.assert_close(found.nll, expected.nll.float())
    torch.testing.assert_close(found.image_log_mass, torch.tensor([-301.0]))


def test_the_head_never_sees_more_than_a_chunk() -> None:
    """1,152 positions of 66,823 logits are 308 MB a sequence; a batch of them is what the memory cannot hold."""
    seen = []

    def head(some: Tensor) -> Tensor:
        seen.append(len(some))
        return some @ torch.ones(4, 3).T

    token_losses(torch.ones(10, 3), torch.zeros(10, dtype=torch.int64), head, [range(4)], None, 4)
    assert seen == [4, 4, 2]
    assert (chunk_rows(66_823), chunk_rows(1 << 30)) == (251, 1)


def test_nan_comes_through() -> None:
    logits = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 2.0, 1.0]])
    found = token_losses(torch.zeros(2, 1), torch.tensor([0, 0]), lambda some: logits, [range(2)], range(2, 3), 2)
    assert found.nll.isnan().tolist() == [True, False]
    divergence = divergences(torch.zeros(2, 3), logits, [range(2)], [range(2)], same_rows=True)
    assert divergence.kl.isnan().tolist() == divergence.kl_within.isnan().tolist() == [True, False]


def logits(seed: int, rows: int, scale: float = 3.0, n: int = 40) -> Tensor:
    return scale * torch.randn(n, rows, generator=torch.Generator().manual_seed(seed))


def slow_kl(p: Tensor, q: Tensor) -> Tensor:
    """The definition, in float64; `p` and `q` are distributions over the same ids."""
    return (p * (p / q).log()).sum(1)


@pytest.mark.parametrize("text", [range(12), range(5, 17), range(20)])
def test_equals_the_definition_over_all_rows(text: range) -> None:
    base, other = logits(0, 20), logits(1, 20)
    found = divergences(base, other, [text], [text], same_rows=True)
    p, q = base.double().softmax(1), other.double().softmax(1)
    torch.testing.assert_close(found.kl, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    inside = slice(text.start, text.stop)
    p, q = base.double()[:, inside].softmax(1), other.double()[:, inside].softmax(1)
    torch.testing.assert_close(found.kl_within, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    assert found.agree.tolist() == (base.argmax(1) == other.argmax(1)).tolist()


def test_equals_the_definition_over_text_where_the_rows_differ() -> None:
    """A base before it was widened, behind a text block that begins elsewhere; it has two rows more of padding."""
    base, other = logits(2, 14), logits(3, 30)
    found = divergences(base, other, [range(12)], [range(10, 22)], same_rows=False)
    p, q = base.double()[:, :12].softmax(1), other.double().softmax(1)[:, 10:22]
    torch.testing.assert_close(found.kl, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.kl_within, slow_kl(p, q / q.sum(1, True)), rtol=1e-5, atol=1e-6)
    assert found.agree.tolist() == (base[:, :12].argmax(1) + 10 == other.argmax(1)).tolist()


def test_equals_the_definition_over_text_in_several_ranges() -> None:
    base, other = logits(4, 14), logits(5, 30)
    other[:9, 10] = other[:9, 21] = 20  # equally likely: the first counts
    base[:5, 0] = base[5:9, 6] = 20
    places, moved = [[range(2), range(5, 12)], [range(10, 12), range(20, 27)]], [0, 1, 5, 6, 7, 8, 9, 10, 11]
    found = divergences(base, other, *places, same_rows=False)
    p, rows = base.double()[:, moved].softmax(1), [10, 11, *range(20, 27)]
    q = other.double().softmax(1)[:, rows]
    torch.testing.assert_close(found.kl, slow_kl(p, q), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.kl_within, slow_kl(p, q / q.sum(1, True)), rtol=1e-5, atol=1e-6)
    assert found.agree.tolist() == [rows[top] == best for top, best in zip(p.argmax(1), other.argmax(1), strict=True)]
    assert found.agree[:9].tolist() == [True] * 5 + [False] * 4


def test_small_divergences_are_not_lost_in_rounding() -> None:
    """Neighbouring checkpoints: with logits changed by 0.01 in 50,000 rows KL is about 5e-5."""
    base = logits(7, 50_000, n=4)
    other = base + logits(8, 50_000, scale=0.01, n=4)
    found = divergences(base, other, [range(50_000)], [range(50_000)], same_rows=True)
    log_p, log_q = base.double().log_softmax(1), other.double().log_softmax(1)
    torch.testing.assert_close(found.kl, (log_p.exp() * (log_p - log_q)).sum(1), rtol=0, atol=1e-6)
    same = divergences(base, base.clone(), [range(50_000)], [range(50_000)], same_rows=True)
    assert same.kl.tolist() == same.kl_within.tolist() == [0.0] * 4, "the base of a run is a point of its own curve"
    assert bool(same.agree.all())
    base = torch.tensor([[0.0, -torch.inf, 0.0]])  # 0 · (-inf) is NaN: what is impossible to the base weighs nothing
    found = divergences(base, torch.tensor([[0.0, 1.0, 0.0]]), [range(3)], [range(3)], same_rows=True)
    assert found.kl.item() == pytest.approx(math.log((2 + math.e) / 2))


Token = tuple[int, int, int, int]
"""Group, sequence, place and id."""


def predicted(token: Token, others: list[Token], size: int, a: float, b: float | None) -> float:
    """−ln p of one id under all that the others say, counted anew."""
    _, _, place, wanted = token
    p = (sum(one[3] == wanted for one in others) + a / size) / (len(others) + a)
    if b is not None:
        here = [one[3] for one in others if one[2] == place]
        p = (here.count(wanted) + b * p) / (len(here) + b)
    return -math.log(p)


def slow_unigrams(tokens: list[Token], size: int, by_place: bool, fitted: set[int]) -> dict[int, list[float]]:
    """The definition: losses by sequence, everything refitted without the group of each id.

    `fitted` are the groups that concentrations are fitted to.
    """
    half_of = {group: number % 2 for number, group in enumerate(sorted({token[0] for token in tokens}))}
    concentrations = []
    for half in (0, 1):
        own = [token for token in tokens if half_of[token[0]] == half]

        def loss(a: float, b: float | None, own: list[Token] = own) -> float:
            return sum(
                predicted(token, [one for one in own if one[0] != token[0]], size, a, b)
                for token in own
                if token[0] in fitted
            )

        a = min(CONCENTRATIONS, key=lambda a: loss(a, None))
        concentrations.append((a, min(CONCENTRATIONS, key=lambda b: loss(a, b)) if by_place else None))
    losses: dict[int, list[float]] = {}
    for token in tokens:
        a, b = concentrations[1 - half_of[token[0]]]
        others = [one for one in tokens if one[0] != token[0]]
        losses.setdefault(token[1], []).append(predicted(token, others, size, a, b))
    return losses


@pytest.mark.parametrize("chunk", [1 << 20, 40])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("by_place", [False, True])
def test_equals_refitting(by_place: bool, grouped: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts that are taken from a table, less the group's own, are those of the other groups."""
    monkeypatch.setattr(entropy, "CHUNK", chunk)
    generator = np.random.default_rng(3)
    lengths = generator.integers(0, 9, 16)
    owners = np.repeat(np.arange(16), lengths)
    ids = generator.integers(0, 4, len(owners)) ** 2
    places = np.concatenate([np.arange(length) for length in lengths]) // (2 if grouped else 1)
    groups = [index % 5 for index in range(16)] if grouped else None
    labels = owners if groups is None else np.array(groups)[owners]
    tokens = list(zip(*(values.tolist() for values in (labels, owners, places, ids)), strict=True))
    last = sorted(labels.tolist())[min(chunk, len(ids)) - 1]
    expected = slow_unigrams(tokens, 12, by_place, {group for group in labels.tolist() if group <= last})
    found = unigram_loss(ids, owners, 12, places if by_place else None, groups)
    everything = [loss for losses in expected.values() for loss in losses]
    assert found.loss == pytest.approx(sum(everything) / len(everything), rel=1e-10)
    deviations: dict[int, float] = {}
    for owner, losses in expected.items():
        group = owner if groups is None else groups[owner]
        deviations[group] = deviations.get(group, 0.0) + sum(losses) - found.loss * len(losses)
    count = len(deviations)
    stderr = math.sqrt(count / (count - 1) * sum(value**2 for value in deviations.values())) / len(ids)
    assert found.stderr == pytest.approx(stderr, rel=1e-10)
    assert (found.ids, found.sequences, found.groups) == (len(ids), len(expected), 5 if grouped else None)
    seen = Counter(token for token, _ in {(one[3], one[0]) for one in tokens})
    assert found.unseen == pytest.approx(sum(seen[token] == 1 for token in ids.tolist()) / len(ids))
    assert found.distinct == len(seen)


def test_two_sequences_by_hand() -> None:
    """One group alone has no others to fit a concentration to: half a count goes to each id."""
    found = unigram_loss(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 4)
    first, second = -2 * math.log(1.5 / 4), -math.log(2.5 / 4) - math.log(0.5 / 4)
    assert found.loss == pytest.approx((first + second) / 4)
    assert found.unseen == 0.25
    assert unigram_loss(np.zeros(0, int), np.zeros(0, int), 4) is None
    assert unigram_loss(np.array([1, 2]), np.array([3, 3]), 4) is None
    assert unigram_loss(np.array([1, 2]), np.array([0, 1]), 4, groups=[0, 0]) is None, "one group predicts nothing"
    assert unigram_loss(np.array([1, 2]), np.array([0, 1]), 4) is not None


def test_places_that_tell_the_id_leave_nothing_to_learn() -> None:
    places = np.tile(np.arange(32), 200)
    assert unigram_loss(places, np.repeat(np.arange(200), 32), 1024, places).loss < 0.03


@pytest.mark.parametrize(
    ("ids", "n", "expected"),
    [
        ([1, 2, 3, 4, 5], 4, 0.0),
        ([7] * 13, 4, 1 - 1 / 10),  # ten 4-grams, all the same
        ([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4], 4, 1 - 4 / 9),
        ([1, 2, 1, 2], 1, 0.5),
        ([1, 2, 3], 4, None),
        ([], 1, None),
    ],
)
def test_repetition_by_hand(ids: list[int], n: int, expected: float | None) -> None:
    """A completion that is too short to repeat anything is none without repetition."""
    assert seq_rep(ids, n) == (None if expected is None else pytest.approx(expected))


def test_distinct_counts_over_all_texts_together() -> None:
    """Draws that are all the same are not varied, however varied each of them is. Where texts were joined, [2, 1]
    would be a bigram that none of them has."""
    texts = [[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [4, 5]], [[1, 2], [1, 2]], [[1], [2]]
    assert [distinct_n(each, n) for each, n in zip(texts, (1, 2, 2, 2, 2), strict=True)] == [0.5, 0.5, 1, 0.5, None]
