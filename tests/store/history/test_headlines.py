"""The headline metrics of several runs: the newest, the best and the base's values, and small curves."""

import math

import pytest
from history_reference import Point, write
from posts_and_results import metric, submission, suite
from queue_steps import ask, enter, evaluate_whole, measure, set_base

from evalsvc.errors import UnknownName
from evalsvc.metrics.shown_metrics import default_headline
from evalsvc.spec.documents import HeadlineSeries
from evalsvc.store.history.headlines import Question, headline_of_run, marked_runs, read_run_headlines
from evalsvc.store.lookup import find_run
from evalsvc.store.session import Store


def read(store: Store, *metrics: str, run: str = "run-a", **question: int) -> list[HeadlineSeries]:
    with store.reading() as session:
        return read_run_headlines(session, find_run(session, run), Question(metrics, **question)).series


def points(*values: float, first: int = 0) -> list[Point]:
    return [Point(first + 10 * place, value, 0.1, 400) for place, value in enumerate(values)]


def test_newest_best_and_base_by_the_metrics_own_direction(store: Store) -> None:
    series = {"higher/x": points(1, 3, 2), "lower/y": points(3, 1, math.nan), "none/z": points(1, 2)}
    write(store, series, "run-a")
    x, y, z = read(store, "higher/x", "lower/y", "none/z", "unknown/x")
    assert [item.metric for item in (x, y, z)] == ["higher/x", "lower/y", "none/z"]
    assert (x.latest.step, x.latest.value, x.best.step, x.best.value, x.best.of) == (20, 2.0, 10, 3.0, 3)
    assert (y.latest.value, y.best.step, y.best.value, y.best.of) == ("NaN", 10, 1.0, 2), "of the finite values"
    assert (z.latest.step, z.best) == (10, None)
    assert (x.base_name, x.base.value) == ("run-a@0", 1.0), "without a named base, the run's own step 0"


def test_values_up_to_a_step(store: Store) -> None:
    write(store, {"higher/x": points(1, 3, 2, 9), "lower/late": points(5, first=100)}, "run-a")
    [x] = read(store, "higher/x", "lower/late", last=25, points=10)
    assert (x.latest.step, x.best.value, x.best.of, x.x) == (20, 3.0, 3, [0, 10, 20])


def test_small_curves_have_every_value_where_there_are_few(store: Store) -> None:
    """Equal ranges of steps merged the first steps of a run whose checkpoints become rarer."""
    steps = (0, 10, 20, 80, 300, 3000)
    write(store, {"lower/x": [Point(step, step / 10, 0.1, 400) for step in steps]}, "run-a")
    [x] = read(store, "lower/x", points=6)
    assert (x.x, x.values) == ([*steps], [0.0, 1.0, 2.0, 8.0, 30.0, 300.0])
    [x] = read(store, "lower/x", points=5)
    assert x.x == [0, 10, 20, 80, 3000], "evenly by rank, with both ends"
    assert read(store, "lower/x", points=1)[0].x == [3000]


def test_small_curves_end_with_the_newest_value(store: Store) -> None:
    write(store, {"lower/x": points(*range(95)), "lower/y": points(math.inf)}, "run-a")
    x, y = read(store, "lower/x", "lower/y", points=10)
    assert (len(x.x), x.x[0], x.x[-1], x.values[-1]) == (10, 0, 940, 94.0)
    assert x.x == sorted(x.x)
    assert (y.x, y.values) == ([0], ["Infinity"])
    assert read(store, "lower/x")[0].values == []


def test_the_series_with_the_newest_value_is_shown(store: Store) -> None:
    measure(store, 10, 1.0)
    measure(store, 20, 2.0, limit=2)
    measure(store, 20, 3.0, limit=2, variant="ema")
    [found] = read(store, "loss/text")
    assert (found.latest.value, found.variant) == (2.0, "raw"), "of equal steps, raw"
    measure(store, 30, 4.0, variant="ema")
    [found] = read(store, "loss/text")
    assert (found.latest.value, found.variant, found.base) == (4.0, "ema", None)


def test_the_base_of_another_run_by_the_same_protocol(store: Store) -> None:
    measure(store, 7, 1.5, run="text")
    measure(store, 7, 0.5, run="text", limit=2)
    measure(store, 10, 1.0)
    set_base(store, "run-a", "text", 7)
    [found] = read(store, "loss/text")
    assert (found.base_name, found.base.value) == ("text@7", 1.5)


def test_the_mark_changes_with_the_run_and_with_its_base(store: Store) -> None:
    measure(store, 7, 1.5, run="text")
    measure(store, 10, 1.0)

    def mark() -> str:
        return ask(store, marked_runs, ["run-a"])[0].tag("question")

    tags = [mark(), mark()]
    assert tags[0] == tags[1]
    set_base(store, "run-a", "text", 7)
    tags.append(mark())
    measure(store, 8, 1.0, run="text")
    tags.append(mark())
    enter(store, submission(11), suite())
    tags.append(mark())
    evaluate_whole(store, metric(1.0))
    tags.append(mark())
    assert len(set(tags)) == len(tags) - 1


def test_runs_in_the_order_of_the_question(store: Store) -> None:
    for run in ("a", "b", "c"):
        write(store, {"lower/x": points(1)}, run)
    with store.reading() as session:
        assert [marked.run.name for marked in marked_runs(session, ["c", "a", "c"])] == ["c", "a"]
        with pytest.raises(UnknownName, match="no run is named 'd'"):
            marked_runs(session, ["a", "d"])


def test_the_headline_of_suites_comes_before_the_rule(store: Store) -> None:
    enter(store, submission(10), suite("quick"))
    evaluate_whole(store, metric(1.0, "loss/text"), metric(1.0, "loss/special"))
    with store.reading() as session:
        [marked] = marked_runs(session, ["run-a"])

        def chosen(*headline: str) -> list[str]:
            return headline_of_run(session, marked, lambda name: headline, lambda run, tag, make: make())

        assert chosen("loss/special", "loss/unknown") == ["loss/special"]
        assert chosen() == default_headline({"loss/special": "lower", "loss/text": "lower"})
