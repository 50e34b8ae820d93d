"""The models of `text.py`, each as an lm-eval model of evalsvc and as lm-eval's own HFLM with the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from loss import Case as Shape
from loss import build_ours, build_theirs
from text_cases import STORIES
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from widened_llama import TOKENIZER

from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.lm import OpenLM
from evalsvc.models import Transformer, load_model
from evalsvc.spec.layout import text_only

MAX_LENGTH = 1_024


def make_shape(width: int, layers: int, heads: int, rows: int) -> Shape:
    return Shape(width, layers, heads, text_only(rows), sequences=1, repetitions=3)


# A Llama of 79M parameters with the NeoX tokenizer's rows, and a small one that shows only that the benchmark works.
FULL = make_shape(512, 8, 8, 50_432)
QUICK = make_shape(64, 2, 4, 512)


@dataclass(frozen=True)
class Sides:
    """Both sides, and the difference up to which two log-likelihoods agree."""

    ours: OpenLM
    theirs: HFLM
    tolerance: float = 1e-4
    """Largest difference of two log-likelihoods, in nats."""
    relative: float = 2.5e-7
    """Allowed difference in addition, relative to the log-likelihood: float32 rounds hundreds of nats to about 1e-4."""

    @property
    def model(self) -> Transformer:
        return self.ours.model

    def card(self) -> str:
        """Return the line that describes the model."""
        config = self.model.config
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"model     {config.hidden_dim} wide, {config.n_layers} layers, {config.n_heads} heads, "
            f"{config.vocab_size:,} rows, {weights / 1e6:.1f} M weights, float32"
        )


def random_sides(shape: Shape, tokenizer: Path) -> Sides:
    """Return both sides with random weights."""
    model = build_ours(shape)
    encoding = TextEncoding(read_tokenizer(tokenizer), shape.layout, MAX_LENGTH)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token="<|endoftext|>")
    return Sides(OpenLM(model, encoding), HFLM(build_theirs(shape, model), tokenizer=fast, max_length=MAX_LENGTH))


def folder_sides(folder: Path) -> Sides:
    """Return both sides with the Llama in a Hugging Face folder.

    Rounding adds up over its 30 layers, so log-likelihoods may differ by more than those of the small models.
    """
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    encoding = TextEncoding(tokenizer, text_only(theirs.config.vocab_size), MAX_LENGTH)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / TOKENIZER), eos_token="<|endoftext|>")
    hflm = HFLM(theirs.requires_grad_(False).eval(), tokenizer=fast, max_length=MAX_LENGTH)
    return Sides(OpenLM(load_model(folder), encoding), hflm, tolerance=1e-3, relative=1e-5)


def stories_sides() -> Sides:
    """Return both sides with a real model of 260 thousand weights."""
    ours = open_stories()
    config = ours.model.config
    shape = make_shape(config.hidden_dim, config.n_layers, config.n_heads, 512)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(STORIES / TOKENIZER), eos_token="</s>", pad_token="</s>")
    return Sides(ours, HFLM(build_theirs(shape, ours.model), tokenizer=fast, max_length=MAX_LENGTH))


def open_stories() -> OpenLM:
    config = json.loads((STORIES / "stories260k_rotary.json").read_text())
    model = load_model(STORIES / "stories260k_rotary.pt", config, dtype="float32", device="cpu")
    # HFLM stops at a continuation that is longer than the model's 512 positions, and one is. Both get more.
    tokenizer = read_tokenizer(STORIES / TOKENIZER)
    return OpenLM(model, TextEncoding(tokenizer, text_only(512), MAX_LENGTH, end_of_text=2))
