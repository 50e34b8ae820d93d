"""What is shared and what attends together, against the sequences themselves."""

from collections import Counter
from collections.abc import Sequence

import pytest
from shared_beginnings import random_sequences

from evalsvc.models.trie import Trie, build_trie

Ids = tuple[int, ...]


def ids(text: str) -> Ids:
    return tuple(map(ord, text))


def seen(trie: Trie, node: int) -> list[int]:
    """The nodes that attention shows to a node: itself and its ancestors, as `ends` says."""
    return [other for other in range(len(trie.ids)) if other <= node < trie.ends[other]]


def check(trie: Trie, sequences: Sequence[Ids], budget: int) -> None:
    for sequence, path in zip(sequences, trie.paths, strict=True):
        assert [int(trie.ids[node]) for node in path] == list(sequence)
        assert [int(trie.positions[node]) for node in path] == list(range(len(sequence)))
        assert seen(trie, path[-1]) == list(path), "the last of its nodes sees the sequence and nothing else"
    complete = Counter(index for batch in trie.batches for index in batch.complete)
    assert complete == Counter(range(len(sequences)))
    rows = [row for batch in trie.batches for row in batch.rows]
    assert [node for row in rows for node in range(row.start, row.stop)] == list(range(len(trie.ids)))
    computed: set[int] = set()
    for batch in trie.batches:
        assert batch.stop - batch.start <= budget or len(batch.rows) == 1
        for index in batch.complete:
            assert max(trie.paths[index]) < batch.stop
        for row in batch.rows:
            keys = {*map(int, row.stem), *range(row.start, row.stop)}
            wanted = {other for node in range(row.start, row.stop) for other in seen(trie, node)}
            assert wanted <= keys
            assert row.plain == (wanted == set(range(row.start, row.stop)) and is_chain(trie, row.start, row.stop))
        # What is attended to was computed, and is kept: the batch before had it too, or made it.
        carried = set(map(int, batch.carried))
        assert carried <= computed
        assert {int(node) for row in batch.rows for node in row.stem if node < batch.start} <= carried
        computed = carried | set(range(batch.start, batch.stop))
        nodes = [*map(int, batch.carried), *range(batch.start, batch.stop)]
        assert [nodes[place] for place in batch.places(batch.carried)] == nodes[: len(carried)]
        assert batch.places(trie.ids[:0]).size == 0


def is_chain(trie: Trie, start: int, stop: int) -> bool:
    return all(int(trie.positions[node]) == node - start for node in range(start, stop))


@pytest.mark.parametrize("budget", [1, 7, 30, 100, 10_000])
def test_every_sequence_is_a_path(budget: int) -> None:
    sequences = random_sequences()
    trie = build_trie(sequences, budget)
    check(trie, sequences, budget)
    assert len(trie.ids) == len(build_trie(sequences).ids), "a budget cuts batches, and computes nothing twice"


def test_options_share_their_context() -> None:
    sequences = [ids("which?ab"), ids("which?d"), ids("which?")]
    trie = build_trie(sequences)
    assert list(trie.ids) == [*ids("which?"), *ids("ab"), *ids("d")]
    assert list(trie.positions) == [0, 1, 2, 3, 4, 5, 6, 7, 6]
    [batch] = trie.batches
    [row] = batch.rows
    assert not row.plain
    check(trie, sequences, 100)


def test_equal_sequences_and_a_beginning_of_another_cost_nothing() -> None:
    sequences = [ids("abcdef"), ids("abc"), ids("abcdef")]
    trie = build_trie(sequences)
    assert len(trie.ids) == 6
    [row] = trie.batches[0].rows
    assert row.plain, "they are one line, and its attention needs no mask"
    check(trie, sequences, 100)


def test_two_contexts_of_a_schema_share_their_stem() -> None:
    stem = "The trophy does not fit into the suitcase since "
    sequences = [ids(f"{stem}{what} is too large") for what in ("the trophy", "the suitcase")]
    trie = build_trie(sequences)
    assert len(trie.ids) == sum(map(len, sequences)) - len(f"{stem}the ")
    check(trie, sequences, 1_000)


def test_questions_share_their_solved_examples_in_rows_of_their_own() -> None:
    """In one row each question would be scored against every other, to be masked: 20 times the attention."""
    block = ids("solved " * 30)
    questions = [ids(f"{number}{' question' * 5}") for number in range(20)]
    trie = build_trie([block + question for question in questions])
    assert len(trie.ids) == len(block) + sum(map(len, questions)) - 10 * len("1")
    rows = trie.batches[0].rows
    assert len(rows) > 5
    assert sum(row.size * row.keys for row in rows) < len(trie.ids) ** 2 / 2


def test_texts_with_a_first_word_in_common_share_nothing() -> None:
    """The mask would cost more than the word, so that plain texts keep plain causal attention. The longest is first."""
    sequences = [ids(f"The {word * length}") for word, length in (("cat", 30), ("dog", 40), ("eel", 35))]
    rows = [row for batch in build_trie(sequences).batches for row in batch.rows]
    assert all(row.plain for row in rows)
    assert [row.size for row in rows] == [124, 109, 94]


def test_a_long_beginning_is_carried_from_batch_to_batch() -> None:
    sequences = [(*range(50), 100 + number, number) for number in range(30)]
    trie = build_trie(sequences, 64)
    check(trie, sequences, 64)
    assert [len(batch.carried) for batch in trie.batches] == [0, *[50] * (len(trie.batches) - 1)]
    assert len(trie.ids) == 50 + 60


def test_nothing() -> None:
    trie = build_trie([], 10)
    assert not trie.batches
    assert not len(trie.ids)
