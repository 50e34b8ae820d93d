"""A real pre-trained model, of theta 100,000, against the library that it was published for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from smollm2 import TEXTS, write_open_lm
from torch import Tensor

from evalsvc.checkpoints.weights import read_weights
from evalsvc.models import Transformer, load_model

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

ROUNDING = 2e-4
"""Between float32 logits of two sides; either is as far as this from its own logits in float64."""

pytestmark = [pytest.mark.usefixtures("reference_models"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def theirs(smollm2: Path) -> LlamaForCausalLM:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def texts(smollm2: Path) -> list[Tensor]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return [torch.tensor([tokenizer(text).input_ids]) for text in TEXTS]


def test_logits_of_the_folder_are_those_of_transformers(
    smollm2: Path, theirs: LlamaForCausalLM, texts: list[Tensor]
) -> None:
    rounded = difference(load_model(smollm2), theirs, texts)
    exact = difference(load_model(smollm2, dtype="float64"), theirs.double(), texts)
    theirs.float()
    print(f"largest difference of a logit: {exact:.1e} in float64, {rounded:.1e} in float32")
    assert exact < 1e-4
    assert rounded < ROUNDING


def test_logits_as_an_open_lm_checkpoint_are_those_of_transformers(
    theirs: LlamaForCausalLM, texts: list[Tensor], tmp_path: Path
) -> None:
    """With open_lm's table instead of the file's frequencies, logits were off by whole units."""
    path = write_open_lm(theirs, tmp_path)
    tensors = {key: tensor for key, tensor in read_weights(path).tensors.items() if "inv_freq" not in key}
    torch.save(tensors, tmp_path / "without.pt")
    config = str(tmp_path / "smollm2.json")
    ours = load_model(path, config)
    assert ours.saved_inv_freq == tuple(theirs.model.rotary_emb.inv_freq.tolist())
    rounded = difference(ours, theirs, texts)
    without = difference(load_model(tmp_path / "without.pt", config), theirs, texts)
    exact = difference(load_model(path, config, dtype="float64"), theirs.double(), texts)
    theirs.float()
    print(
        f"largest difference of a logit: {exact:.1e} in float64, {rounded:.1e} in float32, {without:.1f} by the table"
    )
    assert exact < 1e-4
    assert rounded < ROUNDING
    assert without > 1


@torch.inference_mode()
def difference(ours: Transformer, theirs: LlamaForCausalLM, texts: list[Tensor]) -> float:
    """The largest difference of a logit, of any text."""
    return max(float((ours(ids) - theirs(ids).logits).abs().max()) for ids in texts)
