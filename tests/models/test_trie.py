"""What is shared and what attends together, and hidden states, against the sequences themselves."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from small_models import small_model

from evalsvc.errors import InvalidData
from evalsvc.models import Transformer, build_trie, read_trie
from evalsvc.models.trie import Carried, Trie, trie_hidden

Ids = tuple[int, ...]


def random_sequences() -> list[Ids]:
    """Contexts with options, some of which begin alike, solved examples before some, and some of it twice."""
    pick = random.Random(0)
    words = [tuple(pick.choices(range(4), k=pick.randint(1, 14))) for _ in range(30)]
    block = tuple(pick.choices(range(9), k=40))
    asked = [context + option for context in words[:8] for option in pick.sample(words, 6)]
    asked += [block + context + option for context in words[8:14] for option in pick.sample(words, 4)]
    return asked + pick.sample(asked, 15)


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
        assert all(max(trie.paths[index]) < batch.stop for index in batch.complete)
        for row in batch.rows:
            own = range(row.start, row.stop)
            wanted = {other for node in own for other in seen(trie, node)}
            assert wanted <= {*map(int, row.stem), *own}
            is_chain = all(int(trie.positions[node]) == node - row.start for node in own)
            assert row.plain == (wanted == set(own) and is_chain)
        # What is attended to was computed, and is kept: the batch before had it too, or made it.
        carried = set(map(int, batch.carried))
        assert carried <= computed
        assert {int(node) for row in batch.rows for node in row.stem if node < batch.start} <= carried
        computed = carried | set(range(batch.start, batch.stop))
        nodes = [*map(int, batch.carried), *range(batch.start, batch.stop)]
        assert [nodes[place] for place in batch.places(batch.carried)] == nodes[: len(carried)]


@pytest.mark.parametrize("budget", [1, 7, 30, 100, 10_000])
def test_every_sequence_is_a_path(budget: int) -> None:
    sequences = random_sequences()
    trie = build_trie(sequences, budget)
    check(trie, sequences, budget)
    assert len(trie.ids) == len(build_trie(sequences).ids), "a budget cuts batches, and computes nothing twice"


STEM = "The trophy does not fit into the suitcase since "


@pytest.mark.parametrize(
    ("texts", "nodes", "plain"),
    [
        (("which?ab", "which?d", "which?"), 9, [False]),  # options share their context
        (("abcdef", "abc", "abcdef"), 6, [True]),  # one line, whose attention needs no mask
        ((f"{STEM}the trophy is too large", f"{STEM}the suitcase is too large"), 48 + 4 + 19 + 21, [True, False]),
        ((), 0, []),
    ],
)
def test_common_beginnings_are_nodes_once(texts: Sequence[str], nodes: int, plain: list[bool]) -> None:
    sequences = list(map(ids, texts))
    trie = build_trie(sequences, 1_000)
    assert len(trie.ids) == nodes
    assert [row.plain for batch in trie.batches for row in batch.rows] == plain
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
    # A mask would cost more than a first word in common: plain texts keep plain causal attention. The longest is first.
    sequences = [ids(f"The {word * length}") for word, length in (("cat", 30), ("dog", 40), ("eel", 35))]
    rows = [row for batch in build_trie(sequences).batches for row in batch.rows]
    assert [(row.plain, row.size) for row in rows] == [(True, 124), (True, 109), (True, 94)]


def test_a_long_beginning_is_carried_from_batch_to_batch() -> None:
    sequences = [(*range(50), 100 + number, number) for number in range(30)]
    trie = build_trie(sequences, 64)
    check(trie, sequences, 64)
    assert [len(batch.carried) for batch in trie.batches] == [0, *[50] * (len(trie.batches) - 1)]
    assert len(trie.ids) == 50 + 60


def build_model(kind: str, **changes: Any) -> Transformer:
    fields = {"n_layers": 3, "seq_len": 64, "vocab_size": 200, "positional_embedding_type": kind}
    return small_model(torch.float64, **fields | changes)


@pytest.mark.parametrize("budget", [1, 20, 90, None])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {"qk_norm": True}) for kind in ("rotary", "llama_rotary", "head_rotary", "none")),
        *(("rotary", {"n_heads": 6, "n_kv_heads": shared}) for shared in (1, 3)),
        ("rotary", {"parallel_residual": True, "rotary_dims": 4, "attention_bias": True}),
        ("rotary", {"norm_place": "after", "model_norm": "rms_norm_wide", "embedding_scale": 8.0}),
    ],
    ids=str,
)
def test_equals_each_sequence_alone(kind: str, changes: dict[str, Any], budget: int | None) -> None:
    model, sequences = build_model(kind, **changes), random_sequences()
    trie = build_trie(sequences, budget)
    hidden = torch.cat([part for _, part in read_trie(model, trie)])
    assert len(hidden) == len(trie.ids) < sum(map(len, set(sequences)))
    for sequence, path in zip(sequences, trie.paths, strict=True):
        alone = model.hidden(torch.tensor([sequence]))[0]
        torch.testing.assert_close(hidden[torch.tensor(path)], alone, rtol=0, atol=1e-12)


def test_keys_and_values_are_those_of_a_cache() -> None:
    model, sequence = build_model("rotary"), (5, 6, 7, 8)
    trie = build_trie([sequence, (5, 6, 9)])
    _, found = trie_hidden(model, trie, trie.batches[0], Carried(), trie.ids * 0 + range(len(trie.ids)))
    cache = model.new_cache(1, 4)
    model.hidden(torch.tensor([sequence]), cache=cache)
    path = torch.tensor(trie.paths[0])
    for layer in range(3):
        torch.testing.assert_close(found.keys[layer][path].transpose(0, 1), cache.keys[layer, 0])
        torch.testing.assert_close(found.values[layer][path].transpose(0, 1), cache.values[layer, 0])


def test_nan_stays_within_what_shares_a_beginning() -> None:
    """What pads a row is its own first token: padding with another's would give a stranger its NaN."""
    model = build_model("rotary")
    model.tok_embeddings.weight[199] = torch.nan
    pick = random.Random(1)
    good = [(1, *pick.choices(range(2, 90), k=length)) for length in (9, 12, 20)]
    trie = build_trie([*good, (100, 199, 3), (100, 101, 4)])
    hidden = torch.cat([part for _, part in read_trie(model, trie)])
    assert all(bool(hidden[torch.tensor(path)].isfinite().all()) for path in trie.paths[:3])
    assert not hidden[trie.paths[3][-1]].isfinite().all()
    with pytest.raises(InvalidData, match="position 8 is beyond"):
        list(read_trie(build_model("llama_rotary", seq_len=4), build_trie([tuple(range(9))])))
