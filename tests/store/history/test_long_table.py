"""The long table on each database: in order, streamed in pieces, each value with the task that measured it."""

import pytest
from queue_steps import enter, evaluate_whole, metric, next_shard, plan, result, store_result, submission, suite

from evalsvc.errors import UnknownName
from evalsvc.store.history import long_table
from evalsvc.store.history.long_table import COLUMNS, cut_pages, find_series, read_page
from evalsvc.store.session import Store


def rows(
    store: Store, *runs: str, metrics: tuple[str, ...] = (), variant: str | None = None
) -> list[dict[str, object]]:
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
    with pytest.raises(UnknownName, match="no metric is named 'loss/txt'; did you mean 'loss/text'"):
        rows(store, metrics=("loss/txt",))


def test_each_value_has_its_own_task(store: Store) -> None:
    """A metric is called after its benchmark, not after the task; two tasks may measure under two protocols."""
    enter(store, submission(), suite(tasks=2))
    limits = iter((1, 2))
    while assignment := next_shard(store):
        stage = assignment.request.stage
        merged = result(metric(1.0, "arc_easy/acc", limit=next(limits))) if stage == "merge" else None
        store_result(store, assignment, merged or (plan(1) if stage == "plan" else result()))
    assert {row["task"] for row in rows(store)} == {"loss-0", "loss-1"}
