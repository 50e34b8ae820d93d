"""Configurations of image decoders, and files that do not fit them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from refusals import refusal
from tiny_decoders import random_decoder, tiny_config
from torch import Tensor

from evalsvc.decoders import load_decoder
from evalsvc.decoders.config import AutoencoderConfig, resolve_config
from evalsvc.errors import CheckpointMismatch, CheckpointNotFound, InvalidModelConfig, UnknownName, UnsupportedModel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch": 20}, r"ch 20 times ch_mult [1, 2, 1] must give multiples of 32"),
        ({"ch_mult": [1, 0]}, r"ch_mult [1, 0] must give"),
        ({"ch_mult": []}, "ddconfig.ch_mult: "),
        ({"resolution": 30}, "resolution 30 is not a multiple of the 4"),
        ({"in_channels": 1}, "in_channels 1, out_ch 3: images have 3 channels"),
        ({"attn_type": "hunter2"}, "attn_type is not 'vanilla'"),
        ({"z_channels": "hunter2"}, "ddconfig.z_channels: input should be a valid integer"),
    ],
)
def test_networks_that_are_refused(changes: dict[str, Any], message: str) -> None:
    said = refusal(InvalidModelConfig, AutoencoderConfig.parse, tiny_config("movqgan", **changes))
    assert said.startswith("decoder configuration: ")
    assert message in said


def test_configurations_that_are_not_there(tmp_path: Path) -> None:
    nowhere = f"next to {tmp_path}/x.ckpt; give config: a YAML or JSON file, or one of movqgan-67M"
    for config, error, message in (
        (None, InvalidModelConfig, nowhere),
        ("movqgan-67m", UnknownName, "no decoder configuration is named 'movqgan-67m'; did you mean 'movqgan-67M'"),
        ("folder/none.yaml", InvalidModelConfig, "there is no decoder configuration at folder/none.yaml"),
        ({"model": {}}, InvalidModelConfig, "the decoder configuration has neither model.params nor ddconfig"),
    ):
        assert message in refusal(error, resolve_config, config, tmp_path / "x.ckpt")
    for content, message in (
        (b"a: [", "is no readable YAML"),
        (b"\xff\xfe\x00", "is no readable YAML"),
        (b"- 1", "config.yaml has neither model.params nor ddconfig"),
        (b" " * 1_000_001, "is larger than 1,000,000 bytes; give the configuration instead of the weights"),
    ):
        (tmp_path / "config.yaml").write_bytes(content)
        for path in (tmp_path, tmp_path / "x.ckpt"):
            assert message in refusal(InvalidModelConfig, resolve_config, None, path)
    with pytest.raises(InvalidModelConfig, match=r"embed_dim: .*; n_embed: .*; ddconfig\.ch: "):
        AutoencoderConfig.parse({"ddconfig": {}})


CODEBOOK = "quantize.embedding.weight"


@pytest.fixture
def states() -> dict[str, Tensor]:
    return random_decoder(tiny_config("movqgan"), "movqgan").state_dict()


def refused(tmp_path: Path, states: dict[str, Tensor], *fragments: str, ema: bool = False, **config: Any) -> None:
    torch.save(states, tmp_path / "x.ckpt")
    errors, fields = (CheckpointMismatch, UnsupportedModel), tiny_config("movqgan") | config
    said = refusal(errors, load_decoder, tmp_path / "x.ckpt", fields, ema)
    assert [fragment for fragment in (str(tmp_path / "x.ckpt"), *fragments) if fragment not in said] == []


def test_wrong_keys_are_all_named(states: dict[str, Tensor], tmp_path: Path) -> None:
    states["decoder.conv_in.bias"] = torch.zeros(3)
    states["quant_conv.bias"] = torch.zeros(3, dtype=torch.int64)
    states["encoder.mid.attn_2.q.weight"] = torch.zeros(3)
    del states["decoder.mid.attn_1.q.weight"], states["post_quant_conv.bias"]
    refused(
        tmp_path,
        states,
        "(bare state dict) does not match its configuration",
        "2 missing: post_quant_conv.bias, decoder.mid.attn_1.q.weight",
        "1 unexpected: encoder.mid.attn_2.q.weight",
        "1 wrongly shaped: decoder.conv_in.bias [3] instead of [32]",
        "1 no plain floating-point tensor: quant_conv.bias",
    )


def test_another_network_is_told_from_a_decoder_without_its_codebook(states: dict[str, Tensor], tmp_path: Path) -> None:
    """The latter exist: fine-tuned for a diffusion model."""
    ddconfig = tiny_config("movqgan")["ddconfig"] | {"num_res_blocks": 3}
    refused(tmp_path, states, "missing: encoder.down.0.block.2.", "more", ddconfig=ddconfig)
    shapes = f"1 wrongly shaped: {CODEBOOK} [16, 3] instead of [16384, 3]"
    refused(tmp_path, states, shapes, "the file's codebook is 16 x 3: set", n_embed=16384)
    target = tiny_config("vqgan")["target"]
    refused(tmp_path, states, "missing: decoder.", "unexpected: decoder.", target=target)
    del states[CODEBOOK]
    refused(tmp_path, states, "1 missing: quantize", "without its codebook (quantize.…) the")


def test_extras_of_training_are_reported_and_not_refused(states: dict[str, Tensor], tmp_path: Path) -> None:
    """Half of the averaged weights is refused where these are asked for."""
    extras = {"loss.logvar": torch.zeros(()), "ema_encoder.decay": torch.tensor(0.9), "model_ema.decay": torch.ones(1)}
    torch.save({"state_dict": states | extras}, tmp_path / "x.ckpt")
    assert load_decoder(tmp_path / "x.ckpt", tiny_config("movqgan")).ignored == tuple(sorted(extras))
    averaged = {
        re.sub(r"^(\w+)\.(.*)", lambda m: f"ema_{m[1]}.{m[2].replace('.', '')}", name): states[name] for name in states
    }
    del averaged["ema_decoder.up0block1conv1weight"]
    refused(tmp_path, states | averaged, "1 missing: ema_decoder.up0block1conv1weight", ema=True)


def test_an_unknown_kind(states: dict[str, Tensor], tmp_path: Path) -> None:
    target = "taming.models.vqgan.GumbelVQ"
    kinds = "one of: chameleon, emu3, llamagen, movqgan, vqgan"
    refused(tmp_path, states, f"model.target {target!r}", kinds, target=target)
    refused(tmp_path, {"a": torch.ones(1)}, "keys such as a is of no known decoder", target=None)
    said = refusal(InvalidModelConfig, load_decoder, tmp_path / "x.ckpt", tiny_config("movqgan") | {"target": 3})
    assert said == "model.target is int; it must be the dotted name of a class"


def test_configuration_in_every_form(flat_file: Path, tmp_path: Path) -> None:
    beside = flat_file.with_name("config.yaml")
    content = yaml.safe_load(beside.read_text())
    digest = load_decoder(flat_file).digest
    for config in (beside, str(beside), content, content["model"]["params"]):
        assert load_decoder(str(flat_file), config).digest == digest
    assert "no checkpoint at" in refusal(CheckpointNotFound, load_decoder, tmp_path / "x.ckpt", "movqgan-67M")
    said = refusal(CheckpointMismatch, load_decoder, flat_file, None, True)
    assert "holds no averaged weights (keys such as ema_encoder.conv_inw" in said
    with pytest.raises(UnknownName, match="no dtype is named 'float23'; did you mean 'float32'"):
        load_decoder(flat_file, dtype="float23")


def test_the_file_may_be_replaced_while_the_decoder_is_used(states: dict[str, Tensor], tmp_path: Path) -> None:
    """Tensors that are views of the mapped file would change, or end the process."""
    torch.save(states, tmp_path / "x.ckpt")
    decoder = load_decoder(tmp_path / "x.ckpt", tiny_config("movqgan"))
    before = decoder.digest
    with (tmp_path / "x.ckpt").open("r+b") as file:
        file.write(bytes((tmp_path / "x.ckpt").stat().st_size))
    assert decoder.digest == before
