import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mixed_layouts import mixed_layout
from refusals import refusal

from evalsvc.data.files import limited_memory, private_bytes
from evalsvc.data.tokenizer import read_tokenizer, render
from evalsvc.errors import InvalidData
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout, text_only

TOKENIZER = read_tokenizer(ROOT / "tokenizer.json")


def test_what_is_not_text_is_shown_as_what_it_is() -> None:
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).resolve(583)
    ids = [*TOKENIZER.encode("a zebra, "), 579, 580, 512, 575, *TOKENIZER.encode("über")]
    assert render(ids, layout, TOKENIZER) == "a zebra, ‹/text›‹image›‹image 0›‹image 63›über"
    assert render([], layout, TOKENIZER) == ""
    # Here the image block comes first and permuted, and the table has rows that nobody uses.
    blocks = {"image": {"offset": 0, "size": 3, "map": [2, 0, 1]}, "text": {"offset": 10, "size": 520}}
    layout = parse_layout({**blocks, "special": {"doc": 4}, "template": ["TEXT", "IMAGE"]}).resolve(600)
    text = [10 + token for token in TOKENIZER.encode("yes")]
    assert render([*text, 2, 0, 4, 599, 10 + 515], layout, TOKENIZER) == "yes‹image 0›‹image 1›‹doc›‹row 599›‹text 515›"


def test_special_and_image_rows_inside_the_text_are_no_text() -> None:
    words = TOKENIZER.encode("The first of the objects")
    assert len(words) > 4
    layout = mixed_layout(583, range(512), range(500, 512), doc=words[1])
    assert (
        render([words[0], 503, *words, 511], layout, TOKENIZER)
        == "".join(
            (
                TOKENIZER.decode(words[:1]),
                "‹image 3›",
                TOKENIZER.decode(words[:1]),
                "‹doc›",
                TOKENIZER.decode(words[2:]),
            )
        )
        + "‹image 11›"
    )


def test_a_character_of_several_ids_is_whole_and_half_of_one_does_not_crash() -> None:
    ids = TOKENIZER.encode("né")
    layout = text_only(512)
    assert len(ids) == 3
    assert render(ids, layout, TOKENIZER) == "né"
    assert render(ids[:2], layout, TOKENIZER) == "n\ufffd"
    assert render(TOKENIZER.encode("a\0b"), layout, TOKENIZER) == "a\ufffdb", "PostgreSQL would refuse NUL"


def test_byte_fallback_and_special_tokens(shared: Path) -> None:
    tokenizer = read_tokenizer(shared / "golden" / "stories260k_openlm" / "tokenizer.json")
    ids = [1, *tokenizer.encode("naïve"), 2]
    assert render(ids, text_only(512), tokenizer) == "naïve"
    assert render([200, 201], text_only(512), tokenizer) == "\ufffd\ufffd"


BEGIN = {"id": "<s>", "type_id": 0}
TEXT, END = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}
SPECIAL = {name: {"id": name, "ids": [number], "tokens": [name]} for number, name in ((4, "<s>"), (5, "</s>"))}


def adding(path: Path, *parts: dict[str, Any]) -> Path:
    """The miniature's tokenizer with a post-processor in the form that published ones have."""
    content = json.loads((ROOT / "tokenizer.json").read_text())
    template = {"type": "TemplateProcessing", "single": list(parts), "pair": [TEXT], "special_tokens": SPECIAL}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    content["post_processor"] = {"type": "Sequence", "processors": [byte_level, template]}
    path.write_text(json.dumps(content))
    return path


def test_a_post_processor_adds_nothing_and_what_it_would_add_is_known(tmp_path: Path) -> None:
    """As with Llama 3 and Gemma, with BERT, and with T5."""
    begin = {"SpecialToken": BEGIN}
    for number, (parts, before) in enumerate((((begin, TEXT), [4]), ((begin, TEXT, END), [4]), ((TEXT, END), []))):
        tokenizer = read_tokenizer(adding(tmp_path / f"{number}.json", *parts))
        assert all(tokenizer.encode(text) == TOKENIZER.encode(text) for text in ("", "a zebra", "<s>"))
        assert tokenizer.added_before == before


def test_who_decides_on_the_beginning_of_a_text(tmp_path: Path) -> None:
    """A model that was trained with a first token is far off without it, and nothing in its numbers says so."""
    tokenizer = read_tokenizer(adding(tmp_path / "tokenizer.json", {"SpecialToken": BEGIN}, TEXT))
    assert [tokenizer.beginning(4), tokenizer.beginning(0), tokenizer.beginning("none")] == [4, 0, None]
    undecided = rf"the tokenizer {tokenizer.path} puts 4 before every text by itself, and neither .* to 4, or to"
    assert re.match(undecided, refusal(InvalidData, tokenizer.beginning, None))
    assert re.match(r"bos is 512; .* has the ids 0…511", refusal(InvalidData, tokenizer.beginning, 512))
    assert TOKENIZER.added_before == []
    assert TOKENIZER.beginning(None) is None
    ids = TOKENIZER.encode("a zebra")
    assert TOKENIZER.encode("a zebra", bos=4) == [4, *ids]
    assert TOKENIZER.encode("a zebra", bos=ids[0]) == ids, "a text that has its beginning gets no second, as in HFLM"


def hostile(path: Path, **parts: Any) -> Path:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts}))
    return path


PANICS: dict[str, dict[str, Any]] = {
    "when it is read": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "when it encodes": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "when it lacks a word": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"}},
    "when it decodes": {"decoder": {"type": "Strip", "content": "a", "start": 9999, "stop": 9999}},
}


@pytest.mark.parametrize("when", PANICS)
def test_a_panic_of_the_library_is_an_error_of_the_file(tmp_path: Path, when: str) -> None:
    """It is no Exception: nothing that caught errors caught it."""
    path = hostile(tmp_path / "tokenizer.json", **PANICS[when])
    with pytest.raises(InvalidData, match=rf"^the tokenizer {path} is not a tokenizer\.json that works; give the"):
        read_tokenizer(path).decode(read_tokenizer(path).encode("a b"))


def test_a_tokenizer_that_is_deep_long_or_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    quoting = '{"version": "hunter2"}', '"hunter2"', "hunter2", '{"model": {"type": "hunter2"}}'
    for content in ("[" * 1_000_000, '{"normalizer": ' + '{"type":"Sequence","normalizers":[' * 100_000, *quoting):
        path.write_text(content)
        said = refusal(InvalidData, read_tokenizer, path)
        assert re.search(r"is not a tokenizer\.json that works at line 1 column \d+; give", said)
    monkeypatch.setattr("evalsvc.data.tokenizer.MAX_BYTES", 5)
    assert "is larger than 5 bytes; give a tokenizer" in refusal(InvalidData, read_tokenizer, path)


def test_special_tokens_are_told_from_other_added_tokens(tmp_path: Path) -> None:
    """NeoX's tokenizer adds runs of blanks, which are text."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": place, "content": text, "special": place == 1, **flags}
        for place, text in ((1, "<|endoftext|>"), (2, "    "))
    ]
    assert read_tokenizer(hostile(tmp_path / "tokenizer.json", added_tokens=added)).special_ids == {1}
    assert TOKENIZER.special_ids == frozenset()


DOUBLES = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BEYOND = """
import sys
from evalsvc.data import tokenizer
tokenizer.MEMORY = 100_000_000
tokenizer.read_tokenizer(sys.argv[1]).encode("a")
"""


@pytest.mark.usefixtures("short_process")
def test_a_tokenizer_takes_no_more_memory_than_the_limit(tmp_path: Path) -> None:
    """Forty doublings of a letter took all memory of the machine. The library ends its process, which is a worker's."""
    path = hostile(tmp_path / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [DOUBLES] * 40})
    command = [sys.executable, "-c", BEYOND, str(path)]
    ended = subprocess.run(command, capture_output=True, check=False, env={"RUST_BACKTRACE": "0"}, timeout=60)
    assert ended.returncode == -signal.SIGABRT, ended.stderr
    assert b"memory allocation of" in ended.stderr


def ask_for_memory() -> None:
    with limited_memory(50_000_000, "the tokenizer a.json"):
        with limited_memory(10**12, "a part of it"):
            assert private_bytes() < resource.getrlimit(resource.RLIMIT_DATA)[0] < private_bytes() + 10**8
        bytes(10**9)


def test_what_python_asks_for_beyond_the_limit_is_an_error_of_the_file() -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(InvalidData, match=r"^the tokenizer a.json takes more than 50,000,000 bytes of memory; make it"):
        ask_for_memory()
    assert resource.getrlimit(resource.RLIMIT_DATA) == unlimited
