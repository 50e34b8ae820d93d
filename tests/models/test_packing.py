from pathlib import Path

import pytest
import torch
from torch.nn import functional

from evalsvc.model_config import resolve_config
from evalsvc.models.packing import can_pack, int8_linear, layer_weights, packed_bytes, packed_linear

CPU = torch.device("cpu")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [1, 3, 32])
def test_a_packed_product_is_the_product(dtype: torch.dtype, rows: int) -> None:
    x, weight, bias = random(rows, 40, dtype=dtype), random(72, 40, dtype=dtype), random(72, dtype=dtype)
    for given in (None, bias):
        found = packed_linear(weight, given, rows)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, functional.linear(x, weight, given))


def test_int8_products_are_near_and_a_row_does_not_depend_on_its_neighbours() -> None:
    """One scale for all rows of a batch would let an outlier in one row round the others away."""
    x, weight, bias = random(6, 64), random(48, 64), random(48)
    linear = int8_linear(weight, bias)
    exact = functional.linear(x, weight, bias)
    assert float((linear(x) - exact).norm() / exact.norm()) < 0.02
    loud = torch.cat((x[:5], 1_000 * x[5:]))
    assert torch.equal(linear(loud)[:5], linear(x)[:5])
    assert linear(x.bfloat16()).dtype == torch.bfloat16


def test_int8_by_whole_numbers_equals_the_rounded_product() -> None:
    """float64 has no int8 product of its own: the same whole numbers are multiplied, and the sums are exact."""
    x, weight = random(6, 64), random(48, 64)
    fast = int8_linear(weight, None)(x)
    slow = int8_linear(weight.double(), None)(x.double())
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)


def test_packed_bytes_count_every_product() -> None:
    config = resolve_config("open_lm_160m", Path("none"))
    assert layer_weights(config) == 12 * (4 * 768 * 768 + 3 * 768 * 2048)
    count = layer_weights(config) + 16_384 * 768
    assert packed_bytes(config, 16_384, torch.float64) == 0
    assert packed_bytes(config, 16_384, torch.float32, device="cuda") == 0
    if can_pack(CPU, torch.float32):
        assert packed_bytes(config, 16_384, torch.float32) == 4 * count
        assert packed_bytes(config, 16_384, torch.float32, "int8") == count
        tiny = resolve_config("open_lm_test_tiny", Path("none"))
        assert packed_bytes(tiny, 16, torch.float32) == 0, "it lies in the caches"
