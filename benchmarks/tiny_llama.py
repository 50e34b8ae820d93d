"""A tiny random Llama with the miniature's tokenizer, as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evalsvc.miniature import ROOT

TEXT_ROWS = 512


def write_tiny_llama(folder: Path) -> None:
    """Write a Llama with grouped heads and a tied table of the miniature's text ids."""
    config = LlamaConfig(
        vocab_size=TEXT_ROWS,
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(ROOT / "tokenizer.json", folder)
