import pytest
import torch
from torch.nn import functional

from evalsvc.decoders import folding


@pytest.mark.parametrize("workspace", [1, 2_000, 1 << 30], ids=["row by row", "bands", "at once"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 5, 7, 6), (1, 2, 4, 33)])
@torch.no_grad()
def test_equals_upsampling_and_convolution(
    shape: tuple[int, int, int, int], workspace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "WORKSPACE", workspace)
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (8, shape[1], 3, 3), (8,))
    x, weight, bias = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)
    large = functional.interpolate(x, scale_factor=2.0, mode="nearest")
    wanted = functional.conv2d(large, weight, bias, padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = folding.upsample_and_convolve(x.contiguous(memory_format=layout), weight, bias)
        assert (found - wanted).abs().max() < 1e-12
