"""Reading the history by SQL gives, to the last bit, what plain Python makes of the same rows, on each database."""

import itertools
import math
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from history_reference import MOST, Point, along, best, buckets, imported, post_tokens, random_history, within, write
from history_reference import History as Values
from posts_and_results import act, ask, enter, enter_virtual, set_base, submission, suite
from posts_and_results import metric as measured
from queue_steps import evaluate_whole, measure

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.metrics.shown_metrics import default_headline
from evalsvc.spec.documents import HeadlineSeries
from evalsvc.spec.documents.history import BucketSeries, History, SeriesHead
from evalsvc.spec.documents.history import Point as PointDocument
from evalsvc.spec.protocol import Protocol, number_to_json
from evalsvc.store.history import reading
from evalsvc.store.history.buckets import read_buckets
from evalsvc.store.history.headlines import Question, headline_of_run, marked_runs, read_run_headlines
from evalsvc.store.history.imports import import_values
from evalsvc.store.history.reading import read_history, read_summary
from evalsvc.store.history.series import Window
from evalsvc.store.lookup import find_run
from evalsvc.store.session import Store

SEEDS = range(4)

COLUMNS = [name for name in BucketSeries.model_fields if name not in {*SeriesHead.model_fields, "omitted", "groups"}]


def ones(**steps: Iterable[int]) -> Values:
    """A history of nothing but 1, by the ends of the metrics' names."""
    return {f"lower/{name}": [Point(step, 1.0, None, 1) for step in own] for name, own in steps.items()}


def window_of(own: random.Random, x: Any) -> Window:
    """Open, half open or closed; now and then of a single x."""
    first, last = (own.choice((None, own.randint(0, 200))) for _ in range(2))
    if first is not None and last is not None and first > last:
        first, last = last, first
    return Window(x, first, last)


def tokens_of(own: random.Random, history: Values) -> dict[int, int]:
    """Of some steps, and of several the same number."""
    steps = sorted({point.step for points in history.values() for point in points})
    return {step: own.randint(0, 60) for step in own.sample(steps, max(1, len(steps) // 2))}


@pytest.mark.parametrize("x", ["step", "tokens"])
def test_columns_and_buckets(store: Store, x: str) -> None:
    """The ends of a window once counted twice; a mean of 1.7e308 twice was infinite, and an error on PostgreSQL."""
    for seed in SEEDS:
        own, run = random.Random(seed), f"run-{seed}"
        history = random_history(seed)
        write(store, history, run)
        tokens = tokens_of(own, history) if x == "tokens" else None
        post_tokens(store, tokens or {}, run)
        for window in [Window(x), *(window_of(own, x) for _ in range(3))]:  # type: ignore[arg-type]
            points = own.choice((1, 2, 7, 10_000))
            with store.reading() as session:
                whole = read_history(session, run, window=window)
                sampled = read_buckets(session, run, window=window, points=points)
            assert [item.metric for item in whole.series] == sorted(history)
            for item, bucketed in zip(whole.series, sampled.series, strict=True):
                placed = along(history[item.metric], tokens)
                expected = within(placed, window.first, window.last)
                assert item.x == [at for at, _ in expected]
                assert item.value == [number_to_json(point.value) for _, point in expected]
                assert item.stderr == [point.stderr for _, point in expected]
                assert item.n == [point.n for _, point in expected]
                assert list(zip(item.low, item.high, strict=True)) == [point.ends for _, point in expected]
                assert item.omitted == bucketed.omitted == len(history[item.metric]) - len(placed)
                same_buckets(bucketed, buckets(expected, sampled.start, sampled.width))


def same_buckets(found: BucketSeries, expected: list[dict[str, Any]]) -> None:
    columns = [getattr(found, name) for name in COLUMNS]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]
    assert [row | {"mean": None} for row in rows] == [row | {"mean": None} for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if other["mean"] is None:
            assert row["mean"] is None
        else:
            largest = max(abs(other["min"]), abs(other["max"]))
            assert abs(row["mean"] - other["mean"]) <= 1e-12 * largest


def test_ranges_are_equal_shares_of_what_all_series_span(store: Store) -> None:
    """Buckets of two series that lie at different places cannot be compared."""
    write(store, ones(a=(10, 11, 29), b=[109]))
    with store.reading() as session:
        found = read_buckets(session, "run-a", points=10)
        assert (found.sampled, found.start, found.width) == (True, 10, 10)
        assert [series.x for series in found.series] == [[11, 29], [109]]
        found = read_buckets(session, "run-a", window=Window("step", 0, 99), points=9)
        assert (found.start, found.width) == (0, 12)
        assert [series.x for series in found.series] == [[11, 29], []]
        found = read_buckets(session, "run-a", window=Window("step", 0, MOST), points=1)
        assert [series.count for series in found.series] == [[3], [1]]


@pytest.mark.parametrize("x", ["step", "tokens"])
def test_the_last_value_of_a_bucket_has_its_error_groups_and_origin(store: Store, x: str) -> None:
    """An interval that ignores groups is too narrow, and an average of checkpoints is no step of training."""
    for step, groups, stderr in ((10, 4, 0.5), (11, None, 0.25), (20, 5, 0.125)):
        enter(store, submission(step, tokens_seen=step), suite())
        evaluate_whole(store, measured(float(step), groups=groups, stderr=stderr))
    enter_virtual(store, "run-a", "avg(run-a@10, run-a@20)", suite(), step=30, tokens_seen=30)
    evaluate_whole(store, measured(30.0))
    with store.reading() as session:
        [item] = read_buckets(session, "run-a", window=Window(x, 10, 39), points=3).series
        assert (item.x, item.last, item.stderr) == ([11, 20, 30], [11.0, 20.0, 30.0], [0.25, 0.125, 0.1])
        assert (item.groups, item.virtual) == ([None, 5, None], [False, False, True])
        [item] = read_buckets(session, "run-a", window=Window(x, 11, 11), points=1).series
        assert (item.last, item.groups, item.virtual) == ([11.0], None, [False])


@pytest.mark.parametrize("x", ["step", "tokens"])
def test_pages_are_the_whole(store: Store, x: str) -> None:
    for seed in SEEDS:
        own, run = random.Random(seed), f"run-{seed}"
        history = random_history(seed)
        write(store, history, run)
        post_tokens(store, tokens_of(own, history) if x == "tokens" else {}, run)
        window = window_of(own, x)
        with store.reading() as session:
            whole = read_history(session, run, window=window)
            for limit in (1, 7, 1000):
                read = partial(read_history, session, run, (), None, window, limit)
                found = pages(read, limit)
                assert joined(found) == joined([whole])
                empty = [item.metric for page in found for item in page.series if not item.x]
                assert sorted(empty) == [item.metric for item in whole.series if not item.x]


def pages(read: Callable[[str | None], History], limit: int) -> list[History]:
    found = [read(None)]
    while found[-1].next_cursor is not None:
        found.append(read(found[-1].next_cursor))
        assert len(found) < 500, "a page gave its own cursor"
    sizes = [sum(len(item.x) for item in page.series) for page in found]
    assert all(size == limit for size in sizes[:-1])
    assert sizes[-1] <= limit
    return found


def joined(found: list[History]) -> dict[str, list[tuple[Any, ...]]]:
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for item in (item for page in found for item in page.series if item.x):
        rows.setdefault(item.metric, []).extend(zip(item.x, item.value, item.stderr, item.n, strict=True))
    return rows


def test_what_is_written_between_two_pages_moves_nothing(store: Store) -> None:
    """With an offset instead of a cursor, a value that came in before the page's end was read twice."""
    write(store, ones(a=range(0, 20, 2), b=range(0, 20, 2)))
    seen: list[tuple[str, int]] = []
    cursor: str | None = None
    for new in range(1, 100, 2):
        page = ask(store, read_history, "run-a", limit=3, cursor=cursor)
        seen += [(item.metric, x) for item in page.series for x in item.x]
        cursor = page.next_cursor
        if cursor is None:
            break
        write(store, ones(**{"a": [new], f"new-{new}": [1]}))
    assert len(seen) == len(set(seen))
    assert {(name, step) for name in ("lower/a", "lower/b") for step in range(0, 20, 2)} <= set(seen)
    assert ("lower/new-1", 1) in seen, "a series that began meanwhile comes last"


def test_cursors_of_other_questions_are_refused(store: Store) -> None:
    for run in ("run-a", "run-b"):
        write(store, ones(a=range(3)), run)
    with store.reading() as session:
        read = partial(read_history, session, limit=1)
        others = (read("run-b"), read("run-a", ["lower/a"]), read("run-a", window=Window("step", 0, 5)))
        for other in others:
            with pytest.raises(InvalidRequest, match="start again without `cursor`"):
                read("run-a", cursor=other.next_cursor)
        with pytest.raises(InvalidRequest, match="from=3 is greater than to=2; swap the two"):
            read_history(session, "run-a", window=Window("step", 3, 2))


def test_a_history_of_more_values_than_an_answer_may_have_is_read_in_pages(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_VALUES", 10)
    write(store, ones(a=range(6), b=range(5)))
    with store.reading() as session:
        with pytest.raises(InvalidRequest, match="has more than 10 such values, the most of an answer; ask for fewer"):
            read_history(session, "run-a")
        assert len(joined([read_history(session, "run-a", ["lower/a"])])["lower/a"]) == 6
        read = partial(read_history, session, "run-a", (), None, Window(), 10)
        assert sum(map(len, joined(pages(read, 10)).values())) == 11
        with pytest.raises(
            InvalidRequest, match="points=500001 of 2 series is 1,000,002; ask for fewer points or metr"
        ):
            read_buckets(session, "run-a", points=500_001)


def test_newest_and_best(store: Store) -> None:
    """Infinity was the best of a metric that is to be high, and of two equal ones the later."""
    for seed in range(12):
        history = random_history(seed)
        history["lower/tie"] = [Point(5, 1.0, 0.5, 3), Point(2, 1.0, 0.25, 4), Point(9, 2.0, None, None)]
        history["higher/none"] = [Point(1, float("inf"), None, None), Point(0, float("nan"), None, None)]
        write(store, history, f"run-{seed}")
        with store.reading() as session:
            found = {item.metric: item for item in read_summary(session, f"run-{seed}").series}
        assert set(found) == set(history)
        for metric, points in history.items():
            latest = max(points, key=lambda point: point.step)
            assert shown(found[metric].latest) == latest_of(latest)
            expected = best(points, found[metric].direction)
            assert shown(found[metric].best) == latest_of(expected)
            assert found[metric].count == len(points)
            if (best_point := found[metric].best) is not None:
                assert best_point.of == sum(math.isfinite(point.value) for point in points)


def latest_of(point: Point | None) -> Any:
    return point and (point.step, number_to_json(point.value), point.stderr, point.n)


def shown(found: PointDocument | None) -> Any:
    return found and tuple(getattr(found, name) for name in ("step", "value", "stderr", "n"))


def test_patterns_choose_metrics(store: Store) -> None:
    write(store, ones(arc=[0], art=[0]) | {"higher/arc": [Point(0, 1.0, None, 1)]})
    with store.reading() as session:
        for read in (read_history, read_buckets, read_summary):
            found = read(session, "run-a", ["*/arc", "lower/art"]).series
            assert [item.metric for item in found] == ["higher/arc", "lower/arc", "lower/art"]


def headlines(store: Store, *metrics: str, **question: int) -> list[HeadlineSeries]:
    return ask(store, read_run_headlines, ask(store, find_run, "run-a"), Question(metrics, **question)).series


def points(*values: float, first: int = 0) -> list[Point]:
    return [Point(first + 10 * place, value, 0.1, 400) for place, value in enumerate(values)]


def test_newest_best_and_base_by_the_metrics_own_direction(store: Store) -> None:
    series = {"higher/x": points(1, 3, 2), "lower/y": points(3, 1, math.nan), "none/z": points(1, 2)}
    write(store, series)
    x, y, z = headlines(store, "higher/x", "lower/y", "none/z", "unknown/x")
    assert [item.metric for item in (x, y, z)] == ["higher/x", "lower/y", "none/z"]
    assert (x.latest.step, x.latest.value, x.best.step, x.best.value, x.best.of) == (20, 2.0, 10, 3.0, 3)
    assert (y.latest.value, y.best.step, y.best.value, y.best.of) == ("NaN", 10, 1.0, 2), "of the finite values"
    assert (z.latest.step, z.best) == (10, None)
    assert (x.base_name, x.base.value) == ("run-a@0", 1.0), "without a named base, the run's own step 0"


def test_values_up_to_a_step(store: Store) -> None:
    write(store, {"higher/x": points(1, 3, 2, 9), "lower/late": points(5, first=100)})
    [x] = headlines(store, "higher/x", "lower/late", last=25, points=10)
    assert (x.latest.step, x.best.value, x.best.of, x.x) == (20, 3.0, 3, [0, 10, 20])


def test_small_curves_have_every_value_where_there_are_few_and_end_with_the_newest(store: Store) -> None:
    """Equal ranges of steps merged the first steps of a run whose checkpoints become rarer."""
    steps = (0, 10, 20, 80, 300, 3000)
    write(store, {"lower/x": [Point(step, step / 10, 0.1, 400) for step in steps]})
    [x] = headlines(store, "lower/x", points=6)
    assert (x.x, x.values) == ([*steps], [0.0, 1.0, 2.0, 8.0, 30.0, 300.0])
    [x] = headlines(store, "lower/x", points=5)
    assert x.x == [0, 10, 20, 80, 3000], "evenly by rank, with both ends"
    assert headlines(store, "lower/x", points=1)[0].x == [3000]
    write(store, {"lower/long": points(*range(95)), "lower/y": points(math.inf)})
    x, y = headlines(store, "lower/long", "lower/y", points=10)
    assert (len(x.x), x.x[0], x.x[-1], x.values[-1]) == (10, 0, 940, 94.0)
    assert x.x == sorted(x.x)
    assert (y.x, y.values) == ([0], ["Infinity"])
    assert headlines(store, "lower/x")[0].values == []


def test_the_series_with_the_newest_value_is_shown(store: Store) -> None:
    measure(store, 10, 1.0)
    measure(store, 20, 2.0, limit=2)
    measure(store, 20, 3.0, limit=2, variant="ema")
    [found] = headlines(store, "loss/text")
    assert (found.latest.value, found.variant) == (2.0, "raw"), "of equal steps, raw"
    measure(store, 30, 4.0, variant="ema")
    [found] = headlines(store, "loss/text")
    assert (found.latest.value, found.variant, found.base) == (4.0, "ema", None)


def test_the_base_of_another_run_by_the_same_protocol(store: Store) -> None:
    measure(store, 7, 1.5, run="text")
    measure(store, 7, 0.5, run="text", limit=2)
    measure(store, 10, 1.0)
    set_base(store, "run-a", "text", 7)
    [found] = headlines(store, "loss/text")
    assert (found.base_name, found.base.value) == ("text@7", 1.5)


@pytest.mark.parametrize("seed", range(8))
def test_ends_and_bases_of_many_series_are_those_of_each_alone(store: Store, seed: int) -> None:
    """One query reads those of all series of a run, whatever their variants and protocols."""
    own = random.Random(seed)
    values: dict[tuple[str, str, str, int], dict[int, float]] = {}
    for run in ("run-a", "run-b"):
        for metric, variant, limit in itertools.product(("lower/x", "lower/y"), ("raw", "ema"), (1, 2)):
            steps = own.sample((0, 10, 20, 30), own.randint(1, 4))
            values[run, metric, variant, limit] = {step: own.random() for step in steps}
    for (run, metric, variant, limit), known in values.items():
        column = [Point(step, value, 0.1, 400) for step, value in known.items()]
        given = imported(metric, column, variant=variant, protocol=Protocol({"limit": limit}))
        if own.random() < 0.8 or (run, metric) == ("run-a", "lower/x"):
            act(store, import_values, run, "test", [given], replace=False)
        else:
            known.clear()
    base = own.choice([None, {"run": "run-b", "step": 10, "variant": own.choice(("raw", "ema"))}])
    with store.transaction() as session:
        find_run(session, "run-a").base = base
    for last in (None, 15):
        for found in headlines(store, "lower/x", "lower/y", **({} if last is None else {"last": last})):
            [limit] = [limit for limit in (1, 2) if found.protocol == Protocol({"limit": limit}).id]
            ends = [
                (max(reached), variant == "raw")
                for (run, metric, variant, _), known in values.items()
                if (run, metric) == ("run-a", found.metric)
                and (reached := [step for step in known if last is None or step <= last])
            ]
            assert (found.latest.step, found.variant == "raw") == max(ends)
            run, step = (base["run"], base["step"]) if base else ("run-a", 0)
            variants = [base["variant"]] if base else [found.variant, "raw"]
            sides = [values[run, found.metric, variant, limit].get(step) for variant in variants]
            assert (found.base and found.base.value) == next((side for side in sides if side is not None), None)


def test_the_mark_changes_with_the_run_and_with_its_base(store: Store) -> None:
    measure(store, 7, 1.5, run="text")
    measure(store, 10, 1.0)

    def mark() -> str:
        return ask(store, marked_runs, ["run-a"])[0].tag("question")

    tags = [mark()]
    for change in (
        lambda: set_base(store, "run-a", "text", 7),
        lambda: measure(store, 8, 1.0, run="text"),
        lambda: enter(store, submission(11), suite()),
        lambda: evaluate_whole(store, measured(1.0)),
    ):
        assert mark() == tags[-1]
        change()
        tags.append(mark())
    assert len(set(tags)) == len(tags)


def test_runs_in_the_order_of_the_question(store: Store) -> None:
    for run in ("a", "b", "c"):
        write(store, {"lower/x": points(1)}, run)
    with store.reading() as session:
        assert [marked.run.name for marked in marked_runs(session, ["c", "a", "c"])] == ["c", "a"]
        with pytest.raises(UnknownName, match="no run is named 'd'"):
            marked_runs(session, ["a", "d"])


def test_the_headline_of_suites_comes_before_the_rule(store: Store) -> None:
    enter(store, submission(10), suite("quick"))
    evaluate_whole(store, measured(1.0, "loss/text"), measured(1.0, "loss/special"))
    with store.reading() as session:
        [marked] = marked_runs(session, ["run-a"])

        def chosen(*headline: str) -> list[str]:
            return headline_of_run(session, marked, lambda name: headline, lambda run, tag, make: make())

        assert chosen("loss/special", "loss/unknown") == ["loss/special"]
        assert chosen() == default_headline({"loss/special": "lower", "loss/text": "lower"})
