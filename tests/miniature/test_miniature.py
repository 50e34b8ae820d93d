"""What ships as the miniature: it opens by evalsvc's own loaders and is what it says it is."""

import json
import re
from collections.abc import Iterable
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.torch_file import read_outline
from evalsvc.checkpoints.weights import read_weights
from evalsvc.data.captions import read_captions
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.data.tokens import read_tokens
from evalsvc.decoders import ImageDecoder, load_decoder, to_uint8
from evalsvc.families.reading import resolve_config
from evalsvc.features.digit_classifier import DigitClassifier
from evalsvc.miniature import ROOT
from evalsvc.models import load_model
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.suite import parse_suite
from evalsvc.worker.local import run_suite

RUNS = ("pretrained", "random-init")
STEPS = [0, 10, 20, 80, 300, 3_000]
TEST = 300


def checkpoint(run: str, epoch: int) -> Path:
    return ROOT / "runs" / run / "checkpoints" / f"epoch_{epoch}.pt"


@pytest.fixture(scope="module")
def layout() -> VocabularyLayout:
    return parse_layout(str(ROOT / "runs" / "layout.yaml")).resolve(583)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_file(ROOT / "images.safetensors")["images"]


@pytest.fixture(scope="module")
def decoder() -> ImageDecoder:
    return load_decoder(ROOT / "movqgan" / "movqgan_miniature.ckpt")


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return DigitClassifier.from_path(ROOT / "classifier.safetensors")


def labels(count: int) -> Tensor:
    captions = read_captions(ROOT / "captions.jsonl").captions[:count]
    return torch.tensor([caption.label for caption in captions])


def agreement(found: Tensor, expected: Tensor) -> float:
    return float((found == expected).float().mean())


def pair_losses(model_path: Path, layout: VocabularyLayout) -> tuple[float, float]:
    """Nats per text token and per image token of 16 test pairs."""
    records = read_tokens(ROOT / "heldout_pairs.jsonl").records[:16]
    sequences = [layout.sequence(record.text_ids, record.image_codes).ids for record in records]
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [layout.special_ids["pad"]] * (width - len(sequence)) for sequence in sequences])
    targets = ids[:, 1:]
    nll = functional.cross_entropy(load_model(model_path)(ids[:, :-1]).transpose(1, 2), targets, reduction="none")
    return float(nll[targets < 512].mean()), float(nll[(targets >= 512) & (targets < 576)].mean())


def test_it_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 16_000_000


@pytest.mark.parametrize("run", RUNS)
def test_runs_are_complete(run: str, layout: VocabularyLayout) -> None:
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
        layout.resolve(model.config.vocab_size)
        assert model.rotary_inv_freq_dtype == "float32"


def test_both_runs_have_one_configuration() -> None:
    first, second = (resolve_config(None, checkpoint(run, 0)) for run in RUNS)
    assert first == second


def test_splits_are_disjoint_and_whole() -> None:
    splits = json.loads((ROOT / "splits.json").read_text())
    together = [index for part in splits.values() for index in part]
    assert sorted(together) == list(range(1_797))
    topics = json.loads((ROOT / "topics.json").read_text())
    assert not topics["train"].keys() & topics["heldout"].keys()
    assert not set(topics["train"].values()) & set(topics["heldout"].values())


def test_captions_name_their_images(images: Tensor) -> None:
    splits = json.loads((ROOT / "splits.json").read_text())
    test = read_captions(ROOT / "captions.jsonl").captions
    validation = read_captions(ROOT / "validation_captions.jsonl").captions
    assert [caption.id for caption in test + validation] == [
        f"digit-{index}" for index in splits["test"] + splits["validation"]
    ]
    assert [caption.image for caption in test + validation] == list(range(len(images)))
    assert len(test) == TEST


def test_held_out_data_fit_the_layout(layout: VocabularyLayout, images: Tensor, decoder: ImageDecoder) -> None:
    """The pairs are the test captions and the shipped tokenizer's codes of the test images, and nothing is cut."""
    pairs = read_tokens(ROOT / "heldout_pairs.jsonl").records
    texts = read_tokens(ROOT / "heldout_text.jsonl").records
    for record in pairs + texts:
        assert layout.sequence(record.text_ids, record.image_codes).cut == 0
    codes = decoder.encode(images[:32].float() / 127.5 - 1)
    stored = torch.tensor([list(record.image_codes or ()) for record in pairs[:32]])
    assert agreement(codes.flatten(), stored.flatten()) > 0.99  # other machines round otherwise
    assert layout.text.tokenizer is not None
    again = read_tokens(ROOT / "captions.jsonl", layout.text.tokenizer).records
    assert [list(record.text_ids or ()) for record in again] == [list(record.text_ids or ()) for record in pairs]


def test_training_pairs_are_those_of_the_training_images(layout: VocabularyLayout) -> None:
    """None of them is held out, so what is learned from them is measured on what it has not seen."""
    splits = json.loads((ROOT / "splits.json").read_text())
    training, held_out = (read_tokens(ROOT / f"{name}_pairs.jsonl").records for name in ("training", "heldout"))
    assert len(training) == len(splits["train"])
    for record in training:
        assert layout.sequence(record.text_ids, record.image_codes).cut == 0
    codes, texts = (
        [{tuple(getattr(record, part)) for record in records} for records in (training, held_out)]
        for part in ("image_codes", "text_ids")
    )
    assert codes[0].isdisjoint(codes[1])
    assert texts[0] >= texts[1]


def test_the_classifier_reads_what_it_was_not_fitted_on(images: Tensor, classifier: DigitClassifier) -> None:
    assert agreement(classifier.predict(images[:TEST]), labels(TEST)) >= 0.97


def test_reconstructions_are_readable(images: Tensor, decoder: ImageDecoder, classifier: DigitClassifier) -> None:
    rendered = to_uint8(decoder.decode(decoder.encode(images[:64].float() / 127.5 - 1)))
    assert agreement(classifier.predict(rendered), labels(64)) >= 0.95


def test_the_last_checkpoint_has_learned_images_and_the_first_has_not(layout: VocabularyLayout) -> None:
    first = pair_losses(checkpoint("pretrained", 0), layout)
    last = [pair_losses(checkpoint(run, len(STEPS) - 1), layout) for run in RUNS]
    assert first[1] > 4
    assert all(image < 2 and text < 0.6 for text, image in last)
    assert last[0][1] == pytest.approx(last[1][1], abs=0.1)


@pytest.fixture(scope="module")
def topics() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "topics.json").read_text())
    return content


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "cloze.jsonl").read_text().splitlines()]


def test_held_out_data_are_what_their_scripts_make(
    topics: dict[str, Any], questions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "miniature")
    cloze, heldout_text, texts = (import_module(name) for name in ("cloze", "heldout_text", "topics"))
    pieces = heldout_text.pieces(topics["heldout"].values(), topics["train"].values())
    assert cloze.questions(pieces, seed=0) == questions
    assert list(texts.chunks(ROOT / "tokenizer.json", pieces)) == [
        list(record.text_ids or ()) for record in read_tokens(ROOT / "heldout_text.jsonl").records
    ]


def runs_of_words(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Every eight words in a row, however they are wrapped or marked; none over the end of a text."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    return [run for text in words for run in zip(*(text[place:] for place in range(8)), strict=False)]


def test_the_held_out_text_was_not_trained_on_and_says_nothing_twice(topics: dict[str, Any]) -> None:
    """Of a split by topic alone, half stood in training topics too, and its loss was in part that of memory; what two
    held-out topics both say counted twice, and standard errors were too small.
    """
    tokenizer = read_tokenizer(ROOT / "tokenizer.json")
    records = read_tokens(ROOT / "heldout_text.jsonl").records
    found = runs_of_words(tokenizer.decode(record.text_ids or ()) for record in records)
    assert len(found) > 3_000
    assert len(set(found)) == len(found)
    assert set(found).isdisjoint(runs_of_words(topics["train"].values()))


def test_the_cloze_asks_what_was_not_trained_on_and_nothing_twice(
    topics: dict[str, Any], questions: list[dict[str, Any]]
) -> None:
    """Topics repeat each other: a split by topic alone had three in five questions from text of a training topic, and
    one in eight asked what another one asks.
    """
    held_out = "\n".join(topics["heldout"].values())
    asked = [f"{question['query']} {question['choices'][question['gold']]}" for question in questions]
    assert all(text in held_out for text in asked)
    assert set(runs_of_words(asked)).isdisjoint(runs_of_words(topics["train"].values()))
    assert len({tuple(re.findall(r"\w+", text.lower())[-8:]) for text in asked}) == len(questions) == 300


def test_the_clozes_options_differ_in_their_order_alone(questions: list[dict[str, Any]]) -> None:
    """Else length or frequency of an option tells, and a model that knows nothing is not at chance."""
    for question in questions:
        assert len(set(question["choices"])) == 4
        assert len({tuple(sorted(choice.split())) for choice in question["choices"]}) == 1
    assert [sum(question["gold"] == place for question in questions) for place in range(4)] == [75] * 4


def test_the_cloze_fits_the_model(questions: list[dict[str, Any]]) -> None:
    tokenizer, config = read_tokenizer(ROOT / "tokenizer.json"), resolve_config(None, checkpoint("pretrained", 0))
    asked = (f"{question['query']} {choice}" for question in questions for choice in question["choices"])
    assert max(len(tokenizer.encode(text)) for text in asked) <= config.seq_len


@pytest.mark.usefixtures("many_cases")
def test_the_cloze_is_answered_before_and_guessed_after(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the demo shows: `pretrained` falls to chance, which `random-init` never leaves."""
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("EVALSVC_THREADS", "1")  # on tensors this small a second thread only gets in the way
    content = {"tasks": [{"kind": "language", "benchmarks": ["cloze"], "include_path": [str(ROOT)]}]}
    suite = parse_suite(content, "cloze")
    found = {}
    for run, epoch in product(RUNS, (0, 5)):
        reference = CheckpointRef(str(checkpoint(run, epoch)), layout=str(ROOT / "runs" / "layout.yaml"))
        result = run_suite(suite, reference, lambda *_: None).model_dump()
        assert result["errors"] == {}
        [accuracy] = [metric for metric in result["metrics"] if metric["name"] == "cloze/acc"]
        found[run, epoch] = accuracy["value"]
        assert (accuracy["n"], accuracy["baseline"]) == (300, 0.25)
    assert found.pop(("pretrained", 0)) > 0.6
    assert all(abs(value - 0.25) < 3 * (0.25 * 0.75 / 300) ** 0.5 for value in found.values())
