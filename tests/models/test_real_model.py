"""A real pre-trained model, of theta 100,000, against the library that it was published for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from smollm2 import TEXTS, write_open_lm
from torch import Tensor

from evalsvc.checkpoints.weights import read_weights
from evalsvc.models import Transformer, load_model

ROUNDING = 2e-4
"""Between float32 logits of two sides; either is as far as this from its own logits in float64."""

pytestmark = [pytest.mark.usefixtures("reference_models"), pytest.mark.timeout(900)]


@torch.inference_mode()
def test_logits_are_those_of_transformers(smollm2: Path, tmp_path: Path) -> None:
    """Of the folder, and of an open_lm checkpoint: with open_lm's table instead of the file's frequencies, logits were
    off by whole units."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    texts = [torch.tensor([tokenizer(text).input_ids]) for text in TEXTS]
    theirs = LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    path, config = write_open_lm(theirs, tmp_path), str(tmp_path / "smollm2.json")
    tensors = {key: tensor for key, tensor in read_weights(path).tensors.items() if "inv_freq" not in key}
    torch.save(tensors, tmp_path / "without.pt")
    frequencies = tuple(theirs.model.rotary_emb.inv_freq.tolist())
    assert load_model(path, config).saved_inv_freq == frequencies
    expected = [theirs(ids).logits for ids in texts]
    exact = [theirs.double()(ids).logits for ids in texts]

    def difference(ours: Transformer, logits: list[Tensor]) -> float:
        return max(float((ours(ids) - wanted).abs().max()) for ids, wanted in zip(texts, logits, strict=True))

    for source in ((smollm2, None), (path, config)):
        assert difference(load_model(*source), expected) < ROUNDING
        assert difference(load_model(*source, dtype="float64"), exact) < 1e-4
    assert difference(load_model(tmp_path / "without.pt", config), expected) > 1
