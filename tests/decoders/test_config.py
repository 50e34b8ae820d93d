from pathlib import Path
from typing import Any

import pytest
from tiny_decoders import tiny_config

from evalsvc.decoders.config import REGISTERED, AutoencoderConfig, resolve_config
from evalsvc.errors import InvalidModelConfig, UnknownName

PUBLISHED = {
    "movqgan": (16_384, 8, [False] * 3 + [True]),
    "llamagen-vq-16": (16_384, 16, [False] * 4 + [True]),
    "llamagen-vq-8": (16_384, 8, [False] * 3 + [True]),
    "chameleon-vq": (8_192, 16, [False] * 5),
}
"""Codes, pixels of a code along each side, and attention by level."""


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_names(name: str) -> None:
    config = AutoencoderConfig.parse(resolve_config(name, Path("x.ckpt")))
    wanted = PUBLISHED["movqgan" if name.startswith("movqgan") else name]
    assert (config.n_embed, config.ddconfig.downsampling, config.ddconfig.attends) == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch": 20}, r"ch 20 times ch_mult \[1, 2, 1\] must give multiples of 32"),
        ({"ch_mult": [1, 0]}, r"ch_mult \[1, 0\] must give"),
        ({"ch_mult": []}, "ddconfig.ch_mult: .*at least 1 item"),
        ({"resolution": 30}, "resolution 30 is not a multiple of the 4"),
        ({"in_channels": 1}, "in_channels 1, out_ch 3: images have 3 channels"),
        ({"double_z": "hunter2"}, "double_z is not False, the only supported value"),
        ({"give_pre_end": True}, "give_pre_end is not False"),
        ({"attn_type": "hunter2"}, "attn_type is not 'vanilla'"),
        ({"z_channels": "hunter2"}, "ddconfig.z_channels: input should be a valid integer"),
        ({"ch_mult": ["hunter2"]}, "ddconfig.ch_mult.*: input should be a valid integer"),
    ],
)
def test_networks_that_are_refused(changes: dict[str, Any], message: str) -> None:
    """And their values are not quoted: who names a file need not be who may read it."""
    with pytest.raises(InvalidModelConfig, match=f"decoder configuration: .*{message}") as caught:
        AutoencoderConfig.parse(tiny_config("movqgan", **changes))
    assert "hunter2" not in caught.value.message


def test_missing_keys_are_named() -> None:
    with pytest.raises(InvalidModelConfig, match=r"embed_dim: .*; n_embed: .*; ddconfig\.ch: "):
        AutoencoderConfig.parse({"ddconfig": {}})


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            None,
            InvalidModelConfig,
            "no config.yaml or .* next to .*; give config: a YAML or JSON file, or one of movqgan",
        ),
        ("movqgan-67m", UnknownName, "no decoder configuration is named 'movqgan-67m'; did you mean 'movqgan-67M'"),
        ("folder/none.yaml", InvalidModelConfig, "there is no decoder configuration at folder/none.yaml"),
        ({"model": {}}, InvalidModelConfig, "the decoder configuration has neither model.params nor ddconfig"),
    ],
)
def test_configurations_that_are_not_there(config: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        resolve_config(config, tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is no readable YAML"),
        (b"\xff\xfe\x00", "is no readable YAML"),
        (b"- 1", "config.yaml has neither model.params nor ddconfig"),
        (b" " * 1_000_001, "is larger than 1,000,000 bytes; give the configuration instead of the weights"),
    ],
)
def test_files_that_are_no_configuration(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    for path in (tmp_path, tmp_path / "x.ckpt"):
        with pytest.raises(InvalidModelConfig, match=message):
            resolve_config(None, path)
