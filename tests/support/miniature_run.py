"""The run that comes with evalsvc, as what is evaluated."""

from typing import Any

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout

LAYOUT = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json()
DECODER = str(ROOT / "movqgan" / "movqgan_miniature.ckpt")


def pretrained(epoch: int, **layout: Any) -> CheckpointRef:
    """A checkpoint of the pre-trained run, 0 to 5, with some parts of the layout replaced."""
    weights = ROOT / "runs" / "pretrained" / "checkpoints" / f"epoch_{epoch}.pt"
    return CheckpointRef(str(weights), layout={**LAYOUT, **layout}, label=f"run 'pretrained' epoch {epoch}")
