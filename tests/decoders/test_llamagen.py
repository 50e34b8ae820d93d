"""LlamaGen's VQ-16 and VQ-8, held to the plain version, to transformers' JanusVQVAE, and file format to file format."""

from pathlib import Path
from typing import Any

import plain_autoencoder
import pytest
import torch
from decoder_folders import TINY, janus_config, llamagen_file, to_janus, to_llamagen, tokenizer_alone, whole_model
from tiny_decoders import randomise
from torch import Tensor

from evalsvc.decoders import ImageDecoder, load_decoder
from evalsvc.decoders.config import LLAMAGEN_TARGET, REGISTERED
from evalsvc.decoders.llamagen import LlamaGen
from evalsvc.errors import CheckpointMismatch

SPOTS = {
    "encoder.conv_in.weight": [128, 3, 3, 3],
    "encoder.conv_blocks.2.res.0.nin_shortcut.weight": [256, 128, 1, 1],
    "encoder.conv_blocks.3.downsample.conv.bias": [256],
    "encoder.conv_blocks.4.attn.1.q.weight": [512, 512, 1, 1],
    "encoder.mid.1.proj_out.weight": [512, 512, 1, 1],
    "encoder.conv_out.weight": [256, 512, 3, 3],
    "quant_conv.weight": [8, 256, 1, 1],
    "quantize.embedding.weight": [16_384, 8],
    "post_quant_conv.weight": [256, 8, 1, 1],
    "decoder.conv_in.weight": [512, 256, 3, 3],
    "decoder.mid.2.conv2.weight": [512, 512, 3, 3],
    "decoder.conv_blocks.0.attn.2.norm.weight": [512],
    "decoder.conv_blocks.0.upsample.conv.weight": [512, 512, 3, 3],
    "decoder.conv_blocks.1.res.0.nin_shortcut.weight": [256, 512, 1, 1],
    "decoder.conv_blocks.4.res.2.conv2.weight": [128, 128, 3, 3],
    "decoder.norm_out.weight": [128],
}
"""Names and shapes in `vq_ds16_c2i.pt`."""


def tiny() -> LlamaGen:
    return randomise(LlamaGen.from_config(janus_config()), seed=3).eval()


def own_tensors(decoder: ImageDecoder) -> dict[str, Tensor]:
    return {decoder.file_name(name): tensor for name, tensor in decoder.state_dict().items()}


def random_codes(decoder: ImageDecoder, batch: int = 2) -> Tensor:
    return torch.randint(decoder.codebook_size, (batch, 64), generator=torch.Generator().manual_seed(1))


def random_images(batch: int = 2, side: int = 32) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize(
    ("name", "millions", "grid"), [("llamagen-vq-16", 72, (16, 16)), ("llamagen-vq-8", 70, (32, 32))]
)
def test_published_sizes(name: str, millions: int, grid: tuple[int, int]) -> None:
    with torch.device("meta"):
        decoder = LlamaGen.from_config(REGISTERED[name])
    assert round(sum(parameter.numel() for parameter in decoder.parameters()) / 1e6) == millions
    assert (decoder.codebook_size, decoder.grid(256, 256)) == (16_384, grid)


def test_names_of_the_authors() -> None:
    """The decoder's levels are counted from the lowest resolution, unlike taming-transformers'."""
    with torch.device("meta"):
        decoder = LlamaGen.from_config(REGISTERED["llamagen-vq-16"])
    shapes = {name: list(tensor.shape) for name, tensor in own_tensors(decoder).items()}
    assert {name: shapes.get(name) for name in SPOTS} == SPOTS
    for absent in ("encoder.conv_blocks.3.attn.0.q.weight", "decoder.conv_blocks.4.upsample.conv.weight"):
        assert absent not in shapes
    assert not [name for name in shapes if ".up." in name or ".block" in name.replace("conv_blocks", "")]


def test_a_configuration_that_leaves_out_defaults_is_the_published_one() -> None:
    """`config.json` has only what differs from the class; a whole model's patches are those of its vision tower."""
    with torch.device("meta"):
        published = LlamaGen.from_config(REGISTERED["llamagen-vq-16"])
        alone = LlamaGen.from_config({"model_type": "janus_vqgan"})
        whole = LlamaGen.from_config({"model_type": "janus", "vq_config": {"num_patches": 32}})
    for decoder, side in ((alone, 512), (whole, 384)):
        assert decoder.resolution == side
        shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (decoder, published)]
        assert shapes[0] == shapes[1]


def test_every_format_of_the_same_weights_is_the_same_decoder(tmp_path: Path) -> None:
    """LlamaGen's file, Hugging Face's folder of the tokenizer, of a whole Janus in shards, and Janus' own names."""
    decoder, config = tiny(), janus_config()
    named = own_tensors(decoder)
    janus = {to_janus(name): tensor for name, tensor in named.items()}
    assert {to_llamagen(name) for name in janus} == named.keys() != janus.keys()
    flat = {"target": LLAMAGEN_TARGET, **decoder.config.model_dump()}
    torch.save({f"gen_vision_model.{name}": tensor for name, tensor in named.items()}, tmp_path / "janus.bin")
    loaded = [
        load_decoder(llamagen_file(tmp_path / "vq.pt", named), flat),
        load_decoder(llamagen_file(tmp_path / "vq.pt", named), flat | {"target": None}),
        load_decoder(tmp_path / "janus.bin", flat),
        load_decoder(tokenizer_alone(tmp_path / "alone", config, janus)),
        load_decoder(tmp_path / "alone" / "model.safetensors"),
        load_decoder(whole_model(tmp_path / "whole", config, janus)),
    ]
    codes = random_codes(decoder)
    wanted = loaded[0].decode(codes)
    assert (wanted - decoder.decode(codes)).abs().max() < 2e-5
    for other in loaded:
        assert isinstance(other, LlamaGen)
        assert other.digest == decoder.digest
        assert torch.equal(other.decode(codes), wanted)
        assert torch.equal(other.encode(random_images()), decoder.encode(random_images()))
        assert other.resolution == 32


def test_the_digest_is_no_other_kinds(tmp_path: Path) -> None:
    """The same tensors in a VQGAN are another function: its codebook is not scaled."""
    decoder = tiny()
    from evalsvc.decoders.vqgan import VQGAN

    other = VQGAN.from_config(decoder.config.model_dump())
    other.load_state_dict(decoder.state_dict())
    assert other.digest != decoder.digest
    assert (other.decode(random_codes(decoder)) - decoder.decode(random_codes(decoder))).abs().max() > 0.01


def test_raw_and_averaged_weights_of_a_training(tmp_path: Path) -> None:
    """A value that is no set of tensors under `ema` is not an average."""
    raw = own_tensors(tiny())
    averaged = {name: tensor + 0.01 for name, tensor in raw.items()}
    config = {"target": LLAMAGEN_TARGET, **tiny().config.model_dump()}
    both = llamagen_file(tmp_path / "both.pt", raw, ema=averaged, optimizer={"state": {}}, steps=5)
    one = llamagen_file(tmp_path / "one.pt", averaged)
    torch.save({"ema": averaged}, tmp_path / "average.pt")
    assert load_decoder(both, config).digest == tiny().digest
    wanted = load_decoder(one, config).digest
    assert wanted != tiny().digest
    assert load_decoder(both, config, ema=True).digest == wanted
    assert load_decoder(tmp_path / "average.pt", config).digest == wanted
    assert load_decoder(tmp_path / "average.pt", config, ema=True).digest == wanted
    rate = llamagen_file(tmp_path / "rate.pt", raw, ema={"decay": 0.9999})
    assert load_decoder(rate, config).digest == tiny().digest
    with pytest.raises(CheckpointMismatch, match=r"holds no averaged weights .* load the raw weights with ema=False"):
        load_decoder(rate, config, ema=True)


def test_counts_of_training_are_no_part_of_the_network(tmp_path: Path) -> None:
    config = {"target": LLAMAGEN_TARGET, **tiny().config.model_dump()}
    assert load_decoder(llamagen_file(tmp_path / "vq.pt", own_tensors(tiny())), config).ignored == (
        "quantize.codebook_used",
    )


def test_lengths_of_entries_and_latents_do_not_matter() -> None:
    decoder, codes = tiny().double(), random_codes(tiny())
    images, latents = decoder.decode(codes), decoder.latents(random_images().double())
    nearest = decoder.nearest(latents)
    with torch.no_grad():
        decoder.quantize.embedding.weight.mul_(torch.linspace(0.1, 10, decoder.codebook_size)[:, None])
    assert (decoder.decode(codes) - images).abs().max() < 1e-5
    assert torch.equal(decoder.nearest(latents), nearest)
    assert torch.equal(decoder.nearest(3 * latents), nearest)


@pytest.mark.parametrize("name", ["llamagen-vq-16", "llamagen-vq-8"])
def test_published_depths_equal_the_plain_version(name: str) -> None:
    """The published configuration with a quarter of the channels."""
    published: Any = REGISTERED[name]
    decoder = LlamaGen.from_config({**published, "ddconfig": {**published["ddconfig"], "ch": 32, "z_channels": 16}})
    randomise(decoder, seed=5).eval().requires_grad_(False)
    states, side = decoder.state_dict(), 4 * decoder.downsampling
    codes = random_codes(decoder, 1)[:, :16]
    assert (decoder.decode(codes) - plain_autoencoder.decode(states, codes, 4, 4, unit=True)).abs().max() < 1e-4
    images = random_images(1, side)
    assert torch.equal(decoder.encode(images), plain_autoencoder.encode(states, images, unit=True)[1])


# transformers


@pytest.fixture(scope="module")
def transformers_class(reference_models: None) -> Any:
    from transformers import JanusVQVAE

    return JanusVQVAE


def janus(kind: Any, seed: int, unit: bool = True, **fields: Any) -> Any:
    """A JanusVQVAE of these sizes with random weights, and entries of length 1 if `unit`."""
    from transformers import JanusVQVAEConfig

    model = randomise(kind(JanusVQVAEConfig(**fields)), seed).eval().requires_grad_(False)
    if unit:
        weight = model.quantize.embedding.weight
        weight.copy_(torch.nn.functional.normalize(weight, dim=-1))
    return model


@torch.no_grad()
def their_codes(model: Any, images: Tensor) -> Tensor:
    return model.encode(images).image_tokens.view(len(images), -1)


@pytest.mark.parametrize("seed", range(3))
def test_pixels_and_codes_equal_transformers(transformers_class: Any, seed: int, tmp_path: Path) -> None:
    theirs = janus(transformers_class, seed, **{**TINY, "num_patches": 8})
    theirs.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)
    codes, images = random_codes(ours), random_images()
    wanted = theirs.decode(codes)
    assert wanted.abs().max() > 0.5
    assert (ours.decode(codes) - wanted).abs().max() < 1e-4
    assert torch.equal(ours.encode(images), their_codes(theirs, images))
    singles = torch.cat([ours.decode(row[None]) for row in codes])
    assert (singles - wanted).abs().max() < 1e-4


def test_only_codes_depend_on_lengths_in_transformers(transformers_class: Any, tmp_path: Path) -> None:
    """It scales entries where it decodes, and not where it encodes; LlamaGen does both, and so does evalsvc."""
    theirs = janus(transformers_class, 1, unit=False, **{**TINY, "num_patches": 8})
    theirs.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)
    codes, images = random_codes(ours), random_images()
    assert (ours.decode(codes) - theirs.decode(codes)).abs().max() < 1e-4
    assert not torch.equal(ours.encode(images), their_codes(theirs, images))
    states = {to_llamagen(name): tensor for name, tensor in theirs.state_dict().items()}
    assert {ours.file_name(name) for name in ours.state_dict()} == states.keys()
    assert torch.equal(ours.encode(images), plain_autoencoder.encode(ours.state_dict(), images, unit=True)[1])


def test_a_whole_janus_saved_by_transformers(transformers_class: Any, tmp_path: Path) -> None:
    from transformers import JanusConfig, JanusForConditionalGeneration

    text = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 32}
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = JanusConfig(text_config=text | heads, vision_config=vision | {"projection_dim": 8}, vq_config=TINY)
    model = randomise(JanusForConditionalGeneration(config), seed=4).eval()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = load_decoder(tmp_path)
    codes = random_codes(ours)
    assert (ours.resolution, ours.grid(32, 32)) == (32, (8, 8))
    assert (ours.decode(codes) - model.model.vqmodel.decode(codes)).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "multiplier"), [("llamagen-vq-16", [1, 1, 2, 2, 4]), ("llamagen-vq-8", [1, 2, 2, 4])])
def test_full_size_equals_transformers(
    transformers_class: Any, name: str, multiplier: list[int], tmp_path: Path
) -> None:
    """LlamaGen's file under the registered name; by its configuration, transformers' class is also a VQ-8."""
    theirs = janus(transformers_class, 6, num_patches=8, channel_multiplier=multiplier)
    named = {to_llamagen(key): tensor for key, tensor in theirs.state_dict().items()}
    ours = load_decoder(llamagen_file(tmp_path / "vq.pt", named), name)
    codes, images = random_codes(ours, 1), random_images(1, 8 * ours.downsampling)
    assert (ours.decode(codes) - theirs.decode(codes)).abs().max() < 1e-4
    assert torch.equal(ours.encode(images), their_codes(theirs, images))
