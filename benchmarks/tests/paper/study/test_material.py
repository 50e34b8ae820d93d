"""What the trainings begin with."""

from __future__ import annotations

from typing import Any

import torch

from evalsvc.miniature import ROOT as MINIATURE
from evalsvc.models import load_model


def test_the_text_base_has_the_shipped_rows_of_text_alone(material: Any) -> None:
    narrow = load_model(material.start)
    wide = load_model(MINIATURE / "runs" / "pretrained" / "checkpoints" / "epoch_0.pt")
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(tensor, wide.state_dict()[name][: len(tensor)])
    assert len(narrow.state_dict()["output.weight"]) == 512
