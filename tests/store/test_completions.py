"""Completions along a run: of the newest evaluation of each checkpoint, compared with the step before."""

from pathlib import Path
from typing import Any

import pytest
from queue_steps import enter, evaluate_whole, measure, submission, suite

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import UnknownName
from evalsvc.spec.documents.items import Change, Completion, StepCompletions
from evalsvc.store.lookup import find_checkpoint, find_run
from evalsvc.store.results import read_completions
from evalsvc.store.runs.posting import evaluate
from evalsvc.store.session import Store

NOWHERE = Path("/nowhere")


def completed(text: str) -> list[dict[str, Any]]:
    prompts = ("cheese =>", "relativity states that")
    return [{"prompt": prompt, "way": "greedy", "text": text, "base": " fromage"} for prompt in prompts]


def completions(store: Store, **arguments: str) -> list[StepCompletions]:
    with store.reading() as session:
        return read_completions(session, NOWHERE, find_run(session, "run-a"), **arguments).steps


def test_completions_by_step(store: Store) -> None:
    words = suite("words", kind="completions")
    for step in (50, 0):
        enter(store, submission(step), words, suite())
        evaluate_whole(store, items=completed(f" {step}"))
    assert [(row.step, row.task) for row in completions(store)] == [(0, "completions-0"), (50, "completions-0")]
    [item] = completions(store, prompt="cheese")[1].completions
    assert item == Completion(**completed(" 50")[0]), "without ids nothing can be compared"
    with store.transaction() as session:
        evaluate(session, find_checkpoint(session, 1), words, priority=0)
    assert completions(store)[1].completions[0].text == " 50", "the old one stands until the new one is there"
    evaluate_whole(store, items=completed(" again"))
    assert completions(store)[1].completions[0].text == " again"
    enter(store, submission(50, identity=Identity(7, 7), replace=True), words)
    assert [row.step for row in completions(store)] == [0], "a replaced checkpoint's are not this run's any more"
    with pytest.raises(UnknownName, match="no variant with completions is named 'row'; did you mean 'raw'"):
        completions(store, variant="row")
    with pytest.raises(UnknownName, match="no prompt is named 'cheese=>'; did you mean 'cheese =>'"):
        completions(store, prompt="cheese=>")


def drawn(*ids: int, way: str = "greedy", protocol: str = "a") -> dict[str, Any]:
    return {"prompt": "cheese =>", "way": way, "protocol": protocol, "ids": list(ids), "text": "", "base": None}


def test_completions_are_compared_with_the_step_before(store: Store) -> None:
    """In the order of the steps, whatever the order in which they came, and the variants apart."""
    words = suite("words", kind="completions")
    rows = {
        (50, "raw"): [drawn(1, 2, 9, 4), drawn(5, 5, way="seed 0")],
        (0, "raw"): [drawn(1, 2, 3, 4), drawn(5, 5, way="seed 0")],
        (20, "ema"): [drawn(7), drawn(8, way="seed 0")],
        (70, "raw"): [drawn(2, 9, 4, protocol="b"), drawn(5, way="seed 0")],
        (90, "raw"): [drawn(1, 9), drawn(way="seed 0")],
    }
    for (step, variant), items in rows.items():
        enter(store, submission(step, variant=variant), words)
        evaluate_whole(store, items=items)
    found = {(row.step, row.variant, item.way): item.previous for row in completions(store) for item in row.completions}

    def change(step: int, common_prefix: int, edits: int) -> Change:
        return Change(step=step, same=edits == 0, common_prefix=common_prefix, edit_distance=edits)

    assert found == {
        (0, "raw", "greedy"): None,
        (0, "raw", "seed 0"): None,
        (20, "ema", "greedy"): None,
        (20, "ema", "seed 0"): None,
        (50, "raw", "greedy"): change(0, 2, 1),
        (50, "raw", "seed 0"): change(0, 2, 0),
        (70, "raw", "greedy"): None,  # drawn in another way, e.g. at another temperature
        (70, "raw", "seed 0"): change(50, 1, 1),
        (90, "raw", "greedy"): change(50, 1, 2),  # over the one of another protocol
        (90, "raw", "seed 0"): change(70, 0, 1),
    }
    assert completions(store, variant="raw", prompt="cheese")[1].completions[0].previous == change(0, 2, 1)


def test_a_run_without_completions(store: Store) -> None:
    measure(store, 25, 1.0)
    assert completions(store) == []
