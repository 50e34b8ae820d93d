"""Models of Hugging Face's families as transformers models, built again from this project's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from evalsvc.checkpoints.weights import PREFIXES
from evalsvc.errors import UnsupportedModel
from evalsvc.families.hugging_face import ACTIVATIONS
from evalsvc.families.reading import family_of
from evalsvc.models.file_tensors import named_as_in_file
from evalsvc.spec.model_config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLASSES = {
    "gemma": "Gemma",
    "gpt_neox": "GPTNeoX",
    "llama": "Llama",
    "mistral": "Mistral",
    "olmo2": "Olmo2",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
"""Beginning of the names of transformers' classes, by family."""


def build_family(config: ModelConfig, parameters: dict[str, Tensor]) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Return a transformers model without values, and its values, for the Transformer's `parameters`.

    The tables are never tied, and may have fewer rows than `config` says.

    Raises:
        UnsupportedModel: the family is none of transformers'.
    """
    import transformers

    if config.family not in CLASSES:
        raise UnsupportedModel(f"no transformers class is known for the family {config.family!r}")
    kind = CLASSES[config.family]
    fields = _fields(config, len(parameters["tok_embeddings.weight"]))
    model: PreTrainedModel = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**fields)
    )
    untied = config.model_copy(update={"weight_tying": False})
    tensors = named_as_in_file(untied, parameters)
    for source in family_of(untied).sources(untied).values():
        tensors |= dict.fromkeys(source.aliases, tensors[source.names[0]])
    return model, {name: tensors[_stripped(name)] for name in model.state_dict()}


def _stripped(name: str) -> str:
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _fields(config: ModelConfig, rows: int) -> dict[str, Any]:
    """Return the fields of transformers' configuration. Each class ignores those that it does not know."""
    names = {activation: name for name, activation in reversed(ACTIVATIONS.items())}
    return {
        "vocab_size": rows,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.seq_len,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "rms_norm_eps": config.norm_eps,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu_pytorch_tanh" if config.ffn_activation == "gelu_tanh" else names[config.ffn_activation],
        "attention_bias": config.attention_bias,
        "mlp_bias": config.ffn_bias,
        "use_parallel_residual": config.parallel_residual,
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rotary_base,
            # transformers rounds the number of dimensions down.
            "partial_rotary_factor": 1.0
            if config.rotary_dims is None
            else (config.rotary_dims + 0.5) / config.head_dim,
        },
    }
