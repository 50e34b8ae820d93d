"""What the page of texts shows of the report of a forgetting task, whatever the artifact holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import forgetting_reports
import pytest
from app_in_process import App, app_in_process
from dashboard_history import kept
from forgetting_reports import FLIP, ROW, flipped
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.files.artifacts import artifact_path
from evalsvc.web.pages.text import MAX_FLIPS, MAX_ROWS, MAX_TEXT


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with app_in_process(tmp_path_factory.mktemp("forgetting") / "data") as app:
        yield app


def report(*rows: dict[str, Any], flips: Sequence[dict[str, Any]] = (FLIP,)) -> bytes:
    return json.dumps(forgetting_reports.report(*rows, flipped=[flipped(*flips)])).encode()


STEPS = count(1)


def shown(app: App, content: bytes, lose: bool = False) -> str:
    """Store the report of another step, and return the page of the step as HTML."""
    step = next(STEPS)
    artifact = kept(app.settings, "forgetting", "forgetting.json", "application/json", content, {})
    path = f"/epoch_{step}.pt"
    enter(app.store, submission(step, run="run-a", uri=path, path=path), suite("memory", kind="forgetting"))
    evaluate_whole(app.store, metric(0.9, "retained/acc", unit="fraction"), artifacts=[artifact])
    if lose:
        artifact_path(app.settings.artifacts_path, artifact.sha256).unlink()
    answer = app.http.get(f"/runs/run-a/text?step={step}")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_report_in_words(app: App) -> None:
    page = shown(app, report())
    cells = ["right answers", "all ids", "300", "0.5 ± 0.02", "0.4", "-0.1 [-0.15, -0.05]", "–", "40", "10", "0.0001"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) + '<td class="worse">worse than the base</td>' in page
    assert "a: only the base was right, all ids" in page
    answers = (("right", "yes | aye"), ("base", "yes"), ("checkpoint", "no"), ("checkpoint, text ids only", "aye"))
    assert "".join(f'<dt>{who}</dt><dd class="prompt" dir="auto">{text}</dd>' for who, text in answers) in page
    assert 'role="note"' not in page
    assert "against text-1b@0" in page
    [link] = [part.partition('"')[0] for part in page.split('href="') if "?form=text" in part]
    assert app.http.get(link).text.startswith("base        text-1b@0\n")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n\x00\x00", b"[" * 100_000, b"[]", b'{"rows": 1}', report({**ROW, "verdict": "<b>"})],
    ids=["empty", "an image", "deep", "a list", "other fields", "another verdict"],
)
def test_what_is_no_report_leaves_a_note(app: App, content: bytes) -> None:
    assert "forgetting.json is no report of forgetting." in shown(app, content)


@pytest.mark.parametrize(
    "content",
    [
        report({**ROW, "what": "<script>alert(1)</script>", "metric": "<img src=x>"}),
        report({**ROW, "base": "NaN", "change": "-Infinity"}),
        report(flips=[{**FLIP, "question": "<script>alert(1)</script>", "base": "<img src=x>\0\x1b"}]),
        report(flips=[{**FLIP, "question": "\u202eabc", "base": "שלום"}]),
    ],
    ids=["markup", "no numbers", "markup in a question", "right to left"],
)
def test_an_odd_report_is_text(app: App, content: bytes) -> None:
    page = shown(app, content)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "is no report" not in page


def test_what_is_left_out_is_said(app: App) -> None:
    long = {**FLIP, "question": "a" * 100_000}
    page = shown(app, report(*[ROW] * (MAX_ROWS + 1), flips=[long] * (MAX_FLIPS + 1)))
    assert f"The first {MAX_FLIPS} of {MAX_FLIPS + 1} flipped questions are shown" in page
    assert f"The table shows the first {MAX_ROWS} numbers" in page
    assert page.count("<section") == MAX_FLIPS
    assert "a" * MAX_TEXT in page
    assert "a" * (MAX_TEXT + 1) not in page


def test_a_lost_file_leaves_the_rest_of_the_page(app: App) -> None:
    page = shown(app, report({**ROW, "what": "lost"}), lose=True)
    assert "forgetting.json cannot be read" in page
    assert "Completions" in page
