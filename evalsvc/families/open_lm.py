"""open_lm, the models that it registers, and the files of its runs.

open_lm splits the configuration between two files. The model JSON has the shape and may fix norm, qk-norm, positions
and feed-forward. Everything else comes from the command line, which a run records in `params.txt`. The JSON overrides
`params.txt`, and `params.txt` overrides open_lm's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalsvc.errors import InvalidModelConfig, UnsupportedModel, show_name
from evalsvc.families.family import Family, Source, read_json, validated
from evalsvc.spec.model_config import OPEN_LM_FIELDS, ModelConfig

SOFTMAX_ATTENTION = (None, "auto", "torch_attn", "xformers_attn", "xformers_attn_variable_length")
MAX_PARAMS_BYTES = 1_000_000
MAMBA = "{source} is a mamba model; evalsvc evaluates open_lm's attention models only"
_SWITCHES = ModelConfig.model_fields.keys() - OPEN_LM_FIELDS
"""Fields that no configuration of open_lm has; keys of these names mean something else there."""


class OpenLM(Family):
    """Models of open_lm, whose names of tensors are the Transformer's own."""

    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        """Return the configuration of open_lm's fields; other keys are ignored, as in open_lm."""
        if fields.get("ffn_type") == "moe" or fields.get("moe_freq") not in (None, 0):
            reason = "ffn_type moe" if fields.get("ffn_type") == "moe" else "moe_freq is not 0"
            raise UnsupportedModel(
                f"{source} is a mixture of experts ({reason}); evalsvc evaluates dense open_lm models only"
            )
        own = {name: value for name, value in fields.items() if name not in _SWITCHES}
        return validated(ModelConfig, own, source, shown, "an open_lm model configuration")

    def sources(self, config: ModelConfig) -> Mapping[str, Source]:
        """Return the parameters that open_lm saves under two names: a tied table, and the weights of `gelu`."""
        twins: dict[str, str] = {}
        if config.weight_tying:
            twins["tok_embeddings.weight"] = "output.weight"
        for layer in range(config.n_layers) if config.ffn_type == "gelu" else ():
            twins[f"layers.{layer}.feed_forward.0.weight"] = f"layers.{layer}._ff_w1.weight"
            twins[f"layers.{layer}.feed_forward.2.weight"] = f"layers.{layer}._ff_w2.weight"
        return {name: Source((name,), aliases=(other,)) for name, other in twins.items()}


OPEN_LM_FAMILY = OpenLM()


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
    fields = ("hidden_dim", "n_layers", "n_heads", "seq_len", "vocab_size")
    same = {"post_embed_norm": False, "weight_tying": False}
    models: dict[str, dict[str, Any]] = {
        name: dict(zip(fields, (*shape, 2048, 50432), strict=False)) | same | _FIXED.get(name, {})
        for name, shape in _SHAPES.items()
    }
    return models | {alias: models[name] for alias, name in _ALIASES.items()}


def describes_open_lm(fields: Mapping[str, object]) -> bool:
    flat = fields.get("model_type") == "openlm" or ("dim" in fields and "n_layers" in fields)
    return flat or "hidden_dim" in fields or isinstance(fields.get("params_args_dict"), Mapping)


def open_lm_fields(fields: Mapping[str, object], source: str, folders: tuple[Path, ...]) -> dict[str, object]:
    """Translate `fields` from any of the three formats to open_lm's names."""
    args = fields.get("params_args_dict")
    if isinstance(args, Mapping):  # of utils/transformers: the command line, with the model by name
        name = args.get("model")
        model = by_stem(name, folders) if isinstance(name, str) else None
        if model is None:
            raise InvalidModelConfig(
                f"{source} names only the model {show_name(str(name))} (params_args_dict.model), which is not "
                "registered and has no JSON in the same folder; add the JSON, or set `model` to its path"
            )
        return _training_flags({key: _python_value(value) for key, value in args.items()}, source) | model[0]
    translated = dict(fields)
    if "hidden_dim" not in fields and ("dim" in fields or fields.get("model_type") == "openlm"):  # of open_lm's Params
        _require_softmax(fields, source)
        defaults = {"dim": 512, "n_layers": 8, "n_heads": 8, "vocab_size": -1, "seq_len": 2048}
        translated = {**defaults, "post_embed_norm": False, "weight_tying": False, **fields}
        for old_name, new_name in (("dim", "hidden_dim"), ("norm_type", "model_norm"), ("apply_qk_norm", "qk_norm")):
            if old_name in translated:
                translated[new_name] = translated.pop(old_name)
    elif "hidden_dim" not in fields and {"d_model", "n_layer"} <= fields.keys():
        raise UnsupportedModel(MAMBA.format(source=source))
    return translated


def folder_of(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def params_file(checkpoint: Path) -> Path | None:
    folder = folder_of(checkpoint)
    return next((path for path in (folder / "params.txt", folder.parent / "params.txt") if path.is_file()), None)


def with_training_flags(fields: dict[str, object], checkpoint: Path) -> dict[str, object]:
    params = params_file(checkpoint)
    return fields if params is None else _training_flags(_read_params(params), str(params)) | fields


def _require_softmax(args: Mapping[str, object], source: str) -> None:
    # custom_attn multiplies the activation of q·k by L^-alpha, with L = 1 for the scalar `none`.
    unscaled = args.get("attn_seq_scalar") == "none" or str(args.get("attn_seq_scalar_alpha")) in ("0", "0.0")
    custom = args.get("attn_name") == "custom_attn" and args.get("attn_activation") == "softmax" and unscaled
    if args.get("attn_name") not in SOFTMAX_ATTENTION and not custom:
        chosen_by = " and ".join(sorted(name for name in args if name in ("attn_name", "attn_activation")))
        raise UnsupportedModel(
            f"{source} chooses by {chosen_by} an attention that is not open_lm's softmax attention, the only one that "
            f"evalsvc computes; evaluate a run with `attn_name` {', '.join(filter(None, SOFTMAX_ATTENTION))}, or "
            "correct the file"
        )


def _training_flags(args: Mapping[str, object], source: str) -> dict[str, object]:
    _require_softmax(args, source)
    names = ("model_norm", "qk_norm", "positional_embedding_type", "ffn_type", "moe_freq", "precision")
    flags = {name: args[name] for name in names if args.get(name) is not None}
    if args.get("fsdp") is True and (args.get("fsdp_amp") is True or args.get("fsdp_pure_bf16") is True):
        # FSDP's mixed-precision policy casts the inv_freq buffers too, whatever --precision says.
        flags["precision"] = "fsdp_bf16"
    return flags


def _read_params(path: Path) -> dict[str, object]:
    """Read `params.txt`: one `key: value` per line, where a value is Python's str() of the argument."""
    if path.stat().st_size > MAX_PARAMS_BYTES:
        raise InvalidModelConfig(
            f"{path} is larger than {MAX_PARAMS_BYTES:,} bytes, too many for a params.txt; check the file"
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


def recorded_model(checkpoint: Path) -> str | None:
    """Return the model that the `params.txt` of a checkpoint's run names; None if there is no file or no name."""
    params = params_file(checkpoint)
    stem = _read_params(params).get("model") if params else None
    return _stem(stem) if isinstance(stem, str) else None


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".json")


def by_stem(stem: str, folders: tuple[Path, ...]) -> tuple[dict[str, object], str] | None:
    """Find the model that open_lm recorded as `stem`, the name of the JSON without its folder."""
    name = _stem(stem)
    if "mamba" in name:
        raise UnsupportedModel(MAMBA.format(source=f"model {show_name(name)}"))
    for folder in folders:
        path = folder / f"{name}.json"
        if path.is_file():
            return open_lm_fields(read_json(path), str(path), ()), str(path)
    registered = registered_models()
    return (registered[name], f"model {name!r}") if name in registered else None
