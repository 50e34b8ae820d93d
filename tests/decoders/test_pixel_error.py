import copy

import torch
from tiny_decoders import random_decoder, tiny_config
from torch import Tensor

from evalsvc.decoders import ImageDecoder
from evalsvc.decoders.pixel_error import PixelError, pixel_error


def probe_codes(decoder: ImageDecoder, images: int = 4, seed: int = 0) -> Tensor:  # [images, N] int64
    """Codes to compare on: patches of them, since an image repeats itself."""
    side = decoder.resolution // decoder.downsampling
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, decoder.codebook_size, (images, -(-side // 4), -(-side // 4)), generator=generator)
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return large[:, :side, :side].flatten(1)


def test_of_the_same_decoder_is_zero() -> None:
    decoder = random_decoder(tiny_config("movqgan"), "movqgan")
    codes = probe_codes(decoder, images=2)
    assert codes.shape == (2, 64)
    assert pixel_error(decoder, decoder, codes) == PixelError(2, 0.0, 0, 0.0)


def test_of_bf16_is_found_in_grey_levels() -> None:
    decoder = random_decoder(tiny_config("movqgan"), "movqgan")
    found = pixel_error(decoder, copy.deepcopy(decoder).to(torch.bfloat16), probe_codes(decoder))
    assert 0.05 < found.mean < 5
    assert found.mean < found.maximum < 256
    assert 0.05 < found.changed <= 1
    assert found.to_json()["images"] == 4


def test_counts_levels_not_numbers() -> None:
    """A bias of 2 / 127.5 after the last convolution is two levels wherever nothing is clamped."""
    decoder = random_decoder(tiny_config("movqgan"), "movqgan").double()
    with torch.no_grad():
        decoder.decoder.conv_out.weight.mul_(0.01)
        other = copy.deepcopy(decoder)
        other.decoder.conv_out.bias.add_(2 / 127.5)
    found = pixel_error(decoder, other, probe_codes(decoder))
    assert abs(found.mean - 2) < 0.05
    assert found.maximum <= 3
