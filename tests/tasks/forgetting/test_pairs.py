"""The numbers of base and checkpoint on the same documents."""

import math

import pytest
from benchmark_results import results

from evalsvc.language.results import Results
from evalsvc.tasks.forgetting.pairs import Pairs, accuracy_pairs


def test_documents_that_both_have_in_the_order_of_the_checkpoint() -> None:
    own, base = results(a=[1.0, 0.0, 1.0], b=[0.0]), results(a=[0.0, 1.0])
    pairs = accuracy_pairs(Results(own.metrics, own.items[::-1], own.notes), base, "a", "")
    assert pairs is not None
    assert (pairs.indices, pairs.checkpoint, pairs.base) == ([1, 0], [0.0, 1.0], [1.0, 0.0])
    assert accuracy_pairs(own, base, "b", "") is None, "the base has no such document"


def test_a_model_that_is_all_text_is_the_same_within_text() -> None:
    pairs = accuracy_pairs(results(a=[1.0, 0.0]), results(a=[1.0, 1.0], within=False), "a", "_within")
    assert pairs is not None
    assert (pairs.checkpoint, pairs.base) == ([1.0, 0.0], [1.0, 1.0])


def test_the_errors_of_a_sample_without_replacement_are_smaller() -> None:
    """Half of all documents leave half of the variance, of the sides and of their difference."""
    numbers = [0.0, 1.0, 2.0], [1.0, 1.0, 4.0], [2, 2, 4]
    whole, half = Pairs(*numbers), Pairs(*numbers, drawn_from=6)
    for found, other in (
        (half.side(half.base), whole.side(whole.base)),
        (half.difference(), whole.difference()),
    ):
        assert found.value == other.value
        assert found.stderr == pytest.approx((other.stderr or 0) / math.sqrt(2))
