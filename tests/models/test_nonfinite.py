"""Where NaN and infinity come from."""

from pathlib import Path

import pytest
import torch
from small_models import small_model

from evalsvc.models import load_model
from evalsvc.models.language_model import find_nonfinite


@pytest.mark.parametrize(
    ("parameter", "stage"),
    [
        ("tok_embeddings.weight", "tok_embeddings"),
        ("layers.1.attention_norm.weight", "layers.1.attention_norm"),
        ("layers.1.attention.in_proj.weight", "layers.1.attention"),
        ("layers.0.feed_forward.w3.weight", "layers.0.feed_forward"),
        ("norm.weight", "norm"),
        ("output.weight", "output"),
    ],
)
def test_find_nonfinite(golden: Path, parameter: str, stage: str) -> None:
    model = load_model(golden / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt")
    ids = torch.arange(10)[None]
    assert find_nonfinite(model, ids) == ""
    model.get_parameter(parameter).data[:] = float("nan")
    assert find_nonfinite(model, ids) == stage
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("norm", ["layers.0.attention_norm", "layers.0.ffn_norm", "layers.1.attention_norm", "norm"])
def test_find_nonfinite_in_a_norm_of_a_sum(norm: str) -> None:
    model = small_model(model_norm="rms_norm")
    model.get_parameter(f"{norm}.weight")[:] = float("nan")
    assert find_nonfinite(model, torch.zeros(1, 2, dtype=torch.int64)) == norm


@pytest.mark.parametrize("model_norm", ["default_layer_norm", "rms_norm"])
def test_find_nonfinite_where_a_sum_overflows(model_norm: str) -> None:
    """Both parts of a layer are finite and their sum is not: half precision does that."""
    model = small_model(model_norm=model_norm, ffn_type="gemma_geglu").half()
    model.tok_embeddings.weight[:] = 6e4
    model.layers[0].feed_forward.down_proj.bias[:] = 6e4
    model.layers[0].feed_forward.down_proj.weight[:] = 0
    assert find_nonfinite(model, torch.zeros(1, 2, dtype=torch.int64)) == "layers.1.attention_norm"
