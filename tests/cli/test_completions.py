"""`evalsvc completions`: what it prints."""

from typing import Any

import pytest
from console import Command
from queue_steps import enter, evaluate_whole, submission, suite


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


def test_prompt_by_prompt_with_the_base_first(command: Command, completed: None) -> None:
    result = command("completions", "run-a", "--prompt", "cheese")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "cheese =>",
        "  base     │  fromage",
        "  step 0   │  fromage",
        "  step 400 │  I love⏎cheese\\x1b[2J",
        "",
    ]
    assert command("completions", "run-a").out.startswith("one\ntwo\n  base     │")


def test_the_seeded_ones_too(command: Command, completed: None) -> None:
    lines = command("completions", "run-a", "--prompt", "cheese", "--all").out.splitlines()
    assert [line.split("│")[0].strip() for line in lines[1:-1]] == [
        "base",
        "base seed 0",
        "step 0",
        "step 0 seed 0",
        "step 400",
        "step 400 seed 0",
    ]


def test_the_numbers_of_each_line(command: Command, service: Any) -> None:
    """A base has no repetition of its own, a first step no step before it, and an image no loss of the base."""
    judged = {"base_own_nll": 1.5, "base_own_scored": 2}
    for step, ids, more in (
        (0, [1, 2], {"image_ids": 0, "seq_rep_4": None, "base_nll": 1.5, "base_scored": 2}),
        (400, [1, 900, 900, 900, 900], {"image_ids": 4, "seq_rep_4": 0.5, "base_nll": 0.0, "base_scored": 0}),
    ):
        enter(service.store, submission(step), suite(kind="completions"))
        item = {"prompt": "one", "way": "greedy", "text": f"at {step}", "base": "two", "base_ids": [1, 2]}
        evaluate_whole(service.store, items=[item | judged | more | {"ids": ids, "drawn": len(ids)}])
    assert command("completions", "run-a").out.splitlines() == [
        "one",
        "            ids  image  seq-rep-4  base loss  of ids  kept  edits │",
        "  base        2                         0.75       2              │ two",
        "  step 0      2      0                  0.75       2              │ at 0",
        "  step 400    5      4       0.50                  0     1      4 │ at 400",
        "",
    ]


def test_none_yet_and_none_such(command: Command, service: Any, completed: None) -> None:
    enter(service.store, submission(0, run="run-b"))
    assert "run run-b has no completions yet; evaluate a suite" in command("completions", "run-b").out
    result = command("completions", "run-a", "--prompt", "cheese>")
    assert (result.code, "did you mean 'cheese =>'" in result.err) == (2, True)
