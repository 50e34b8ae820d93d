"""Which records are pairs, and how they are divided."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalsvc.data.tokens import read_tokens
from evalsvc.errors import InvalidData
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.tasks.alignment.pair_measures import TokenPairs, batches, pairs_of

LAYOUT: VocabularyLayout = parse_layout({"text": {"size": 20}, "image": {"offset": 20, "size": 8}}).resolve(30)


def pairs(path: Path, *records: dict[str, Any], limit: int | None = None) -> TokenPairs:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return pairs_of(read_tokens(path), LAYOUT, limit)


def pair(*codes: int, text: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    return {"text_ids": list(text), "image_codes": list(codes)}


def many(count: int) -> TokenPairs:
    return TokenPairs(
        tuple(range(10, 10 + count)), ((1,),) * count, tuple((0, row % 8, row // 8) for row in range(count))
    )


def test_records_that_lack_a_part_are_no_pairs(tmp_path: Path) -> None:
    """A mean over nothing is no embedding; the places are still those of the data's records."""
    lone = [{"text_ids": [3]}, {"image_codes": [3]}, {"text_ids": [], "image_codes": [4]}]
    found = pairs(tmp_path / "d.jsonl", lone[0], pair(1), *lone[1:], pair(2), pair(3))
    assert found.places == (1, 4, 5)
    assert [list(codes) for codes in found.codes] == [[1], [2], [3]]
    assert pairs(tmp_path / "d.jsonl", lone[0], pair(1), *lone[1:], pair(2), pair(3), limit=5).places == (1, 4)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([pair(1), pair(2), pair(3, text=(20,))], "line 3 .*text id 20"),
        ([pair(1), pair(8)], "line 2 .*image code 8"),
        ([pair(1), {"text_ids": [1]}], "has 1 records with both text and image codes, but needs two"),
        ([pair(1), pair(1, text=(5,))], "has 2 records .* two of different images"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidData, match=message):
        pairs(tmp_path / "d.jsonl", *records)


def test_an_image_counts_once(tmp_path: Path) -> None:
    """COCO has five captions an image, which are neither independent nor wrong for each other's image."""
    found = pairs(tmp_path / "d.jsonl", pair(1, text=(1,)), pair(2, text=(2,)), pair(1, text=(3,)), pair(1, 1))
    one = found.one_per_image()
    assert one.places == (0, 1, 3)
    assert [list(text) for text in one.texts] == [[1], [2], [1, 2]]
    assert len(found) == 4


def test_batches_are_full_and_mixed() -> None:
    """A file sorted by what images show would have each told apart from its like."""
    found = batches(many(50), 16, seed=0)
    assert [len(part) for part in found] == [16, 16, 16]
    places = [place for part in found for place in part.places]
    assert len(set(places)) == 48
    assert places != sorted(places)
    assert batches(many(50), 16, seed=0) == found != batches(many(50), 16, seed=1)
    assert batches(many(16), 16, seed=0) == batches(many(16), 99, seed=1) == [many(16)]
