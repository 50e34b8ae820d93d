"""Image tokens against text tokens: the bundled runs before and after their training."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import task_runs
from metric_items import value_of_items
from miniature_run import LAYOUT, pretrained
from task_runs import artifacts, error, notes, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.miniature import ROOT

HELD_OUT = str(ROOT / "heldout_pairs.jsonl")


def evaluate(checkpoint: CheckpointRef, **parameters: Any) -> dict[str, Any]:
    parameters = {"data": HELD_OUT, "permutations": 99, **parameters}
    return run_task(checkpoint, kind="alignment", **parameters)


def metrics(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name.removeprefix("alignment/"): metric for name, metric in task_runs.metrics(result).items()}


def protocols(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: result["protocols"][metric["protocol"]] for name, metric in metrics(result).items()}


AS_IT_IS = {
    "loss_fitted",
    *(f"{way}_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    *(f"cosine_{what}" for what in ("excess", "between", "text", "image")),
    *("p_value", "neighbour_p_value", "neighbour_p_value_centred"),
    *("neighbour_hits", "neighbour_hits_centred", "subspace_overlap"),
}


def test_metrics_say_what_they_are_and_what_is_known_without_a_model() -> None:
    found = evaluate(pretrained(5))
    by_name = metrics(found)
    assert set(by_name) == AS_IT_IS
    for name, metric in by_name.items():
        if metric["items"]:
            assert metric["value"] == pytest.approx(value_of_items(metric, found["items"]["alignment"]), abs=1e-12)
            assert metric["stderr"] > 0
        assert metric["n"] == (61 if name == "subspace_overlap" else 300)  # 61 of 64 codes come up
    loss = by_name["loss_fitted"]
    assert (loss["unit"], loss["direction"], loss["baseline"]) == ("nats/pair", "lower", math.log(300))
    assert notes(found)["loss_floor"] < 2 < loss["value"] < loss["baseline"]
    assert 1 / 300 < by_name["image_to_text_at_1"]["baseline"] < 5 / 300 < by_name["image_to_text_at_5"]["baseline"]
    assert by_name["cosine_excess"]["direction"] == by_name["image_to_text_at_1"]["direction"] == "higher"
    assert [by_name[name]["direction"] for name in ("p_value", "cosine_text", "subspace_overlap")] == ["none"] * 3
    assert notes(found)["records_without_a_pair"] == notes(found)["images_again"] == 0
    assert notes(found)["pairs_left_out"] == 0


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
    same = {name for name, protocol in protocols(one).items() if protocol == protocols(two)[name]}
    moved = {"p_value", "neighbour_p_value", "neighbour_p_value_centred", "neighbour_hits", "neighbour_hits_centred"}
    assert same == AS_IT_IS - moved
    for name in same:
        assert metrics(one)[name]["value"] == metrics(two)[name]["value"]
    assert protocols(one)["loss_fitted"]["temperature"] == "fitted"
    for change in ({"batch": 100}, {"limit": 200}, {"table": "output"}, {"dtype": "bfloat16"}):
        other = protocols(evaluate(pretrained(0), permutations=20, **change))
        assert not [name for name in AS_IT_IS if other[name] == protocols(one)[name]]


def test_several_batches_are_chosen_by_the_seed_and_the_rest_is_counted() -> None:
    one, two = (evaluate(pretrained(5), batch=128, seed=seed, permutations=9) for seed in (0, 1))
    assert notes(one)["pairs_left_out"] == 44
    assert metrics(one)["loss_fitted"]["baseline"] == math.log(128)
    assert metrics(one)["loss_fitted"]["n"] == len(one["items"]["alignment"]) == 256
    assert protocols(one)["loss_fitted"] != protocols(two)["loss_fitted"]
    assert {item["index"] for item in one["items"]["alignment"]} < set(range(300))


@pytest.mark.parametrize(
    ("layout", "parameters", "message"),
    [
        ({"text": {"size": 583}}, {}, "invalid_data: task 'alignment' needs image tokens, .* has no image block"),
        (LAYOUT, {"limit": 1}, "invalid_data: .*has 1 records with both .* needs two of different images; add pairs"),
        (LAYOUT, {"data": "/none.jsonl"}, "invalid_data: the data file /none.jsonl does not exist"),
        (LAYOUT, {"tokenizer": HELD_OUT}, "invalid_data: the tokenizer .* is not a tokenizer.json"),
    ],
)
def test_what_cannot_be_measured_says_why(layout: Any, parameters: dict[str, Any], message: str) -> None:
    assert re.search(message, error(evaluate(replace(pretrained(0), layout=layout), **parameters)))
