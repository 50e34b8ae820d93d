"""What torch promises nobody: a failure here says what a release has moved.

The rest of evalsvc goes on without these operators, more slowly, so nothing else would tell.
"""

import pytest
import torch
from torch.nn import functional

from evalsvc.models import private

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")  # type: ignore[no-untyped-call]


def whole(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers: every order of their sums is exact."""
    return torch.randint(-5, 6, shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("bias", [None, whole(24)], ids=["plain", "bias"])
def test_linear_products_of_onednn(bias: torch.Tensor | None) -> None:
    x, weight = whole(3, 16), whole(24, 16)
    expected = functional.linear(x, weight, bias)
    for given in (weight, private.reorder_linear_weight(weight, 3)):
        assert torch.equal(private.linear_by_onednn(x, given, bias), expected)


def test_int8_products_of_onednn() -> None:
    x, weight = whole(3, 16, dtype=torch.int8), whole(24, 16, dtype=torch.int8)
    packed = private.pack_int8_weight(weight)
    scale, zeros = torch.full((24,), 0.5), torch.zeros(24, dtype=torch.int32)
    found = private.int8_linear_by_onednn((x.int() + 128).to(torch.uint8), packed, scale, zeros)
    assert torch.equal(found, (x.float() @ weight.float().t()) / 2)


def test_products_of_whole_numbers() -> None:
    left, right = whole(32, 16, dtype=torch.int8), whole(24, 16, dtype=torch.int8)
    assert torch.equal(private.int8_product(left, right.t()), left.int() @ right.int().t())


@pytest.mark.parametrize("then", ["relu", "none"])
def test_convolutions_of_onednn(then: str) -> None:
    assert private.has_convolution_by_onednn()
    x, convolution = whole(2, 8, 9, 9), torch.nn.Conv2d(8, 16, 3, stride=2, padding=1)
    convolution.weight.data, bias = whole(16, 8, 3, 3), whole(16)
    place = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
    expected = functional.conv2d(x, convolution.weight, bias, stride=2, padding=1)
    with torch.inference_mode():
        packed = private.reorder_convolution_weight(convolution.weight, place, list(x.shape))
        found = private.convolution_by_onednn(x, packed, bias, place, "relu" if then == "relu" else "none")
    assert torch.equal(found, expected.relu() if then == "relu" else expected)


def test_the_bound_of_recompilations_is_raised_and_never_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    config = torch._dynamo.config
    monkeypatch.setattr(config, "recompile_limit", 8)
    for asked, expected in ((64, 64), (16, 64)):
        private.allow_recompilations(asked)
        assert config.recompile_limit == expected
