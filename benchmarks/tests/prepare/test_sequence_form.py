from typing import Any

import pytest
from prepare.sequence_form import sequence_form

from evalsvc.errors import EvalsvcError, InvalidLayout
from evalsvc.spec.layout import parse_layout

PAPER: dict[str, Any] = {"preset": "image-then-special"}


def test_the_papers_form() -> None:
    form = sequence_form(parse_layout(PAPER), 1024, 16_384, 1153)
    assert (form.length, form.room, form.rows, form.pad) == (1153, 122, 66_823, 66_822)
    ids = form.ids([7] * 200, [16_383] * 1024)
    assert ids[:3] == [66_816, 66_818, 7]
    assert ids[124:127] == [66_819, 66_820, 66_815]
    assert ids[-3:] == [66_821, 66_817, 66_822]
    assert form.cut([7] * 200) == 78
    assert form.count_tokens([7] * 200) == {"text": 122, "image": 1024, "special": 6, "pad": 1}
    assert form.count_tokens([7] * 20) == {"text": 20, "image": 1024, "special": 6, "pad": 103}


def test_rows_are_given_or_follow_from_the_blocks() -> None:
    negative = {"preset": "negative-special"}
    assert sequence_form(parse_layout(negative | {"rows": 70_000}), 1024, 16_384, None).pad == 69_993
    with pytest.raises(InvalidLayout, match="count from the end of the table; add `rows`, the table's size"):
        sequence_form(parse_layout(negative), 1024, 16_384, None)


@pytest.mark.parametrize(
    ("layout", "codes", "records", "words"),
    [
        ({"text": {"size": 9}}, 4, None, "--layout has no image ids, but the decoder has 16,384 codes"),
        (PAPER | {"codebook_size": 64}, 4, None, "--layout has 64 image ids, but the decoder has 16,384 codes"),
        (PAPER | {"length": 1_030}, 1024, None, "--layout has the length 1,030, which leaves no room for text"),
        (
            PAPER | {"length": 500},
            1024,
            None,
            "too small a length: an image has 1024 image codes, 1030 tokens with the",
        ),
        ({"preset": "widened"}, 4, None, "--layout has no length, to which all sequences are filled up; add it"),
        ({"preset": "widened", "length": 99}, 4, None, "--layout has no special token `pad`"),
        (PAPER, 1024, 1_151, "--records is 1,151, but the layout's length is 1,152; give this number, or 1,153"),
        (PAPER, 1024, 1_154, "--records is 1,154"),
    ],
)
def test_what_does_not_fit_is_named(layout: dict[str, Any], codes: int, records: int | None, words: str) -> None:
    with pytest.raises(EvalsvcError) as caught:
        sequence_form(parse_layout(layout), codes, 16_384, records)
    assert words in caught.value.message
