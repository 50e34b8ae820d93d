"""What the page of texts shows of the report of a forgetting task, whatever the artifact holds; and word diffs."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count
from typing import Any

import forgetting_reports
import pytest
from app_in_process import App, app_in_process
from dashboard_history import kept
from forgetting_reports import FLIP, ROW, flipped
from lxml import html
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.files.artifacts import artifact_path
from evalsvc.web.pages.text import MAX_FLIPS, MAX_ROWS, MAX_TEXT, MAX_WORDS, Piece, _words, collapsed, word_diff


@pytest.fixture(scope="module")
def app(many_cases: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with app_in_process(tmp_path_factory.mktemp("forgetting") / "data") as app:
        yield app


def report(*rows: dict[str, Any], flips: Sequence[dict[str, Any]] = (FLIP,)) -> bytes:
    return json.dumps(forgetting_reports.report(*rows, flipped=[flipped(*flips)])).encode()


STEPS = count(1)


def shown(app: App, content: bytes, lose: bool = False, since: int | str = "") -> str:
    """Store the report of another step, and return the page of the step as HTML."""
    step = next(STEPS)
    artifact = kept(app.settings, "forgetting", "forgetting.json", "application/json", content, {})
    path = f"/epoch_{step}.pt"
    enter(app.store, submission(step, run="run-a", uri=path, path=path), suite("memory", kind="forgetting"))
    evaluate_whole(app.store, metric(0.9, "retained/acc", unit="fraction"), artifacts=[artifact])
    if lose:
        artifact_path(app.settings.artifacts_path, artifact.sha256).unlink()
    answer = app.http.get(f"/runs/run-a/text?step={step}&since={since}")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_report_in_words(app: App) -> None:
    page = shown(app, report())
    [row] = html.fromstring(page).xpath("//table[@class='forgetting']//tr[td]")
    assert [" ".join(cell.text_content().split()) for cell in row] == [
        "right answers",
        "all ids",
        "▼ worse",
        "300",
        "0.500 ± 0.020",
        "0.4",
        "−0.100 [−0.150, −0.050]",
        "–",
        "40",
        "10",
        "0.0001",
    ]
    assert row[2].get("data-label") == "against the base"
    assert questions(page) == [["is it so? | right: yes | aye", "✓ yes", "✗ no | text ids only: aye"]]
    assert "1 question flipped since the base" in page
    assert 'role="note"' not in page
    assert "against text-1b@0" in page
    [link] = [part.partition('"')[0] for part in page.split('href="') if "?form=text" in part]
    assert app.http.get(link).text.startswith("base        text-1b@0\n")


def questions(page: str) -> list[list[str]]:
    """Return the cells of the table of flipped questions."""
    rows = re.findall(r'<tr>((?:<td data-label="[^"]*" class="prompt".*?</td>)+)</tr>', page, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"\s*(?:<[^>]*>|\n)+", " | ", cell).removesuffix(" | ") for cell in row] for row in cells]


def test_what_is_left_is_said_first_in_both_softmaxes(app: App) -> None:
    rows = [
        {**ROW, "retained": 0.581, "retained_low": 0.484, "retained_high": 0.692},
        {**ROW, "scope": "text", "retained": -0.004, "retained_low": None, "retained_high": 1.9},
    ]
    page = shown(app, report(*rows))
    assert "58 % [48, 69] of the ability above chance is left, all ids" in page
    assert "0 % of the ability above chance is left, text ids only" in page
    assert re.findall(r'<path d="M([\d.]+) 6H([\d.]+)"/>', page) == [("48.4", "69.2"), ("0.0", "120.0")]
    assert page.index("58 %") < page.index('<table class="forgetting">') < page.index("Completions</h2>")
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', page.partition('class="forgetting"')[2])
    assert heads[:3] == ["number", "over", "against the base"], "the verdict was outside of the window"


def test_questions_that_flipped_between_two_steps(app: App) -> None:
    """A question that one report lacks has the base's answer there. Past the last question of a report that left some
    out, nothing is known."""

    def flips(**kinds: str) -> list[dict[str, Any]]:
        return [{**FLIP, "index": int(i[1:]), "flip": kind, "flip_within": kind} for i, kind in kinds.items()]

    earlier = [flipped(*flips(q1="lost", q2="lost", q5="gained"), lost=9)]
    page = shown(app, json.dumps(forgetting_reports.report(flipped=earlier)).encode())
    assert [row[1:] for row in questions(page)] == [["✓ yes", "✗ no"], ["✓ yes", "✗ no"], ["✗ yes", "✓ no"]]
    step = next(STEPS) - 1
    later = report(flips=flips(q2="lost", q3="gained", q4="lost", q6="lost"))
    page = shown(app, later, since=step)
    assert [row[1:] for row in questions(page)] == [
        ["✗ no", "✓ as the base"],
        ["✗ as the base", "✓ no"],
        ["✓ as the base", "✗ no"],
        ["✓ no", "✗ as the base"],
    ]
    assert f"4 questions flipped since step {step}" in page
    other = report({**ROW, "what": "a", "n": 7, "retained": 0.5}, flips=flips(q3="lost"))
    assert f"step {step} has other questions, or another base" in shown(app, other, since=step)
    assert "Step 0 has no report of forgetting-0, so" in shown(app, later, since=0)


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
    long = [{**FLIP, "index": index, "question": "a" * 100_000} for index in range(MAX_FLIPS + 1)]
    page = shown(app, report(*[ROW] * (MAX_ROWS + 1), flips=long))
    assert f"The first {MAX_FLIPS} of {MAX_FLIPS + 1} flipped questions are shown" in page
    assert f"The table shows the first {MAX_ROWS} numbers" in page
    assert len(questions(page)) == MAX_FLIPS
    assert "a" * MAX_TEXT in page
    assert "a" * (MAX_TEXT + 1) not in page


def test_a_lost_file_leaves_the_rest_of_the_page(app: App) -> None:
    page = shown(app, report({**ROW, "what": "lost"}), lose=True)
    assert "forgetting.json cannot be read" in page
    assert "Completions" in page


# Word diffs: exact, as short as can be, and fast whatever the texts are

TEXTS = (
    "",
    " ",
    "a red seven",
    "a red seven\n\n",
    "A  red\tseven, drawn‹image 29›‹image 30› by hand.",
    "‹never closed",
    "<script>alert(1)</script>&amp;",
    "\u202eright to left\u202c שלום عالم",
    "👩\u200d👩\u200d👧 e\u0301 \ud800 \x00 \x1b[31m \x85\u2028",
    "=1+1 {{ 7 * 7 }}",
    "a" * 10_000,
    " " * 10_000,
    "a b " * 2500,
    "b a c " * 2000,
)


def joined(pieces: list[Piece], *kinds: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind in kinds)


def length_of_common(old: list[str], new: list[str]) -> int:
    """Return the length of the longest common subsequence, by its definition."""

    @cache
    def length(i: int, j: int) -> int:
        if i and j and old[i - 1] == new[j - 1]:
            return length(i - 1, j - 1) + 1
        return max(length(i - 1, j), length(i, j - 1)) if i and j else 0

    return length(len(old), len(new))


@pytest.mark.parametrize("before", TEXTS)
@pytest.mark.parametrize("after", TEXTS)
def test_pieces_make_up_both_texts(before: str, after: str) -> None:
    pieces = word_diff(before, after)
    assert joined(pieces, "same", "gone") == before
    assert joined(pieces, "same", "new") == after
    assert all(piece.text for piece in pieces)


def test_no_shorter_diff_exists() -> None:
    """As many words are the same as in the longest common subsequence by its definition."""
    own = random.Random(0)
    marks = ["a", "b", "c", "seven", " ", "  ", "\n", ",", "‹image 29›", "‹", "é", "🐈"]
    for _ in range(400):
        before, after = ("".join(own.choices(marks, k=own.randrange(24))) for _ in range(2))
        pieces = word_diff(before, after)
        assert joined(pieces, "same", "gone") == before
        assert joined(pieces, "same", "new") == after
        old, new = _words(before)[0], _words(after)[0]
        same = sum(len(_words(piece.text)[0]) for piece in pieces if piece.kind == "same")
        assert same == length_of_common(old, new), (before, after)


def test_what_is_gone_comes_before_what_is_new() -> None:
    """The id of an image is one word, and words after the last compared one are marked."""
    pieces = [("same", "a"), ("gone", " red seven"), ("new", " blue eight"), ("same", " by hand")]
    assert word_diff("a red seven by hand", "a blue eight by hand") == [Piece(*piece) for piece in pieces]
    assert word_diff("‹image 29›", "‹image 30›") == [Piece("gone", "‹image 29›"), Piece("new", "‹image 30›")]
    text = " a" * (MAX_WORDS + 2)
    rests = [Piece(kind, " a a", compared=False) for kind in ("gone", "new")]
    assert word_diff(text, text) == [Piece("same", " a" * MAX_WORDS), *rests]


def test_hostile_texts_take_no_longer() -> None:
    """The comparison of the standard library takes minutes for some of these."""
    own = random.Random(0)
    pairs = [
        ("a b " * MAX_WORDS, "b a c " * MAX_WORDS),
        (" ".join(own.choices("ab", k=MAX_WORDS)), " ".join(own.choices("ab", k=MAX_WORDS))),
        ("‹" * 100_000, " " * 100_000 + "‹"),
        ("a" * 1_000_000, "\n" * 1_000_000),
    ]
    for before, after in pairs:
        start = time.process_time()
        word_diff(before, after)
        assert time.process_time() - start < 1.0


def test_runs_of_image_ids_are_one_word() -> None:
    """A completion of hundreds of image ids showed which of them differ, which nobody can read."""
    text = "a cat ‹image 29›‹image 3› ‹image 7› sat ‹image 1›."
    assert collapsed(text) == "a cat ‹3 image tokens› sat ‹1 image token›."
    assert word_diff(collapsed("‹image 1›‹image 2›"), collapsed("‹image 1›‹image 3›"))[0].kind == "same"
    assert collapsed("‹image›" + "‹image x›" * 2) == "‹image›‹image x›‹image x›"
