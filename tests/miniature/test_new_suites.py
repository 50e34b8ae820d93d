"""A suite from `evalsvc suites new` runs on the miniature as it is, but for its paths."""

from pathlib import Path

import pytest
from miniature_run import DECODER, pretrained
from safetensors.torch import load_file, save_file
from task_runs import notes

from evalsvc.config import Settings
from evalsvc.doctor.suite_checks import check_suite_file
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.parameters import PLACEHOLDER, new_suite
from evalsvc.spec.suite import load_suite
from evalsvc.worker.local import run_suite

FILES = {
    "arc_easy.jsonl": "cloze.jsonl",
    "captions.jsonl": "captions.jsonl",
    "decoder.ckpt": DECODER,
    "images": "images.safetensors",
    "pairs.jsonl": "heldout_pairs.jsonl",
    "sequences.jsonl": "heldout_pairs.jsonl",
    "text.jsonl": "heldout_text.jsonl",
}
"""Files of the miniature for the paths to replace."""

PART = 80
"""Lines and images that are used: more images than `fid64` has features."""

METRICS = {
    "alignment": "alignment/cosine_excess",
    "completions": "completions/greedy_distinct_2",
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
    for name, source in FILES.items():
        text = text.replace(f"{PLACEHOLDER}{name}\n", f"{_part_of(ROOT / source, folder)}\n")
    path.write_text(text)
    assert check_suite_file(path, Settings.load()).problems == []
    result = run_suite(load_suite(path), pretrained(5), lambda *_: None, pretrained(0)).model_dump()
    assert result["errors"] == {}
    assert METRICS[kind] in [metric["name"] for metric in result["metrics"]]
    if kind in ("forgetting", "language"):
        assert notes(result)["rows"] == {"arc_easy": "llm-foundry"}


def _part_of(source: Path, folder: Path) -> Path:
    """A file with the beginning of a file of the miniature; a decoder is used as it is."""
    part = folder / source.name
    if source.suffix == ".jsonl":
        part.write_text("".join(source.read_text().splitlines(keepends=True)[:PART]))
    elif source.suffix == ".safetensors":
        save_file({name: tensor[:PART].contiguous() for name, tensor in load_file(source).items()}, part)
    return part if part.exists() else source


def test_every_kind_is_run() -> None:
    assert set(METRICS) == set(catalog.COMPONENTS["tasks"])


@pytest.mark.usefixtures("one_thread", "many_cases")
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
