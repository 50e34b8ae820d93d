"""The gate on the real thing: losses of the last checkpoint of the miniature, and of one that something happened to."""

import json
from pathlib import Path

import pytest
import torch
from gate_documents import read_document
from metric_items import value_of_items

from evalsvc.checkpoints.reference import CheckpointRef, identify
from evalsvc.compare.gate import compare
from evalsvc.compare.gate_report import Outcome
from evalsvc.compare.result import Result
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.worker import context
from evalsvc.worker.local import run_suite
from evalsvc.worker.models import ModelCache


@pytest.fixture(autouse=True)
def _worker(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    monkeypatch.setattr(context, "_models", ModelCache())


@pytest.fixture
def suite() -> Suite:
    task = {"kind": "loss", "name": "pairs", "data": str(ROOT / "heldout_pairs.jsonl"), "limit": 48}
    return parse_suite({"tasks": [task]}, "pairs")


def measure(suite: Suite, weights: Path) -> Result:
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml")).to_json()
    model = json.loads((ROOT / "runs" / "pretrained" / "open_lm_miniature.json").read_text())
    checkpoint = CheckpointRef(str(weights), identify(weights), model=model, layout=layout, label=weights.name)
    found = run_suite(suite, checkpoint, lambda *_: None)
    assert found.errors == {}
    content = json.dumps(found.model_copy(update={"artifacts": {}}).model_dump())
    return read_document(weights.name, json.loads(content))


def test_noise_on_one_layer_is_caught(suite: Suite, tmp_path: Path) -> None:
    """Noise of half the weights' own deviation: the loss of images rises by less than its error, and only pairing
    shows it."""
    healthy = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt"
    content = torch.load(healthy, weights_only=True)
    weight = content["state_dict"]["layers.1.feed_forward.w3.weight"]
    weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    torch.save(content, tmp_path / "damaged.pt")
    baseline, damaged = measure(suite, healthy), measure(suite, tmp_path / "damaged.pt")
    assert compare(measure(suite, healthy), baseline).outcome == Outcome.PASSED
    found = compare(damaged, baseline)
    assert found.outcome == Outcome.REGRESSION
    by_name = {one.metric: one for one in found.comparisons}
    assert by_name["pairs/image"].verdict == "worse"
    for one in found.comparisons:
        if one.difference and one.difference.basis == "paired":
            assert one.difference.n == 48


def test_every_value_is_made_of_its_items(suite: Suite) -> None:
    measured = measure(suite, ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt")
    made = [metric for metric in measured.document.metrics if metric.items]
    losses = [f"pairs/{name}" for name in ("text", "image", "special", "total", "text_within", "image_within")]
    perplexities = [f"{name}_perplexity" for name in losses]
    assert {metric.name for metric in made} == {*losses, *perplexities, "pairs/image_mass"}
    for metric in made:
        expected = value_of_items(vars(metric), measured.document.items["pairs"])
        assert metric.value == pytest.approx(expected, rel=1e-12)
