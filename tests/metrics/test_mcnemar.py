"""McNemar's counts and Holm's correction against scipy and against their definitions."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest

from evalsvc.metrics.mcnemar import McNemar, holm, mcnemar


def test_each_question_is_counted_once() -> None:
    counts = mcnemar([True, True, False, False, True], [True, False, True, False, False])
    assert counts == McNemar(both=1, only_a=2, only_b=1, neither=1)
    assert counts.n == 5


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (3, 3), (2, 9), (40, 71), (700, 500)])
def test_the_p_value_is_that_of_the_sign_test(only_a: int, only_b: int) -> None:
    """A normal approximation would call 0 against 5 significant."""
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert McNemar(10, only_a, only_b, 10).p == pytest.approx(expected, rel=1e-9)


def test_questions_on_which_both_agree_say_nothing() -> None:
    assert McNemar(0, 3, 8, 0).p == McNemar(500, 3, 8, 4000).p


def test_answers_to_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        mcnemar([True], [True, False])


def test_holm_steps_down_and_keeps_the_order() -> None:
    """The published example: 4 tests, of which the third smallest takes over the second's larger product."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_leaves_out_what_was_not_tested() -> None:
    first, second, third = holm([0.01, math.nan, 0.04])
    assert (first, third) == (0.02, 0.04)
    assert math.isnan(second)
