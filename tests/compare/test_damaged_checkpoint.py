"""A checkpoint with one layer's weights scaled by 1.05, in the middle of a run: what the gate finds, and where.

The damaged step is held against the undamaged checkpoint of the same step: between these the noise is that of the same
items, so little is hidden. Against an earlier step the progress of the training hides the damage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from miniature_run import LAYOUT
from service_process import ServiceProcess

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.client import Client
from evalsvc.compare.gate import compare, run_gate
from evalsvc.compare.gate_report import Outcome, Report
from evalsvc.compare.gate_rules import EVERYTHING
from evalsvc.compare.result import Result
from evalsvc.compare.source import Service
from evalsvc.miniature import ROOT
from evalsvc.spec.suite import parse_suite
from evalsvc.worker import context
from evalsvc.worker.local import run_suite
from evalsvc.worker.models import ModelCache

pytestmark = pytest.mark.usefixtures("many_cases")

RUN = ROOT / "runs" / "pretrained"
EPOCHS = {80: 3, 300: 4, 3000: 5}
"""Files of the run, by training step."""
MIDDLE, LAST = 300, 3000
FACTOR = 1.05
LAYERS = (0, 1, 2)
TASKS = [{"kind": "loss", "name": "pairs", "data": str(ROOT / "heldout_pairs.jsonl")}]
IMAGE, TEXT = "pairs/image", "pairs/text"

Place = tuple[int, int]
"""Step and layer of damaged weights."""
Measure = Callable[[Path], Result]


def weights_of(step: int) -> Path:
    return RUN / "checkpoints" / f"epoch_{EPOCHS[step]}.pt"


def damage(step: int, layer: int, folder: Path) -> Path:
    """Write the checkpoint of a step with one layer's weights scaled, as a run of its own."""
    content = torch.load(weights_of(step), weights_only=True)
    inside = [name for name in content["state_dict"] if re.fullmatch(rf"layers\.{layer}\..*weight", name)]
    assert len(inside) == 6
    for name in inside:
        content["state_dict"][name] *= FACTOR
    path = folder / f"step_{step}_layer_{layer}" / "checkpoints" / weights_of(step).name
    path.parent.mkdir(parents=True)
    for neighbour in RUN.glob("*.*"):
        (path.parents[1] / neighbour.name).write_bytes(neighbour.read_bytes())
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Place, Path]:
    """Damaged weights."""
    folder = tmp_path_factory.mktemp("damaged")
    return {(step, layer): damage(step, layer, folder) for step in (MIDDLE, LAST) for layer in LAYERS}


@pytest.fixture(scope="module")
def measure() -> Measure:
    """Evaluates weights, each once."""
    measured: dict[Path, Result] = {}

    def evaluate(weights: Path) -> Result:
        if weights not in measured:
            reference = CheckpointRef(str(weights), layout=LAYOUT, label=weights.name)
            found = run_suite(parse_suite({"tasks": TASKS}, "losses"), reference, lambda *_: None)
            assert found.errors == {}
            measured[weights] = Result(weights.name, found)
        return measured[weights]

    return evaluate


@pytest.fixture(autouse=True)
def _worker(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    monkeypatch.setattr(context, "_models", ModelCache())


def worse(report: Report) -> set[str]:
    return {comparison.metric for comparison in report.comparisons if comparison.verdict == "worse"}


@pytest.mark.parametrize(("layer", "expected"), [(0, {IMAGE, TEXT}), (1, {TEXT}), (2, {IMAGE, TEXT})])
def test_the_same_step_undamaged_shows_the_damage(
    measure: Measure, damaged: Mapping[Place, Path], layer: int, expected: set[str]
) -> None:
    """In the middle of the run, the loss of captions finds each layer. That of images lacks one, so judge both."""
    report = compare(measure(damaged[MIDDLE, layer]), measure(weights_of(MIDDLE)))
    assert report.outcome == Outcome.REGRESSION
    assert worse(report) & {IMAGE, TEXT} == expected, [(each.metric, each.reason) for each in report.comparisons]
    for comparison in report.comparisons:
        assert comparison.difference is not None
        assert (comparison.difference.basis, comparison.difference.n) == ("paired", 300)


@pytest.mark.parametrize("layer", LAYERS)
def test_at_the_end_of_the_run_the_image_loss_finds_each_layer(
    measure: Measure, damaged: Mapping[Place, Path], layer: int
) -> None:
    report = compare(measure(damaged[LAST, layer]), measure(weights_of(LAST)))
    assert IMAGE in worse(report), [(each.metric, each.reason) for each in report.comparisons]


@pytest.mark.parametrize("layer", LAYERS)
def test_an_earlier_step_hides_the_damage(measure: Measure, damaged: Mapping[Place, Path], layer: int) -> None:
    """Why the baseline of a gate is the same step of a run that is trusted: training gained more than damage cost."""
    report = compare(measure(damaged[MIDDLE, layer]), measure(weights_of(80)))
    assert IMAGE not in worse(report)
    [image] = [comparison for comparison in report.comparisons if comparison.metric == IMAGE]
    assert image.verdict == "better"


@pytest.mark.usefixtures("child_process")
def test_the_gate_of_the_service_names_the_damaged_step(damaged: Mapping[Place, Path], tmp_path: Path) -> None:
    """Two runs are posted, equal but for one checkpoint in the middle; each step is gated against the other run's."""
    service = ServiceProcess(tmp_path / "service", "--devices", "cpu", "--threads", "1").start()
    try:
        service.put_suite("losses", *TASKS)
        layout = str(ROOT / "runs" / "layout.yaml")
        evaluations = []
        for step in EPOCHS:
            evaluations += service.post("trusted", step, weights_of(step), ["losses"], layout=layout)
            weights = damaged[MIDDLE, 0] if step == MIDDLE else weights_of(step)
            evaluations += service.post("suspect", step, weights, ["losses"], layout=layout)
        for evaluation in evaluations:
            assert service.wait(evaluation)["state"] == "succeeded"
        with Client(service.url) as client:
            reports = {
                step: run_gate(f"suspect@{step}", f"trusted@{step}", EVERYTHING, Service(client)) for step in EPOCHS
            }
    finally:
        service.stop()
    outcomes = {step: report.outcome for step, report in reports.items()}
    assert outcomes == {80: Outcome.PASSED, MIDDLE: Outcome.REGRESSION, 3000: Outcome.PASSED}
    assert {IMAGE, TEXT} <= worse(reports[MIDDLE])
