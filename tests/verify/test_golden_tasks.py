"""Rows of whole tasks on the miniature."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from evalsvc.errors import AssetMissing
from evalsvc.tasks.text_to_image import pipeline
from evalsvc.verify.agreement import Finding
from evalsvc.verify.golden_checks import verify_benchmark, verify_digits, verify_losses
from evalsvc.verify.golden_files import Golden

Wrong = Callable[[list[Finding]], list[str]]

pytestmark = pytest.mark.usefixtures("one_thread", "many_cases")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    monkeypatch.setenv("EVALSVC_THREADS", "1")


def changed(golden: Golden, change: Callable[[dict[str, Any]], None]) -> Golden:
    path = golden.folder / "values.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return Golden("cpu", golden.folder)


def test_losses_are_those_over_open_lms_logits(copied: Golden, wrong: Wrong) -> None:
    assert wrong(list(verify_losses(copied))) == []

    def change(content: dict[str, Any]) -> None:
        content["losses"]["pairs"]["image"] += 1e-3

    assert wrong(list(verify_losses(changed(copied, change)))) == ["task loss: pairs/image"]


def test_a_benchmark_is_answered_as_under_lm_eval(copied: Golden, wrong: Wrong) -> None:
    assert wrong(list(verify_benchmark(copied))) == []

    def change(content: dict[str, Any]) -> None:
        content["cloze"]["accuracy"] += 1 / 60
        content["cloze"]["scores"][59][3] += 1e-3
        content["cloze"]["ids"][0][0] += 1

    rows = ["token ids", "task language: cloze/acc", "task language: log-likelihoods"]
    assert wrong(list(verify_benchmark(changed(copied, change)))) == rows


def test_without_the_network_the_image_task_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(tmp_path))
    with pytest.raises(AssetMissing, match="evalsvc assets pull inception"):
        list(verify_digits(Golden("cpu")))


def test_pixels_that_are_cut_instead_of_rounded_move_fid(
    inception_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Wrong
) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))

    def cut(images: Tensor) -> Tensor:
        return ((images + 1) * 127.5).clamp(0, 255).byte()

    monkeypatch.setattr(pipeline, "to_uint8", cut)
    assert wrong(list(verify_digits(Golden("cpu")))) == ["task text_to_image: fid64"]
