"""Models with seeded random weights, scaled so that activations stay of order 1: what sections of stages share."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.features.inception import _Network
from evalsvc.models import Transformer
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.model_config import ModelConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SEED = 0


@dataclass(frozen=True)
class Shape:
    """A language model with Llama's arithmetic, so that others have it too."""

    name: str
    hidden_dim: int
    n_layers: int
    n_heads: int
    layout: VocabularyLayout

    @property
    def rows(self) -> int:
        assert self.layout.rows is not None
        return self.layout.rows


BILLION = Shape("1B", 2_048, 24, 16, parse_layout("image-then-special").resolve(66_823))
"""open_lm_1b with the paper's vocabulary."""
TINY = Shape(
    "tiny", 64, 2, 4, parse_layout({"preset": "image-then-special", "text_size": 511, "codebook_size": 64}).resolve(582)
)
"""What is compared with a CPU, and what is timed where the kit is small."""


def build_transformer(shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32) -> Transformer:
    """Return a model whose weights are drawn on `device` by a generator of its own."""
    config = ModelConfig(
        hidden_dim=shape.hidden_dim,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        seq_len=2_048,
        vocab_size=shape.rows,
        post_embed_norm=False,
        weight_tying=False,
        model_norm="rms_norm",
    )
    with torch.device(device):
        model = Transformer(config)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                is_table = parameter is model.tok_embeddings.weight
                parameter.normal_(std=1.0 if is_table else parameter.shape[1] ** -0.5, generator=generator)
    return model.to(device, dtype).requires_grad_(False).eval()


def build_llama(shape: Shape, ours: Transformer) -> LlamaForCausalLM:
    """Return Hugging Face's Llama with views of the same weights, on their device. Needs transformers."""
    from loss import build_theirs

    theirs = build_theirs(shape, ours)
    theirs.model.rotary_emb.to(ours.tok_embeddings.weight.device)
    return theirs


def layer_weights(model: Transformer) -> int:
    """Return the number of weights that every token is multiplied with, the output head apart."""
    return sum(parameter.numel() for parameter in model.layers.parameters())


@torch.no_grad()
def build_movqgan(config: Mapping[str, Any]) -> MoVQGAN:
    """Return a decoder on the CPU whose weights keep the variance, with norms that do something."""
    with torch.device("meta"):
        decoder = MoVQGAN.from_config(config)
    decoder.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in decoder.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.dim() == 4:
            parameter.div_(parameter[0].numel() ** 0.5 * (2 if "conv_y" in name or "conv_b" in name else 1))
        elif "quantize" not in name:
            parameter.mul_(0.1).add_(1 if name.endswith("weight") or "conv_y" in name else 0)
    return decoder.requires_grad_(False).eval()


def draw_inception() -> dict[str, Tensor]:
    """Return tensors of Inception's trunk as its files have them, with the batch norms apart."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in _Network().state_dict().items()}
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name in (key.removesuffix(".weight") for key in shapes if key.endswith(".weight")):
        shape = shapes[f"{name}.weight"]
        gain = (2 / shape[1:].numel()) ** 0.5  # half of what comes in is cut off by the rectifier before
        tensors[f"{name}.conv.weight"] = torch.randn(shape, generator=generator) * gain
        for part, centre in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            spread = 0.1 * torch.rand(shape[0], generator=generator)
            tensors[f"{name}.bn.{part}"] = centre + spread
    return tensors


def missing(*packages: str) -> str:
    """Say which of these packages are not installed; empty where all of them are."""
    names = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{', '.join(names)} not installed" if names else ""
