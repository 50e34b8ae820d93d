"""The page of an evaluation, what it says of each state and what its forms do; and the page of the service's state."""

import re
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.messages import ShardError
from evalsvc.spec.protocol import Protocol
from evalsvc.store.queue.status import AtWork
from evalsvc.web.formats import bytes_
from evalsvc.web.page import Surroundings, Visitor, html_of
from evalsvc.web.pages.evaluation import EvaluationPage, ProtocolPage
from evalsvc.web.pages.runs import StatusPage
from evalsvc.web.protocol_files import GROUPS


@pytest.fixture(autouse=True)
def _evaluation_1_waits(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()


SUBMITTER = Visitor(may_submit=True, form_key="k3y")


def html(client: Client, number: int = 1, visitor: Visitor = SUBMITTER) -> str:
    content = EvaluationPage(evaluation=number).content(client)
    return html_of("evaluation.html", content, Surroundings(None, "http://evalsvc", visitor=visitor))


def test_what_is_not_over_is_followed_and_may_be_cancelled(app: App, client: Client) -> None:
    page = html(client)
    assert 'data-events="/v1/evaluations/1/events"' in page
    assert 'data-watched=""' in page, "events take the place of questions"
    assert 'action="/evaluations/1/cancel"' in page
    assert '<input type="hidden" name="key" value="k3y">' in page
    assert "/retry" not in page
    assert 'method="post"' not in html(client, visitor=Visitor()), "only for who may submit"
    page = html(client, visitor=Visitor(may_sign_in=True))
    assert '<a href="/sign-in?next=/evaluations/1">Sign in</a> to cancel' in page
    app.coordinator.step()
    app.coordinator.step()
    page = html(client)
    assert '<progress max="8" value="4"' in page
    assert "1 succeeded" in page


def test_a_failure_is_whole_and_has_its_cure(app: App, client: Client) -> None:
    app.coordinator.error = ShardError("out_of_memory", "<b>no</b> memory " + "x" * 3000)
    app.coordinator.work()
    page = html(client)
    assert "&lt;b&gt;no&lt;/b&gt; memory " + "x" * 3000 in page
    assert "EVALSVC_BATCH_TOKENS" in page, "what the kind of error says to do"
    assert 'action="/evaluations/1/retry"' in page
    assert 'action="/evaluations/1/again"' in page
    assert "data-events" not in page


def test_protocols_show_what_they_share_once(app: App, client: Client) -> None:
    """Ten metrics of a task differ in a field or two of forty."""
    shared = {"task": "loss", "data": "d" * 64}
    enter(app.store, submission(50), suite())
    first, second = (metric(1.0, f"loss/{n}", protocol=Protocol({**shared, "resize": n})) for n in ("a", "b"))
    evaluate_whole(app.store, first, second)
    (number,) = [each.id for each in client.evaluations("run-a", first=50)]
    how = EvaluationPage(evaluation=number).content(client).values["made"]["loss-0"]
    assert how["shared"] == [("task", "loss", ""), ("data", "d" * 64, "/data.jsonl")]
    own = [(each.metrics, fields) for each, fields in how["protocols"]]
    assert own == [([f"loss/{name}"], [("resize", name, "")]) for name in ("a", "b")]
    assert html(client, number).count("/data.jsonl</td>") == 1


def test_a_protocol_has_its_metric_groups_files_runs_and_a_line_to_verify(app: App, client: Client) -> None:
    """A digest says nothing, and a field of a task that comes later must not be lost."""
    fields = {
        "task": "loss",
        "data": "d" * 64,
        "dtype": "float32",
        "estimator": "e/1",
        "base": "b" * 64,
        "new": {"x": 7},
    }
    protocol = Protocol(fields)
    for run in ("first", "second"):
        enter(app.store, submission(50, run=run), suite())
        evaluate_whole(app.store, metric(1.0, "loss/image", protocol=protocol))

    def page(**given: Any) -> tuple[Any, str]:
        content = ProtocolPage(protocol=protocol.id, **given).content(client)
        return content, html_of("protocol.html", content, Surroundings(None, "http://evalsvc"))

    content, text = page()
    shown = {group: [row[0] for row in rows] for group, rows in content.values["groups"].items()}
    assert shown == {
        "Data": ["task", "data"],
        "Sampling": ["dtype"],
        "Estimator": ["estimator"],
        "Reference": ["base"],
        "Other fields": ["new.x"],
    }
    assert content.title == "How loss/image was measured"
    assert "/data.jsonl <details><summary><code>dddddddddddd…</code></summary><code>" + "d" * 64 in text
    assert re.findall(r"run=(\w+)&amp;metric=loss%2Fimage", text) == ["first", "second"]
    assert "evalsvc verify first@50 --suite quick --n 16 --url http://evalsvc</code>" in text
    assert 'class="scroll"' not in text
    assert "evalsvc verify second@50" in page(run="second")[1]
    assert "first" not in page(only=("second",))[1], "a copy names no other runs"


def test_no_field_is_of_two_groups() -> None:
    names = [name for group in GROUPS.values() for name in group.split()]
    assert sorted(names) == sorted(set(names))


def test_acts(app: App, client: Client) -> None:
    def act(name: str, shown: int) -> None:
        answer = app.http.post(f"/evaluations/1/{name}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/evaluations/{shown}")

    act("cancel", 1)
    assert client.evaluation(1).state == "cancelled"
    act("retry", 1)
    assert client.evaluation(1).state == "queued"
    app.coordinator.work()
    act("again", 2)
    assert client.evaluation(2).checkpoint == client.evaluation(1).checkpoint
    assert "act is named &#39;cancle&#39;; did you mean &#39;cancel&#39;" in app.http.post("/evaluations/1/cancle").text


def test_workers_queue_storage_and_failures_with_their_cure(app: App, client: Client) -> None:
    def status() -> str:
        return html_of("status.html", StatusPage().content(client), Surroundings(None, "http://evalsvc"))

    app.coordinator.step()
    app.coordinator.busy = {"tls://0": AtWork(1, "run", 12.5)}
    shown = status()
    assert '<a href="/evaluations/1">run-a@25</a>' in shown
    assert "Unknown until a worker has done a part of a task" in shown
    disk = app.http.get("/v1/status").json()["disk"]
    assert f"SQLite, {bytes_(disk['database_bytes'])}" in shown
    assert f"{bytes_(disk['free_bytes'])} of {bytes_(disk['total_bytes'])}" in shown
    app.coordinator.error = ShardError("out_of_memory", "no memory")
    app.coordinator.work()
    app.coordinator.processes = 0
    shown = status()
    for words in ("not ready", "No live worker", "EVALSVC_BATCH_TOKENS"):
        assert words in shown


def test_failures_are_grouped_and_retried_together(app: App, client: Client, weights: Path) -> None:
    for step in (50, 75):
        app.post(weights, step=step, suites=["loss"]).raise_for_status()
    app.coordinator.error = ShardError("out_of_memory", "no memory")
    app.coordinator.work()
    around = Surroundings(None, "http://evalsvc", visitor=SUBMITTER)
    shown = html_of("status.html", StatusPage().content(client), around)
    assert shown.count("EVALSVC_BATCH_TOKENS") == 1, "the cure of all three is said once"
    (address,) = re.findall(r'action="(/evaluations/[\d,]+/retry)"', shown)
    answer = app.http.post(address)
    assert (answer.status_code, answer.headers["location"]) == (303, "/status")
    assert [client.evaluation(number).state for number in (1, 2, 3)] == ["queued"] * 3


def test_companions_are_folded_and_a_protocol_is_named_once(app: App, client: Client) -> None:
    enter(app.store, submission(50), suite())
    evaluate_whole(app.store, metric(1.23456), metric(3.44, "loss/text_perplexity"), metric(2.0, "loss/image"))
    (number,) = [each.id for each in client.evaluations("run-a", first=50)]
    page = html(client, number)
    before, _, folded = page.partition("1 companions, such as perplexities")
    assert ("perplexity" in before, "perplexity" in folded) == (False, True)
    assert "Text loss" in before
    assert "1.23 <small>± 0.10" in before
    results, _, protocols = page.partition('id="protocol"')
    assert (results.count("/protocols/"), protocols.count("/protocols/")) == (1, 1)
