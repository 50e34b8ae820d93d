"""`evalsvc items` and `completions`."""

from pathlib import Path
from typing import Any

import pytest
from console import Shell
from queue_steps import enter, evaluate_whole, metric, submission, suite


def test_items_are_shown_in_part_and_written_whole(evalsvc: Shell, service: Any, tmp_path: Path) -> None:
    items = [{"index": index, "nll": 1.5 * index, "text": "a" * 100, "ids": [index]} for index in range(30)]
    enter(service.store, submission(5), suite())
    evaluate_whole(service.store, metric(2.0), items=items)
    enter(service.store, submission(10), suite())
    shown = evalsvc("items 1 --limit 3")
    assert "loss-0: 30 items" in shown.out
    assert ["index", "nll", "text", "ids"] in shown.cells
    assert "the first 3 are shown; --format csv --output FILE writes all" in shown.out
    assert "a" * 61 not in shown.out, "a long text would hide the other columns"
    written = evalsvc("items 1 --format csv --output items.csv")
    assert (written.code, written.out) == (0, ""), written.err
    rows = evalsvc("items 1 --format csv").rows
    assert (len(rows), rows[2]["task"], rows[2]["nll"], rows[2]["ids"]) == (30, "loss-0", "3.0", "[2]")
    assert len((tmp_path / "items.csv").read_text().splitlines()) == 31
    assert evalsvc("items 1 --column nll --format json").json["items"]["loss-0"][1] == {"nll": 1.5}
    assert evalsvc("items 2").out == "evaluation 2 has no results per item; its state is queued\n"


@pytest.fixture
def completed(service: Any) -> None:
    for step, text in ((0, " fromage"), (400, " I love\ncheese\x1b[2J")):
        enter(service.store, submission(step), suite(kind="completions"))
        items = [
            {"prompt": prompt, "way": way, "text": text + mark, "base": " fromage" + mark}
            for prompt in ("one\ntwo", "cheese =>")
            for way, mark in (("greedy", ""), ("seed 0", "!"))
        ]
        evaluate_whole(service.store, items=items)


def test_completions_are_shown_prompt_by_prompt_with_the_base_first(
    evalsvc: Shell, service: Any, completed: None
) -> None:
    assert evalsvc("completions run-a --prompt cheese").out.splitlines() == [
        "cheese =>",
        "  base     │  fromage",
        "  step 0   │  fromage",
        "  step 400 │  I love⏎cheese\\x1b[2J",
        "",
    ]
    assert evalsvc("completions run-a").out.startswith("one\ntwo\n  base     │")
    lines = evalsvc("completions run-a --prompt cheese --all").out.splitlines()
    assert [line.split("│")[0].strip() for line in lines[1:-1]] == [
        f"{what}{way}" for what in ("base", "step 0", "step 400") for way in ("", " seed 0")
    ]
    refused = evalsvc("completions run-a --prompt cheese>")
    assert (refused.code, "did you mean 'cheese =>'" in refused.err) == (2, True)
    enter(service.store, submission(0, run="run-b"))
    assert "run run-b has no completions yet; evaluate a suite" in evalsvc("completions run-b").out
    rows = evalsvc("completions run-a --prompt cheese --format csv").rows
    assert [(row["step"], row["way"]) for row in rows[:2]] == [("0", "greedy"), ("0", "seed 0")]


def test_the_numbers_of_each_completion(evalsvc: Shell, service: Any) -> None:
    """A base has no repetition of its own, a first step no step before it, and an image no loss of the base."""
    judged = {"base_own_nll": 1.5, "base_own_scored": 2}
    for step, ids, more in (
        (0, [1, 2], {"image_ids": 0, "seq_rep_4": None, "base_nll": 1.5, "base_scored": 2}),
        (400, [1, 900, 900, 900, 900], {"image_ids": 4, "seq_rep_4": 0.5, "base_nll": 0.0, "base_scored": 0}),
    ):
        enter(service.store, submission(step), suite(kind="completions"))
        item = {"prompt": "one", "way": "greedy", "text": f"at {step}", "base": "two", "base_ids": [1, 2]}
        evaluate_whole(service.store, items=[item | judged | more | {"ids": ids, "drawn": len(ids)}])
    assert evalsvc("completions run-a").out.splitlines() == [
        "one",
        "            ids  image  seq-rep-4  base loss  of ids  kept  edits │",
        "  base        2                         0.75       2              │ two",
        "  step 0      2      0                  0.75       2              │ at 0",
        "  step 400    5      4       0.50                  0     1      4 │ at 400",
        "",
    ]
