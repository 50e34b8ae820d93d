from pathlib import Path

import pytest

from evalsvc.layout import VocabularyLayout, parse_layout, text_only
from evalsvc.miniature import ROOT
from evalsvc.tokenizer import read_tokenizer, render

TOKENIZER = read_tokenizer(ROOT / "tokenizer.json")


@pytest.fixture(scope="module")
def layout() -> VocabularyLayout:
    return parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).resolve(583)


def test_what_is_not_text_is_shown_as_what_it_is(layout: VocabularyLayout) -> None:
    ids = [*TOKENIZER.encode("a zebra, "), 579, 580, 512, 575, *TOKENIZER.encode("über")]
    assert render(ids, layout, TOKENIZER) == "a zebra, ‹/text›‹image›‹image 0›‹image 63›über"
    assert render([], layout, TOKENIZER) == ""


def test_rows_are_not_codes_nor_ids_of_the_tokenizer() -> None:
    """The image block comes first and permuted, and the table has rows that nobody uses."""
    mapping = {
        "image": {"offset": 0, "size": 3, "map": [2, 0, 1]},
        "text": {"offset": 10, "size": 520},
        "special": {"doc": 4},
    }
    layout = parse_layout({**mapping, "template": ["TEXT", "IMAGE"]}).resolve(600)
    text = [10 + token for token in TOKENIZER.encode("yes")]
    assert render([*text, 2, 0, 4, 599, 10 + 515], layout, TOKENIZER) == "yes‹image 0›‹image 1›‹doc›‹row 599›‹text 515›"


def test_a_character_of_several_ids_is_whole_and_half_of_one_does_not_crash() -> None:
    ids = TOKENIZER.encode("né")
    layout = text_only(512)
    assert len(ids) == 3
    assert render(ids, layout, TOKENIZER) == "né"
    assert render(ids[:2], layout, TOKENIZER) == "n\ufffd"


def test_nul_is_shown_as_no_character() -> None:
    """A byte-level model may well draw it, and PostgreSQL would refuse the whole result."""
    assert render(TOKENIZER.encode("a\0b"), text_only(512), TOKENIZER) == "a\ufffdb"


def test_byte_fallback_and_special_tokens(shared: Path) -> None:
    tokenizer = read_tokenizer(shared / "golden" / "stories260k_openlm" / "tokenizer.json")
    ids = [1, *tokenizer.encode("naïve"), 2]
    assert render(ids, text_only(512), tokenizer) == "naïve"
    assert render([200, 201], text_only(512), tokenizer) == "\ufffd\ufffd"
