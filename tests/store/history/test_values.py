"""The history: what is one series and what is two, what replaces what, and numbers that are none."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from history_reference import Point, history_of, imported
from posts_and_results import act, ask, enter, metric, plan, request, result, submission, suite
from queue_steps import evaluate_whole, measure, next_shard, store_result

from evalsvc.errors import Conflict, InvalidRequest, UnknownName
from evalsvc.spec.documents.history import History, ImportOutcome, ValueSeries
from evalsvc.spec.protocol import Protocol
from evalsvc.store.history import long_table
from evalsvc.store.history.imports import import_values
from evalsvc.store.history.long_table import COLUMNS, cut_pages, find_series, read_page
from evalsvc.store.history.reading import read_history, read_summary
from evalsvc.store.history.series import Window, read_protocol
from evalsvc.store.history.writing import write_values
from evalsvc.store.lookup import find_run
from evalsvc.store.pages import PageRequest
from evalsvc.store.runs.listing import runs_view
from evalsvc.store.session import Store
from evalsvc.store.tables import Evaluation, Import, MetricValue


def test_another_protocol_or_variant_is_another_series(store: Store) -> None:
    measure(store, 1, 1.0)
    measure(store, 1, 2.0, limit=2)
    measure(store, 1, 3.0, variant="ema", uri="/ema.pt")
    with store.reading() as session:
        series = read_history(session, "run-a").series
        assert sorted((item.variant, item.value[0]) for item in series) == [("ema", 3.0), ("raw", 1.0), ("raw", 2.0)]
        assert len({item.protocol for item in series}) == 2
        assert [item.variant for item in read_history(session, "run-a", variant="ema").series] == ["ema"]
        assert read_protocol(session, series[0].protocol) in ({"limit": 1}, {"limit": 2})
        expected = {(Protocol({"limit": limit}).id, limit) for limit in (1, 2)}
        assert {(item.protocol, item.differs["limit"]) for item in series} == expected
        assert [item.differs for item in read_history(session, "run-a", variant="ema").series] == [{}]


def test_measuring_again_replaces_only_its_own_values_and_leaves_the_record(store: Store) -> None:
    measure(store, 1, 1.0)
    measure(store, 1, 2.0, limit=2)
    request(store)
    evaluate_whole(store, metric(1.5, limit=1))
    with store.reading() as session:
        series = read_history(session, "run-a").series
        kept = [session.get_one(Evaluation, number).tasks[0].metrics for number in (1, 2, 3)]
    assert sorted(item.value for item in series) == [[1.5], [2.0]]
    assert [metric["value"] for [metric] in kept] == [1.0, 2.0, 1.5]


def test_an_older_evaluation_that_ends_later_does_not_overwrite_a_newer_one(store: Store) -> None:
    measure(store, 1, 1.0)
    request(store)
    evaluate_whole(store, metric(2.0))
    with store.transaction() as session:
        late = metric(9.0)
        write_values(session, session.get_one(Evaluation, 1), [late.to_json()], {late.protocol.id: {"limit": 1}})
    assert history_of(store).series[0].value == [2.0]


def test_what_is_not_finite_comes_back_as_what_it_is(store: Store) -> None:
    for step, value in enumerate((math.nan, math.inf, -math.inf, 1e308)):
        measure(store, step, value)
    assert history_of(store).series[0].value == ["NaN", "Infinity", "-Infinity", 1e308]


def test_the_groups_behind_a_value_are_kept_with_it_everywhere(store: Store) -> None:
    """300 captions of 60 images are not 300 independent items, and a reader must see that."""
    for step, fields in ((1, {"groups": 60}), (2, {})):
        enter(store, submission(step), suite())
        evaluate_whole(store, metric(1.0, n=300, **fields), metric(2.0, "loss/image", n=300))
    newest = ask(store, read_summary, "run-a").series
    groups = {item.metric: item.groups for item in history_of(store).series}
    assert groups == {"loss/text": [60, None], "loss/image": None}
    assert [item.latest and item.latest.groups for item in newest] == [None, None]
    assert [(row["n"], row["groups"]) for row in rows(store, metrics=("loss/text",))] == [(300, 60), (300, None)]


def test_tokens_that_nothing_says_and_an_unknown_variant_are_refused(store: Store) -> None:
    measure(store, 1, 1.0)
    with pytest.raises(InvalidRequest, match="posted with tokens_seen; read the history with x=step"):
        history_of(store, window=Window("tokens"))
    with pytest.raises(UnknownName, match="no variant is named 'rew'; did you mean 'raw'"):
        history_of(store, variant="rew")


def test_a_run_without_values_has_an_empty_history(store: Store) -> None:
    enter(store, submission(), suite())
    assert history_of(store) == History(run="run-a", x="step", series=[], names=[], imports={}, next_cursor=None)


def rows(store: Store, *runs: str, metrics: Sequence[str] = (), variant: str | None = None) -> list[dict[str, Any]]:
    with store.reading() as session:
        pages = [page for run in find_series(session, runs, metrics, variant) for page in cut_pages(session, run)]
        return [dict(zip(COLUMNS, row, strict=True)) for page in pages for row in read_page(session, page)]


def test_every_value_in_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_table, "ROWS", 2)
    for run, step, variant in (("run-b", 5, "raw"), ("run-a", 50, "raw"), ("run-a", 0, "raw"), ("run-a", 0, "ema")):
        uri = f"/{run}-{step}-{variant}.pt"
        enter(store, submission(step, run=run, variant=variant, uri=uri, tokens_seen=7 * step), suite())
        evaluate_whole(store, metric(float(step)), metric(1.0, "arc_easy/acc"))
    found = rows(store)
    assert [(row["run"], row["step"], row["variant"], row["metric"]) for row in found] == [
        (run, step, variant, name)
        for run, step, variant in (("run-a", 0, "ema"), ("run-a", 0, "raw"), ("run-a", 50, "raw"), ("run-b", 5, "raw"))
        for name in ("arc_easy/acc", "loss/text")
    ]
    assert [row["tokens"] for row in rows(store, "run-a", metrics=("arc_*/acc",))] == [0, 0, 350]
    assert [row["value"] for row in rows(store, metrics=("loss/text",), variant="raw")] == [0.0, 50.0, 5.0]


def test_each_value_has_its_own_task(store: Store) -> None:
    """A metric is called after its benchmark, not after the task; two tasks may measure under two protocols."""
    enter(store, submission(), suite(tasks=2))
    limits = iter((1, 2))
    while assignment := next_shard(store):
        stage = assignment.request.stage
        merged = result(metric(1.0, "arc_easy/acc", limit=next(limits))) if stage == "merge" else None
        store_result(store, assignment, merged or (plan(1) if stage == "plan" else result()))
    assert {row["task"] for row in rows(store)} == {"loss-0", "loss-1"}


NAME, UNIT = "loss/text", "nats/token"


def enter_values(store: Store, *values: tuple[int, float], replace: bool = False, **fields: Any) -> ImportOutcome:
    """Import into the series that `queue_steps.metric` measures."""
    points = [Point(step, value, 0.1, 8) for step, value in values]
    series = imported(NAME, points, **({"unit": UNIT, "direction": "lower"} | fields))
    return act(store, import_values, "run-a", "spreadsheet", [series], replace)


def history(store: Store) -> ValueSeries:
    [series] = history_of(store).series
    return series


def outcome(identity: int | None, new: int = 0, replaced: int = 0, unchanged: int = 0) -> ImportOutcome:
    return ImportOutcome(run="run-a", import_=identity, series=1, new=new, replaced=replaced, unchanged=unchanged)


def version(store: Store) -> int:
    return ask(store, find_run, "run-a").history_version


def test_values_come_in_any_order_and_are_marked(store: Store) -> None:
    assert enter_values(store, (30, math.nan), (10, 1.5), (20, -math.inf)) == outcome(1, new=3)
    found = history(store)
    assert (found.x, found.value, found.import_) == ([10, 20, 30], [1.5, "-Infinity", "NaN"], [1, 1, 1])
    assert history_of(store).imports["1"].source == "spreadsheet"
    assert ask(store, runs_view, PageRequest()).runs[0].values == 3
    assert [(row["evaluation"], row["task"], row["tokens"], row["source"]) for row in rows(store)] == [
        (None, None, None, "spreadsheet")
    ] * 3


def test_the_same_again_changes_nothing(store: Store) -> None:
    enter_values(store, (10, 1.5), (20, math.nan))
    before = version(store)
    assert enter_values(store, (20, math.nan), (10, 1.5)) == outcome(None, unchanged=2)
    assert version(store) == before
    assert enter_values(store, (10, 1.5), (30, 2.0)) == outcome(2, new=1, unchanged=1)
    assert history(store).import_ == [1, 1, 2]
    measure(store, 40, 1.5)
    assert enter_values(store, (40, 1.5)) == outcome(None, unchanged=1)
    assert history(store).import_ == [1, 1, 2, None], "a measured value stays measured"


def test_other_values_stand_in_the_way(store: Store) -> None:
    """Of a body of which one value is refused, nothing is entered; neither is the run or the import."""
    measure(store, 10, 1.5)
    enter_values(store, (20, 2.5))
    with pytest.raises(Conflict) as error:
        enter_values(store, (20, math.inf), (5, 9.0), (10, 1.0))
    assert error.value.message == (
        "2 of the values differ from the values of run 'run-a': loss/text at step 10 is 1.5, measured by evaluation 1, "
        "and not 1.0; loss/text at step 20 is 2.5, imported, and not Infinity; nothing was imported; leave these "
        "values out, or send replace=true"
    )
    assert (history(store).x, history(store).value) == ([10, 20], [1.5, 2.5])
    with store.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Import)) == 1


def test_replacing_is_asked_for_and_leaves_the_record(store: Store) -> None:
    enter(store, submission(10), suite())
    evaluate_whole(store, metric(1.5, n=300, groups=60))
    assert enter_values(store, (10, 1.0), (20, 2.0), replace=True) == outcome(1, new=1, replaced=1)
    found = history(store)
    assert (found.value, found.import_, found.n, found.groups) == ([1.0, 2.0], [1, 1], [8, 8], None)
    with store.reading() as session:
        assert session.get_one(Evaluation, 1).tasks[0].metrics[0]["value"] == 1.5


def test_a_measured_value_replaces_an_imported_one_of_its_series_only(store: Store) -> None:
    enter_values(store, (10, 1.0), (20, 2.0))
    enter_values(store, (10, 7.0), protocol=Protocol({"stated": "by hand"}))
    measure(store, 10, 1.5)
    found = {tuple(item.value): item.import_ for item in history_of(store).series}
    assert found == {(1.5, 2.0): [None, 1], (7.0,): [2]}


def test_one_series_has_one_unit_and_each_value_one_origin(store: Store) -> None:
    enter_values(store, (10, 1.0))
    for field, value in (("unit", "bits"), ("direction", "higher")):
        with pytest.raises(Conflict, match=f"has the {field} '.*' under this protocol, not '{value}'"):
            enter_values(store, (20, 1.0), **{field: value})
    with pytest.raises(sa.exc.IntegrityError), store.transaction() as session:
        session.execute(sa.update(MetricValue).values(import_id=None))


def test_a_value_that_comes_between_is_not_overwritten(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is old once another writer was there; then nothing is entered, and the other's value stays."""
    enter_values(store, (10, 1.0))
    monkeypatch.setattr("evalsvc.store.history.imports._entries", lambda *_: {})
    with pytest.raises(Conflict, match="wrote some of these values concurrently; send the import again"):
        enter_values(store, (10, 2.0), (20, 2.0))
    assert history(store).value == [1.0]


def test_a_replaced_checkpoint_takes_its_own_values_along_only(store: Store) -> None:
    enter(store, submission(10), suite())
    evaluate_whole(store, metric(1.5), metric(2.0, "loss/image"))
    enter_values(store, (10, 1.0), replace=True)
    enter(store, submission(10, uri="/other.pt", replace=True), suite())
    found = {item.metric: item.value for item in history_of(store).series}
    assert found == {"loss/text": [1.0], "loss/image": []}


def test_the_version_grows_with_all_that_moves_the_history(store: Store) -> None:
    """An answer kept under its ETag was shown for ever after a checkpoint had been replaced."""
    seen = []
    for change in (
        lambda: enter(store, submission(10, tokens_seen=5), suite()),
        lambda: evaluate_whole(store, metric(1.5)),
        lambda: enter_values(store, (20, 1.0)),
        lambda: enter_values(store, (20, 2.0), replace=True),
        lambda: enter(store, submission(10, uri="/other.pt", replace=True), suite()),
    ):
        change()
        seen.append(version(store))
    enter(store, submission(10, uri="/other.pt"), suite())
    assert seen == sorted(set(seen))
    assert version(store) == seen[-1], "the same post again changes nothing"
