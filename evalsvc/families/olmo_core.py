"""Configurations of OLMo-core: the `config.json` of a run, whose `model` says how the model was built.

OLMo-core builds a model from many parts. Those of OLMo 2 and of Llama are computed here; any other is refused by the
place in the file, since a part that is passed over would change the numbers. `hugging_face` has OLMo-core's names of
tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from evalsvc.errors import InvalidModelConfig, UnsupportedModel
from evalsvc.families.family import validated
from evalsvc.spec.model_config import ModelConfig

NORMS = {"rms": "rms_norm_wide", "fused_rms": "rms_norm_wide", "cute_rms": "rms_norm_wide", "qwen_rms": "rms_norm"}
ATTENTION, NORM, FFN, QK, LAST = "block.attention", "block.layer_norm", "block.feed_forward", "qk_norm", "lm_head"
MAX_DEPTH = 8

DEFAULTS = {
    f"{ATTENTION}.bias": True,
    f"{ATTENTION}.rope.theta": 500_000,
    f"{FFN}.bias": True,
    f"{FFN}.activation": "silu",
    f"{NORM}.eps": 1e-5,
    "tie_word_embeddings": False,
}
"""Values of OLMo-core for fields that are read and may be left out."""

COMPUTED: Mapping[str, tuple[object, ...]] = {
    "name": (None, "default"),
    "block.name": (None, "default", "reordered_norm"),
    "block.attention_residual_alpha": (None, 1),
    "block.feed_forward_residual_alpha": (None, 1),
    "embed_scale": (None, 1),
    f"{ATTENTION}.name": (None, "default"),
    f"{ATTENTION}.rope.name": (None, "default"),
    f"{ATTENTION}.rope.partial_rotary_factor": (None, 1),
    f"{ATTENTION}.rope.no_global_rope": (None, False),
    f"{FFN}.name": (None, "default"),
    f"{NORM}.name": tuple(NORMS),
    f"{NORM}.bias": (False,),
    f"{NORM}.elementwise_affine": (None, True),
    f"{NORM}.full_precision": (None, True),
    f"{LAST}.name": (None, "default"),
    f"{LAST}.bias": (False,),
}
"""Values that evalsvc computes, by the place of the field; None: left out."""

READ = {
    *("d_model", "n_layers", "vocab_size", *DEFAULTS, f"{FFN}.hidden_size", f"{ATTENTION}.use_head_qk_norm"),
    *(f"{ATTENTION}.{name}" for name in ("n_heads", "n_kv_heads", "head_dim", "sliding_window.pattern")),
}

NO_NUMBER = re.compile(
    r"(.*\.)?(_CLASS_|type|dtype|dropout|backend|use_flash|loss_implementation|force_full_attention_on_\w+_layer)"
    r"|init_\w+|embedding_init_std|freeze_params|compile|(dp|tp|cp|ac|float8)_config\b.*|.*\.rope\.full_precision"
)
"""Fields of training, of speed and of rounding."""


def is_olmo_core(fields: Mapping[str, object]) -> bool:
    """Return whether a JSON object is the configuration of a run of OLMo-core."""
    model = fields.get("model")
    return isinstance(model, Mapping) and {"d_model", "n_layers", "block", "lm_head"} <= model.keys()


def read_olmo_core(fields: Mapping[str, object], source: str) -> ModelConfig:
    given = {
        name.replace("block.sequence_mixer.", f"{ATTENTION}."): value
        for name, value in _flat(fields["model"], "", MAX_DEPTH)
        if value is not None and not NO_NUMBER.fullmatch(name)
    }
    norm = {name: value for name, value in given.items() if name.startswith(f"{NORM}.")}
    other_norms = {f"{LAST}.layer_norm"} | {name[: name.index(QK) + len(QK)] for name in given if f".{QK}." in name}
    for other in other_norms:
        if {name: value for name, value in given.items() if name.startswith(f"{other}.")} != {
            name.replace(NORM, other): value for name, value in norm.items()
        }:
            raise _unsupported(source, other)
        given = {name: value for name, value in given.items() if not name.startswith(f"{other}.")}
    wrong = [name for name in given if name not in COMPUTED and name not in READ and given[name] is not False]
    wrong += [name for name, computed in COMPUTED.items() if given.get(name) not in computed]
    if wrong:
        raise _unsupported(source, wrong[0])
    values = DEFAULTS | given
    windows = [window for window in _numbers(values.get(f"{ATTENTION}.sliding_window.pattern", [])) if window != -1]
    length = _length(fields, source)
    has_qk_norm, by_head = len(other_norms) > 1, bool(values.get(f"{ATTENTION}.use_head_qk_norm"))
    is_after = given.get("block.name") == "reordered_norm"
    switches = {
        "family": "olmo2" if is_after else "qwen3" if has_qk_norm and by_head else "llama",
        "hidden_dim": values.get("d_model"),
        "n_layers": values.get("n_layers"),
        "n_heads": values.get(f"{ATTENTION}.n_heads", 16),
        "n_kv_heads": values.get(f"{ATTENTION}.n_kv_heads"),
        "head_size": values.get(f"{ATTENTION}.head_dim"),
        "seq_len": min([length, *windows]),
        "attention_window": min(windows, default=None),
        "vocab_size": values.get("vocab_size"),
        "post_embed_norm": False,
        "weight_tying": values["tie_word_embeddings"],
        "model_norm": NORMS[str(values[f"{NORM}.name"])],
        "norm_eps": values[f"{NORM}.eps"],
        "norm_place": "after" if is_after else "before",
        "qk_norm": has_qk_norm,
        "qk_norm_per_head": has_qk_norm and by_head,
        "rotary_base": values[f"{ATTENTION}.rope.theta"],
        "attention_bias": values[f"{ATTENTION}.bias"],
        "output_bias": values[f"{ATTENTION}.bias"],
        "ffn_type": "gated",
        "ffn_size": values.get(f"{FFN}.hidden_size", 0),
        "ffn_activation": values[f"{FFN}.activation"],
        "ffn_bias": values[f"{FFN}.bias"],
    }
    return validated(ModelConfig, switches, source, {}, "a configuration of OLMo-core that evalsvc can compute")


def _flat(fields: object, place: str, depth: int) -> Iterator[tuple[str, object]]:
    if not isinstance(fields, Mapping) or not depth:
        yield place, fields
        return
    for name, value in fields.items():
        yield from _flat(value, f"{place}.{name}" if place else str(name), depth - 1)


def _numbers(value: object) -> list[int]:
    return [number for number in value if type(number) is int] if isinstance(value, list) else []


def _length(fields: Mapping[str, object], source: str) -> int:
    for part, name in (("train_module", "max_sequence_length"), ("dataset", "sequence_length")):
        holder = fields.get(part)
        if isinstance(holder, Mapping) and type(length := holder.get(name)) is int and length > 0:
            return length
    raise InvalidModelConfig(
        f"{source} has no train_module.max_sequence_length; add the length of the sequences that the model reads"
    )


def _unsupported(source: str, place: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{source}: model.{place[:100]} has a value that evalsvc does not compute; save the model by OLMo-core's "
        "convert_checkpoint_to_hf.py and give `transformers` as the model"
    )
