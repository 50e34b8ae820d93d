"""The forgetting task's artifacts: a page, the same content as a table, and the list of flipped questions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING

from evalsvc.files.artifacts import Artifact
from evalsvc.files.csv_cells import csv_text
from evalsvc.metrics.distance import Distance
from evalsvc.metrics.intervals import MIN_ITEMS
from evalsvc.spec.protocol import MetricValue
from evalsvc.tasks.forgetting.rows import ALPHA, BITS, NAMED, NATS, Parts, Row, what_is_gone

if TYPE_CHECKING:
    from evalsvc.language.flips import Flip

SHOWN = 3
"""Number of flipped questions of each kind and benchmark that the page shows."""

WIDTH = 96
"""Number of characters of a question or answer that the page shows."""

COMMON = 30
"""Number of characters shown of the common beginning of a question's answers, if that is longer."""


@dataclass(frozen=True)
class Flipped:
    """Questions of one benchmark whose answers have flipped; see `language.flips`."""

    benchmark: str
    flips: Sequence[Flip]
    keep: int
    """Maximum number of questions to keep."""

    @property
    def kept(self) -> Sequence[Flip]:
        return self.flips[: self.keep]

    @property
    def left_out(self) -> int:
        return len(self.flips) - len(self.kept)


@dataclass
class Report:
    """The content of the page."""

    base: str | None
    checkpoint: str
    rows: list[Row] = field(default_factory=list)
    parts: list[Parts] = field(default_factory=list)
    recovered: Mapping[str, float] = field(default_factory=dict)
    """P-values by benchmark, see `rows.recovered`."""
    over_benchmarks: list[MetricValue] = field(default_factory=list)
    """Metrics over several benchmarks."""
    of_text: list[MetricValue] = field(default_factory=list)
    """Metrics of the text that are not differences of two values."""
    flipped: list[Flipped] = field(default_factory=list)

    @property
    def accuracies(self) -> list[Row]:
        return [row for row in self.rows if row.chance is not None]

    def artifacts(self) -> list[Artifact]:
        details = {"base": self.base, "checkpoint": self.checkpoint}
        page = "\n".join(_page(self)) + "\n"
        files = [
            Artifact("forgetting", "forgetting.txt", "text/plain; charset=utf-8", _encoded(page), details),
            Artifact("table", "forgetting.csv", "text/csv; charset=utf-8", _encoded(_csv(self.rows)), details),
        ]
        lines = "".join(
            json.dumps(flip.to_json(), ensure_ascii=False) + "\n" for part in self.flipped for flip in part.kept
        )
        if lines:
            left_out = {part.benchmark: part.left_out for part in self.flipped if part.left_out}
            kind = "flipped", "flipped.jsonl", "application/jsonl; charset=utf-8"
            files.append(Artifact(*kind, _encoded(lines), {**details, "left_out": left_out}))
        return files


def _encoded(text: str) -> bytes:
    """Encode a text as UTF-8; half a character, which some datasets contain, becomes a question mark."""
    return text.encode("utf-8", "replace")


def _page(report: Report) -> Iterator[str]:
    yield f"base        {report.base}"
    yield f"checkpoint  {report.checkpoint}"
    yield ""
    yield "± is a standard error, [ ] a 95 % interval. Changes are checkpoint less base, paired over the same items."
    yield "all: over all ids; text: with text ids only, as if no image could come."
    if report.accuracies:
        yield from _right_answers(report)
        yield from _above_chance(report)
        yield from _gone(report)
    if losses := [row for row in report.rows if row.metric == "loss"]:
        yield from _text(report, losses)
    for flipped in report.flipped:
        yield from _flipped(flipped)


def _right_answers(report: Report) -> Iterator[str]:
    count = len({row.what for row in report.accuracies})
    yield from _heading("Right answers")
    yield "lost, gained: questions that only the base, or only the checkpoint, gets right. p: McNemar's exact test,"
    yield f"corrected by Holm's method over {count} benchmark{'s' * (count > 1)}; the verdict is at p ≤ {ALPHA:.2g}."
    yield f"too few: a verdict and an interval need {MIN_ITEMS} questions."
    yield ""
    head = ["", "ids", "n", "chance", "base", "checkpoint", "change", "", "lost", "gained", "p", "verdict"]
    yield from _table(head, map(_accuracy_cells, report.accuracies))


def _above_chance(report: Report) -> Iterator[str]:
    yield from _heading("What is left above chance")
    yield "c = (accuracy − chance) / (1 − chance). Retained: the checkpoint's c / the base's c, with Fieller's"
    yield "interval; –: the base is not above chance by two standard errors. Where it is by less than four, retained is"
    yield "too low on average, since luck may have put the base there; the interval holds all the same. text_retained:"
    yield "the sum of the checkpoint's c over all benchmarks / that of the base's."
    yield ""
    yield from _table(["", "ids", "base's c", "c", "retained", ""], map(_centred_cells, report.accuracies))
    yield from _summaries(report.over_benchmarks)


def _gone(report: Report) -> Iterator[str]:
    yield from _heading("What is gone")
    yield "knowledge: gone with text ids only, too. expectation of an image: comes back when only text ids may come."
    yield "Judged by right answers where some are lost, else by the bits per byte of the right answers, whose change is"
    yield f"that with text ids only and that by the expectation of others; less than {NAMED:.0%} of it is not named."
    yield "image ids: their probability where text is due."
    yield ""
    by_key = {row.key: row for row in report.rows}
    parts = {part.what: part for part in report.parts if part.unit == BITS}
    cells = []
    for row in report.accuracies:
        if row.scope == "all":
            part = parts.get(row.what)
            words = what_is_gone(row, by_key, part, report.recovered.get(row.what, 1.0))
            bits = by_key.get((row.what, "bits_per_byte", "all"))
            change = Distance(bits.change, bits.change_stderr, bits.change_basis, bits.n) if bits else None
            cells.append([row.what, words, *_part_cells(part, change)])
    yield from _table(["", "what is gone", BITS, "text", "other ids", "image ids"], cells)


def _text(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    yield from _heading("A fixed text")
    yield "worse, better: texts on which the checkpoint's loss is higher, or lower. p, verdict: of the mean change, by"
    yield f"Student's test guarded against skew; too few: they need {MIN_ITEMS} independent texts."
    yield ""
    head = ["", "ids", "n", "base", "checkpoint", "change", "", "worse", "better", "p", "verdict"]
    yield from _table(head, map(_cells, rows))
    yield from _summaries(report.of_text)
    parts = [_part_cells(part, None) for part in report.parts if part.unit == NATS]
    if parts:
        yield ""
        yield from _table([NATS, "text", "other ids", "image ids"], parts)


def _flipped(flipped: Flipped) -> Iterator[str]:
    yield from _heading(f"Flipped: {flipped.benchmark}")
    for kind in ("lost", "gained"):
        over_all = [flip for flip in flipped.flips if flip.flip == kind]
        within = [flip for flip in flipped.flips if flip.flip_within == kind and flip.flip is None]
        yield from _shown(f"{kind}, over all ids", over_all)
        yield from _shown(f"{kind}, with text ids only", within)
    if flipped.left_out:
        yield f"flipped.jsonl has the first {len(flipped.kept)}; {flipped.left_out} more are left out."


def _shown(what: str, flips: Sequence[Flip]) -> Iterator[str]:
    if flips:
        yield f"{what}: {len(flips)}" + (f", of which the first {SHOWN}" if len(flips) > SHOWN else "")
    for flip in flips[:SHOWN]:
        yield from _flip(flip)


def _flip(flip: Flip) -> Iterator[str]:
    sides = {"base": (flip.base, flip.base_within), "checkpoint": (flip.checkpoint, flip.checkpoint_within)}
    answers = [*flip.right, *(answer for side in sides.values() for answer in side)]
    common = _common([_line(answer) for answer in answers])
    yield f"{flip.index:>7}  {_end(flip.question)}"
    yield f"         right       {_from(' | '.join(flip.right) or 'only the benchmark itself knows', common)}"
    for who, (answer, within) in sides.items():
        yield f"         {who:<10}  {_from(answer, common)}"
        # Show the answer within text ids only if it changes the outcome.
        if flip.flip != flip.flip_within and within != answer:
            yield f"         … text ids  {_from(within, common)}"


# cells


def _accuracy_cells(row: Row) -> list[str]:
    name, ids, n, *rest = _cells(row)
    return [name, ids, n, _number(row.chance or 0.0), *rest]


def _cells(row: Row) -> list[str]:
    return [
        _named(row, row.what if row.metric != "loss" else row.metric),
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


def _centred_cells(row: Row) -> list[str]:
    return [
        _named(row, row.what),
        row.scope,
        _number(row.centred_base or 0.0),
        _number(row.centred or 0.0),
        "–" if row.retained is None else _value(row.retained, row.retained_stderr),
        _span(row.retained_low, row.retained_high),
    ]


def _part_cells(part: Parts | None, total: Distance | None) -> list[str]:
    """Return the cells of a row's parts. `total` is the whole change, if there are no parts."""
    if part is None:
        return [_value(total.value, total.stderr, "+") if total else "", "", "", ""]
    before = "" if part.base_image_mass is None else f"{_number(part.base_image_mass)} → "
    changes = [_value(each.value, each.stderr, "+") for each in (part.total, part.knowledge, part.expectation)]
    return [*changes, f"{before}{_number(part.image_mass)}"]


def _named(row: Row, name: str) -> str:
    """Return a row's name; empty for the second row with the same name."""
    return name if row.scope == "all" else ""


def _summaries(metrics: Sequence[MetricValue]) -> Iterator[str]:
    cells = [
        [metric.name, _value(metric.value, metric.stderr), _span(*(metric.ends or (None, None)))] for metric in metrics
    ]
    if cells:
        yield ""
        yield from _table([], cells)


def _value(value: float, stderr: float | None, sign: str = "-") -> str:
    return _number(value, sign) + ("" if stderr is None else f" ±{_error(stderr)}")


def _error(stderr: float) -> str:
    """Format a standard error with three places, or with one significant digit if it would round to zero."""
    text = _number(stderr)
    return text if stderr == 0 or text.strip(".0") else f"{stderr:.0e}"


def _number(value: float, sign: str = "-") -> str:
    """Format a number with three places, without a zero before the point."""
    text = f"{value:{sign}.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and not text.endswith("1.000") else text


def _span(low: float | None, high: float | None, sign: str = "-") -> str:
    return "" if low is None or high is None else f"[{_number(low, sign)}, {_number(high, sign)}]"


def _p(p: float | None) -> str:
    if p is None:
        return "–"
    return _number(p) if p >= 0.001 else f"{p:.0e}"


def _common(texts: Sequence[str]) -> int:
    """Return the length of the common beginning of all texts."""
    places = enumerate(zip(*texts, strict=False))
    return next((place for place, letters in places if len(set(letters)) > 1), min(map(len, texts)))


def _line(text: str) -> str:
    return " ".join(text.split())


def _from(text: str, common: int) -> str:
    """Return an answer as one line, beginning shortly before the answers differ."""
    line = _line(text)
    start = common - COMMON if len(line) > WIDTH and common > COMMON else 0
    cut = ("…" if start else "") + line[start:]
    return cut if len(cut) <= WIDTH else cut[: WIDTH - 1] + "…"


def _end(text: str) -> str:
    line = _line(text)
    return line if len(line) <= WIDTH else "…" + line[1 - WIDTH :]


def _heading(text: str) -> Iterator[str]:
    yield from ("", "", text, "-" * len(text))


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out columns of equal width; names are left-aligned, numbers and their headings right-aligned."""
    body = list(rows)
    lines = [*([head] if head else []), *body]
    for line in lines:
        cells = []
        for place, cell in enumerate(line):
            width = max(len(each[place]) for each in lines)
            numbers = all(each[place][:1] in {*"0123456789.+-±[–", ""} for each in body)
            cells.append(cell.rjust(width) if numbers else cell.ljust(width))
        yield "  ".join(cells).rstrip()


def _csv(rows: Sequence[Row]) -> str:
    """Return all columns of all rows as CSV; missing values are empty."""
    columns = [each.name for each in fields(Row)]
    return csv_text([columns, *(list(asdict(row).values()) for row in rows)])
