"""A Llama in a Hugging Face folder, widened by the rows of an image tokenizer and of the tokens around an image."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn
from transformers import LlamaForCausalLM
from transformers.utils import logging

from evalsvc.spec.layout import VocabularyLayout, parse_layout

TOKENIZER = "tokenizer.json"
LENGTH = 1_024
"""Longest sequence of the layout: enough for a benchmark's question with solved examples."""


@dataclass(frozen=True)
class Widened:
    """A widened Llama with the layout of its table."""

    model: LlamaForCausalLM
    layout: VocabularyLayout
    tokenizer: Path


def widen(folder: Path, codes: int, seed: int) -> Widened:
    """Open the Llama in `folder` in float32, and append rows for `codes` image codes and the special tokens.

    The new rows are normal with the mean and the standard deviation of the text rows in each dimension.
    """
    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = model.config.vocab_size
    layout = widened_layout(rows, codes)
    assert layout.rows is not None
    model.resize_token_embeddings(layout.rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {id(table.weight): table for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    for table in tables.values():
        _draw_rows(table, rows, generator)
    return Widened(model, layout, folder / TOKENIZER)


def widened_layout(rows: int, codes: int) -> VocabularyLayout:
    """Return the layout of a table of `rows` text rows, `codes` image rows after them, and the special tokens' rows."""
    layout = parse_layout({"preset": "image-then-special", "text_size": rows, "codebook_size": codes}).model_copy(
        update={"length": LENGTH}
    )
    return layout.resolve(max(layout.special.values()) + 1)


def _draw_rows(table: nn.Module, known: int, generator: torch.Generator) -> None:
    """Draw the rows from `known` on."""
    weight = table.weight
    assert isinstance(weight, torch.Tensor)
    text = weight.detach()[:known]
    noise = torch.randn(len(weight) - known, weight.shape[1], generator=generator)
    with torch.no_grad():
        weight[known:] = text.mean(0) + noise * text.std(0)


def save_folder(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the folder whole or not at all."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    part.replace(folder)


def write_layout(layout: VocabularyLayout, tokenizer: Path, path: Path) -> None:
    """Write the layout with the path of its tokenizer; no token stands before a text, as in training."""
    content = layout.to_json()
    content["text"] |= {"tokenizer": str(tokenizer.resolve()), "bos": "none"}
    path.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
