"""Configuration of image decoders: the authors' files, Hugging Face's `config.json`, and published sizes by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evalsvc.errors import InvalidModelConfig, UnknownName, json_reason
from evalsvc.spec.suite import validation_message
from evalsvc.spec.yaml_text import YamlError, read_yaml

MAX_CONFIG_BYTES = 1_000_000
MAX_JSON_BYTES = 10_000_000
"""Maximum number of bytes of a `config.json`: Chameleon's holds the text tokenizer's vocabulary."""
DEFAULT_FILES = ("config.yaml", "vqgan.yaml", "config.json")
"""Names of the configuration next to the weights, in the order in which they are tried: taming-transformers' and
MoVQGAN's, Chameleon's, and Hugging Face's."""
GROUPS = 32  # of every group norm
Fields = TypeVar("Fields", bound=BaseModel)
Side = Annotated[int, Field(gt=0, le=2**14)]
"""Number of pixels or patches along one side. The bound keeps products of such numbers small."""
UNSUPPORTED = {"double_z": False, "give_pre_end": False, "tanh_out": False, "use_linear_attn": False}
"""Keys of a ddconfig that change the arithmetic, with the only supported value."""

LLAMAGEN_TARGET = "tokenizer.tokenizer_image.vq_model.VQModel"
CHAMELEON_TARGET = "chameleon.inference.vqgan.VQModel"

REGISTERED: dict[str, dict[str, object]] = read_yaml(Path(__file__).with_name("networks.yaml").read_bytes())
"""Published configurations by name."""


class NetworkConfig(BaseModel):
    """`ddconfig` of taming-transformers and its descendants. Other keys are ignored, as the authors' classes do.

    The upper bounds keep a hostile file from building a network for hours.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    ch: int = Field(gt=0, le=4096)
    ch_mult: tuple[int, ...] = Field(min_length=1, max_length=10)
    num_res_blocks: int = Field(gt=0, le=64)
    attn_resolutions: tuple[int, ...]
    resolution: int = Field(gt=0, le=2**14)
    z_channels: int = Field(gt=0, le=4096)
    in_channels: int = 3
    out_ch: int = 3
    dropout: float = Field(default=0.0, ge=0, lt=1)
    resamp_with_conv: bool = True
    add_conv: bool = False
    """A 3x3 convolution of the upsampled latent in the spatial norm; MoVQGAN only."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, content: object) -> object:
        if isinstance(content, Mapping):
            wrong = [key for key, value in UNSUPPORTED.items() if content.get(key, value) != value]
            if wrong:
                raise ValueError(f"{wrong[0]} is not {UNSUPPORTED[wrong[0]]}, the only supported value")
            if content.get("attn_type", "vanilla") != "vanilla":
                raise ValueError("attn_type is not 'vanilla', the only supported value")
        return content

    @model_validator(mode="after")
    def _check(self) -> NetworkConfig:
        if (self.in_channels, self.out_ch) != (3, 3):
            raise ValueError(f"in_channels {self.in_channels}, out_ch {self.out_ch}: images have 3 channels")
        if any(factor < 1 or self.ch * factor % GROUPS or self.ch * factor > 2**16 for factor in self.ch_mult):
            raise ValueError(f"ch {self.ch} times ch_mult {list(self.ch_mult)} must give multiples of {GROUPS}")
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution {self.resolution} is not a multiple of the {self.downsampling} it is divided by"
            )
        return self

    @property
    def widths(self) -> list[int]:
        """Channels of each level, highest resolution first."""
        return [self.ch * factor for factor in self.ch_mult]

    @property
    def attends(self) -> list[bool]:
        """Whether each level has attention, by the *nominal* resolution for every size of the image."""
        return [self.resolution // 2**level in self.attn_resolutions for level in range(len(self.ch_mult))]

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along each side."""
        return int(2 ** (len(self.ch_mult) - 1))


class AutoencoderConfig(BaseModel):
    """`model.params` of the authors' configuration files, limited to the keys that the network needs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    embed_dim: int = Field(gt=0, le=4096)
    n_embed: int = Field(gt=0, le=2**24)
    ddconfig: NetworkConfig

    @classmethod
    def parse(cls, content: Mapping[str, object]) -> Self:
        return validated(cls, "decoder configuration", content)


AUTHORS = {"double_z": "double_latent", "z_channels": "latent_channels", "out_ch": "out_channels"}
AUTHORS |= {"ch": "base_channels", "ch_mult": "channel_multiplier"}
AUTHORS |= {name: name for name in ("in_channels", "num_res_blocks", "dropout", "attn_type")}
"""Fields of a ddconfig by Hugging Face's names."""


class HuggingFaceVQConfig(BaseModel):
    """Fields that Janus and Chameleon share. `NetworkConfig` checks the values, except those computed with here.

    The fields and their defaults are those of transformers' `JanusVQVAEConfig` and `ChameleonVQVAEConfig`, because a
    saved `config.json` leaves out fields that have the default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    embed_dim: int
    num_embeddings: int
    double_latent: bool = False
    latent_channels: int = 256
    in_channels: int = 3
    out_channels: int = 3
    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1, max_length=10)
    num_res_blocks: int = 2
    dropout: float = 0.0
    attn_type: str | None = "vanilla"

    @classmethod
    def parse(cls, content: Mapping[str, object]) -> Self:
        """Parse a `config.json` of the image tokenizer, or of a whole model with the tokenizer's under `vq_config`."""
        fields = part_of(content, "vq_config") if "vq_config" in content else content
        return validated(cls, "decoder configuration", fields)

    def to_authors(self, resolution: int, attn_resolutions: tuple[int, ...]) -> dict[str, object]:
        """Return the configuration in the form of taming-transformers' `model.params`."""
        network = {theirs: getattr(self, own) for theirs, own in AUTHORS.items()}
        network |= {"resolution": resolution, "attn_resolutions": attn_resolutions}
        return {"embed_dim": self.embed_dim, "n_embed": self.num_embeddings, "ddconfig": network}


def part_of(content: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return a part of a `config.json`, empty if missing or null."""
    part = content.get(name)
    if part is not None and not isinstance(part, Mapping):
        raise InvalidModelConfig(f"{name} is a {type(part).__name__}; give the fields of the image tokenizer by name")
    return part or {}


def validated(kind: type[Fields], where: str, content: Mapping[str, object]) -> Fields:
    """Return `content` as a model of class `kind`. Raises InvalidModelConfig, which quotes no value."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InvalidModelConfig(f"{where}: {validation_message(error, quoting=False)}") from error


def resolve_config(config: str | Path | Mapping[str, object] | None, path: Path) -> dict[str, object]:
    """Return the unchecked configuration of the weights at `path`: {target, embed_dim, n_embed, ddconfig, …}, or the
    content of Hugging Face's `config.json` with its `model_type` as the target.

    `config` is a registered name (`movqgan-67M`, …), the authors' YAML or JSON file, its content, or None for one of
    `DEFAULT_FILES` next to the weights.
    """
    if isinstance(config, Mapping):
        return _flat(config, "the decoder configuration")
    if config is None:
        folder = path if path.is_dir() else path.parent
        neighbour = next((folder / name for name in DEFAULT_FILES if (folder / name).is_file()), None)
        if neighbour is None:
            raise InvalidModelConfig(
                f"there is no {' or '.join(DEFAULT_FILES)} next to {path}; give config: a YAML or JSON file, or one of "
                f"{', '.join(REGISTERED)}"
            )
        return _flat(_read(neighbour), str(neighbour))
    if str(config) in REGISTERED:
        return dict(REGISTERED[str(config)])
    file = Path(config)
    if not file.is_file():
        if file.suffix in (".yaml", ".yml", ".json") or len(file.parts) > 1:
            raise InvalidModelConfig(f"there is no decoder configuration at {file}; correct the path")
        raise UnknownName.among(
            "decoder configuration", str(config), REGISTERED, "for a YAML file, write its path with a slash: ./FILE"
        )
    return _flat(_read(file), str(file))


def _read(file: Path) -> object:
    is_json = file.suffix == ".json"
    most = MAX_JSON_BYTES if is_json else MAX_CONFIG_BYTES
    try:
        if file.stat().st_size > most:
            raise InvalidModelConfig(
                f"{file} is larger than {most:,} bytes; give the configuration instead of the weights"
            )
        content = file.read_text(encoding="utf-8")
        return json.loads(content) if is_json else read_yaml(content)
    except (OSError, YamlError, ValueError, RecursionError) as error:  # json_reason does not quote the file
        reason = str(error).partition("\n")[0] if isinstance(error, OSError | YamlError) else json_reason(error)
        raise InvalidModelConfig(
            f"{file} is no readable {'JSON' if is_json else 'YAML'} ({reason}); give the decoder's configuration"
        ) from error


def _flat(content: object, source: str) -> dict[str, object]:
    if isinstance(content, Mapping):
        model = content.get("model")
        if isinstance(model, Mapping) and isinstance(model.get("params"), Mapping):
            return {**model["params"], "target": model.get("target")}
        if "ddconfig" in content:
            return dict(content)
        if isinstance(content.get("model_type"), str):
            return {**content, "target": content["model_type"]}
    raise InvalidModelConfig(
        f"{source} has neither model.params nor ddconfig nor model_type; give embed_dim, n_embed and ddconfig of the "
        "decoder, or Hugging Face's config.json"
    )
