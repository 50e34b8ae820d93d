"""The environment of a shard: device, the checkpoint's model and layout, local files, decoders, extractors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch

from evalsvc.assets import locate_asset
from evalsvc.checkpoints.expression import leaves, require_parts
from evalsvc.checkpoints.opening import checkpoint_rule, is_images, opened, opened_weights
from evalsvc.checkpoints.reference import CheckpointRef, check_sha256, hash_files, identify, named, verify, with_files
from evalsvc.checkpoints.weights import read_weights
from evalsvc.config import Settings
from evalsvc.data.images import ImageSource, read_images
from evalsvc.decoders import ImageDecoder, load_decoder
from evalsvc.decoders.config import DEFAULT_FILES
from evalsvc.errors import EvalsvcError, NotACheckpoint
from evalsvc.families.reading import computed_by
from evalsvc.features import FeatureExtractor, load_extractor
from evalsvc.features.lpips import LPIPS
from evalsvc.files.kept import KeptFolder
from evalsvc.files.opened import Allow, anywhere, open_file
from evalsvc.models.language_model import LanguageModel
from evalsvc.models.loading import read_leaf
from evalsvc.precision import allow_tf32, use_full_float32
from evalsvc.sampling.fitting import KeptSampler
from evalsvc.spec import catalog
from evalsvc.spec.engines import OWN, release_of
from evalsvc.spec.layout import VocabularyLayout, parse_layout, text_only
from evalsvc.spec.model_config import ModelConfig
from evalsvc.spec.paths import DATASETS, Readable, local_data
from evalsvc.spec.protocol import plain_json
from evalsvc.tasks.task import Context
from evalsvc.worker.models import (
    CompanionCache,
    ModelCache,
    ModelForm,
    known_digest,
    resolve_config_of,
    saved_frequencies_of,
)

Report = Callable[[int], None]
"""Callback with the units done in this shard so far; raises Cancelled when the shard must stop."""

_sampler = KeptSampler()
_models = ModelCache(before_load=_sampler.drop)
_companions = CompanionCache()


class ShardContext(Context):
    """The resources of this process for a task: device, the checkpoint's model and layout, local files."""

    base: ShardContext | None

    def __init__(
        self,
        checkpoint: CheckpointRef,
        settings: Settings,
        report: Report,
        base: CheckpointRef | None = None,
        kept: KeptFolder | None = None,
        engines: Mapping[str, str] | None = None,
    ) -> None:
        """Set up the resources; `kept` has files for later evaluations [those of the settings], `engines` those of
        stages [evalsvc]."""
        self.engines = engines or {}
        rule = checkpoint_rule(settings, *settings.kept_paths)
        self.checkpoint = with_files(checkpoint, lambda file: replace(file, rule=rule))
        self.kept = kept or KeptFolder(settings.statistics_path)
        self.base = None if base is None else ShardContext(base, settings, report, None, self.kept, engines)
        self._companion = base
        self.is_first = base is not None and base.path == checkpoint.path
        if self.base is not None:
            self._companion = self.base.checkpoint
            self.base._companion = self.checkpoint
        self.device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_tokens = settings.batch_tokens
        self.allow_benchmark_code = bool(settings.allow_benchmark_code)
        self.readable = Readable(settings)
        self.report = report
        self.dtype: str | None = None
        self.provenance: dict[str, Any] = {}
        self.sampler = _sampler
        self._frequencies: tuple[float, ...] | None = None
        self._settings = settings
        torch.set_num_threads(settings.worker_threads())
        use_full_float32()

    def inspect_checkpoint(self, reads: Literal["weights", "images"] = "weights") -> None:
        """Raise unless the checkpoint is the posted one, and is what the task reads."""
        verify(self.checkpoint)
        path, rule = Path(self.checkpoint.path), self.checkpoint.rule
        if reads == "images" and self.checkpoint.virtual is None:
            sha256 = hash_files(path, lambda file: open_file(file, "image file", rule).stream)
            verify(self.checkpoint)
            check_sha256(self.checkpoint, sha256)
            self.checkpoint = replace(self.checkpoint, sha256=sha256)
            return
        if self.checkpoint.virtual is None and is_images(path, rule):
            raise NotACheckpoint(
                f"{self.checkpoint.label} is images, and this task reads weights; evaluate it with tasks of kind images"
            )
        with opened(self.checkpoint) as checkpoint, named(checkpoint):
            virtual = checkpoint.virtual
            if virtual is None:
                read_weights(Path(checkpoint.path))
                return
            paths = {name: Path(parent.path) for name, parent in virtual.parents.items()}
            for leaf in leaves(virtual.expression):
                read_leaf(leaf, paths)
            config = resolve_config_of(checkpoint)
            require_parts(virtual.expression, config.n_layers, config.weight_tying)

    def digest(self) -> str:
        loaded = _models.loaded(self.checkpoint)
        return loaded.digests[""] if loaded else known_digest(self.checkpoint)

    def model(self, *, dtype: str, rotary_inv_freq_dtype: str) -> LanguageModel:
        self.dtype = dtype
        form = ModelForm(dtype, self.device, rotary_inv_freq_dtype, self.engines.get("model", OWN))
        model = _models.get(self.checkpoint, form, self._companion)
        self._frequencies = model.saved_inv_freq
        self.provenance |= computed_by(model.config)
        return model

    def rotary(self) -> Mapping[str, str]:
        if self._frequencies is None and (loaded := _models.loaded(self.checkpoint)) is not None:
            self._frequencies = loaded.model.saved_inv_freq
        elif self._frequencies is None:
            verify(self.checkpoint)
            with opened(self.checkpoint) as checkpoint, named(checkpoint):
                saved = saved_frequencies_of(checkpoint)
            self._frequencies = () if saved is None else tuple(saved.tolist())
        return {"rotary": "file"} if self._frequencies else {}

    def to_provenance(self) -> dict[str, Any]:
        frequencies = {"rotary_inv_freq": self._frequencies}
        frequencies["base_rotary_inv_freq"] = None if self.base is None else self.base._frequencies
        return {
            "device": self.device,
            "device_name": torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else None,
            "dtype": self.dtype,
            "batch_tokens": self.batch_tokens,
            "threads": torch.get_num_threads(),
            **{f"{stage}_engine": release_of(name) for stage, name in self.engines.items()},
            **_loaded_digests(self.checkpoint),
            **{name: list(values) for name, values in frequencies.items() if values},
            **plain_json(self.provenance),
        }

    def layout(self) -> VocabularyLayout:
        config = self.model_config()
        rows = config.vocab_size
        with named(self.checkpoint):
            layout = text_only(rows) if self.checkpoint.layout is None else parse_layout(self.checkpoint.layout)
            if layout.text.tokenizer is not None:
                self.dataset(layout.text.tokenizer)
            layout = layout.resolve(rows)
            config.require_image_rows(layout.image_range)
            return layout

    def dataset(self, path: str) -> str:
        return local_data(self._settings, path)

    def images(self, path: str) -> ImageSource:
        return read_images(self.dataset(path), self.readable)

    def asset(self, name: str) -> Path:
        return Path(self.dataset(name)) if _is_path(name) else locate_asset(name, self._settings.assets_path)

    def decoder(self, name: str, config: str | None = None, ema: bool = False, dtype: str = "float32") -> ImageDecoder:
        file, engine = find_decoder(self._settings, name, config), self.engines.get("decoder", OWN)
        key = (f"decoder {dtype}", file.path, identify(file.path), file.config, ema, self.device, engine)

        def load() -> Any:
            own = file.load(ema, "float32" if dtype == "tf32" else dtype, self.device)
            network = own if engine == OWN else catalog.load("decoder_engines", engine)(own)
            if dtype == "tf32":
                allow_tf32(network)
            return network

        decoder: ImageDecoder = _companions.get(key, load)
        return decoder

    def extractor(self, name: str, kind: str = "inception") -> FeatureExtractor:
        return cast(FeatureExtractor, self._network(name, f"extractor {kind}", partial(load_extractor, kind)))

    def lpips(self, name: str) -> LPIPS:
        return cast(LPIPS, self._network(name, "lpips", LPIPS.from_path))

    def _network(self, name: str, kind: str, read: Callable[..., Any]) -> Any:
        path = self.asset(name)

        def load() -> Any:
            # The operator's own folder of assets may contain links.
            with opened_weights(path, self.readable if _is_path(name) else anywhere) as pinned:
                return read(pinned, device=self.device)

        return _companions.get((kind, path, identify(path), self.device), load)

    def model_config(self) -> ModelConfig:
        loaded = _models.loaded(self.checkpoint)
        if loaded is not None:
            return loaded.model.config
        verify(self.checkpoint)
        with opened(self.checkpoint) as checkpoint, named(checkpoint):
            return resolve_config_of(checkpoint)


def _is_path(name: str) -> bool:
    return "/" in name or name.startswith(DATASETS)


def _loaded_digests(checkpoint: CheckpointRef) -> dict[str, Any]:
    loaded = None
    with suppress(EvalsvcError):  # the checkpoint is gone, which the next shard reports
        loaded = _models.loaded(checkpoint)
    if loaded is None:
        return {"checkpoint_sha256": checkpoint.sha256}
    parents = {name: sha256 for name, sha256 in loaded.digests.items() if name}
    return {"checkpoint_sha256": loaded.digests[""], **({"parents_sha256": parents} if parents else {})}


@dataclass(frozen=True)
class DecoderFile:
    """Weights of an image decoder that these settings may read, not loaded yet."""

    path: Path
    config: str | None
    """Registered name or path of the configuration; None for the one next to the weights."""
    allow: Allow
    """Rule for reading the weights. The operator's own folder of assets may contain links."""
    allow_config: Allow

    def load(self, ema: bool, dtype: str, device: str) -> ImageDecoder:
        with ExitStack() as stack:
            pinned = stack.enter_context(opened_weights(self.path, self.allow, DEFAULT_FILES))
            config = self.config
            if config is not None and "/" in config:
                config = str(stack.enter_context(opened_weights(Path(config), self.allow_config)))
            return load_decoder(pinned, config, ema, dtype=dtype, device=device)


def find_decoder(settings: Settings, name: str, config: str | None) -> DecoderFile:
    """Locate the decoder `name`: an asset, or a path if the name has a slash; `config` is the same, or None."""
    readable = Readable(settings)
    if config is not None and "/" in config:
        config = local_data(settings, config)
    if "/" in name:
        return DecoderFile(Path(local_data(settings, name)), config, readable, readable)
    path = locate_asset(name, settings.assets_path)
    if config is None and not path.is_dir():
        config = name  # the configuration is registered under the asset's name; a folder has its own
    return DecoderFile(path, config, anywhere, readable)
