"""Rotary frequencies, positions, and a rotation of a part of the heads."""

import math
from typing import Any

import pytest
import torch
from small_models import small_config

from evalsvc.errors import InvalidData
from evalsvc.models.rotation import Positions, inv_freq_table, rotary_frequencies, scaled_frequencies, turn
from evalsvc.spec.model_config import ModelConfig, RotaryScaling


def config(**changes: Any) -> ModelConfig:
    return small_config(**{"hidden_dim": 64, "n_heads": 2, "seq_len": 16} | changes)


def llama3(frequency: float, factor: float, low: float, high: float, length: int) -> float:
    """The rule of Llama 3.1 for one frequency, by wavelengths."""
    wavelength = 2 * math.pi / frequency
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def test_llama3_scales_low_frequencies_and_interpolates() -> None:
    table = inv_freq_table(128, 500_000.0)
    scaling = RotaryScaling(kind="llama3", factor=8.0)
    expected = torch.tensor([llama3(float(value), 8.0, 1.0, 4.0, 8192) for value in table])
    found = scaled_frequencies(table, scaling)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    kept, divided = int((found == table).sum()), int(torch.isclose(found, table / 8, rtol=1e-6, atol=0).sum())
    assert kept > 10
    assert divided > 10
    assert kept + divided < 64


def test_linear_divides_all() -> None:
    changed = config(rotary_base=500.0, rotary_scaling={"kind": "linear", "factor": 4.0})
    torch.testing.assert_close(rotary_frequencies(changed), inv_freq_table(32, 500.0) / 4)


def test_a_part_of_the_heads_is_turned() -> None:
    heads = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    rotation = Positions(config(rotary_dims=8), torch.float32)(torch.arange(3), heads)
    assert rotation is not None
    turned = turn(heads, *rotation, False)
    assert torch.equal(turned[..., 8:], heads[..., 8:])
    whole = Positions(config(n_heads=8), torch.float32)(torch.arange(3), heads)
    assert whole is not None
    assert torch.equal(turned[..., :8], turn(heads[..., :8], *whole, False))
    assert not torch.equal(turned[1:, :, :8], heads[1:, :, :8])


def test_sequences_longer_than_the_window_are_refused() -> None:
    positions = Positions(config(attention_window=12), torch.float32)
    positions.require_rows(11)
    with pytest.raises(InvalidData, match="position 12 is beyond the model's window of 12 tokens"):
        positions.require_rows(torch.tensor([3, 12]))
