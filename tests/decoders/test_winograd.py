import pytest
import torch
from torch.nn import functional

from evalsvc.decoders import winograd


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("workspace", [1, 20_000, 1 << 30], ids=["row by row", "bands", "at once"])
@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (2, 5, 10, 6), (1, 2, 4, 64)])
@torch.no_grad()
def test_equals_the_direct_convolution(
    shape: tuple[int, int, int, int], workspace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "WORKSPACE", workspace)
    x, weight, bias = random(*shape), random(7, shape[1], 3, 3), random(7)
    wanted = functional.conv2d(x, weight, bias, padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = winograd.convolve(x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout), bias)
        assert (found - wanted).abs().max() < 1e-12


@torch.no_grad()
def test_rounds_about_as_the_direct_convolution() -> None:
    """Larger tiles would be faster and lose digits."""
    x, weight, bias = random(1, 256, 16, 16), random(256, 256, 3, 3), random(256)
    exact = functional.conv2d(x, weight, bias, padding=1)
    x, weight, bias = x.float(), weight.float(), bias.float()
    error = (winograd.convolve(x, weight, bias) - exact).abs().max()
    assert error < 4 * (functional.conv2d(x, weight, bias, padding=1) - exact).abs().max()


def test_is_not_for_all() -> None:
    wide = torch.zeros(256, 256, 3, 3)
    with torch.no_grad():
        assert winograd.pays(torch.zeros(1, 256, 16, 16), wide)
        assert not winograd.pays(torch.zeros(1, 256, 16, 17), wide)
        assert not winograd.pays(torch.zeros(1, 256, 16, 16), wide[:64])
        assert not winograd.pays(torch.zeros(1, 256, 16, 16, dtype=torch.bfloat16), wide)
        assert not winograd.pays(torch.zeros(1, 256, 2, 2), wide)
    assert not winograd.pays(torch.zeros(1, 256, 16, 16), wide), "training needs the plain one"
