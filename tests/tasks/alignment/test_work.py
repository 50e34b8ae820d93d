"""Image tokens against text tokens: the bundled runs before and after their training."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import task_runs
import torch
from miniature_run import pretrained
from task_runs import artifacts, error, notes, run_task
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.data.tokens import read_tokens
from evalsvc.errors import InvalidData
from evalsvc.metrics.contrastive import fit_scale
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.tasks.alignment import pair_measures
from evalsvc.tasks.alignment.pair_measures import Tables, TokenPairs, batches, measure, pairs_of
from evalsvc.tasks.alignment.spec import Alignment

HELD_OUT = str(ROOT / "heldout_pairs.jsonl")


def evaluate(checkpoint: CheckpointRef, **parameters: Any) -> dict[str, Any]:
    parameters = {"data": HELD_OUT, "permutations": 99, **parameters}
    return run_task(checkpoint, kind="alignment", **parameters)


def metrics(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name.removeprefix("alignment/"): metric for name, metric in task_runs.metrics(result).items()}


def protocols(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: result["protocols"][metric["protocol"]] for name, metric in metrics(result).items()}


def test_new_rows_know_nothing_and_trained_ones_little() -> None:
    """What the paper found: the nearest text tokens of image tokens are noise, at every step."""
    both = [evaluate(pretrained(epoch), permutations=999) for epoch in (0, 5)]
    first, last = map(metrics, both)
    assert first["p_value"]["value"] > 0.2
    assert first["loss_fitted"]["value"] == math.log(300)
    # At the factor 0 all pairs have one loss, whose scatter is no error.
    assert (first["loss_fitted"]["stderr"], first["loss_fitted"]["items"]) == (None, [])
    assert last["loss_fitted"]["stderr"] > 0
    assert ["loss_fitted" in notes(result) for result in both] == [True, False]
    assert last["p_value"]["value"] == 1 / 1000
    assert first["loss_fitted"]["value"] - last["loss_fitted"]["value"] == pytest.approx(0.0027, abs=0.001)
    assert all(one["neighbour_p_value"]["value"] > 0.05 for one in (first, last))
    loss, noted = last["loss_fitted"], notes(both[1])
    assert noted["loss_floor"] < 2 < loss["value"] < loss["baseline"] == math.log(300)
    assert [noted[what] for what in ("records_without_a_pair", "images_again", "pairs_left_out")] == [0, 0, 0]


def test_the_nearest_tokens_are_shown_as_text() -> None:
    page = artifacts(evaluate(pretrained(0), neighbours=2))["nearest_tokens.txt"].decode()
    lines = page.splitlines()
    assert lines[0] == "nearest text tokens of the 61 most frequent of 61 image tokens"
    assert re.fullmatch(r"‹image \d+›  in 299 images", lines[3])
    assert re.fullmatch(r"  rows    (‹.+› -?\d\.\d\d  ){1}‹.+› -?\d\.\d\d", lines[4])
    assert lines[5].startswith("  centred ‹")
    without = pretrained(0, text={"offset": 0, "size": 512})
    page = artifacts(evaluate(without, neighbours=2))["nearest_tokens.txt"].decode()
    assert re.search(r"  rows    ‹text \d+› -?\d\.\d\d", page)


def test_what_moves_a_number_is_in_its_protocol_and_nothing_else() -> None:
    """A seed that moves only p-values must not begin a new series of losses."""
    one = evaluate(pretrained(0), permutations=20)
    two = evaluate(pretrained(0), permutations=30, seed=1, neighbours=3, limit=300)
    plain = protocols(one)
    same = {name for name, protocol in plain.items() if protocol == protocols(two)[name]}
    moved = {"p_value", "neighbour_p_value", "neighbour_p_value_centred", "neighbour_hits", "neighbour_hits_centred"}
    assert same == plain.keys() - moved
    assert all(metrics(one)[name]["value"] == metrics(two)[name]["value"] for name in same)
    for change in ({"batch": 100}, {"limit": 200}, {"table": "output"}, {"dtype": "bfloat16"}):
        other = protocols(evaluate(pretrained(0), permutations=20, **change))
        assert not [name for name in plain if other[name] == plain[name]]


def test_several_batches_are_chosen_by_the_seed_and_the_rest_is_counted() -> None:
    one, two = (evaluate(pretrained(5), batch=128, seed=seed, permutations=9) for seed in (0, 1))
    assert notes(one)["pairs_left_out"] == 44
    assert metrics(one)["loss_fitted"]["baseline"] == math.log(128)
    assert metrics(one)["loss_fitted"]["n"] == len(one["items"]["alignment"]) == 256
    assert protocols(one)["loss_fitted"] != protocols(two)["loss_fitted"]
    assert {item["index"] for item in one["items"]["alignment"]} < set(range(300))


def test_a_layout_without_images_is_refused() -> None:
    found = error(evaluate(replace(pretrained(0), layout={"text": {"size": 583}})))
    assert re.search("invalid_data: task 'alignment' needs image tokens, .* has no image block", found)


TASK = Alignment(name="alignment", data="/pairs.jsonl", neighbours=3, permutations=49, seed=0)


def tables() -> Tables:
    generator = torch.Generator().manual_seed(0)
    return Tables(torch.randn(25, 10, generator=generator), torch.randn(9, 10, generator=generator), known=20)


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


def test_equal_captions_have_equal_similarities_to_the_last_bit() -> None:
    """Else of two captions with the same words one would be nearer by rounding, and the other one wrong."""
    some = pairs(40)
    found = pair_measures.similarities(tables(), some)
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
    found = pair_measures.tables_of(model, layout, output=False, known=4)
    assert found.image[:, 0].tolist() == [4.0 + row for row in order]
    assert found.text[:, 0].tolist() == [0, 1, 2, 3]
    assert pair_measures.tables_of(model, layout, output=True, known=4).image[0, 0] == -7


def test_image_rows_inside_the_text_are_not_the_nearest_text() -> None:
    """Every code would be nearest to itself, and show that images are text."""
    blocks = {"text": {"offset": 2, "size": 9}, "image": {"offset": 4, "size": 3}, "special": {"eoi": 8}}
    layout = parse_layout(blocks).resolve(12)
    table = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    model: Any = SimpleNamespace(input_table=table, output_table=table)
    own = pair_measures.tables_of(model, layout, output=False, known=8)
    assert list(own.words or ()) == [0, 1, 5, 7], "the id 6 is special, and the id 8 is none of the tokenizer's"
    assert torch.equal(own.candidates, table[[2, 3, 7, 9]])
    near = pair_measures.near_tokens(own, [TokenPairs((0, 1), ((0,), (5,)), ((0, 1), (2, 2)))], 4)
    for nearest in near.nearest.values():
        assert [sorted(row) for row in nearest.rows.tolist()] == [[0, 1, 5, 7]] * 3
    plain = parse_layout({"text": {"size": 9}, "image": {"offset": 9, "size": 3}}).resolve(12)
    assert pair_measures.tables_of(model, plain, output=False, known=8).words is None


def test_every_number_is_its_definition() -> None:
    own, some = tables(), pairs(30)
    found = measure(own, [some], TASK)
    means = {name: sum(values) / len(values) for name, values in found.columns.items()}
    matrix = slow_similarity(own, some)
    targets, scale = torch.arange(30), found.fitted_scale
    loss = sum(functional.cross_entropy(scale * logits, targets) for logits in (matrix, matrix.T)) / 2
    assert means["loss_fitted"] == pytest.approx(float(loss))
    assert scale == pytest.approx(fit_scale([matrix]))
    text = pair_measures.bag_means(own.text, some.texts)
    within = [float(text[i] @ text[j]) for i in range(30) for j in range(30) if i != j]
    assert means["cosine_text"] == pytest.approx(sum(within) / len(within))
    bags = [tuple(sorted(one)) for one in some.texts]
    for way, rows in (("image_to_text_at_1", matrix), ("text_to_image_at_1", matrix.T)):
        right = sum(bags[row] == bags[best] for row, best in enumerate(rows.argmax(1).tolist()))
        assert means[way] == pytest.approx(right / 30)
    copies = [bags.count(bag) for bag in bags]
    assert found.floor == pytest.approx(sum(map(math.log, copies)) / 30)
    assert found.chance["at_1"] == pytest.approx(sum(copies) / 900)
    ways = [1 - math.comb(30 - count, 5) / math.comb(30, 5) for count in copies]
    assert found.chance["at_5"] == pytest.approx(sum(ways) / 30)


def test_hits_are_counted_image_by_image_and_padding_rows_are_nearest_to_nothing() -> None:
    own, some = tables(), pairs(30)
    found = measure(own, [some], TASK)
    unit = functional.normalize(own.image, dim=1) @ functional.normalize(own.text[:20], dim=1).T
    near = {code: set(unit[code].topk(3).indices.tolist()) for code in range(9)}
    hits = torch.zeros(30, 30)
    for (i, codes), (j, text) in product(enumerate(some.codes), enumerate(some.texts)):
        hits[i, j] = sum(word in near[code] for code in set(codes) for word in set(text))
    assert sum(found.columns["neighbour_hits"]) == hits.trace() > 0
    at_most = sum(3 * len(set(codes)) for codes in some.codes)
    assert sum(found.columns["neighbours"]) == at_most
    assert found.hit_chance["neighbour_hits"] == pytest.approx(float(hits.sum()) / 30 / at_most)

    # Rows that no token has are near to much in tables where they were never trained.
    own.text[20:] = own.image[0]
    near = pair_measures.near_tokens(own, [pairs(20)], count=3)
    assert int(near.nearest["neighbour_hits"].rows.max()) < 20


def test_batches_are_measured_apart_and_fitted_together() -> None:
    own, first, second = tables(), pairs(20, seed=1), pairs(20, seed=2)
    found = measure(own, [first, second], TASK)
    alone = [measure(own, [part], TASK) for part in (first, second)]
    for column in ("cosine_excess", "image_to_text_at_5", "text_to_image_at_10", "cosine_image"):
        assert found.columns[column] == pytest.approx(alone[0].columns[column] + alone[1].columns[column])
    assert found.fitted_scale == pytest.approx(fit_scale([slow_similarity(own, part) for part in (first, second)]))


PAIR_LAYOUT: VocabularyLayout = parse_layout({"text": {"size": 20}, "image": {"offset": 20, "size": 8}}).resolve(30)


def read_pairs(path: Path, *records: dict[str, Any], limit: int | None = None) -> TokenPairs:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return pairs_of(read_tokens(path), PAIR_LAYOUT, limit)


def pair(*codes: int, text: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    return {"text_ids": list(text), "image_codes": list(codes)}


def test_records_that_lack_a_part_are_no_pairs(tmp_path: Path) -> None:
    """A mean over nothing is no embedding; the places are still those of the data's records."""
    lone = [{"text_ids": [3]}, {"image_codes": [3]}, {"text_ids": [], "image_codes": [4]}]
    records = [lone[0], pair(1), *lone[1:], pair(2), pair(3)]
    found = read_pairs(tmp_path / "d.jsonl", *records)
    assert (found.places, [list(codes) for codes in found.codes]) == ((1, 4, 5), [[1], [2], [3]])
    assert read_pairs(tmp_path / "d.jsonl", *records, limit=5).places == (1, 4)


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
    assert (one.places, [list(text) for text in one.texts], len(found)) == ((0, 1, 3), [[1], [2], [1, 2]], 4)


def test_batches_are_full_and_mixed() -> None:
    """A file sorted by what images show would have each told apart from its like."""
    many, few = pairs(50), pairs(16)
    found = batches(many, 16, seed=0)
    assert [len(part) for part in found] == [16, 16, 16]
    places = [place for part in found for place in part.places]
    assert len(set(places)) == 48
    assert places != sorted(places)
    assert batches(many, 16, seed=0) == found != batches(many, 16, seed=1)
    assert batches(few, 16, seed=0) == batches(few, 99, seed=1) == [few]
