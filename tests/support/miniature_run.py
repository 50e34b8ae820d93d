"""The run that comes with evalsvc, and a real tiny language model, as what is evaluated."""

import json
from pathlib import Path
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


def stories(shared: Path, name: str = "stories260k_rotary", **text: Any) -> CheckpointRef:
    """The real tiny model as it is, or as `t2i_260k_…`: widened by images and trained on."""
    folder, widened = shared / "golden" / "stories260k_openlm", name.startswith("t2i")
    files = folder / "forgetting" if widened else folder
    config = json.loads((files / ("t2i_260k.json" if widened else f"{name}.json")).read_text())
    image = {"image": {"offset": 512, "size": 256}} if widened else {}
    layout = {"text": {"size": 512, "tokenizer": str(folder / "tokenizer.json"), **text}, **image}
    return CheckpointRef(str(files / f"{name}.pt"), model=config, layout=layout, label=name)
