import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evalsvc.errors import EvalsvcError, InvalidData, InvalidLayout, UnknownName, UnsupportedModel
from evalsvc.spec.layout import VocabularyLayout, parse_layout, text_only
from evalsvc.spec.layout_presets import SPECIAL, presets

IMAGE = {"offset": 17, "size": 4}
PAPER = ("doc", "text", "TEXT", "/text", "image", "IMAGE", "/image", "/doc")

SMALL: dict[str, Any] = {
    "text": {"size": 10},
    "image": IMAGE,
    "special": {name: 10 + index for index, name in enumerate(SPECIAL)},
    "template": list(PAPER),
}
"""Text 0…9, special tokens 10…16, image 17…20."""


def small(**changes: Any) -> VocabularyLayout:
    return parse_layout(SMALL | changes)


@pytest.mark.parametrize(
    ("preset", "text", "image", "first_special", "rows"),
    [
        ("image-then-special", range(50_432), range(50_432, 66_816), 66_816, 66_823),
        ("special-then-image", range(50_432), range(50_439, 66_823), 50_432, 66_823),
        ("special-in-spare-rows", range(50_277), range(50_432, 66_816), 50_277, 66_816),
        ("dense-image-then-special", range(50_277), range(50_277, 66_661), 66_661, 66_668),
        ("dense-special-then-image", range(50_277), range(50_284, 66_668), 50_277, 66_668),
        ("image-first", range(16_384, 66_816), range(16_384), 66_816, 66_823),
        ("image-at-end", range(50_432), range(50_560, 66_944), 50_432, 66_944),
        # open_lm takes special ids modulo the table: in a padded one they do not follow the image block
        ("negative-special", range(50_432), range(50_432, 66_816), 66_943, 66_944),
    ],
)
def test_presets_have_the_papers_sizes(preset: str, text: range, image: range, first_special: int, rows: int) -> None:
    step = -1 if preset == "negative-special" else 1
    layout = parse_layout(preset).resolve(rows)
    assert (layout.text_ids, layout.image_ids, layout.template, layout.length) == (text, image, PAPER, 1_152)
    assert layout.special_ids == {name: first_special + step * index for index, name in enumerate(SPECIAL)}


@pytest.mark.parametrize(
    ("spec", "rows", "text", "image"),
    [
        ({"preset": "widened", "text_size": 49_152}, 65_600, range(49_152), range(49_152, 65_536)),
        ({"preset": "widened", "text_size": 49_152}, 65_536, range(49_152), range(49_152, 65_536)),
        ({"preset": "widened", "text_size": 49_152, "codebook_size": 64}, 49_216, range(49_152), range(49_152, 49_216)),
        ("widened", 66_816, range(50_432), range(50_432, 66_816)),
    ],
)
def test_widened_tables_have_image_rows_after_text_rows(spec: Any, rows: int, text: range, image: range) -> None:
    """Code and number of text rows, in a table that may be padded; the tokens of the prompt are the tokenizer's own."""
    layout = parse_layout(spec).resolve(rows)
    last = image.stop - image.start - 1
    assert (layout.text_ids, layout.image_ids, layout.special_ids, layout.length) == (text, image, {}, None)
    images = [image[code] for code in (0, 5, last)]
    assert layout.sequence([2, text.stop - 1], [0, 5, last]).ids == [2, text.stop - 1, *images]
    assert layout.sequence(None, [1]).ids == [image[1]]
    assert layout.sequence([7], None).ids == [7]
    assert layout.prompt([2, 7], 1_024).ids == [2, 7]
    for text_ids, codes, message in (([text.stop], [0], "text id"), ([0], [last + 1], "image code")):
        with pytest.raises(InvalidData, match=message):
            layout.sequence(text_ids, codes)


def test_tokens_around_an_image_lie_behind_the_image_rows() -> None:
    spec = {"preset": "widened", "text_size": 10, "codebook_size": 4, "special": {"image": 14, "/image": 15}}
    layout = parse_layout({**spec, "template": ["TEXT", "image", "IMAGE", "/image"]}).resolve(16)
    assert layout.sequence([3], [0, 3]).ids == [3, 14, 10, 13, 15]
    with pytest.raises(InvalidLayout, match=r"image .50432…66815. exceeds the table of 50432 rows"):
        parse_layout("widened").resolve(50_432)


@pytest.mark.parametrize("name", [name for name in presets() if name != "split-tables"])
def test_every_preset_takes_sizes_and_survives_json(name: str) -> None:
    layout = parse_layout({"preset": name, "text_size": 80, "codebook_size": 16, "rows": 112}).resolve(112)
    assert layout.text.size == 80
    assert len(layout.image_ids or ()) == 16
    for each in (layout, parse_layout(name)):  # also before its table is known
        again = parse_layout(json.loads(json.dumps(each.to_json())))
        assert (again, again.digest) == (each, each.digest)


@pytest.mark.parametrize(
    ("changes", "rows", "fragments"),
    [
        ({"image": {"offset": 9, "size": 2}}, 21, ["text (0…9) overlaps image (9…10)"]),
        ({"image": {"offset": 0, "size": 10}}, 21, ["text has no row that is neither image nor special"]),
        ({"image": {"offset": 2, "size": 4}, "special": {**SMALL["special"], "pad": 3}}, 21, ["overlaps"]),
        ({"image": IMAGE | {"row_end": "eol"}}, 21, ["image.row_end names no special token"]),
        ({"image": IMAGE | {"grid": [0, 4]}}, 21, ["image.grid", "greater than or equal to 1"]),
        ({"image": IMAGE | {"grid": [4096, 4096]}}, 21, ["4096 × 4096, more than 50,000 codes"]),
        ({"prompt": {"text": "{caption}"}, "image": None, "template": None}, 21, ["prompt", "has no `image`"]),
        ({"prompt": {"text": "{caption}"}, "unconditional_template": ["IMAGE"]}, 21, ["`prompt.unconditional`"]),
        ({"prompt": {"text": "{caption}"}, "template": ["IMAGE", "TEXT"]}, 21, ["TEXT after IMAGE"]),
        ({"prompt": {"text": "{caption}", "negativ": "x"}}, 21, ["layout, prompt", "did you mean 'negative'"]),
        ({"image": {"offset": 12, "size": 4}}, 21, ["special 'text' (12)", "overlaps", "image (12…15)"]),
        ({"special": {**SMALL["special"], "pad": 15}}, 21, ["special '/image' (15) overlaps special 'pad' (15)"]),
        ({}, 20, ["image (17…20) exceeds the table of 20 rows"]),
        ({"special": {**SMALL["special"], "pad": 21}}, 21, ["special 'pad' (21) exceeds the table of 21 rows"]),
        ({"special": {**SMALL["special"], "pad": -22}}, 21, ["special 'pad' (-22) exceeds the table"]),
        ({"image": {"offset": -3, "size": 4}}, 21, ["image (18…21) exceeds the table of 21 rows"]),
        ({"image": {"offset": -11, "size": 4}}, 21, ["image (10…13)", "overlaps"]),
        ({"rows": 30}, 21, ["for a table of 30 rows", "the model has 21"]),
        ({"template": ["doc", "TEXT", "IMAGE", "/dok"]}, 21, ["template: ", "'/dok'", "did you mean '/doc'"]),
        ({"template": ["TEXT", "image"]}, 21, ["template lacks the slot IMAGE"]),
        ({"template": ["IMAGE"]}, 21, ["template lacks the slot TEXT"]),
        ({"template": ["TEXT", "IMAGE", "IMAGE"]}, 21, ["template has 2 times the slot IMAGE"]),
        ({"image": None}, 21, ["template has the slot IMAGE, but the layout has no `image`"]),
        ({"unconditional_template": ["TEXT", "IMAGE"]}, 21, ["template has the slot TEXT", "without text"]),
        ({"unconditional_template": ["doc"]}, 21, ["unconditional_template lacks the slot IMAGE"]),
        ({"special": {"TEXT": 10}, "template": None}, 21, ["'TEXT'", "is a slot"]),
        ({"image": IMAGE | {"map": [0, 1, 2]}}, 21, ["image.map has 3 entries, the codebook has 4 codes"]),
        ({"image": IMAGE | {"map": [0, 1, 2, 2]}}, 21, ["holds an entry twice", "permutation of 0…3"]),
        ({"image": IMAGE | {"map": [17, 18, 19, 20]}}, 21, ["image.map holds 17", "counted from image.offset"]),
        ({"imag": {}}, 21, ["'imag'", "did you mean 'image'"]),
        ({"text": {"size": 10, "ofset": 1}}, 21, ["layout, text", "'ofset'", "did you mean 'offset'"]),
        ({"text": {"size": 0}}, 21, ["text.size", "greater than or equal to 1", "found 0"]),
        ({"text": {"size": "ten"}}, 21, ["text.size", "found 'ten'"]),
        ({"special": {"pad": 1.5}, "template": None}, 21, ["special.pad", "found 1.5"]),
        ({"text": {"size": 10, "tokenizer": "t.json"}}, 21, ["text.tokenizer 't.json' is a relative path"]),
        ({"image": IMAGE | {"map": "/no/such.json"}}, 21, ["the image.map /no/such.json does not exist"]),
        ({"text": {"size": 10, "bos": 10}}, 21, ["text.bos is 10, but there are 10 text ids"]),
        *(({"text": {"size": 10, "bos": bos}}, 21, [f"found {bos!r}"]) for bos in (-1, "<s>", True)),
    ],
)
def test_wrong_layouts_say_what_is_wrong(changes: Mapping[str, Any], rows: int, fragments: list[str]) -> None:
    with pytest.raises(InvalidLayout) as caught:
        parse_layout(SMALL | dict(changes)).resolve(rows)
    for fragment in fragments:
        assert fragment in caught.value.message


@pytest.mark.parametrize(
    ("spec", "error", "fragment"),
    [
        ("image-then-specal", UnknownName, "did you mean 'image-then-special'"),
        ("split-tables", UnsupportedModel, "one table for text and image ids; join"),
        ({"preset": "image-then-special", "text_sise": 3}, InvalidLayout, "did you mean 'text_size'"),
        ({"preset": "image-first", "text_size": "many"}, InvalidLayout, "text_size must be a whole number above 0"),
        ({"preset": "image-then-special", "text_size": True}, InvalidLayout, "found True"),
        ({"preset": ["image-first"]}, UnknownName, "no layout preset is named"),
        ({}, InvalidLayout, "text: field required"),
        (["text"], InvalidLayout, "found a list"),
        ("/no/such/layout.yaml", InvalidLayout, "the layout file /no/such/layout.yaml does not exist"),
        ("layout.yaml", InvalidLayout, "'layout.yaml' is a relative path"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec: Any, error: type[EvalsvcError], fragment: str) -> None:
    with pytest.raises(error, match=re.escape(fragment)):
        parse_layout(spec)


def test_a_file_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text("[3, 2, 1, 0]")
    text = {"size": 10, "tokenizer": "tokenizer.json"}
    content = SMALL | {"image": IMAGE | {"map": "map.json"}, "text": text}
    (tmp_path / "layout.yaml").write_text(json.dumps(content))
    layout = parse_layout("layout.yaml", tmp_path)
    assert layout.image_ids == (20, 19, 18, 17)
    assert layout.text.tokenizer == str(tmp_path / "tokenizer.json")
    assert layout.to_json()["image"]["map"] == [3, 2, 1, 0], "a worker elsewhere has no map.json"


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("layout.yaml", "a: [", "layout.yaml is not valid YAML"),
        ("layout.yaml", "just text", "found a str"),
        ("map.json", "[1,", "is not valid JSON"),
        ("map.json", '{"a": 1}', "is not a list of whole numbers"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, fragment: str) -> None:
    (tmp_path / "layout.yaml").write_text(json.dumps(SMALL | {"image": IMAGE | {"map": "map.json"}}))
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidLayout, match=fragment):
        parse_layout("layout.yaml", tmp_path)


UNCONDITIONAL = {"unconditional_template": ["image", "IMAGE"]}
ONE_MARKER = {"template": ["doc", "TEXT", "image", "IMAGE", "/doc"]}


@pytest.mark.parametrize(
    ("changes", "text", "codes", "ids", "cut"),
    [
        ({}, [1, 2], [0, 3], [10, 12, 1, 2, 13, 14, 17, 20, 15, 11], 0),
        ({}, [1, 2], None, [10, 12, 1, 2, 13, 11], 0),
        ({}, None, [1], [10, 14, 18, 15, 11], 0),
        ({}, [], [1], [10, 12, 13, 14, 18, 15, 11], 0),
        (ONE_MARKER, [1], None, [10, 1, 14, 11], 0),
        (UNCONDITIONAL, None, [1], [14, 18], 0),
        (UNCONDITIONAL, [3], [1], [10, 12, 3, 13, 14, 18, 15, 11], 0),
        ({"length": 10}, [1, 2, 3, 4], [0, 1], [10, 12, 1, 2, 13, 14, 17, 18, 15, 11], 2),
        ({"length": 10}, [1, 2], [0, 1], [10, 12, 1, 2, 13, 14, 17, 18, 15, 11], 0),
        ({"length": 10}, [*range(8)], None, [10, 12, 0, 1, 2, 3, 4, 5, 13, 11], 2),
        ({"length": 10}, [], [0, 1, 2, 3], [10, 12, 13, 14, 17, 18, 19, 20, 15, 11], 0),
    ],
)
def test_a_record_fills_the_template(changes: Any, text: Any, codes: Any, ids: list[int], cut: int) -> None:
    """What is missing takes its pair of tokens along; an empty text is not missing, and text is cut at its end."""
    sequence = small(**changes).sequence(text, codes)
    assert (sequence.ids, sequence.cut) == (ids, cut)


@pytest.mark.parametrize("text", [[1], [1, 2, 3, 4], [], None])
def test_a_prompt_begins_the_sequence_it_is_drawn_for(text: list[int] | None) -> None:
    """Also where the text is cut: image and the rest of the template need their room."""
    assert small().prompt(text, 4).ids[-1] == 14, "what precedes the image"
    for length in (10, 12, None):
        layout = small(length=length)
        prompt, whole = layout.prompt(text, 2), layout.sequence(text, [3, 0])
        assert whole.ids[: len(prompt.ids)] == prompt.ids
        assert whole.ids[len(prompt.ids) :] == [20, 17, 15, 11]
        assert prompt.cut == whole.cut == (2 if length == 10 and text == [1, 2, 3, 4] else 0)


TOO_LONG = "5 image codes, 11 tokens with the template's special tokens; the layout's length is 10"


@pytest.mark.parametrize(
    ("layout", "text", "codes", "fragment"),
    [
        (small(), [3, 10], None, "text id 10; the text block has 0…9"),
        (small(), [-1], None, "text id -1"),
        (small(), [1], [0, 4], "image code 4; the codebook has 0…3"),
        (small(), [1], [-1], "image code -1"),
        (small(length=10), [1], [0] * 5, TOO_LONG),
        (text_only(10), [1], [1], "the layout has no image block"),
        (small(), [10], 4, "text id 10; the text block has 0…9"),
        (small(length=10), [1], 5, TOO_LONG),
        (text_only(10), [1], 1, "the layout has no image block"),
    ],
)
def test_what_does_not_fit_is_named(layout: VocabularyLayout, text: list[int], codes: Any, fragment: str) -> None:
    with pytest.raises(InvalidData, match=re.escape(fragment)):
        layout.prompt(text, codes) if isinstance(codes, int) else layout.sequence(text, codes)


def test_an_image_before_its_text_has_no_prompt() -> None:
    behind = small(template=["doc", "image", "IMAGE", "/image", "TEXT"])
    with pytest.raises(InvalidLayout, match="has the text after the image"):
        behind.prompt([1], 1)
    assert behind.prompt(None, 1).ids == [10, 14]
    assert small(unconditional_template=["IMAGE"]).prompt(None, 4).ids == []


def test_offsets_shift_text_and_a_map_permutes_codes() -> None:
    layout = parse_layout({"text": {"offset": 4, "size": 6}, "image": {"offset": 0, "size": 4, "map": [2, 3, 0, 1]}})
    assert layout.resolve(10).sequence([0, 5], [0, 1, 2]).ids == [4, 9, 2, 3, 0]
    assert layout.image_ids == (2, 3, 0, 1)
    assert layout.image_range == range(4)
    plain = text_only(7).resolve(7)
    assert (plain.text_ids, plain.image_ids, plain.image_range, plain.pad_id) == (range(7), None, None, None)
    assert plain.sequence([6], None).ids == [6]
    preset = {"preset": "image-then-special", "text_size": 80, "codebook_size": 4, "image": {"map": [3, 2, 1, 0]}}
    replaced = parse_layout(preset | {"length": None})
    assert (replaced.length, replaced.image_ids) == (None, (83, 82, 81, 80)), "fields of a preset can be replaced"


def test_digest_is_of_the_meaning_and_not_of_paths() -> None:
    """Two machines keep the tokenizer in different folders; their numbers belong to one series."""
    here = small(text={"size": 10, "tokenizer": "/here/tokenizer.json"})
    assert here.digest == small().digest
    assert small(length=9).digest != small().digest
    assert small(special={name: 16 - index for index, name in enumerate(SPECIAL)}).digest != small().digest
    negative = parse_layout({"text": {"size": 10}, "image": {"offset": -4, "size": 4}})
    positive = parse_layout({"text": {"size": 10}, "image": {"offset": 10, "size": 4}})
    assert negative.digest != positive.digest
    assert negative.resolve(14).digest == positive.resolve(14).digest
    # Properties computed before do not leak into the resolved layout, and resolving twice changes nothing.
    assert negative.resolve(14).image_ids == range(10, 14)
    assert negative.resolve(14).resolve(14) == negative.resolve(14)


@pytest.mark.parametrize("bos", [0, 9, "none"])
def test_the_beginning_of_texts_is_kept_and_moves_no_digest(bos: int | str) -> None:
    """Protocols have the id itself: a suite's `bos` and a layout's make the same texts, and so one series."""
    layout = small(text={"size": 10, "bos": bos})
    assert parse_layout(json.loads(json.dumps(layout.to_json()))).resolve(21).text.bos == bos
    assert layout.digest == small().digest
    assert "bos" not in small().to_json()["text"], "layouts keep their old form"
    assert (layout.text.beginning(None), layout.text.beginning(3), small().text.beginning(3)) == (bos, 3, 3)
    assert small().text.beginning(None) is None


@pytest.mark.parametrize(
    "content",
    [
        *("hunter2", "{preset: hunter2}", "{preset: image-then-special, rows: hunter2}"),
        *("{text: {size: hunter2}}", "{text: {size: 9}, template: [[hunter2]]}"),
        "{text: {size: 9}, image: {offset: 9, size: 2, map: map.json}}",
    ],
)
def test_no_message_quotes_a_value_of_a_file(tmp_path: Path, content: str) -> None:
    """Who names a file need not be who may read it."""
    (tmp_path / "map.json").write_text('["hunter2"]')
    (tmp_path / "layout.yaml").write_text(content)
    with pytest.raises(EvalsvcError) as caught:
        parse_layout(str(tmp_path / "layout.yaml"))
    assert "hunter2" not in caught.value.message
