"""Models, decoders and extractors of one worker process: loading, and caching for the next shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evalsvc.checkpoints.adapter import kept
from evalsvc.checkpoints.expression import digest_of
from evalsvc.checkpoints.opening import opened
from evalsvc.checkpoints.reference import CheckpointRef, check_sha256, hash_files, identify, named, parents_of, verify
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointGone, UnsupportedModel, os_reason
from evalsvc.families.reading import family_of, resolve_config
from evalsvc.models.language_model import LanguageModel
from evalsvc.models.loading import agreed_config, load_virtual, saved_frequencies, virtual_frequencies
from evalsvc.spec import catalog
from evalsvc.spec.engines import FLOAT64, OWN
from evalsvc.spec.model_config import ModelConfig
from evalsvc.spec.protocol import canonical_json


@dataclass(frozen=True)
class ModelForm:
    dtype: str
    device: str
    rotary_inv_freq_dtype: str
    engine: str = OWN


@dataclass(frozen=True)
class LoadedModel:
    source: tuple[Any, ...]
    """Identity of the checkpoint: path, identity, configuration, and its parents."""
    form: ModelForm
    model: LanguageModel
    digests: Mapping[str, str]
    """SHA-256 of a virtual checkpoint's parents by their names, and of the checkpoint itself by ""."""


class ModelCache:
    """Cache of two models: the most recent one, and its companion. They are a checkpoint's and its base's."""

    def __init__(self, before_load: Callable[[], object] = lambda: None) -> None:
        """Make the cache; `before_load` frees what is kept of a model that the cache may drop."""
        self._before_load = before_load
        self._loaded: list[LoadedModel] = []

    def loaded(self, checkpoint: CheckpointRef) -> LoadedModel | None:
        source = _source(checkpoint) if self._loaded else None
        return next((loaded for loaded in self._loaded if loaded.source == source), None)

    def get(self, checkpoint: CheckpointRef, form: ModelForm, companion: CheckpointRef | None = None) -> LanguageModel:
        """Load the checkpoint's model. All cached models except that of `companion` are dropped first, because memory
        is limited."""
        loaded = self.loaded(checkpoint)
        if loaded is None or loaded.form != form:
            del loaded
            self._before_load()
            self._loaded = [
                other for other in self._loaded if companion and other.source[0] == companion.path != checkpoint.path
            ]
            if form.device.startswith("cuda"):
                torch.cuda.empty_cache()
            loaded = _load(checkpoint, form)
            self._loaded.append(loaded)
        check_sha256(checkpoint, loaded.digests[""], loaded.digests)
        return loaded.model


class CompanionCache:
    """Cache of the most recent image decoder and feature extractors, which every checkpoint of a run uses."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[tuple[Any, ...], Any]] = {}

    def get(self, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
        """Return the cached object with this key, or load it. The first part of `key` is the kind; one object of each
        kind is kept."""
        kind = str(key[0])
        if kind not in self._loaded or self._loaded[kind][0] != key:
            self._loaded.pop(kind, None)
            self._loaded[kind] = (key, load())
        return self._loaded[kind][1]


def _source(checkpoint: CheckpointRef) -> tuple[Any, ...]:
    if checkpoint.virtual is not None:
        return checkpoint.path, tuple(map(_source, parents_of(checkpoint)))
    identity = checkpoint.identity or identify(Path(checkpoint.path))
    return checkpoint.path, identity, canonical_json(checkpoint.model and dict(checkpoint.model))


def _load(checkpoint: CheckpointRef, form: ModelForm) -> LoadedModel:
    """Load and hash simultaneously from one open file, and check before and after that the file is the posted one."""
    verify(checkpoint)
    source = _source(checkpoint)
    with opened(checkpoint) as pinned, ThreadPoolExecutor(max_workers=1, thread_name_prefix="hash") as executor:
        verify(pinned)
        digests = executor.submit(_digests, pinned)
        try:
            with named(checkpoint):
                model = _load_model(pinned, form)
        finally:
            # A file that was replaced while it was read fails in many ways; report that it was replaced.
            verify(checkpoint)
            check_sha256(checkpoint, digests.result()[""], digests.result())
    return LoadedModel(source, form, model, digests.result())


def _load_model(checkpoint: CheckpointRef, form: ModelForm) -> LanguageModel:
    dtype, device, rotary = form.dtype, form.device, form.rotary_inv_freq_dtype
    if form.engine == FLOAT64:  # evalsvc's own, whose difference from another dtype is the rounding of that dtype
        dtype = FLOAT64
    config, is_own = resolve_config_of(checkpoint), form.engine in (OWN, FLOAT64)
    if checkpoint.virtual is None:
        load = catalog.load("models", family_of(config).runs if is_own else form.engine)
        model: LanguageModel = load(
            Path(checkpoint.path), config, dtype=dtype, device=device, rotary_inv_freq_dtype=rotary
        )
        return model
    if not is_own:
        raise UnsupportedModel(
            f"the engine {form.engine} reads files, and the checkpoint is an expression; write its weights to a file"
        )
    paths = {name: Path(parent.path) for name, parent in checkpoint.virtual.parents.items()}
    expression = checkpoint.virtual.expression
    return load_virtual(expression, paths, config, dtype=dtype, device=device, rotary_inv_freq_dtype=rotary)


def saved_frequencies_of(checkpoint: CheckpointRef) -> torch.Tensor | None:
    """Read the rotary frequencies in a checkpoint's files, without their other weights; None: those of open_lm."""
    config = resolve_config_of(checkpoint)
    if checkpoint.virtual is None:
        path = Path(checkpoint.path)
        return saved_frequencies(path, config, read_weights(path).tensors)
    paths = {name: Path(parent.path) for name, parent in checkpoint.virtual.parents.items()}
    return virtual_frequencies(checkpoint.virtual.expression, paths, config)


def resolve_config_of(checkpoint: CheckpointRef) -> ModelConfig:
    if checkpoint.virtual is None:
        return resolve_config(checkpoint.model, Path(checkpoint.path))
    models = checkpoint.virtual.models()
    return agreed_config({name: resolve_config_of(parent) for name, parent in models.items()})


def known_digest(checkpoint: CheckpointRef) -> str:
    if checkpoint.sha256 is not None:
        return checkpoint.sha256
    if checkpoint.virtual is not None:
        parents = checkpoint.virtual.parents
        return digest_of(checkpoint.virtual.expression, {name: known_digest(parents[name]) for name in parents})
    verify(checkpoint)
    with opened(checkpoint) as pinned:
        sha256 = _hash(pinned)
    verify(checkpoint)
    return sha256


def _digests(checkpoint: CheckpointRef) -> dict[str, str]:
    if checkpoint.virtual is None:
        return {"": _hash(checkpoint)}
    models, parents = checkpoint.virtual.models(), checkpoint.virtual.parents
    by_name = {}
    for name, parent in parents.items():
        is_base = name in models and len(models) < len(parents)
        by_name[name] = kept("digest", Path(parent.path), partial(_hash, parent)) if is_base else _hash(parent)
    return {"": digest_of(checkpoint.virtual.expression, by_name), **by_name}


def _hash(checkpoint: CheckpointRef) -> str:
    try:
        return hash_files(Path(checkpoint.path))
    except OSError as error:
        reason = os_reason(error)
        raise CheckpointGone(
            f"{checkpoint.label}: {checkpoint.path} was deleted while it was read ({reason}); post it again"
        ) from None
