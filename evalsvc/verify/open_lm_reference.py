"""The model of the package open_lm, built from a configuration of evalsvc, with a checkpoint's own tensors.

The model is in float32 on the CPU, with open_lm's attention by torch.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalsvc.checkpoints.opening import opened
from evalsvc.checkpoints.tensors import listed
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, MissingPackage
from evalsvc.models.transformer import INV_FREQ_DTYPES, Transformer
from evalsvc.spec.model_config import OPEN_LM, ModelConfig
from evalsvc.tasks.task import Context

INSTALL = "pip install --no-deps xformers 'open_lm @ git+https://github.com/mlfoundations/open_lm'"


def build_open_lm(config: ModelConfig, tensors: Mapping[str, Tensor], rotary_inv_freq_dtype: str) -> nn.Module:
    """Return open_lm's Transformer with a checkpoint's `tensors`, in eval mode; `forward(ids)[0]` are its logits.

    `tensors` have the names of open_lm's modules, without prefixes of wrappers. `rotary_inv_freq_dtype` is the type to
    which training rounded the rotary frequencies. open_lm rounds the frequencies to the type of the keys, so that a
    float32 model would turn by other angles than in a training run in bfloat16; this model uses the angles of the
    training run.

    Raises:
        MissingPackage: open_lm or xformers is not installed, or cannot be imported.
        CheckpointMismatch: the tensors are not those of open_lm's model.
    """
    if config.family != OPEN_LM:
        raise CheckpointMismatch(f"the model is a {config.family} model, which open_lm does not compute")
    with _quiet():
        try:
            names = ("attention", "model", "norms")
            attention, model, norms = (importlib.import_module(f"open_lm.{name}") for name in names)
        except ImportError as error:
            missing = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
            what = f"{missing} is not installed" if missing else f"it fails: {error}"
            raise MissingPackage(f"open_lm cannot be imported: {what}; run: {INSTALL}") from error
        params = _params(config, model, norms, attention)
        reference: nn.Module = model.Transformer(params).requires_grad_(False).eval()
    _load(reference, tensors)
    for module in reference.modules():
        if hasattr(module, "inv_freq"):
            _turn_by(module, INV_FREQ_DTYPES[rotary_inv_freq_dtype])
    return reference


@contextmanager
def checkpoint_tensors(context: Context, ours: Transformer) -> Iterator[Mapping[str, Tensor]]:
    """Yield the tensors of the checkpoint's file; for a virtual checkpoint, those that evalsvc has combined."""
    if context.checkpoint.virtual is not None:
        yield {name: tensor.float().cpu() for name, tensor in ours.state_dict().items()}
        return
    with opened(context.checkpoint) as checkpoint:
        yield read_weights(Path(checkpoint.path)).tensors


def _params(config: ModelConfig, model: Any, norms: Any, attention: Any) -> Any:
    return model.Params(
        dim=config.hidden_dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        vocab_size=config.vocab_size,
        norm_eps=config.norm_eps,
        seq_len=config.seq_len,
        post_embed_norm=config.post_embed_norm,
        weight_tying=config.weight_tying,
        norm_type=norms.get_norm_class(config.model_norm),
        attn_func=attention.torch_attn,
        apply_qk_norm=config.qk_norm,
        positional_embedding_type=config.positional_embedding_type,
        ffn_type=config.ffn_type,
    )


def _load(reference: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load every tensor, and raise CheckpointMismatch unless each parameter has a value.

    open_lm names the weights of `gelu` and of tied tables twice; a file may have either name, or both.
    """
    parameters = dict(reference.named_parameters(remove_duplicate=False))
    filled = {id(parameters[name]) for name in tensors if name in parameters}
    missing = [name for name, parameter in parameters.items() if id(parameter) not in filled]
    unknown = [name for name in tensors if name not in reference.state_dict()]
    if problems := listed("missing", missing) + listed("unexpected", unknown):
        raise CheckpointMismatch("; ".join(["open_lm's model does not match the checkpoint", *problems]))
    try:
        reference.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        raise CheckpointMismatch(f"open_lm's model does not match the checkpoint: {error}") from error


def _turn_by(rotary: Any, dtype: torch.dtype) -> None:
    """Make a rotary embedding of open_lm use its buffer, which it otherwise reads only at construction and on another
    device."""
    rotary.inv_freq = rotary.inv_freq.to(dtype).float()
    rotary._seq_len_cached = 0
    rotary._update_cos_sin_tables(rotary.seq_len, device=rotary.inv_freq.device, dtype=torch.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence xformers' warnings about its GPU kernels, which are not used."""
    logger = logging.getLogger("xformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)
