"""Reports of tasks as plain text and as CSV, rendered from the JSON documents that tasks leave as artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from textwrap import indent
from typing import Literal

from pydantic import ValidationError

from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.files.csv_cells import csv_text
from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS
from evalsvc.spec.documents.results import Completion
from evalsvc.spec.documents.text_reports import (
    BITS,
    NATS,
    CompletionsReport,
    FlippedQuestion,
    FlippedQuestions,
    ForgettingReport,
    ForgettingRow,
    LossParts,
    ReportMetric,
)

ReportForm = Literal["text", "csv"]

MEDIA_TYPES: Mapping[ReportForm, str] = {"text": "text/plain; charset=utf-8", "csv": "text/csv; charset=utf-8"}

ENDINGS: Mapping[ReportForm, str] = {"text": ".txt", "csv": ".csv"}

ALPHA = 1 - LEVEL
"""Level at which right answers count as recovered, as in verdicts."""

NAMED = 0.05
"""Smallest share of a change in bits per byte that is named as a cause, because even tiny parts are significant."""

SHOWN = 3

WIDTH = 96

COMMON = 30
"""Number of characters shown of the common beginning of a question's answers, if that is longer."""


def rendered(kind: str, content: bytes, form: ReportForm) -> str:
    """Render the content of an artifact of a kind."""
    renderers = _RENDERERS.get(kind, {})
    if form not in renderers:
        forms = f"has only the forms {', '.join(renderers)}" if renderers else "has no other form than its content"
        raise InvalidRequest(f"an artifact of kind {kind!r} has no form {form!r}; it {forms}")
    try:
        return renderers[form](content)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise InvalidData(f"the artifact is no report of {kind}: {reason}; evaluate the checkpoint again") from None


def forms_of(kind: str) -> list[ReportForm]:
    return list(_RENDERERS.get(kind, {}))


def forgetting_csv(report: ForgettingReport) -> str:
    return csv_text([list(ForgettingRow.model_fields), *(list(row.model_dump().values()) for row in report.rows)])


def forgetting_page(report: ForgettingReport) -> str:
    return _joined(_forgetting_page(report))


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


_RENDERERS: Mapping[str, Mapping[ReportForm, Callable[[bytes], str]]] = {
    "forgetting": {
        "text": lambda content: forgetting_page(ForgettingReport.model_validate_json(content)),
        "csv": lambda content: forgetting_csv(ForgettingReport.model_validate_json(content)),
    },
    "completions": {"text": lambda content: _joined(_completions_page(CompletionsReport.model_validate_json(content)))},
}


def _completions_page(report: CompletionsReport) -> Iterator[str]:
    yield f"checkpoint  {report.checkpoint}"
    if report.base is not None:
        yield f"base        {report.base}"
    for prompt, completions in groupby(report.completions, lambda completion: completion.prompt):
        yield f"\n\n{prompt}"
        for completion in completions:
            if completion.base is not None:
                drawn = len(completion.base_ids or ())
                loss = _judged(completion.base_own_nll or 0.0, completion.base_own_scored or 0, drawn)
                yield f"\n  base, {completion.way}: {loss}"
                yield indent(completion.base, "  | ", lambda line: True)
            yield f"\n  checkpoint, {completion.way}: {_numbers_of(completion)}"
            yield indent(completion.text, "  | ", lambda line: True)


def _numbers_of(completion: Completion) -> str:
    parts = [f"{completion.drawn} ids"]
    if completion.image_ids:
        parts.append(f"{completion.image_ids} of images")
    if completion.ended is not None:
        parts.append("ended" if completion.ended else "not ended")
    if completion.seq_rep_4 is not None:
        parts.append(f"seq-rep-4 {completion.seq_rep_4:.2f}, distinct-1 {completion.distinct_1:.2f}")
    if completion.base_nll is not None and completion.base_scored is not None:
        parts.append(_judged(completion.base_nll, completion.base_scored, completion.drawn))
    return ", ".join(parts)


def _judged(nll: float, scored: int, drawn: int | None) -> str:
    if not scored:
        return "nothing that the base can judge"
    of = "" if scored == drawn else f" on the first {scored} ids"
    return f"the base's loss {nll / scored:.2f} nats/token{of}"


def _forgetting_page(report: ForgettingReport) -> Iterator[str]:
    yield f"base        {report.base}"
    yield f"checkpoint  {report.checkpoint}"
    yield ""
    yield "± is a standard error, [ ] a 95 % interval. Changes are checkpoint less base, paired over the same items."
    yield "all: over all ids; text: with text ids only, as if no image could come."
    if accuracies := [row for row in report.rows if row.chance is not None]:
        yield from _right_answers(accuracies)
        yield from _above_chance(accuracies, report.over_benchmarks)
        yield from _gone(report)
    if any(row.metric == "loss" for row in report.rows):
        yield from _text(report)
    for flipped in report.flipped:
        yield from _flipped(flipped)


def _right_answers(accuracies: Sequence[ForgettingRow]) -> Iterator[str]:
    count = len({row.what for row in accuracies})
    yield from _heading("Right answers")
    yield "lost, gained: questions that only the base, or only the checkpoint, gets right. p: McNemar's exact test,"
    yield f"corrected by Holm's method over {count} benchmark{'s' * (count > 1)}; the verdict is at p ≤ {ALPHA:.2g}."
    yield f"too few: a verdict and an interval need {MIN_ITEMS} questions."
    yield ""
    head = ["", "ids", "n", "chance", "base", "checkpoint", "change", "", "lost", "gained", "p", "verdict"]
    rows = ((row, _cells(row)) for row in accuracies)
    yield from _table(head, ([*cells[:3], _number(row.chance or 0.0), *cells[3:]] for row, cells in rows))


def _above_chance(accuracies: Sequence[ForgettingRow], summaries: Sequence[ReportMetric]) -> Iterator[str]:
    yield from _heading("What is left above chance")
    yield "c = (accuracy − chance) / (1 − chance). Retained: the checkpoint's c / the base's c, with Fieller's"
    yield "interval; –: the base is not above chance by two standard errors. Where it is by less than four, retained is"
    yield "too low on average, since luck may have put the base there; the interval holds all the same. text_retained:"
    yield "the sum of the checkpoint's c over all benchmarks / that of the base's."
    yield ""
    rows = []
    for row in accuracies:
        centred = [_number(row.centred_base or 0.0), _number(row.centred or 0.0)]
        retained = "–" if row.retained is None else _value(row.retained, row.retained_stderr)
        name = row.what if row.scope == "all" else ""
        rows.append([name, row.scope, *centred, retained, _span(row.retained_low, row.retained_high)])
    yield from _table(["", "ids", "base's c", "c", "retained", ""], rows)
    yield from _summaries(summaries)


def _gone(report: ForgettingReport) -> Iterator[str]:
    yield from _heading("What is gone")
    yield "knowledge: gone with text ids only, too. expectation of an image: comes back when only text ids may come."
    yield "Judged by right answers where some are lost, else by the bits per byte of the right answers, whose change is"
    yield f"that with text ids only and that by the expectation of others; less than {NAMED:.0%} of it is not named."
    yield "image ids: their probability where text is due."
    yield ""
    rows = {row.key: row for row in report.rows}
    parts = {part.what: part for part in report.parts if part.unit == BITS}
    cells = []
    for row in report.rows:
        if row.chance is not None and row.scope == "all":
            part, bits = parts.get(row.what), rows.get((row.what, "bits_per_byte", "all"))
            words = what_is_gone(row, rows, part, report.recovered.get(row.what, 1.0))
            whole = ["" if bits is None else _value(bits.change, bits.change_stderr, "+"), "", "", ""]
            cells.append([row.what, words, *(whole if part is None else _part_cells(part))])
    yield from _table(["", "what is gone", BITS, "text", "other ids", "image ids"], cells)


def what_is_gone(
    accuracy: ForgettingRow,
    rows: Mapping[tuple[str, str, str], ForgettingRow],
    parts: LossParts | None,
    p_recovered: float,
) -> str:
    """Say in words what is lost of a benchmark: knowledge, or only room taken by the expectation of an image.

    Right answers that are lost within text ids as well were known. Those that come back within text ids (`p_recovered`)
    were suppressed by other ids. If none are lost, bits per byte decide in the same way.
    """
    within = rows.get((accuracy.what, accuracy.metric, "text"))
    if accuracy.verdict == "too few":
        return f"too few questions to tell: {accuracy.n} of {MIN_ITEMS}"
    if accuracy.verdict == "gained":
        return "nothing: more right answers"
    if accuracy.verdict == "lost":
        return f"answers: {_causes(within is None or within.verdict == 'lost', p_recovered <= ALPHA)}"
    if within is not None and within.verdict == "lost":
        return "answers, with text ids only"
    bits, bits_within = (rows.get((accuracy.what, "bits_per_byte", ids)) for ids in ("all", "text"))
    if bits is None or bits.verdict in ("indistinguishable", "too few"):
        return "nothing that is seen"
    if bits.verdict == "gained":
        return "nothing: better bits"
    if parts is None or bits_within is None:
        return f"bits: {_causes(known=True, expected=False)}"
    known = bits_within.verdict == "lost" and parts.knowledge.share >= NAMED
    return f"bits: {_causes(known, parts.expectation.share >= NAMED)}"


def _causes(known: bool, expected: bool) -> str:
    return ", ".join(["knowledge"] * known + ["expectation of an image"] * expected) or "not decided which"


def _text(report: ForgettingReport) -> Iterator[str]:
    yield from _heading("A fixed text")
    yield "worse, better: texts on which the checkpoint's loss is higher, or lower. p, verdict: of the mean change, by"
    yield f"Student's test guarded against skew; too few: they need {MIN_ITEMS} independent texts."
    yield ""
    head = ["", "ids", "n", "base", "checkpoint", "change", "", "worse", "better", "p", "verdict"]
    yield from _table(head, (_cells(row) for row in report.rows if row.metric == "loss"))
    yield from _summaries(report.of_text)
    parts = [_part_cells(part) for part in report.parts if part.unit == NATS]
    if parts:
        yield ""
        yield from _table([NATS, "text", "other ids", "image ids"], parts)


def _flipped(flipped: FlippedQuestions) -> Iterator[str]:
    yield from _heading(f"Flipped: {flipped.benchmark}")
    counts = (flipped.lost, flipped.lost_within), (flipped.gained, flipped.gained_within)
    for kind, (count, count_within) in zip(("lost", "gained"), counts, strict=True):
        over_all = [flip for flip in flipped.questions if flip.flip == kind]
        within = [flip for flip in flipped.questions if flip.flip_within == kind and flip.flip is None]
        yield from _first_flips(f"{kind}, over all ids", count, over_all[:SHOWN])
        yield from _first_flips(f"{kind}, with text ids only", count_within, within[:SHOWN])
    if flipped.left_out:
        yield f"The report as JSON has the first {len(flipped.questions)}; {flipped.left_out} more are left out."


def _first_flips(what: str, count: int, flips: Sequence[FlippedQuestion]) -> Iterator[str]:
    if count:
        yield f"{what}: {count}" + (f", of which the first {len(flips)}" if count > len(flips) > 0 else "")
    for flip in flips:
        sides = {"base": (flip.base, flip.base_within), "checkpoint": (flip.checkpoint, flip.checkpoint_within)}
        lines = [_line(answer) for answer in (*flip.right, *(answer for side in sides.values() for answer in side))]
        places = enumerate(zip(*lines, strict=False))
        common = next((place for place, letters in places if len(set(letters)) > 1), min(map(len, lines)))
        question = _line(flip.question)
        yield f"{flip.index:>7}  {question if len(question) <= WIDTH else '…' + question[1 - WIDTH :]}"
        yield f"         right       {_from(' | '.join(flip.right) or 'only the benchmark itself knows', common)}"
        for who, (answer, within) in sides.items():
            yield f"         {who:<10}  {_from(answer, common)}"
            # Show the answer within text ids only if it changes the outcome.
            if flip.flip != flip.flip_within and within != answer:
                yield f"         … text ids  {_from(within, common)}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _from(text: str, common: int) -> str:
    line = _line(text)
    start = common - COMMON if len(line) > WIDTH and common > COMMON else 0
    cut = ("…" if start else "") + line[start:]
    return cut if len(cut) <= WIDTH else cut[: WIDTH - 1] + "…"


def _cells(row: ForgettingRow) -> list[str]:
    name = row.what if row.metric != "loss" else row.metric
    return [
        name if row.scope == "all" else "",
        row.scope,
        str(row.n),
        _value(row.base, row.base_stderr),
        _value(row.checkpoint, row.checkpoint_stderr),
        _value(row.change, row.change_stderr, "+"),
        _span(row.change_low, row.change_high, "+"),
        str(row.lost),
        str(row.gained),
        _p(row.p_corrected),
        row.verdict,
    ]


def _part_cells(parts: LossParts) -> list[str]:
    before = "" if parts.base_image_mass is None else f"{_number(parts.base_image_mass)} → "
    changes = [_value(part.value, part.stderr, "+") for part in (parts.total, parts.knowledge, parts.expectation)]
    return [*changes, f"{before}{_number(parts.image_mass)}"]


def _summaries(metrics: Sequence[ReportMetric]) -> Iterator[str]:
    if metrics:
        yield ""
        cells = ([each.name, _value(each.value, each.stderr), _span(each.low, each.high)] for each in metrics)
        yield from _table([], cells)


def _value(value: float, stderr: float | None, sign: str = "-") -> str:
    """Format a value with its standard error, which keeps one significant digit where it would round to zero."""
    if stderr is None:
        return _number(value, sign)
    error = _number(stderr)
    return f"{_number(value, sign)} ±{error if stderr == 0 or error.strip('.0') else f'{stderr:.0e}'}"


def _number(value: float, sign: str = "-") -> str:
    text = f"{value:{sign}.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and not text.endswith("1.000") else text


def _span(low: float | None, high: float | None, sign: str = "-") -> str:
    return "" if low is None or high is None else f"[{_number(low, sign)}, {_number(high, sign)}]"


def _p(p: float | None) -> str:
    if p is None:
        return "–"
    return _number(p) if p >= 0.001 else f"{p:.0e}"


def _heading(text: str) -> Iterator[str]:
    yield from ("", "", text, "-" * len(text))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    body = list(rows)
    lines = [*([head] if head else []), *body]
    for line in lines:
        cells = []
        for place, cell in enumerate(line):
            width = max(len(each[place]) for each in lines)
            numbers = all(each[place][:1] in {*"0123456789.+-±[–", ""} for each in body)
            cells.append(cell.rjust(width) if numbers else cell.ljust(width))
        yield "  ".join(cells).rstrip()
