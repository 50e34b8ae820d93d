"""Every list in pages, on each database: the pages are the whole, and what is entered meanwhile moves nothing."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from history_reference import Point, write
from long_lists import fill_lists
from posts_and_results import act, ask, enter, kept_artifact, metric, plan, set_base, submission, suite
from queue_steps import cancel, dispatched, evaluate_whole, measure, retry, store_result

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.documents import RunSummary
from evalsvc.store import pages as paging
from evalsvc.store import views
from evalsvc.store.artifacts import evaluation_artifacts, run_artifacts
from evalsvc.store.history.series import listed_protocols
from evalsvc.store.lookup import find_run
from evalsvc.store.pages import Filters, PageRequest, page_of_names, read_cursor, require_suite, write_cursor
from evalsvc.store.runs import listing
from evalsvc.store.runs.listing import run_view, runs_tag, runs_view
from evalsvc.store.session import Store
from evalsvc.store.suites import kept_suite, put_suite
from evalsvc.store.tables import Evaluation
from evalsvc.store.views import checkpoints_view, evaluations_view

ROWS = 25

Read = Callable[..., Any]

RUN = "run-00001"
ONE_RUN = Filters(RUN, "raw", None, "failed", 1, 20)
LISTS: dict[str, Read] = {
    "runs": runs_view,
    "checkpoints": partial(checkpoints_view, filters=Filters()),
    "checkpoints of a run": partial(checkpoints_view, filters=ONE_RUN),
    "evaluations": partial(evaluations_view, filters=Filters()),
    "evaluations of a suite": partial(evaluations_view, filters=replace(ONE_RUN, suite="loss")),
    "artifacts of a run": lambda session, page: run_artifacts(session, find_run(session, RUN), "grid", None, page),
    "artifacts of an evaluation": partial(evaluation_artifacts, evaluation_id=1, kind=None),
    "protocols": partial(listed_protocols, run=None, metrics=[]),
    "protocols of metrics": partial(listed_protocols, run=RUN, metrics=["loss/1*"]),
}


def pages(store: Store, read: Read, limit: int) -> Iterator[list[Any]]:
    """Each page in a session of its own, as requests read them."""
    page: dict[str, Any] = {"next_cursor": None}
    while True:
        page = ask(store, read, page=PageRequest(limit, page["next_cursor"])).model_dump()
        [rows] = [value for key, value in page.items() if key != "next_cursor"]
        yield rows
        if page["next_cursor"] is None:
            return


def test_the_pages_are_the_whole(store: Store) -> None:
    act(store, fill_lists, ROWS)
    for name, read in LISTS.items():
        [whole] = pages(store, read, 1000)
        assert whole, name
        for limit in (1, 7, len(whole)):
            cut = list(pages(store, read, limit))
            assert [row for rows in cut for row in rows] == whole, name
            assert {len(rows) for rows in cut[:-1]} <= {limit}, name


def test_what_is_posted_between_two_pages_moves_nothing(store: Store) -> None:
    """With an offset, an evaluation that began meanwhile had the next page begin with the last row of this one."""
    for step in range(0, 12, 2):
        enter(store, submission(step), suite())
    seen: dict[str, list[int]] = {"checkpoints": [], "evaluations": []}
    walks = {name: pages(store, LISTS[name], 2) for name in seen}
    for step in (1, 9, 11):
        for name, walk in walks.items():
            seen[name] += [row["step"] for row in next(walk)]
        enter(store, submission(step), suite())
    assert seen == {"checkpoints": [0, 2, 4, 6, 8, 9], "evaluations": [10, 8, 6, 4, 2, 0]}


def test_a_run_shows_its_last_checkpoints(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 10,000 checkpoints answered with megabytes."""
    monkeypatch.setattr(listing, "MAX_CHECKPOINTS", 3)
    monkeypatch.setattr(views, "MAX_EVALUATIONS", 2)
    for step in (40, 30, 20, 10):
        enter(store, submission(step))
    with store.transaction() as session:
        for _ in range(3):
            session.add(Evaluation(checkpoint_id=1, suite="again", suite_digest="0", state="succeeded"))
    with store.reading() as session:
        run = run_view(session, find_run(session, "run-a"))
        [listed] = checkpoints_view(session, Filters("run-a", first=40), PageRequest()).checkpoints
    assert ([item.step for item in run.checkpoints], run.checkpoint_count) == ([20, 30, 40], 4)
    assert listed.evaluations == run.checkpoints[-1].evaluations
    assert [item.id for item in listed.evaluations] == [2, 3]


def test_filters(store: Store) -> None:
    measure(store, 10, 1.0)
    measure(store, 20, 1.0, variant="ema", run="run-b")
    [waiting] = enter(store, submission(30), suite("other", limit=2))
    [stopped] = enter(store, submission(40), suite("other", limit=2))
    cancel(store, stopped)

    def found(**given: Any) -> tuple[list[int], list[int]]:
        filters = Filters(**given)
        posted = ask(store, checkpoints_view, filters, PageRequest()).checkpoints
        evaluated = ask(store, evaluations_view, filters, PageRequest()).evaluations
        return [item.step for item in posted], [item.step for item in evaluated]

    assert found() == ([10, 30, 40, 20], [40, 30, 20, 10])
    assert found(run="run-a") == ([10, 30, 40], [40, 30, 10])
    assert found(variant="ema") == ([20], [20])
    assert found(state="queued") == ([30], [30])
    assert found(state="succeeded", run="run-a") == ([10], [10])
    assert found(first=20, last=30) == ([30, 20], [30, 20])
    assert found(suite="other")[1] == [40, 30]
    for state, identity in (("queued", waiting), ("cancelled", stopped)):
        [listed] = ask(store, evaluations_view, Filters(state=state), PageRequest()).evaluations
        assert (listed.id, listed.suite.name, listed.error is None) == (identity, "other", state == "queued")


def test_a_filter_by_what_is_not_there_says_what_is_near(store: Store) -> None:
    measure(store, 10, 1.0, variant="ema")
    measure(store, 10, 1.0, run="run-b")
    page = PageRequest()
    wrong: dict[str, tuple[Any, ...]] = {
        "no run is named 'run-c'; did you mean": (checkpoints_view, Filters("run-c"), page),
        "no variant of run 'run-a' is named 'ema2'; did": (checkpoints_view, Filters("run-a", "ema2"), page),
        "no variant is named 'row'; did you mean 'raw'": (checkpoints_view, Filters(variant="row"), page),
        "no run is named 'run%'": (evaluations_view, Filters("run%"), page),
        "no metric is named 'loss/txt'; did": (listed_protocols, "run-a", ["loss/txt"], page),
        "no suite is named 'quik'; did you mean 'quick'": (require_suite, "quik", ["loss"]),
    }
    for words, question in wrong.items():
        with pytest.raises(UnknownName, match=words):
            ask(store, *question)
    ask(store, require_suite, "quick", [])
    with pytest.raises(InvalidRequest, match="from=3 is greater than to=2; swap the two"):
        Filters(first=3, last=2)


def test_protocols_say_what_was_measured_by_them(store: Store) -> None:
    for run in ("run-a", "run-b"):
        enter(store, submission(run=run), suite())
        evaluate_whole(store, metric(1.0), metric(2.0, "loss/image", limit=2 if run == "run-a" else 1))
    everything = ask(store, listed_protocols, None, [], PageRequest()).protocols
    of_a = ask(store, listed_protocols, "run-a", ["loss/image"], PageRequest()).protocols
    by_limit = {item.content["limit"]: item for item in everything}
    measured = {limit: (item.metrics, item.runs) for limit, item in by_limit.items()}
    assert measured == {1: (["loss/image", "loss/text"], 2), 2: (["loss/image"], 1)}
    assert of_a == [by_limit[2]]


def test_artifacts_say_whose_they_are(store: Store) -> None:
    [evaluation] = enter(store, submission(), suite(tasks=2))
    evaluate_whole(store, metric(1.0), artifacts=[kept_artifact("a" * 64)])
    listed = ask(store, evaluation_artifacts, evaluation, "grid", PageRequest()).artifacts
    places = [(item.run, item.step, item.variant, item.task) for item in listed]
    assert places == [("run-a", 25, "raw", "loss-0"), ("run-a", 25, "raw", "loss-1")]
    run = ask(store, find_run, "run-a")
    assert ask(store, run_artifacts, run, None, 25, PageRequest()).artifacts == listed
    assert ask(store, run_artifacts, run, None, 26, PageRequest()).artifacts == []


def test_a_suite_is_kept_as_it_was_given(store: Store) -> None:
    assert [act(store, put_suite, suite("mine", limit=limit)) for limit in (1, 3)] == [True, False]
    assert ask(store, kept_suite, "mine")["tasks"][0]["limit"] == 3


QUESTION = ["checkpoints", {"run": "run-a"}]
KINDS = [int, str]
GIVEN = write_cursor(QUESTION, [25, "raw"])


def packed(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def test_a_cursor_is_read_back() -> None:
    for key in ([0, "raw"], [2**63 - 1, "ema_0.9999"], [7, "größe % _ ' \""], [7, "n" * 255]):
        cursor = write_cursor(QUESTION, key)
        assert read_cursor(cursor, QUESTION, KINDS) == key
        assert len(cursor) <= paging.MAX_CURSOR
        assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


CHECKSUM = json.loads(base64.urlsafe_b64decode(GIVEN + "=="))[0]

FORGED = {
    "empty": "",
    "no base64": "é%_'; DROP TABLE runs",
    "unicode digits": "１２３",
    "no JSON": packed("x")[:-2],
    "a text": packed("run-a"),
    "an object": packed({"0": CHECKSUM}),
    "an empty list": packed([]),
    "truncated": GIVEN[:-3],
    "a letter changed": GIVEN[:20] + ("A" if GIVEN[20] != "A" else "B") + GIVEN[21:],
    "another key with its checksum": packed([CHECKSUM, 26, "raw"]),
    "more parts": packed([CHECKSUM, 25, "raw", 1]),
    "of another list": write_cursor(["evaluations", {"run": "run-a"}], [25, "raw"]),
    "of another run": write_cursor(["checkpoints", {"run": "run-b"}], [25, "raw"]),
    "a true number": write_cursor(QUESTION, [True, "raw"]),
    "a negative number": write_cursor(QUESTION, [-1, "raw"]),
    "65 bits": write_cursor(QUESTION, [2**64, "raw"]),
    "a text for a number": write_cursor(QUESTION, ["25", "raw"]),
    "a number for a text": write_cursor(QUESTION, [25, 0]),
    "NUL": write_cursor(QUESTION, [25, "ra\0w"]),
    "half a character": packed([CHECKSUM, 25, "\ud800"]),
    "nested": base64.urlsafe_b64encode(b"[" * 300).decode(),
    "digits": base64.urlsafe_b64encode(b"[" + b"9" * 300 + b"]").decode(),
    "long": "A" * 1_000_000,
}
"""Cursors that no list gave. The format has no secret, so some are what a client that knows the code could make."""


@pytest.mark.parametrize("cursor", FORGED.values(), ids=FORGED)
def test_a_forged_cursor_is_refused_and_says_what_to_do(cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="start again without `cursor`") as refusal:
        read_cursor(cursor, QUESTION, KINDS)
    assert len(refusal.value.message) < 400


def test_names_of_several_places_have_pages_too() -> None:
    names = {f"suite {number:02} größe" for number in range(25)}
    listed: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page, cursor = page_of_names(names, ["suites"], PageRequest(10, cursor))
        listed += page
    assert (listed, cursor) == (sorted(names), None)


def summary(store: Store, run: str = "run-a") -> RunSummary:
    return next(item for item in ask(store, runs_view, PageRequest()).runs if item.name == run)


def fail(store: Store, step: int) -> None:
    enter(store, submission(step), suite())
    store_result(store, dispatched(store, "plan"), plan(1))
    store_result(store, dispatched(store, "run"), ShardResult(None, ShardError("non_finite", "layer 3 gives NaN")))


def test_steps_posted_and_measured(store: Store) -> None:
    enter(store, submission(10))
    assert (summary(store).last_step, summary(store).last_value_step, summary(store).values) == (10, None, 0)
    measure(store, 20, 1.0)
    write(store, {"lower/x": [Point(5, 1.0, None, None), Point(70, 1.0, None, None)]}, "run-a")
    found = summary(store)
    assert (found.last_step, found.last_value_step, found.values) == (20, 70, 3), "imported values count too"
    write(store, {"lower/x": [Point(90, 1.0, None, None)]}, "run-b")
    assert (summary(store, "run-b").last_step, summary(store, "run-b").last_value_step) == (None, 90)


def test_what_waits_and_what_failed_and_no_later_evaluation_mended(store: Store) -> None:
    def failed_and_waiting() -> tuple[int, int]:
        return summary(store).failed, summary(store).waiting

    fail(store, 10)
    measure(store, 20, 1.0)
    enter(store, submission(20), suite("other", limit=2))
    enter(store, submission(30), suite(), suite("other", limit=2))
    assert failed_and_waiting() == (1, 2), "checkpoints, not evaluations"
    enter(store, submission(10), suite("other", limit=2))
    evaluate_whole(store, metric(1.0))
    assert failed_and_waiting() == (1, 0), "another suite mends nothing"
    retry(store, 1)
    evaluate_whole(store, metric(1.0))
    assert failed_and_waiting() == (0, 0)


def test_tags_are_those_of_the_newest_checkpoint(store: Store) -> None:
    enter(store, submission(10, tags={"seed": "1", "lr": "old"}))
    assert summary(store).tags == {"seed": "1", "lr": "old"}
    enter(store, submission(20, variant="ema", tags={"seed": "1", "kind": "ema"}))
    assert summary(store).tags == {"seed": "1", "kind": "ema"}
    enter(store, submission(20, tags={"seed": "1"}))
    assert summary(store).tags == {"seed": "1"}, "of several variants, raw"
    write(store, {"lower/x": [Point(30, 1.0, None, None)]}, "imported")
    assert summary(store, "imported").tags == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda store: enter(store, submission(40)),
        lambda store: enter(store, submission(50, run="run-b")),
        lambda store: enter(store, submission(10), suite("other", limit=2)),
        lambda store: cancel(store, 2),
        lambda store: evaluate_whole(store, metric(1.0)),
        lambda store: write(store, {"lower/x": [Point(30, 1.0, None, None)]}, "imported"),
        lambda store: set_base(store, "run-a", "run-a", 10),
    ],
    ids=["checkpoint", "run", "evaluation", "cancelled", "value", "imported", "base"],
)
def test_whatever_changes_a_row_changes_the_tag(store: Store, change: Callable[[Store], object]) -> None:
    measure(store, 10, 1.0)
    enter(store, submission(20), suite())
    before, rows = ask(store, runs_tag, PageRequest()), summary(store)
    assert ask(store, runs_tag, PageRequest()) == before
    change(store)
    assert ask(store, runs_tag, PageRequest()) != before
    assert ask(store, runs_view, PageRequest()).runs != [rows]


def test_values_are_counted_once(store: Store) -> None:
    """Counting five million values took longer than all else, at every look of an open page."""
    measure(store, 10, 1.0)
    asked: dict[str, bytes] = {}
    counted: list[str] = []

    def remember(run: str, tag: str, make: Callable[[], bytes]) -> bytes:
        if tag not in asked:
            counted.append(run)
            asked[tag] = make()
        return asked[tag]

    for _ in range(3):
        assert ask(store, runs_view, PageRequest(), remember).runs[0].values == 1
    assert counted == ["run-a"]
    measure(store, 20, 1.0)
    assert ask(store, runs_view, PageRequest(), remember).runs[0].values == 2
