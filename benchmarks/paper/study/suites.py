"""The suites that checkpoints of the paper's runs are evaluated with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalsvc.tasks.completions.spec import TABLE_1
from study.material import ImageMaterial, Material
from study.scales import Scale

Suite = Mapping[str, Any]

WITHIN_TEXT = "within_text"
"""Name of the task of completions within text ids."""


def suite_name(part: str) -> str:
    """Return the name on the service: some parts have the names of suites that come with evalsvc."""
    return f"paper-{part}"


def suites(scale: Scale, material: Material) -> dict[str, Suite]:
    """Return the suites by the names that `runs.PlannedRun` uses; only those that the material allows."""
    content: dict[str, list[dict[str, Any]]] = {"losses": [_pairs(scale, material)]}
    content["language"] = [_forgetting(scale, material), *_completions(scale, material)]
    if material.images is not None:
        content["image_only"] = [_image_only(scale, material)]
        content["images"] = [_images(scale, material)]
        content["floor"] = [_floor(material.images)]
        content["alignment"] = [_alignment(scale, material)]
    return {name: {"tasks": tasks} for name, tasks in content.items()}


def _pairs(scale: Scale, material: Material) -> dict[str, Any]:
    return {
        "kind": "loss",
        "name": "pairs",
        "data": str(material.pairs),
        "limit": scale.sequences,
        "general_text": str(material.text),
        "general_text_limit": scale.sequences,
        "profile": False,
    }


def _image_only(scale: Scale, material: Material) -> dict[str, Any]:
    data = str(material.image_only)
    return {"kind": "loss", "name": "images", "data": data, "limit": scale.sequences, "profile": False}


def _forgetting(scale: Scale, material: Material) -> dict[str, Any]:
    return {
        "kind": "forgetting",
        "benchmarks": list(material.benchmarks),
        "include_path": [str(path) for path in material.include_path],
        "sample": scale.questions,
        "text": str(material.text),
        "text_limit": scale.sequences,
        "shard_size": 128,
    }


def _completions(scale: Scale, material: Material) -> list[dict[str, Any]]:
    """Return completions over all ids, and those of more prompts within text ids, which the base judges."""
    over_all = {"kind": "completions", "max_tokens": scale.completion_tokens, "samples": 0}
    prompts = [*TABLE_1, *material.openings]
    return [over_all, over_all | {"name": WITHIN_TEXT, "within": "text", "samples": 1, "prompts": prompts}]


def _images(scale: Scale, material: Material) -> dict[str, Any]:
    assert material.images is not None, "the suite is left out without images"
    return {
        "kind": "text_to_image",
        "name": "digits",
        "captions": str(material.images.captions),
        "samples": scale.images,
        "decoder": str(material.images.decoder),
        "reference": str(material.images.reference),
        "metrics": list(scale.image_metrics),
        "classifier": str(material.images.classifier),
        "batch": 64,
        "shard_size": 128,
    }


def _floor(images: ImageMaterial) -> dict[str, Any]:
    return {"kind": "reconstruction", "images": str(images.reference), "decoder": str(images.decoder), "taps": [64]}


def _alignment(scale: Scale, material: Material) -> dict[str, Any]:
    return {"kind": "alignment", "data": str(material.pairs), "limit": scale.sequences}
