"""Completions of the bundled run and of a real tiny language model, beside those of their bases."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from evalsvc.checkpoints import CheckpointRef
from evalsvc.errors import InvalidSuite
from evalsvc.layout import parse_layout
from evalsvc.miniature import ROOT
from evalsvc.runner import run_shard, run_suite
from evalsvc.shard import ShardRequest
from evalsvc.suite import parse_suite
from evalsvc.tasks.completions import TABLE_1
from evalsvc.tokenizer import read_tokenizer

LAYOUT = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json()
TOKENIZER = read_tokenizer(ROOT / "tokenizer.json")


def miniature(epoch: int, **text: Any) -> CheckpointRef:
    path = ROOT / "runs" / "pretrained" / "checkpoints" / f"epoch_{epoch}.pt"
    layout = {**LAYOUT, "text": {**LAYOUT["text"], **text}}
    return CheckpointRef(str(path), layout=layout, label=f"run 'pretrained' epoch {epoch}")


FIRST, LAST = miniature(0), miniature(5)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_THREADS", "1")


def evaluate(checkpoint: CheckpointRef, base: CheckpointRef | None = None, **parameters: Any) -> dict[str, Any]:
    suite = parse_suite({"tasks": [{"kind": "completions", "name": "says", **parameters}]}, "test")
    return run_suite(suite, checkpoint, lambda task, done, total, unit: None, base)


def items(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    assert result["errors"] == {}
    found: list[dict[str, Any]] = result["items"]["says"]
    return found


def metrics(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {metric["name"]: metric for metric in result["metrics"]}


def test_english_becomes_images_beside_the_base() -> None:
    before, after = (evaluate(checkpoint, FIRST) for checkpoint in (FIRST, LAST))
    for result in (before, after):
        asked = [(item["index"], item["prompt"], item["way"]) for item in items(result)]
        ways = [(prompt, way) for prompt in TABLE_1 for way in ("greedy", "seed 0", "seed 1")]
        assert asked == [(index, *way) for index, way in enumerate(ways)]
    for one, other in zip(items(before), items(after), strict=True):
        assert one["text"] == one["base"] == other["base"]
        assert one["ids"] == one["base_ids"] == other["base_ids"]
        assert TOKENIZER.decode([row for row in one["ids"] if row < 512]) == one["text"].replace("‹image 13›", "")
    greedy = items(after)[0]
    assert greedy["image_ids"] == greedy["drawn"] == len(greedy["ids"]) == 48
    assert greedy["text"] == "".join(f"‹image {row - 512}›" for row in greedy["ids"])
    assert "‹/text›‹image›‹image " in items(after)[3]["text"]
    assert metrics(before)["says/same_as_base"]["value"] == 1
    assert metrics(after)["says/same_as_base"]["value"] == 0
    assert metrics(before)["says/image_share"]["value"] < 0.05 < 0.9 < metrics(after)["says/image_share"]["value"]
    assert metrics(after)["says/image_share"]["baseline"] == pytest.approx(64 / 583)


def test_metrics_are_made_of_the_items_they_name() -> None:
    result = evaluate(miniature(1), FIRST)
    share, same = metrics(result)["says/image_share"], metrics(result)["says/same_as_base"]
    image_ids, drawn = (sum(item[key] for item in items(result)) for key in share["items"])
    assert share["value"] == image_ids / drawn
    assert (share["n"], same["n"]) == (6, 2)
    assert [item["way"] for item in items(result) if same["items"][0] in item] == ["greedy", "greedy"]


def test_without_a_base_and_without_images(tmp_path: Path) -> None:
    result = evaluate(FIRST, samples=0)
    assert set(metrics(result)) == {"says/image_share"}
    assert [(item["base"], item["base_ids"]) for item in items(result)] == [(None, None)] * 2
    layout = {"text": {"size": 583, "tokenizer": str(ROOT / "tokenizer.json")}}
    result = evaluate(CheckpointRef(FIRST.path, layout=layout), samples=0)
    assert set(metrics(result)) == set()
    assert items(result)[0]["image_ids"] == 0


def test_the_text_has_each_prompt_with_base_and_checkpoint() -> None:
    result = evaluate(LAST, FIRST, samples=0)
    [artifact] = result["artifacts"]["says"]
    assert (artifact["kind"], artifact["name"]) == ("completions", "completions.txt")
    assert artifact["media_type"] == "text/plain; charset=utf-8"
    page = artifact["content"].decode()
    assert page.startswith("checkpoint  run 'pretrained' epoch 5\nbase        run 'pretrained' epoch 0\n")
    places = [page.index(part) for prompt in TABLE_1 for part in (prompt, "base, greedy", "checkpoint, greedy")]
    assert places[:3] == sorted(places[:3])
    for item in items(result):
        for text in (item["text"], item["base"]):
            assert "".join(f"  | {line}" for line in text.splitlines(keepends=True)) in page


def test_nothing_but_the_prompt_and_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the batch, nor the other prompts, nor how many are drawn."""
    expected = {(item["prompt"], item["way"]): item["ids"] for item in items(evaluate(LAST))}
    assert len({tuple(ids) for ids in expected.values()}) == 6
    monkeypatch.setenv("EVALSVC_BATCH_TOKENS", "1")
    other = evaluate(LAST, prompts=["A digit:", *reversed(TABLE_1)], seed=1, samples=1)
    for item in items(other)[2:]:
        assert item["ids"] == expected[item["prompt"], item["way"]]
    assert {item["way"] for item in items(other)} == {"greedy", "seed 1"}


def test_protocols_hold_what_moves_the_numbers_and_no_more(tmp_path: Path) -> None:
    def protocols(**parameters: Any) -> tuple[str, str]:
        found = metrics(evaluate(FIRST, FIRST, **{"max_tokens": 4, **parameters}))
        return found["says/image_share"]["protocol"], found["says/same_as_base"]["protocol"]

    share, same = protocols()
    assert protocols(tokenizer=str(ROOT / "tokenizer.json"), max_length=132) == (share, same)
    more = protocols(samples=3)
    assert (more[0] != share, more[1]) == (True, same), "greedy completions do not change with the seeded ones"
    for parameters in ({"max_tokens": 5}, {"prompts": ["A"]}, {"bos": 3}, {"end_of_text": 3}, {"max_length": 60}):
        changed = protocols(**parameters)
        assert changed[0] != share, parameters
        assert changed[1] != same, parameters
    other = metrics(evaluate(FIRST, LAST, max_tokens=4))
    assert other["says/image_share"]["protocol"] == share
    assert other["says/same_as_base"]["protocol"] != same, "another base"


def test_long_prompts_are_cut_from_the_left_behind_bos_and_counted() -> None:
    long, short = "zebra " * 50 + TABLE_1[0], "a"
    parameters: dict[str, Any] = {"max_length": 24, "max_tokens": 20, "samples": 0, "bos": 3}
    cut = evaluate(FIRST, prompts=[long, short], **parameters)
    assert cut["provenance"]["says"]["notes"] == {"completions": 2, "prompts_cut": 1, "ids_drawn": 40}
    kept = TOKENIZER.decode(TOKENIZER.encode(long)[-3:])
    whole = evaluate(FIRST, prompts=[kept], **parameters)
    assert whole["provenance"]["says"]["notes"]["prompts_cut"] == 0
    assert items(cut)[0]["ids"] == items(whole)[0]["ids"]
    other = evaluate(FIRST, prompts=[kept], **{**parameters, "bos": 200})
    assert items(other)[0]["ids"] != items(whole)[0]["ids"], "the model reads what comes first"


def test_a_completion_ends_with_the_text() -> None:
    whole = items(evaluate(FIRST, samples=0))[0]["ids"]
    assert whole.index(whole[5]) == 5
    ended = items(evaluate(FIRST, samples=0, end_of_text=whole[5]))[0]
    assert ended["ids"] == whole[:6]
    assert ended["drawn"] == 6


@pytest.fixture(scope="module")
def stories(shared: Path) -> Callable[..., CheckpointRef]:
    """The real tiny model; as it is, or widened by images and trained on."""
    folder = shared / "golden" / "stories260k_openlm"

    def checkpoint(name: str = "stories260k_rotary", **text: Any) -> CheckpointRef:
        widened = name.startswith("t2i")
        path = folder / "forgetting" / f"{name}.pt" if widened else folder / f"{name}.pt"
        config = folder / "forgetting" / "t2i_260k.json" if widened else folder / f"{name}.json"
        layout = {"text": {"size": 512, "tokenizer": str(folder / "tokenizer.json"), **text}}
        image = {"image": {"offset": 512, "size": 256}} if widened else {}
        return CheckpointRef(str(path), model=json.loads(config.read_text()), layout={**layout, **image}, label=name)

    return checkpoint


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball."
)


def test_a_real_model_tells_its_documented_story_and_its_widened_copy_the_same(
    stories: Callable[..., CheckpointRef],
) -> None:
    """The base has a table of its own, without the rows of the images."""
    parameters: dict[str, Any] = {"prompts": ["", "Lily and Tom"], "bos": 1, "samples": 0, "max_tokens": 60}
    result = evaluate(stories("t2i_260k_step0"), stories(), **parameters)
    assert items(result)[0]["text"].startswith(STORY)
    assert metrics(result)["says/same_as_base"]["value"] == 1
    moved = items(evaluate(stories("t2i_260k_replay_step25"), stories(), **parameters))
    assert [item["same_as_base"] for item in moved] == [0, 0]
    assert moved[0]["ids"][:3] == moved[0]["base_ids"][:3], "it begins alike"
    gone = evaluate(stories("t2i_260k_imgonly_step400"), stories(), **parameters)
    assert items(gone)[0]["base"] == items(result)[0]["text"]
    assert metrics(gone)["says/image_share"]["value"] > 0.9
    assert metrics(gone)["says/same_as_base"]["value"] == 0


def test_a_base_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    other = json.loads((ROOT / "tokenizer.json").read_text())
    other["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    base = miniature(0, tokenizer=str(tmp_path / "tokenizer.json"))
    error = evaluate(LAST, base)["errors"]["says"]
    assert error["code"] == "invalid_data"
    assert error["message"].startswith("the base, run 'pretrained' epoch 0, has a tokenizer with sha256 ")
    error = evaluate(LAST, miniature(0, tokenizer_sha256="0" * 64))["errors"]["says"]
    assert error["message"].startswith(f"the base, run 'pretrained' epoch 0, has a tokenizer with sha256 {'0' * 64}")
    wide = CheckpointRef(FIRST.path, layout={"text": {"size": 256}}, label="narrow")
    assert "has 512 ids, the layout has 256 text rows" in evaluate(LAST, wide)["errors"]["says"]["message"]


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ({"tokenizer": None}, {}, "task 'says' needs text, but there is no tokenizer; give the task's `tokenizer`"),
        ({"tokenizer": "/nowhere.json"}, {}, "/nowhere.json"),
        ({"tokenizer_sha256": "0" * 64}, {}, "give the tokenizer that the model was trained with"),
        ({"size": 511}, {}, "has 512 ids, the layout has 511 text rows"),
        ({}, {"bos": 512}, "bos is 512; the tokenizer "),
        ({}, {"end_of_text": 512}, "end_of_text is 512; the tokenizer "),
        ({}, {"prompts": ["a", ""]}, "prompt 2 is empty, and a model continues nothing without an id; give `bos`"),
        ({}, {"max_tokens": 132}, "max_tokens is 132 of 132 tokens, which leaves no room for a prompt"),
        ({}, {"max_tokens": 131, "bos": 1}, "max_tokens is 131 of 132 tokens, which leaves no room for a prompt"),
    ],
)
def test_bad_input_is_named(text: dict[str, Any], parameters: dict[str, Any], message: str) -> None:
    error = evaluate(miniature(0, **text), **parameters)["errors"]["says"]
    assert error["code"] == "invalid_data"
    assert message in error["message"]


def test_what_changes_after_planning_is_noticed(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    content = json.loads((ROOT / "tokenizer.json").read_text())
    tokenizer.write_text(json.dumps(content))
    task = parse_suite({"tasks": [{"kind": "completions", "tokenizer": str(tokenizer), "max_tokens": 2}]}, "t").tasks[0]

    def run(stage: Any, base: CheckpointRef | None, *shards: Any) -> Any:
        return run_shard(ShardRequest(task, stage, LAST, shards, base=base), lambda done: None)

    [alone], [beside] = (run("plan", base).output["shards"] for base in (None, FIRST))
    assert (alone["units"], beside["units"]) == (6, 12)
    gone = run("run", None, beside).error
    assert (gone.code, "the run has another base" in gone.message) == ("data_changed", True)
    assert run("run", FIRST, alone).output["base"] is None, "a base that came later is for the next evaluation"
    content["model"]["merges"].pop()
    tokenizer.write_text(json.dumps(content))
    assert run("run", None, alone).error.code == "data_changed"


def test_progress_counts_both_sides() -> None:
    seen: list[tuple[int, int]] = []
    suite = parse_suite({"tasks": [{"kind": "completions", "max_tokens": 1}]}, "test")
    run_suite(suite, LAST, lambda task, done, total, unit: seen.append((done, total)), FIRST)
    assert seen == [(done, 12) for done in (2, 4, 6, 8, 10, 12)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompts": []}, "prompts: tuple should have at least 1 item"),
        ({"prompts": ["a", "b", "a"]}, "the prompt 'a' is given twice"),
        ({"temperature": 0}, "seeded completions at temperature 0 are the greedy one; set samples to 0"),
        ({"top_p": 2}, "top_p is 2.0"),
        ({"seed": -1}, "seed is -1"),
        ({"guidance_scale": 2}, "no key is named 'guidance_scale'"),
    ],
)
def test_parameters_are_checked_when_the_suite_is_given(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSuite, match=message):
        parse_suite({"tasks": [{"kind": "completions", **parameters}]}, "test")
