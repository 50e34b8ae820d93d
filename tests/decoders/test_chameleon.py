"""Chameleon's image tokenizer: encoding is held to transformers, decoding to the plain version and to diffusers."""

from pathlib import Path
from typing import Any

import plain_autoencoder
import pytest
import torch
import yaml
from decoder_folders import TINY, chameleon_config, tokenizer_alone, whole_model
from tiny_decoders import randomise
from torch import Tensor

from evalsvc.decoders import load_decoder
from evalsvc.decoders.chameleon import Chameleon
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.vqgan import VQGAN
from evalsvc.errors import CheckpointMismatch

SPOTS = {
    "encoder.down.3.block.1.conv2.weight": [256, 256, 3, 3],
    "encoder.down.3.downsample.conv.weight": [256, 256, 3, 3],
    "encoder.mid.attn_1.proj_out.weight": [512, 512, 1, 1],
    "quantize.embedding.weight": [8_192, 256],
    "quant_conv.weight": [256, 256, 1, 1],
    "decoder.up.4.upsample.conv.weight": [512, 512, 3, 3],
    "decoder.up.0.block.2.conv2.weight": [128, 128, 3, 3],
    "decoder.conv_out.weight": [3, 128, 3, 3],
}
"""Names and shapes in `vqgan.ckpt`."""


def tiny() -> Chameleon:
    return randomise(Chameleon.from_config(chameleon_config(attn_resolutions=[16])), seed=3).eval()


def random_codes(size: int, batch: int = 2) -> Tensor:
    return torch.randint(size, (batch, 64), generator=torch.Generator().manual_seed(1))


def random_images(batch: int = 2, side: int = 32) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_published_size_and_names() -> None:
    with torch.device("meta"):
        published = Chameleon.from_config(REGISTERED["chameleon-vq"])
        default = Chameleon.from_config({"model_type": "chameleon", "vq_config": None})
    shapes = {name: list(tensor.shape) for name, tensor in published.state_dict().items()}
    assert (published.codebook_size, published.grid(512, 512), published.resolution) == (8_192, (32, 32), 512)
    assert {name: shapes.get(name) for name in SPOTS} == SPOTS
    assert not [name for name in shapes if ".attn." in name], "attention in the middle only"
    assert shapes == {name: list(tensor.shape) for name, tensor in default.state_dict().items()}
    assert default.resolution == 512


def test_every_format_of_the_same_weights_is_the_same_decoder(tmp_path: Path) -> None:
    """The authors' file with its YAML, told by its own target and by ours, and Hugging Face's folders."""
    decoder, config = tiny(), chameleon_config(attn_resolutions=[16])
    tensors = decoder.state_dict()
    params = decoder.config.model_dump(mode="json") | {"lossconfig": {"target": "x.Loss"}, "ckpt_path": "/x"}
    torch.save({"state_dict": {**tensors, "loss.x": torch.ones(1)}, "epoch": 1}, tmp_path / "vqgan.ckpt")
    loaded = []
    for target in ("taming.models.vqgan.VQModel", "chameleon.inference.vqgan.VQModel"):
        (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"target": target, "params": params}}))
        loaded.append(load_decoder(tmp_path / "vqgan.ckpt"))
    assert [type(each) for each in loaded] == [VQGAN, Chameleon]
    loaded.append(load_decoder(tokenizer_alone(tmp_path / "alone", config, tensors)))
    loaded.append(load_decoder(whole_model(tmp_path / "whole", config, tensors)))
    codes = random_codes(64)
    wanted = loaded[0].decode(codes)
    for other in loaded:
        assert other.digest == decoder.digest
        assert torch.equal(other.decode(codes), wanted)
        assert torch.equal(other.encode(random_images()), decoder.encode(random_images()))


def test_a_folder_without_a_decoder(tmp_path: Path) -> None:
    """As transformers' conversion writes it: "we dont do image generation yet"."""
    tensors = {name: tensor for name, tensor in tiny().state_dict().items() if "decoder" not in name}
    folder = whole_model(tmp_path / "whole", chameleon_config(attn_resolutions=[16]), tensors)
    with pytest.raises(CheckpointMismatch, match=r"has an encoder and no decoder .* give the authors' file"):
        load_decoder(folder)


def test_published_depth_equals_the_plain_version() -> None:
    published: Any = REGISTERED["chameleon-vq"]
    decoder = Chameleon.from_config({**published, "ddconfig": {**published["ddconfig"], "ch": 32}})
    randomise(decoder, seed=5).eval().requires_grad_(False)
    states, codes = decoder.state_dict(), random_codes(8_192, 1)[:, :16]
    assert (decoder.decode(codes) - plain_autoencoder.decode(states, codes, 4, 4)).abs().max() < 1e-4
    images = random_images(1, 64)
    assert torch.equal(decoder.encode(images), plain_autoencoder.encode(states, images)[1])


# transformers and diffusers


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attention", [None, [16, 8]])
def test_codes_equal_transformers(
    reference_models: None, seed: int, attention: list[int] | None, tmp_path: Path
) -> None:
    """The folder has no decoder; the rest of the authors' file is filled in."""
    _assert_equal_codes(tmp_path, seed, 32, **{**TINY, "resolution": 32, "attn_resolutions": attention})


def test_full_size_codes_equal_transformers(reference_models: None, tmp_path: Path) -> None:
    _assert_equal_codes(tmp_path, 7, 128)


@torch.no_grad()
def _assert_equal_codes(folder: Path, seed: int, side: int, **fields: Any) -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    theirs: Any = randomise(ChameleonVQVAE(ChameleonVQVAEConfig(**fields)), seed).eval()
    config = theirs.config.to_diff_dict() | {"model_type": "chameleon_vqgan"}
    decoder = Chameleon.from_config(config)
    states = decoder.state_dict() | theirs.state_dict()
    assert {name for name in states if name not in theirs.state_dict()} == {
        n for n in states if n.startswith("decoder")
    }
    ours = load_decoder(tokenizer_alone(folder / "x", config, states))
    images = random_images(2, side)
    found = theirs.encode(images)
    assert torch.equal(ours.encode(images).flatten(), found.image_tokens)
    assert (ours.latents(images[:1]) - theirs.quant_conv(theirs.encoder(images[:1]))).abs().max() < 1e-4


@torch.no_grad()
def test_full_size_pixels_equal_diffusers(reference_models: None) -> None:
    from evalsvc.decoders.diffusers_decoder import write_diffusers

    ours = randomise(Chameleon.from_config(REGISTERED["chameleon-vq"]), seed=8).eval()
    theirs, codes = write_diffusers(ours), random_codes(8_192, 1)
    entries = theirs.quantize.get_codebook_entry(codes.flatten(), (1, 8, 8, 256))
    wanted = theirs.decode(entries, force_not_quantize=True).sample
    assert wanted.abs().max() > 0.5
    assert (ours.decode(codes) - wanted).abs().max() < 1e-4


IMAGENET_F16 = {
    "target": "taming.models.vqgan.VQModel",
    "embed_dim": 256,
    "n_embed": 16384,
    "ddconfig": {
        "double_z": False,
        "z_channels": 256,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.0,
    },
}
"""The configuration of taming-transformers' vqgan_imagenet_f16_16384."""


def test_names_of_tamings_parameters() -> None:
    """As taming-transformers' modules name them: plain norms in the decoder too, attention at the lowest level."""
    with torch.device("meta"):
        decoder = VQGAN.from_config(IMAGENET_F16)
    shapes = {name: list(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert (decoder.codebook_size, decoder.grid(256, 256)) == (16384, (16, 16))
    assert shapes["quantize.embedding.weight"] == [16384, 256]
    assert shapes["decoder.up.4.attn.2.norm.weight"] == [512]
    assert shapes["decoder.up.1.block.0.nin_shortcut.weight"] == [128, 256, 1, 1]
    assert shapes["encoder.down.3.downsample.conv.weight"] == [256, 256, 3, 3]
    assert shapes["decoder.norm_out.weight"] == [128]
    for absent in ("decoder.up.3.attn.0.q.weight", "encoder.down.4.downsample.conv.weight", "decoder.norm_out.conv_y"):
        assert absent not in shapes
