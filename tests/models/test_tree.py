"""Tokens of a trie against each sequence alone, in float64."""

import random
from typing import Any

import pytest
import torch
from shared_beginnings import random_sequences
from small_models import small_model

from evalsvc.errors import InvalidData
from evalsvc.models import Carried, Transformer, build_trie, read_trie, tree_hidden


def build_model(kind: str, **changes: Any) -> Transformer:
    fields = {"n_layers": 3, "seq_len": 64, "vocab_size": 200, "positional_embedding_type": kind}
    return small_model(torch.float64, **fields | changes)


@pytest.mark.parametrize("budget", [1, 20, 90, None])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {"qk_norm": True}) for kind in ("rotary", "llama_rotary", "head_rotary", "none")),
        *(("rotary", {"n_heads": 6, "n_kv_heads": shared}) for shared in (1, 3)),
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
    """With which a generation goes on."""
    model, sequence = build_model("rotary"), (5, 6, 7, 8)
    trie = build_trie([sequence, (5, 6, 9)])
    _, found = tree_hidden(model, trie, trie.batches[0], Carried(), trie.ids * 0 + range(len(trie.ids)))
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
    for path in trie.paths[:3]:
        assert hidden[torch.tensor(path)].isfinite().all()
    assert not hidden[trie.paths[3][-1]].isfinite().all()


def test_the_table_of_positions_ends() -> None:
    model = build_model("llama_rotary", seq_len=4)
    with pytest.raises(InvalidData, match="position 8 is beyond"):
        list(read_trie(model, build_trie([tuple(range(9))])))
