"""Prompts of images: the ids that the authors' code computes, and attacks on layouts, presets and captions.

The expected ids are those of the authors' sampling and training scripts with the same tokenizers.
"""

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from prompt_tokenizers import CAPTIONS, GEMMA, NEGATIVE, SHIBA, by_hand, marked, write_tokenizer
from safetensors.numpy import save_file

from evalsvc.data.tokens import EncodedPrompt, TextEncoder, TokenData, read_tokens
from evalsvc.errors import InvalidData, InvalidLayout
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.layout_presets import PublishedPreset, presets
from evalsvc.spec.layout_prompt import PromptText

SIZES = {"liquid": (185, 64, 249), "simplear": (346, 64, 410), "chameleon": (249, 64, 249), "anole": (249, 64, 249)}
SIZES |= {"emu3": (579, 48, 579), "janus": (332, 48, 380), "janus-1.3b": (332, 48, 380)}
"""Text and codebook size of the small tokenizers, and the rows of the table."""

FAMILY = {"anole": "chameleon", "janus-1.3b": "janus"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {family: write_tokenizer(family, folder) for family in ("liquid", "simplear", "chameleon", "emu3", "janus")}


def layout_of(preset: str, **changes: Any) -> VocabularyLayout:
    """Return a preset at the sizes of its small tokenizer."""
    text, codes, rows = SIZES[preset]
    if preset.startswith("janus"):
        changes = {"text": {"bos": 320}, **changes}
    return parse_layout({"preset": preset, "text_size": text, "codebook_size": codes, **changes}).resolve(rows)


def encoder(layout: VocabularyLayout, tokenizer: Path) -> TextEncoder:
    return TextEncoder("captions.csv", tokenizer, layout.text.bos, form=layout.prompt_form)


def prompt(preset: str, tokenizers: Mapping[str, Path], caption: str | None, codes: int = 16) -> EncodedPrompt:
    layout = layout_of(preset)
    return encoder(layout, tokenizers[FAMILY.get(preset, preset)]).prompt(caption, codes)


LIQUID_SUFFIX = [143, 144, 134, 148, 121, 150, 160, 24, 7]
SIMPLEAR_PREFIX = [339, 32, 326, 333, 285, 286]


@pytest.mark.parametrize(
    ("preset", "captions", "unconditional"),
    [
        (
            "liquid",
            [
                [2, 75, 109, 116, 121, 124, 129, *LIQUID_SUFFIX],
                [2, 76, 86, 95, 79, 119, 22, 124, 119, 24, *LIQUID_SUFFIX],
                # The space at the caption's end and that of the suffix are one token, and no other merge fits then.
                [2, 75, 116, 105, 49, 79, 88, 79, 92, 75, 94, 79, *LIQUID_SUFFIX[1:]],
            ],
            [2, 9, 7],
        ),
        (
            "simplear",
            [
                [*SIMPLEAR_PREFIX, 257, 260, 267, 272, 275, 280, 341],
                [*SIMPLEAR_PREFIX, 264, 270, 11, 275, 270, 13, 341],
                [*SIMPLEAR_PREFIX, 257, 267, 220, 341],
            ],
            [339, 341],
        ),
        (
            "chameleon",
            [
                [0, 139, 173, 180, 185, 188, 193, 69],
                [0, 140, 150, 159, 143, 183, 86, 188, 183, 88, 69],
                [0, 139, 180, 74, 69],
            ],
            [0, 69],
        ),
        (
            "anole",
            [
                [0, 139, 173, 180, 185, 188, 193, 70, 69],
                [0, 140, 150, 159, 143, 183, 86, 188, 183, 88, 70, 69],
                [0, 139, 180, 74, 70, 69],
            ],
            [0, 69],
        ),
    ],
)
def test_prompts_are_those_of_the_authors(
    preset: str, captions: list[list[int]], unconditional: list[int], tokenizers: Mapping[str, Path]
) -> None:
    for caption, ids in zip(CAPTIONS, captions, strict=True):
        made = prompt(preset, tokenizers, caption)
        assert made.ids == ids
        assert made.names_tokens is False
        assert preset == "simplear" or made.against == unconditional
    assert prompt(preset, tokenizers, None).ids == unconditional


def test_guidance_of_simplear_leads_away_from_a_negative_text_and_losses_are_of_the_unconditional_one(
    tokenizers: Mapping[str, Path],
) -> None:
    negative = prompt("simplear", tokenizers, "a dog").against or []
    assert (negative[:12], negative[-3:], len(negative)) == (
        [339, 32, 77, 285, 286, 257, 68, 81, 72, 64, 75, 220],
        [78, 77, 341],
        114,
    )
    assert prompt("simplear", tokenizers, None) == EncodedPrompt([339, 341], negative, False)


POSITIVE = [220, 302, 261, 309, 11, 220, 293, 300, 275, 274, 271, 269, 11, 256, 291, 267, 13]


@pytest.mark.parametrize(
    ("caption", "grid", "ids", "size"),
    [
        (0, (4, 4), [64, 220, 314, 285, 220, 271, 84], [19, 9, 19]),
        (1, (3, 5), [64, 220, 308, 317, 257, 220, 304, 220, 319, 303, 275, 296, 75, 13], [18, 9, 20]),
        (
            *(2, (10, 12)),
            [316, 78, 220, 312, 220, 288, 286, 220, 7, 305, 220, 64, 278, 68, 276, 282, 299, 8],
            [16, 15, 9, 16, 17],
        ),
    ],
)
def test_prompts_of_emu3_hold_the_grid_on_every_side(
    caption: int, grid: tuple[int, int], ids: list[int], size: list[int], tokenizers: Mapping[str, Path]
) -> None:
    wrapper = [529, *size, 528]
    negative = "<|image start|>".join([NEGATIVE, "{rows}*{columns}<|image token|>"])
    layout = layout_of("emu3", image={"grid": list(grid)}, prompt={"negative": negative})
    encode, codes = encoder(layout, tokenizers["emu3"]), grid[0] * grid[1]
    made = encode.prompt(SHIBA[caption], codes)
    assert made.ids == [526, *ids, *POSITIVE, *wrapper]
    against = [279, 313, 11, 277, 220, 260, 283, 307, 11, 277, 220, 295, 289, 11, 276, 290, 83, 11, 220, 261, 311, 11]
    against += [220, 318, 258, 267, 11, 220, 279, 267, 11, 278, 310, 88, 13]
    assert made.against == [526, *against, *wrapper]
    assert encode.prompt(None, codes).ids == [526, *wrapper]
    with pytest.raises(InvalidData, match=rf"has 17 image codes, .* {grid[0]} rows of {grid[1]}"):
        encode.prompt("a", 17)


@pytest.mark.parametrize(
    ("preset", "before", "after"),
    [
        ("janus", [326, 25], [198, 198, 327, 25, 323]),
        ("janus-1.3b", [281, 261, 25], [198, 198, 280, 315, 260, 83, 25, 323]),
    ],
)
def test_the_unconditional_prompt_of_janus_is_as_long_as_the_prompt(
    preset: str, before: list[int], after: list[int], tokenizers: Mapping[str, Path]
) -> None:
    """Guidance without an image of its length looks fine, and is of another model. The authors strip captions."""
    middle = {SHIBA[0]: [220, 64, 220, 314, 285, 220, 271, 84], "  spaces ": [220, 82, 79, 64, 66, 270], "": None}
    for caption, ids in middle.items():
        made = prompt(preset, tokenizers, caption)
        if ids is not None:
            assert made.ids == [320, *before, *ids, *after]
        assert made.against == [320, *[322] * (len(made.ids) - 2), 323]
    # No text is the padded prompt of an empty caption, in losses and on both sides of guidance.
    alone = prompt(preset, tokenizers, None)
    assert alone.ids == alone.against == prompt(preset, tokenizers, "").against


T2I = [3, 24, 20, 29, 29, 29, 29, 16, 63, 20, 13, 3, 20, 42, 34, 60]


@pytest.mark.parametrize(
    ("preset", "changes", "record", "ids"),
    [
        (
            *("liquid", {}, {"text": CAPTIONS[0], "image_codes": T2I}),
            [2, 75, 109, 116, 121, 124, 129, *LIQUID_SUFFIX, *(185 + code for code in T2I), 8, 1],
        ),
        ("liquid", {}, {"image_codes": T2I}, [2, 9, 7, *(185 + code for code in T2I), 8, 1]),
        ("liquid", {}, {"text": CAPTIONS[1]}, [2, 76, 86, 95, 79, 119, 22, 124, 119, 24]),
        ("simplear", {}, {"image_codes": [38, 44]}, [339, 341, 384, 390]),
        (
            *("chameleon", {}, {"text": CAPTIONS[0], "image_codes": [13, 2, 24, 24]}),
            [0, 139, 173, 180, 185, 188, 193, 69, 17, 6, 28, 28, 68],
        ),
        (
            *("anole", {}, {"text": CAPTIONS[0], "image_codes": [29, 4]}),
            [0, 139, 173, 180, 185, 188, 193, 70, 69, 33, 8, 68],
        ),
        (
            # Training has no suffix behind the caption; each row of codes ends, the last row too.
            "emu3",
            {"prompt": {"text": "{caption}<|image start|>{rows}*{columns}<|image token|>"}},
            {"text": SHIBA[0], "image_codes": [44, 15, 5, 0, 19, 27, 19, 7, 25, 3, 5, 2, 36, 39, 22, 8]},
            [
                *(526, 64, 220, 314, 285, 220, 271, 84, 529, 19, 9, 19, 528, 575, 546, 536, 531, 523, 550, 558, 550),
                *(538, 523, 556, 534, 536, 533, 523, 567, 570, 553, 539, 523, 524, 530),
            ],
        ),
        (
            "emu3",
            {
                "prompt": {"text": "{caption}<|image start|>{rows}*{columns}<|image token|>"},
                "image": {"grid": [3, 5]},
            },
            {"text": "", "image_codes": [37, 11, 12, 8, 31, 25, 11, 5, 47, 0, 32, 33, 28, 23, 13]},
            [
                *(526, 529, 18, 9, 20, 528, 568, 542, 543, 539, 562, 523, 556, 542, 536, 578, 531, 523, 563, 564, 559),
                *(554, 544, 523, 524, 530),
            ],
        ),
    ],
)
def test_sequences_are_those_of_training(
    preset: str,
    changes: Any,
    record: dict[str, Any],
    ids: list[int],
    tokenizers: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    layout = layout_of(preset, **changes)
    data = read(layout, tokenizers[FAMILY.get(preset, preset)], tmp_path, record)
    [entry] = data.records
    assert layout.sequence(entry.text_ids, entry.image_codes, in_template=False).ids == ids
    if entry.image_codes and entry.text_ids:
        before = layout.prompt(entry.text_ids, len(entry.image_codes)).ids
        assert ids[: len(before)] == before


def read(layout: VocabularyLayout, tokenizer: Path, folder: Path, *records: dict[str, Any]) -> TokenData:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_tokens(path, tokenizer, layout.text.bos, form=layout.prompt_form)


def test_codes_in_an_order_of_their_own_have_the_rows_of_their_names() -> None:
    """The 34B's stand-in has the names of codes shuffled: a map within the block says so."""
    order = random.Random(0).sample(range(64), 64)
    layout = layout_of("chameleon", image={"map": [order.index(code) for code in range(64)]})
    assert list(layout.image_ids or ())[:6] == [49, 47, 8, 56, 32, 55]
    assert layout.text_ranges == (range(4), range(70, 249))


def test_the_sizes_of_presets_are_the_published_ones() -> None:
    """Ids as the authors' code has them."""
    rows = {"liquid": 264_192, "simplear": 215_672, "emu3": 184_622, "chameleon": 65_536, "janus": 118_784}
    layouts = {name: parse_layout(name).resolve(size) for name, size in rows.items()}
    assert {name: layout.image_range for name, layout in layouts.items()} == {
        "liquid": range(256_000, 264_192),
        "simplear": range(151_672, 215_672),
        "emu3": range(151_854, 184_622),
        "chameleon": range(4, 8_196),
        "janus": range(102_400, 118_784),
    }
    special = {name: dict(layout.special) for name, layout in layouts.items()}
    assert special["liquid"] == {"eos": 1, "boi": 7, "eoi": 8, "unconditional": 9}
    assert special["chameleon"] == {"eoi": 8_196, "boi": 8_197}
    assert list(special["simplear"].values()) == list(range(151_665, 151_672))
    names = {"eol": 151_846, "eof": 151_847, "bos": 151_849, "eos": 151_850, "img": 151_851, "boi": 151_852}
    assert special["emu3"] == {**names, "eoi": 151_853}
    assert layouts["emu3"].row_end_id == 151_846
    assert [layouts[name].text.bos for name in rows] == [2, "none", 151_849, 0, 100_000]
    assert layouts["chameleon"].text_ranges == (range(4), range(8_198, 65_536))
    assert parse_layout("anole").digest != parse_layout("chameleon").digest


def test_all_of_the_prompt_is_in_the_digest() -> None:
    """Another negative prompt draws other images."""
    digests = {parse_layout("simplear").digest}
    for field in ("text", "unconditional", "negative"):
        digests.add(parse_layout({"preset": "simplear", "prompt": {field: "{caption}" * (field == "text")}}).digest)
    pads = [parse_layout({"preset": "janus", "prompt": {"pad": pad}}).digest for pad in ("<a>", "<b>")]
    pads.append(parse_layout({"preset": "janus", "prompt": {"strip": False}}).digest)
    ends = [parse_layout({"preset": "emu3", "image": image}).digest for image in ({"row_end": "eof"}, {"grid": [1, 2]})]
    assert len({*digests, *pads, *ends}) == 9


# Attacks


@pytest.mark.parametrize("caption", ["{rows} {caption} {{ }} {0.__class__}", "%s {columns}", "}{"])
def test_attack_by_fields_in_a_caption(caption: str, tokenizers: Mapping[str, Path]) -> None:
    """A caption is put in once, as it stands."""
    encode = encoder(layout_of("emu3"), tokenizers["emu3"])
    assert encode.form is not None
    text = encode.form.filled(encode.form.prompt.text, 16, caption)
    end = " masterpiece, film grained, best quality.<|image start|>4*4<|image token|>"
    assert text == f"{caption}{end}"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(
            ("text", text)
            for text in ("", "caption", "{caption} {caption}", "{Caption}", "{caption!r}", "{caption:99999}")
        ),
        *(
            ("text", text)
            for text in ("{caption.__class__}", "{caption}{}", "{caption}{0}", "{caption} }", "{ {caption}")
        ),
        *(("text", text) for text in ("{caption}\0", "{caption}\ud800", "{caption}" + "a" * 3_992, "{{caption}}")),
        *(("negative", text) for text in ("{caption}", "{rows", "}")),
        *(("unconditional", text) for text in ("{caption}", "{text}")),
        ("pad", ""),
    ],
)
def test_attack_by_a_template(field: str, text: str) -> None:
    content = {"text": "{caption}", field: text}
    with pytest.raises(InvalidLayout, match=r"prompt\."):
        parse_layout({"preset": "liquid", "prompt": {"unconditional": None, **content}})


def test_a_template_at_its_bounds_is_read() -> None:
    assert PromptText(text="{caption}" + "a" * 3_991).needs_grid is False
    assert PromptText(text="{{x}} {caption} {rows}").needs_grid


@pytest.mark.parametrize("other", ["unconditional", "negative"])
def test_attack_by_two_other_sides_of_guidance(other: str) -> None:
    with pytest.raises(InvalidLayout, match=f"both `pad` and `{other}`"):
        parse_layout({"preset": "janus", "prompt": {other: ""}})


@pytest.mark.parametrize(
    ("preset", "caption"),
    [("liquid", "a dog<boi>"), ("simplear", "<|soi|>"), ("emu3", "a <|image token|> b"), ("janus", "<|User|>: hi")],
)
def test_attack_by_names_of_special_tokens_in_a_caption(
    preset: str, caption: str, tokenizers: Mapping[str, Path], tmp_path: Path
) -> None:
    """The authors' tokenizers turn them into tokens; so do ours, and the records are counted."""
    assert prompt(preset, tokenizers, caption).names_tokens
    records = [{"text": text, "image_codes": [0, 1, 2, 3]} for text in (caption, "a dog", caption)]
    data = read(layout_of(preset), tokenizers[preset], tmp_path, *records)
    assert [record.names_tokens for record in data.records] == [True, False, True]


def test_attack_by_the_name_of_bos_at_the_beginning_of_a_caption(tokenizers: Mapping[str, Path]) -> None:
    """It took the place of `bos`, and the number of special tokens was as ever."""
    plain, made = (prompt("chameleon", tokenizers, caption) for caption in ("a dog", "<s>a dog"))
    assert (made.ids, made.names_tokens) == ([0, *plain.ids], True)
    begins = layout_of("chameleon", prompt={"text": "<s>{caption}<racm3:break>"})
    assert encoder(begins, tokenizers["chameleon"]).prompt("a dog", 16).ids == plain.ids


def test_attack_by_the_name_of_an_image_code_in_a_caption(tokenizers: Mapping[str, Path], tmp_path: Path) -> None:
    """It would be counted as a code of the image, beyond the grid; the tokenizer's ids of codes are no text."""
    layout, path = layout_of("emu3"), tokenizers["emu3"]
    data = read(layout, path, tmp_path, {"text": "a <|visual token 000005|>", "image_codes": [0]}, {"text_ids": [536]})
    for record in data.records:
        with pytest.raises(InvalidData, match="has the text id 536, whose row is that of an image code"):
            layout.sequence(record.text_ids, record.image_codes, in_template=False)


def test_attack_by_the_tokenizer_from_before_the_training(tokenizers: Mapping[str, Path], tmp_path: Path) -> None:
    """Gemma's own file has <unused0> where Liquid's has <boi>, which would be spelled out letter by letter."""
    names = [f"<unused{place - 7}>" if place >= 7 else name for place, name in enumerate(GEMMA)]
    by_hand(names, marked(names), byte_level=False).save(str(tmp_path / "gemma.json"))
    layout = layout_of("liquid")
    message = "has a prompt with <boi>, but that is no token of the tokenizer"
    with pytest.raises(InvalidData, match=message):
        encoder(layout, tmp_path / "gemma.json").prompt("a dog", 16)
    with pytest.raises(InvalidData, match=rf"data.jsonl, line 1 {message}"):
        read(layout, tmp_path / "gemma.json", tmp_path, {"text": "a", "image_codes": [1]})


def test_attack_by_a_pad_that_the_tokenizer_lacks(tokenizers: Mapping[str, Path]) -> None:
    """As the first release of Janus-1.3B, whose guidance did nothing."""
    layout = layout_of("janus", prompt={"pad": "<pad>"})
    with pytest.raises(InvalidData, match=r"`prompt\.pad` is no token of the tokenizer"):
        encoder(layout, tokenizers["janus"]).prompt("a dog", 16)


def test_attack_by_captions_as_ids(tokenizers: Mapping[str, Path], tmp_path: Path) -> None:
    """Ids of a caption cannot merge with what follows it: the prompt would be another one, and nothing would say so."""
    layout, path = layout_of("liquid"), tokenizers["liquid"]
    with pytest.raises(InvalidData, match="line 2 has an image and `text_ids`, but the layout has a `prompt`"):
        read(layout, path, tmp_path, {"text_ids": [75]}, {"text_ids": [75], "image_codes": [1]})
    own = layout_of("liquid", prompt=None)
    [record] = read(own, path, tmp_path, {"text_ids": [2, 75, 7], "image_codes": [1]}).records
    assert own.sequence(record.text_ids, record.image_codes).ids == [2, 75, 7, 186, 8, 1], "all ids are given"
    arrays = {"text_ids": numpy.array([[75]]), "image_codes": numpy.array([[1]])}
    save_file(arrays, tmp_path / "data.safetensors")
    with pytest.raises(InvalidData, match="record 1 has an image and `text_ids`"):
        read_tokens(tmp_path / "data.safetensors", path, 2, form=layout.prompt_form)
    save_file({"image_codes": arrays["image_codes"]}, tmp_path / "data.safetensors")
    [record] = read_tokens(tmp_path / "data.safetensors", path, 2, form=layout.prompt_form).records
    assert list(record.text_ids or ()) == [2, 9, 7]
    with pytest.raises(InvalidData, match="`image_codes` is empty"):
        read(layout, path, tmp_path, {"text": "a", "image_codes": []})
    (tmp_path / "data.jsonl").write_text('{"image_codes": [1]}')
    with pytest.raises(InvalidData, match="line 1 has an image, whose text the layout's `prompt` writes, but no token"):
        read_tokens(tmp_path / "data.jsonl", None, 2, form=layout.prompt_form)


def test_attack_by_a_caption_that_does_not_fit(tokenizers: Mapping[str, Path], tmp_path: Path) -> None:
    """To cut its end would cut `<boi>`."""
    layout = layout_of("liquid", length=24)
    record = {"text": "a red dog on the grass", "image_codes": [1, 2, 3, 4, 5]}
    [entry] = read(layout, tokenizers["liquid"], tmp_path, record).records
    with pytest.raises(InvalidData, match="has a prompt of 16 tokens, 23 with its image; the layout's length is 22"):
        layout_of("liquid", length=22).sequence(entry.text_ids, entry.image_codes)
    assert layout.sequence(entry.text_ids, entry.image_codes).cut == 0
    assert layout_of("liquid", length=3).sequence([75, 76, 77, 78], None, in_template=False).cut == 1
    with pytest.raises(InvalidData, match="text without an image, which the layout's `prompt` does not describe"):
        layout.sequence([75], None)


def test_attack_by_a_row_that_is_no_whole_row() -> None:
    layout = layout_of("emu3")
    for codes in (0, 2, 15):
        with pytest.raises(InvalidData, match=f"has {codes} image codes, but the layout's images are a square"):
            layout.grid_of(codes)
    with pytest.raises(InvalidData, match="has 15 image codes"):
        layout.sequence([64], list(range(15)))
    # The ends of rows need their room.
    assert len(layout_of("emu3", length=23).sequence([64], [0] * 16).ids) == 23
    with pytest.raises(InvalidData, match="23 with its image; the layout's length is 22"):
        layout_of("emu3", length=22).sequence([64], [0] * 16)


def test_attack_by_an_image_without_text_where_training_had_none(
    tokenizers: Mapping[str, Path], tmp_path: Path
) -> None:
    layout = layout_of("liquid", prompt={"unconditional": None})
    assert encoder(layout, tokenizers["liquid"]).prompt("a", 16).against is None
    with pytest.raises(InvalidData, match=r"line 1 is an image without text, but .* neither `unconditional` nor `pad`"):
        read(layout, tokenizers["liquid"], tmp_path, {"image_codes": [1]})


@pytest.mark.parametrize("name", [name for name, preset in presets().items() if isinstance(preset, PublishedPreset)])
@pytest.mark.parametrize(("text_size", "codebook_size"), [(1, 1), (2, 64), (40, 38), (1, 10**9)])
def test_attack_by_sizes_that_move_rows_below_zero(name: str, text_size: int, codebook_size: int) -> None:
    """A negative row would count from the end of the table: inside of the image rows, without a word."""
    spec = {"preset": name, "text_size": text_size, "codebook_size": codebook_size}
    refused = None
    try:
        layout = parse_layout(spec)
    except InvalidLayout as error:
        refused = error.message
    if refused is not None:
        assert re.search("overlaps|a row of the preset would be -|no row that is neither", refused)
        return
    assert layout.image is not None
    assert min([layout.image.offset, *layout.special.values()]) >= 0


@pytest.mark.parametrize("block", [{"image": {"offset": -64, "size": 64}}, {"special": {"pad": -1}}])
def test_attack_by_a_table_that_was_never_widened(block: dict[str, Any]) -> None:
    """Rows counted from the end of the table would be those of text, and every number would look fine."""
    with pytest.raises(InvalidLayout, match=r"text .0…511. overlaps (image|special)"):
        parse_layout({"text": {"size": 512}, **block}).resolve(512)


def test_attack_by_special_tokens_that_cut_the_text_to_pieces() -> None:
    """Each range is a pass over the logits of a loss."""
    special = {f"t{row}": row for row in range(0, 2_000, 2)}
    with pytest.raises(InvalidLayout, match="divide the text into 1,000 ranges"):
        parse_layout({"text": {"size": 2_000}, "special": special})
    assert len(parse_layout({"text": {"size": 510}, "special": dict(list(special.items())[:255])}).text_ranges) == 255
