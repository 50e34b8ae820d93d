import json
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import TOKENS, metadata
from tokenizers import Tokenizer

from evalsvc.assets.gguf_tokenizer import tokenizer_content, tokenizer_settings
from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_content(metadata())))
    return read_tokenizer(tmp_path / "tokenizer.json")


def tokens(tokenizer: TextTokenizer, text: str) -> list[str]:
    return [TOKENS[number] for number in tokenizer.encode(text)]


def test_bytes_are_joined_by_the_files_merges(tokenizer: TextTokenizer) -> None:
    assert tokens(tokenizer, "the then") == ["the", "Ġthe", "n"]
    for text in ("the", "Übermäßig große Öfen\n\n\t", "日本 🦓", "<|im_start|>user", ""):
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_control_tokens_are_whole_and_nothing_is_added(tokenizer: TextTokenizer) -> None:
    assert tokens(tokenizer, "the<|im_end|>the") == ["the", "<|im_end|>", "the"]
    assert (tokenizer.added_before, tokenizer.end_of_text) == ([], TOKENS.index("<|endoftext|>"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1999", list("1999")), ("a  12", ["a", "Ġ", "Ġ", "1", "2"]), ("  x", ["Ġ", "Ġ", "x"])],
)
def test_digits_stand_alone(tokenizer: TextTokenizer, text: str, expected: list[str]) -> None:
    assert tokens(tokenizer, text) == expected


def test_spaces_before_a_digit_are_a_word_of_their_own() -> None:
    """Without the step for digits the last of them belongs to the digit: there the ids of SmolLM2 are others."""
    content: dict[str, Any] = tokenizer_content(metadata())
    split = Tokenizer.from_str(json.dumps(content)).pre_tokenizer.pre_tokenize_str
    assert [word for word, _ in split("a  12")] == ["a", "ĠĠ", "1", "2"]
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]
    split = Tokenizer.from_str(json.dumps(content)).pre_tokenizer.pre_tokenize_str
    assert [word for word, _ in split("a  12")] == ["a", "Ġ", "Ġ12"]


def test_roles_of_tokens_are_told_to_transformers() -> None:
    settings = tokenizer_settings(metadata())
    roles = {key: settings[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    assert roles == dict(zip(roles, ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>"), strict=True))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast", "the class of GPT-2 splits digits otherwise"
