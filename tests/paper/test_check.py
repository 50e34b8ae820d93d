"""The check that shares no code with evalsvc, so that both would have to be wrong in the same way."""

from __future__ import annotations

import pytest
import torch
import yaml
from check import mean, paired_error, sequence
from plain_model import PlainModel

from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.miniature import ROOT as MINIATURE
from evalsvc.models import load_model
from evalsvc.spec.layout import parse_layout


def test_the_plain_model_of_the_check_is_the_transformer() -> None:
    """The check shares no code with evalsvc, so that both would have to be wrong in the same way."""
    run = MINIATURE / "runs" / "pretrained"
    checkpoint = run / "checkpoints" / "epoch_3.pt"
    ids = list(range(3, 120, 2))
    plain = PlainModel(checkpoint, run / "open_lm_miniature.json").losses(ids)
    with torch.inference_mode():
        logits = load_model(checkpoint)(torch.tensor([ids[:-1]])).double()[0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    assert torch.allclose(plain, expected, atol=2e-5)


def test_the_plain_sequences_of_the_check_are_the_layouts() -> None:
    path = MINIATURE / "runs" / "layout.yaml"
    plain, layout = yaml.safe_load(path.read_text()), parse_layout(str(path)).resolve(583)
    assert sequence(plain, [5, 6], [0, 63]) == layout.sequence([5, 6], [0, 63]).ids
    assert sequence(plain, [5, 6], None) == layout.sequence([5, 6], None).ids


def test_the_paired_error_of_the_check_is_that_of_the_metrics() -> None:
    before = [(10.0, 5), (12.0, 4), (9.0, 6), (20.0, 9)]
    after = [(11.0, 5), (11.5, 4), (10.0, 6), (19.0, 9)]
    counts = [row[1] for row in before]
    moved = ratio_of_sums([b[0] - a[0] for a, b in zip(before, after, strict=True)], counts)
    assert moved is not None
    assert moved.stderr == pytest.approx(paired_error(before, after))
    assert moved.value == pytest.approx(mean(after) - mean(before))
