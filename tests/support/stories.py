"""stories260K, a real language model of 260 thousand weights: as ours, and as a Llama under lm-eval's own HFLM.

The library of the Llama is imported where it is used: it takes seconds, in each process that collects tests.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.lm import OpenLM
from evalsvc.models import Transformer
from evalsvc.models.loading import load_model
from evalsvc.spec.layout import parse_layout, text_only

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BOS, END = 1, 2
WIDENED = {"text": {"offset": 0, "size": 512}, "image": {"offset": 512, "size": 256}}
"""Layout of the checkpoints in `forgetting/`."""


def folder(shared: Path) -> Path:
    return shared / "golden" / "stories260k_openlm"


def load(shared: Path) -> Transformer:
    return load_model(folder(shared) / "stories260k_rotary.pt", config(shared), dtype="float32", device="cpu")


def config(shared: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder(shared) / "stories260k_rotary.json").read_text())
    return content


def load_widened(shared: Path, name: str) -> Transformer:
    """A checkpoint with 256 image ids behind the text: `step0`, `imgonly_step25`, …"""
    files = folder(shared) / "forgetting"
    return load_model(files / f"t2i_260k_{name}.pt", str(files / "t2i_260k.json"), dtype="float32", device="cpu")


def open_lm(shared: Path, model: Transformer, max_length: int = 512, bos: int | None = BOS, **options: int) -> OpenLM:
    rows = model.config.vocab_size
    layout = text_only(rows) if rows == 512 else parse_layout(WIDENED).resolve(rows)
    tokenizer = read_tokenizer(folder(shared) / "tokenizer.json")
    return OpenLM(model, TextEncoding(tokenizer, layout, max_length, bos, END), **options)


def hflm(shared: Path, model: Transformer, max_length: int = 512, bos: bool = True) -> HFLM:
    """The same weights under lm-eval's own model, without its cache: that one answers some requests wrongly."""
    from transformers import PreTrainedTokenizerFast

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every model that is not a path
    tokenizer = Tokenizer.from_file(str(folder(shared) / "tokenizer.json"))
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return HFLM(
        _llama(model),
        tokenizer=fast,
        max_length=max_length,
        batch_size=16,
        add_bos_token=bos,
        prefix_token_id=BOS if bos else END,
        logits_cache=False,
    )


def _llama(ours: Transformer) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = ours.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.hidden_dim,
            intermediate_size=shape.ffn_dim,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_heads,
            vocab_size=shape.vocab_size,
            max_position_embeddings=shape.seq_len,
            rms_norm_eps=shape.norm_eps,
            tie_word_embeddings=shape.weight_tying,
            bos_token_id=BOS,
            eos_token_id=END,
        )
    )
    state = ours.state_dict()
    weights = {
        "model.embed_tokens.weight": state["tok_embeddings.weight"],
        "model.norm.weight": state["norm.weight"],
        "lm_head.weight": state["output.weight"],
    }
    for index in range(shape.n_layers):
        weights |= _layer(state, f"layers.{index}.", f"model.layers.{index}.")
    theirs.load_state_dict(weights, strict=True)
    return theirs.requires_grad_(False).eval()


def _layer(state: dict[str, torch.Tensor], ours: str, theirs: str) -> dict[str, torch.Tensor]:
    parts = zip(("q", "k", "v"), state[ours + "attention.in_proj.weight"].chunk(3), strict=True)
    gate, up = state[ours + "feed_forward.w12.weight"].chunk(2)
    return {theirs + f"self_attn.{name}_proj.weight": part for name, part in parts} | {
        theirs + "self_attn.o_proj.weight": state[ours + "attention.out_proj.weight"],
        theirs + "mlp.gate_proj.weight": gate,
        theirs + "mlp.up_proj.weight": up,
        theirs + "mlp.down_proj.weight": state[ours + "feed_forward.w3.weight"],
        theirs + "input_layernorm.weight": state[ours + "attention_norm.weight"],
        theirs + "post_attention_layernorm.weight": state[ours + "ffn_norm.weight"],
    }
