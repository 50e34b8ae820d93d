"""What a loss is held against: that of a model of frequencies, and the loss of general text beside that of captions."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loss_task import LAYOUT, RECORDS, context_of, evaluate, values, write

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import DataChanged, InternalError, InvalidData
from evalsvc.metrics.entropy import UnigramLoss, unigram_loss
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.miniature import ROOT
from evalsvc.spec.protocol import Protocol
from evalsvc.tasks.loss import unigrams
from evalsvc.tasks.loss.metrics import gap, general_text_metrics, loss_items, loss_metrics, with_totals
from evalsvc.tasks.loss.spec import Loss
from evalsvc.tasks.loss.unigrams import Targets, scarce
from evalsvc.tasks.loss.work import LossWork

GENERAL: list[dict[str, Any]] = [
    {"text_ids": [3, 4, 5, 6, 7]},
    {"text_ids": [9, 9]},
    {"text_ids": list(range(30, 60))},
]


def unigram(rows: list[list[int]], size: int, groups: list[int] | None = None) -> UnigramLoss:
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return unigram_loss(np.array([one for row in rows for one in row]), owners, size, None, groups)


def test_unigrams_are_of_what_is_predicted(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """A text that is cut, or whose first id is predicted from nothing, is held against what is left of it."""
    path = str(write(tmp_path / "data.jsonl", RECORDS))
    layout = {**LAYOUT, "template": ["TEXT", "image", "IMAGE", "/image"], "length": 12}
    result = evaluate(Loss(name="x", data=path), CheckpointRef(checkpoint.path, layout=layout))
    profile = json.loads(result.artifacts[0].content)["unigrams"]
    text = [[6, 7, 79], [2], [], [*range(21, 24)], []]
    codes = [record.get("image_codes", []) for record in RECORDS]
    for kind, rows, size in (("text", text, 80), ("image", codes, 16)):
        found = profile[kind]["unigram"]
        assert found == asdict(unigram(rows, size))
        metric = values(result)[f"{kind}_unigram"]
        assert (metric.value, metric.stderr, metric.groups) == (found["loss"], found["stderr"], None)
        assert metric.n == sum(f"n_{kind}" in item for item in result.items)


def test_where_ids_are_rare_the_notes_say_so(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    few = evaluate(Loss(name="x", data=str(write(tmp_path / "few.jsonl", RECORDS))), checkpoint)
    assert set(few.notes["unigrams"]) == {"text_unigram", "image_unigram", "image_unigram_by_place"}
    assert few.notes["unigrams"]["text_unigram"].startswith("100% of the ids occur in no other sequence")
    many = [{"text_ids": [1, 2], "image_codes": codes} for codes in ([3, 1, 2, 3], [3, 2, 1, 3], [1, 2, 3, 3])]
    path = write(tmp_path / "many.jsonl", many)
    assert "unigrams" not in evaluate(Loss(name="x", data=str(path)), checkpoint).notes
    assert scarce({"text": {"unigram": UnigramLoss(1.0, None, 9, None, 99, 9, unseen=0.05)}}) == {}


def test_one_image_predicts_no_other_of_its_captions(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """Codes that came once more with each caption of their image would be known in advance."""
    rows = [[0, 1, 2, 3], [8, 9, 9, 8], [4, 5, 9, 7]]
    order = [0, 1, 2, 1, 0, 0]
    records = [{"text_ids": [5, 9 + place], "image_codes": rows[image]} for place, image in enumerate(order)]
    path = write(tmp_path / "data.jsonl", records)
    for shards in (1, 3):
        result = evaluate(Loss(name="x", data=str(path), shards=shards), checkpoint)
        expected = unigram([rows[image] for image in order], 16, [0, 1, 2, 1, 0, 0])
        assert json.loads(result.artifacts[0].content)["unigrams"]["image"]["unigram"] == pytest.approx(
            asdict(expected)
        )
        metric = values(result)["image_unigram"]
        assert (metric.value, metric.n, metric.groups) == (pytest.approx(expected.loss), 6, 3)


def test_a_model_of_the_frequencies_at_a_place_reaches_less(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    lines = (ROOT / "heldout_pairs.jsonl").read_text().splitlines()
    codes = [json.loads(line)["image_codes"] for line in lines]
    targets = Targets(range(100, 164))
    for row in codes:
        targets.add([0, *(100 + code for code in row), 0])
    found = targets.unigrams(by_place=True)
    assert found["unigram"] == unigram(codes, 64)
    owners, places = np.repeat(np.arange(len(codes)), 64), np.tile(np.arange(64), len(codes))
    by_place = unigram_loss(np.concatenate(codes), owners, 64, places)
    assert found["unigram_by_place"] == by_place
    assert by_place.loss < found["unigram"].loss - 0.3


def test_a_table_that_is_too_large_gives_no_loss_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = Targets(range(100, 200))
    targets.add([0, *range(100, 150)])
    assert targets.unigrams(by_place=True) == {}, "one sequence is predicted by no other"
    targets.add([0, *range(100, 150)])
    assert set(targets.unigrams(by_place=True)) == {"unigram", "unigram_by_place"}
    monkeypatch.setattr(unigrams, "MAX_COUNTS", 49 * 50)
    assert set(targets.unigrams(by_place=True)) == {"unigram"}
    assert Targets(None).block == range(0)


@pytest.mark.parametrize("size", [16, 300, 70_000])
def test_targets_survive_the_way_to_the_merge(size: int) -> None:
    """Codes of 16 bits that were packed into 8 would pass for other codes."""
    whole, joined = Targets(range(9, 9 + size)), Targets(range(size))
    for part in ([[9, 9 + size - 1, 9 + size], [10], []], [[0, 9, 9], [0, 9 + size - 1]]):
        shard = Targets(range(9, 9 + size))
        for ids in part:
            whole.add(ids)
            shard.add(ids)
        joined.add_packed(shard.pack())
    assert joined.unigrams(by_place=True) == whole.unigrams(by_place=True)
    assert joined.unigrams(by_place=True)["unigram"].ids == 4


def test_a_gap_has_the_error_of_two_samples() -> None:
    assert gap(Ratio(5.0, 0.3, 10), Ratio(2.0, 0.4, 7)) == Ratio(3.0, 0.5, 17)
    assert gap(Ratio(5.0, None, 1), Ratio(2.0, 0.4, 7)) == Ratio(3.0, None, 8)
    assert gap(Ratio(5.0, 0.3, 10, 4), Ratio(2.0, 0.4, 7)) == Ratio(3.0, 0.5, 17, 11)


@pytest.mark.parametrize("shards", [None, 3])
def test_general_text_has_the_loss_of_a_task_of_its_own(
    checkpoint: CheckpointRef, tmp_path: Path, shards: int | None
) -> None:
    data, text = write(tmp_path / "data.jsonl", RECORDS), write(tmp_path / "text.jsonl", GENERAL)
    alone, captions = (evaluate(Loss(name="x", data=str(path), shards=shards), checkpoint) for path in (text, data))
    both = evaluate(Loss(name="x", data=str(data), general_text=str(text), shards=shards), checkpoint)
    found, own, other = values(both), values(alone), values(captions)
    same = [metric for metric in both.metrics if "general" not in metric.name]
    assert sorted(same, key=lambda metric: metric.name) == sorted(captions.metrics, key=lambda metric: metric.name)
    for suffix in ("", "_within", "_unigram"):
        one, expected = found[f"general_text{suffix}"], own[f"text{suffix}"]
        assert (one.value, one.stderr, one.n) == pytest.approx((expected.value, expected.stderr, expected.n), rel=1e-5)
        assert (one.unit, one.baseline) == (expected.unit, expected.baseline)
        assert one.protocol == expected.protocol
    for suffix in ("", "_within"):
        apart, a, b = found[f"general_text_gap{suffix}"], own[f"text{suffix}"], other[f"text{suffix}"]
        assert apart.value == pytest.approx(a.value - b.value, rel=1e-5)
        assert apart.stderr == pytest.approx(math.hypot(a.stderr or 0, b.stderr or 0), rel=1e-5)
        assert (apart.n, apart.direction, apart.items) == (a.n + b.n, "none", ())
        assert apart.protocol.content == {**a.protocol.content, "less": b.protocol.id}
    total, count = (sum(item.get(key, 0) for item in both.items) for key in found["general_text"].items)
    assert found["general_text"].value == pytest.approx(total / count)
    assert both.notes["general_texts"] == 3
    assert both.notes["general_text_tokens"] == 34
    profile = json.loads(both.artifacts[0].content)
    assert (
        profile["general_text_position"]["tokens"] == json.loads(alone.artifacts[0].content)["text_position"]["tokens"]
    )
    assert set(profile["unigrams"]) == {"text", "image", "general_text"}


def test_general_text_without_captions_has_no_gap(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    data, text = write(tmp_path / "data.jsonl", [{"image_codes": [1, 2]}]), write(tmp_path / "text.jsonl", GENERAL)
    found = values(evaluate(Loss(name="x", data=str(data), general_text=str(text), general_text_limit=2), checkpoint))
    assert "general_text" in found
    assert "general_text_gap" not in found
    assert found["general_text"].n == 2
    assert found["general_text"].protocol.content["limit"] == 2


def test_general_text_without_a_target_gives_no_metric(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """Texts of one id that nothing precedes: what follows is predicted, and is no text."""
    data, text = write(tmp_path / "data.jsonl", RECORDS), write(tmp_path / "text.jsonl", [{"text_ids": [3]}])
    layout = {**LAYOUT, "template": ["TEXT", "/text", "IMAGE"]}
    task = Loss(name="x", data=str(data), general_text=str(text), text_prefix="layout")
    result = evaluate(task, CheckpointRef(checkpoint.path, layout=layout))
    assert not [name for name in values(result) if "general" in name]
    assert result.notes["general_text_tokens"] == 0


def test_bad_general_text_is_named(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    data, text = write(tmp_path / "data.jsonl", RECORDS), write(tmp_path / "text.jsonl", RECORDS[1:3])
    work, context = LossWork(Loss(name="x", data=str(data), general_text=str(text))), context_of(checkpoint)
    with pytest.raises(InvalidData, match=r"text\.jsonl, line 2 has image codes; give `general_text` records of text"):
        work.plan(context)
    write(text, GENERAL)
    plan = work.plan(context)
    assert [shard.part for shard in plan.shards] == ["data", "general_text"]
    assert plan.total == 8
    write(text, GENERAL[::-1])
    work.run(context, plan.shards[0])
    with pytest.raises(DataChanged, match=r"text\.jsonl has changed since"):
        work.run(context, plan.shards[1])


SUMS = {
    "n_text": [4.0, 0.0, 2.0],
    "n_image": [8.0, 8.0, 0.0],
    "n_special": [3.0, 2.0, 1.0],
    "nll_text": [9.0, 0.0, 5.5],
    "nll_image": [70.0, 66.0, 0.0],
    "nll_special": [0.1, 0.3, 0.2],
    "within_text": [8.0, 0.0, 5.0],
    "within_image": [69.0, 65.0, 0.0],
    "image_mass": [0.4, 0.0, 0.1],
}
IDS = {"all": 112, "text": 80, "image": 16}


def test_a_total_that_is_not_the_weighted_mean_is_a_bug() -> None:
    """Σ n_t L_t / Σ n_t: a total over other tokens than the types' has happened to more than one training script."""
    sums = with_totals(SUMS)
    found = {metric.name: metric.value for metric in loss_metrics("x", sums, IDS, Protocol({}))}
    assert found["x/total"] == pytest.approx(math.fsum((9, 5.5, 70, 66, 0.1, 0.3, 0.2)) / 28)
    for name, change in (("nll_total", 1e-6), ("n_total", 1)):
        wrong = {**sums, name: [sums[name][0] + change, *sums[name][1:]]}
        with pytest.raises(InternalError, match=r"the total loss is .* that of its types .* this is a bug in evalsvc"):
            loss_metrics("x", wrong, IDS, Protocol({}))


def test_captions_of_one_image_are_one() -> None:
    general = {"n_text": [5.0, 4.0, 3.0], "nll_text": [1.0, 2.5, 2.0], "within_text": [0.5, 1.0, 1.5]}
    sums, pair = with_totals(SUMS), (Protocol({}), Protocol({}))
    groups = [0, 0, 2]
    found = {metric.name: metric for metric in loss_metrics("x", sums, IDS, Protocol({}), groups)}
    expected = ratio_of_sums(sums["nll_total"], sums["n_total"], groups)
    assert (found["x/total"].stderr, found["x/total"].n, found["x/total"].groups) == (expected.stderr, 3, 2)
    for name in ("total", "total_perplexity"):
        assert (found[f"x/{name}"].groups, found[f"x/{name}"].grouped_by) == (2, "group")
    assert found["x/image"].stderr is None, "of two captions of one image the image's loss is one number"
    text = general_text_metrics("x", general, sums, IDS, pair, ([0, 1, 1], groups))
    assert [(metric.groups, metric.grouped_by) for metric in text[:2]] == [(2, "group_general_text"), (4, None)]
    items = loss_items(sums, general, (groups, [0, 1, 1]))
    assert [(item["group"], item["group_general_text"]) for item in items] == [(0, 0), (0, 1), (2, 1)]
    plain = [*loss_metrics("x", sums, IDS, Protocol({})), *general_text_metrics("x", general, sums, IDS, pair)]
    assert {(metric.groups, metric.grouped_by) for metric in plain} == {(None, None)}
    assert not any("group" in key for item in loss_items(sums, general) for key in item if key != "n_general_text")


def test_general_text_stands_in_the_rows_of_the_same_index() -> None:
    """There may be more or fewer texts than sequences, and one of a single token has no numbers."""
    general = {"n_text": [5.0, 0.0, 3.0, 2.0], "nll_text": [1.0, 0.0, 2.0, 3.0], "within_text": [0.5, 0.0, 1.5, 2.5]}
    sums = with_totals(SUMS)
    plain, both = loss_items(sums, None), loss_items(sums, general)
    keys = ("n_general_text", "nll_general_text", "within_general_text")
    assert [tuple(item.get(key) for key in keys) for item in both] == [
        (5, 1.0, 0.5),
        (None, None, None),
        (3, 2.0, 1.5),
        (2, 3.0, 2.5),
    ]
    assert [{key: value for key, value in item.items() if key not in keys} for item in both] == [*plain, {"index": 3}]
    fewer = {name: column[:1] for name, column in general.items()}
    assert loss_items(sums, fewer)[1:] == plain[1:]
