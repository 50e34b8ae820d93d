"""What a loss is held against: that of a model of frequencies, and the loss of general text beside that of captions."""

import json
import math
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from loss_task import LAYOUT, RECORDS, context_of, evaluate, loss_of, loss_profile, plan, values, write

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import DataChanged, InternalError, InvalidData
from evalsvc.metrics.entropy import UnigramLoss, unigram_loss
from evalsvc.metrics.ratio import Ratio
from evalsvc.miniature import ROOT
from evalsvc.spec.protocol import Protocol
from evalsvc.tasks.loss import metrics
from evalsvc.tasks.loss.metrics import Targets, gap, loss_items, loss_metrics, scarce, with_totals
from evalsvc.tasks.loss.work import LossWork

GENERAL = [{"text_ids": [3, 4, 5, 6, 7]}, {"text_ids": [9, 9]}, {"text_ids": list(range(30, 60))}]


def unigram(rows: list[list[int]], size: int, groups: list[int] | None = None) -> UnigramLoss:
    owners = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    return unigram_loss(np.array(list(chain(*rows))), owners, size, None, groups)


def test_unigrams_are_of_what_is_predicted(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """A text that is cut, or whose first id is predicted from nothing, is held against what is left of it."""
    path = write(tmp_path / "data.jsonl", RECORDS)
    layout = {**LAYOUT, "template": ["TEXT", "image", "IMAGE", "/image"], "length": 12}
    result = evaluate(loss_of(path), CheckpointRef(checkpoint.path, layout=layout))
    profile = loss_profile(result)["unigrams"]
    text = [[6, 7, 79], [2], [], [*range(21, 24)], []]
    codes = [record.get("image_codes", []) for record in RECORDS]
    for kind, rows, size in (("text", text, 80), ("image", codes, 16)):
        found = profile[kind]["unigram"]
        assert found == asdict(unigram(rows, size))
        metric = values(result)[f"{kind}_unigram"]
        assert (metric.value, metric.stderr, metric.groups) == (found["loss"], found["stderr"], None)
        assert metric.n == sum(f"n_{kind}" in item for item in result.items)


def test_where_ids_are_rare_the_notes_say_so(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    few = evaluate(loss_of(write(tmp_path / "few.jsonl", RECORDS)), checkpoint).notes["unigrams"]
    assert set(few) == {"text_unigram", "image_unigram", "image_unigram_by_place"}
    assert few["text_unigram"].startswith("100% of the ids occur in no other sequence")
    many = [{"text_ids": [1, 2], "image_codes": codes} for codes in ([3, 1, 2, 3], [3, 2, 1, 3], [1, 2, 3, 3])]
    assert "unigrams" not in evaluate(loss_of(write(tmp_path / "many.jsonl", many)), checkpoint).notes
    assert scarce({"text": {"unigram": UnigramLoss(1.0, None, 9, None, 99, 9, unseen=0.05)}}) == {}


def test_one_image_predicts_no_other_of_its_captions(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """Codes that came once more with each caption of their image would be known in advance."""
    rows, order = [[0, 1, 2, 3], [8, 9, 9, 8], [4, 5, 9, 7]], [0, 1, 2, 1, 0, 0]
    records = [{"text_ids": [5, 9 + place], "image_codes": rows[image]} for place, image in enumerate(order)]
    path, expected = write(tmp_path / "data.jsonl", records), unigram([rows[image] for image in order], 16, order)
    for shards in (1, 3):
        result = evaluate(loss_of(path, shards=shards), checkpoint)
        found = loss_profile(result)["unigrams"]["image"]["unigram"]
        assert found == pytest.approx(asdict(expected))
        metric = values(result)["image_unigram"]
        assert (metric.value, metric.n, metric.groups) == (pytest.approx(expected.loss), 6, 3)


def test_a_model_of_the_frequencies_at_a_place_reaches_less() -> None:
    codes = [json.loads(line)["image_codes"] for line in (ROOT / "heldout_pairs.jsonl").read_text().splitlines()]
    targets = Targets(range(100, 164))
    for row in codes:
        targets.add([0, *(100 + code for code in row), 0])
    owners, places = np.repeat(np.arange(len(codes)), 64), np.tile(np.arange(64), len(codes))
    by_place = unigram_loss(np.concatenate(codes), owners, 64, places)
    assert targets.unigrams(by_place=True) == {"unigram": unigram(codes, 64), "unigram_by_place": by_place}
    assert by_place.loss < unigram(codes, 64).loss - 0.3


def test_a_table_that_is_too_large_gives_no_loss_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = Targets(range(100, 200))
    targets.add([0, *range(100, 150)])
    assert targets.unigrams(by_place=True) == {}, "one sequence is predicted by no other"
    targets.add([0, *range(100, 150)])
    assert set(targets.unigrams(by_place=True)) == {"unigram", "unigram_by_place"}
    monkeypatch.setattr(metrics, "MAX_COUNTS", 49 * 50)
    assert set(targets.unigrams(by_place=True)) == {"unigram"}
    assert Targets(None).size == 0


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


@pytest.mark.parametrize("shards", [None, 3])
def test_general_text_has_its_own_loss(checkpoint: CheckpointRef, tmp_path: Path, shards: int | None) -> None:
    data, text = write(tmp_path / "data.jsonl", RECORDS), write(tmp_path / "text.jsonl", GENERAL)
    alone, captions = (evaluate(loss_of(path, shards=shards), checkpoint) for path in (text, data))
    both = evaluate(loss_of(data, general_text=str(text), shards=shards), checkpoint)
    found, own, other = values(both), values(alone), values(captions)
    assert {name: metric for name, metric in found.items() if "general" not in name} == other
    for suffix in ("", "_within", "_unigram"):
        one, expected = found[f"general_text{suffix}"], own[f"text{suffix}"]
        assert (one.value, one.stderr, one.n) == pytest.approx((expected.value, expected.stderr, expected.n), rel=1e-5)
        assert one.protocol == expected.protocol
    for suffix in ("", "_within"):
        apart, a, b = found[f"general_text_gap{suffix}"], own[f"text{suffix}"], other[f"text{suffix}"]
        difference = a.value - b.value, math.hypot(a.stderr, b.stderr)
        assert (apart.value, apart.stderr) == pytest.approx(difference, rel=1e-5)
        assert apart.protocol.content == {**a.protocol.content, "less": b.protocol.id}
    assert (both.notes["general_texts"], both.notes["general_text_tokens"]) == (3, 34)
    profile, of_text = map(loss_profile, (both, alone))
    assert profile["general_text_position"]["tokens"] == of_text["text_position"]["tokens"]
    assert set(profile["unigrams"]) == {"text", "image", "general_text"}


def test_general_text_without_captions_or_targets(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """A text of one id that nothing precedes has no target: what follows is predicted, and is no text."""
    assert gap(Ratio(5.0, None, 1), Ratio(2.0, 0.4, 7)) == Ratio(3.0, None, 8)
    assert gap(Ratio(5.0, 0.3, 10, 4), Ratio(2.0, 0.4, 7)) == Ratio(3.0, 0.5, 17, 11), "the error of two samples"
    data, text = write(tmp_path / "data.jsonl", [{"image_codes": [1, 2]}]), write(tmp_path / "text.jsonl", GENERAL)
    found = values(evaluate(loss_of(data, general_text=str(text), general_text_limit=2), checkpoint))
    assert "general_text_gap" not in found
    assert (found["general_text"].n, found["general_text"].protocol.content["limit"]) == (2, 2)
    write(data, RECORDS), write(text, [{"text_ids": [3]}])
    task = loss_of(data, general_text=str(text), text_prefix="layout")
    layout = {**LAYOUT, "template": ["TEXT", "/text", "IMAGE"]}
    result = evaluate(task, CheckpointRef(checkpoint.path, layout=layout))
    assert not [name for name in values(result) if "general" in name]
    assert result.notes["general_text_tokens"] == 0


def test_bad_general_text_is_named(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    data, text = write(tmp_path / "data.jsonl", RECORDS), write(tmp_path / "text.jsonl", RECORDS[1:3])
    loss = loss_of(data, general_text=str(text))
    with pytest.raises(InvalidData, match=r"text\.jsonl, line 2 has image codes; give `general_text` records of text"):
        plan(loss, checkpoint)
    write(text, GENERAL)
    planned, work, context = plan(loss, checkpoint), LossWork(loss), context_of(checkpoint)
    assert ([shard.part for shard in planned.shards], planned.total) == (["data", "general_text"], 8)
    write(text, GENERAL[::-1])
    work.run(context, planned.shards[0])
    with pytest.raises(DataChanged, match=r"text\.jsonl has changed since"):
        work.run(context, planned.shards[1])


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


WITH_TOTALS = with_totals(SUMS)


def test_a_total_that_is_not_the_weighted_mean_is_a_bug() -> None:
    """Σ n_t L_t / Σ n_t: a total over other tokens than the types' has happened to more than one training script."""
    [total] = (found for found in loss_metrics("x", WITH_TOTALS, IDS, Protocol({})) if found.name == "x/total")
    assert total.value == pytest.approx(math.fsum((9, 5.5, 70, 66, 0.1, 0.3, 0.2)) / 28)
    for name, change in (("nll_total", 1e-6), ("n_total", 1)):
        wrong = [WITH_TOTALS[name][0] + change, *WITH_TOTALS[name][1:]]
        with pytest.raises(InternalError, match=r"the total loss is .* that of its types .* this is a bug in evalsvc"):
            loss_metrics("x", {**WITH_TOTALS, name: wrong}, IDS, Protocol({}))


def test_general_text_stands_in_the_rows_of_the_same_index() -> None:
    """There may be more or fewer texts than sequences, and one of a single token has no numbers."""
    general = {"n_text": [5.0, 0.0, 3.0, 2.0], "nll_text": [1.0, 0.0, 2.0, 3.0], "within_text": [0.5, 0.0, 1.5, 2.5]}
    plain, both = loss_items(WITH_TOTALS, None), loss_items(WITH_TOTALS, general)
    keys = ("n_general_text", "nll_general_text", "within_general_text")
    own = [tuple(item.get(key) for key in keys) for item in both]
    assert own == [(5, 1.0, 0.5), (None, None, None), (3, 2.0, 1.5), (2, 3.0, 2.5)]
    assert [{key: value for key, value in item.items() if key not in keys} for item in both] == [*plain, {"index": 3}]
    fewer = {name: column[:1] for name, column in general.items()}
    assert loss_items(WITH_TOTALS, fewer)[1:] == plain[1:]
