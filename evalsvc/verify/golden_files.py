"""The golden values that come with evalsvc, and the miniature that they were computed from.

`tests/golden/machine/make.py` wrote the folder. Nothing in the folder is executed: tensors are safetensors, numbers are
JSON, and the checkpoints that open_lm wrote are read like any other checkpoint.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from safetensors.torch import load_file
from torch import Tensor

from evalsvc.config import Settings
from evalsvc.miniature import ROOT
from evalsvc.models import Transformer, load_model
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.verify.agreement import Agreement

GOLDEN = Path(__file__).parent / "golden"
LAYOUT_FILE = ROOT / "runs" / "layout.yaml"
CHECKPOINTS = ROOT / "runs" / "pretrained" / "checkpoints"
TRAINED = CHECKPOINTS / "epoch_5.pt"
"""Last checkpoint of the miniature's run, which draws digits."""
ENGLISH = CHECKPOINTS / "epoch_0.pt"
"""First checkpoint of the miniature's run, before it saw an image, which knows English."""
TOKENIZER = ROOT / "tokenizer.json"
DECODER = ROOT / "movqgan" / "movqgan_miniature.ckpt"
IMAGES = ROOT / "images.safetensors"


@dataclass(frozen=True)
class Golden:
    """Golden values, and the device to compare with them. Files are read on demand."""

    device: str
    """Device of torch, such as `cpu` or `cuda:0`."""
    folder: Path = GOLDEN
    settings: Settings = field(default_factory=Settings.load)
    """Settings of the tasks that are run, with the folder of assets."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read a safetensors file, e.g. `sampling` or `open_lm/…/expected`."""
        return load_file(self.folder / f"{name}.safetensors")

    @cached_property
    def values(self) -> dict[str, Any]:
        """Return the golden numbers, and the versions of the programs that computed them (`programs`)."""
        content: dict[str, Any] = json.loads((self.folder / "values.json").read_text())
        return content

    def program(self, name: str) -> str:
        """Return how a table names golden values of a program, e.g. `golden, open_lm 9bb92ef`."""
        return f"golden, {name} {self.values['programs'][name]}"

    @property
    def cases(self) -> list[str]:
        """Return the names of the runs that open_lm wrote."""
        return sorted(path.name for path in (self.folder / "open_lm").iterdir())

    @cached_property
    def trained(self) -> Transformer:
        """Return the miniature's last checkpoint in float32 on the device."""
        return load_model(TRAINED, device=self.device)

    @cached_property
    def layout(self) -> VocabularyLayout:
        return parse_layout(str(LAYOUT_FILE)).resolve(self.trained.config.vocab_size)


def compare_arrays(
    quantity: str, program: str, ours: ArrayLike, theirs: ArrayLike, tolerance: float, note: str = ""
) -> Agreement:
    """Compare two arrays element by element; arrays of different shapes differ by infinity."""
    first, second = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if first.shape != second.shape:
        shapes = f"shapes {list(first.shape)} and {list(second.shape)}"
        return Agreement(quantity, program, math.inf, tolerance, note=f"{note}; {shapes}" if note else shapes)
    return Agreement(quantity, program, float(np.abs(first - second).max(initial=0.0)), tolerance, note=note)
