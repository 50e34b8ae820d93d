"""A suite from `evalsvc suites new` runs on the miniature as it is, but for its paths."""

from pathlib import Path

import pytest
from miniature_run import DECODER, pretrained

from evalsvc.config import Settings
from evalsvc.doctor.suite_checks import check_suite_file
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.new_suite import PLACEHOLDER, new_suite
from evalsvc.spec.suite import load_suite
from evalsvc.worker.local import run_suite

PATHS = {
    "arc_easy.jsonl": ROOT / "cloze.jsonl",
    "captions.jsonl": ROOT / "captions.jsonl",
    "decoder.ckpt": Path(DECODER),
    "images": ROOT / "images.safetensors",
    "pairs.jsonl": ROOT / "heldout_pairs.jsonl",
    "sequences.jsonl": ROOT / "heldout_pairs.jsonl",
    "text.jsonl": ROOT / "heldout_text.jsonl",
}
"""Files of the miniature for the paths to replace."""

METRICS = {
    "alignment": "alignment/cosine_excess",
    "completions": "completions/distinct_2",
    "forgetting": "forgetting/kl",
    "language": "arc_easy/acc",
    "loss": "loss/image",
    "reconstruction": "reconstruction/psnr",
    "text_to_image": "text_to_image/fid64",
}
"""A metric that a suite of each kind of task gives."""

WITH_INCEPTION = ("reconstruction", "text_to_image")


def run_new_suite(kind: str, folder: Path) -> None:
    path = folder / f"{kind}.yaml"
    text = new_suite([kind])
    for name, file in PATHS.items():
        text = text.replace(f"{PLACEHOLDER}{name}\n", f"{file}\n")
    path.write_text(text)
    assert check_suite_file(path, Settings.load()).problems == []
    result = run_suite(load_suite(path), pretrained(5), lambda *_: None, pretrained(0))
    assert result["errors"] == {}
    assert METRICS[kind] in [metric["name"] for metric in result["metrics"]]


def test_every_kind_is_run() -> None:
    assert set(METRICS) == set(catalog.COMPONENTS["tasks"])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", [kind for kind in METRICS if kind not in WITH_INCEPTION])
def test_a_new_suite_runs(tmp_path: Path, kind: str) -> None:
    run_new_suite(kind, tmp_path)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", WITH_INCEPTION)
def test_a_new_suite_with_images_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inception_path: Path, kind: str
) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    run_new_suite(kind, tmp_path)
