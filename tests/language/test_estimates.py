"""Aggregations of lm-eval and their errors, where they are hopeless and where they have no formula."""

import math
import random
import statistics

import pytest
from lm_eval.api import metrics as lm_metrics

from evalsvc.language.scoring import estimate


def test_estimates_survive_hopeless_models() -> None:
    """exp of 1,000 nats overflows, which lm-eval dies of; resamples without a class must not warn or end it."""
    hopeless = estimate(lm_metrics.perplexity, [-1000.0, -2000.0])
    assert hopeless is not None
    assert hopeless.ratio.value == math.inf
    one_class = estimate(lm_metrics.matthews_corrcoef, [(0, 0)] * 18 + [(1, 1), (1, 0)])
    assert one_class is not None
    assert one_class.ratio.stderr is not None
    ragged = estimate(lm_metrics.nanmean, [1.0, math.nan, 0.0])
    assert ragged is not None
    assert (ragged.ratio.value, ragged.ratio.n) == (0.5, 2)
    assert estimate(lm_metrics.nanmean, [math.nan]) is None
    assert estimate(lambda values: {"a": 1}, [1.0]) is None


def test_errors_without_a_formula_are_those_of_a_bootstrap() -> None:
    chance = random.Random(1)
    losses = [chance.gauss(-2, 0.5) for _ in range(300)]
    for aggregation in (lm_metrics.median, lm_metrics.perplexity):
        found = estimate(aggregation, losses)
        assert found is not None
        resampled = [aggregation(chance.choices(losses, k=300)) for _ in range(1000)]
        assert found.ratio.stderr == pytest.approx(statistics.stdev(resampled), rel=0.15)
    assert estimate(lm_metrics.median, losses) == estimate(lm_metrics.median, losses)


def test_a_bootstrap_of_few_documents_gives_no_error() -> None:
    """Of 8 documents, the interval of an F1 of .75 covered it in .88 of samples, and the error was 0 in .10."""
    answers = [(0, 0), (1, 1)] * 10
    for few in (answers[:8], answers[:19], answers):
        found = estimate(lm_metrics.f1_score, few)
        assert found is not None
        assert (found.ratio.value, found.ratio.stderr) == (1.0, None), "too few, or resamples that never move the value"
    moved = estimate(lm_metrics.f1_score, [*answers[:19], (1, 0)])
    assert moved is not None
    assert moved.ratio.stderr is not None
    assert moved.ratio.stderr > 0


def test_all_answers_of_a_question_are_one_group() -> None:
    """Its error was that of 180 questions, but its interval and its printed n those of 900 independent answers."""
    answers = [
        (question % 3 > 0 or answer > 0, {"idx": {"paragraph": question // 9, "question": question}, "label": 1})
        for question in range(180)
        for answer in range(5)
    ]
    found = estimate(lm_metrics.acc_all, answers)
    assert found is not None
    assert found.ratio.value == pytest.approx(2 / 3)
    assert (found.ratio.n, found.ratio.groups, found.ratio.independent) == (900, 180, 180)
    assert found.ratio.stderr == pytest.approx(lm_metrics.acc_all_stderr(answers))
    all_right = estimate(lm_metrics.acc_all, [(True, document) for _, document in answers])
    assert all_right is not None
    assert all_right.ratio.stderr, "the next question may be wrong"
