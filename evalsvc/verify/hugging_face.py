"""Models as transformers models: the same weights in independent implementations.

Of open_lm's models, three classes of transformers can compute most without change: Llama (RMS norms), StableLM (layer
norms) and GPT-NeoX (layer norms and a feed-forward layer without gate). Weights that open_lm lacks are set to neutral
values: a bias of zeros, a gain of ones. A model of another family is given to the class of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import UnsupportedModel
from evalsvc.models import Transformer
from evalsvc.spec.model_config import OPEN_LM, ModelConfig
from evalsvc.verify.hugging_face_families import build_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tensors = dict[str, Tensor]


def write_hugging_face(
    ours: Transformer,
    rows: Sequence[int] | None = None,
) -> PreTrainedModel:
    """Return `ours` as a transformers.PreTrainedModel in float32 on the CPU, in eval mode.

    `rows` are the rows of the table that the model gets, in order [all of them]. A norm of the embeddings is computed
    once and written into the embedding table, because it depends on a single row. Models without positions (`none`, and
    `head_rotary`, which turns queries and keys of a head by the same angle) get rotary frequencies of zero.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        UnsupportedModel: no class computes this model; the message has the reason.
    """
    config = ours.config
    tensors = {name: tensor.float().cpu() for name, tensor in ours.state_dict().items()}
    chosen = slice(None) if rows is None else torch.tensor(list(rows))
    embedding, output = _embeddings(config, tensors)[chosen], tensors["output.weight"][chosen]
    if config.family == OPEN_LM:
        model, weights = _require_family(config)(config, tensors, embedding, output)
    else:
        tables = {"tok_embeddings.weight": embedding, "output.weight": output}
        model, weights = build_family(config, tensors | tables)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in weights.items()}, strict=True)
    turns = config.positional_embedding_type in ("rotary", "llama_rotary")
    frequencies = ours.positions.inv_freq.cpu()
    base: Any = model.base_model
    base.rotary_emb.inv_freq.copy_(frequencies if turns else torch.zeros_like(frequencies))
    model.requires_grad_(False)
    model.train(False)
    return model


Family = Callable[[ModelConfig, Mapping[str, Tensor], Tensor, Tensor], "tuple[PreTrainedModel, Tensors]"]
"""Builder of a family: from a configuration, open_lm's tensors, embedding and output table to a model without values,
and its values."""


def _require_family(config: ModelConfig) -> Family:
    if config.qk_norm:
        raise UnsupportedModel("no transformers class normalises queries and keys over all heads together (qk_norm)")
    if config.attention_dim != config.hidden_dim:
        raise UnsupportedModel(
            f"{config.n_heads} heads do not divide hidden_dim {config.hidden_dim}, as transformers classes require"
        )
    rms = config.model_norm == "rms_norm"
    families = {"gelu": None if rms else _gpt_neox, "gemma_geglu": _llama if rms else None}
    family = families.get(config.ffn_type, _llama if rms else _stablelm)
    if family is None:
        raise UnsupportedModel(
            f"no transformers class has {config.model_norm} together with a feed-forward layer {config.ffn_type}"
        )
    return family


def _llama(
    config: ModelConfig, tensors: Mapping[str, Tensor], embedding: Tensor, output: Tensor
) -> tuple[PreTrainedModel, Tensors]:
    from transformers import LlamaConfig, LlamaForCausalLM

    biased = config.ffn_type == "gemma_geglu"
    shape = _shape(config, len(embedding)) | {
        "num_key_value_heads": config.n_heads,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "gelu" if biased else "silu",
        "mlp_bias": biased,
    }
    return LlamaForCausalLM(LlamaConfig(**shape)), _llama_weights(config, tensors, embedding, output)


def _stablelm(
    config: ModelConfig, tensors: Mapping[str, Tensor], embedding: Tensor, output: Tensor
) -> tuple[PreTrainedModel, Tensors]:
    from transformers import StableLmConfig, StableLmForCausalLM

    shape = _shape(config, len(embedding)) | {
        "num_key_value_heads": config.n_heads,
        "layer_norm_eps": config.norm_eps,
        "partial_rotary_factor": 1.0,
    }
    return StableLmForCausalLM(StableLmConfig(**shape)), _llama_weights(config, tensors, embedding, output)


def _gpt_neox(
    config: ModelConfig, tensors: Mapping[str, Tensor], embedding: Tensor, output: Tensor
) -> tuple[PreTrainedModel, Tensors]:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = _shape(config, len(embedding)) | {
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
        "attention_bias": False,
    }
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    head = next(name for name in model.state_dict() if name in ("embed_out.weight", "lm_head.weight"))
    weights = {"gpt_neox.embed_in.weight": embedding, head: output}
    weights |= _norm(config, tensors, "norm", "gpt_neox.final_layer_norm")
    for layer in range(config.n_layers):
        source, target = f"layers.{layer}", f"gpt_neox.layers.{layer}"
        by_head = torch.stack(_queries_keys_values(config, tensors, source), dim=1)  # [H, 3, head_dim, D]
        widened, narrowed = (tensors[f"{source}.feed_forward.{place}.weight"] for place in (0, 2))
        weights |= {
            f"{target}.attention.query_key_value.weight": by_head.flatten(0, 2),
            f"{target}.attention.dense.weight": tensors[f"{source}.attention.out_proj.weight"],
            f"{target}.mlp.dense_h_to_4h.weight": widened,
            f"{target}.mlp.dense_h_to_4h.bias": torch.zeros(len(widened)),
            f"{target}.mlp.dense_4h_to_h.weight": narrowed,
            f"{target}.mlp.dense_4h_to_h.bias": torch.zeros(len(narrowed)),
        }
        weights |= _layer_norms(config, tensors, source, target)
    return model, weights


def _shape(config: ModelConfig, rows: int) -> dict[str, Any]:
    """Return the common part of all classes' configurations; tables are never tied."""
    return {
        "vocab_size": rows,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "max_position_embeddings": config.seq_len,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _llama_weights(config: ModelConfig, tensors: Mapping[str, Tensor], embedding: Tensor, output: Tensor) -> Tensors:
    """Return the values under the names that Llama and StableLM share."""
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": output}
    weights |= _norm(config, tensors, "norm", "model.norm")
    for layer in range(config.n_layers):
        source, target = f"layers.{layer}", f"model.layers.{layer}"
        parts = zip("qkv", _queries_keys_values(config, tensors, source), strict=True)
        weights |= {f"{target}.self_attn.{name}_proj.weight": part.flatten(0, 1) for name, part in parts}
        weights[f"{target}.self_attn.o_proj.weight"] = tensors[f"{source}.attention.out_proj.weight"]
        weights |= _gated_feed_forward(config, tensors, f"{source}.feed_forward", f"{target}.mlp")
        weights |= _layer_norms(config, tensors, source, target)
    return weights


def _gated_feed_forward(config: ModelConfig, tensors: Mapping[str, Tensor], source: str, target: str) -> Tensors:
    if config.ffn_type == "gemma_geglu":
        names = [f"{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "bias")]
        return {f"{target}.{name}": tensors[f"{source}.{name}"] for name in names}
    gate, up = tensors[f"{source}.w12.weight"].chunk(2)
    parts = {"gate": gate, "up": up, "down": tensors[f"{source}.w3.weight"]}
    return {f"{target}.{name}_proj.weight": part for name, part in parts.items()}


def _layer_norms(config: ModelConfig, tensors: Mapping[str, Tensor], source: str, target: str) -> Tensors:
    before = _norm(config, tensors, f"{source}.attention_norm", f"{target}.input_layernorm")
    return before | _norm(config, tensors, f"{source}.ffn_norm", f"{target}.post_attention_layernorm")


def _norm(config: ModelConfig, tensors: Mapping[str, Tensor], source: str, target: str) -> Tensors:
    gain, bias = _gain_and_bias(config, tensors, source)
    return {f"{target}.weight": gain} | ({} if config.model_norm == "rms_norm" else {f"{target}.bias": bias})


def _gain_and_bias(config: ModelConfig, tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    width = config.hidden_dim
    return tensors.get(f"{name}.weight", torch.ones(width)), tensors.get(f"{name}.bias", torch.zeros(width))


def _embeddings(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Tensor:  # [V, D]
    table = tensors["tok_embeddings.weight"]
    if not config.post_embed_norm:
        return table
    gain, bias = _gain_and_bias(config, tensors, "post_embed_norm")
    if config.model_norm == "rms_norm":
        return functional.rms_norm(table, gain.shape, gain, config.norm_eps)
    return functional.layer_norm(table, gain.shape, gain, bias, config.norm_eps)


def _queries_keys_values(config: ModelConfig, tensors: Mapping[str, Tensor], source: str) -> tuple[Tensor, ...]:
    """Return the three projections [H, head_dim, D] with rotary pairs (j, j + head_dim / 2)."""
    heads = tensors[f"{source}.attention.in_proj.weight"].view(3, config.n_heads, config.head_dim, -1)
    queries, keys, values = heads.unbind()
    if config.positional_embedding_type == "llama_rotary":
        # In open_lm, dimension 2j pairs with 2j + 1. Scores are sums over dimensions, so their order is free.
        order = torch.arange(config.head_dim).view(-1, 2).T.flatten()
        queries, keys = queries[:, order], keys[:, order]
    return queries, keys, values
