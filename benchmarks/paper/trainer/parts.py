"""The parts of a model that a training changes, after figure 6 of the paper.

The paper (arXiv 2311.16201, section 3.1) tunes all parameters, or (1) embeddings and output layer, (2) these and the
norms, (3) these and the first half of the layers, (4) the parts of (2) and the feed-forward layers. Its (2) has the
positional embedding too, but rotary embeddings have no parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from evalsvc.models import Transformer
from trainer.recipe import Tuned

NUMBERS: Mapping[str, Tuned] = {
    "1": "tables",
    "2": "norms",
    "3": "first-half",
    "4": "feed-forward",
    "all": "all",
}
"""Parts by the numbers of figure 6."""

_TABLE = re.compile(r"tok_embeddings\.weight|output\.weight")
_NORM = re.compile(r"(.*\.)?(post_embed_norm|norm|attention_norm|ffn_norm|q_norm|k_norm)\.(weight|bias)")
_FEED_FORWARD = re.compile(r"layers\.\d+\.feed_forward\..*")


def tune(model: Transformer, tuned: Tuned) -> dict[str, nn.Parameter]:
    """Freeze all parameters but those of `tuned`, and return these by name. A tied table is there once."""
    model.requires_grad_(False)
    chosen = {name: parameter for name, parameter in model.named_parameters() if _is_tuned(model, name, tuned)}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def _is_tuned(model: Transformer, name: str, tuned: Tuned) -> bool:
    if tuned == "all" or _TABLE.fullmatch(name):
        return True
    if tuned == "tables":
        return False
    if _NORM.fullmatch(name):
        return True
    if tuned == "first-half":
        return name.startswith("layers.") and int(name.split(".")[1]) < model.config.n_layers // 2
    return tuned == "feed-forward" and _FEED_FORWARD.fullmatch(name) is not None
