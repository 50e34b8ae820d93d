"""A checkpoint's result as one document, items and completions, on each database."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from posts_and_results import ask, enter, metric, plan, request, submission, suite
from queue_steps import cancel, dispatched, evaluate_whole, measure, store_result

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import UnknownName
from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.documents.results import Change, Completion, StepCompletions
from evalsvc.spec.protocol import Protocol
from evalsvc.store.events import read_events
from evalsvc.store.lookup import find_evaluation, find_run
from evalsvc.store.results import (
    common_prefix,
    edit_distance,
    evaluated_steps,
    read_completions,
    read_results,
    read_task_items,
    read_values,
    read_values_along,
)
from evalsvc.store.session import Store
from evalsvc.store.views import evaluation_view

NOWHERE = Path("/nowhere")
"""Of files of items; what these tests store is small enough for rows."""

ITEMS = [{"index": 0, "nll_text": 1.5}, {"index": 1, "nll_text": "NaN"}]


def results(store: Store, step: int = 25, variant: str = "raw", suite: str | None = None) -> dict[str, Any]:
    document = ask(store, read_results, NOWHERE, "run-a", step, variant, suite)
    content = document.model_dump()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    return content


def test_a_finished_evaluation(store: Store) -> None:
    [number] = enter(store, submission(), suite())
    evaluate_whole(store, metric(1.5, items=("nll_text", "n_text")), items=ITEMS)
    document = results(store)
    [found] = document["metrics"]
    expected = {"name": "loss/text", "value": 1.5, "items": ["nll_text", "n_text"], "task": "loss-0"}
    assert expected.items() <= found.items()
    assert document["protocols"] == {Protocol({"limit": 1}).id: {"limit": 1}}
    assert document["items"] == {"loss-0": ITEMS}
    tasks = suite().to_json()["tasks"]
    assert document["suite"] == {"name": "quick", "digest": suite().digest, "tasks": tasks}
    assert (document["state"], document["errors"]) == ("succeeded", {})
    assert document["evaluations"] == [{"id": number, "suite": "quick", "state": "succeeded"}]
    assert document["checkpoint"]["label"] == "run 'run-a' step 25"
    assert document["provenance"]["loss-0"]["device"] == "cpu"
    assert document["artifacts"] == {"loss-0": []}


WARNING = {"code": "worse_than_guessing", "metric": "loss/image_within", "message": "5.78 is above 4.16"}


def test_what_is_suspicious_is_stored_and_told_wherever_the_result_is(store: Store) -> None:
    [number] = enter(store, submission(), suite(), suite("slow", kind="steps"))[:1]
    evaluate_whole(store, metric(1.5), warnings=[WARNING])
    assert results(store)["warnings"] == {"loss-0": [WARNING], "steps-0": [WARNING]}
    with store.reading() as session:
        [task] = evaluation_view(session, find_evaluation(session, number), {}).tasks
        page = read_events(session, number, 0)
    assert [warning.model_dump() for warning in task.warnings] == [WARNING]
    assert [event.data for event in page.events if event.state == "succeeded"] == [{"warnings": [WARNING]}, None]
    request(store)
    evaluate_whole(store, metric(1.5))
    assert results(store)["warnings"] == {"steps-0": [WARNING]}, "of the newest evaluation alone"


def test_the_newest_evaluation_of_each_suite_counts(store: Store) -> None:
    enter(store, submission(), suite(), suite("slow", limit=2, kind="steps"))
    evaluate_whole(store, metric(1.0))
    request(store)
    assert results(store)["state"] == "queued", "who waits must wait for the newest one"
    evaluate_whole(store, metric(2.0))
    document = results(store)
    assert document["suite"]["name"] == "slow, quick"
    assert [item["id"] for item in document["evaluations"]] == [2, 3]
    assert [(item["value"], item["task"]) for item in document["metrics"]] == [(2.0, "loss-0")]
    assert [task["name"] for task in results(store, suite="slow")["suite"]["tasks"]] == ["steps-0"]


def test_tasks_of_the_same_name_in_two_suites_are_told_apart(store: Store) -> None:
    """Items of one would stand beside the metrics of the other."""
    enter(store, submission(), suite())
    evaluate_whole(store, metric(1.0), items=ITEMS[:1])
    enter(store, submission(), suite("slow", limit=2))
    evaluate_whole(store, metric(2.0, limit=2), items=ITEMS)
    document = results(store)
    assert {item["task"]: item["value"] for item in document["metrics"]} == {"quick/loss-0": 1.0, "slow/loss-0": 2.0}
    assert {name: len(items) for name, items in document["items"].items()} == {"quick/loss-0": 1, "slow/loss-0": 2}


def test_what_failed_or_was_cancelled_says_why(store: Store) -> None:
    enter(store, submission(), suite(tasks=2))
    store_result(store, dispatched(store), ShardResult(error=ShardError("non_finite", "layer 3")))
    assert results(store)["state"] == "running"
    evaluate_whole(store, metric(1.0))
    document = results(store)
    assert (document["state"], list(document["items"])) == ("partly_failed", ["loss-1"])
    assert document["errors"] == {"loss-0": {"code": "non_finite", "message": "layer 3"}}
    [other] = enter(store, submission(), suite("slow", limit=2, kind="steps"))
    cancel(store, other)
    assert results(store, suite="slow")["errors"]["steps-0"]["code"] == "cancelled"
    assert results(store)["state"] == "partly_failed"


def test_what_is_not_there(store: Store) -> None:
    enter(store, submission(), suite())
    enter(store, submission(50))
    for words, arguments in {
        "has no checkpoint at step 24, variant 'raw'; the nearest steps are 25, 50": {"step": 24},
        "no suite that evaluated run 'run-a' step 25 is named 'quik'; did you mean 'quick'?": {"suite": "quik"},
        "run 'run-a' step 50 has no evaluation yet": {"step": 50},
    }.items():
        with pytest.raises(UnknownName, match=re.escape(words)):
            results(store, **arguments)


def items(store: Store, evaluation: int, task: str | None = None) -> dict[str, Any]:
    with store.reading() as session:
        found = read_task_items(find_evaluation(session, evaluation), NOWHERE, task)
        return {name: list(table.rows()) for name, table in found.items()}


def test_items_by_task(store: Store) -> None:
    [number] = enter(store, submission(), suite(tasks=2))
    rows = [{"index": 0, "benchmark": "piqa", "acc": 1}, {"index": 0, "benchmark": "copa", "acc": 0}]
    first = dispatched(store)
    assert items(store, number) == {}
    store_result(store, first, plan(shards=1))
    evaluate_whole(store, metric(1.0), items=rows)
    assert items(store, number) == {"loss-0": rows, "loss-1": rows}
    assert items(store, number, task="loss-1") == {"loss-1": rows}
    with pytest.raises(UnknownName, match=r"no task of evaluation 1 is named 'loss-2'; did you mean 'loss-"):
        items(store, number, task="loss-2")


def test_evaluated_steps(store: Store) -> None:
    for step, variant, name in ((50, "raw", "quick"), (0, "raw", "slow"), (25, "ema", "quick"), (75, "raw", None)):
        suites = [suite(name, limit=len(name))] if name else []
        enter(store, submission(step, variant=variant, uri=f"/{step}.pt"), *suites)
    with store.reading() as session:
        assert evaluated_steps(session, "run-a", "raw") == [0, 50]
        assert evaluated_steps(session, "run-a", "ema", "quick") == [25]
        for words, question in {
            "suite 'slow' evaluated no checkpoint of run 'run-a' with variant 'ema'": ("ema", "slow"),
            "no evaluated variant of run 'run-a' is named 'emma'; did you mean 'ema'": ("emma",),
            "no evaluated suite of run 'run-a' is named 'quik'; did you mean 'quick'": ("raw", "quik"),
        }.items():
            with pytest.raises(UnknownName, match=words):
                evaluated_steps(session, "run-a", *question)


def test_many_steps_are_read_as_each_alone(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of 2,000 steps asked the database five times for each: half a minute went by."""
    monkeypatch.setattr("evalsvc.store.results.STEPS_AT_ONCE", 4)
    for step in range(10):
        enter(store, submission(step, uri=f"/{step}.pt", path=f"/{step}.pt"), suite(limit=1 + step % 2))
        evaluate_whole(store, metric(float(step), limit=1 + step % 2), items=[{"index": step}])
    statements: list[str] = []
    with store.reading() as session:
        sa.event.listen(store.engine, "after_cursor_execute", lambda *found: statements.append(found[2]))
        steps, along = zip(*read_values_along(session, tmp_path, "run-a", range(1, 12), "raw"), strict=True)
        assert steps == tuple(range(1, 10)), "the others have not been evaluated"
        asked = len(statements)
        alone = [read_values(session, tmp_path, "run-a", step, "raw") for step in range(1, 10)]
        assert [document for document, _ in along] == [document for document, _ in alone]
        for found in (along, alone):
            rows = [{task: list(read().rows()) for task, read in tables.items()} for _, tables in found]
            assert rows == [{"loss-0": [{"index": step}]} for step in range(1, 10)]
    assert asked <= 1 + 3 * 3 + 2 + 1, "the run; checkpoints, evaluations and tasks of three pieces; two protocols"


def slow(one: Sequence[int], other: Sequence[int]) -> int:
    """The definition: the whole table of distances between prefixes."""
    row = list(range(len(other) + 1))
    for place, token in enumerate(one, start=1):
        before, row = row, [place]
        for column, wanted in enumerate(other, start=1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (token != wanted)))
    return row[-1]


@pytest.mark.parametrize("ids", [2, 3, 60_000])
def test_equals_the_table(ids: int) -> None:
    """Lengths about those of a machine word and far above it, where the bits of several words must carry."""
    draw = random.Random(ids)
    for length in (0, 1, 2, 3, 31, 63, 64, 65, 130):
        for other_length in (0, 1, length, length + 3, 70):
            one, other = ([draw.randrange(ids) for _ in range(some)] for some in (length, other_length))
            assert edit_distance(one, other) == edit_distance(other, one) == slow(one, other)
    assert edit_distance(b"kitten", b"sitting") == 3, "by hand"


def test_common_prefix() -> None:
    cases = (("", "", 0), ("a", "", 0), ("ab", "ab", 2), ("abc", "ab", 2), ("axc", "abc", 1), ("d", "e", 0))
    for one, other, expected in cases:
        assert common_prefix(one, other) == common_prefix(other, one) == expected


def completed(text: str) -> list[dict[str, Any]]:
    prompts = ("cheese =>", "relativity states that")
    return [{"prompt": prompt, "way": "greedy", "text": text, "base": " fromage"} for prompt in prompts]


def completions(store: Store, **arguments: str) -> list[StepCompletions]:
    with store.reading() as session:
        return read_completions(session, NOWHERE, find_run(session, "run-a"), **arguments).steps


def test_completions_by_step(store: Store) -> None:
    words = suite("words", kind="completions")
    measure(store, 25, 1.0)
    assert completions(store) == []
    for step in (50, 0):
        enter(store, submission(step), words, suite())
        evaluate_whole(store, items=completed(f" {step}"))
    assert [(row.step, row.task) for row in completions(store)] == [(0, "completions-0"), (50, "completions-0")]
    [item] = completions(store, prompt="cheese")[1].completions
    assert item == Completion(**completed(" 50")[0]), "without ids nothing can be compared"
    request(store, checkpoint=2, by=words)
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

    by_step = {
        (0, "raw"): (None, None),
        (20, "ema"): (None, None),
        (50, "raw"): (change(0, 2, 1), change(0, 2, 0)),
        (70, "raw"): (None, change(50, 1, 1)),  # drawn in another way, e.g. at another temperature
        (90, "raw"): (change(50, 1, 2), change(70, 0, 1)),  # over the one of another protocol
    }
    ways = ("greedy", "seed 0")
    assert found == {(*at, way): item for at, both in by_step.items() for way, item in zip(ways, both, strict=True)}
    assert completions(store, variant="raw", prompt="cheese")[1].completions[0].previous == change(0, 2, 1)
