"""Runs with something of everything that a curve shows: values and companions, gaps with reasons, a base."""

from typing import Any

from app_in_process import App, InlineCoordinator
from queue_steps import cancel, enter, enter_virtual, evaluate_whole, metric, submission, suite

from evalsvc.api.state import State
from evalsvc.messages import ShardError
from evalsvc.spec.protocol import MetricValue
from evalsvc.store.lookup import find_run
from evalsvc.store.runs.base import name_base
from evalsvc.store.session import Store

RUN, OTHER, BASE = "digits", "digits-2", "text-1b"

FAILURE = "the card has too little memory <b>for</b> a batch of 64; choose a smaller batch"


def losses(step: int, start: float = 9.0) -> list[MetricValue]:
    value = start - step / 100
    return [
        metric(value, "loss/text", baseline=10.5, stderr=0.1, n=400),
        metric(2**value, "loss/text_perplexity", unit="perplexity", stderr=None, n=400),
        metric(7.25, "loss/text_unigram", stderr=None, n=400),
        metric(float("nan") if step == 200 else value, "loss/image", stderr=0.1, n=400),
    ]


def post(store: Store, run: str, step: int, values: Any = (), limit: int = 1, **fields: Any) -> list[int]:
    path = f"/{run}/{step}.pt"
    posted = submission(step, run=run, uri=path, path=path, tokens_seen=step * 1000, **fields)
    evaluations = enter(store, posted, suite(limit=limit))
    if values:
        evaluate_whole(store, *values)
    return evaluations


def fill(app: App | State) -> None:
    for run, start in ((RUN, 9.0), (OTHER, 9.5)):
        for step in (0, 100, 200, 300):
            post(app.store, run, step, losses(step, start))
    enter_virtual(app.store, RUN, f"avg({RUN}@200, {RUN}@300)", suite(), step=350)
    evaluate_whole(app.store, *losses(350))
    post(app.store, BASE, 0, losses(0, 6.0))
    with app.store.transaction() as session:
        name_base(session, find_run(session, RUN), BASE, 0, "raw")
    fail(app, RUN, 400)
    [evaluation] = post(app.store, RUN, 500)
    cancel(app.store, evaluation)


def fail(app: App | State, run: str, step: int) -> None:
    assert isinstance(app.coordinator, InlineCoordinator)
    app.coordinator.error = ShardError("out_of_memory", FAILURE)
    post(app.store, run, step)
    app.coordinator.work()
    app.coordinator.error = None
