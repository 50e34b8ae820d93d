"""The data of the miniature, as the scripts of benchmarks/miniature make them: disjoint and without repetitions."""

import json
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from evalsvc.data.captions import read_captions
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.data.tokens import read_tokens
from evalsvc.families.reading import resolve_config
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout

TEST = 300


def test_splits_are_disjoint_and_whole() -> None:
    splits = json.loads((ROOT / "splits.json").read_text())
    together = [index for part in splits.values() for index in part]
    assert sorted(together) == list(range(1_797))
    topics = json.loads((ROOT / "topics.json").read_text())
    assert not topics["train"].keys() & topics["heldout"].keys()
    assert not set(topics["train"].values()) & set(topics["heldout"].values())


def test_captions_name_their_images() -> None:
    images = load_file(ROOT / "images.safetensors")["images"]
    splits = json.loads((ROOT / "splits.json").read_text())
    test = read_captions(ROOT / "captions.jsonl").captions
    validation = read_captions(ROOT / "validation_captions.jsonl").captions
    assert [caption.id for caption in test + validation] == [
        f"digit-{index}" for index in splits["test"] + splits["validation"]
    ]
    assert [caption.image for caption in test + validation] == list(range(len(images)))
    assert len(test) == TEST


def test_training_pairs_are_those_of_the_training_images() -> None:
    """None of them is held out, so what is learned from them is measured on what it has not seen."""
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml")).resolve(583)
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
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "miniature")
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
    tokenizer, config = (
        read_tokenizer(ROOT / "tokenizer.json"),
        resolve_config(None, ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_0.pt"),
    )
    asked = (f"{question['query']} {choice}" for question in questions for choice in question["choices"])
    assert max(len(tokenizer.encode(text)) for text in asked) <= config.seq_len
