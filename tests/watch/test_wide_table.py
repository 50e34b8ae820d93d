"""A checkpoint whose table holds image ids is not posted as one of text alone without a word."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_in_process import app_in_process

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.watch.wide_table import require_layout


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with app_in_process(tmp_path / "data") as app, Client("http://evalsvc", transport=app.transport) as client:
        yield client


def test_a_table_that_is_wider_than_the_tokenizer_of_open_lm(client: Client, weights: Path) -> None:
    for rows in (1_000, 50_277, 50_432, 50_688):
        require_layout(client, weights, {"vocab_size": rows}, [])
    with pytest.raises(InvalidRequest) as caught:
        require_layout(client, weights, {"vocab_size": 66_816}, [])
    said = caught.value.message
    assert said.startswith(
        "epoch_1.pt: the table has 66,816 rows and open_lm's tokenizer 50,277 ids; name the image rows by --layout FILE"
    )
    assert "evalsvc doctor layout CHECKPOINT --pairs PAIRS" in said
    everything_is_text = json.loads(said.partition("give --layout '")[2].removesuffix("'"))
    assert parse_layout(everything_is_text).resolve(66_816).text.size == 66_816


def test_the_tokenizer_that_a_suite_names_counts_first(client: Client, weights: Path) -> None:
    tokenizer = str(ROOT / "tokenizer.json")
    client.put_suite("small", {"tasks": [{"kind": "loss", "data": "/a.jsonl", "tokenizer": tokenizer}]})
    client.put_suite("elsewhere", {"tasks": [{"kind": "loss", "data": "/a.jsonl", "tokenizer": "/nowhere.json"}]})
    with pytest.raises(InvalidRequest, match="the table has 2,000 rows and the suite's tokenizer"):
        require_layout(client, weights, {"vocab_size": 2_000}, ["elsewhere", "small"])
    require_layout(client, weights, {"vocab_size": 2_000}, ["elsewhere"])
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        require_layout(client, weights, {"vocab_size": 2_000}, ["smal"])


def test_a_suite_of_images_needs_a_layout_of_images(client: Client, tmp_path: Path) -> None:
    """All checkpoints of a folder were posted, and every evaluation failed: the layout had no image block."""
    pairs = str(ROOT / "heldout_pairs.jsonl")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text_ids": [1, 2]}\n')
    captions = {"captions": "/captions.json", "decoder": "/decoder.pt", "samples": 4}
    for name, task in (
        ("pairs", {"kind": "loss", "data": pairs}),
        ("aligned", {"kind": "alignment", "data": "/elsewhere.jsonl"}),
        ("drawn", {"kind": "text_to_image", **captions}),
    ):
        client.put_suite(name, {"tasks": [task]})
        with pytest.raises(InvalidRequest, match=f"of suite '{name}' needs the rows of the images; .* --layout FILE"):
            require_layout(client, None, None, [name])
    os.mkfifo(tmp_path / "pipe")
    for path in (str(texts), "/elsewhere.jsonl", str(tmp_path / "pipe"), str(tmp_path)):
        client.put_suite("texts", {"tasks": [{"kind": "loss", "data": path}]})
        require_layout(client, None, None, ["texts", "loss"])


def test_another_family_is_compared_with_its_own_tokenizer(client: Client, tmp_path: Path) -> None:
    """The table of a Llama has more rows than open_lm's tokenizer, and all of them are text."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"model_type": "llama", "vocab_size": 128_256, "max_position_embeddings": 8, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config))
    require_layout(client, tmp_path, None, [])
    (tmp_path / "tokenizer.json").write_bytes((ROOT / "tokenizer.json").read_bytes())
    for model in (None, {"family": "transformers"}):
        with pytest.raises(InvalidRequest, match="the table has 128,256 rows and the model's tokenizer"):
            require_layout(client, tmp_path, model, [])


def test_the_configuration_is_read_from_next_to_the_checkpoint(client: Client, weights: Path) -> None:
    config = json.loads((ROOT / "runs" / "pretrained" / "open_lm_miniature.json").read_text())
    (weights.parent / "model.json").write_text(json.dumps({**config, "vocab_size": 66_816}))
    with pytest.raises(InvalidRequest, match="66,816 rows"):
        require_layout(client, weights, None, [])


@pytest.mark.parametrize("content", [None, "{", '{"hidden_dim": 8, "vocab_size": "many"}', "[" * 10_000])
def test_a_table_of_unknown_size_passes(client: Client, weights: Path, content: str | None) -> None:
    """The service, which reads the configuration too, says what is wrong with it."""
    if content is not None:
        (weights.parent / "model.json").write_text(content)
    require_layout(client, weights, None, [])
    require_layout(client, weights.parent / "nowhere.pt", None, [])
