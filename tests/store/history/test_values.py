"""The history: what is one series and what is two, what replaces what, and numbers that are none."""

import math

import pytest
from history_reference import history_of
from queue_steps import enter, evaluate_whole, measure, metric, submission, suite

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.documents.history import History, KnownMetric
from evalsvc.spec.protocol import Protocol
from evalsvc.store.history.imports import Imported, import_values
from evalsvc.store.history.long_table import COLUMNS, cut_pages, find_series, read_page
from evalsvc.store.history.reading import read_history, read_summary
from evalsvc.store.history.series import Window
from evalsvc.store.history.writing import write_values
from evalsvc.store.protocols import read_protocol
from evalsvc.store.runs.posting import evaluate
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint, Evaluation


def test_steps_come_in_any_order_and_are_read_in_order(store: Store) -> None:
    for step in (400, 0, 25):
        measure(store, step, step / 10)
    found = history_of(store)
    assert (found.run, found.x) == ("run-a", "step")
    assert found.names == [KnownMetric(name="loss/text", unit="nats/token", direction="lower")]
    [series] = found.series
    assert series.x == [0, 25, 400]
    assert series.value == [0.0, 2.5, 40.0]
    assert series.n == [8, 8, 8]
    assert series.stderr == [0.1, 0.1, 0.1]


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
        assert {(item.protocol, item.differs["limit"]) for item in series} == {
            (Protocol({"limit": limit}).id, limit) for limit in (1, 2)
        }
        assert [item.differs for item in read_history(session, "run-a", variant="ema").series] == [{}]


def test_measuring_again_replaces_only_its_own_values_and_leaves_the_record(store: Store) -> None:
    measure(store, 1, 1.0)
    measure(store, 1, 2.0, limit=2)
    with store.transaction() as session:
        evaluate(session, session.get_one(Checkpoint, 1), suite(limit=1), priority=0)
    evaluate_whole(store, metric(1.5, limit=1))
    with store.reading() as session:
        series = read_history(session, "run-a").series
        kept = [session.get_one(Evaluation, number).tasks[0].metrics for number in (1, 2, 3)]
    assert sorted(item.value for item in series) == [[1.5], [2.0]]
    assert [metric["value"] for [metric] in kept] == [1.0, 2.0, 1.5]


def test_an_older_evaluation_that_ends_later_does_not_overwrite_a_newer_one(store: Store) -> None:
    measure(store, 1, 1.0)
    with store.transaction() as session:
        evaluate(session, session.get_one(Checkpoint, 1), suite(limit=1), priority=0)
    evaluate_whole(store, metric(2.0))
    with store.transaction() as session:
        late = metric(9.0)
        write_values(session, session.get_one(Evaluation, 1), [late.to_json()], {late.protocol.id: {"limit": 1}})
    assert history_of(store).series[0].value == [2.0]


@pytest.mark.parametrize(
    ("value", "shown"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (1e308, 1e308)]
)
def test_what_is_not_finite_comes_back_as_what_it_is(store: Store, value: float, shown: object) -> None:
    measure(store, 1, value)
    assert history_of(store).series[0].value == [shown]


def test_an_undefined_standard_error_is_none(store: Store) -> None:
    enter(store, submission(1), suite())
    evaluate_whole(store, metric(1.0, stderr=None, n=1))
    assert history_of(store).series[0].stderr == [None]


def test_the_groups_behind_a_value_are_kept_with_it_everywhere(store: Store) -> None:
    """300 captions of 60 images are not 300 independent items, and a reader must see that."""
    for step, fields in ((1, {"groups": 60}), (2, {})):
        enter(store, submission(step), suite())
        evaluate_whole(store, metric(1.0, n=300, **fields), metric(2.0, "loss/image", n=300))
    with store.reading() as session:
        history = {item.metric: item.groups for item in read_history(session, "run-a").series}
        newest = read_summary(session, "run-a").series
        [run] = find_series(session, [], ["loss/text"], None)
        [page] = cut_pages(session, run)
        table = [(row[COLUMNS.index("n")], row[COLUMNS.index("groups")]) for row in read_page(session, page)]
    assert history == {"loss/text": [60, None], "loss/image": None}
    assert [item.latest and item.latest.groups for item in newest] == [None, None]
    assert table == [(300, 60), (300, None)]


def test_an_imported_value_has_no_groups_of_the_one_it_replaces(store: Store) -> None:
    enter(store, submission(1), suite())
    evaluate_whole(store, metric(1.0, n=300, groups=60))
    series = Imported("loss/text", "nats/token", "lower", Protocol({"limit": 1}), [1], [9.0], [None], [7])
    with store.transaction() as session:
        import_values(session, "run-a", "elsewhere", [series], replace=True)
    [found] = history_of(store).series
    assert (found.value, found.n, found.groups) == ([9.0], [7], None)


def test_the_axis_may_be_tokens_and_says_what_has_no_place_on_it(store: Store) -> None:
    measure(store, 2, 2.0, tokens_seen=900)
    measure(store, 1, 1.0)
    measure(store, 3, 3.0, tokens_seen=600)
    [series] = history_of(store, window=Window("tokens")).series
    assert (series.x, series.value, series.omitted) == ([600, 900], [3.0, 2.0], 1)


def test_tokens_are_refused_where_nothing_says_them(store: Store) -> None:
    measure(store, 1, 1.0)
    with (
        store.reading() as session,
        pytest.raises(InvalidRequest, match="posted with tokens_seen; read the history with x=step"),
    ):
        read_history(session, "run-a", window=Window("tokens"))


def test_unknown_metrics_and_variants_are_named_with_near_misses(store: Store) -> None:
    measure(store, 1, 1.0)
    with store.reading() as session:
        with pytest.raises(UnknownName, match="no metric is named 'loss/txt'; did you mean 'loss/text'"):
            read_history(session, "run-a", names=["loss/txt"])
        with pytest.raises(UnknownName, match="no variant is named 'rew'; did you mean 'raw'"):
            read_history(session, "run-a", variant="rew")


def test_a_run_without_values_has_an_empty_history(store: Store) -> None:
    enter(store, submission(), suite())
    found = history_of(store)
    assert found == History(run="run-a", x="step", series=[], names=[], imports={}, next_cursor=None)
