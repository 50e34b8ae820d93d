"""The report of a gate for people and for CI, as text, JSON, JUnit XML, Markdown and GitHub annotations."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from xml.etree import ElementTree

from evalsvc.compare.gate_report import Comparison, Look, Report
from evalsvc.errors import first_few
from evalsvc.spec.protocol import plain_json

WORDS = {
    "worse": "WORSE",
    "missing": "MISSING",
    "other_protocol": "OTHER PROTOCOL",
    "not_judged": "NOT JUDGED",
    "within_noise": "within noise",
    "better": "better",
    "within_tolerance": "within tolerance",
    "new": "new",
    "ignored": "ignored",
}
"""Words for the verdicts in tables, in the order of a table's rows."""

QUIET = ("within_noise", "within_tolerance")
"""Verdicts whose rows are folded in Markdown."""

UNJUDGED = ("missing", "other_protocol", "not_judged")
"""Verdicts on metrics that should have been judged but could not be."""

COLUMNS = ("", "metric", "baseline", "candidate", "change", "error", "basis", "n", "fails at", "why")
"""Columns of the table of comparisons. `error`: standard error of the change. `basis`: source of the standard error.
`fails at`: approximate smallest worsening that would have been a regression."""

DROP = ("n", "basis", "error", "fails at")
"""Columns of `COLUMNS` that a narrow terminal drops, in this order."""

LOOK_COLUMNS = ("metric", "n", "change", "interval", "basis", "errors", "level", "")
"""Columns of the table of looks. `basis`: source of the standard error. `errors`: boundary of the look, in standard
errors of a normal distribution. `level`: probability that all looks at an unchanged metric together call the metric
worse."""

LOOKS_DROP = ("level", "errors", "basis")

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Pattern of characters that XML 1.0 cannot represent (section 2.2)."""


PrintedTable = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str], Sequence[str], Sequence[str]]
"""Columns and rows, and the columns that are left out if empty, dropped or printed below in a narrow terminal."""


@dataclass(frozen=True)
class Forms:
    """A report in every form in which people and CI read it."""

    exit_code: int
    headline: str
    tables: Sequence[PrintedTable]
    notes: Sequence[str]
    annotations: Sequence[str]
    json: bytes
    junit: bytes
    markdown: bytes


def render(report: Report) -> Forms:
    tables: list[PrintedTable] = []
    if report.looks:
        tables.append((LOOK_COLUMNS, [*map(look_row, report.looks)], (), LOOKS_DROP, ()))
    if report.comparisons:
        tables.append((COLUMNS, table(report.comparisons), (), DROP, ("why",)))
    return Forms(
        int(report.outcome),
        headline(report),
        tables,
        [line for line in (*effort(report), levels(report)) if line],
        to_annotations(report),
        to_json(report).encode(),
        to_junit(report),
        to_markdown(report).encode(),
    )


def headline(report: Report) -> str:
    """Return the outcome, the number of metrics per verdict, and the problems, in one line."""
    counts = Counter[str](comparison.verdict for comparison in report.comparisons)
    numbers = [f"{counts[verdict]} {word.lower()}" for verdict, word in WORDS.items() if counts[verdict]]
    parts = [", ".join(numbers)] if numbers else []
    return f"{report.outcome.name.lower().replace('_', ' ')}: {'; '.join([*parts, *report.problems])}"


def look_row(look: Look) -> list[str]:
    """Return a row of `LOOK_COLUMNS`: the difference at one look, and the interval that holds at all looks together."""
    interval = "" if look.low is None or look.high is None else f"{look.low:+.4g} … {look.high:+.4g}"
    change = [f"{look.units:,} of {look.total:,} {look.unit}", f"{look.difference:+.4g}", interval, look.basis]
    return [look.label, *change, f"{look.standard_errors:.2f}", f"{look.level:.2g}", look.verdict.replace("_", " ")]


def effort(report: Report) -> list[str]:
    """Return the number of samples that the verdicts took, one line per task."""
    return [
        f"{item.task}: {item.units:,} of {item.total:,} {item.unit} of each side, {item.looks} "
        f"look{'s' if item.looks != 1 else ''}, {item.saved:.0%} saved"
        for item in report.samples
    ]


def levels(report: Report) -> str:
    """Return a sentence on how often the gate fails an unchanged checkpoint; empty where chance decides no metric."""
    alarms = report.alarms
    if alarms is None:
        return ""
    metrics = f"{alarms.metrics} metric{'s' if alarms.metrics != 1 else ''}"
    level = f"{alarms.lowest:.3g}"
    if alarms.highest > 1.001 * alarms.lowest:
        level += f" to {alarms.highest:.3g}"
    how = {"none": "", "holm": " or, by Holm's steps, more", "bonferroni": ", by Bonferroni"}[alarms.family]
    each = "" if alarms.metrics == 1 else "each "
    sentence = f"false alarms: {metrics}, {each}at a level of {level}{how}"
    if alarms.metrics > 1:
        sentence += (
            f"; an unchanged checkpoint fails with a chance of {alarms.if_independent:.2g} if the metrics are "
            f"independent, and of {alarms.at_most:.2g} at most"
        )
    judged = [item for item in report.comparisons if item.difference and item.difference.fails_at is not None]
    alone = [item.label for item in judged if item.difference and item.difference.level is None]
    return f"{sentence}; by tolerance alone, with an unknown chance: {first_few(alone, 3)}" if alone else sentence


def table(comparisons: Iterable[Comparison]) -> list[list[str]]:
    """Return the rows of `COLUMNS` in the order of `WORDS`: the worst verdicts first."""
    ordered = sorted(comparisons, key=lambda item: [*WORDS].index(item.verdict))
    return [_row(comparison) for comparison in by_cause(ordered)]


def by_cause(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the comparisons, with one in place of all that have no value of the candidate for the same reason."""
    causes: dict[object, list[Comparison]] = {}
    for comparison in comparisons:
        is_lost = comparison.difference is None and comparison.verdict in ("worse", "missing", "ignored")
        cause = (comparison.verdict, comparison.reason) if is_lost else len(causes)
        causes.setdefault(cause, []).append(comparison)
    return [
        alike[0]
        if len(alike) == 1
        else replace(alike[0], metric=first_few([item.label for item in alike], 3), differs={}, baseline=None)
        for alike in causes.values()
    ]


def to_json(report: Report) -> str:
    """Return the report as a JSON document, in which NaN and infinities are strings."""
    document = {
        "outcome": report.outcome.name.lower(),
        "exit_code": int(report.outcome),
        "candidate": report.candidate,
        "baseline": report.baseline,
        "problems": report.problems,
        "comparisons": [{**asdict(item), "basis": item.basis} for item in report.comparisons],
        "looks": [asdict(look) for look in report.looks],
        "alarms": None if report.alarms is None else asdict(report.alarms),
        "samples": [{**asdict(item), "saved": item.saved} for item in report.samples],
    }
    return json.dumps(plain_json(document), indent=2) + "\n"


def to_junit(report: Report) -> bytes:
    """Return the report as JUnit XML, valid by the schema that Jenkins' xUnit plug-in and pytest share."""
    cases = [_case(comparison) for comparison in report.comparisons]
    for number, problem in enumerate(report.problems, 1):
        case = ElementTree.Element("testcase", {"classname": "gate", "name": f"problem {number}"})
        _add(case, "error", report.outcome.name.lower(), problem)
        cases.append(case)
    tags = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    numbers = {name: str(sum(case.find(tag) is not None for case in cases)) for name, tag in tags.items()}
    skipped, counts = numbers.pop("skipped"), {"tests": str(len(cases)), **numbers}
    root = ElementTree.Element("testsuites", {"name": "evalsvc gate", **counts})
    name = _xml_text(f"{report.candidate} against {report.baseline}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, "skipped": skipped})
    suite.extend(cases)
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def to_markdown(report: Report) -> str:
    """Return a Markdown section for a page such as GitHub's step summary; rows of `QUIET` verdicts are folded."""
    lines = [f"### Gate: {_cell(headline(report))}", "", f"{_code(report.candidate)} against {_code(report.baseline)}"]
    if false_alarms := levels(report):
        lines += ["", _cell(false_alarms)]
    if loud := [comparison for comparison in report.comparisons if comparison.verdict not in QUIET]:
        lines += ["", *_markdown_table(loud)]
    for verdict in QUIET:
        if quiet := [comparison for comparison in report.comparisons if comparison.verdict == verdict]:
            lines += ["", f"<details><summary>{len(quiet)} {WORDS[verdict]}</summary>", "", *_markdown_table(quiet)]
            lines += ["", "</details>"]
    if report.looks:
        rows = [[_code(metric), *map(_cell, rest)] for metric, *rest in map(look_row, report.looks)]
        summary = _cell("; ".join(effort(report)))
        lines += ["", f"<details><summary>{summary}</summary>", "", *_markdown_rows(LOOK_COLUMNS, rows)]
        lines += ["", "</details>"]
    return "\n".join([*lines, "", ""])


def to_annotations(report: Report) -> list[str]:
    """Return workflow commands that GitHub displays as annotations, the worst first: it displays ten of a kind."""
    kinds = {"worse": "error", **dict.fromkeys(UNJUDGED, "error"), "ignored": "warning", "better": "notice"}
    lines = [_annotation("error", "gate", problem) for problem in report.problems]
    for verdict in WORDS:
        lines += [
            _annotation(kinds[verdict], comparison.label, comparison.reason)
            for comparison in by_cause(report.comparisons)
            if comparison.verdict == verdict and verdict in kinds
        ]
    return lines


def _row(comparison: Comparison) -> list[str]:
    difference = comparison.difference
    return [
        WORDS[comparison.verdict],
        comparison.label,
        *("" if value is None else f"{value:.6g}" for value in (comparison.baseline, comparison.candidate)),
        f"{difference.value:+.4g}" if difference else "",
        f"± {difference.stderr:.2g}" if difference and difference.stderr is not None else "",
        comparison.basis,
        f"{difference.n:,}" if difference else "",
        f"{difference.fails_at:.2g}" if difference and difference.fails_at is not None else "",
        comparison.reason,
    ]


def _case(comparison: Comparison) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase", {"classname": _xml_text(comparison.task), "name": _xml_text(comparison.label)}
    )
    kinds = {"worse": "failure", **dict.fromkeys(UNJUDGED, "error"), "new": "skipped", "ignored": "skipped"}
    if comparison.verdict in kinds:
        _add(case, kinds[comparison.verdict], comparison.verdict, comparison.reason)
    numbers = [f"{key}: {cell}" for key, cell in zip(COLUMNS, _row(comparison), strict=True) if key and cell]
    ElementTree.SubElement(case, "system-out").text = _xml_text("\n".join(numbers))
    return case


def _add(case: ElementTree.Element, kind: str, of: str, message: str) -> None:
    ElementTree.SubElement(case, kind, {"type": of, "message": _xml_text(message)})


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _markdown_table(comparisons: Sequence[Comparison]) -> list[str]:
    rows = [[verdict, _code(metric), *map(_cell, rest)] for verdict, metric, *rest in table(comparisons)]
    return _markdown_rows(COLUMNS, rows)


def _markdown_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def _cell(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    plain = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def _annotation(kind: str, title: str, message: str) -> str:
    # As `@actions/core`, command.ts, escapes.
    for plain, escaped in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        title, message = title.replace(plain, escaped), message.replace(plain, escaped)
    title = title.replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={title}::{message}"
