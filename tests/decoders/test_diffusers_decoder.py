"""The engine diffusers: VQModel in the place of every decoder of its kind, with the same pixels and codes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import random_decoder, tiny_config

from evalsvc.decoders import ImageDecoder, load_decoder
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.diffusers_decoder import DiffusersDecoder
from evalsvc.errors import MissingPackage, UnsupportedModel
from evalsvc.installation import missing_package
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog

GOLDEN = Path(__file__).parents[1] / "golden" / "movqgan"


@pytest.fixture(autouse=True)
def _second_tier(reference_models: None, one_thread: None) -> None:
    """diffusers is imported, which takes seconds."""


@torch.no_grad()
def hold(ours: ImageDecoder, side: int | None = None, error: float = 3e-5) -> None:
    """Compare decoded pixels, latents and codes of two images."""
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


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "movqgan" / "movqgan_miniature.ckpt",
        next((GOLDEN / "tiny_67M_like").glob("*.ckpt")),
        next((GOLDEN / "micro_lightning_ema").glob("*.ckpt")),
    ],
    ids=lambda path: path.parent.name,
)
def test_movqgan_is_that_of_diffusers(path: Path) -> None:
    """The authors' layout, with three levels and with four, attention at one and at several."""
    hold(load_decoder(path))


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
        ("movqgan", {}, "spatial norms where embed_dim is not z_channels"),
        ("movqgan", {"z_channels": 3, "add_conv": True}, "add_conv"),
        ("vqgan", {"ch_mult": [2, 1, 1]}, "ch_mult that does not begin with 1"),
        ("vqgan", {"resamp_with_conv": False}, "resamp_with_conv false"),
    ],
)
def test_a_network_that_diffusers_does_not_compute_is_refused(kind: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"diffusers' VQModel does not support {reason}"):
        DiffusersDecoder(random_decoder(tiny_config(kind, **changes), kind))


def test_without_diffusers_the_message_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, DiffusersDecoder.__module__)  # as in a new process
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingPackage) as raised:
        catalog.load("decoder_engines", "diffusers")
    assert raised.value.message == missing_package("diffusers", "engine 'diffusers'", "reference").message
