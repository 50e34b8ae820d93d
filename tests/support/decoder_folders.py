"""Image tokenizers as their authors and Hugging Face publish them, with random weights under each one's own names.
LlamaGen's names are those of `tokenizer/tokenizer_image/vq_model.py` in FoundationVision/LlamaGen, derived here by
undoing transformers' `convert_janus_weights_to_hf.py`; Chameleon's are kept by `convert_chameleon_weights_to_hf.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TINY: dict[str, Any] = {"embed_dim": 4, "num_embeddings": 64, "latent_channels": 6, "base_channels": 32}
TINY |= {"channel_multiplier": [1, 2, 1], "num_res_blocks": 1}
"""Sizes of a small network of either kind, in Hugging Face's words: 4 pixels a code."""

OTHER_NETWORKS = {
    "model.language_model.embed_tokens.weight": torch.ones(7, 3),
    "model.vision_model.post_layernorm.weight": torch.ones(3),
    "lm_head.weight": torch.ones(7, 3),
}
"""Tensors of a whole model that are no part of its image tokenizer."""


def janus_config(**changes: Any) -> dict[str, Any]:
    return {"model_type": "janus_vqgan", **TINY, "num_patches": 8, **changes}


def chameleon_config(**changes: Any) -> dict[str, Any]:
    return {"model_type": "chameleon_vqgan", **TINY, "resolution": 32, **changes}


NAMES = (("encoder.down.", "encoder.conv_blocks."), ("decoder.up.", "decoder.conv_blocks."), (".block.", ".res."))
NAMES += (("mid.block_1.", "mid.0."), ("mid.attn_1.", "mid.1."), ("mid.block_2.", "mid.2."))
"""Parts of names of tensors in transformers' JanusVQVAE, and in LlamaGen."""


EMU3: dict[str, Any] = {"codebook_size": 64, "embed_dim": 4, "in_channels": 3, "out_channels": 3, "num_res_blocks": 1}
EMU3 |= {"attn_resolutions": [1], "temporal_downsample_factor": 4}
EMU3_AUTHORS = EMU3 | {"ch": 32, "ch_mult": [1, 2, 1], "z_channels": 4, "double_z": False, "dropout": 0.0}
EMU3_TRANSFORMERS = EMU3 | {"base_channels": 32, "channel_multiplier": [1, 2, 2], "latent_channels": 4}
EMU3_TRANSFORMERS |= {"double_latent": False, "hidden_size": 64, "num_attention_heads": 1}
"""Sizes of a small network of Emu3 by its authors' names, and by transformers', where attention has one width."""


def emu3_folder(folder: Path, tensors: Mapping[str, Tensor], **changes: Any) -> Path:
    """The folder of Emu3's authors, with the code that their configuration names and the counters of training."""
    counters = {name.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for name in tensors}
    counters = {name: counter for name, counter in counters.items() if name not in tensors}
    config = {"model_type": "Emu3VisionVQ", "auto_map": {"AutoModel": "modeling.Mine"}, **EMU3_AUTHORS, **changes}
    return tokenizer_alone(folder, config, {**tensors, **counters})


def to_llamagen(name: str) -> str:
    return reduce(lambda text, pair: text.replace(*pair), NAMES, name)


def to_janus(name: str) -> str:
    return reduce(lambda text, pair: text.replace(*pair[::-1]), NAMES, name)


def llamagen_file(path: Path, tensors: Mapping[str, Tensor], **more: Any) -> Path:
    """LlamaGen's `.pt`: `tensors` under LlamaGen's names, with the counts of training."""
    torch.save({"model": {**tensors, "quantize.codebook_used": torch.zeros(65_536)}, **more}, path)
    return path


def whole_model(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """A Hugging Face folder in two shards whose `model.vqmodel.` has `tensors`, in a whole model of others."""
    kind = str(config["model_type"]).removesuffix("_vqgan")
    fields = {name: value for name, value in config.items() if name not in ("model_type", "num_patches")}
    vision = {"image_size": 16 * config["num_patches"], "patch_size": 16} if "num_patches" in config else {}
    folder.mkdir(parents=True)
    content = {"model_type": kind, "vq_config": fields, "vision_config": vision, "vocabulary_map": {"<image>": 5}}
    (folder / "config.json").write_text(json.dumps(content))
    named = {f"model.vqmodel.{name}": tensor.contiguous() for name, tensor in tensors.items()} | OTHER_NETWORKS
    weight_map: dict[str, str] = {}
    for number in range(2):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        part = {name: tensor for place, (name, tensor) in enumerate(named.items()) if place % 2 == number}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def tokenizer_alone(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
