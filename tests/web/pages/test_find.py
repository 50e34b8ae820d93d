"""What is found by the words of runs, steps and metrics."""

import re
from html import unescape

import pytest
from app_in_process import App
from queue_steps import measure


def found(app: App, words: str) -> list[tuple[str, str]]:
    """Return the names and addresses of what the page shows."""
    answer = app.http.get("/find", params={"q": words})
    assert answer.status_code == 200, answer.text
    hits = re.findall(r'<li><a href="([^"]*)"><small>\w+</small> ([^<]*)</a>', answer.text.split('class="found"')[1])
    return [(unescape(name), unescape(address)) for address, name in hits]


@pytest.fixture(autouse=True)
def _runs(app: App) -> None:
    for step in (0, 3000):
        measure(app.store, step, 1.0, run="pretrained")
    measure(app.store, 3000, 1.0, run="random-init")


def test_runs_steps_and_metrics_are_found_by_words_in_any_order(app: App) -> None:
    assert found(app, "TRAINED") == [("pretrained", "/runs/pretrained")]
    step = ("pretrained, step 3,000", "/runs/pretrained?step=3000")
    assert found(app, "pretrained@3000") == found(app, "3,000 step pre") == [step]
    assert {name for name, _ in found(app, "3000")} == {"pretrained, step 3,000", "random-init, step 3,000"}
    [(name, address)] = found(app, "init loss")
    assert name == "Text loss (loss/text) of random-init"
    assert [name for name, _ in found(app, "init text loss")] == [name], "as pages call it"
    assert app.http.get(address).status_code == 200


@pytest.mark.parametrize("words", ["nothing like this", "9" * 30, "300 3000", "<script>alert(1)</script>", "%", ""])
def test_words_that_nothing_has(app: App, words: str) -> None:
    assert found(app, words) == []
    assert "<script>alert" not in app.http.get("/find", params={"q": words}).text


def test_what_is_too_long_is_refused(app: App) -> None:
    assert app.http.get("/find", params={"q": "x" * 201}).status_code == 422
