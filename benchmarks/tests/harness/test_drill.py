"""Damage on purpose: one layer is scaled, and nothing else."""

from pathlib import Path

import pytest
import torch
from harness.drill import scale_layer

from evalsvc.errors import InvalidRequest
from evalsvc.miniature import ROOT

CHECKPOINT = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt"


def test_the_weights_of_one_layer_are_scaled(tmp_path: Path) -> None:
    target = scale_layer(CHECKPOINT, tmp_path / "run" / "checkpoints" / "epoch_5.pt", 1, 1.05)
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (CHECKPOINT, target))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("layers.1.") and name.endswith("weight")}
    assert all(torch.equal(after[name], before[name] * 1.05) for name in changed)
    assert (tmp_path / "run" / "params.txt").is_file(), "the configuration lies next to the checkpoints"


@pytest.mark.parametrize("content", [None, b"no weights", [torch.zeros(3)], {"state_dict": {}}])
def test_what_cannot_be_damaged_is_refused(tmp_path: Path, content: object) -> None:
    source = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    source.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    with pytest.raises(InvalidRequest, match="--drill-damage"):
        scale_layer(source, tmp_path / "damaged" / "checkpoints" / "epoch_1.pt", 1, 1.05)
    assert not (tmp_path / "damaged").exists()
