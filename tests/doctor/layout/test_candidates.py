"""Which layouts are tried, and which of them cannot be told apart."""

from array import array
from collections.abc import Sequence

import pytest

from evalsvc.data.tokens import Record
from evalsvc.doctor.layout.search import TEMPLATES, Candidate, Sizes, find_sizes, propose
from evalsvc.errors import InvalidData
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.layout_presets import presets


def pair(text: Sequence[int] = (1, 2, 9), codes: Sequence[int] = (0, 3, 1, 3)) -> Record:
    return Record(array("i", text), array("i", codes), "line 1")


SIZES = Sizes((10,), 4, ())
OWN = {"preset": "image-then-special", "text_size": 10, "codebook_size": 4}


def test_every_preset_is_tried_or_dropped_with_its_reason() -> None:
    """A preset that is forgotten here would never be found."""
    candidates, dropped = propose(21, [pair()], SIZES, {})
    labels = {label for candidate in candidates for label in (candidate.label, *candidate.same)}
    tried = {label.partition(" (")[0] for label in labels}
    assert tried | set(dropped) == {f"{preset} 10" for preset in presets()}
    assert list(dropped) == ["split-tables 10"]
    widened, bare = ["liquid", "widened"], ["text, image; bare", "image, text; bare"]
    assert len(labels) == len(TEMPLATES) * (len(presets()) - 1 - len(widened)) + len(widened) * len(bare)


def test_same_ids_are_one_candidate() -> None:
    """Two candidates with equal losses would each keep the other from being decided, for ever."""
    candidates, _ = propose(21, [pair()], SIZES, {})
    written = [tuple(map(tuple, candidate.sequences([pair()]))) for candidate in candidates]
    assert len(written) == len(set(written))
    first = candidates[0]
    assert first.label == "image-then-special 10 (text, image)"
    assert "dense-image-then-special 10 (text, image)" in first.same
    # A gap tells layouts apart that an exact table does not.
    end = "image-at-end 10 (text, image)"
    for rows, apart in ((21, False), (24, True)):
        candidates, _ = propose(rows, [pair()], SIZES, {})
        special_first = next(item for item in candidates if item.label == "special-then-image 10 (text, image)")
        assert (end not in special_first.same) == apart


def test_table_without_special_tokens_keeps_the_bare_templates() -> None:
    candidates, dropped = propose(14, [pair()], SIZES, {})
    assert {item.template for item in candidates} == {"text, image; bare", "image, text; bare"}
    assert "exceeds the table of 14 rows" in dropped["image-then-special 10"]


def test_own_layout_comes_first_and_says_which_presets_are_the_same() -> None:
    mine, other = parse_layout(OWN), parse_layout(OWN | {"rows": 99})
    candidates, dropped = propose(21, [pair()], SIZES, {"mine.yaml": mine, "other.yaml": other})
    assert candidates[0].label == "mine.yaml (its own)"
    assert "image-then-special 10 (text, image)" in candidates[0].same
    assert dropped["other.yaml"].startswith("the layout is for a table of 99 rows, the model has 21")


def test_data_rule_out_sizes() -> None:
    candidates, dropped = propose(21, [pair(text=[9])], Sizes((9, 10), 4, ()), {})
    assert not any(candidate.name.endswith(" 9") for candidate in candidates)
    assert any("has the text id 9; the text block has 0…8" in reason for reason in dropped.values())


def test_sizes_are_inferred_from_table_and_data_or_taken_as_they_are() -> None:
    found = find_sizes(583, [pair(text=[511], codes=[63])])
    assert (found.text, found.codebook) == ((512, 519), 64)
    assert found.notes[0] == "codebook of 64 inferred from the highest code 63"
    assert found.notes[1].startswith("text sizes 512, 519 inferred from a table of 583 rows")
    assert {50_432, 50_277} <= set(find_sizes(66_944, [pair(codes=[16_383])]).text), "open_lm's own, padded"
    assert find_sizes(583, [pair()], [512, 500], 64) == Sizes((512, 500), 64, ())
    with pytest.raises(InvalidData, match="more than the model's 512 rows"):
        find_sizes(512, [pair(text=[511], codes=[63])])


def test_silent_rows_are_those_without_any_use_but_the_pad() -> None:
    templates = {"template": ["text", "TEXT", "/text", "IMAGE"], "unconditional_template": None}
    candidate = Candidate("mine.yaml", "its own", parse_layout(OWN | templates).resolve(23))
    assert candidate.unclaimed_rows() == list(range(14, 23))
    assert candidate.silent_rows() == [14, 15, 18, 19, 21, 22]  # doc, /doc, image, /image and the rows of no block


def test_reordering_goes_through_a_map_that_is_there() -> None:
    own = parse_layout(OWN | {"image": {"map": [3, 1, 0, 2]}})
    candidates, _ = propose(21, [pair()], SIZES, {"mine.yaml": own})
    moved = candidates[0].reordered([1, 0, 3, 2])
    assert list(moved.layout.image_ids or ()) == [11, 13, 12, 10]
