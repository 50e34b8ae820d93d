"""The networks of each kind: their authors' numbers, names and sizes, a plain version, and transformers' classes."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plain_autoencoder
import pytest
import torch
import yaml
from decoder_folders import (
    EMU3_AUTHORS,
    EMU3_TRANSFORMERS,
    TINY,
    chameleon_config,
    emu3_folder,
    janus_config,
    llamagen_file,
    to_janus,
    to_llamagen,
    tokenizer_alone,
    whole_model,
)
from refusals import refusal
from safetensors.torch import load_file
from tiny_decoders import random_decoder, randomise, tiny_config
from torch import Tensor

from evalsvc.decoders import ImageDecoder, load_decoder, to_uint8
from evalsvc.decoders.config import LLAMAGEN_TARGET, REGISTERED
from evalsvc.decoders.emu3 import Emu3
from evalsvc.decoders.llamagen import LlamaGen
from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.decoders.vqgan import VQGAN, Chameleon
from evalsvc.errors import CheckpointMismatch, InvalidModelConfig

TAMING: dict[str, Any] = {"double_z": False, "z_channels": 256, "resolution": 256, "num_res_blocks": 2}
TAMING |= {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [16]}
TAMING = {"embed_dim": 256, "n_embed": 16384, "ddconfig": TAMING}
"""The configuration of taming-transformers' vqgan_imagenet_f16_16384."""

KINDS: dict[str, type[ImageDecoder]] = {"movqgan": MoVQGAN, "llamagen": LlamaGen, "chameleon": Chameleon}
KINDS |= {"emu3": Emu3}


def empty(name: str) -> ImageDecoder:
    kind = VQGAN if name == "taming" else KINDS[name.split("-")[0]]
    with torch.device("meta"):
        return kind.from_config(REGISTERED.get(name, TAMING))


def own_tensors(decoder: ImageDecoder) -> dict[str, Tensor]:
    return {decoder.file_name(name): tensor for name, tensor in decoder.state_dict().items()}


def shapes_of(decoder: ImageDecoder) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in own_tensors(decoder).items()}


def tiny(kind: str) -> Any:
    config = janus_config() if kind == "llamagen" else chameleon_config(attn_resolutions=[16])
    return randomise(KINDS[kind].from_config(config), seed=3).eval()


def random_codes(size: int, batch: int = 2) -> Tensor:
    return torch.randint(size, (batch, 64), generator=torch.Generator().manual_seed(1))


def random_images(batch: int = 2, side: int = 32) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize(("case", "ema"), [("flat_file", False), ("lightning_file", False), ("lightning_file", True)])
def test_movqgan_is_the_authors(case: str, ema: bool, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(case)
    tensors = load_file(file.with_name("expected.safetensors"))
    averaged = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    expected = tensors | averaged if ema else tensors
    decoder = load_decoder(file, ema=ema)
    images = decoder.decode(expected["codes"])
    assert (images - expected["decoded"]).abs().max() < 3e-5
    # Some values lie within 1.5e-5 of a tie between two levels.
    levels = to_uint8(images).int() - expected["decoded_u8"].int()
    assert levels.abs().max() <= 1
    assert (levels != 0).float().mean() < 1e-3
    assert torch.equal(decoder.encode(expected["image"]), expected["indices"])
    assert (decoder.latents(expected["image"]) - expected["prequant"]).abs().max() < 3e-5
    assert (decoder.decode(expected["indices"]) - expected["reconstruction"]).abs().max() < 3e-5


@pytest.mark.parametrize(
    ("name", "parameters", "codes", "grid"),
    [
        ("movqgan-67M", 67_832_495, 16_384, (32, 32)),
        ("movqgan-102M", 101_614_255, 16_384, (32, 32)),
        ("movqgan-270M", 270_669_103, 16_384, (32, 32)),
        ("emu3-vq", 270_740_287, 32_768, (32, 32)),
        ("llamagen-vq-16", 72, 16_384, (16, 16)),
        ("llamagen-vq-8", 70, 16_384, (32, 32)),
        ("chameleon-vq", None, 8_192, (16, 16)),
        ("taming", None, 16_384, (16, 16)),
    ],
)
def test_published_sizes(name: str, parameters: int | None, codes: int, grid: tuple[int, int]) -> None:
    decoder = empty(name)
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert parameters in (None, count, round(count / 1e6))
    assert (decoder.codebook_size, decoder.grid(256, 256)) == (codes, grid)


NAMES: dict[str, dict[str, list[int] | None]] = {
    "chameleon-vq": {  # of `vqgan.ckpt`, with attention in the middle only
        "encoder.mid.attn_1.proj_out.weight": [512, 512, 1, 1],
        "quantize.embedding.weight": [8_192, 256],
        "decoder.up.4.upsample.conv.weight": [512, 512, 3, 3],
        "decoder.conv_out.weight": [3, 128, 3, 3],
        "encoder.down.4.attn.0.q.weight": None,
    },
    "llamagen-vq-16": {  # of `vq_ds16_c2i.pt`; the decoder's levels are counted from the lowest resolution
        "encoder.conv_blocks.4.attn.1.q.weight": [512, 512, 1, 1],
        "post_quant_conv.weight": [256, 8, 1, 1],
        "decoder.mid.2.conv2.weight": [512, 512, 3, 3],
        "decoder.conv_blocks.0.upsample.conv.weight": [512, 512, 3, 3],
        "decoder.conv_blocks.4.res.2.conv2.weight": [128, 128, 3, 3],
        "decoder.norm_out.weight": [128],
        "encoder.conv_blocks.3.attn.0.q.weight": None,
        "decoder.conv_blocks.4.upsample.conv.weight": None,
    },
    "taming": {  # plain norms in the decoder too, attention at the lowest level
        "decoder.up.4.attn.2.norm.weight": [512],
        "decoder.up.1.block.0.nin_shortcut.weight": [128, 256, 1, 1],
        "encoder.down.3.downsample.conv.weight": [256, 256, 3, 3],
        "decoder.up.3.attn.0.q.weight": None,
        "encoder.down.4.downsample.conv.weight": None,
        "decoder.norm_out.conv_y": None,
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_authors(name: str) -> None:
    shapes = shapes_of(empty(name))
    assert {parameter: shapes.get(parameter) for parameter in NAMES[name]} == NAMES[name]


def test_keys_and_shapes_of_270m(shared: Path) -> None:
    lines = {f"{name} {shape}" for name, shape in shapes_of(empty("movqgan-270M")).items()}
    assert lines == set((shared / "facts" / "movqgan_270M_keys.txt").read_text().splitlines())


def test_a_configuration_that_leaves_out_defaults_is_the_published_one() -> None:
    """`config.json` has only what differs from the class; a whole Janus' patches are those of its vision tower."""
    for name, content, side in (
        ("chameleon-vq", {"model_type": "chameleon", "vq_config": None}, 512),
        ("llamagen-vq-16", {"model_type": "janus_vqgan"}, 512),
        ("llamagen-vq-16", {"model_type": "janus", "vq_config": {"num_patches": 32}}, 384),
        ("llamagen-vq-16", {"model_type": "multi_modality", "gen_vision_config": {"cls": "VQ-16"}}, 384),
        ("emu3-vq", {"model_type": "Emu3VisionVQ"}, 720),
        ("emu3-vq", {"model_type": "emu3", "vq_config": None}, 720),
    ):
        published = empty(name)
        with torch.device("meta"):
            decoder = type(published).from_config(content)
        assert decoder.resolution == side
        assert shapes_of(decoder) == shapes_of(published)


def test_every_format_of_a_chameleon_is_the_same_decoder(tmp_path: Path) -> None:
    """The authors' file with its YAML, told by its own target and by ours, and Hugging Face's folders."""
    decoder, config = tiny("chameleon"), chameleon_config(attn_resolutions=[16])
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
    require_same(decoder, loaded)
    encoder = {name: tensor for name, tensor in tensors.items() if "decoder" not in name}
    folder = whole_model(tmp_path / "as transformers' conversion writes it", config, encoder)
    with pytest.raises(CheckpointMismatch, match=r"has an encoder and no decoder .* give the authors' file"):
        load_decoder(folder)


def test_every_format_of_a_llamagen_is_the_same_decoder(tmp_path: Path) -> None:
    """LlamaGen's file, Hugging Face's folder of the tokenizer, of a whole Janus in shards, and Janus' own names."""
    decoder, config = tiny("llamagen"), janus_config()
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
    assert {type(each) for each in loaded} == {LlamaGen}
    assert loaded[0].ignored == ("quantize.codebook_used",), "counts of training are no part of the network"
    require_same(decoder, loaded)
    other = VQGAN.from_config(decoder.config.model_dump())
    other.load_state_dict(decoder.state_dict())
    assert other.digest != decoder.digest, "of the same tensors a VQGAN is another function"


def test_the_folder_of_emu3s_authors(tmp_path: Path) -> None:
    """The configuration names code, which is not run, and the file has counters, which are no weights."""
    decoder = randomise(Emu3.from_config(EMU3_AUTHORS), seed=3).eval()
    loaded = load_decoder(emu3_folder(tmp_path / "x", decoder.state_dict()))
    assert type(loaded) is Emu3
    assert (loaded.digest, loaded.downsampling, loaded.codebook_size) == (decoder.digest, 4, 64)
    assert {name.rpartition(".")[2] for name in loaded.ignored} == {"num_batches_tracked"}
    codes = random_codes(64)
    assert (loaded.decode(codes, (4, 16)) - decoder.decode(codes, (4, 16))).abs().max() < 2e-5
    heads = {"model_type": "emu3_vqgan", "num_attention_heads": 2}
    for fields, message in (
        (heads, "num_attention_heads: input should be 1"),
        ({"attn_resolutions": [-1]}, "attn_resolutions.0: input should be greater"),
        ({"embed_dim": 3}, "embed_dim 3 is not z_channels 4"),
        ({"temporal_downsample_factor": 3}, "temporal_downsample_factor: input should be 1, 2, 4, 8 or 16"),
        ({"double_z": True}, "double_z is not False"),
    ):
        assert message in refusal(InvalidModelConfig, Emu3.from_config, EMU3_AUTHORS | fields)


def require_same(decoder: ImageDecoder, loaded: list[ImageDecoder]) -> None:
    codes, images = random_codes(64), random_images()
    wanted = loaded[0].decode(codes)
    assert (wanted - decoder.decode(codes)).abs().max() < 2e-5
    for other in loaded:
        assert (other.digest, other.resolution) == (decoder.digest, 32)
        assert torch.equal(other.decode(codes), wanted)
        assert torch.equal(other.encode(images), decoder.encode(images))


def test_raw_and_averaged_weights_of_a_training(tmp_path: Path) -> None:
    """A value that is no set of tensors under `ema` is not an average."""
    decoder = tiny("llamagen")
    raw = own_tensors(decoder)
    averaged = {name: tensor + 0.01 for name, tensor in raw.items()}
    config = {"target": LLAMAGEN_TARGET, **decoder.config.model_dump()}
    both = llamagen_file(tmp_path / "both.pt", raw, ema=averaged, steps=5, args=Namespace(lr=1))
    wanted = load_decoder(llamagen_file(tmp_path / "one.pt", averaged), config).digest
    torch.save({"ema": averaged}, tmp_path / "average.pt")
    rate = llamagen_file(tmp_path / "rate.pt", raw, ema={"decay": 0.9999})
    for path, ema, digest in (
        (both, False, decoder.digest),
        (both, True, wanted),
        (tmp_path / "average.pt", False, wanted),
        (tmp_path / "average.pt", True, wanted),
        (rate, False, decoder.digest),
    ):
        assert load_decoder(path, config, ema=ema).digest == digest != (wanted if digest == decoder.digest else "")
    with pytest.raises(CheckpointMismatch, match=r"holds no averaged weights .* load the raw weights with ema=False"):
        load_decoder(rate, config, ema=True)


def test_gradients_equal_the_plain_version() -> None:
    """Norms and activations overwrite their input, which must not reach what the backward pass needs."""
    decoder = random_decoder(tiny_config("movqgan"), "movqgan").double()
    parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in decoder.named_parameters()}
    codes = torch.randint(0, 16, (2, 16), generator=torch.Generator().manual_seed(0))
    decoder.render(decoder.lookup(codes, (4, 4))).square().mean().backward()
    plain_autoencoder.decode(parameters, codes, 4, 4).square().mean().backward()
    for name, parameter in decoder.named_parameters():
        wanted = parameters[name].grad
        assert (parameter.grad is None) == (wanted is None) == name.startswith(("encoder.", "quant_conv."))
        assert wanted is None or torch.allclose(parameter.grad, wanted, rtol=1e-9, atol=1e-12), name


@pytest.mark.usefixtures("reference_models")
class TestTransformers:
    @pytest.fixture(autouse=True)
    def _no_grad(self) -> Iterator[None]:
        with torch.no_grad():
            yield

    @pytest.mark.parametrize("attention", [None, [16, 8], "full size"])
    @pytest.mark.parametrize("seed", range(3))
    def test_codes_of_chameleon(self, seed: int, attention: Any, tmp_path: Path) -> None:
        """The folder has no decoder; the rest of the authors' file is filled in."""
        from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

        fields = {} if attention == "full size" else {**TINY, "resolution": 32, "attn_resolutions": attention}
        theirs: Any = randomise(ChameleonVQVAE(ChameleonVQVAEConfig(**fields)), seed).eval()
        config = theirs.config.to_diff_dict() | {"model_type": "chameleon_vqgan"}
        states = Chameleon.from_config(config).state_dict() | theirs.state_dict()
        assert states.keys() - theirs.state_dict().keys() == {name for name in states if name.startswith("decoder")}
        ours = load_decoder(tokenizer_alone(tmp_path / "x", config, states))
        images = random_images(2, 32 if fields else 128)
        assert torch.equal(ours.encode(images).flatten(), theirs.encode(images).image_tokens)
        assert (ours.latents(images[:1]) - theirs.quant_conv(theirs.encoder(images[:1]))).abs().max() < 1e-4

    def janus(self, seed: int, unit: bool = True, **fields: Any) -> Any:
        """A JanusVQVAE of these sizes with random weights, and entries of length 1 if `unit`."""
        from transformers import JanusVQVAE, JanusVQVAEConfig

        kind: Any = JanusVQVAE
        model = randomise(kind(JanusVQVAEConfig(**fields)), seed).eval().requires_grad_(False)
        weight = model.quantize.embedding.weight
        weight.copy_(torch.nn.functional.normalize(weight, dim=-1) if unit else weight)
        return model

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("unit", [True, False])
    def test_pixels_and_codes_of_janus(self, seed: int, unit: bool, tmp_path: Path) -> None:
        """transformers scales entries where it decodes, and not where it encodes; LlamaGen does both, as evalsvc."""
        theirs = self.janus(seed, unit, **{**TINY, "num_patches": 8})
        theirs.save_pretrained(tmp_path)
        ours = load_decoder(tmp_path)
        codes, images = random_codes(64), random_images()
        wanted = theirs.decode(codes)
        assert wanted.abs().max() > 0.5
        assert (ours.decode(codes) - wanted).abs().max() < 1e-4
        assert torch.equal(ours.encode(images).flatten(), theirs.encode(images).image_tokens.flatten()) == unit
        assert torch.equal(ours.encode(images), plain_autoencoder.encode(ours.state_dict(), images, unit=True)[1])
        assert own_tensors(ours).keys() == {to_llamagen(name) for name in theirs.state_dict()}

    def test_a_whole_janus(self, tmp_path: Path) -> None:
        from transformers import JanusConfig, JanusForConditionalGeneration

        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {"model_type": "llama", "intermediate_size": 8, "vocab_size": 32, "num_key_value_heads": 2, **size}
        vision = {"image_size": 32, "patch_size": 4, "projection_dim": 8, **size}
        config = JanusConfig(text_config=text, vision_config=vision, vq_config=TINY)
        model = randomise(JanusForConditionalGeneration(config), seed=4).eval()
        model.save_pretrained(tmp_path, max_shard_size="200KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        ours, codes = load_decoder(tmp_path), random_codes(64)
        assert (ours.resolution, ours.grid(32, 32)) == (32, (8, 8))
        assert (ours.decode(codes) - model.model.vqmodel.decode(codes)).abs().max() < 1e-4

    @pytest.mark.parametrize("seed", range(3))
    def test_pixels_and_codes_of_emu3(self, seed: int, tmp_path: Path) -> None:
        """Alone, in a whole model and by the authors' names; an image is a video of four frames for transformers."""
        from transformers import Emu3VQVAE, Emu3VQVAEConfig

        theirs: Any = randomise(Emu3VQVAE(Emu3VQVAEConfig(**EMU3_TRANSFORMERS)), seed).eval().requires_grad_(False)
        theirs.save_pretrained(tmp_path / "alone")
        whole = {f"vqmodel.{name}": tensor for name, tensor in theirs.state_dict().items()}
        text = {"text_model.lm_head.weight": torch.ones(7, 3)}
        config = {"model_type": "emu3", "vq_config": EMU3_TRANSFORMERS, "vocabulary_map": {"<image>": 5}}
        ours = load_decoder(tmp_path / "alone")
        shapes = {"model_type": "Emu3VisionVQ", "ch_mult": EMU3_TRANSFORMERS["channel_multiplier"]}
        for folder in (
            tokenizer_alone(tmp_path / "whole", config, whole | text),
            emu3_folder(tmp_path / "authors", own_tensors(ours), **shapes),
        ):
            assert load_decoder(folder).digest == ours.digest
        theirs = theirs.double()
        for dtype, error in (("float64", 1e-10), ("float32", 1e-4)):
            ours = load_decoder(tmp_path / "alone", dtype=dtype)
            for grid in ((8, 8), (3, 5), (1, 12)):
                size = (4 * grid[0], 4 * grid[1])
                codes = random_codes(64)[:, : grid[0] * grid[1]]
                wanted = theirs.decode(codes.view(-1, *grid))
                assert wanted.abs().max() > 0.5
                assert (ours.render(ours.lookup(codes, grid)) - wanted).abs().max() < error
                images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed)).double()
                nearest = theirs.encode(images, torch.tensor([size, size])).image_tokens
                assert torch.equal(ours.encode(images), torch.stack(nearest).flatten(1))

    @pytest.mark.parametrize(
        ("name", "multiplier"), [("llamagen-vq-16", [1, 1, 2, 2, 4]), ("llamagen-vq-8", [1, 2, 2, 4])]
    )
    def test_full_size_of_janus(self, name: str, multiplier: list[int], tmp_path: Path) -> None:
        """LlamaGen's file under the registered name; by its configuration, transformers' class is also a VQ-8."""
        theirs = self.janus(6, num_patches=8, channel_multiplier=multiplier)
        named = {to_llamagen(key): tensor for key, tensor in theirs.state_dict().items()}
        ours = load_decoder(llamagen_file(tmp_path / "vq.pt", named), name)
        codes, images = random_codes(16_384, 1), random_images(1, 8 * ours.downsampling)
        assert (ours.decode(codes) - theirs.decode(codes)).abs().max() < 1e-4
        assert torch.equal(ours.encode(images).flatten(), theirs.encode(images).image_tokens.flatten())
