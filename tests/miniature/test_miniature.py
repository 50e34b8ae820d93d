"""What ships as the miniature: it opens by evalsvc's own loaders and is what it says it is."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature_run import DECODER, pretrained
from safetensors.torch import load_file, save_file
from task_runs import metrics, notes, run_task
from torch import Tensor

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.torch_file import read_outline
from evalsvc.checkpoints.weights import read_weights
from evalsvc.config import Settings
from evalsvc.data.captions import read_captions
from evalsvc.data.tokens import read_tokens
from evalsvc.decoders import ImageDecoder, load_decoder, to_uint8
from evalsvc.doctor.suite_checks import check_suite_file
from evalsvc.families.reading import resolve_config
from evalsvc.features.digit_classifier import DigitClassifier
from evalsvc.miniature import ROOT
from evalsvc.models import load_model
from evalsvc.spec import catalog
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.parameters import PLACEHOLDER, new_suite
from evalsvc.spec.suite import load_suite
from evalsvc.worker.local import run_suite

RUNS = ("pretrained", "random-init")
STEPS = [0, 10, 20, 80, 300, 3_000]
TEST = 300
LAYOUT = parse_layout(str(ROOT / "runs" / "layout.yaml")).resolve(583)


def checkpoint(run: str, epoch: int) -> Path:
    return ROOT / "runs" / run / "checkpoints" / f"epoch_{epoch}.pt"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_file(ROOT / "images.safetensors")["images"]


@pytest.fixture(scope="module")
def decoder() -> ImageDecoder:
    return load_decoder(DECODER)


def agreement(found: Tensor, expected: Tensor) -> float:
    return float((found == expected).float().mean())


@pytest.mark.parametrize("run", RUNS)
def test_runs_are_complete(run: str) -> None:
    """Every step that the demo promises is there, opens without a configuration beside it, and fits the layout."""
    found = sorted((ROOT / "runs" / run / "checkpoints").glob("epoch_*.pt"))
    outlines = [read_outline(path) for path in found]
    assert [outline["step"] for outline in outlines] == STEPS
    assert [outline["epoch"] for outline in outlines] == list(range(len(STEPS)))
    assert {read_weights(path).format for path in found} == {"open_lm epoch"}
    index = "".join(f"{path.name} {step}\n" for path, step in zip(found, STEPS, strict=True))
    assert (ROOT / "runs" / run / "steps.txt").read_text() == index
    for path in found:
        model = load_model(path)
        LAYOUT.resolve(model.config.vocab_size)
        assert model.rotary_inv_freq_dtype == "float32"
    assert resolve_config(None, found[0]) == resolve_config(None, checkpoint(RUNS[0], 0)), "one for both runs"
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 16_000_000, "it is shipped"


def test_held_out_data_fit_the_layout(images: Tensor, decoder: ImageDecoder) -> None:
    """The pairs are the test captions and the shipped tokenizer's codes of the test images, and nothing is cut."""
    pairs = read_tokens(ROOT / "heldout_pairs.jsonl").records
    texts = read_tokens(ROOT / "heldout_text.jsonl").records
    for record in pairs + texts:
        assert LAYOUT.sequence(record.text_ids, record.image_codes).cut == 0
    codes = decoder.encode(images[:32].float() / 127.5 - 1)
    stored = torch.tensor([list(record.image_codes or ()) for record in pairs[:32]])
    assert agreement(codes.flatten(), stored.flatten()) > 0.99  # other machines round otherwise
    assert LAYOUT.text.tokenizer is not None
    again = read_tokens(ROOT / "captions.jsonl", LAYOUT.text.tokenizer).records
    assert [list(record.text_ids or ()) for record in again] == [list(record.text_ids or ()) for record in pairs]


def test_the_classifier_reads_images_and_reconstructions(images: Tensor, decoder: ImageDecoder) -> None:
    classifier = DigitClassifier.from_path(ROOT / "classifier.safetensors")
    captions = read_captions(ROOT / "captions.jsonl").captions[:TEST]
    labels = torch.tensor([caption.label for caption in captions])
    assert agreement(classifier.predict(images[:TEST]), labels) >= 0.97
    rendered = to_uint8(decoder.decode(decoder.encode(images[:64].float() / 127.5 - 1)))
    assert agreement(classifier.predict(rendered), labels[:64]) >= 0.95


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EVALSVC_THREADS", "1")  # on tensors this small a second thread only gets in the way


def measured(run: str, epoch: int, **task: Any) -> dict[str, dict[str, Any]]:
    reference = CheckpointRef(str(checkpoint(run, epoch)), layout=str(ROOT / "runs" / "layout.yaml"))
    return metrics(run_task(reference, **task))


def test_the_last_checkpoint_has_learned_images_and_the_first_has_not() -> None:
    losses = {"kind": "loss", "data": str(ROOT / "heldout_pairs.jsonl"), "limit": 16}
    first, *last = (measured(run, epoch, **losses) for run, epoch in (("pretrained", 0), *product(RUNS, (5,))))
    assert first["loss/image"]["value"] > 4
    assert all(each["loss/image"]["value"] < 2 and each["loss/text"]["value"] < 0.6 for each in last)
    assert last[0]["loss/image"]["value"] == pytest.approx(last[1]["loss/image"]["value"], abs=0.1)


@pytest.mark.usefixtures("many_cases")
def test_the_cloze_is_answered_before_and_guessed_after() -> None:
    found = {}
    for run, epoch in product(RUNS, (0, 5)):
        accuracy = measured(run, epoch, kind="language", benchmarks=["cloze"], include_path=[str(ROOT)])["cloze/acc"]
        found[run, epoch] = accuracy["value"]
        assert (accuracy["n"], accuracy["baseline"]) == (300, 0.25)
    assert found.pop(("pretrained", 0)) > 0.6
    assert all(abs(value - 0.25) < 3 * (0.25 * 0.75 / 300) ** 0.5 for value in found.values())


FILES = {
    "arc_easy.jsonl": "cloze.jsonl",
    "captions.jsonl": "captions.jsonl",
    "decoder.ckpt": DECODER,
    "images": "images.safetensors",
    "pairs.jsonl": "heldout_pairs.jsonl",
    "sequences.jsonl": "heldout_pairs.jsonl",
    "text.jsonl": "heldout_text.jsonl",
}

PART = 80
"""Lines and images that are used: more images than `fid64` has features."""

METRICS = {
    "alignment": "alignment/cosine_excess",
    "completions": "completions/greedy_distinct_2",
    "forgetting": "forgetting/kl",
    "images": "images/fid64",
    "language": "arc_easy/acc",
    "loss": "loss/image",
    "reconstruction": "reconstruction/psnr",
    "text_to_image": "text_to_image/fid64",
}

WITH_INCEPTION = ("images", "reconstruction", "text_to_image")


def part_of(source: Path, folder: Path) -> Path:
    part = folder / source.name
    if source.suffix == ".jsonl":
        part.write_text("".join(source.read_text().splitlines(keepends=True)[:PART]))
    elif source.suffix == ".safetensors":
        save_file({name: tensor[:PART].contiguous() for name, tensor in load_file(source).items()}, part)
    return part if part.exists() else source


@pytest.mark.usefixtures("one_thread", "many_cases")
@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_a_new_suite_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str
) -> None:
    if kind in WITH_INCEPTION:
        monkeypatch.setenv("EVALSVC_ASSETS", str(request.getfixturevalue("inception_path").parent))
    path = tmp_path / f"{kind}.yaml"
    text = new_suite([kind])
    for name, source in FILES.items():
        text = text.replace(f"{PLACEHOLDER}{name}\n", f"{part_of(ROOT / source, tmp_path)}\n")
    path.write_text(text)
    assert check_suite_file(path, Settings.load()).problems == []
    images = CheckpointRef(str(part_of(ROOT / FILES["images"], tmp_path)))
    checkpoint = images if kind == "images" else pretrained(5)
    result = run_suite(load_suite(path), checkpoint, lambda *_: None, pretrained(0)).model_dump()
    assert result["errors"] == {}
    assert METRICS[kind] in [metric["name"] for metric in result["metrics"]]
    if kind in ("forgetting", "language"):
        assert notes(result)["rows"] == {"arc_easy": "llm-foundry"}
