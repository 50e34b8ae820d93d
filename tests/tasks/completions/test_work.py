"""Completions of the bundled run and of a real tiny language model, beside those of their bases."""

import math
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgpack
import pytest
import torch
from miniature_run import LAYOUT, pretrained
from task_runs import error, items, metrics, notes, run_stage, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.compare.text_pages import rendered
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.families.reading import resolve_config
from evalsvc.metrics.entropy import distinct_n, seq_rep
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.shares import share_stderr
from evalsvc.miniature import ROOT
from evalsvc.models.loading import load_model
from evalsvc.tasks.completions.spec import TABLE_1

TOKENIZER = read_tokenizer(ROOT / "tokenizer.json")
FIRST, SECOND, LAST = pretrained(0), pretrained(1), pretrained(5)


def evaluate(checkpoint: CheckpointRef, base: CheckpointRef | None = None, **parameters: Any) -> dict[str, Any]:
    return run_task(checkpoint, base, kind="completions", name="says", **parameters)


def test_english_becomes_images_beside_the_base() -> None:
    before, after = (evaluate(checkpoint, FIRST) for checkpoint in (FIRST, LAST))
    ways = [(prompt, way) for prompt in TABLE_1 for way in ("greedy", "seed 0", "seed 1")]
    asked = [(index, *way) for index, way in zip((0, 2, 4, 1, 3, 5), ways, strict=True)]
    assert [(item["index"], item["prompt"], item["way"]) for item in items(after)] == asked
    for one, other in zip(items(before), items(after), strict=True):
        assert one["text"] == one["base"] == other["base"]
        assert one["ids"] == one["base_ids"] == other["base_ids"]
        assert TOKENIZER.decode([row for row in one["ids"] if row < 512]) == one["text"].replace("‹image 13›", "")
    greedy, page = items(after)[0], page_of(after)
    assert greedy["image_ids"] == greedy["drawn"] == len(greedy["ids"]) == 48
    assert "‹/text›‹image›‹image " in items(after)[3]["text"]
    assert [metrics(result)["says/same_as_base"]["value"] for result in (before, after)] == [1, 0]
    assert metrics(before)["says/image_share"]["value"] < 0.05 < 0.9 < metrics(after)["says/image_share"]["value"]
    assert greedy["base_scored"] == 0, "no text is no loss of 0, which would be the best of all"
    scored = [item["base_scored"] for item in items(after)[::3] if item["base_scored"]]
    assert metrics(after).get("says/greedy_base_loss", {}).get("n", 0) == len(scored) < 2
    assert "nothing that the base can judge" in page
    assert page.startswith("checkpoint  run 'pretrained' epoch 5\nbase        run 'pretrained' epoch 0\n")
    places = [page.index(part) for prompt in TABLE_1 for part in (prompt, "base, greedy", "checkpoint, greedy")]
    assert places[:3] == sorted(places[:3])
    for text in (text for item in items(after) for text in (item["text"], item["base"])):
        assert "".join(f"  | {line}" for line in text.splitlines(keepends=True)) in page


def test_within_text_ids_a_model_that_answers_with_images_has_to_write() -> None:
    every, within = (evaluate(LAST, FIRST, samples=0, within=within) for within in ("all", "text"))
    assert all(row < 512 for item in items(within) for row in item["ids"] + item["base_ids"])
    assert [item["base_scored"] for item in items(within)] == [item["drawn"] for item in items(within)]
    assert (
        metrics(within)["says/greedy_base_loss"]["value"]
        > metrics(evaluate(FIRST, FIRST, samples=0, within="text"))["says/greedy_base_loss"]["value"]
    )
    assert "says/image_share" not in metrics(within), "none of the ids that could be drawn is of an image"
    told = [{item["protocol"] for item in items(result)} for result in (every, within)]
    assert not told[0] & told[1]
    assert items(every)[0]["protocol"] == items(evaluate(LAST, FIRST, samples=0))[0]["protocol"]


def test_without_a_base_and_without_images() -> None:
    result = evaluate(FIRST, samples=0)
    assert notes(result)["errors"].endswith("2 prompts are too few for a comparison; set 8 or more `prompts`")
    share = metrics(result)["says/image_share"]
    assert (share["n"], share["groups"], share["grouped_by"]) == (2, None, None)
    plain = {f"says/greedy_{name}" for name in ("seq_rep_4", "distinct_1", "distinct_2", "length")}
    assert set(metrics(result)) == {"says/image_share", *plain}
    assert [(item["base"], item["base_ids"]) for item in items(result)] == [(None, None)] * 2
    layout = {"text": {"size": 583, "tokenizer": str(ROOT / "tokenizer.json")}}
    result = evaluate(CheckpointRef(FIRST.path, layout=layout), samples=0, max_tokens=4, prompts=[*"abcdefgh"])
    assert (set(metrics(result)), items(result)[0]["image_ids"]) == (plain, 0)
    assert "errors" not in notes(result)


def page_of(result: dict[str, Any]) -> str:
    [artifact] = result["artifacts"]["says"]
    assert (artifact["name"], artifact["media_type"]) == ("completions.json", "application/json")
    return rendered(artifact["kind"], artifact["content"], "text")


def test_nothing_but_the_prompt_and_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {(item["prompt"], item["way"]): item["ids"] for item in items(evaluate(LAST))}
    assert len({tuple(ids) for ids in expected.values()}) == 6
    monkeypatch.setenv("EVALSVC_BATCH_TOKENS", "1")
    other = evaluate(LAST, prompts=["A digit:", *reversed(TABLE_1)], seed=1, samples=1)
    for item in items(other)[2:]:
        assert item["ids"] == expected[item["prompt"], item["way"]]
    assert {item["way"] for item in items(other)} == {"greedy", "seed 1"}


def test_the_layout_decides_on_the_beginning_of_texts_and_a_suite_may_decide_otherwise() -> None:
    def told(layout_bos: Any, **parameters: Any) -> tuple[Any, Any, list[list[int]]]:
        layout = {"text": {**LAYOUT["text"], "bos": layout_bos}}
        result = evaluate(pretrained(0, **layout), prompts=["a", "The"], max_tokens=8, samples=0, **parameters)
        metric = metrics(result)["says/image_share"]
        return result["protocols"][metric["protocol"]]["bos"], metric["protocol"], [x["ids"] for x in items(result)]

    plain, begun = told(None), told(3)
    assert (plain[0], begun[0], begun[1] != plain[1], begun[2] != plain[2]) == (None, 3, True, True)
    assert told("none") == told(5, bos="none") == plain
    assert told(None, bos=3) == told(5, bos=3) == begun, "one series, whoever decided"


def test_protocols_hold_what_moves_the_numbers_and_no_more() -> None:
    def protocols(**parameters: Any) -> tuple[str, str]:
        found = metrics(evaluate(FIRST, FIRST, **{"max_tokens": 4, **parameters}))
        return found["says/image_share"]["protocol"], found["says/same_as_base"]["protocol"]

    share, same = protocols()
    assert protocols(tokenizer=str(ROOT / "tokenizer.json"), max_length=132) == (share, same)
    more = protocols(samples=3)
    assert (more[0] != share, more[1]) == (True, same), "greedy completions do not change with the seeded ones"
    for parameters in ({"max_tokens": 5}, {"prompts": ["A"]}, {"bos": 3}, {"end_of_text": 3}, {"max_length": 60}):
        assert not {share, same} & {*protocols(**parameters)}, parameters
    one, other = (metrics(evaluate(SECOND, base, max_tokens=4)) for base in (FIRST, pretrained(2)))
    moved = {name for name in one if one[name]["protocol"] != other[name]["protocol"]}
    assert moved == {"says/same_as_base", "says/greedy_base_loss", "says/seeded_base_loss"}, "another base"


def test_long_prompts_are_cut_from_the_left_behind_bos_and_counted() -> None:
    long, short = "zebra " * 50 + TABLE_1[0], "a"
    parameters: dict[str, Any] = {"max_length": 24, "max_tokens": 20, "samples": 0, "bos": 3}
    cut = evaluate(FIRST, prompts=[long, short], **parameters)
    assert {"completions": 2, "prompts_cut": 1, "ids_drawn": 40}.items() <= notes(cut).items()
    kept = TOKENIZER.decode(TOKENIZER.encode(long)[-3:])
    whole = evaluate(FIRST, prompts=[kept], **parameters)
    assert notes(whole)["prompts_cut"] == 0
    assert items(cut)[0]["ids"] == items(whole)[0]["ids"]
    other = evaluate(FIRST, prompts=[kept], **{**parameters, "bos": 200})
    assert items(other)[0]["ids"] != items(whole)[0]["ids"], "the model reads what comes first"


def base_losses(base: CheckpointRef, prompt: str, ids: Sequence[int]) -> list[float]:
    model = load_model(base.path, base.model and resolve_config(base.model, Path(base.path)))
    before = TOKENIZER.encode(prompt)[-(132 - 48) :]  # what is left of a prompt beside 48 ids in the model's 132
    logits = model(torch.tensor([[*before, *ids]]))[0, :, :512].double().log_softmax(1)
    return [-float(logits[len(before) - 1 + place, token]) for place, token in enumerate(ids)]


def test_the_base_judges_the_text_that_a_completion_begins_with() -> None:
    """At step 10 some completions end in image ids, of which the base knows nothing; text behind them is not judged."""
    result = evaluate(SECOND, FIRST)
    found, page = items(result), page_of(result)
    assert any(0 < item["base_scored"] < item["drawn"] for item in found), "else this shows nothing"
    for item in found:
        text = list(takewhile(lambda row: row < 512, item["ids"]))
        assert item["base_scored"] == len(text)
        assert item["base_nll"] == pytest.approx(sum(base_losses(FIRST, item["prompt"], text)), rel=1e-5, abs=1e-6)
        own = list(takewhile(lambda row: row < 512, item["base_ids"]))
        assert item["base_own_nll"] == pytest.approx(sum(base_losses(FIRST, item["prompt"], own)), rel=1e-5, abs=1e-6)
        if 0 < item["base_scored"] < item["drawn"]:
            loss = f"{item['base_nll'] / item['base_scored']:.2f} nats/token on the first {item['base_scored']} ids"
            assert f"the base's loss {loss}" in page
    for group, some in (("greedy", found[::3]), ("seeded", [item for item in found if item["way"] != "greedy"])):
        total, scored = (sum(item[key] for item in some) for key in ("base_nll", "base_scored"))
        loss = metrics(result)[f"says/{group}_base_loss"]
        assert (loss["value"], loss["n"]) == (pytest.approx(total / scored, rel=1e-12), 2)


def test_measures_are_of_the_drawn_ids_and_errors_over_prompts() -> None:
    """Two draws of one prompt are not two prompts: they are all text or all images, and what both have is repeated."""
    prompts = ["a", "The", *TABLE_1]
    end = items(evaluate(SECOND, prompts=prompts))[1]["ids"][7]
    result = evaluate(SECOND, FIRST, prompts=prompts, end_of_text=end)
    by_prompt = [items(result)[first : first + 3] for first in range(0, 12, 3)]
    share, same_as_base = metrics(result)["says/image_share"], metrics(result)["says/same_as_base"]
    sums = [[sum(item[key] for item in of_prompt) for key in share["items"]] for of_prompt in by_prompt]
    over_prompts = ratio_of_sums(*zip(*sums, strict=True))
    assert (share["value"], share["stderr"]) == pytest.approx((over_prompts.value, over_prompts.stderr))
    assert (share["n"], share["groups"], share["grouped_by"]) == (12, 4, "prompt")
    assert (same_as_base["n"], same_as_base["groups"], same_as_base["grouped_by"]) == (4, None, None)
    assert {item["way"] for item in items(result) if "same_as_base" in item} == {"greedy"}
    expected: dict[str, list[float]] = {}
    for greedy, *seeded in by_prompt:
        for group, some in (("greedy", [greedy]), ("seeded", seeded)):
            texts = [item["ids"][:-1] if item["ids"][-1] == end else item["ids"] for item in some]
            repeated = [seq_rep(text, 4) for text in texts]
            values = {
                "seq_rep_4": [value for value in repeated if value is not None],
                "length": [len(item["ids"]) for item in some],
                "ended": [item["ids"][-1] == end for item in some],
                "distinct_1": [distinct_n(texts, 1)],
                "distinct_2": [distinct_n(texts, 2)],
            }
            for name, numbers in values.items():
                if numbers and numbers != [None]:
                    expected.setdefault(f"says/{group}_{name}", []).append(fmean(numbers))
    assert 0 < fmean(expected["says/seeded_ended"]) < 1, "else this shows nothing"
    for name, numbers in expected.items():
        found = metrics(result)[name]
        assert (found["value"], found["n"]) == (pytest.approx(fmean(numbers)), len(numbers)), name
        same = share_stderr(sum(numbers), len(numbers)) if {*numbers} in ({0.0}, {1.0}) else None
        assert found["stderr"] == pytest.approx(same or stdev(numbers) / math.sqrt(len(numbers))), name
        assert found["items"] == [name.removeprefix("says/")]


def test_an_items_protocol_is_all_that_drew_it_but_the_weights() -> None:
    """Completions of two steps are compared where it is the same, whatever else was asked."""

    def by_way(key: str, *sides: CheckpointRef, **parameters: Any) -> dict[tuple[str, str], Any]:
        result = evaluate(*sides, **{"max_tokens": 2, **parameters})
        return {(item["prompt"], item["way"]): item[key] for item in items(result)}

    plain, later = by_way("protocol", FIRST), by_way("protocol", LAST, FIRST)
    assert later == plain
    assert by_way("index", FIRST, samples=1).items() <= by_way("index", FIRST, samples=3).items(), "it pairs them"
    assert by_way("protocol", FIRST, prompts=["A", *TABLE_1], samples=3).items() >= plain.items()
    warm = by_way("protocol", FIRST, temperature=0.5)
    assert {way for (prompt, way), one in plain.items() if warm[prompt, way] == one} == {"greedy"}
    assert len(set(plain.values())) == 6


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ({"tokenizer": None}, {}, "task 'says' needs text, but there is no tokenizer; set the task's `tokenizer`"),
        ({"tokenizer_sha256": "0" * 64}, {}, "give the tokenizer that the model was trained with"),
        ({"size": 511}, {}, "has 512 ids, but the layout has 511 text rows"),
        ({}, {"bos": 512}, "bos is 512; the tokenizer "),
        ({}, {"end_of_text": 512}, "end_of_text is 512; the tokenizer "),
        ({}, {"prompts": ["a", ""]}, "prompt 2 is empty, and a model needs at least one id; set `bos`"),
        ({}, {"max_tokens": 132}, "max_tokens is 132 of 132 tokens, which leaves no room for a prompt"),
        ({}, {"max_tokens": 131, "bos": 1}, "max_tokens is 131 of 132 tokens, which leaves no room for a prompt"),
    ],
)
def test_bad_input_is_named(text: dict[str, Any], parameters: dict[str, Any], message: str) -> None:
    found = error(evaluate(pretrained(0, text=LAYOUT["text"] | text), **parameters))
    assert (found.startswith("invalid_data: "), message in found) == (True, True), found


def test_a_base_that_changes_after_planning_is_noticed() -> None:
    def run(stage: str, base: CheckpointRef | None, *shards: Any) -> Any:
        return run_stage(stage, LAST, base, shards, kind="completions", max_tokens=2)

    [alone], [beside] = (run("plan", base).shards for base in (None, FIRST))
    assert (alone["units"], beside["units"]) == (6, 12)
    gone = run("run", None, beside)
    assert (gone.code, "the run's base has changed" in gone.message) == ("data_changed", True)
    assert msgpack.unpackb(run("run", FIRST, alone))["base"] is None, "one that came later is for the next evaluation"


def test_progress_counts_both_sides() -> None:
    [shard] = run_stage("plan", LAST, FIRST, kind="completions").shards
    seen: list[int] = []
    run_stage("run", LAST, FIRST, [shard], (), seen.append, kind="completions", max_tokens=1)
    assert seen == [2, 4, 6, 8, 10, 12]
