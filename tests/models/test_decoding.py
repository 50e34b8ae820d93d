"""Every way to run a step, against a whole forward pass."""

from dataclasses import replace
from itertools import product
from typing import Any, cast

import pytest
import torch
from decode_paths import PATHS, leave_uncompiled, stepped_logits
from small_models import small_model
from torch import Tensor

from evalsvc.models import DecodePath, StepShape, Transformer
from evalsvc.models.decoding import BlockedCache, Slot, StraightCache, blocked_attention

ROWS, PADDED, NEW = 3, 5, 40
IMAGE_IDS = range(10, 26)


def wide_model(dtype: torch.dtype = torch.float64, **changes: Any) -> Transformer:
    return small_model(dtype, **{"hidden_dim": 64, "n_heads": 4, "seq_len": 64, "vocab_size": 30} | changes)


def tokens() -> tuple[Tensor, Tensor]:
    """Random ids [ROWS, PADDED + NEW], and the mask of prompts of 5, 3 and 1 tokens."""
    ids = torch.randint(30, (ROWS, PADDED + NEW), generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([[0], [2], [4]])
    return ids, torch.arange(PADDED + NEW) >= padding


def expected_logits(model: Transformer) -> Tensor:  # [ROWS, NEW, codes]
    """After each of the new tokens, from one pass over all of them."""
    ids, mask = tokens()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(ids, mask=mask, positions=positions)[:, PADDED:, IMAGE_IDS.start : IMAGE_IDS.stop]


def stepped(model: Transformer, path: DecodePath, cache_dtype: torch.dtype | None = None) -> Tensor:
    ids, mask = tokens()
    return stepped_logits(model, path, ids, PADDED, codes=IMAGE_IDS, mask=mask, cache_dtype=cache_dtype)


ARCHITECTURES: list[dict[str, Any]] = [
    {},
    {"positional_embedding_type": "head_rotary", "qk_norm": True, "model_norm": "gain_only_lp_layer_norm"},
    {"positional_embedding_type": "llama_rotary", "model_norm": "rms_norm", "ffn_type": "gemma_geglu"},
    {"positional_embedding_type": "none", "ffn_type": "gelu", "post_embed_norm": True, "weight_tying": True},
    {"hidden_dim": 50, "qk_norm": True, "model_norm": "rms_norm"},  # heads of 12, not a multiple of a block
    {"n_kv_heads": 2, "head_size": 24, "model_norm": "rms_norm", "ffn_type": "gated", "ffn_size": 40},
    {"n_kv_heads": 1, "norm_place": "after", "model_norm": "rms_norm", "qk_norm": True, "ffn_type": "gated"},
    {"n_kv_heads": 2, "qk_norm": True, "qk_norm_per_head": True, "model_norm": "rms_norm_plus_one"},
    {"parallel_residual": True, "rotary_dims": 6, "attention_bias": True, "output_bias": True},
    {"ffn_type": "plain", "ffn_activation": "gelu_tanh", "ffn_bias": True, "embedding_scale": 8.0},
]


@pytest.mark.parametrize(("path", "changes"), list(product(PATHS, ARCHITECTURES)), ids=str)
def test_a_step_equals_the_whole_pass(
    path: DecodePath, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled path by the functions that would be compiled."""
    leave_uncompiled(monkeypatch)
    model = wide_model(**changes)
    torch.testing.assert_close(stepped(model, path), expected_logits(model), rtol=0, atol=1e-5)


def test_a_cache_of_another_dtype_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_uncompiled(monkeypatch)
    model = wide_model(torch.float32)
    exact = expected_logits(model)
    for path in ("packed", "compiled"):
        found = stepped(model, cast(DecodePath, path), torch.bfloat16)
        assert float((found - exact).norm() / exact.norm()) < 0.02
        assert not torch.equal(found, exact)


def test_blocked_attention_equals_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, over spans that end within a block, and with garbage behind them."""
    leave_uncompiled(monkeypatch)
    shape, generator = (1, 2, 3, 48, 32), torch.Generator().manual_seed(0)
    straight = StraightCache(shape, torch.float64, torch.device("cpu"))
    blocked = BlockedCache(shape, torch.float64, torch.device("cpu"))
    bias = torch.full((2, 48), float("-inf"), dtype=torch.float64)
    for slot in range(40):
        queries, keys, values = torch.randn(3, 2, 3, 32, dtype=torch.float64, generator=generator)
        bias[:, slot] = 0
        expected = straight.attend(0, queries, keys, values, Slot(slot, slot + 1), bias)
        found = blocked.attend(0, queries, keys, values, Slot(slot, -(-(slot + 1) // 16) * 16), bias)
        torch.testing.assert_close(found, expected)
    wide = blocked_attention(queries, blocked.keys[0].float(), blocked.values[0].bfloat16(), bias, 48)
    assert wide.dtype == torch.float32


def test_weights_are_laid_out_once_and_can_be_let_go() -> None:
    model, shape = wide_model(torch.float32), StepShape(ROWS, IMAGE_IDS, 8, "packed")
    first = model.decoding(shape).weights
    assert model.decoding(replace(shape, path="graph", capacity=9)).weights is first
    assert model.decoding(replace(shape, rows=ROWS + 1)).weights is not first
    model.packed = None
    assert not model.is_laid_out
