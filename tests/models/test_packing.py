from pathlib import Path

import pytest
import torch
from torch.nn import functional

from evalsvc.model_config import resolve_config
from evalsvc.models.packing import can_pack, int8_linear, layer_weights, packed_bytes, packed_linear, product

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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 40), (1, 7), (200,)])
def test_the_product_of_many_rows_is_the_plain_one(bias: bool, shape: tuple[int, ...]) -> None:
    """oneDNN rearranges the weight anew each time: nothing is kept that a changed weight could leave behind."""
    torch.manual_seed(0)
    x, weight, shift = torch.randn(*shape, 24), torch.randn(31, 24), torch.randn(31) if bias else None
    for _ in range(2):
        with torch.inference_mode():
            found = product(x, weight, shift)
        expected = functional.linear(x.double(), weight.double(), None if shift is None else shift.double())
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        weight.mul_(2)


def test_a_row_of_a_product_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(300, 48), torch.randn(96, 48)
    with torch.inference_mode():
        whole = product(x, weight, None)
        assert torch.equal(product(x[100:164], weight, None), whole[100:164])


def test_products_that_are_trained_have_gradients() -> None:
    """oneDNN's has none."""
    x, weight = torch.randn(100, 8), torch.randn(4, 8, requires_grad=True)
    product(x, weight, None).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 8))
