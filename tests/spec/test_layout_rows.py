"""Properties of random layouts: every row has one meaning, codes go to rows and back, and rows of codes end."""

import json
import random
from typing import Any

import pytest

from evalsvc.spec.layout import VocabularyLayout, parse_layout


def random_layout(seed: int) -> VocabularyLayout:
    """Draw a layout of blocks in any order, with image and special rows inside the text, outside, or both."""
    draw = random.Random(seed)
    rows, codes = draw.randint(30, 60), draw.choice([1, 4, 6, 9])
    text = draw.randint(12, rows - codes - 6)
    offset = draw.randint(0, rows - text)
    inside = range(offset, offset + text - codes + 1)
    places = [
        start
        for start in range(rows - codes + 1)
        if start in inside or not {*range(start, start + codes)} & {*range(offset, offset + text)}
    ]
    image = draw.choice(places)
    free = [row for row in range(rows) if row not in range(image, image + codes)]
    names = draw.sample(["boi", "eoi", "eol", "pad", "doc"], draw.randint(1, 5))
    chosen = draw.sample(free, len(names))
    ids = range(offset, offset + text)
    # A row inside the text is written as such, and others may be counted from the end.
    special = {
        name: row if row in ids else draw.choice([row, row - rows]) for name, row in zip(names, chosen, strict=True)
    }
    block: dict[str, Any] = {"offset": image if image in ids else draw.choice([image, image - rows]), "size": codes}
    if draw.random() < 0.5:
        block["map"] = draw.sample(range(codes), codes)
    if "eol" in names:
        block["row_end"] = "eol"
    if draw.random() < 0.5:
        block["grid"] = [draw.randint(1, 3), draw.randint(1, 4)]
    template = ["TEXT", *[name for name in names if name not in ("eol", "pad")], "IMAGE"]
    return parse_layout(
        {"text": {"offset": offset, "size": text}, "image": block, "special": special, "template": template}
    ).resolve(rows)


@pytest.mark.parametrize("seed", range(0, 600, 100))
def test_every_row_has_one_meaning(seed: int) -> None:
    for layout in map(random_layout, range(seed, seed + 100)):
        assert layout.image_ids is not None
        assert layout.rows is not None
        text = [row for part in layout.text_ranges for row in part]
        kinds = [set(layout.image_ids), set(layout.special.values()), set(text)]
        assert sum(map(len, kinds)) == len(set().union(*kinds)), "no row is of two kinds"
        assert set(text) == set(layout.text_ids) - kinds[0] - kinds[1]
        assert set().union(*kinds) <= set(range(layout.rows)), "the others are padding"
        assert text == sorted(text)
        assert len(text) == sum(map(len, layout.text_ranges))
        assert all(
            left.stop < right.start for left, right in zip(layout.text_ranges, layout.text_ranges[1:], strict=False)
        )


@pytest.mark.parametrize("seed", range(1_000, 1_600, 100))
def test_codes_go_to_rows_and_back_and_every_row_of_codes_ends(seed: int) -> None:
    for number in range(seed, seed + 100):
        layout, draw = random_layout(number), random.Random(number)
        assert layout.image is not None
        rows, columns = layout.image.grid or (draw.randint(1, 4),) * 2
        codes = [draw.randrange(layout.image.size) for _ in range(rows * columns)]
        ids = layout.sequence([], codes).ids
        assert ids[: len(layout.prompt([], len(codes)).ids)] == layout.prompt([], len(codes)).ids
        image = ids[len(layout.prompt([], len(codes)).ids) :]
        back = {row: code for code, row in enumerate(layout.image_ids or ())}
        assert [back[row] for row in image if row in back] == codes
        if layout.row_end_id is None:
            assert len(image) == len(codes)
        else:
            lines = [image[start : start + columns + 1] for start in range(0, len(image), columns + 1)]
            assert len(lines) == rows
            assert all(line[-1] == layout.row_end_id and len(line) == columns + 1 for line in lines)
            assert image.count(layout.row_end_id) == rows


@pytest.mark.parametrize("seed", range(2_000, 2_300, 100))
def test_a_layout_survives_json_and_says_nothing_that_it_does_not_have(seed: int) -> None:
    for layout in map(random_layout, range(seed, seed + 100)):
        content = layout.to_json()
        again = parse_layout(json.loads(json.dumps(content)))
        assert (again, again.digest, again.text_ranges) == (layout, layout.digest, layout.text_ranges)
        assert ("row_end" in content["image"]) == (layout.row_end_id is not None)
        assert "prompt" not in content, "layouts without one keep their digest"
