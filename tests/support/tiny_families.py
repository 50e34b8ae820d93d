"""A small model of every family with random weights, in a folder as Hugging Face's. `write_theirs` needs transformers,
which then writes the folder; `write_ours` needs the family's names only. The weights leave no parameter without effect:
biases and gains are random too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from evalsvc.families.family import Source
from evalsvc.families.reading import family_of, resolve_config
from evalsvc.models import Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 96
SHAPE: dict[str, Any] = {"vocab_size": ROWS, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128}
SHAPE |= {"tie_word_embeddings": False, **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))}
LLAMA3: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
VQ: dict[str, Any] = {"embed_dim": 8, "num_embeddings": 8, "latent_channels": 32, "base_channels": 32}
VQ_SHAPE = {"channel_multiplier": [1], "num_res_blocks": 1}
VQ = {"vq_config": {**VQ, **VQ_SHAPE}, "vocabulary_map": {"<image>": 5}}
UNGROUPED = {"num_key_value_heads": 6}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama-3": ("llama", "Llama", {"rope_parameters": LLAMA3, "head_dim": 16, "tie_word_embeddings": True}),
    "llama-linear": ("llama", "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-biases": ("llama", "Llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", **UNGROUPED}),
    "mistral": ("mistral", "Mistral", {"sliding_window": 100, "head_dim": 12}),
    "qwen2": ("qwen2", "Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 16}),
    "olmo2": ("olmo2", "Olmo2", {}),
    "olmo2-biases": ("olmo2", "Olmo2", {"attention_bias": True, **UNGROUPED}),
    "gemma": ("gemma", "Gemma", {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "chameleon": ("chameleon", "Chameleon", {**VQ, "num_key_value_heads": 6}),
    "chameleon-swin": ("chameleon", "Chameleon", {**VQ, "swin_norm": True}),
    "emu3": ("emu3_text_model", "Emu3", {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}),
    "gpt_neox": ("gpt_neox", "GPTNeoX", UNGROUPED),
    "gpt_neox-serial": (
        "gpt_neox",
        "GPTNeoX",
        {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new", **UNGROUPED},
    ),
}
"""By name: `model_type`, class of transformers, and what the configuration has besides `SHAPE`.

The vocabulary of Chameleon names no image, since transformers would give the logits of images their lowest value.
"""


def describe(name: str, **changes: Any) -> dict[str, Any]:
    kind, _, fields = MODELS[name]
    return {"model_type": kind, **SHAPE, **fields, **changes}


def fill(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            neutral = parameter.flatten()[0].item() if parameter.dim() == 1 else 0.0
            parameter.copy_(neutral + 0.3 * noise if parameter.dim() == 1 else noise / parameter.shape[1] ** 0.5)
    model.requires_grad_(False)
    model.train(False)


def write_theirs(name: str, folder: Path, shard: str = "5GB", dtype: Any = torch.float32, **changes: Any) -> Any:
    """Have transformers write the model of this name into `folder`, and return it in float32 with the file's values."""
    import transformers

    fields = describe(name, **changes)
    fields.pop("model_type")
    kinds = [f"{MODELS[name][1]}For{what}" for what in ("CausalLM", "ConditionalGeneration")]
    kind = next(getattr(transformers, kind) for kind in kinds if hasattr(transformers, kind))
    config = kind.config_class(**fields)
    config._attn_implementation = "eager"
    model: PreTrainedModel = kind(config)
    fill(model)
    for parameter in model.parameters():  # not `model.to`, which would round the rotary frequencies too
        parameter.copy_(parameter.to(dtype))
    state = {key: value.to(dtype) for key, value in model.state_dict().items()}
    model.save_pretrained(folder, max_shard_size=shard, state_dict=state)
    return model


def tiny_janus(text: int, codes: int) -> Any:
    """Return a Janus of transformers with `text` rows of text and `codes` rows of images."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    width = SHAPE["hidden_size"]
    language = {name: value for name, value in SHAPE.items() if not name.endswith("_id")}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64}
    vq = {"embed_dim": 8, "num_embeddings": codes, "latent_channels": 32, "base_channels": 32}
    config = JanusConfig(
        text_config={**language, "model_type": "llama", "vocab_size": text},
        vision_config={**vision, "projection_dim": width},
        vq_config={**vq, **VQ_SHAPE, "projection_dim": width, "image_token_embed_dim": width},
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    fill(model)
    return model


def write_ours(name: str, folder: Path, seed: int = 0, **changes: Any) -> Transformer:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(describe(name, **changes)))
    model = Transformer(resolve_config(None, folder))
    fill(model, seed)
    given = family_of(model.config).sources(model.config)
    tensors = {}
    for own, value in model.state_dict().items():
        if own == "output.weight" and model.config.weight_tying:
            continue
        source = given.get(own, Source((own,)))
        if source.arrange is not None:
            value = value[source.arrange(torch.arange(len(value))).argsort()]
        parts = torch.split(value, list(source.rows or value.shape[:1]))
        tensors |= {part: rows.clone() for part, rows in zip(source.names, parts, strict=True)}
    save_file(tensors, folder / "model.safetensors")
    return model
