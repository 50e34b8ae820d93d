"""Images of the bundled run, made again and measured by torch-fidelity and clean-fid on FID's own network."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from miniature_run import DECODER, pretrained
from safetensors.torch import load_file, save_file

from evalsvc.config import Settings
from evalsvc.features import inception
from evalsvc.miniature import ROOT
from evalsvc.spec.documents.reading import content_of
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.verify import recorded
from evalsvc.verify.agreement import Finding, Untried
from evalsvc.verify.recorded import RecordedMetric, RecordedTask, VerifyRequest, unrecorded, verify_tasks
from evalsvc.worker import context
from evalsvc.worker.local import run_suite
from evalsvc.worker.models import CompanionCache

IMAGES = 66
"""Of each kind: more than the features of `fid64`."""


@pytest.fixture(scope="module")
def suite(inception_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    reference = tmp_path_factory.mktemp("reference") / "images.safetensors"
    save_file({"images": load_file(ROOT / "images.safetensors")["images"][:IMAGES]}, reference)
    common = {"decoder": DECODER, "extractor": str(inception_path), "samples": IMAGES}
    captions = {"captions": str(ROOT / "captions.jsonl"), "reference": str(reference), "metrics": ["fid64"]}
    tasks = [
        {"kind": "text_to_image", "name": "digits", "batch": 33, "keep": 0, **common, **captions},
        {"kind": "reconstruction", "name": "decoder", "images": str(reference), **common},
    ]
    return parse_suite({"tasks": tasks}, "images")


@pytest.fixture(scope="module")
def digits(suite: Suite) -> RecordedTask:
    """The first task as a service records it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALSVC_THREADS", "1")
        chosen = Suite(suite.name, "", suite.tasks[:1])
        result: Mapping[str, Any] = content_of(run_suite(chosen, pretrained(5), lambda *_: None))
    assert result["errors"] == {}
    metrics = [
        RecordedMetric(metric["name"], metric["value"], metric["n"], result["protocols"][metric["protocol"]])
        for metric in result["metrics"]
    ]
    [task] = unrecorded(chosen, pretrained(5))
    return replace(task, metrics=metrics, items=result["items"]["digits"], provenance=result["provenance"]["digits"])


@pytest.fixture(autouse=True)
def _images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is verified in test_decoding.py: importing what verifies it takes seconds."""
    monkeypatch.setattr(recorded, "VERIFIERS", {kind: targets[:1] for kind, targets in recorded.VERIFIERS.items()})


def verify(task: RecordedTask, n: int, *metrics: str, output: Path | None = None) -> list[Finding]:
    return verify_tasks([task], VerifyRequest(Settings.load(threads=1), metrics, n, output))


def programs(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.program.split()[0], finding.verdict) for finding in findings]


def test_other_programs_agree_on_what_was_recorded(digits: RecordedTask) -> None:
    findings = verify(digits, 1000)
    assert programs(findings) == [("recorded", "ok"), ("torch-fidelity", "ok"), ("clean-fid", "ok"), ("recorded", "ok")]
    codes, first, second, _ = findings
    assert (codes.quantity, codes.difference) == (f"codes of {IMAGES} images of digits", 0)
    assert abs(first.ours - second.ours) > 10 * first.tolerance, "the two ways of resizing are different metrics"


def test_a_wrong_network_is_found(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_companions", CompanionCache())
    monkeypatch.setattr(inception, "EPSILON", 2e-3)
    [_, decoder] = unrecorded(suite, pretrained(5))
    assert programs(verify(decoder, 12, "decoder/fid64")) == [("torch-fidelity", "WRONG"), ("clean-fid", "WRONG")]


def test_of_fewer_images_only_the_programs_are_compared(digits: RecordedTask, tmp_path: Path) -> None:
    """As many real images as sampled ones; the files are numbered, whatever the task is called."""
    few, *others, last = verify(digits, 12, output=tmp_path / "files")
    assert few.quantity == "codes of 12 images of digits"
    assert programs(others) == [("torch-fidelity", "ok"), ("clean-fid", "ok")]
    assert isinstance(last, Untried)
    assert last.reason == f"the recorded value is of all {IMAGES} images; use --n {IMAGES}"
    counts = {folder.name: len(list(folder.glob("*.png"))) for folder in (tmp_path / "files" / "0").iterdir()}
    assert counts == {"sampled": 12, "real": 12}


def test_reconstructions_are_verified_too(suite: Suite) -> None:
    """With fewer images than features, where the programs' formulas differ by more than rounding."""
    [_, decoder] = unrecorded(suite, pretrained(5))
    findings = verify(decoder, 12, "decoder/fid64")
    assert programs(findings) == [("torch-fidelity", "ok"), ("clean-fid", "ok")]
    assert all("no FID to report" in finding.note for finding in findings)


def test_metrics_of_no_other_program_are_named(digits: RecordedTask) -> None:
    [found] = verify(digits, 12, "digits/clip_score")
    assert isinstance(found, Untried)
    assert found.reason.endswith("available: fid64, fid, kid, precision, recall")
