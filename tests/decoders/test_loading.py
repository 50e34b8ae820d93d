"""Files that are not the decoder that was asked for: every message names what differs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_decoders import random_decoder, tiny_config
from torch import Tensor

from evalsvc.decoders import load_decoder
from evalsvc.errors import (
    CheckpointMismatch,
    CheckpointNotFound,
    InvalidModelConfig,
    NonFinite,
    UnknownName,
    UnsupportedModel,
)

CODEBOOK = "quantize.embedding.weight"


@pytest.fixture
def states() -> dict[str, Tensor]:
    return random_decoder(tiny_config("movqgan"), "movqgan").state_dict()


def refused(
    tmp_path: Path, states: dict[str, Tensor], error: type[Exception], *fragments: str, ema: bool = False, **config: Any
) -> None:
    torch.save(states, tmp_path / "x.ckpt")
    with pytest.raises(error) as caught:
        load_decoder(tmp_path / "x.ckpt", tiny_config("movqgan") | config, ema)
    for fragment in (str(tmp_path / "x.ckpt"), *fragments):
        assert fragment in str(caught.value)


def test_wrong_keys_are_all_named(states: dict[str, Tensor], tmp_path: Path) -> None:
    states["decoder.conv_in.bias"] = torch.zeros(3)
    states["quant_conv.bias"] = torch.zeros(3, dtype=torch.int64)
    states["encoder.mid.attn_2.q.weight"] = torch.zeros(3)
    del states["decoder.mid.attn_1.q.weight"], states["post_quant_conv.bias"]
    refused(
        tmp_path,
        states,
        CheckpointMismatch,
        "(bare state dict) does not match its configuration",
        "2 missing: post_quant_conv.bias, decoder.mid.attn_1.q.weight",
        "1 unexpected: encoder.mid.attn_2.q.weight",
        "1 wrongly shaped: decoder.conv_in.bias [3] instead of [32]",
        "1 no plain floating-point tensor: quant_conv.bias",
    )


def test_another_network_is_told_from_a_decoder_without_its_codebook(states: dict[str, Tensor], tmp_path: Path) -> None:
    """The latter exist: fine-tuned for a diffusion model."""
    ddconfig = tiny_config("movqgan")["ddconfig"] | {"num_res_blocks": 3}
    refused(tmp_path, states, CheckpointMismatch, "missing: encoder.down.0.block.2.", "more", ddconfig=ddconfig)
    shapes = f"1 wrongly shaped: {CODEBOOK} [16, 3] instead of [16384, 3]"
    refused(tmp_path, states, CheckpointMismatch, shapes, "the file's codebook is 16 x 3: correct", n_embed=16384)
    target = tiny_config("vqgan")["target"]
    refused(tmp_path, states, CheckpointMismatch, "missing: decoder.", "unexpected: decoder.", target=target)
    del states[CODEBOOK]
    refused(tmp_path, states, CheckpointMismatch, "1 missing: quantize", "without its codebook (quantize.…) the")


def test_extras_of_training_are_reported_and_not_refused(states: dict[str, Tensor], tmp_path: Path) -> None:
    extras = {"loss.logvar": torch.zeros(()), "ema_encoder.decay": torch.tensor(0.9), "model_ema.decay": torch.ones(1)}
    torch.save({"state_dict": states | extras}, tmp_path / "x.ckpt")
    assert load_decoder(tmp_path / "x.ckpt", tiny_config("movqgan")).ignored == tuple(sorted(extras))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_broken_weights(states: dict[str, Tensor], tmp_path: Path, value: float) -> None:
    states[CODEBOOK] = states[CODEBOOK].clone()
    states[CODEBOOK][3, 1] = value
    refused(tmp_path, states, NonFinite, f"NaN or infinity in 1 of {len(states)} tensors", CODEBOOK)


# averaged weights


def test_averaged_weights_are_others(lightning_file: Path) -> None:
    raw, averaged = load_decoder(lightning_file), load_decoder(lightning_file, ema=True)
    assert raw.digest != averaged.digest
    assert "loss.logvar" in raw.ignored or any(name.startswith("loss.") for name in raw.ignored)
    assert "ema_quantize.embeddingweight" in raw.ignored
    assert "ema_quantize.embeddingweight" not in averaged.ignored


def test_half_of_the_averaged_weights(states: dict[str, Tensor], tmp_path: Path) -> None:
    averaged = {
        re.sub(r"^(\w+)\.(.*)", lambda m: f"ema_{m[1]}.{m[2].replace('.', '')}", name): states[name] for name in states
    }
    del averaged["ema_decoder.up0block1conv1weight"]
    refused(tmp_path, states | averaged, CheckpointMismatch, "1 missing: ema_decoder.up0block1conv1weight", ema=True)


# the kind and the configuration


def test_an_unknown_kind(states: dict[str, Tensor], tmp_path: Path) -> None:
    target = "taming.models.vqgan.GumbelVQ"
    refused(
        tmp_path,
        states,
        UnsupportedModel,
        f"model.target {target!r}",
        "one of: chameleon, llamagen, movqgan, vqgan",
        target=target,
    )
    refused(tmp_path, {"a": torch.ones(1)}, UnsupportedModel, "keys such as a is of no known decoder", target=None)
    torch.save(states, tmp_path / "x.ckpt")
    with pytest.raises(InvalidModelConfig, match=r"model\.target is int; it must be the dotted name of a class"):
        load_decoder(tmp_path / "x.ckpt", tiny_config("movqgan") | {"target": 3})


def test_configuration_in_every_form(flat_file: Path, tmp_path: Path) -> None:
    beside = flat_file.with_name("config.yaml")
    content = yaml.safe_load(beside.read_text())
    digest = load_decoder(flat_file).digest
    for config in (beside, str(beside), content, content["model"]["params"]):
        assert load_decoder(str(flat_file), config).digest == digest


def test_what_is_not_there(flat_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no checkpoint at"):
        load_decoder(tmp_path / "x.ckpt", "movqgan-67M")
    with pytest.raises(CheckpointMismatch, match=r"holds no averaged weights \(keys such as ema_encoder.conv_inw"):
        load_decoder(flat_file, ema=True)
    with pytest.raises(UnknownName, match="no dtype is named 'float23'; did you mean 'float32'"):
        load_decoder(flat_file, dtype="float23")


def test_the_file_may_be_replaced_while_the_decoder_is_used(
    states: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that are views of the mapped file would change, or end the process."""
    torch.save(states, tmp_path / "x.ckpt")
    decoder = load_decoder(tmp_path / "x.ckpt", tiny_config("movqgan"))
    before = decoder.digest
    with (tmp_path / "x.ckpt").open("r+b") as file:
        file.write(b"\0" * (tmp_path / "x.ckpt").stat().st_size)
    assert decoder.digest == before
