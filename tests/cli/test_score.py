"""`evalsvc score`: external images on this machine, and the lines that a service answers with."""

import json
from pathlib import Path

import pytest
from console import Shell
from PIL import Image
from safetensors.numpy import load_file

from evalsvc.miniature import ROOT

SUITE = f"tasks: [{{kind: images, name: digits, classifier: {ROOT}/classifier.safetensors, metrics: [agreement]}}]"


@pytest.fixture(autouse=True)
def samples(tmp_path: Path) -> Path:
    (folder := tmp_path / "samples").mkdir()
    (tmp_path / "digits.yaml").write_text(SUITE)
    pixels = load_file(ROOT / "images.safetensors")["images"].transpose(0, 2, 3, 1)
    lines = (ROOT / "captions.jsonl").read_text().splitlines()[:12]
    for caption in map(json.loads, lines):
        Image.fromarray(pixels[caption["image"]]).save(folder / f"{caption['id']}.png")
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return folder


def test_a_folder_on_this_machine(evalsvc: Shell, tmp_path: Path) -> None:
    line = "score samples --prompts prompts.jsonl --suite digits.yaml --device cpu --output result.json"
    result = evalsvc(line)
    assert (result.code, "digits/agreement (external images)" in result.out) == (0, True), result.err
    document = json.loads((tmp_path / "result.json").read_text())
    [metric], [protocol] = document["metrics"], document["protocols"].values()
    assert (metric["n"], protocol["sampling"]) == (12, "external")
    assert len(document["checkpoint"]["sha256"]) == 64
    assert ",external images," in evalsvc("compare result.json result.json --format csv").out
    (tmp_path / "samples" / "digit-10.png").unlink()
    refused = evalsvc(line)
    assert (refused.code, "the prompt 'digit-10' has no image" in refused.err) == (2, True)


def test_what_each_missing_input_would_add_is_told(evalsvc: Shell) -> None:
    """With the suite that comes with evalsvc, whoever gives only images would see none of the metrics' names."""
    result = evalsvc("score samples --device cpu")
    assert "since there is no `reference`: " in result.err.replace("\n", " ") or "inception" in result.err, result.err
