"""The pages that a reader gets of reports, and that forgetting, compare and the gate ask one comparison."""

import csv
import io
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import forgetting_reports
import pytest
from benchmark_results import results, with_bits
from forgetting_reports import FLIP, flipped
from gate_documents import result

from evalsvc.compare import gate
from evalsvc.compare.comparison import compare_results
from evalsvc.compare.text_pages import SHOWN, WIDTH, forgetting_csv, forgetting_page, rendered
from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.language.results import Results
from evalsvc.spec.documents.text_reports import Flip, ForgettingReport, ForgettingRow
from evalsvc.tasks.forgetting.retention import text_retained
from evalsvc.tasks.forgetting.rows import Pairs, benchmark_parts, benchmark_rows, corrected, recovered, row_of

RIGHT, HALF = [1.0] * 40, [1.0, 0.0] * 20


def flip(index: int, kind: Flip | None = "lost", within: Flip | None = "lost", **more: Any) -> dict[str, Any]:
    asked = {"index": index, "flip": kind, "flip_within": within, "question": f"is it {index}?"}
    return {**FLIP, **asked, "right": ["yes"], "checkpoint_within": "no", **more}


def report(*flipped: dict[str, Any], rows: Sequence[ForgettingRow] | None = None) -> ForgettingReport:
    base = with_bits(results(a=RIGHT, b=HALF), "a", [8.0] * 40, [8.0] * 40)
    half = results(a=HALF, b=HALF, within={"a": RIGHT})
    own = with_bits(half, "a", [20.0 + n % 2 for n in range(40)], [8.0] * 40, 0.25)
    made = benchmark_rows(own, base)
    retained = text_retained("forgetting", made, own, base, {}).metrics[0]
    low, high = retained.ends or (None, None)
    summary = {"name": retained.name, "value": retained.value, "stderr": retained.stderr, "low": low, "high": high}
    text = corrected([row_of("text", "loss", "all", "nats/token", TEXT)])
    changes: dict[str, Any] = {"base": "run 'a' step 0", "checkpoint": "run 'a' step 400"}
    changes |= {"rows": [*made, *text] if rows is None else rows, "recovered": recovered(own, base)}
    changes |= {"parts": benchmark_parts(own, base), "over_benchmarks": [summary], "flipped": flipped}
    return ForgettingReport.model_validate(forgetting_reports.report(**changes))


TEXT = Pairs([2.0, 4.0] * 5, [5.0 + number / 10 for number in range(10)], [1] * 10)


def page(made: ForgettingReport) -> list[str]:
    return forgetting_page(made).split("\n")


def cells(lines: Sequence[str], name: str) -> str:
    line = next(line for line in lines if line.startswith(f"{name} "))
    return "|".join(cell.strip() for cell in line.split("  ") if cell.strip())


def table(made: ForgettingReport) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(forgetting_csv(made))))


def test_every_row_says_n_chance_and_error_and_one_line_whether_it_is_knowledge() -> None:
    lines = page(report())
    assert lines[:2] == ["base        run 'a' step 0", "checkpoint  run 'a' step 400"]
    row = "a|all|40|.250|1.000 ±.031|.500 ±.080|-.500 ±.080|[-.648, -.352]|20|0|4e-06|lost"
    assert cells(lines, "a") == row
    assert "corrected by Holm's method over 2 benchmarks; the verdict is at p ≤ 0.05." in lines
    left = "forgetting/text_retained|.500 ±.090|[.305, .669]"
    assert cells(lines, "forgetting/text_retained") == left, "c was 1 and a third, and is a third of each"
    what = lines[lines.index("What is gone") :]
    row = "a|answers: expectation of an image|+1.250 ±.008|+.000 ±.000|+1.250 ±.008|.000 → .250"
    assert cells(what, "a") == row
    assert "nothing that is seen" in cells(what, "b")
    made = report()
    found = table(made)
    assert list(found[0]) == list(ForgettingRow.model_fields)
    assert [(row["what"], row["metric"], row["scope"]) for row in found] == [row.key for row in made.rows]
    assert [float(row["change"]) for row in found] == [row.change for row in made.rows]
    assert found[-1]["chance"] == ""


def test_what_is_not_shown_is_counted() -> None:
    """A reader must not take the three that are shown, or the ten that are kept, for all there are."""
    kept = [*(flip(n) for n in range(8)), flip(20, "gained", None), flip(21, None, "gained")]
    made = report(flipped(*kept, lost=20, gained=1, gained_within=1))
    lines = page(made)
    start = lines.index("Flipped: a")
    assert f"lost, over all ids: 20, of which the first {SHOWN}" in lines[start:]
    assert "gained, over all ids: 1" in lines[start:]
    assert "gained, with text ids only: 1" in lines[start:]
    assert "The report as JSON has the first 10; 12 more are left out." in lines[start:]
    assert sum("is it" in line for line in lines[start:]) == SHOWN + 2


def test_long_answers_are_shown_where_they_differ() -> None:
    """PIQA's options are alike for hundreds of characters, and cut off at the end they looked the same."""
    alike = "and then " * 40
    left, right = alike + "left", alike + "right"
    long = {"question": "why? " * 90, "right": [left], "base": left, "base_within": left, "checkpoint_within": left}
    lines = page(report(flipped(flip(0, "lost", None, **long, checkpoint=right))))
    shown = lines[lines.index("Flipped: a") + 3 :]
    by_who = {line.split()[0]: line for line in shown if line.startswith("         ")}
    assert by_who["right"].endswith("left")
    assert by_who["checkpoint"].endswith("right")
    assert by_who["…"].startswith("         … text ids  …"), "what is said with text ids only decides here"
    assert max(map(len, shown)) <= WIDTH + 21


def test_a_text_alone_has_a_page() -> None:
    lines = page(report(rows=report().rows[-1:]))
    assert "Right answers" not in lines
    row = "loss|all|10|3.000 ±.333|5.450 ±.096|+2.450 ±.330|[+1.703, +3.197]|10|0|4e-05|lost"
    assert cells(lines, "loss") == row


def test_what_is_too_few_is_said() -> None:
    """No p-value, no interval and no verdict of seven questions or texts; the counts stay."""
    text = row_of("text", "loss", "all", "nats/token", Pairs([1.0, 2.0, 3.0], [1.5, 2.6, 3.7], [1] * 3))
    made = report(rows=[*benchmark_rows(results(c=[0.0] * 7), results(c=[1.0] * 7)), *corrected([text])])
    lines = page(made)
    assert cells(lines, "loss").endswith("|3|0|–|too few")
    assert cells(lines, "c").endswith("|7|0|–|too few")
    assert any("too few questions to tell: 7 of 8" in line for line in lines)
    said = {(row["p"], row["p_corrected"], row["change_low"], row["verdict"]) for row in table(made)}
    assert said == {("", "", "", "too few")}
    sure = results(c=[1.0] * 10_000)
    assert "|1.000 ±1e-04|1.000 ±1e-04|" in cells(page(report(rows=benchmark_rows(sure, sure))), "c"), "no error is 0"


def test_numbers_survive_as_json() -> None:
    """A loss that became infinite: JSON has no infinity, and a reader must not get null for it."""
    pairs = Pairs([1.0] * 9, [math.inf, *([1.1] * 8)], [1] * 9)
    made = report(rows=corrected([row_of("text", "loss", "all", "nats/token", pairs)]))
    content = made.model_dump_json()
    json.loads(content, parse_constant=pytest.fail)
    assert ForgettingReport.model_validate_json(content).model_dump_json() == content
    assert rendered("forgetting", content.encode(), "text") == forgetting_page(made)


def test_what_cannot_be_rendered_is_named() -> None:
    with pytest.raises(InvalidRequest, match="an artifact of kind 'grid' has no form 'text'; it has no other form"):
        rendered("grid", b"", "text")
    with pytest.raises(InvalidRequest, match="'completions' has no form 'csv'; it has only the forms text"):
        rendered("completions", b"{}", "csv")
    with pytest.raises(InvalidData, match="the artifact is no report of forgetting: "):
        rendered("forgetting", b"[" * 100_000, "text")


def answers(seed: int, right: float, n: int = 60) -> list[float]:
    """Right or wrong, on questions that are hard or easy alike for all seeds."""
    shared, own = random.Random(7), random.Random(seed)
    return [float(0.6 * shared.random() + 0.4 * own.random() < right) for _ in range(n)]


def bits(seed: int, mean: float, n: int = 60) -> list[float]:
    shared, own = random.Random(8), random.Random(seed)
    return [mean + shared.gauss(0, 1) + 0.1 * own.gauss(0, 1) for _ in range(n)]


def measured(seed: int, right: float = 0.5, mean: float = 8.0, n: int = 60) -> Results:
    found = results(arc=answers(seed, right, n))
    return with_bits(found, "arc", bits(seed, mean, n), bits(seed + 100, mean - 1, n))


PAIRS: dict[str, tuple[Results, Results]] = {
    "a little worse": (measured(1), measured(2, 0.45, 8.05)),
    "the same": (measured(1), measured(1)),
    "all right, all wrong": (results(arc=[1.0] * 30), results(arc=[0.0] * 30)),
    "items in another order": (measured(1), Results(measured(2).metrics, measured(2).items[::-1], {})),
    "one document": (measured(1, n=1), measured(2, 0.2, n=1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_compare_the_gate_and_forgetting_say_the_same(name: str) -> None:
    """Three answers to one question: how far apart, with which error, and where that comes from."""
    base, own = PAIRS[name]
    before, after = (result(*side.metrics, items={"text": side.items}, task="text") for side in (base, own))
    compared = {
        one.metric: (float(one.difference), one.stderr, one.basis, one.n)
        for one in compare_results(before, after).contrasts
        if one.difference is not None
    }
    judged = {
        one.metric: (one.difference.value, one.difference.stderr, one.difference.basis, one.difference.n)
        for one in gate.compare(after, before).comparisons
        if one.difference
    }
    rows = benchmark_rows(own, base)
    assert len(rows) == (2 if len(base.metrics) == 2 else 4)
    for row in rows:
        metric = f"{row.what}/{row.metric}{'_within' if row.scope == 'text' else ''}"
        assert compared[metric] == judged[metric]
        difference, stderr, basis, n = compared[metric]
        assert (row.change_basis, row.n) == (basis, n)
        assert row.change == pytest.approx(difference, rel=1e-9, abs=1e-12)
        assert row.change_stderr == (None if stderr is None else pytest.approx(stderr, rel=1e-9, abs=1e-12))
