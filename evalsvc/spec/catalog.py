"""Table of all components by name, one `"name": "module:attribute"` line each.

A component is imported only when it is loaded, so listing components needs neither torch nor their packages.
Installed packages add components by entry points of the groups `evalsvc.decoder_engines`, `evalsvc.decoders`,
`evalsvc.families`, `evalsvc.features`, `evalsvc.metrics`, `evalsvc.models`, `evalsvc.programs`, `evalsvc.scorings` and
`evalsvc.tasks`.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from evalsvc.errors import UnknownName
from evalsvc.installation import missing_package

COMPONENTS: dict[str, dict[str, str]] = {
    "decoder_engines": {"diffusers": "evalsvc.decoders.diffusers_decoder:DiffusersDecoder"},
    "decoders": {
        "chameleon": "evalsvc.decoders.vqgan:Chameleon",
        "emu3": "evalsvc.decoders.emu3:Emu3",
        "llamagen": "evalsvc.decoders.llamagen:LlamaGen",
        "movqgan": "evalsvc.decoders.movqgan:MoVQGAN",
        "vqgan": "evalsvc.decoders.vqgan:VQGAN",
    },
    "families": {
        "Emu3": "evalsvc.families.emu3:EMU3",
        "chameleon": "evalsvc.families.chameleon:CHAMELEON",
        "emu3": "evalsvc.families.emu3:EMU3",
        "emu3_text_model": "evalsvc.families.emu3:EMU3",
        "gemma": "evalsvc.families.llama:GEMMA",
        "gpt_neox": "evalsvc.families.gpt_neox:GPT_NEOX",
        "janus": "evalsvc.families.janus:JANUS",
        "llama": "evalsvc.families.llama:LLAMA",
        "mistral": "evalsvc.families.llama:MISTRAL",
        "multi_modality": "evalsvc.families.janus:JANUS",
        "olmo2": "evalsvc.families.llama:OLMO2",
        "open_lm": "evalsvc.families.open_lm:OPEN_LM_FAMILY",
        "qwen2": "evalsvc.families.llama:QWEN2",
        "qwen3": "evalsvc.families.llama:QWEN3",
        "transformers": "evalsvc.families.transformers:TRANSFORMERS_FAMILY",
    },
    "features": {
        "clean-fid": "evalsvc.features.clean_fid:CleanFID",
        "clip": "evalsvc.features.clip:CLIP",
        "digits": "evalsvc.features.digit_classifier:DigitClassifier",
        "dinov2": "evalsvc.features.dinov2:DINOv2",
        "inception": "evalsvc.features.inception:Inception",
        "torch-fidelity": "evalsvc.features.torch_fidelity:TorchFidelity",
    },
    "metrics": {
        "clip_s": "evalsvc.metrics.scores:CLIP_S",
        "clip_score": "evalsvc.metrics.scores:CLIP_SCORE",
        "cmmd": "evalsvc.metrics.mmd:CMMD",
        "coverage": "evalsvc.metrics.prdc:COVERAGE",
        "density": "evalsvc.metrics.prdc:DENSITY",
        "fd_dinov2": "evalsvc.metrics.fid:FD_DINOV2",
        "fid": "evalsvc.metrics.fid:FID",
        "fid64": "evalsvc.metrics.fid:FID64",
        "fid64_infinity": "evalsvc.metrics.fid:FID64_INFINITY",
        "fid_infinity": "evalsvc.metrics.fid:FID_INFINITY",
        "inception_score": "evalsvc.metrics.scores:INCEPTION_SCORE",
        "inception_score_adm": "evalsvc.metrics.scores:INCEPTION_SCORE_ADM",
        "kid": "evalsvc.metrics.mmd:KID",
        "precision": "evalsvc.metrics.prdc:PRECISION",
        "precision_k3": "evalsvc.metrics.prdc:PRECISION_K3",
        "recall": "evalsvc.metrics.prdc:RECALL",
        "recall_k3": "evalsvc.metrics.prdc:RECALL_K3",
        "sfid": "evalsvc.metrics.fid:SFID",
    },
    "models": {
        "evalsvc": "evalsvc.models.loading:load_model",
        "float64": "evalsvc.models.loading:load_model",
        "open_lm": "evalsvc.models.open_lm_model:load_open_lm",
        "transformers": "evalsvc.models.transformers_loading:load_transformers",
    },
    "programs": {
        "clean-fid": "evalsvc.metrics.clean_fid:CLEAN_FID",
        "torch-fidelity": "evalsvc.metrics.torch_fidelity:TORCH_FIDELITY",
    },
    "scorings": {"evalsvc": "evalsvc.language.lm:OpenLM", "hflm": "evalsvc.language.hflm:HflmScoring"},
    "tasks": {
        "alignment": "evalsvc.tasks.alignment.spec:Alignment",
        "completions": "evalsvc.tasks.completions.spec:Completions",
        "forgetting": "evalsvc.tasks.forgetting.spec:Forgetting",
        "images": "evalsvc.tasks.images.spec:ExternalImages",
        "language": "evalsvc.tasks.language.spec:Language",
        "loss": "evalsvc.tasks.loss.spec:Loss",
        "reconstruction": "evalsvc.tasks.reconstruction.spec:Reconstruction",
        "text_to_image": "evalsvc.tasks.text_to_image.spec:TextToImage",
    },
}

EXTRAS = {
    "accelerate": "reference",
    "clean-fid": "clean-fid",
    "cleanfid": "clean-fid",
    "diffusers": "reference",
    "scipy": "clean-fid",
    "torch-fidelity": "reference",
    "torch_fidelity": "reference",
    "transformers": "features",
}
"""Extras of packages that are not in the extra `worker`."""


def names(group: str) -> list[str]:
    """Return the names of a group's components, built in and installed."""
    return sorted(_targets(group))


def load(group: str, name: str) -> Any:
    """Import and return a component."""
    targets = _targets(group)
    if name not in targets:
        raise UnknownName.among(_singular(group), name, targets)
    module, _, attribute = targets[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "evalsvc":
            raise
        missing = str(error.name).partition(".")[0]
        purpose = f"{_singular(group)} {name!r}"
        raise missing_package(missing, purpose, EXTRAS.get(missing, "worker")) from None


def _singular(group: str) -> str:
    return {"families": "family", "decoder_engines": "engine"}.get(group, group.removesuffix("s"))


def _targets(group: str) -> dict[str, str]:
    return _installed(group, _installation()) | COMPONENTS[group]


@lru_cache(maxsize=2 * len(COMPONENTS))
def _installed(group: str, _installation: object) -> dict[str, str]:
    """Return the installed components of a group. Cached, because scanning all installed packages takes 20 ms for each
    shard."""
    return {point.name: point.value for point in entry_points(group=f"evalsvc.{group}")}


def _installation() -> tuple[tuple[str, int], ...]:
    changes = []
    for folder in sys.path:
        with suppress(OSError):
            changes.append((folder, os.stat(folder or ".").st_mtime_ns))
    return tuple(changes)
