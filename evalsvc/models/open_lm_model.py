"""Language model of the package open_lm, with a checkpoint's own tensors: the engine `open_lm`.

The package computes everything, with its attention by torch. Padding counts as positions, which does not matter where
attention depends on the distance of two positions, as with every embedding of open_lm.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from evalsvc.checkpoints.tensors import DTYPES, listed
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, InvalidData, MissingPackage, UnsupportedModel
from evalsvc.models.language_model import PaddedModel
from evalsvc.models.loading import saved_frequencies
from evalsvc.models.rotation import INV_FREQ_DTYPES, resolve_inv_freq_dtype
from evalsvc.spec.model_config import OPEN_LM, ModelConfig

INSTALL = "pip install --no-deps xformers 'open_lm @ git+https://github.com/mlfoundations/open_lm'"


def load_open_lm(
    path: str | Path,
    config: ModelConfig,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    rotary_inv_freq_dtype: str = "auto",
) -> OpenLmModel:
    """Return open_lm's Transformer with the tensors in `path`. open_lm rounds the rotary frequencies to the type of the
    keys; this model uses the angles of the training run, see `trained_inv_freq_dtype`."""
    if config.family != OPEN_LM:
        raise UnsupportedModel(
            f"the model is of the family {config.family}, and the engine open_lm computes models of open_lm only; "
            "choose the engine transformers"
        )
    module, tensors = _build(config), read_weights(Path(path)).tensors
    _load(module, tensors)
    # Frequencies keep their values in float32 while the weights are converted.
    rotaries: list[tuple[Any, Any]] = [(part, part.inv_freq) for part in module.modules() if hasattr(part, "inv_freq")]
    module.to(device, DTYPES[dtype]).requires_grad_(False).eval()
    rounded = INV_FREQ_DTYPES[resolve_inv_freq_dtype(config, rotary_inv_freq_dtype)]
    for rotary, frequencies in rotaries:
        # A rotary embedding of open_lm reads its frequencies only at construction and on another device.
        rotary.inv_freq = frequencies.to(rounded).float().to(device)
        rotary._seq_len_cached = 0
        rotary._update_cos_sin_tables(rotary.seq_len, device=rotary.inv_freq.device, dtype=torch.float32)
    model = OpenLmModel(config, module)
    if (saved := saved_frequencies(Path(path), config, tensors)) is not None:
        model.saved_inv_freq = tuple(saved.tolist())
    return model


class OpenLmModel(PaddedModel):
    package = "open_lm"
    cache_kind = "dynamic"

    def __init__(self, config: ModelConfig, module: nn.Module) -> None:
        self.config, self.module = config, module
        self.saved_inv_freq = ()

    @property
    def input_table(self) -> Tensor:
        return self.module.get_parameter("tok_embeddings.weight").detach()

    @property
    def output_table(self) -> Tensor:
        return self.module.get_parameter("output.weight").detach()

    def logits(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.module(ids)[0])

    def hidden(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: LayersCache | None = None,
    ) -> Tensor:
        past = 0 if cache is None else cache.length
        self.require_positions(past + ids.shape[1] - 1)
        layers = cache.layers if cache is not None and past else None
        _, states, filled = self.module(ids, past_key_values=layers, use_cache=cache is not None, attention_mask=mask)
        if cache is not None:
            cache.layers, cache.length = filled, past + ids.shape[1]
        return cast(Tensor, states)

    def head(self, hidden: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        table = self.output_table if rows is None else self.output_table[rows]
        return self.codes_logits(hidden, {"weight": table})

    def new_cache(self, capacity: int) -> LayersCache:
        return LayersCache()

    def require_positions(self, last: int) -> None:
        positions = 2 * self.config.seq_len
        if self.config.positional_embedding_type == "llama_rotary" and last >= positions:
            raise InvalidData(
                f"position {last} is beyond the {positions} positions of open_lm's llama_rotary; use shorter sequences"
            )

    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        for name, part in self.module.named_modules():
            if isinstance(part, nn.Embedding | nn.Linear):
                yield name, part


class LayersCache:
    """Keys and values of open_lm's layers, each [B, S, H, head_dim]."""

    layers: list[list[Tensor]]
    length = 0

    def keep(self, rows: Tensor) -> None:
        self.layers = [[part[rows] for part in layer] for layer in self.layers]


def _build(config: ModelConfig) -> nn.Module:
    with _quiet():
        try:
            names = ("attention", "model", "norms")
            attention, model, norms = (importlib.import_module(f"open_lm.{name}") for name in names)
        except ImportError as error:
            missing = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
            what = f"{missing} is not installed" if missing else f"it fails: {error}"
            raise MissingPackage(f"open_lm cannot be imported: {what}; run: {INSTALL}") from error
        same = ("n_layers", "n_heads", "vocab_size", "norm_eps", "seq_len", "post_embed_norm", "weight_tying")
        params = model.Params(
            **{name: getattr(config, name) for name in (*same, "positional_embedding_type", "ffn_type")},
            dim=config.hidden_dim,
            norm_type=norms.get_norm_class(config.model_norm),
            attn_func=attention.torch_attn,
            apply_qk_norm=config.qk_norm,
        )
        module: nn.Module = model.Transformer(params)
    return module


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    # open_lm names the weights of `gelu` and of tied tables twice; a file may have either name, or both.
    parameters = dict(module.named_parameters(remove_duplicate=False))
    filled = {id(parameters[name]) for name in tensors if name in parameters}
    missing = [name for name, parameter in parameters.items() if id(parameter) not in filled]
    unknown = [name for name in tensors if name not in module.state_dict()]
    if problems := listed("missing", missing) + listed("unexpected", unknown):
        raise CheckpointMismatch("; ".join(["open_lm's model does not match the checkpoint", *problems]))
    try:
        module.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        raise CheckpointMismatch(f"open_lm's model does not match the checkpoint: {error}") from error


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
