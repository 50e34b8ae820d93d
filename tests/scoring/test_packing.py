import random
from collections import Counter

import pytest

from evalsvc.scoring.packing import Request, Row, pack, row_batches, token_batches


def request(context: str, continuation: str) -> Request:
    return Request(tuple(map(ord, context)), tuple(map(ord, continuation)))


def random_requests() -> list[Request]:
    """Questions with options of all lengths, some of them asked twice."""
    pick = random.Random(0)
    words = [tuple(pick.choices(range(9), k=pick.randint(1, 12))) for _ in range(40)]
    asked = [Request(context, option) for context in words[:10] for option in pick.sample(words, 12)]
    return asked + pick.sample(asked, 15)


def sequences(row: Row) -> list[tuple[int, ...]]:
    """What each branch of a row reads, context included, put together from what the model gets."""
    numbered = list(zip(row.ids, row.branch_numbers, row.positions, strict=True))
    found = []
    for number in range(1, len(row.branches) + 1):
        seen = [(token, position) for token, branch, position in numbered if branch in (0, number)]
        assert [position for _, position in seen] == list(range(len(seen)))
        found.append(tuple(token for token, _ in seen))
    return found


def test_options_share_their_context() -> None:
    (row,) = pack([request("which?", "abc"), request("which?", "de")], 100)
    assert row.ids == [*map(ord, "which?"), *map(ord, "ab"), *map(ord, "d")]
    assert row.positions == [0, 1, 2, 3, 4, 5, 6, 7, 6]
    assert row.branch_numbers == [0, 0, 0, 0, 0, 0, 1, 1, 2]
    assert row.length == 9


def test_options_of_one_token_cost_nothing() -> None:
    (row,) = pack([request("which?", option) for option in "ABCD"], 100)
    assert row.ids == [*map(ord, "which?")]
    assert row.requests == 4
    assert row.plain


def test_what_is_asked_twice_is_computed_once() -> None:
    once, twice = (pack(requests, 100) for requests in ([request("a", "bcd")], [request("a", "bcd")] * 2))
    assert [row.ids for row in once] == [row.ids for row in twice]
    assert list(twice[0].branches[(98, 99)].values()) == [[0, 1]]


def test_a_text_that_is_split_at_two_places_has_two_rows() -> None:
    """lm-eval 0.4.13 takes one's continuation for the other's, since the ids together are the same."""
    rows = pack([request("the quick", " brown fox"), request("the quick brown", " fox")], 100)
    assert [len(row.context) for row in rows] == [9, 15]
    assert rows[0].ids == rows[1].ids


@pytest.mark.parametrize("budget", [1, 10, 30, 1000])
def test_every_request_is_answered_once_whatever_the_budget(budget: int) -> None:
    requests = random_requests()
    rows = pack(requests, budget)
    answered = Counter[int]()
    for row in rows:
        for sequence, (branch, ends) in zip(sequences(row), row.branches.items(), strict=True):
            for last, indices in ends.items():
                assert {requests[index] for index in indices} == {Request(row.context, (*branch, last))}
                assert sequence == (*row.context, *branch)
                answered.update(indices)
        assert row.length == len(row.ids)
        assert len(row.branches) == 1 or row.length <= max(budget, 2 * len(row.context))
    assert answered == Counter(range(len(requests)))
    assert sum(row.requests for row in rows) == len(requests)


def test_a_long_context_is_not_repeated_for_a_small_budget() -> None:
    """Each option in a row of its own would be four times the work, to save memory that one of them needs anyway."""
    long = "x" * 50
    assert len(pack([request(long, option * 10) for option in "abcd"], 20)) == 1
    assert len(pack([request(long, option * 10) for option in "abcdefgh"], 20)) == 2


def test_plain_rows_are_batched_apart() -> None:
    """A row whose attention has a mask for its neighbours' sake has another rounding than alone."""
    rows = pack([*random_requests(), request("alone", "abc"), request("alone too", "abc")], 30)
    batches = list(row_batches(rows, 40))
    assert {row.plain for row in rows} == {True, False}
    for batch in batches:
        assert len({row.plain for row in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(row.length for row in batch) <= 40
    assert sorted(row.ids for batch in batches for row in batch) == sorted(row.ids for row in rows)


def test_batches_hold_the_budget_with_their_padding() -> None:
    lengths = [3, 9, 1, 4, 4, 20]
    batches = list(token_batches(lengths, 12))
    assert batches == [[5], [1], [3, 4, 0], [2]]
    assert list(token_batches([], 12)) == []
