"""Imported values: all or none of them, marked as what they are, and never silently in the place of others."""

import math
from typing import Any

import pytest
import sqlalchemy as sa
from history_reference import Point, history_of, imported
from queue_steps import enter, evaluate_whole, measure, metric, submission, suite

from evalsvc.errors import Conflict
from evalsvc.spec.documents.history import ImportOutcome, ValueSeries
from evalsvc.spec.protocol import Protocol
from evalsvc.store.history.imports import import_values
from evalsvc.store.history.long_table import COLUMNS, cut_pages, find_series, read_page
from evalsvc.store.history.reading import read_history
from evalsvc.store.pages import PageRequest
from evalsvc.store.runs.listing import runs_view
from evalsvc.store.session import Store
from evalsvc.store.tables import Evaluation, Import, MetricValue, Run

NAME, UNIT = "loss/text", "nats/token"


def enter_values(store: Store, *values: tuple[int, float], replace: bool = False, **fields: Any) -> ImportOutcome:
    """Import into the series that `queue_steps.metric` measures."""
    points = [Point(step, value, 0.1, 8) for step, value in values]
    series = imported(NAME, points, **({"unit": UNIT, "direction": "lower"} | fields))
    with store.transaction() as session:
        return import_values(session, "run-a", "spreadsheet", [series], replace)


def history(store: Store) -> ValueSeries:
    [series] = history_of(store).series
    return series


def outcome(identity: int | None, new: int = 0, replaced: int = 0, unchanged: int = 0) -> ImportOutcome:
    return ImportOutcome(run="run-a", import_=identity, series=1, new=new, replaced=replaced, unchanged=unchanged)


def version(store: Store) -> int:
    with store.reading() as session:
        return session.scalars(sa.select(Run.history_version)).one()


def test_values_come_in_any_order_and_are_marked(store: Store) -> None:
    assert enter_values(store, (30, math.nan), (10, 1.5), (20, -math.inf)) == outcome(1, new=3)
    found = history(store)
    assert (found.x, found.value, found.import_) == ([10, 20, 30], [1.5, "-Infinity", "NaN"], [1, 1, 1])
    with store.reading() as session:
        assert read_history(session, "run-a").imports["1"].source == "spreadsheet"
        assert runs_view(session, PageRequest()).runs[0].values == 3
        [run] = find_series(session, [], [], None)
        cells = [row for page in cut_pages(session, run) for row in read_page(session, page)]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in cells]
    assert [(row["evaluation"], row["task"], row["tokens"], row["source"]) for row in rows] == [
        (None, None, None, "spreadsheet")
    ] * 3


def test_the_same_again_changes_nothing(store: Store) -> None:
    enter_values(store, (10, 1.5), (20, math.nan))
    before = version(store)
    assert enter_values(store, (20, math.nan), (10, 1.5)) == outcome(None, unchanged=2)
    assert version(store) == before
    assert enter_values(store, (10, 1.5), (30, 2.0)) == outcome(2, new=1, unchanged=1)
    assert history(store).import_ == [1, 1, 2]


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


def test_a_measured_value_that_is_the_same_stays_measured(store: Store) -> None:
    measure(store, 10, 1.5)
    assert enter_values(store, (10, 1.5)) == outcome(None, unchanged=1)
    assert history(store).import_ is None


def test_replacing_is_asked_for_and_leaves_the_record(store: Store) -> None:
    measure(store, 10, 1.5)
    assert enter_values(store, (10, 1.0), (20, 2.0), replace=True) == outcome(1, new=1, replaced=1)
    assert (history(store).value, history(store).import_) == ([1.0, 2.0], [1, 1])
    with store.reading() as session:
        assert session.get_one(Evaluation, 1).tasks[0].metrics[0]["value"] == 1.5


def test_a_measured_value_replaces_an_imported_one_of_its_series_only(store: Store) -> None:
    enter_values(store, (10, 1.0), (20, 2.0))
    enter_values(store, (10, 7.0), protocol=Protocol({"stated": "by hand"}))
    measure(store, 10, 1.5)
    found = {tuple(item.value): item.import_ for item in history_of(store).series}
    assert found == {(1.5, 2.0): [None, 1], (7.0,): [2]}


@pytest.mark.parametrize(("field", "value"), [("unit", "bits"), ("direction", "higher")])
def test_one_series_has_one_unit(store: Store, field: str, value: str) -> None:
    enter_values(store, (10, 1.0))
    with pytest.raises(Conflict, match=f"has the {field} '.*' under this protocol, not '{value}'"):
        enter_values(store, (20, 1.0), **{field: value})


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
    enter(store, submission(10, tokens_seen=5), suite())
    seen.append(version(store))
    evaluate_whole(store, metric(1.5))
    seen.append(version(store))
    enter_values(store, (20, 1.0))
    seen.append(version(store))
    enter_values(store, (20, 2.0), replace=True)
    seen.append(version(store))
    enter(store, submission(10, uri="/other.pt", replace=True), suite())
    seen.append(version(store))
    enter(store, submission(10, uri="/other.pt"), suite())
    assert seen == sorted(set(seen))
    assert version(store) == seen[-1], "the same post again changes nothing"


def test_a_value_has_one_origin(store: Store) -> None:
    enter_values(store, (10, 1.0))
    with pytest.raises(sa.exc.IntegrityError), store.transaction() as session:
        session.execute(sa.update(MetricValue).values(import_id=None))
