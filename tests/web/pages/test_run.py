"""The pages of a run and of its checkpoints as HTML: what they show, leave to panels, and ask."""

import re
from html import unescape
from typing import Any

import httpx2
import pytest
from app_in_process import App
from dashboard_history import Dashboard
from queue_steps import enter, evaluate_whole, metric, submission, suite
from told_run import OTHER, RUN, losses

from evalsvc.client import Client
from evalsvc.web.pages import run as pages
from evalsvc.web.pages.run import SHOWN_ROWS, CheckpointsPage


def page(app: App, query: str = "", run: str = RUN) -> str:
    answer = app.http.get(f"/runs/{run}{query}")
    assert answer.status_code == 200, answer.text
    return answer.text


def headline(text: str) -> list[str]:
    return re.findall(r'<figure class="panel" data-name="[^"]*">\s*<figcaption>\s*<h3>([^<]*)</h3>', text)


def rest(text: str) -> dict[str, bool]:
    """Return the metrics below the headline, and whether each is shown before anybody looks for it."""
    below = text[text.index('id="rest"') :]
    found = re.findall(r'<figure class="panel" data-name="([^"]*)"( data-companion hidden)?>', below)
    return {name: not hidden for name, hidden in found}


def test_a_companion_is_shown_with_its_metric(told: App) -> None:
    text = page(told)
    assert headline(text) == ["loss/image", "loss/text"] or headline(text) == ["loss/text", "loss/image"]
    assert rest(text) == {"loss/text_perplexity": False, "loss/text_unigram": False}
    assert rest(page(told, "?find=perp")) == {"loss/text_perplexity": True}
    assert "No metric has “nothing” in its name." in page(told, "?find=nothing")


def test_the_state_of_the_page_is_in_the_addresses_of_its_charts(told: App) -> None:
    text = page(told, f"?with={OTHER}&scale=log&along=log&smooth=0.6&from=100&to=300")
    addresses = re.findall(r'data-spec="([^"]*)"', text) or re.findall(r'href="(/panels/curve[.]csv[^"]*)"', text)
    assert addresses
    parts = {"scale=log", "along=log", "smooth=0.6", "from=100", "to=300", "base=text-1b%400", f"run={OTHER}"}
    for address in map(unescape, addresses):
        assert parts <= set(re.split("[?&]", address))
        assert told.http.get(address).status_code == 200


def test_a_table_below_a_chart_has_the_newest_rows(told: App) -> None:
    for step in range(1000, 1000 + SHOWN_ROWS):
        enter(told.store, submission(step, run="many"), suite())
        evaluate_whole(told.store, metric(float(step)))
    enter(told.store, submission(1000 + SHOWN_ROWS, run="many"), suite())
    evaluate_whole(told.store, metric(5.0), warnings=[{"code": "few", "metric": "loss/text", "message": "too <few>"}])
    text = page(told, run="many")
    assert f"The newest {SHOWN_ROWS} of {SHOWN_ROWS + 1} rows." in text
    assert "<td>1,000</td>" not in text
    assert f'<p class="warning" role="note">many@{1000 + SHOWN_ROWS}, loss/text: too &lt;few&gt;</p>' in text


def test_a_run_without_tokens_says_so(told: App) -> None:
    enter(told.store, submission(5, run="bare"), suite())
    evaluate_whole(told.store, *losses(5))
    assert "read the history with x=step" in page(told, "?x=tokens", "bare")
    assert headline(page(told, "?x=tokens")), "a run with tokens has its panels"


def test_what_the_page_cannot_show_is_refused(told: App) -> None:
    for query in ("?smooth=2", "?x=time", "?from=5&to=3", "?with=" + "&with=".join("abcdefgh")):
        assert told.http.get(f"/runs/{RUN}{query}").status_code in (400, 422), query
    assert told.http.get("/runs/nobody").status_code == 404
    hostile = "<script>alert(1)</script>"
    for field in ("base", "variant", "protocol", "metric", "points", "theme", "from"):
        query = {"run": RUN, "metric": "loss/text", field: hostile}
        answer = told.http.get("/panels/curve.html", params=query)
        assert answer.status_code in (200, 400, 404, 422), field
        assert "<script>alert" not in answer.text, field
    assert told.http.get("/panels/curve.html", params={"run": RUN, "metric": "m" * 10_000}).status_code == 422


def test_an_empty_run_waits_for_its_values(told: App) -> None:
    enter(told.store, submission(5, run="empty"), suite())
    assert "This run has no values yet." in page(told, run="empty")


def test_the_checkpoints_are_listed_newest_first_with_a_link_to_each_evaluation(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(dashboard.url) as client:
        checkpoints = client.run(RUN).checkpoints
        text = httpx2.get(f"{dashboard.url}/runs/{RUN}/checkpoints").text
        monkeypatch.setattr(pages, "CHECKPOINTS", 2)
        values: list[Any] = [CheckpointsPage(run=RUN, page=number).content(client).values for number in (1, 2, 99)]
    wanted = {evaluation.id for checkpoint in checkpoints for evaluation in checkpoint.evaluations}
    assert {int(number) for number in re.findall(r'href="/evaluations/(\d+)"', text)} == wanted
    assert "failed</span>" in text
    steps = [checkpoint.step for checkpoint in checkpoints][::-1]
    assert [[row.step for row in page["rows"]] for page in values] == [steps[:2], steps[2:4], []]
    assert values[0]["pages"] == -(-len(steps) // 2)
