"""A language model in a GGUF file, as a Hugging Face folder: configuration, float32 weights, tokenizer and layout."""

from __future__ import annotations

import json
from pathlib import Path

import gguf  # noqa: F401  # transformers imports it only when it reads the file
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalsvc.assets.catalog import Asset
from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.errors import AssetCorrupt

LEFT_OUT = ("_model_name_or_path", "quantization_config", "transformers_version")
"""Fields of the configuration that describe the GGUF file, not the model."""


def write_language_model(asset: Asset, path: Path, folder: Path) -> None:
    """Write the model in the GGUF file `path`, which lies alone in its folder, as a Hugging Face folder. The weights
    are float32, because the sum of a quantised weight's step and offset needs more bits than bfloat16 has: only in
    float32 are the logits those of the quantised model."""
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
    )
    config, tensors = model.config, model.state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if (digest := tensor_digest(tensors)) != asset.tensors:
        raise AssetCorrupt(
            f"the file of {asset.name} gave tensors with the digest {digest}, expected {asset.tensors}; install other "
            "versions of the packages gguf and transformers, and pull the asset again"
        )
    # transformers refuses to save a model that it has read from a GGUF file.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {name: value for name, value in config.to_diff_dict().items() if name not in LEFT_OUT}
    # The file holds a float32: the shortest decimal number of it is 1e-05, its value as a float 9.999999747378752e-06.
    fields["rms_norm_eps"] = float(str(np.float32(config.rms_norm_eps)))
    layout = {"text": {"size": config.vocab_size, "tokenizer": "tokenizer.json", "bos": "none"}}
    documents = {"config.json": {"architectures": [type(model).__name__], **fields}, "layout.json": layout}
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, model_max_length=config.max_position_embeddings, local_files_only=True
    )
    # As in SmolLM2's own tokenizer.json: every digit stands alone, also behind several spaces. transformers ignores the
    # file's `tokenizer.ggml.pre`, and splits all byte-level texts as GPT-2 does.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder, save_jinja_files=False)
