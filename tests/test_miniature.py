"""What ships as the miniature: it opens by evalsvc's own loaders and is what it says it is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from evalsvc.captions import read_captions
from evalsvc.data import read_tokens
from evalsvc.decoders import ImageDecoder, load_decoder, to_uint8
from evalsvc.features.digit_classifier import DigitClassifier, load_classifier
from evalsvc.layout import VocabularyLayout, parse_layout
from evalsvc.miniature import ROOT
from evalsvc.model_config import resolve_config
from evalsvc.models import load_model
from evalsvc.weights import read_weights

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
    return load_classifier(ROOT / "classifier.safetensors")


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
    weights = [read_weights(path) for path in found]
    assert [item.step for item in weights] == STEPS
    assert [item.epoch for item in weights] == list(range(len(STEPS)))
    assert {item.format for item in weights} == {"open_lm epoch"}
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


def test_english_is_known_before_and_forgotten_after(layout: VocabularyLayout) -> None:
    """The effect that the miniature is there to show."""
    records = read_tokens(ROOT / "heldout_text.jsonl").records[:8]
    losses = []
    for epoch in (0, len(STEPS) - 1):
        model, total, count = load_model(checkpoint("pretrained", epoch)), 0.0, 0
        for record in records:
            assert record.text_ids is not None
            ids = torch.tensor([layout.sequence(record.text_ids, None).ids])
            total += float(functional.cross_entropy(model(ids)[0, 1:-3], ids[0, 2:-2], reduction="sum"))
            count += ids.shape[1] - 4
        losses.append(total / count)
    assert losses[0] < 2.8
    assert losses[1] > 6
