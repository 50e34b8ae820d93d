import pytest

from evalsvc.metrics.ngrams import distinct_n, seq_rep


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
    found = seq_rep(ids, n)
    assert found is expected if expected is None else found == pytest.approx(expected)


def test_distinct_counts_over_all_texts_together() -> None:
    """Draws that are all the same are not varied, however varied each of them is."""
    assert distinct_n([[1, 2, 3], [1, 2, 3]], 1) == 0.5
    assert distinct_n([[1, 2, 3], [1, 2, 3]], 2) == 0.5
    assert distinct_n([[1, 2, 3], [4, 5]], 2) == 1


def test_no_ngram_reaches_over_the_end_of_a_text() -> None:
    """Where texts were joined, [2, 1] would be a bigram that none of them has."""
    assert distinct_n([[1, 2], [1, 2]], 2) == 0.5
    assert distinct_n([[1], [2]], 2) is None


def test_repetition_is_what_distinct_lacks() -> None:
    ids = [1, 1, 2, 1, 1, 2, 3]
    for n in (1, 2, 3, 4):
        assert seq_rep(ids, n) == 1 - distinct_n([ids], n)
