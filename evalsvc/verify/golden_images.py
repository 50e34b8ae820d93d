"""Comparing image tokenizer and feature extractor with their authors' programs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from evalsvc.assets import locate_asset
from evalsvc.decoders import load_decoder
from evalsvc.features import FeatureExtractor, load_extractor
from evalsvc.verify.agreement import Agreement
from evalsvc.verify.golden_files import DECODER, IMAGES, Golden

PIXELS = 5e-5
"""Tolerance of images in [-1, 1]: the authors' program in float32 differs by 7e-6 from itself in float64."""
FEATURES = {64: 2e-5, 2048: 1e-4}
"""Tolerances of features up to 3: batch norms folded into the convolutions change features by 2e-6 of their size."""


def drawn_image(height: int, width: int) -> Tensor:  # [3, height, width] uint8
    """Draw an image with edges, gradients and fine stripes in integer arithmetic, identical everywhere."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    red = (rows * 7 + columns * 3) % 256
    green = (rows * columns // 16 + columns) % 256
    blue = ((rows // 24 + columns // 16) % 2) * 180 + (rows * rows + columns * 5) % 61
    return torch.stack((red, green, blue)).to(torch.uint8)


def verify_decoder(golden: Golden) -> Iterator[Agreement]:
    """Compare decoded pixels, codes, and an image alone with the same image in a batch."""
    expected, program = golden.tensors("decoding"), golden.program("MoVQGAN")
    decoder = load_decoder(DECODER, device=golden.device)
    pixels = decoder.decode(expected["codes"].long())
    yield Agreement.of_arrays("decoded pixels", program, pixels.cpu(), expected["decoded"], PIXELS, "of [-1, 1]")
    images = load_file(IMAGES)["images"][expected["places"]].float() / 127.5 - 1
    differing = float((decoder.encode(images).cpu() != expected["encoded"]).sum())
    note = "codes that differ, of 256; each is nearest by 1e-3"
    yield Agreement("codes of images", program, differing, 0.0, note=note)
    alone = torch.cat([decoder.decode(row[None].long()) for row in expected["codes"]])
    yield Agreement.of_arrays("decoded pixels of a batch", "evalsvc", pixels.cpu(), alone.cpu(), PIXELS, "4 and 1")


def verify_inception(golden: Golden) -> Iterator[Agreement]:
    """Compare features of two digits and a drawn image, resized by both methods."""
    path = locate_asset("inception", golden.settings.assets_path)
    network = load_extractor("inception", path, device=golden.device)
    images: tuple[Tensor, ...] = (load_file(Path(IMAGES))["images"][:2], drawn_image(340, 420)[None])
    expected = golden.tensors("inception")
    extract = partial(_features, network, images)
    names = {"tf1-bilinear": "torch-fidelity", "pil-bicubic": "clean-fid"}
    for resize, program in names.items():
        features = extract(resize)
        for tap, tolerance in FEATURES.items():
            quantity = f"{tap:,} features, {resize}"
            yield Agreement.of_arrays(
                quantity, golden.program(program), features[tap], expected[f"{resize}/{tap}"], tolerance
            )


def _features(network: FeatureExtractor, images: tuple[Tensor, ...], resize: str) -> dict[int, Tensor]:
    parts = [network.features(batch, resize, FEATURES) for batch in images]
    return {tap: torch.cat([part[tap].cpu() for part in parts]) for tap in FEATURES}
