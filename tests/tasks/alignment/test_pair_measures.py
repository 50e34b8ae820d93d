"""What a table knows of pairs, against the definitions one pair at a time."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.data.tokens import read_tokens
from evalsvc.errors import InvalidData
from evalsvc.metrics.contrastive import clip_loss, fit_scale
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.tasks.alignment.pair_measures import (
    TableMeasures,
    Tables,
    TokenPairs,
    bag_means,
    batches,
    measure,
    near_tokens,
    pairs_of,
    similarities,
    tables_of,
)
from evalsvc.tasks.alignment.spec import Alignment

TASK = Alignment(name="alignment", data="/pairs.jsonl", neighbours=3, permutations=49, seed=0)


def tables(seed: int = 0, width: int = 10) -> Tables:
    generator = torch.Generator().manual_seed(seed)
    return Tables(torch.randn(25, width, generator=generator), torch.randn(9, width, generator=generator), known=20)


def pairs(count: int, seed: int = 0) -> TokenPairs:
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(4, (2,), generator=generator).tolist() for _ in range(count)]
    codes = [torch.randint(9, (6,), generator=generator).tolist() for _ in range(count)]
    return TokenPairs(tuple(range(count)), tuple(texts), tuple(codes))


def slow_similarity(own: Tables, some: TokenPairs) -> Tensor:
    text, image = (
        torch.stack([functional.normalize(sum(table[row].double() for row in bag), dim=0) for bag in bags])  # type: ignore[arg-type]
        for table, bags in ((own.text, some.texts), (own.image, some.codes))
    )
    return image @ text.T


def test_a_bag_is_the_mean_of_its_rows() -> None:
    own, some = tables(), pairs(30)
    found = similarities(own, some)
    torch.testing.assert_close(found.pairs, slow_similarity(own, some))


def test_equal_captions_have_equal_similarities_to_the_last_bit() -> None:
    """Else of two captions with the same words one would be nearer by rounding, and the other one wrong."""
    some = pairs(40)
    found = similarities(tables(), some)
    for i, j in torch.combinations(torch.arange(40)).tolist():
        same = sorted(some.texts[i]) == sorted(some.texts[j])
        assert bool(found.right[i, j]) == same
        if same:
            assert torch.equal(found.pairs[:, i], found.pairs[:, j])


def test_a_permuted_image_block_has_its_rows_where_its_map_says() -> None:
    """Rows in the order of the table would have every code's meaning swapped."""
    order = [(5 * code + 3) % 8 for code in range(8)]
    layout = parse_layout({"text": {"size": 4}, "image": {"offset": 4, "size": 8, "map": order}}).resolve(12)
    table = torch.arange(12.0)[:, None]
    model: Any = SimpleNamespace(input_table=table, output_table=-table)
    found = tables_of(model, layout, output=False, known=4)
    assert found.image[:, 0].tolist() == [4.0 + row for row in order]
    assert found.text[:, 0].tolist() == [0, 1, 2, 3]
    assert tables_of(model, layout, output=True, known=4).image[0, 0] == -7


def named(found: TableMeasures, column: str) -> float:
    values = found.columns[column]
    return float(sum(values) / len(values))


def test_every_number_is_its_definition() -> None:
    own, some = tables(), pairs(30)
    found = measure(own, [some], TASK)
    matrix = slow_similarity(own, some)
    targets, scale = torch.arange(30), found.fitted_scale
    loss = sum(functional.cross_entropy(scale * logits, targets) for logits in (matrix, matrix.T)) / 2
    assert named(found, "loss_fitted") == pytest.approx(float(loss))
    assert named(found, "loss_fitted") == pytest.approx(float(clip_loss(matrix, fit_scale([matrix])).mean()))
    text = bag_means(own.text, some.texts)
    within = [float(text[i] @ text[j]) for i in range(30) for j in range(30) if i != j]
    assert named(found, "cosine_text") == pytest.approx(sum(within) / len(within))
    bags = [tuple(sorted(one)) for one in some.texts]
    best = [max(range(30), key=lambda j, row=row: float(row[j])) for row in matrix]  # type: ignore[misc]
    right = [bags[i] == bags[j] for i, j in enumerate(best)]
    assert named(found, "image_to_text_at_1") == pytest.approx(sum(right) / 30)
    nearest = [max(range(30), key=lambda i, row=row: float(row[i])) for row in matrix.T]  # type: ignore[misc]
    assert named(found, "text_to_image_at_1") == sum(bags[j] == bags[i] for j, i in enumerate(nearest)) / 30
    copies = [bags.count(bag) for bag in bags]
    assert found.floor == pytest.approx(sum(map(math.log, copies)) / 30)
    assert found.chance["at_1"] == pytest.approx(sum(copies) / 900)
    ways = [1 - math.comb(30 - count, 5) / math.comb(30, 5) for count in copies]
    assert found.chance["at_5"] == pytest.approx(sum(ways) / 30)


def test_hits_are_counted_image_by_image() -> None:
    own, some = tables(), pairs(30)
    found = measure(own, [some], TASK)
    unit = functional.normalize(own.image, dim=1) @ functional.normalize(own.text[:20], dim=1).T
    near = {code: set(unit[code].topk(3).indices.tolist()) for code in range(9)}
    for name, of_text in (("own", lambda i: [some.texts[i]]), ("any", lambda i: some.texts)):
        total = 0
        for i, codes in enumerate(some.codes):
            total += sum(word in near[code] for text in of_text(i) for code in set(codes) for word in set(text))
        if name == "own":
            assert sum(found.columns["neighbour_hits"]) == total > 0
        else:
            at_most = sum(3 * len(set(codes)) for codes in some.codes)
            assert sum(found.columns["neighbours"]) == at_most
            assert found.hit_chance["neighbour_hits"] == pytest.approx(total / 30 / at_most)


def test_padding_rows_are_nearest_to_nothing() -> None:
    """Rows that no token has are near to much in tables where they were never trained."""
    own = tables()
    own.text[20:] = own.image[0]
    near = near_tokens(own, [pairs(20)], count=3)
    assert int(near.nearest["neighbour_hits"].rows.max()) < 20


def test_batches_are_measured_apart_and_fitted_together() -> None:
    own, first, second = tables(), pairs(20, seed=1), pairs(20, seed=2)
    found = measure(own, [first, second], TASK)
    alone = [measure(own, [part], TASK) for part in (first, second)]
    for column in ("cosine_excess", "image_to_text_at_5", "text_to_image_at_10", "cosine_image"):
        assert found.columns[column] == pytest.approx(alone[0].columns[column] + alone[1].columns[column])
    assert found.fitted_scale == pytest.approx(fit_scale([slow_similarity(own, part) for part in (first, second)]))


LAYOUT: VocabularyLayout = parse_layout({"text": {"size": 20}, "image": {"offset": 20, "size": 8}}).resolve(30)


def read_pairs(path: Path, *records: dict[str, Any], limit: int | None = None) -> TokenPairs:
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
    found = read_pairs(tmp_path / "d.jsonl", lone[0], pair(1), *lone[1:], pair(2), pair(3))
    assert found.places == (1, 4, 5)
    assert [list(codes) for codes in found.codes] == [[1], [2], [3]]
    assert read_pairs(tmp_path / "d.jsonl", lone[0], pair(1), *lone[1:], pair(2), pair(3), limit=5).places == (1, 4)


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
        read_pairs(tmp_path / "d.jsonl", *records)


def test_an_image_counts_once(tmp_path: Path) -> None:
    """COCO has five captions an image, which are neither independent nor wrong for each other's image."""
    found = read_pairs(tmp_path / "d.jsonl", pair(1, text=(1,)), pair(2, text=(2,)), pair(1, text=(3,)), pair(1, 1))
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
