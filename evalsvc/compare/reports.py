"""What the gate found, for people and for CI: text, JSON, JUnit XML, Markdown, GitHub annotations."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from xml.etree import ElementTree

from evalsvc.compare.gate import Comparison, Look, Report
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
"""What tables call each verdict, in the order in which they show them."""

QUIET = ("within_noise", "within_tolerance")
"""Verdicts that Markdown folds away."""

UNJUDGED = ("missing", "other_protocol", "not_judged")
"""Verdicts of what should have been judged and was not."""

COLUMNS = ("", "metric", "baseline", "candidate", "change", "error", "basis", "n", "fails at", "why")
"""`error`: the standard error of the change; `basis`: where that comes from; `fails at`: about the smallest change to
the bad side that would have been a regression."""

DROP = ("n", "basis", "error", "fails at")
"""Columns that go, in this order, where a terminal is too narrow for all."""

LOOK_COLUMNS = ("metric", "n", "change", "interval", "basis", "errors", "level", "")
"""Of the looks at samples that were still drawn; `basis`: where the standard error comes from; `errors`: the boundary
of the look, in standard errors of a normal distribution; `level`: how often all looks at the metric together call it
worse although it did not change."""

LOOKS_DROP = ("level", "errors", "basis")
"""Columns of `LOOK_COLUMNS` that go, in this order, where a terminal is too narrow for all."""

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write (section 2.2)."""


def headline(report: Report) -> str:
    """The outcome in one line."""
    counts = Counter[str](comparison.verdict for comparison in report.comparisons)
    found = [f"{counts[verdict]} {word.lower()}" for verdict, word in WORDS.items() if counts[verdict]]
    parts = [", ".join(found)] if found else []
    return f"{report.outcome.name.lower().replace('_', ' ')}: {'; '.join([*parts, *report.problems])}"


def looks_table(report: Report) -> list[list[str]]:
    """Rows of `LOOK_COLUMNS`: how each metric came to its verdict."""
    return [look_row(look) for look in report.looks]


def look_row(look: Look) -> list[str]:
    """The difference at one look, and the interval that holds at all looks together."""
    interval = "" if look.low is None or look.high is None else f"{look.low:+.4g} … {look.high:+.4g}"
    n = f"{look.units:,} of {look.total:,} {look.unit}"
    errors = f"{look.standard_errors:.2f}"
    change = f"{look.difference:+.4g}"
    verdict = look.verdict.replace("_", " ")
    return [look.label, n, change, interval, look.basis, errors, f"{look.level:.2g}", verdict]


def effort(report: Report) -> list[str]:
    """What it took, a line a task."""
    return [
        f"{item.task}: {item.units:,} of {item.total:,} {item.unit} of each side, {item.looks} "
        f"look{'s' if item.looks != 1 else ''}, {item.saved:.0%} saved"
        for item in report.samples
    ]


def levels(report: Report) -> str:
    """How often the gate as a whole fails a checkpoint that did not change; nothing where no chance decides."""
    alarms = report.alarms
    if alarms is None:
        return ""
    metrics = f"{alarms.metrics} metric{'s' if alarms.metrics != 1 else ''}"
    level = f"{alarms.lowest:.3g}"
    if alarms.highest > 1.001 * alarms.lowest:
        level += f" to {alarms.highest:.3g}"
    how = {"none": "", "holm": " or, by Holm's steps, more", "bonferroni": ", by Bonferroni"}[alarms.family]
    each = "" if alarms.metrics == 1 else "each "
    said = f"false alarms: {metrics}, {each}at a level of {level}{how}"
    if alarms.metrics == 1:
        return said
    return (
        f"{said}; an unchanged checkpoint fails with a chance of {alarms.if_independent:.2g} if the metrics are "
        f"independent, and of {alarms.at_most:.2g} at most"
    )


def table(comparisons: Iterable[Comparison]) -> list[list[str]]:
    """Rows of `COLUMNS`, what matters most first."""
    order = list(WORDS)
    return [_row(comparison) for comparison in sorted(comparisons, key=lambda item: order.index(item.verdict))]


def to_json(report: Report) -> str:
    """One document; NaN and infinities are strings."""
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
    """A test case per metric: worse is a failure, what could not be judged an error, what is new or ignored skipped.

    Valid by the schema that Jenkins' xUnit plug-in and pytest share.
    """
    cases = [_case(comparison) for comparison in report.comparisons]
    for number, problem in enumerate(report.problems, 1):
        case = ElementTree.Element("testcase", {"classname": "gate", "name": f"problem {number}"})
        _add(case, "error", report.outcome.name.lower(), problem)
        cases.append(case)
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
    }
    root = ElementTree.Element("testsuites", {"name": "evalsvc gate", **counts})
    skipped = str(sum(case.find("skipped") is not None for case in cases))
    name = _xml_text(f"{report.candidate} against {report.baseline}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, "skipped": skipped})
    suite.extend(cases)
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def to_markdown(report: Report) -> str:
    """A section to append to a page, such as GitHub's step summary; what is within noise or tolerance is folded."""
    lines = [f"### Gate: {_cell(headline(report))}", "", f"{_code(report.candidate)} against {_code(report.baseline)}"]
    if said := levels(report):
        lines += ["", _cell(said)]
    if loud := [comparison for comparison in report.comparisons if comparison.verdict not in QUIET]:
        lines += ["", *_markdown_table(loud)]
    for verdict in QUIET:
        if quiet := [comparison for comparison in report.comparisons if comparison.verdict == verdict]:
            lines += ["", f"<details><summary>{len(quiet)} {WORDS[verdict]}</summary>", "", *_markdown_table(quiet)]
            lines += ["", "</details>"]
    if report.looks:
        rows = [[_code(metric), *map(_cell, rest)] for metric, *rest in looks_table(report)]
        summary = _cell("; ".join(effort(report)))
        lines += ["", f"<details><summary>{summary}</summary>", "", *_markdown_rows(LOOK_COLUMNS, rows)]
        lines += ["", "</details>"]
    return "\n".join([*lines, "", ""])


def to_annotations(report: Report) -> list[str]:
    """Workflow commands that GitHub shows beside a commit, the gravest first since it shows ten of a kind.

    Source of the escaping: `@actions/core`, command.ts.
    """
    unjudged = dict.fromkeys(UNJUDGED, "error")
    kinds = {"worse": "error", **unjudged, "ignored": "warning", "better": "notice"}
    lines = [_annotation("error", "gate", problem) for problem in report.problems]
    for verdict in WORDS:
        lines += [
            _annotation(kinds[verdict], comparison.label, comparison.reason)
            for comparison in report.comparisons
            if comparison.verdict == verdict and verdict in kinds
        ]
    return lines


def _row(comparison: Comparison) -> list[str]:
    difference = comparison.difference
    return [
        WORDS[comparison.verdict],
        comparison.label,
        _value(comparison.baseline),
        _value(comparison.candidate),
        f"{difference.value:+.4g}" if difference else "",
        f"± {difference.stderr:.2g}" if difference and difference.stderr is not None else "",
        comparison.basis,
        f"{difference.n:,}" if difference else "",
        f"{difference.fails_at:.2g}" if difference and difference.fails_at is not None else "",
        comparison.reason,
    ]


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _case(comparison: Comparison) -> ElementTree.Element:
    names = {"classname": _xml_text(comparison.task), "name": _xml_text(comparison.label)}
    case = ElementTree.Element("testcase", names)
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
    """As it stands, in a cell or a line: no markup, no line breaks."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    plain = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def _annotation(kind: str, title: str, message: str) -> str:
    for plain, escaped in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        title, message = title.replace(plain, escaped), message.replace(plain, escaped)
    title = title.replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={title}::{message}"
