"""The engine diffusers: VQModel in the place of every decoder of its kind, with the same pixels and codes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import random_decoder, tiny_config

from evalsvc.decoders import ImageDecoder, load_decoder
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.diffusers_decoder import DiffusersDecoder
from evalsvc.errors import UnsupportedModel
from evalsvc.miniature import ROOT

GOLDEN = Path(__file__).parents[1] / "golden" / "movqgan"


@pytest.fixture(autouse=True)
def _second_tier(reference_models: None, one_thread: None) -> None:
    """diffusers is imported, which takes seconds."""


@torch.no_grad()
def hold(ours: ImageDecoder, side: int | None = None, error: float = 3e-5) -> None:
    theirs = DiffusersDecoder(ours)
    grid = ours.grid(side or ours.resolution, side or ours.resolution)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(ours.codebook_size, (2, grid[0] * grid[1]), generator=generator)
    images, others = (each.render(each.lookup(codes, grid)) for each in (ours, theirs))
    assert images.abs().max() > 0.5
    assert float((images - others).abs().max()) < error
    scale = max(1.0, float(ours.latents(images).abs().max()))
    assert float((ours.latents(images) - theirs.latents(images)).abs().max()) < 4 * error * scale
    assert theirs.encode(images).equal(ours.encode(images))
    assert theirs.digest == ours.digest, "the engine is in protocols by its name"
    assert theirs.decode_bytes(grid) > 0


def test_movqgan_is_that_of_diffusers() -> None:
    """The authors' layout, with three levels and with four, attention at one and at several."""
    for folder in (ROOT / "movqgan", GOLDEN / "tiny_67M_like", GOLDEN / "micro_lightning_ema"):
        hold(load_decoder(next(folder.glob("*.ckpt"))))


@pytest.mark.parametrize("kind", ["vqgan", "chameleon", "llamagen"])
def test_vqgan_is_that_of_diffusers(kind: str) -> None:
    """Its norms are plain, which changes the names of those of attention; entries of LlamaGen's codebook are scaled."""
    hold(random_decoder(tiny_config(kind), kind))


@pytest.mark.parametrize(("kind", "name"), [("movqgan", "movqgan-67M"), ("chameleon", "chameleon-vq")])
def test_full_sizes_are_those_of_diffusers(kind: str, name: str) -> None:
    """Written by others from the same paper; its codes come from torch.cdist, its attention from linear layers."""
    full_size = random_decoder(REGISTERED[name], kind)
    hold(full_size, side=64, error=1e-4)
    if kind == "movqgan":
        hold(full_size.double(), side=32, error=1e-10)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("emu3", {}, "Emu3"),
        ("movqgan", {}, "spatial norms where embed_dim is not z_channels"),
        ("movqgan", {"z_channels": 3, "add_conv": True}, "add_conv"),
        ("vqgan", {"ch_mult": [2, 1, 1]}, "ch_mult that does not begin with 1"),
        ("vqgan", {"resamp_with_conv": False}, "resamp_with_conv false"),
    ],
)
def test_a_network_that_diffusers_does_not_compute_is_refused(kind: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"diffusers' VQModel does not support {reason}"):
        DiffusersDecoder(random_decoder(tiny_config(kind, **changes), kind))
