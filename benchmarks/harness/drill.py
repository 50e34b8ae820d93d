"""Drills: damage on purpose, which shows that the gate catches it."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from evalsvc.errors import InvalidRequest

LAYER = 1
"""Layer that a drill damages."""


def scale_layer(source: Path, target: Path, layer: int, factor: float) -> Path:
    """Write a checkpoint of open_lm with all weights of one layer scaled, and what lies next to its folder.

    Raises:
        InvalidRequest: the checkpoint is no file of open_lm, or has no such layer.
    """
    try:
        content: dict[str, Any] = torch.load(source, weights_only=True)
        weights = content["state_dict"]
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, IndexError):
        raise InvalidRequest(
            f"--drill-damage: {source} is no checkpoint of open_lm, the only kind that is damaged; leave the option out"
        ) from None
    inside = [name for name in weights if re.fullmatch(rf"(?:module\.)?layers\.{layer}\..*weight", name)]
    if not inside:
        raise InvalidRequest(f"--drill-damage: {source} has no layer {layer}; leave the option out")
    for name in inside:
        weights[name] = weights[name] * factor
    target.parent.mkdir(parents=True, exist_ok=True)
    for neighbour in source.parents[1].glob("*.*"):
        if neighbour.is_file():
            shutil.copy(neighbour, target.parents[1])
    torch.save(content, target)
    return target
