"""Which open_lm model a checkpoint holds: its shape and arithmetic, read without torch.

open_lm spreads this over two files. The model JSON has the shape and may fix norm, qk-norm, positions and
feed-forward; what it leaves open comes from the command line, which a run records in `params.txt`. So the JSON wins
over `params.txt`, and `params.txt` over open_lm's defaults.
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

MAX_BESIDE = 100
"""How many JSON files beside a checkpoint are looked at for its model."""

MAX_CONFIG_BYTES = 1_000_000

MAX_MODEL_BYTES = 100_000
"""Of a model JSON that nothing names; those of open_lm have 400 bytes."""

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
    """The fields of an open_lm model JSON, under its own names; other keys are ignored, as open_lm does.

    The upper bounds only keep a hostile file from building a model for hours.
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
    """`--precision` of the training run, or "fsdp_bf16"; only decides how the rotary frequencies were rounded."""

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.n_heads > self.hidden_dim:
            raise ValueError(f"n_heads {self.n_heads} is more than hidden_dim {self.hidden_dim}")
        if self.positional_embedding_type != "none" and self.head_dim % 2:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} over n_heads {self.n_heads} gives heads of width {self.head_dim}; "
                f"{self.positional_embedding_type} turns pairs and needs an even width"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head; hidden_dim need not be a multiple of n_heads, the rest is dropped."""
        return self.hidden_dim // self.n_heads

    @property
    def attention_dim(self) -> int:
        """Width of all heads together; below hidden_dim in open_lm_87m (480 of 488)."""
        return self.n_heads * self.head_dim

    @property
    def ffn_dim(self) -> int:
        """Width inside the feed-forward layer: 4·D for gelu, else 8·D/3 rounded up to a multiple of 256."""
        if self.ffn_type == "gelu":
            return 4 * self.hidden_dim
        return 256 * ((int(8 * self.hidden_dim / 3) + 255) // 256)


# name: (hidden_dim, n_layers, n_heads), or with (…, seq_len, vocab_size) where they are not 2,048 and 50,432.
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
    """Every model name that open_lm registers (mamba apart), aliases included, with the fields of its JSON."""
    models = {name: _registered(name) for name in _SHAPES}
    return models | {alias: models[name] for alias, name in _ALIASES.items()}


def _registered(name: str) -> dict[str, Any]:
    hidden_dim, n_layers, n_heads, *rest = _SHAPES[name]
    seq_len, vocab_size = rest or (2048, 50432)
    shape = {"hidden_dim": hidden_dim, "n_layers": n_layers, "n_heads": n_heads, "seq_len": seq_len}
    return shape | {"vocab_size": vocab_size, "post_embed_norm": False, "weight_tying": False} | _FIXED.get(name, {})


def read_model_spec(model: str | Mapping[str, object], base: Path | None = None) -> dict[str, object]:
    """The open_lm fields that `model` stands for: a registered name, a JSON file, or the fields themselves.

    A relative path is taken from `base`. Hugging Face configurations of both open_lm wrappers are translated. Only
    what `model` says is in the result, so that `params.txt` can fill in the rest later.
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
    """The complete configuration of the model in `checkpoint` (a file or a Hugging Face folder).

    None looks beside the checkpoint, see `config_beside`. In every case a `params.txt` of the run (same folder or one
    above) fills in what the model leaves open. Raises UnknownName, InvalidModelConfig, UnsupportedModel.
    """
    if model is None:
        found = _find_beside(checkpoint)
        if found is None:
            raise InvalidModelConfig(
                f"no model configuration was given for {checkpoint} and none lies beside it (config.json, params.txt "
                "with its model JSON, or one *.json with hidden_dim, in its folder or one above); "
                "give `model`: a registered name such as 'open_lm_1b', the path of a model JSON, or its fields"
            )
        fields, source = found
    else:
        fields = read_model_spec(model)
        source = f"model {model!r}" if isinstance(model, str) else "the given model configuration"
    shown = model if isinstance(model, Mapping) else {}
    return _validated(_with_training_flags(fields, checkpoint), source, shown)


def require_one_model(models: Mapping[str, Mapping[str, object]]) -> None:
    """Raise CheckpointMismatch where two of `models`, by their checkpoints' names, differ in a field that both have."""
    (first, ours), *others = models.items()
    for name, theirs in others:
        common = [key for key in ours if key in theirs]
        if differing := [f"{key} {ours[key]} and {theirs[key]}" for key in common if ours[key] != theirs[key]]:
            raise CheckpointMismatch(
                f"{first} and {name} are different models: {', '.join(differing)}; only checkpoints of one model "
                "configuration can be combined"
            )


def config_beside(checkpoint: Path) -> dict[str, object] | None:
    """The configuration found beside `checkpoint`, complete and as plain JSON values; None when there is none.

    Looks for, in this order: a Hugging Face `config.json` in its folder; `params.txt` in its folder or one above, with
    the `<model>.json` beside that or the registered name it gives; the only *.json with `hidden_dim` in its folder,
    then one above. Raises InvalidModelConfig where a file is broken or the choice is not clear.
    """
    found = _find_beside(checkpoint)
    if found is None:
        return None
    fields, source = found
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
        raise InvalidModelConfig(f"there is no model JSON at {path}; give its path, a registered name, or its fields")
    raise UnknownName.among("model", model, registered, hint="or give the path of a model JSON")


def _find_beside(checkpoint: Path) -> tuple[dict[str, object], str] | None:
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    hf_config = folder / "config.json"
    if hf_config.is_file() and _describes_open_lm(fields := _read_json(hf_config)):
        return _open_lm_fields(fields, str(hf_config), (folder,)), str(hf_config)
    params, stem = _params_file(checkpoint), recorded_model(checkpoint)
    if params and stem is not None:
        found = _by_stem(stem, (params.parent, folder))
        if found is not None:
            return found
    return _only_json((folder, folder.parent))


def recorded_model(checkpoint: Path) -> str | None:
    """The model that the `params.txt` of a checkpoint's run names; None: there is none, or it names none.

    Raises:
        InvalidModelConfig: the file is too large.
    """
    params = _params_file(checkpoint)
    stem = _read_params(params).get("model") if params else None
    return _stem(stem) if isinstance(stem, str) else None


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".json")


def _by_stem(stem: str, folders: tuple[Path, ...]) -> tuple[dict[str, object], str] | None:
    """The model that open_lm recorded as `stem`: it keeps only the name of the JSON, never its folder."""
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
        found = [(path, fields) for path, fields in _json_files(folder) if "hidden_dim" in fields]
        if len(found) > 1:
            names = ", ".join(path.name for path, _ in found[:5])
            raise InvalidModelConfig(f"{len(found)} model JSONs lie in {folder}: {names}; name one of them as `model`")
        if found:
            path, fields = found[0]
            return _open_lm_fields(fields, str(path), ()), str(path)
    return None


def _json_files(folder: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """The JSON objects in `folder`; files that are none are somebody else's and are passed over.

    Raises:
        InvalidModelConfig: there are too many to read them all.
    """
    paths = sorted(folder.glob("*.json"))
    if len(paths) > MAX_BESIDE:
        raise InvalidModelConfig(
            f"{folder} holds more than {MAX_BESIDE} JSON files, too many to look for the model's among them; give "
            "`model`: its path, a registered name such as 'open_lm_1b', or its fields"
        )
    for path in paths:
        try:
            yield path, _read_json(path, MAX_MODEL_BYTES)
        except InvalidModelConfig:
            continue


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long to be one, or a folder that may not be entered
        return False


def _read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    if not _is_file(path):
        raise InvalidModelConfig(f"{path} is not a file; give the path of a model JSON")
    if path.stat().st_size > limit:
        raise InvalidModelConfig(f"{path} is larger than {limit:,} bytes, which no model JSON is")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidModelConfig(f"{path} is not JSON: {json_reason(error)}") from error
    except OSError as error:
        raise InvalidModelConfig(f"{path} cannot be read: {os_reason(error)}") from error
    if not isinstance(fields, dict):
        raise InvalidModelConfig(f"{path} holds a {type(fields).__name__}; a model JSON is an object")
    return fields


_MAMBA = "{source} is a mamba model; evalsvc evaluates open_lm's attention models only"
_MOE = "{source} is a mixture of experts ({found}); evalsvc evaluates dense open_lm models only"


def _describes_open_lm(fields: Mapping[str, object]) -> bool:
    flat = fields.get("model_type") == "openlm" or ("dim" in fields and "n_layers" in fields)
    return flat or "hidden_dim" in fields or isinstance(fields.get("params_args_dict"), Mapping)


def _open_lm_fields(fields: Mapping[str, object], source: str, folders: tuple[Path, ...]) -> dict[str, object]:
    """open_lm's own names for what `fields` says, from any of the three formats."""
    args = fields.get("params_args_dict")
    if isinstance(args, Mapping):
        fields = _from_arguments(args, source, folders)
    elif "hidden_dim" not in fields and ("dim" in fields or fields.get("model_type") == "openlm"):
        fields = _from_params_dataclass(fields)
    elif "hidden_dim" not in fields and {"d_model", "n_layer"} <= fields.keys():
        raise UnsupportedModel(_MAMBA.format(source=source))
    return dict(fields)


def _from_params_dataclass(fields: Mapping[str, object]) -> dict[str, object]:
    """The flat format of open_lm/hf: field names and defaults of open_lm's Params."""
    defaults = {"dim": 512, "n_layers": 8, "n_heads": 8, "vocab_size": -1, "seq_len": 2048}
    translated = defaults | {"post_embed_norm": False, "weight_tying": False} | dict(fields)
    for theirs, ours in (("dim", "hidden_dim"), ("norm_type", "model_norm"), ("apply_qk_norm", "qk_norm")):
        if theirs in translated:
            translated[ours] = translated.pop(theirs)
    return translated


def _from_arguments(args: Mapping[str, object], source: str, folders: tuple[Path, ...]) -> dict[str, object]:
    """The format of utils/transformers: the command line, with the model by name."""
    name = args.get("model")
    found = _by_stem(name, folders) if isinstance(name, str) else None
    if found is None:
        raise InvalidModelConfig(
            f"{source} gives the model only by the name {show_name(str(name))} (params_args_dict.model), which is not "
            "registered and whose JSON is not beside it; put it there, or give its path as `model`"
        )
    return _training_flags({key: _python_value(value) for key, value in args.items()}) | found[0]


def _params_file(checkpoint: Path) -> Path | None:
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return next((path for path in (folder / "params.txt", folder.parent / "params.txt") if path.is_file()), None)


def _with_training_flags(fields: dict[str, object], checkpoint: Path) -> dict[str, object]:
    params = _params_file(checkpoint)
    if params is None:
        return fields
    return _training_flags(_read_params(params)) | fields


def _training_flags(args: Mapping[str, object]) -> dict[str, object]:
    """What a run's command line says about its model; keys without a value are left out."""
    names = ("model_norm", "qk_norm", "positional_embedding_type", "ffn_type", "moe_freq", "precision")
    flags = {name: args[name] for name in names if args.get(name) is not None}
    if args.get("fsdp") is True and (args.get("fsdp_amp") is True or args.get("fsdp_pure_bf16") is True):
        # FSDP's mixed-precision policy casts the inv_freq buffers too, whatever --precision says.
        flags["precision"] = "fsdp_bf16"
    return flags


def _read_params(path: Path) -> dict[str, object]:
    """`params.txt`: one `key: value` a line, each value Python's str() of the argument."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidModelConfig(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes, which no params.txt is")
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
    """The configuration that `fields` are. Raises InvalidModelConfig, which quotes the values that are `shown`: those
    that came with the request, and none of a file's."""
    if fields.get("ffn_type") == "moe" or fields.get("moe_freq") not in (None, 0):
        found = "ffn_type moe" if fields.get("ffn_type") == "moe" else "moe_freq is not 0"
        raise UnsupportedModel(_MOE.format(source=source, found=found))
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
        return f"{name} is missing" + (f" (found {', '.join(near)}: is one of them meant?)" if near else "")
    if not name:
        return message.removeprefix("Value error, ")
    found = f" is {str(shown[name])[:60]!r}" if name in shown else ""
    return f"{name}{found}: {message[0].lower()}{message[1:]}"
