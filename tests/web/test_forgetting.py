"""What a page reads from the artifacts of a forgetting task, whatever those files hold."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from app_in_process import App, app_in_process
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.files.artifacts import KeptArtifact, artifact_path, keep_content
from evalsvc.web.forgetting import MAX_FLIPS, MAX_ROWS, MAX_TEXT, Forgetting, read_forgetting

HEAD = "what,metric,scope,unit,n,base,base_stderr,checkpoint,change,change_low,change_high,p_corrected,verdict\n"
ROW = "arc,acc,all,fraction,300,0.5,0.02,0.4,-0.1,-0.15,-0.05,0.0001,lost\n"
FLIP = {
    "benchmark": "arc",
    "flip": "lost",
    "flip_within": None,
    "question": "is it so?",
    "right": ["yes", "aye"],
    "base": "yes",
    "checkpoint": "no",
    "base_within": "yes",
    "checkpoint_within": "aye",
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with app_in_process(tmp_path_factory.mktemp("forgetting") / "data") as app:
        yield app


def shown(app: App, step: int, table: bytes = b"", flipped: bytes = b"", lose: bool = False) -> tuple[Forgetting, str]:
    """Store the files of an evaluation; return what a page reads from them, and the page as HTML."""
    files = [
        ("forgetting", "forgetting.txt", "text/plain; charset=utf-8", b"in words"),
        ("table", "forgetting.csv", "text/csv; charset=utf-8", table),
        ("flipped", "flipped.jsonl", "application/jsonl; charset=utf-8", flipped),
    ]
    folder = app.settings.artifacts_path
    kept = [
        KeptArtifact(kind, name, of, {"base": "text-1b@0"}, keep_content(folder, content), len(content))
        for kind, name, of, content in files
    ]
    path = f"/epoch_{step}.pt"
    enter(app.store, submission(step, run="run-a", uri=path, path=path), suite("memory", kind="forgetting"))
    evaluate_whole(app.store, metric(0.9, "retained/acc", unit="fraction"), artifacts=kept)
    if lose:
        artifact_path(folder, kept[1].sha256).unlink()
    answer = app.http.get(f"/runs/run-a/text?step={step}")
    assert answer.status_code == 200, answer.text
    with Client("http://evalsvc", transport=app.transport) as client:
        [page] = [page for page in client.artifacts("run-a", "forgetting") if page.step == step]
        return read_forgetting(client, page), answer.text


def test_a_table_in_words(app: App) -> None:
    read, text = shown(app, 1, (HEAD + ROW).encode(), json.dumps(FLIP).encode())
    [row] = read.rows
    assert (row.what, row.metric, row.scope, row.verdict, row.colour) == (
        "arc",
        "right answers",
        "all ids",
        "worse than the base",
        "worse",
    )
    assert (row.base, row.checkpoint, row.change, row.retained) == ("0.5 ± 0.02", "0.4", "-0.1 [-0.15, -0.05]", "–")
    [flip] = read.flipped
    assert flip.kind == "only the base was right, all ids"
    assert [(answer.who, answer.text) for answer in flip.answers] == [
        ("right", "yes | aye"),
        ("base", "yes"),
        ("checkpoint", "no"),
        ("checkpoint, text ids only", "aye"),
    ]
    assert '<td class="worse">worse than the base</td>' in text
    assert read.notes == []


BROKEN_TABLES = {
    "no UTF-8": b"what,verdict\n\xff\xfe,\x80\n",
    "an image": b"\x89PNG\r\n\x1a\n\x00\x00",
    "NUL": b"what,verdict\na\0b,lost\n",
    "a cell without an end": b'what\n"' + b"a" * 200_000,
    "more cells than the head": b"what\na,b,c\n",
    "fewer cells": b"what,metric,verdict\na\n",
    "words for numbers": (HEAD + ROW.replace("0.5,", "=1+1,")).encode(),
    "no numbers": (HEAD + ROW.replace("0.5,", "nan,").replace("-0.1,", "inf,")).encode(),
    "markup": (HEAD + ROW.replace("arc", "<script>alert(1)</script>").replace("lost", "<img src=x>")).encode(),
    "a head of markup": b"<script>alert(1)</script>,what\n1,2\n",
}


@pytest.mark.parametrize("table", BROKEN_TABLES.values(), ids=BROKEN_TABLES)
def test_a_broken_table_is_text_or_nothing(app: App, table: bytes) -> None:
    _, text = shown(app, 100 + list(BROKEN_TABLES.values()).index(table), table)
    assert "<script>alert" not in text
    assert "<img src=x" not in text


BROKEN_FLIPS = {
    "no JSON": b"{\n",
    "no object": b'[]\n1\n"a"\nnull\n',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "no UTF-8": b'{"question": "\xff"}',
}

ODD_FLIPS = {
    "half of a surrogate pair": b'{"question": "a \\ud800 b", "flip": "lost"}',
    "other types": b'{"question": {"a": []}, "flip": ["lost"], "right": 7, "base": null, "checkpoint": [[]]}',
    "no fields": b"{}",
    "long": json.dumps({**FLIP, "question": "a" * 100_000}).encode(),
    "markup": json.dumps({**FLIP, "question": "<script>alert(1)</script>", "base": "<img src=x>\0\x1b"}).encode(),
    "right to left": json.dumps({**FLIP, "question": "\u202eabc", "base": "שלום"}).encode(),
}


@pytest.mark.parametrize("flipped", BROKEN_FLIPS.values(), ids=BROKEN_FLIPS)
def test_lines_that_are_no_questions_are_counted(app: App, flipped: bytes) -> None:
    read, _ = shown(app, 200 + list(BROKEN_FLIPS.values()).index(flipped), flipped=flipped)
    assert "cannot be read" in " ".join(read.notes) or read.flipped[0].question == "\ufffd"


@pytest.mark.parametrize("flipped", ODD_FLIPS.values(), ids=ODD_FLIPS)
def test_an_odd_question_is_text(app: App, flipped: bytes) -> None:
    read, text = shown(app, 300 + list(ODD_FLIPS.values()).index(flipped), flipped=flipped)
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    [flip] = read.flipped
    assert len(flip.question) <= MAX_TEXT + 1


def test_what_is_left_out_is_said(app: App) -> None:
    table = HEAD + ROW * (MAX_ROWS + 1)
    read, text = shown(app, 400, table.encode(), (json.dumps(FLIP) + "\n").encode() * (MAX_FLIPS + 1))
    assert (len(read.rows), len(read.flipped)) == (MAX_ROWS, MAX_FLIPS)
    assert f"The first {MAX_FLIPS} of {MAX_FLIPS + 1} flipped questions are shown" in text
    assert f"The table shows the first {MAX_ROWS} numbers" in text


def test_a_lost_file_leaves_the_rest_of_the_page(app: App) -> None:
    read, text = shown(app, 500, (HEAD + ROW + "lost\n").encode(), json.dumps(FLIP).encode(), lose=True)
    assert not read.rows
    assert len(read.flipped) == 1
    assert "forgetting.csv cannot be read" in text
