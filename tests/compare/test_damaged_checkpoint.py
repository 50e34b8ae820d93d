"""The gate on the real thing: losses of the bundled run, and of checkpoints that something happened to.

A damaged checkpoint has one layer's weights scaled by 1.05. It is held against the undamaged checkpoint of the same
step: between these the noise is that of the same items, so little is hidden. Against an earlier step the progress of
the training hides the damage.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from gate_documents import read_document
from metric_items import value_of_items
from miniature_run import LAYOUT

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.compare.gate import compare
from evalsvc.compare.gate_report import Outcome
from evalsvc.compare.result import Result
from evalsvc.miniature import ROOT
from evalsvc.spec.suite import parse_suite
from evalsvc.worker import context
from evalsvc.worker.local import run_suite
from evalsvc.worker.models import ModelCache

RUN = ROOT / "runs" / "pretrained"
EPOCHS = {80: 3, 300: 4, 3000: 5}
"""Files of the run, by training step."""
MIDDLE, LAST = 300, 3000
IMAGE, TEXT = "pairs/image", "pairs/text"

Measure = Callable[[Path], Result]


def weights_of(step: int) -> Path:
    return RUN / "checkpoints" / f"epoch_{EPOCHS[step]}.pt"


@pytest.fixture(autouse=True)
def _worker(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    monkeypatch.setattr(context, "_models", ModelCache())


def measuring(**parameters: object) -> Measure:
    task = {"kind": "loss", "name": "pairs", "data": str(ROOT / "heldout_pairs.jsonl"), **parameters}
    model = json.loads((RUN / "open_lm_miniature.json").read_text())
    measured: dict[Path, Result] = {}

    def evaluate(weights: Path) -> Result:
        if weights not in measured:
            reference = CheckpointRef(str(weights), model=model, layout=LAYOUT, label=weights.name)
            result = run_suite(parse_suite({"tasks": [task]}, "pairs"), reference, lambda *_: None)
            assert result.errors == {}
            content = json.dumps(result.model_copy(update={"artifacts": {}}).model_dump())
            measured[weights] = read_document(weights.name, json.loads(content))
        return measured[weights]

    return evaluate


@pytest.fixture(scope="module")
def measure() -> Measure:
    return measuring()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[int, int], Path]:
    folder, files = tmp_path_factory.mktemp("damaged"), {}
    for step in (MIDDLE, LAST):
        for layer in range(3):
            content = torch.load(weights_of(step), weights_only=True)
            inside = [name for name in content["state_dict"] if re.fullmatch(rf"layers\.{layer}\..*weight", name)]
            assert len(inside) == 6
            for name in inside:
                content["state_dict"][name] *= 1.05
            files[step, layer] = folder / f"step_{step}_layer_{layer}.pt"
            torch.save(content, files[step, layer])
    return files


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize(
    ("step", "layer", "baseline", "verdicts"),
    [
        *((MIDDLE, layer, MIDDLE, {IMAGE: "worse", TEXT: "worse"}) for layer in (0, 2)),
        (MIDDLE, 1, MIDDLE, {IMAGE: "within_tolerance", TEXT: "worse"}),
        *((LAST, layer, LAST, {IMAGE: "worse"}) for layer in range(3)),
        *((MIDDLE, layer, 80, {IMAGE: "better"}) for layer in range(3)),
    ],
)
def test_the_table_of_the_page(
    measure: Measure,
    damaged: Mapping[tuple[int, int], Path],
    step: int,
    layer: int,
    baseline: int,
    verdicts: dict[str, str],
) -> None:
    """In the middle of the run, the loss of captions finds each layer. That of images lacks one, so judge both."""
    report = compare(measure(damaged[step, layer]), measure(weights_of(baseline)))
    assert {each.metric: each.verdict for each in report.comparisons if each.metric in verdicts} == verdicts
    for comparison in report.comparisons:
        assert (comparison.difference.basis, comparison.difference.n) == ("paired", 300)


def test_noise_on_one_layer_is_caught(tmp_path: Path) -> None:
    """Noise of half the weights' own deviation: the loss of images rises by less than its error, and only pairing
    shows it. Every value is made of its items."""
    measure, healthy = measuring(limit=48), weights_of(LAST)
    content = torch.load(healthy, weights_only=True)
    weight = content["state_dict"]["layers.1.feed_forward.w3.weight"]
    weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    torch.save(content, tmp_path / "damaged.pt")
    assert compare(measuring(limit=48)(healthy), measure(healthy)).outcome == Outcome.PASSED
    report = compare(measure(tmp_path / "damaged.pt"), measure(healthy))
    assert report.outcome == Outcome.REGRESSION
    assert {each.metric: each.verdict for each in report.comparisons}[IMAGE] == "worse"
    assert {each.difference.n for each in report.comparisons if each.basis == "paired"} == {48}
    document = measure(healthy).document
    made = [metric for metric in document.metrics if metric.items]
    losses = [f"pairs/{name}" for name in ("text", "image", "special", "total", "text_within", "image_within")]
    assert {metric.name for metric in made} == {*losses, *(f"{name}_perplexity" for name in losses), "pairs/image_mass"}
    for metric in made:
        assert metric.value == pytest.approx(value_of_items(vars(metric), document.items["pairs"]), rel=1e-12)
