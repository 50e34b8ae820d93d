from array import array
from dataclasses import replace

import pytest
from prepare.records import PairRecord, Records, Split

from evalsvc.errors import InvalidRequest


def test_held_out_images_stay_held_out_when_data_are_added() -> None:
    """Validation images of last year's data must not be this year's training images: most stay where they are."""
    images = {f"image {number}" for number in range(1_000)}
    split = Split(3, 50)
    before, after = split.held_out(images), split.held_out(images | {f"new {number}" for number in range(100)})
    assert len(before) == len(after) == 50
    assert len(before & after) > 35
    assert split.held_out(images) == before != Split(4, 50).held_out(images)


def test_the_order_is_drawn_and_fixed() -> None:
    """Written down, since another order would be another data set."""
    names = [f"{number}" for number in range(8)]
    assert sorted(names, key=Split(0, 0).draw) == ["6", "4", "2", "1", "7", "5", "0", "3"]
    assert Split(0, 0).held_out(set()) == set()
    with pytest.raises(InvalidRequest, match="--held-out is 8, but the source has 8 different images"):
        Split(0, 8).held_out(set(names))


def test_the_digest_tells_data_sets_apart() -> None:
    first, second = (PairRecord(key, "a", array("i", [1]), "a.png", "f", "p", 0) for key in "ab")
    records = Records([first, second], [], [], 0)
    others = [
        replace(records, training=[second, first]),
        replace(records, training=[first], held_out=[second]),
        replace(records, training=[first, replace(second, file="g")]),
    ]
    assert len({item.digest for item in (records, *others)}) == 4
