"""The configuration of a checkpoint's open_lm model: its shape and arithmetic, read without torch.

open_lm splits the configuration between two files. The model JSON has the shape and may fix norm, qk-norm, positions
and feed-forward. Everything else comes from the command line, which a run records in `params.txt`. The JSON overrides
`params.txt`, and `params.txt` overrides open_lm's defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evalsvc.errors import (
    CheckpointMismatch,
    InvalidModelConfig,
    UnknownName,
    UnsupportedModel,
    json_reason,
    near_misses,
    os_reason,
    show_name,
)

MAX_JSON_FILES = 100
"""Maximum number of JSON files in a checkpoint's folder that are searched for its model."""

MAX_CONFIG_BYTES = 1_000_000

MAX_MODEL_BYTES = 100_000
"""Maximum number of bytes of a model JSON that was found by searching; those of open_lm have 400 bytes."""

ModelNorm = Literal[
    "default_layer_norm",
    "lp_layer_norm",
    "gain_only_layer_norm",
    "gain_only_lp_layer_norm",
    "no_wb_layer_norm",
    "rms_norm",
]
PositionalEmbedding = Literal["rotary", "head_rotary", "llama_rotary", "none"]
FeedForwardType = Literal["swiglu", "swiglu_torch", "gelu", "gemma_geglu"]


class ModelConfig(BaseModel):
    """The fields of an open_lm model JSON, with open_lm's names; other keys are ignored, as in open_lm.

    The upper bounds keep a hostile file from building a model for hours.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    hidden_dim: int = Field(gt=0, le=2**20)
    n_layers: int = Field(gt=0, le=4096)
    n_heads: int = Field(gt=0, le=2**16)
    seq_len: int = Field(gt=0, le=2**26)
    vocab_size: int = Field(gt=0, le=2**26)
    post_embed_norm: bool
    weight_tying: bool
    model_norm: ModelNorm = "default_layer_norm"
    qk_norm: bool = False
    positional_embedding_type: PositionalEmbedding = "rotary"
    ffn_type: FeedForwardType = "swiglu"
    norm_eps: float = Field(default=1e-5, gt=0)
    precision: str | None = None
    """`--precision` of the training run, or "fsdp_bf16"; only determines how the rotary frequencies were rounded."""

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.n_heads > self.hidden_dim:
            raise ValueError(
                f"n_heads {self.n_heads} is more than hidden_dim {self.hidden_dim}; correct one of the two"
            )
        if self.positional_embedding_type != "none" and self.head_dim % 2:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} over n_heads {self.n_heads} gives heads of width {self.head_dim}; "
                f"{self.positional_embedding_type} turns pairs and needs an even width"
            )
        return self

    @property
    def head_dim(self) -> int:
        """The width of one head. hidden_dim need not be a multiple of n_heads; the remainder is dropped."""
        return self.hidden_dim // self.n_heads

    @property
    def attention_dim(self) -> int:
        """The width of all heads together; less than hidden_dim in open_lm_87m (480 of 488)."""
        return self.n_heads * self.head_dim

    @property
    def ffn_dim(self) -> int:
        """The width inside the feed-forward layer: 4·D for gelu, otherwise 8·D/3 rounded up to a multiple of 256."""
        if self.ffn_type == "gelu":
            return 4 * self.hidden_dim
        return 256 * ((int(8 * self.hidden_dim / 3) + 255) // 256)


# name: (hidden_dim, n_layers, n_heads), followed by (seq_len, vocab_size) where they are not 2,048 and 50,432.
_SHAPES: dict[str, tuple[int, ...]] = {
    "open_lm_test_tiny": (16, 2, 2, 16, 16),
    "open_lm_11m": (96, 12, 12),
    "open_lm_11m_v2": (96, 8, 4),
    "open_lm_25m": (192, 12, 12),
    "open_lm_41m": (288, 12, 12),
    "open_lm_79m_v2": (512, 8, 4),
    "open_lm_87m": (488, 12, 12),
    "open_lm_154m_v2": (576, 24, 8),
    "open_lm_160m": (768, 12, 12),
    "open_lm_410m": (1024, 24, 16),
    "open_lm_411m_v2": (1024, 24, 8),
    "open_lm_830m": (1536, 24, 16),
    "open_lm_1b": (2048, 24, 16),
    "open_lm_1b_old": (2048, 24, 16),
    "m1b_tiktoken": (2048, 24, 16, 2048, 50304),
    "open_lm_3b": (2560, 32, 32),
    "open_lm_7b": (4096, 32, 32),
    "llama2_7b": (4096, 32, 32, 4096, 32000),
}
_FIXED: dict[str, dict[str, object]] = {
    "open_lm_1b_old": {
        "positional_embedding_type": "head_rotary",
        "model_norm": "default_layer_norm",
        "qk_norm": False,
        "ffn_type": "swiglu",
    },
    "llama2_7b": {"positional_embedding_type": "llama_rotary", "model_norm": "rms_norm", "ffn_type": "swiglu"},
}
_ALIASES = {
    "quark_neox": "open_lm_11m",
    "atom_neox": "open_lm_25m",
    "aphid_neox": "open_lm_87m",
    "ant_neox": "open_lm_160m",
    "potato_neox": "open_lm_410m",
    "marmot_neox": "open_lm_830m",
    "m1b_neox": "open_lm_1b",
    "g3b_neox": "open_lm_3b",
    "l7b_neox": "open_lm_7b",
}


def registered_models() -> dict[str, dict[str, Any]]:
    """Return the JSON fields of every model that open_lm registers, aliases included, by name. Mamba models are left
    out."""
    models = {name: _registered(name) for name in _SHAPES}
    return models | {alias: models[name] for alias, name in _ALIASES.items()}


def _registered(name: str) -> dict[str, Any]:
    hidden_dim, n_layers, n_heads, *rest = _SHAPES[name]
    seq_len, vocab_size = rest or (2048, 50432)
    shape = {"hidden_dim": hidden_dim, "n_layers": n_layers, "n_heads": n_heads, "seq_len": seq_len}
    return shape | {"vocab_size": vocab_size, "post_embed_norm": False, "weight_tying": False} | _FIXED.get(name, {})


def read_model_spec(model: str | Mapping[str, object], base: Path | None = None) -> dict[str, object]:
    """Return the open_lm fields of `model`: a registered name, a JSON file, or the fields themselves.

    Relative paths start from `base`. Hugging Face configurations of both open_lm wrappers are translated. The result
    has only the fields that `model` sets, so that `params.txt` can supply the rest later.
    Raises UnknownName, InvalidModelConfig, UnsupportedModel.
    """
    if isinstance(model, str):
        fields, source = _read_named(model, base)
        shown: Mapping[str, object] = {}
    else:
        fields, source = _open_lm_fields(model, "the given model configuration", ()), "the given model configuration"
        shown = model
    _validated(fields, source, shown)
    return fields


def resolve_config(model: str | Mapping[str, object] | None, checkpoint: Path) -> ModelConfig:
    """Return the complete configuration of the model in `checkpoint` (a file or a Hugging Face folder).

    If `model` is None, the configuration is searched for in the checkpoint's folder, see `find_model_config`. A
    `params.txt` of the run (in the same folder or its parent) always supplies the fields that the model does not set.
    Raises UnknownName, InvalidModelConfig, UnsupportedModel.
    """
    if model is None:
        discovered = _find_fields(checkpoint)
        if discovered is None:
            raise InvalidModelConfig(
                f"no model configuration was given for {checkpoint} and none was found in its folder or the parent "
                "folder (config.json, params.txt with its model JSON, or one *.json with hidden_dim); "
                "set `model` to a registered name such as 'open_lm_1b', the path of a model JSON, or its fields"
            )
        fields, source = discovered
    else:
        fields = read_model_spec(model)
        source = f"model {model!r}" if isinstance(model, str) else "the given model configuration"
    shown = model if isinstance(model, Mapping) else {}
    return _validated(_with_training_flags(fields, checkpoint), source, shown)


def require_one_model(models: Mapping[str, Mapping[str, object]]) -> None:
    """Raise CheckpointMismatch if two of `models`, keyed by their checkpoints' names, differ in a field that both
    have."""
    (first, first_fields), *rest = models.items()
    for name, fields in rest:
        common = [key for key in first_fields if key in fields]
        if differing := [
            f"{key} {first_fields[key]} and {fields[key]}" for key in common if first_fields[key] != fields[key]
        ]:
            raise CheckpointMismatch(
                f"{first} and {name} are different models: {', '.join(differing)}; only checkpoints of one model "
                "configuration can be combined"
            )


def find_model_config(checkpoint: Path) -> dict[str, object] | None:
    """Search the folder of `checkpoint` for its configuration; return plain JSON values, or None if there is none.

    Searched in this order: a Hugging Face `config.json` in the folder; `params.txt` in the folder or its parent, with
    the `<model>.json` next to it or the registered name that it gives; the only *.json with `hidden_dim` in the folder,
    then in its parent. Raises InvalidModelConfig if a file is broken or the choice is ambiguous.
    """
    discovered = _find_fields(checkpoint)
    if discovered is None:
        return None
    fields, source = discovered
    return _validated(_with_training_flags(fields, checkpoint), source).model_dump(mode="json")


def _read_named(model: str, base: Path | None) -> tuple[dict[str, object], str]:
    registered = registered_models()
    if model in registered:
        return registered[model], f"model {model!r}"
    if "mamba" in model.rsplit("/", 1)[-1]:
        raise UnsupportedModel(_MAMBA.format(source=f"model {model!r}"))
    path = (base or Path()) / model
    if _is_file(path):
        return _open_lm_fields(_read_json(path), str(path), (path.parent,)), str(path)
    if "/" in model or model.endswith(".json"):
        raise InvalidModelConfig(f"there is no model JSON at {path}; give a path, a registered name, or the fields")
    raise UnknownName.among("model", model, registered, hint="or give the path of a model JSON")


def _find_fields(checkpoint: Path) -> tuple[dict[str, object], str] | None:
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    hf_config = folder / "config.json"
    if hf_config.is_file() and _describes_open_lm(fields := _read_json(hf_config)):
        return _open_lm_fields(fields, str(hf_config), (folder,)), str(hf_config)
    params, stem = _params_file(checkpoint), recorded_model(checkpoint)
    if params and stem is not None:
        recorded = _by_stem(stem, (params.parent, folder))
        if recorded is not None:
            return recorded
    return _only_json((folder, folder.parent))


def recorded_model(checkpoint: Path) -> str | None:
    """Return the model that the `params.txt` of a checkpoint's run names; None if there is no file or no name.

    Raises:
        InvalidModelConfig: the file is too large.
    """
    params = _params_file(checkpoint)
    stem = _read_params(params).get("model") if params else None
    return _stem(stem) if isinstance(stem, str) else None


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".json")


def _by_stem(stem: str, folders: tuple[Path, ...]) -> tuple[dict[str, object], str] | None:
    """Find the model that open_lm recorded as `stem`, the name of the JSON without its folder."""
    name = _stem(stem)
    if "mamba" in name:
        raise UnsupportedModel(_MAMBA.format(source=f"model {show_name(name)}"))
    for folder in folders:
        path = folder / f"{name}.json"
        if path.is_file():
            return _open_lm_fields(_read_json(path), str(path), ()), str(path)
    registered = registered_models()
    return (registered[name], f"model {name!r}") if name in registered else None


def _only_json(folders: tuple[Path, ...]) -> tuple[dict[str, object], str] | None:
    for folder in folders:
        candidates = [(path, fields) for path, fields in _json_files(folder) if "hidden_dim" in fields]
        if len(candidates) > 1:
            names = ", ".join(path.name for path, _ in candidates[:5])
            raise InvalidModelConfig(
                f"{len(candidates)} model JSONs are in {folder}: {names}; set `model` to one of them"
            )
        if candidates:
            path, fields = candidates[0]
            return _open_lm_fields(fields, str(path), ()), str(path)
    return None


def _json_files(folder: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """Yield the JSON objects in `folder`; other files are skipped.

    Raises:
        InvalidModelConfig: the folder has too many files to read.
    """
    paths = sorted(folder.glob("*.json"))
    if len(paths) > MAX_JSON_FILES:
        raise InvalidModelConfig(
            f"{folder} holds more than {MAX_JSON_FILES} JSON files, too many to search for the model; set "
            "`model` to a path, a registered name such as 'open_lm_1b', or the fields"
        )
    for path in paths:
        try:
            yield path, _read_json(path, MAX_MODEL_BYTES)
        except InvalidModelConfig:
            continue


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, or the folder is not accessible
        return False


def _read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    if not _is_file(path):
        raise InvalidModelConfig(f"{path} is not a file; use the path of a model JSON")
    if path.stat().st_size > limit:
        raise InvalidModelConfig(f"{path} is larger than {limit:,} bytes, too many for a model JSON; check the path")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidModelConfig(f"{path} is not JSON: {json_reason(error)}; correct the file") from error
    except OSError as error:
        raise InvalidModelConfig(f"{path} cannot be read: {os_reason(error)}; check its permissions") from error
    if not isinstance(fields, dict):
        raise InvalidModelConfig(f"{path} holds a {type(fields).__name__}; a model JSON is an object")
    return fields


_MAMBA = "{source} is a mamba model; evalsvc evaluates open_lm's attention models only"
_MOE = "{source} is a mixture of experts ({reason}); evalsvc evaluates dense open_lm models only"


def _describes_open_lm(fields: Mapping[str, object]) -> bool:
    flat = fields.get("model_type") == "openlm" or ("dim" in fields and "n_layers" in fields)
    return flat or "hidden_dim" in fields or isinstance(fields.get("params_args_dict"), Mapping)


def _open_lm_fields(fields: Mapping[str, object], source: str, folders: tuple[Path, ...]) -> dict[str, object]:
    """Translate `fields` from any of the three formats to open_lm's names."""
    args = fields.get("params_args_dict")
    if isinstance(args, Mapping):
        fields = _from_arguments(args, source, folders)
    elif "hidden_dim" not in fields and ("dim" in fields or fields.get("model_type") == "openlm"):
        fields = _from_params_dataclass(fields)
    elif "hidden_dim" not in fields and {"d_model", "n_layer"} <= fields.keys():
        raise UnsupportedModel(_MAMBA.format(source=source))
    return dict(fields)


def _from_params_dataclass(fields: Mapping[str, object]) -> dict[str, object]:
    """Translate the flat format of open_lm/hf, with the field names and defaults of open_lm's Params."""
    defaults = {"dim": 512, "n_layers": 8, "n_heads": 8, "vocab_size": -1, "seq_len": 2048}
    translated = defaults | {"post_embed_norm": False, "weight_tying": False} | dict(fields)
    for old_name, new_name in (("dim", "hidden_dim"), ("norm_type", "model_norm"), ("apply_qk_norm", "qk_norm")):
        if old_name in translated:
            translated[new_name] = translated.pop(old_name)
    return translated


def _from_arguments(args: Mapping[str, object], source: str, folders: tuple[Path, ...]) -> dict[str, object]:
    """Translate the format of utils/transformers: the command line, with the model by name."""
    name = args.get("model")
    model = _by_stem(name, folders) if isinstance(name, str) else None
    if model is None:
        raise InvalidModelConfig(
            f"{source} names only the model {show_name(str(name))} (params_args_dict.model), which is not "
            "registered and has no JSON in the same folder; add the JSON, or set `model` to its path"
        )
    return _training_flags({key: _python_value(value) for key, value in args.items()}) | model[0]


def _params_file(checkpoint: Path) -> Path | None:
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return next((path for path in (folder / "params.txt", folder.parent / "params.txt") if path.is_file()), None)


def _with_training_flags(fields: dict[str, object], checkpoint: Path) -> dict[str, object]:
    params = _params_file(checkpoint)
    if params is None:
        return fields
    return _training_flags(_read_params(params)) | fields


def _training_flags(args: Mapping[str, object]) -> dict[str, object]:
    """Return the model fields that a run's command line sets."""
    names = ("model_norm", "qk_norm", "positional_embedding_type", "ffn_type", "moe_freq", "precision")
    flags = {name: args[name] for name in names if args.get(name) is not None}
    if args.get("fsdp") is True and (args.get("fsdp_amp") is True or args.get("fsdp_pure_bf16") is True):
        # FSDP's mixed-precision policy casts the inv_freq buffers too, whatever --precision says.
        flags["precision"] = "fsdp_bf16"
    return flags


def _read_params(path: Path) -> dict[str, object]:
    """Read `params.txt`: one `key: value` per line, where a value is Python's str() of the argument."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidModelConfig(
            f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes, too many for a params.txt; check the file"
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): _python_value(value.strip()) for key, _, value in pairs}


def _python_value(text: Any) -> Any:
    if text in ("None", ""):
        return None
    if text in ("True", "False"):
        return text == "True"
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 20 else text


def _validated(fields: Mapping[str, object], source: str, shown: Mapping[str, object] | None = None) -> ModelConfig:
    """Validate a configuration. Raises InvalidModelConfig, which quotes only values in `shown`: those of the request,
    never those of a file."""
    if fields.get("ffn_type") == "moe" or fields.get("moe_freq") not in (None, 0):
        reason = "ffn_type moe" if fields.get("ffn_type") == "moe" else "moe_freq is not 0"
        raise UnsupportedModel(_MOE.format(source=source, reason=reason))
    try:
        return ModelConfig.model_validate(dict(fields))
    except ValidationError as error:
        problems = "; ".join(
            _problem(fields, shown or {}, item["loc"], item["type"], item["msg"]) for item in error.errors()
        )
        raise InvalidModelConfig(f"{source} is not an open_lm model configuration: {problems}") from error


def _problem(
    fields: Mapping[str, object], shown: Mapping[str, object], location: tuple[int | str, ...], kind: str, message: str
) -> str:
    name = str(location[0]) if location else ""
    if kind == "missing":
        unknown = [key for key in fields if key not in ModelConfig.model_fields]
        near = near_misses(name, unknown, cutoff=0.5)
        return f"{name} is missing" + (f" (found {', '.join(near)}: is one of these meant?)" if near else "")
    if not name:
        return message.removeprefix("Value error, ")
    shown_value = f" is {str(shown[name])[:60]!r}" if name in shown else ""
    return f"{name}{shown_value}: {message[0].lower()}{message[1:]}"
