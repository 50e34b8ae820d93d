"""Every family against transformers' own implementation, on random weights that transformers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from decode_paths import PATHS, leave_uncompiled, stepped_logits
from tiny_families import MODELS, ROWS, write_theirs
from torch import Tensor

from evalsvc.models import DecodePath, Transformer, build_trie, load_model, read_trie

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("reference_models", "one_thread")

LENGTH, PROMPT = 60, 7
TOLERANCE = 1e-5
Pair = tuple["PreTrainedModel", Transformer]


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model of transformers, and what is read from the folder that it wrote."""
    folder = tmp_path_factory.mktemp(request.param)
    return write_theirs(request.param, folder), load_model(folder)


def some_ids(rows: int = 2) -> Tensor:
    return torch.randint(ROWS, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@torch.inference_mode()
def test_logits(pair: Pair) -> None:
    theirs, ours = pair
    expected = theirs(some_ids()).logits
    assert expected.std() > 0.5, "logits of weights without effect would prove nothing"
    assert difference(ours(some_ids()), expected) < TOLERANCE


@torch.inference_mode()
def test_a_prompt_and_steps_with_a_cache(pair: Pair) -> None:
    theirs, ours = pair
    ids = some_ids()
    cache = ours.new_cache(2, LENGTH)
    parts = [ours(ids[:, :PROMPT], cache=cache)]
    parts += [ours(ids[:, slot : slot + 1], cache=cache) for slot in range(PROMPT, 40)]
    parts += [ours(ids[:, 40:], cache=cache)]
    assert difference(torch.cat(parts, 1), theirs(ids).logits) < TOLERANCE
    assert cache.keys.shape[2] == ours.config.kv_heads


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_padded_rows_equal_each_row_alone(pair: Pair, side: str) -> None:
    theirs, ours = pair
    lengths = torch.tensor([LENGTH, 31, 1])
    slots = torch.arange(LENGTH)
    mask = slots >= LENGTH - lengths[:, None] if side == "left" else slots < lengths[:, None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ids = some_ids(3)
    found = ours(ids, mask=mask, positions=positions)
    padded = theirs(ids, attention_mask=mask.long(), position_ids=positions).logits
    assert difference(found[mask], padded[mask]) < TOLERANCE
    for row in range(3):
        assert difference(found[row][mask[row]], theirs(ids[row][mask[row]][None]).logits[0]) < TOLERANCE


@pytest.mark.parametrize("path", PATHS)
@torch.inference_mode()
def test_every_path_of_decoding(pair: Pair, path: DecodePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled path by the functions that would be compiled."""
    leave_uncompiled(monkeypatch)
    theirs, ours = pair
    found = stepped_logits(ours, path, some_ids(), PROMPT)
    assert difference(found, theirs(some_ids()).logits[:, PROMPT:]) < TOLERANCE


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", ["llama-3", "olmo2", "gemma", "gpt_neox"])
@torch.inference_mode()
def test_the_compiled_path(name: str, tmp_path: Path) -> None:
    theirs = write_theirs(name, tmp_path)
    found = stepped_logits(load_model(tmp_path), "compiled", some_ids(), PROMPT)
    assert difference(found, theirs(some_ids()).logits[:, PROMPT:]) < TOLERANCE


@torch.inference_mode()
def test_a_trie(pair: Pair) -> None:
    theirs, ours = pair
    ids = some_ids()[0].tolist()
    sequences = [tuple(ids[:40]), (*ids[:20], *ids[45:]), tuple(ids[50:])]
    trie = build_trie(sequences, 30)
    hidden = torch.cat([part for _, part in read_trie(ours, trie)])
    for sequence, nodes in zip(sequences, trie.paths, strict=True):
        found = ours.head(hidden[torch.tensor(nodes)])
        assert difference(found, theirs(torch.tensor([sequence])).logits[0]) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_bfloat16_and_several_files(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = write_theirs(name, tmp_path, "20KB", torch.bfloat16)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    expected = theirs(some_ids()).logits
    assert difference(load_model(tmp_path)(some_ids()), expected) < TOLERANCE
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    ours, rounded = load_model(tmp_path, dtype="bfloat16")(some_ids()), narrow(some_ids()).logits.float()
    assert float((ours - rounded).norm() / rounded.norm()) < 5e-2
    # The order of sums differs, and so does rounding; neither program is nearer to the exact logits.
    assert float((ours - expected).abs().mean()) < 1.1 * float((rounded - expected).abs().mean())
