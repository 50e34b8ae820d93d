"""Unigram losses, and n-grams that repeat."""

import math
from collections import Counter

import numpy as np
import pytest

from evalsvc.metrics import entropy
from evalsvc.metrics.entropy import CONCENTRATIONS, distinct_n, seq_rep, unigram_loss

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


def slow(tokens: list[Token], size: int, by_place: bool, fitted: set[int]) -> dict[int, list[float]]:
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
def test_equals_refitting_without_each_group(
    by_place: bool, grouped: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    expected = slow(tokens, 12, by_place, {group for group in labels.tolist() if group <= last})
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


def test_one_group_predicts_nothing() -> None:
    assert unigram_loss(np.zeros(0, int), np.zeros(0, int), 4) is None
    assert unigram_loss(np.array([1, 2]), np.array([3, 3]), 4) is None
    assert unigram_loss(np.array([1, 2]), np.array([0, 1]), 4, groups=[0, 0]) is None
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
